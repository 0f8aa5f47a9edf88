"""send_file: plain files by the kernel, all else by reading; and buffers that the kernel reads."""

from __future__ import annotations

import errno
import gzip
import io
import mmap
import os
import re
import signal
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from helpers import (
    SMALL,
    conn_and_peer,
    content,
    descriptors,
    read,
    read_all,
    two_conns,
    until,
)
from test_send import reset
from tls_helpers import two_tls
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

import trio_wknet._files as files
from trio_wknet import Conn, Engine, Limits
from trio_wknet._native.testing import ReactorSender, all_cached
from trio_wknet._native.trio.send_file import pretend_cold

Peer = tuple[Conn, Any]
DATA = content("file", 700_000)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file on a disk, as far as the tests' folder is on one."""
    path = tmp_path_factory.mktemp("files") / "file"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def file(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        yield file


@pytest.fixture
def cold() -> Iterator[None]:
    """No file is in memory, or so it seems."""
    pretend_cold(True)
    yield
    pretend_cold(False)


def counting(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Any]:
    """What `PlainFile` is asked to do in a worker thread."""
    calls: list[Any] = []
    real = getattr(files.PlainFile, name)

    def noted(self: Any, *args: Any) -> Any:
        calls.append(args)
        return real(self, *args)

    monkeypatch.setattr(files.PlainFile, name, noted)
    return calls


async def sent_file(conn: Any, peer: Any, file: Any, *args: Any) -> tuple[int, bytes]:
    """What send_file returned, and what came of it: up to the end."""
    results: list[int] = []

    async def send() -> None:
        results.append(await conn.send_file(file, *args))
        await conn.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        received = await read_all(peer)
    return results[0], received


# -- which bytes ---------------------------------------------------------------------


async def test_every_byte_under_back_pressure(engine: Engine, kind: str, file: Any) -> None:
    async with two_conns(engine, kind, limits=Limits(inbound=5000), options=SMALL) as (one, other):
        assert await sent_file(one, other, file) == (len(DATA), DATA)
        statistics = one.statistics()
        assert (statistics.bytes_sent, statistics.buffered_outbound) == (len(DATA), 0)
        assert statistics.idle_time < statistics.uptime
    assert file.tell() == 0


async def test_in_few_calls(engine: Engine, file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in memory is sent by the kernel, and not read."""
    calls = counting(monkeypatch, "_read") + counting(monkeypatch, "_read_ahead")
    file.read()
    async with conn_and_peer(engine, "unix") as (conn, sock):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.send_file, file, 0, 100_000)
            assert await read(sock, 100_000) == DATA[:100_000]
        assert conn.statistics().send_calls <= 3
    assert not calls


def knows_what_is_cached() -> bool:
    """Whether the kernel has cachestat: Linux 6.5 and later."""
    release = os.uname().release.split(".")
    return (int(release[0]), int(re.match(r"\d+", release[1])[0])) >= (6, 5)  # type: ignore[index]


@pytest.mark.skipif(not knows_what_is_cached(), reason="this kernel cannot say it")
def test_what_is_in_the_page_cache() -> None:
    # In memory, as file systems that lie over others do not show their cache.
    with open(os.memfd_create("holes"), "w+b") as file:
        file.truncate(1 << 20)  # of which nothing was ever in memory
        fd = file.fileno()
        assert not all_cached(fd, 0, 1)
        file.seek(8192)
        file.write(bytes(8192))
        file.flush()
        assert all_cached(fd, 8192, 8192)
        assert all_cached(fd, 9000, 5000)
        assert not all_cached(fd, 8191, 8193)
        assert not all_cached(fd, 8192, 8193)
    assert not all_cached(-1, 0, 1)


@pytest.mark.parametrize(
    ("offset", "count", "expected"),
    [
        (0, None, DATA),
        (0, 0, b""),
        (123, 70_001, DATA[123 : 123 + 70_001]),
        (699_999, None, DATA[699_999:]),
        (699_000, 5000, DATA[699_000:]),  # fewer than asked for
        (700_000, None, b""),
        (800_000, 10, b""),
        (1 << 70, 1 << 70, b""),
    ],
)
async def test_ranges(
    peer: Peer, file: Any, offset: int, count: int | None, expected: bytes
) -> None:
    conn, sock = peer
    assert await sent_file(conn, sock, file, offset, count) == (len(expected), expected)


async def test_an_empty_file(peer: Peer, tmp_path: Path) -> None:
    conn, sock = peer
    (tmp_path / "empty").touch()
    with (tmp_path / "empty").open("rb") as file:
        assert await sent_file(conn, sock, file) == (0, b"")


async def test_a_sparse_file(peer: Peer, tmp_path: Path) -> None:
    conn, sock = peer
    with (tmp_path / "sparse").open("w+b") as file:
        file.seek(1_000_000)
        file.write(b"end")  # and not flushed
        assert await sent_file(conn, sock, file) == (1_000_003, bytes(1_000_000) + b"end")


async def test_a_file_that_grows(engine: Engine, kind: str, tmp_path: Path) -> None:
    """Up to where it ends when the sending gets there."""
    async with conn_and_peer(engine, kind, options=SMALL) as (conn, sock):
        with (tmp_path / "log").open("w+b") as file:
            file.write(DATA)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(conn.send_file, file)
                await wait_all_tasks_blocked()
                with (tmp_path / "log").open("ab") as more:
                    more.write(b"more")
                assert await read(sock, len(DATA) + 4) == DATA + b"more"


async def test_a_file_that_is_truncated(engine: Engine, kind: str, tmp_path: Path) -> None:
    async with conn_and_peer(engine, kind, options=SMALL) as (conn, sock):
        with (tmp_path / "log").open("w+b") as file:
            file.write(DATA)
            file.flush()
            results = []

            async def send() -> None:
                results.append(await conn.send_file(file, 0, len(DATA)))
                await conn.send_eof()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                await wait_all_tasks_blocked()
                os.truncate(file.name, 1000)
                received = await read_all(sock)
            (sent,) = results
            assert 1000 <= sent == len(received) < len(DATA)
            assert received[:1000] == DATA[:1000]  # behind that the kernel sees zeros, perhaps


async def test_a_file_may_be_closed_meanwhile(engine: Engine, path: Path) -> None:
    async with conn_and_peer(engine, options=SMALL) as (conn, sock):
        async with trio.open_nursery() as nursery:
            with path.open("rb") as file:
                nursery.start_soon(conn.send_file, file)
                await wait_all_tasks_blocked()
            with tempfile.TemporaryFile() as other:  # which may get its number
                other.write(bytes(len(DATA)))
                other.flush()
                assert await read(sock, len(DATA)) == DATA


# -- what is not in memory --------------------------------------------------------------


@pytest.mark.usefixtures("cold")
async def test_a_cold_file(
    engine: Engine, kind: str, file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read in a worker thread first, a bounded part at a time."""
    calls = counting(monkeypatch, "_read_ahead")
    async with two_conns(engine, kind) as (one, other):
        assert await sent_file(one, other, file, 100, 5_000_000) == (len(DATA) - 100, DATA[100:])
    assert calls == [(100, 2 << 20)]


async def test_a_file_on_a_disk(engine: Engine, file: Any) -> None:
    """Whatever of it is in memory."""
    async with two_conns(engine) as (one, other):
        for at in range(0, len(DATA), 100_000):
            os.posix_fadvise(file.fileno(), at, 50_000, os.POSIX_FADV_DONTNEED)
        assert await sent_file(one, other, file) == (len(DATA), DATA)


class Disk:
    """One that takes its time: until it may go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        real = files.PlainFile._read_ahead

        def slow(*args: Any) -> None:
            self.reached.set()
            assert self.go.wait(20)
            real(*args)

        monkeypatch.setattr(files.PlainFile, "_read_ahead", slow)


@pytest.fixture
def disk(cold: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(monkeypatch)
    yield disk
    disk.go.set()


async def test_a_disk_holds_up_nobody_else(engine: Engine, file: Any, disk: Disk) -> None:
    """And what is sent meanwhile comes behind the file."""
    async with two_conns(engine) as (one, other), trio.open_nursery() as nursery:
        nursery.start_soon(one.send_file, file)
        await until(disk.reached.is_set)
        with pytest.raises(trio.BusyResourceError):
            await one.send_all(b"x")
        one.send_nowait(b"behind")
        async with two_conns(engine) as (third, fourth):
            await third.send_all(b"meanwhile")
            assert await fourth.receive_exactly(9) == b"meanwhile"
        disk.go.set()
        assert await read(other, len(DATA) + 6) == DATA + b"behind"


async def test_cancelled_at_the_disk(engine: Engine, file: Any, disk: Disk) -> None:
    """It does not wait for the disk."""
    async with two_conns(engine) as (one, other):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.send_file, file)
            await until(disk.reached.is_set)
            nursery.cancel_scope.cancel()
        await one.send_all(b"on")
        assert await read(other, 2) == b"on"
        disk.go.set()
        await until(lambda: not any("/files0/" in what for what in others(file).values()))


def others(file: Any) -> dict[int, str]:
    return {fd: what for fd, what in descriptors().items() if fd != file.fileno()}


async def test_closed_at_the_disk(engine: Engine, file: Any, disk: Disk) -> None:
    async with two_conns(engine) as (one, other):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(is_closed, one.send_file, file)
            await until(disk.reached.is_set)
            await one.aclose()
            disk.go.set()
        assert await read_all(other) == b""


# -- what is no plain file --------------------------------------------------------------


class Slow(io.RawIOBase):
    """What gives a few bytes at a time, and cannot seek."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def readable(self) -> bool:
        return True

    def read(self, n: int = -1) -> bytes:
        given, self.data = self.data[: min(n, 7777)], self.data[min(n, 7777) :]
        return given


def zipped(data: bytes) -> Any:
    archive = zipfile.ZipFile(io.BytesIO(), "w")
    archive.writestr("file", data)
    return archive.open("file")


def compressed(data: bytes) -> Any:
    with tempfile.NamedTemporaryFile(delete=False) as file:
        file.write(gzip.compress(data, 1))
    opened = gzip.open(file.name)  # noqa: SIM115
    os.unlink(file.name)
    return opened


def in_shared_memory(data: bytes) -> Any:
    file = os.fdopen(os.memfd_create("file"), "w+b")
    file.write(data)
    return file


def named(data: bytes) -> Any:
    file = tempfile.NamedTemporaryFile(buffering=0)  # noqa: SIM115
    file.write(data)
    return file


KINDS: dict[str, Callable[[bytes], Any]] = {
    "memory": io.BytesIO,
    "slow": Slow,
    "zip": zipped,
    "gzip": compressed,  # its descriptor is of other bytes
    "memfd": in_shared_memory,
    "temporary": named,
    "trio": lambda data: trio.wrap_file(named(data)),
}


@pytest.mark.parametrize("what", KINDS)
async def test_kinds_of_files(engine: Engine, what: str) -> None:
    file = KINDS[what](DATA)
    offset = 0 if what == "slow" else 1000
    async with conn_and_peer(engine, "unix", options=SMALL) as (conn, sock):
        expected = DATA[offset : offset + 300_000]
        assert await sent_file(conn, sock, file, offset, 300_000) == (300_000, expected)
    getattr(file, "wrapped", file).close()


async def test_a_pipe(peer: Peer) -> None:
    """What it has is sent when it has it."""
    conn, sock = peer
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb") as file, os.fdopen(theirs, "wb", 0) as end:
        with pytest.raises(
            ValueError, match=r"offset must be 0 for a file that cannot seek, not 1"
        ):
            await conn.send_file(file, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.send_file, file)
            end.write(b"first")
            assert await read(sock, 5) == b"first"
            end.write(b"second")
            assert await read(sock, 6) == b"second"
            end.close()


async def test_a_file_that_has_no_size(peer: Peer) -> None:
    conn, sock = peer
    with Path("/proc/self/status").open("rb") as file:  # noqa: ASYNC230
        sent, received = await sent_file(conn, sock, file)
    assert sent == len(received)
    assert b"VmRSS" in received


class Broken:
    def __init__(self, answer: Any) -> None:
        self.answers = [b"abc", answer]

    def read(self, n: int = -1) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (OSError(errno.EIO, "the disk"), "the disk"),
        ("text", "file must be binary, but its read returned str"),
        (None, "file is non-blocking"),
        (bytes(1 << 19), "its read returned 524288"),
    ],
)
async def test_a_file_that_cannot_be_read(engine: Engine, answer: Any, error: str) -> None:
    """The connection goes on."""
    async with conn_and_peer(engine, "unix") as (conn, sock):
        with pytest.raises((OSError, TypeError, ValueError), match=error):
            await conn.send_file(Broken(answer))
        assert conn.statistics().bytes_sent == 3
        await conn.send_all(b"def")
        assert await read(sock, 6) == b"abcdef"


async def test_bad_input(peer: Peer, file: Any, path: Path) -> None:
    conn, sock = peer
    bad: list[tuple[tuple[Any, ...], type, str]] = [
        ((5,), TypeError, "file must be a binary file object, not 5"),
        ((io.StringIO("x"),), TypeError, "file must be opened in binary mode"),
        ((file, -1), ValueError, "offset must be at least 0, not -1"),
        ((file, True), TypeError, "offset must be an integer, not True"),
        ((file, "0"), TypeError, "offset must be an integer, not '0'"),
        ((file, 0, -5), ValueError, "count must be at least 0, not -5"),
        ((file, 0, 1.5), TypeError, "count must be an integer, not 1.5"),
        ((file, 0, False), TypeError, "count must be an integer, not False"),
    ]
    for args, kind, words in bad:
        with pytest.raises(kind, match=words):
            await conn.send_file(*args)
    with path.open() as text, pytest.raises(TypeError, match="file must be opened in binary mode"):
        await conn.send_file(text)  # type: ignore[arg-type, unused-ignore]
    with path.open("ab") as end, pytest.raises(ValueError, match="file must be opened for reading"):
        await conn.send_file(end)
    file.close()
    with pytest.raises(ValueError, match="file must not be closed"):
        await conn.send_file(file)
    assert conn.statistics().bytes_sent == 0
    await conn.send_all(b"ok")
    assert await read(sock, 2) == b"ok"


# -- its place among what is sent --------------------------------------------------------


async def test_between_what_is_sent_before_and_behind(engine: Engine, kind: str, file: Any) -> None:
    async with conn_and_peer(engine, kind, options=SMALL) as (conn, sock):
        queued = content("queued", 300_000)
        conn.send_nowait(queued)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.send_file, file)
            await wait_all_tasks_blocked()
            for other in (conn.send_file(file), conn.send_all(b"x"), conn.send_eof()):
                with pytest.raises(trio.BusyResourceError):
                    await other
            conn.send_nowait(b"behind")
            ReactorSender(conn).send(b"last")
            expected = queued + DATA + b"behindlast"
            assert await read(sock, len(expected)) == expected


async def test_behind_what_is_corked(peer: Peer, file: Any) -> None:
    conn, sock = peer
    for n in range(5):
        conn.send_nowait(b"%d" % n)
    assert await conn.send_file(file, 0, 3) == 3
    await conn.send_all(b"x")
    assert await read(sock, 9) == b"01234" + DATA[:3] + b"x"


async def test_in_event_mode(engine: Engine, file: Any) -> None:
    async with await engine.listen("tcp://127.0.0.1:0") as listener:

        async def on_data(conn: Conn) -> None:
            assert conn.receive_nowait() == b"go"
            await conn.send_file(file)
            conn.close_nowait()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve_events, on_data)
            conn = await engine.connect(f"tcp://127.0.0.1:{listener.address[1]}")
            await conn.send_all(b"go")
            assert await read_all(conn) == DATA
            await conn.aclose()
            nursery.cancel_scope.cancel()


# -- how it ends ----------------------------------------------------------------------------


async def test_it_is_a_checkpoint(engine: Engine, file: Any) -> None:
    async with conn_and_peer(engine, "unix") as (conn, _):
        for source, count in ((file, 10), (file, 0), (io.BytesIO(b"abc"), None)):
            with assert_checkpoints():
                await conn.send_file(source, 0, count)
        sent = conn.statistics().bytes_sent
        with trio.CancelScope() as scope:
            scope.cancel()
            await conn.send_file(file)
        assert scope.cancelled_caught
        assert conn.statistics().bytes_sent == sent


@pytest.mark.parametrize("plain", [True, False])
async def test_cancelled_at_a_full_socket(
    engine: Engine, kind: str, file: Any, plain: bool
) -> None:
    """``statistics()`` says how far it came, and the rest can be sent."""
    source = file if plain else io.BytesIO(DATA)
    async with conn_and_peer(engine, kind, options=SMALL) as (conn, sock):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.send_file, source)
            received = await read(sock, 20_000)
            nursery.cancel_scope.cancel()
        sent = conn.statistics().bytes_sent
        assert len(received) <= sent < len(DATA)
        rest = await sent_file(conn, sock, source, sent)
        assert rest[0] == len(DATA) - sent
        assert received + rest[1] == DATA


async def test_a_fast_peer_does_not_hold_the_loop(engine: Engine, tmp_path: Path) -> None:
    """Whatever the kernel takes, there is a schedule point, where it can be cancelled, too."""
    turns = 0

    async def tick() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async def drain(sock: Any) -> None:
        while await sock.recv(1 << 20):
            pass

    with (tmp_path / "large").open("w+b") as file:
        file.truncate(1 << 40)  # all holes: it would take minutes
        async with conn_and_peer(engine) as (conn, sock), trio.open_nursery() as nursery:
            nursery.start_soon(drain, sock)
            nursery.start_soon(tick)
            nursery.start_soon(conn.send_file, file, 0, None)
            await until(lambda: conn.statistics().bytes_sent > 10 << 20)
            assert turns >= conn.statistics().bytes_sent >> 22
            nursery.cancel_scope.cancel()


async def is_closed(call: Callable[..., Any], *args: Any) -> None:
    with pytest.raises(trio.ClosedResourceError):
        await call(*args)


async def test_closed_meanwhile(engine: Engine, kind: str, file: Any) -> None:
    async with conn_and_peer(engine, kind, options=SMALL) as (conn, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(is_closed, conn.send_file, file)
            await wait_all_tasks_blocked()
            await conn.aclose()
        await is_closed(conn.send_file, file)


async def test_after_the_end_of_sending(peer: Peer, file: Any) -> None:
    conn, _ = peer
    await conn.send_eof()
    await is_closed(conn.send_file, file)


async def is_broken(call: Callable[..., Any], *args: Any) -> None:
    with pytest.raises(trio.BrokenResourceError) as raised:
        await call(*args)
    assert isinstance(raised.value.__cause__, OSError)


async def test_reset_meanwhile(engine: Engine, kind: str, file: Any) -> None:
    async with conn_and_peer(engine, kind, options=SMALL) as (conn, sock):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(is_broken, conn.send_file, file)
            await wait_all_tasks_blocked()
            reset(sock)
        await is_broken(conn.send_file, file)


async def test_no_signal_for_a_broken_connection(engine: Engine, kind: str, file: Any) -> None:
    """sendfile has no flag against SIGPIPE, which ends a program that has not ignored it."""
    signals: list[int] = []
    before = signal.signal(signal.SIGPIPE, lambda number, _: signals.append(number))
    try:
        async with conn_and_peer(engine, kind, options=SMALL) as (conn, sock):
            sock.close()

            async def until_broken() -> None:
                while True:
                    await conn.send_file(file, 0, 1000)

            await is_broken(until_broken)
    finally:
        signal.signal(signal.SIGPIPE, before)
    assert signals == []


# -- over TLS ----------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["file", "cold", "memory", "memfd"])
async def test_over_tls(
    engine: Engine, path: Path, what: str, request: pytest.FixtureRequest
) -> None:
    file = KINDS[what](DATA) if what in KINDS else path.open("rb")
    if what == "cold":
        request.getfixturevalue("cold")
    async with two_tls(engine, options=SMALL) as (one, other):
        results = []

        async def send() -> None:
            for n in range(3):
                one.send_nowait(b"%d" % n)  # and all but the first are held
            results.append(await one.send_file(file, 1000, 500_000))
            results.append(await one.send_file(file, len(DATA)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await one.send_all(b"x")
            one.send_nowait(b"behind")
            assert await read(other, 500_009) == b"012" + DATA[1000:501_000] + b"behind"
        assert results == [500_000, 0]
        with pytest.raises(ValueError, match="count must be at least 0, not -1"):
            await one.send_file(file, 0, -1)
        with assert_checkpoints():
            await one.send_file(file, 0, 0)
    file.close()


# -- buffers that the kernel alone reads -------------------------------------------------------


@pytest.fixture
def mapped(tmp_path: Path) -> Iterator[tuple[mmap.mmap, Any]]:
    """A mapped file, and the file."""
    with (tmp_path / "mapped").open("w+b") as file:
        file.write(DATA)
        file.flush()
        with mmap.mmap(file.fileno(), 0) as memory:
            yield memory, file


async def test_a_mapped_file_without_a_copy(
    engine: Engine, kind: str, mapped: tuple[mmap.mmap, Any]
) -> None:
    memory, _ = mapped
    async with conn_and_peer(engine, kind, options=SMALL) as (conn, sock):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.send_all, memory)
            await wait_all_tasks_blocked()
            with pytest.raises(BufferError):
                memory.close()  # it is used, and not a copy
            assert await read(sock, len(DATA)) == DATA


@pytest.mark.parametrize("vectored", [False, True])
@pytest.mark.parametrize("before", [b"", b"corked"])
async def test_a_mapped_file_that_is_truncated(
    engine: Engine, kind: str, mapped: tuple[mmap.mmap, Any], vectored: bool, before: bytes
) -> None:
    """An error, not SIGBUS; the connection goes on."""
    memory, file = mapped
    async with conn_and_peer(engine, kind, options=SMALL) as (conn, sock):
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                with pytest.raises(OSError, match="truncated") as raised:
                    await (conn.send_vectored([memory]) if vectored else conn.send_all(memory))
                assert raised.value.errno == errno.EFAULT

            nursery.start_soon(send)
            await wait_all_tasks_blocked()
            file.truncate(0)
            sent = conn.statistics().bytes_sent
            assert await read(sock, sent)
        sent = conn.statistics().bytes_sent - sent
        if before:
            conn.send_nowait(before[:3])
            conn.send_nowait(before[3:])
            await send()
        await conn.send_all(b"on")
        await conn.send_eof()
        assert (await read_all(sock))[sent:] == before + b"on"


async def test_what_is_truncated_and_sent_without_waiting(
    engine: Engine, mapped: tuple[mmap.mmap, Any]
) -> None:
    memory, file = mapped
    file.truncate(0)
    async with conn_and_peer(engine) as (conn, sock):
        with pytest.raises(OSError, match="truncated"):
            conn.send_nowait(memory)
        await conn.send_all(b"on")
        assert await read(sock, 2) == b"on"


async def test_descriptors(engine: Engine, file: Any) -> None:
    """None is left, however it ends."""
    async with conn_and_peer(engine, "unix", options=SMALL) as (conn, _):
        before = descriptors()
        with trio.move_on_after(0):
            await conn.send_file(file)
        with pytest.raises(ValueError, match="count"):
            await conn.send_file(file, 0, -1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.send_file, file)
            await wait_all_tasks_blocked()
            assert len(descriptors()) == len(before) + 1
            nursery.cancel_scope.cancel()
        conn.abort()
        await is_closed(conn.send_file, file)
        coroutine = conn.send_file(file)
        coroutine.close()
    assert {fd for fd in descriptors() if fd not in before} == set()
