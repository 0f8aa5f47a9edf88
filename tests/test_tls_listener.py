"""Listening with TLS: `TLSListener`, from ``tls://`` and over any `Listener`."""

from __future__ import annotations

import gc
import logging
import re
import socket
import ssl
import struct
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
import trio
from helpers import content, dial, dialled, read, read_all, until, url
from proxy_headers import LINE, SOURCE
from tls_helpers import NAME, client_context, server_context
from trio.testing import check_two_way_stream, wait_all_tasks_blocked

from trio_wknet import (
    Engine,
    Listener,
    TLSListener,
    TLSStream,
    _tls_handshakes,
    open_engine,
    open_wknet_listener,
)
from trio_wknet._native.testing import take_line_at
from trio_wknet._native.trio.failure_log import FailureLog

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

TLS = "tls://127.0.0.1:0"
LOCAL = "tcp://127.0.0.1:0"


def secure(listener: Any) -> str:
    return "tls://{}:{}".format(*listener.address[:2])


async def connect(engine: Engine, listener: Any) -> TLSStream:
    return await engine.connect(secure(listener), tls=client_context(), server_hostname=NAME)


async def echo(stream: TLSStream) -> None:
    async for data in stream:
        await stream.send_all(data)


async def is_served(engine: Engine, listener: Any, data: bytes = b"hello") -> None:
    async with await connect(engine, listener) as stream:
        await stream.send_all(data)
        assert await read(stream, len(data)) == data


@asynccontextmanager
async def served(
    engine: Engine, handler: Callable[[TLSStream], Any] = echo, **options: Any
) -> AsyncIterator[TLSListener]:
    async with trio.open_nursery() as nursery:
        listener = await engine.listen(TLS, tls=server_context(), **options)
        assert await nursery.start(listener.serve, handler) is listener
        yield listener
        nursery.cancel_scope.cancel()


async def test_the_handler_gets_a_stream_that_is_ready(engine: Engine) -> None:
    seen: list[Any] = []

    async def handler(stream: TLSStream) -> None:
        seen.append((type(stream), stream.version(), stream.transport_stream.remote_address))
        await echo(stream)

    async with served(engine, handler) as listener:
        await is_served(engine, listener, content("large", 1 << 20))
        assert [it[:2] for it in seen] == [(TLSStream, "TLSv1.3")]
        assert seen[0][2][0] == "127.0.0.1"
        statistics = listener.statistics()
        assert statistics.accepted == 1
        assert (statistics.handshakes, statistics.failed_handshakes) == (0, 0)
        await until(lambda: listener.statistics().handlers == 0)
        assert repr(listener).startswith("<trio_wknet.TLSListener over")
        assert listener.addresses == [listener.address]


async def test_open_wknet_listener(reactors: int) -> None:
    async with (
        open_engine(reactors) as engine,
        open_wknet_listener(TLS, tls=server_context(), engine=engine) as listener,
        trio.open_nursery() as nursery,
    ):
        assert type(listener) is TLSListener
        nursery.start_soon(listener.serve, echo)
        await is_served(engine, listener)
        nursery.cancel_scope.cancel()


async def test_the_handlers_end_is_a_goodbye(engine: Engine) -> None:
    async def handler(stream: TLSStream) -> None:
        await stream.send_all(b"all of it")

    async with served(engine, handler) as listener:
        async with await connect(engine, listener) as stream:
            assert await read_all(stream) == b"all of it"


@pytest.mark.parametrize("how", ["raises", "cancelled"])
async def test_a_handler_that_fails_says_no_goodbye(engine: Engine, how: str) -> None:
    """The peer must be able to tell that something is missing."""

    async def handler(stream: TLSStream) -> None:
        await stream.send_all(b"a part")
        if how == "raises":
            raise KeyError
        nursery.cancel_scope.cancel()
        await trio.sleep_forever()

    listener = await engine.listen(TLS, tls=server_context())
    got: list[bytes] = []

    async def client() -> None:
        with trio.CancelScope(shield=True):
            stream = await connect(engine, listener)
            got.append(await stream.receive_some())
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
            await trio.aclose_forcefully(stream)

    with suppress(BaseExceptionGroup, KeyError):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client)
            nursery.start_soon(listener.serve, handler)
    assert got == [b"a part"]
    await listener.aclose()


async def test_drain_waits_for_handlers(engine: Engine) -> None:
    async with trio.open_nursery() as nursery:
        listener = await engine.listen(TLS, tls=server_context())
        nursery.start_soon(listener.serve, echo)
        async with await connect(engine, listener) as stream:
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"hello"
            nursery.start_soon(listener.drain)
            await wait_all_tasks_blocked()
            await stream.send_all(b"still here")
            assert await stream.receive_some() == b"still here"


async def test_drain_from_a_handler(engine: Engine) -> None:
    async def handler(stream: TLSStream) -> None:
        with pytest.raises(RuntimeError, match="called from a handler"):
            await listener.drain()
        await stream.send_all(b"refused")

    async with served(engine, handler) as listener:
        async with await connect(engine, listener) as stream:
            assert await read_all(stream) == b"refused"


async def test_an_idle_timeout(engine: Engine) -> None:
    async def handler(stream: TLSStream) -> None:
        stream.transport_stream.idle_timeout = 0.02
        await echo(stream)

    async with served(engine, handler, idle_timeout=60) as listener:
        stream = await connect(engine, listener)
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        await stream.aclose()
        await until(lambda: listener.statistics().handlers == 0)


async def test_over_a_unix_socket_and_accept(engine: Engine, kind: str, tmp_path: Any) -> None:
    """What `trio.serve_listeners` does."""
    below = await engine.listen(LOCAL if kind == "tcp" else f"unix://{tmp_path}/socket")
    async with TLSListener(below, server_context()) as listener, trio.open_nursery() as nursery:
        silent = dial(below)

        async def handler(stream: TLSStream) -> None:
            with suppress(trio.BrokenResourceError):
                await echo(stream)
            await stream.aclose()

        nursery.start_soon(trio.serve_listeners, handler, [listener])
        conn = await engine.connect(url(below))
        stream = await conn.start_tls(client_context(), server_hostname=NAME)
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b"hello"
        await stream.aclose()
        silent.close()
        nursery.cancel_scope.cancel()


async def test_behind_a_load_balancer(engine: Engine) -> None:
    """The PROXY header comes before TLS."""
    addresses = []

    async def handler(stream: TLSStream) -> None:
        addresses.append(stream.transport_stream.remote_address)

    async with served(engine, handler, proxy_protocol=["127.0.0.1"]) as listener:
        conn = await engine.connect(url(listener))
        await conn.send_all(LINE)
        stream = await conn.start_tls(client_context(), server_hostname=NAME)
        assert await read_all(stream) == b""
        await stream.aclose()
    assert addresses == [SOURCE]


# --- handshakes that fail ---------------------------------------------------------------


def client_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    client = client_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=NAME)
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


HELLO = client_hello()
LIES = {
    "plain-http": b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
    "garbage": content("garbage", 400),
    "oversized": b"\x16\x03\x01\xff\xff" + bytes(65535),
    "lying-length": HELLO[:6] + b"\xff\xff\xff" + HELLO[9:] + bytes(20000),
    "no-client-hello": b"\x16\x03\x01\x00\x04\x0e\x00\x00\x00",
    "application-data": b"\x17\x03\x03\x00\x10" + bytes(16),
    "old": b"\x16\x03\x00" + HELLO[3:9] + b"\x03\x00" + HELLO[11:],
}


async def test_handshakes_that_fail(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "trio_wknet.tls")
    async with served(engine) as listener:
        for count, (name, sent) in enumerate(LIES.items(), 1):
            conn = await engine.connect(url(listener))
            with suppress(trio.BrokenResourceError):
                await conn.send_all(sent)
                answer = await read_all(conn)
                assert answer[:1] in (b"", b"\x15"), name  # an alert
            await until(partial(has_failed, listener, count), name)
            await conn.aclose()
        await is_served(engine, listener)
        await until(lambda: len(caplog.records) == len(LIES))
    lines = [record.getMessage() for record in caplog.records]
    assert all(line.startswith("no TLS with ('127.0.0.1', ") for line in lines)
    assert "HTTP_REQUEST" in lines[0]
    assert {record.levelno for record in caplog.records} == {logging.INFO}


def has_failed(listener: TLSListener, count: int) -> bool:
    return listener.statistics().failed_handshakes == count


async def test_handshakes_that_are_cut_off(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "trio_wknet.tls")
    async with served(engine) as listener:
        sizes = [0, 1, 5, len(HELLO) // 2, len(HELLO)]
        for size in sizes:
            with dial(listener) as sock:
                sock.sendall(HELLO[:size])
        with dial(listener) as sock:
            sock.sendall(HELLO)
            await trio.to_thread.run_sync(sock.recv, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        total = len(sizes) + 1
        await until(lambda: listener.statistics().failed_handshakes == total)
        await is_served(engine, listener)
    levels = [record.levelno for record in caplog.records]
    assert sorted(set(levels)) == [logging.DEBUG, logging.INFO]
    assert levels.count(logging.DEBUG) == 1  # who sent nothing


async def test_a_balancers_check(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """It says that it forwards nobody, and ends."""
    caplog.set_level(logging.DEBUG, "trio_wknet.tls")
    async with served(engine, proxy_protocol=["127.0.0.1"]) as listener:
        for count, header in enumerate((b"PROXY UNKNOWN\r\n", LINE), 1):
            with dial(listener) as sock:
                sock.sendall(header)
            await until(partial(has_failed, listener, count))
    assert [it.levelno for it in caplog.records] == [logging.DEBUG, logging.INFO]


async def test_a_stalled_handshake(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "trio_wknet.tls")
    async with served(engine, handshake_time=0.05) as listener:
        with dial(listener) as sock:
            sock.sendall(HELLO[:20])
            await until(lambda: listener.statistics().failed_handshakes == 1)
            conn_end = await trio.to_thread.run_sync(end_of, sock)
            assert conn_end in (b"", None)
        listener._handshakes.seconds = 60
        await is_served(engine, listener)
    assert "no handshake in time" in caplog.text


def end_of(sock: Any) -> bytes | None:
    try:
        return bytes(sock.recv(1))
    except ConnectionResetError:
        return None


async def test_stalled_peers_give_way(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They do not hold up others for all of their time."""
    caplog.set_level(logging.INFO, "trio_wknet.tls")
    monkeypatch.setattr(_tls_handshakes, "MAX_HANDSHAKES", 3)
    monkeypatch.setattr(_tls_handshakes, "GRACE_PART", 100_000)
    async with served(engine, handshake_time=1000) as listener:
        with ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(dial(listener)).sendall(HELLO[:20])
            await until(lambda: listener.statistics().handshakes == 3)
            for _ in range(2):  # each takes a place, which is free afterwards
                await is_served(engine, listener)
            await until(lambda: listener.statistics().failed_handshakes == 1)
            for _ in range(50):
                stack.enter_context(dial(listener)).sendall(HELLO[:20])
            await until(lambda: listener.statistics().failed_handshakes == 50)
            assert listener.statistics().handshakes == 3
            await is_served(engine, listener)
            await until(lambda: listener.statistics().failed_handshakes == 51)
        await until(lambda: listener.statistics().failed_handshakes == 53)
        await until(lambda: listener.statistics().handshakes == 0)
    assert "no handshake yet, and others wait" in caplog.text


async def test_hundreds_of_bad_handshakes(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of every kind at once: they are bounded in number and counted, few lines tell of them, and
    honest clients are served meanwhile."""
    caplog.set_level(logging.INFO, "trio_wknet.tls")
    monkeypatch.setattr(_tls_handshakes, "MAX_HANDSHAKES", 20)
    stalled, cut = HELLO[:20], HELLO[: len(HELLO) // 2]
    most = 0

    def done() -> int:
        nonlocal most
        statistics = listener.statistics()
        # `handshakes` counts those that wait for a place, too.
        most = max(most, len(listener._handshakes._began))
        return statistics.failed_handshakes

    async with served(engine, handshake_time=1000) as listener:
        for round in range(1, 5):
            with ExitStack() as stack:
                for sent in [*LIES.values(), stalled, cut] * 8:
                    sock = stack.enter_context(dial(listener))
                    sock.setblocking(False)
                    with suppress(ConnectionError):  # the server has seen enough
                        sock.send(sent)
                    if sent is cut:
                        sock.close()
                async with trio.open_nursery() as nursery:
                    for _ in range(3):
                        nursery.start_soon(is_served, engine, listener)
                # All but those that stall: they keep some of the places until they end.
                await until(lambda: done() >= 64 * round)  # noqa: B023
        await until(lambda: done() == 4 * 72)
        assert most <= 20
        statistics = listener.statistics()
        assert (statistics.accepted, statistics.handshakes) == (4 * 75, 0)
        await until(lambda: listener.statistics().handlers == 0)
    lines = len(caplog.messages)
    said = re.findall(r"(?:and )?(\d+) (?:others|more)", "\n".join(caplog.messages))
    assert lines < 40  # ten, one for each second, and the last one
    assert sum(map(int, said)) + sum("no TLS" in it for it in caplog.messages) == 4 * 72


async def test_hundreds_that_stall(engine: Engine) -> None:
    """They are bounded in time, too."""
    async with served(engine, handshake_time=0.05) as listener:
        with dialled(listener, 200) as socks:
            for sock in socks:
                sock.send(HELLO[:20])
            await until(lambda: listener.statistics().failed_handshakes == 200)
            assert listener.statistics().handshakes == 0
            listener._handshakes.seconds = 60
            await is_served(engine, listener)


async def test_a_burst_waits_for_places(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tls_handshakes, "MAX_HANDSHAKES", 2)
    async with served(engine, handshake_time=600) as listener, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(is_served, engine, listener)
        await until(lambda: listener.statistics().accepted == 20)
        nursery.cancel_scope.shield = False
    assert listener.statistics().failed_handshakes == 0


def test_many_failures_are_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "trio_wknet.tls")
    log = FailureLog(_tls_handshakes.logger, "%d more", logging.WARNING)
    second = 1_000_000_000

    def fail(at: float, level: int = logging.INFO) -> None:
        before = take_line_at(log, level, int((1000 + at) * second))
        if before >= 0:
            log.write(level, before, "no %s for %d", "TLS", 5)

    for _ in range(12):
        fail(0)
        fail(0, logging.DEBUG)  # which nobody asked for
    assert caplog.messages == ["no TLS for 5"] * 10
    for _ in range(3):
        fail(1)
    fail(100)
    assert caplog.messages[10:] == ["no TLS for 5 (and 2 others, unlogged)"] * 2
    for _ in range(9 + 4):
        fail(100)
    caplog.clear()
    log.write_rest()
    log.write_rest()
    assert caplog.record_tuples == [("trio_wknet.tls", logging.WARNING, "4 more")]
    fail(101)
    assert caplog.messages[1] == "no TLS for 5"


@pytest.mark.parametrize("nursery", ["own", "another"])
async def test_the_last_line_says_how_many_had_none(
    engine: Engine, caplog: pytest.LogCaptureFixture, nursery: str
) -> None:
    """When the listener has ended, and no handshake is under way."""
    caplog.set_level(logging.INFO, "trio_wknet.tls")
    listener = await engine.listen(TLS, tls=server_context(), handshake_time=60)
    assert isinstance(listener, TLSListener)
    async with trio.open_nursery() as handlers, trio.open_nursery() as serving:
        others = handlers if nursery == "another" else None
        serving.start_soon(partial(listener.serve, echo, handler_nursery=others))
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):  # which ends nothing
            await listener.serve(echo)
        for _ in range(25):
            with dial(listener) as sock:
                sock.sendall(b"nonsense")
        await until(lambda: listener.statistics().failed_handshakes == 25)
        with dial(listener) as late:
            await until(lambda: listener.statistics().handshakes == 1)
            if others:
                serving.cancel_scope.cancel()  # the handlers go on
            else:
                handlers.start_soon(listener.drain)
            with trio.CancelScope(shield=True):
                await until(lambda: not (others and listener.listener._open))
            assert not [it for it in caplog.messages if "more" in it]
            late.sendall(b"nonsense")
            with trio.CancelScope(shield=True):
                await until(lambda: listener.statistics().failed_handshakes == 26)
    said = "\n".join(caplog.messages)
    counts = re.findall(r"(?:and )?(\d+) (?:others|more)", said)
    lines = sum(it.startswith("no TLS with") for it in caplog.messages)
    assert sum(map(int, counts)) + lines == 26
    assert "more handshakes failed, unlogged" in caplog.messages[-1]


def streams() -> int:
    gc.collect()
    return sum(type(it) is TLSStream for it in gc.get_objects())


async def test_failures_leave_nothing(engine: Engine) -> None:
    before = streams()
    async with served(engine) as listener:
        for _ in range(30):
            with dial(listener) as sock:
                sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        await until(lambda: listener.statistics().failed_handshakes == 30)
        await until(lambda: len(engine.connections) == 0)
        assert streams() <= before


# --- arguments --------------------------------------------------------------------------


async def test_arguments(engine: Engine) -> None:
    listen: Any = engine.listen
    context = server_context()
    with pytest.raises(ValueError, match="tls must be given for 'tls://"):
        await listen(TLS)
    with pytest.raises(ValueError, match="tls must be given for 'wss://"):
        await listen("wss://127.0.0.1:0")
    for address in (LOCAL, 0, "unix:///nowhere", "ws://127.0.0.1:0"):
        with pytest.raises(ValueError, match=r"tls must be None unless .* 'tls://'"):
            await listen(address, tls=context)
    with pytest.raises(TypeError, match=r"tls must be an ssl\.SSLContext, not 'context'"):
        await listen(TLS, tls="context")
    with pytest.raises(ValueError, match="tls must be a context for a server"):
        await listen(TLS, tls=client_context())
    for wrong in (0, -1, float("nan"), 1e9):
        with pytest.raises(ValueError, match="handshake_time"):
            await listen(TLS, tls=context, handshake_time=wrong)
    with pytest.raises(TypeError, match="handshake_time"):
        await listen(TLS, tls=context, handshake_time=None)
    make: Any = TLSListener
    with pytest.raises(TypeError, match="listener must be a Listener"):
        make(None, context)
    async with await engine.listen(LOCAL) as below:
        assert type(below) is Listener
        with pytest.raises(TypeError, match="ssl_context must be"):
            make(below, None)
    with pytest.raises(TypeError, match="handler"):
        async with await listen(TLS, tls=context) as listener:
            await listener.serve(None)
    assert len(engine.connections) == 0


async def test_an_ssl_socket_is_not_adopted(engine: Engine) -> None:
    """Its bytes would go out unencrypted."""
    with socket.create_server(("127.0.0.1", 0)) as plain:
        wrapped = server_context().wrap_socket(plain, server_side=True)
        with wrapped, pytest.raises(TypeError, match="call start_tls"):
            engine.adopt(wrapped)


async def test_trios_stream_checks() -> None:
    """One form: they take seconds, and are about the stream."""

    async with open_engine(1) as engine:

        async def make() -> tuple[TLSStream, TLSStream]:
            listener = await engine.listen(TLS, tls=server_context())
            ends: dict[str, TLSStream] = {}

            async def accept() -> None:
                ends["server"] = await listener.accept()
                await ends["server"].do_handshake()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(accept)
                client = await connect(engine, listener)
            await listener.aclose()
            return client, ends["server"]

        await check_two_way_stream(make, None)
