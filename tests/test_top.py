"""`trio-wknet top`: what it shows, also while Trio's loop is stuck, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import pytest
import trio
from click.testing import CliRunner, Result
from helpers import PATIENCE, conn_and_peer, refusing, two_conns, until

import trio_wknet
from trio_wknet import Conn, Engine, open_engine
from trio_wknet._cli.top import _refresh, top
from trio_wknet._engine import default_top
from trio_wknet._top import layout
from trio_wknet._top.layout import ConnRow, LoopRow, address_text
from trio_wknet._top.page import VARIABLE
from trio_wknet._top.reader import (
    EnginePage,
    WatchedProcess,
    WatchError,
    _descriptors,
    find_process,
)

OURS = os.getpid()


@asynccontextmanager
async def engine_to_watch(reactors: int, name: bool | str = True) -> AsyncIterator[Engine]:
    default_top.set(name)
    async with open_engine(reactors) as engine:
        yield engine


@contextmanager
def our_page() -> Iterator[EnginePage]:
    with WatchedProcess(OURS) as watched:
        (page,) = watched.pages
        yield page


def wait(condition: Callable[[], object]) -> None:
    """Block the thread, and with it Trio's loop, until others have brought it about."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def rows(page: EnginePage) -> list[ConnRow]:
    page.beat()
    return [row for reactor in page.reactors() for row in reactor.conns]


def loop(page: EnginePage) -> LoopRow:
    page.beat()
    return page.loop()


async def test_without_memory_for_what_was_seen(reactors: int) -> None:
    """Rates need what the pass before has seen; the rest does not."""
    async with engine_to_watch(reactors) as engine, two_conns(engine) as (client, server):
        with refusing("page"), our_page() as page:
            await client.send_all(bytes(1000))
            await until(lambda: any(row.inbound == 1000 for row in rows(page)))
            await client.send_all(bytes(500))
            await until(lambda: any(row.received == 1500 for row in rows(page)))
            assert all(row.moved == 0 for row in rows(page))
        with our_page() as page:
            await until(lambda: rows(page))
            await client.send_all(bytes(500))
            await until(lambda: any(row.received == 2000 for row in rows(page)))
        assert await server.receive_exactly(2000) == bytes(2000)


async def test_connections_and_their_peers(reactors: int, kind: str) -> None:
    async with engine_to_watch(reactors) as engine, two_conns(engine, kind) as (client, server):
        await client.send_all(bytes(1000))
        await until(lambda: server.statistics().buffered_inbound == 1000)
        with our_page() as page:
            await until(lambda: any(row.inbound == 1000 for row in rows(page)))
            shown = {row.id: row for row in rows(page)}[server.id or 0]
            assert (shown.received, shown.sent, shown.state) == (1000, 0, "open")
            assert {"largest", "slowest"} <= shown.ranks
            assert shown.address == address_of(client)
            await until(lambda: sum(row.connections for row in page.reactors()) == 2)
            assert await server.receive_some() == bytes(1000)
            # The pass before saw fewer bytes than this one will, at some time.
            await client.send_all(bytes(500))
            await until(lambda: any(row.received == 1500 for row in rows(page)))
            client.abort()
            server.abort()
            await until(lambda: not rows(page))


def address_of(conn: Conn) -> str:
    address = conn.local_address
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "unix:"


async def test_the_busiest_comes_first(reactors: int) -> None:
    async with engine_to_watch(reactors) as engine, two_conns(engine) as (client, server):
        with our_page() as page:

            def busiest() -> list[ConnRow]:
                return [row for row in rows(page) if "busiest" in row.ranks]

            sent = 0
            while not busiest():  # until a pass has seen it before and after
                await client.send_all(bytes(100))
                await server.receive_some()
                sent += 100
                await trio.sleep(0)
            for row in busiest():
                assert row.id in {client.id, server.id}
                assert 0 < row.moved <= sent
                assert row.moved_in > 0


async def test_listeners(reactors: int) -> None:
    async with engine_to_watch(reactors) as engine:
        listener = await engine.listen("tcp://127.0.0.1:0")
        assert isinstance(listener.address, tuple)
        host, port = listener.address[:2]
        with our_page() as page:

            def ports() -> list[tuple[str, int, int]]:
                page.beat()
                found = [port for reactor in page.reactors() for port in reactor.ports]
                return [(port.address, port.accepted, port.waiting) for port in found]

            await until(lambda: ports() == [(f"{host}:{port}", 0, 0)])
            client = await engine.connect(f"tcp://{host}:{port}")
            await until(lambda: ports() == [(f"{host}:{port}", 1, 1)])
            await client.aclose()
        await listener.aclose()


async def test_a_loop_that_is_stuck(reactors: int) -> None:
    async with engine_to_watch(reactors) as engine, conn_and_peer(engine) as (conn, peer):
        with our_page() as page:
            await until(lambda: rows(page) or page.reactors()[0].passed_at)
            # From here on, this blocks Trio's thread.
            written = [reactor.written_at for reactor in page.reactors()]
            os.write(peer.fileno(), bytes(700))
            first = time.monotonic_ns()
            wait(lambda: loop(page).written_at > first)
            assert 0 < page.loop().running_since < first
            assert page.tasks(0.01) is None
            if reactors:
                wait(lambda: [row.inbound for row in rows(page)] == [700])
                assert page.loop().posted_at > 0 or conn.statistics().buffered_inbound
            else:
                # Nobody else turns it: what it wrote last is as old as the loop is late.
                second = time.monotonic_ns()
                wait(lambda: loop(page).written_at > second)
                assert page.reactors()[0].written_at <= max(written[0], first)
        assert await conn.receive_some() == bytes(700)


async def test_nothing_is_written_while_nobody_watches(reactors: int) -> None:
    async with engine_to_watch(reactors) as engine, two_conns(engine) as (client, server):
        assert engine.statistics().measured_time > 0
        with our_page() as page:
            await client.send_all(b"ping")
            assert await server.receive_some() == b"ping"
            # The thread that would write answers to this, so it has had its turn.
            assert await trio.to_thread.run_sync(page.tasks, PATIENCE) is not None
            assert page.loop().written_at == 0
            assert all(reactor.written_at == 0 for reactor in page.reactors())


async def test_tasks(reactors: int) -> None:
    async def some_handler(conn: Conn) -> None:
        await conn.receive_some()

    async with engine_to_watch(reactors) as engine, trio.open_nursery() as nursery:
        listener = await engine.listen("tcp://127.0.0.1:0")
        await nursery.start(listener.serve, some_handler)
        async with await engine.connect("tcp://{}:{}".format(*listener.address)):
            await until(lambda: engine.tasks() and engine.tasks()[0].waits_for == "receive")
            with our_page() as page:
                found = await trio.to_thread.run_sync(page.tasks, PATIENCE)
        assert found is not None
        (task,) = found.values()
        assert task["waits_for"] == "receive"
        assert "some_handler" in task["name"]
        assert any("in some_handler" in line for line in task["stack"])
        await listener.drain()


async def test_two_engines(reactors: int) -> None:
    async with engine_to_watch(reactors, "one"), engine_to_watch(reactors, "two"):
        with WatchedProcess(OURS) as watched:
            assert sorted(page.header.name for page in watched.pages) == ["one", "two"]
            assert {page.header.reactors for page in watched.pages} == {reactors}


async def test_an_engine_that_is_closed(reactors: int) -> None:
    with ExitStack() as stack:
        async with engine_to_watch(reactors):
            watched = stack.enter_context(WatchedProcess(OURS))
            _refresh(watched)
        with pytest.raises(WatchError, match="has closed its engines"):
            _refresh(watched)


# --- the command ----------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_wknet._cli.top._FIRST", 0.05)


async def run_top(*args: str) -> Result:
    return await trio.to_thread.run_sync(partial(CliRunner().invoke, top, args))


async def test_one_view(reactors: int) -> None:
    async with (
        engine_to_watch(reactors, "the one") as engine,
        two_conns(engine) as (client, server),
    ):
        listener = await engine.listen("tcp://127.0.0.1:0")
        await client.send_all(bytes(2048))
        await until(lambda: server.statistics().buffered_inbound == 2048)
        result = await run_top("the one", "--once", "--stacks")
        assert result.exit_code == 0, result.output
        form = f"{reactors} reactors" if reactors else "in-loop"
        assert f"process {OURS} 'the one': engine, {form}, 2 connections, 2.0 KiB" in result.output
        for text in (
            "Trio's loop: busy",
            "largest",
            address_of(client),
            "{}:{}".format(*listener.address),
        ):
            assert text in result.output
        assert "did not answer" not in result.output
        await listener.aclose()


async def test_json(reactors: int) -> None:
    async with engine_to_watch(reactors) as engine, two_conns(engine):
        result = await run_top(str(OURS), "--json")
        found = json.loads(result.output)
        assert found["pid"] == OURS
        (one,) = found["engines"]
        assert one["connections"] == 2
        assert one["in_loop"] == (reactors == 0)
        assert len(one["reactors"]) == max(reactors, 1)
        assert 0 <= one["loop"]["busy"] <= 1


async def test_the_live_view_ends_with_the_engines(reactors: int) -> None:
    results: list[Result] = []

    async def watch() -> None:
        results.append(await run_top(str(OURS), "--interval", "0.2"))

    async with trio.open_nursery() as nursery:
        async with engine_to_watch(reactors):
            with our_page() as page:
                nursery.start_soon(watch)
                await until(lambda: page.loop().written_at)
    (result,) = results
    assert result.exit_code == 1
    assert f"Error: process {OURS} has closed its engines" in result.output


async def test_control_c_ends_the_live_view() -> None:
    async with engine_to_watch(1):
        code, complaints = await trio.to_thread.run_sync(interrupt_a_view)
    assert (code, complaints) == (0, b"")


def interrupt_a_view() -> tuple[int, bytes]:
    command = [sys.executable, "-m", "trio_wknet", "top", str(OURS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as view:
        try:
            assert view.stdout is not None
            assert b"engine" in view.stdout.readline()  # from here on it is in its loop
            view.send_signal(signal.SIGINT)
            _, complaints = view.communicate(timeout=PATIENCE)
        finally:
            view.kill()
    return view.returncode, complaints


async def test_tasks_that_cannot_be_described(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(core: object) -> None:
        raise LookupError("a frame that nobody expected")

    monkeypatch.setattr("trio_wknet._top.page.tasks_of", fail)
    async with engine_to_watch(0):
        with our_page() as page:
            assert await trio.to_thread.run_sync(page.tasks, PATIENCE) == {}
    assert [record.name for record in caplog.records] == ["trio_wknet.top"]


async def test_one_view_of_a_stuck_loop() -> None:
    async with engine_to_watch(1) as engine, conn_and_peer(engine):
        result = CliRunner().invoke(top, [str(OURS), "--json"])  # in Trio's thread
        (one,) = json.loads(result.output)["engines"]
        assert one["loop"]["running_for"] > 0
        assert one["connections"] == 1


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["--interval", "0", "1"], "--interval"),
        (["--rows", "0", "1"], "--rows"),
        ([], "PID|NAME"),
    ],
)
def test_invalid_options(args: list[str], what: str) -> None:
    result = CliRunner().invoke(top, args)
    assert result.exit_code == 2
    assert what in result.output


def test_what_cannot_be_watched() -> None:
    for target, what in [
        ("4194305", "there is no process 4194305"),  # beyond the kernel's limit
        (str(2**70), "there is no process"),
        (str(OURS), "cannot be watched"),
        ("nobody", "no process that may be watched is named 'nobody'"),
    ]:
        result = CliRunner().invoke(top, [target, "--once"])
        assert result.exit_code == 1
        assert what in result.output


# --- who may look, and at what --------------------------------------------------------


async def test_only_the_same_user(reactors: int) -> None:
    async with engine_to_watch(reactors):
        (number,) = _descriptors(OURS)
        fd = f"/proc/self/fd/{number}"
        info = os.stat(fd)
        assert stat.S_IMODE(info.st_mode) == 0o600
        assert info.st_uid == os.geteuid()
        # Nor may a reader shrink it under the writers.
        with pytest.raises(PermissionError):
            os.truncate(fd, 0)
        with pytest.raises(PermissionError):
            os.truncate(fd, 2**20)


def test_another_users_process() -> None:
    ours = os.geteuid()
    if ours == os.stat("/proc/1").st_uid != 0:
        pytest.skip("process 1 is ours")
    if ours == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(WatchError, match="process 1 belongs to another user"):
            WatchedProcess(1)
    finally:
        os.seteuid(ours)


def header(**changed: int) -> bytes:
    fields = {
        "magic": layout.MAGIC,
        "version": layout.VERSION,
        "size": layout.SECTIONS_AT + layout.SECTION,
        "pid": OURS,
        "reactors": 1,
        "opened": 1,
    }
    return struct.pack("=6Q", *(fields | changed).values())


@pytest.mark.parametrize(
    ("start", "size", "what"),
    [
        (b"", 0, "empty"),
        (b"hello", 4096, "too small"),
        (os.urandom(2000), layout.SECTIONS_AT + layout.SECTION, "not one of trio_wknet"),
        (header(version=9), layout.SECTIONS_AT + layout.SECTION, "version 9"),
        (header(reactors=2**60), layout.SECTIONS_AT + layout.SECTION, "do not agree"),
        (header(size=5), layout.SECTIONS_AT + layout.SECTION, "do not agree"),
    ],
    ids=["empty", "small", "random", "version", "reactors", "size"],
)
def test_a_page_of_something_else(start: bytes, size: int, what: str) -> None:
    fd = os.memfd_create("trio_wknet")
    try:
        os.write(fd, start)
        os.ftruncate(fd, size)
        with pytest.raises(WatchError, match=what):
            WatchedProcess(OURS)
    finally:
        os.close(fd)


def test_a_page_with_any_content() -> None:
    """Whatever is in the records, they are read or refused."""
    for parse, size in [
        (layout.parse_loop, layout.LOOP.size),
        (layout.parse_reactor, layout.SECTION),
    ]:
        for content in [bytes(size), b"\xff" * size, *(os.urandom(size) for _ in range(20))]:
            assert parse(content)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (struct.pack("=H", 2) + b"\x1f\x90\x7f\0\0\1" + bytes(8), "127.0.0.1:8080"),
        (struct.pack("=H", 10) + b"\x1f\x90" + bytes(19) + b"\1" + bytes(4), "[::1]:8080"),
        (struct.pack("=H", 1) + b"/run/a\0", "unix:/run/a"),
        (struct.pack("=H", 1) + b"\0name", "unix:@name"),
        (struct.pack("=H", 1), "unix:"),
        (b"", "-"),
    ],
)
def test_addresses(name: bytes, shown: str) -> None:
    assert address_text((bytes([len(name)]) + name).ljust(40, b"\0")) == shown


# --- how it is switched on ------------------------------------------------------------


async def nothing() -> None:
    pass


@pytest.mark.parametrize("top", ["", "12", "a\nb", "n" * 64, "ü" * 32])
def test_names_that_are_none(top: str) -> None:
    with pytest.raises(ValueError, match="top must"):
        trio_wknet.run(nothing, top=top)


@pytest.mark.parametrize("top", [1, 0, b"name", 1.5])
def test_only_true_false_or_a_name(top: Any) -> None:
    with pytest.raises(TypeError, match="top must"):
        trio_wknet.run(nothing, top=top)


@pytest.mark.parametrize(
    ("argument", "variable", "name"),
    [
        *[(None, "", None), (None, "0", None), (None, "1", ""), (None, "shop", "shop")],
        *[(True, "", ""), (False, "1", None), ("till", "shop", "till")],
    ],
)
def test_argument_and_variable(
    monkeypatch: pytest.MonkeyPatch, argument: Any, variable: str, name: str | None
) -> None:
    monkeypatch.setenv(VARIABLE, variable)

    async def main() -> list[str]:
        async with open_engine(0):
            try:
                with WatchedProcess(OURS) as watched:
                    return [page.header.name for page in watched.pages]
            except WatchError:
                return []

    assert trio_wknet.run(main, top=argument) == ([] if name is None else [name])


def test_a_variable_that_is_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "2")

    async def main() -> None:
        async with open_engine(1):
            pass

    with pytest.raises(ValueError, match=VARIABLE):
        trio.run(main)


# --- other processes ------------------------------------------------------------------

SERVER = """
import os, sys, trio, trio_wknet
async def main():
    async with trio_wknet.open_engine(int(sys.argv[1])) as engine:
        listener = await engine.listen("tcp://127.0.0.1:0")
        child = os.fork()
        if child == 0:
            os.read(0, 1)       # until the test has seen enough
            os._exit(0)
        print(child, flush=True)
        await trio.sleep_forever()
trio_wknet.run(main, top=sys.argv[2])
"""


def test_a_process_that_forks_and_is_killed(reactors: int) -> None:
    name = f"forks-{OURS}-{reactors}"
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SERVER, str(reactors), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as server:
        try:
            assert server.stdout is not None
            child = int(server.stdout.readline())
            with pytest.raises(WatchError, match="cannot be watched"):
                WatchedProcess(child)
            assert find_process(name) == server.pid
            with WatchedProcess(server.pid) as watched:
                watched.wait_until_written()
                (page,) = watched.pages
                wait(lambda: [port for reactor in page.reactors() for port in reactor.ports])
                server.send_signal(signal.SIGKILL)
                server.wait()
                with pytest.raises(WatchError, match=f"process {server.pid} has ended"):
                    _refresh(watched)
        finally:
            server.kill()
    with pytest.raises(WatchError, match="no process"):
        find_process(name)
