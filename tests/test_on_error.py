"""`on_error` of `serve`: what a handler raised ends its own connection, and nothing else."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from helpers import dial, echo, is_served, read_all, until, url
from tls_helpers import NAME, client_context, server_context

from trio_wknet import Conn, ConnectionClosed, Engine, Idle, Listener, open_websocket
from trio_wknet._handler_errors import report

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup, ExceptionGroup

LOCAL = "tcp://127.0.0.1:0"


class Log:
    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.subjects: list[Any] = []

    def __call__(self, subject: Any, exc: Exception) -> None:
        self.subjects.append(subject)
        self.errors.append(exc)

    def has(self, count: int) -> bool:
        return len(self.errors) == count


async def picky(conn: Any) -> None:
    """Echoes, and dislikes some."""
    data = await conn.receive_some()
    if data == b"bad":
        raise KeyError("bad")
    await conn.send_all(data)
    await echo(conn)


@asynccontextmanager
async def serving(engine: Engine, handler: Any, **options: Any) -> AsyncIterator[Listener]:
    async with await engine.listen(LOCAL) as listener, trio.open_nursery() as nursery:
        await nursery.start(partial(listener.serve, handler, **options))
        yield listener
        nursery.cancel_scope.cancel()


async def told(listener: Any, data: bytes = b"bad") -> bytes:
    with dial(listener) as sock:
        sock.setblocking(False)
        peer = trio.socket.from_stdlib_socket(sock)
        await peer.send(data)
        return await read_all(peer)


@pytest.mark.parametrize("own", [False, True])
async def test_others_go_on(engine: Engine, own: bool) -> None:
    log = Log()

    def on_error(conn: Conn, exc: Exception) -> None:
        log(conn, exc)
        conn.send_nowait(b"sorry")

    async with trio.open_nursery() as nursery:
        extra = {"handler_nursery": nursery} if own else {}
        async with serving(engine, picky, on_error=on_error, **extra) as listener:
            other = await engine.connect(url(listener))
            for _ in range(2):
                assert await told(listener) == b"sorry", "it is closed gracefully"
            await is_served(engine, listener)
            await other.send_all(b"still")
            assert await other.receive_some() == b"still"
            assert [repr(exc) for exc in log.errors] == ["KeyError('bad')"] * 2
            assert log.subjects[0].close_reason == "closed"
            await until(lambda: listener.statistics().handlers == 1)
            await other.aclose()
        nursery.cancel_scope.cancel()


async def test_groups_of_exceptions(engine: Engine) -> None:
    log = Log()

    async def handler(conn: Conn) -> None:
        raise ExceptionGroup("both", [ValueError("one"), KeyError("two")])

    async with serving(engine, handler, on_error=log) as listener:
        assert await told(listener) == b""
        (group,) = log.errors
        assert isinstance(group, ExceptionGroup)
        assert len(group.exceptions) == 2


async def test_cancelled_passes_through(engine: Engine) -> None:
    """Also in a group with what is for on_error."""
    log = Log()
    ended: list[str] = []

    async def handler(conn: Conn) -> None:
        async def fails() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("cleaning up")

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fails)
                nursery.start_soon(trio.sleep_forever)
        finally:
            ended.append("handler")

    async with serving(engine, handler, on_error=log) as listener:
        with dial(listener):
            await until(lambda: listener.statistics().handlers == 1)
            await trio.lowlevel.checkpoint()
            await listener.drain(grace=0)
    assert ended == ["handler"]
    assert all(not isinstance(exc, trio.Cancelled) for exc in log.errors)


class Fatal(BaseException):
    pass


async def test_the_cancelled_part_of_a_group_is_raised() -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled as exc:
            cancelled = exc
            raise
    log, failure = Log(), ValueError()
    with pytest.raises(BaseExceptionGroup) as caught:
        report(log, None, BaseExceptionGroup("both", [cancelled, failure]))
    assert caught.value.exceptions == (cancelled,)
    (given,) = log.errors
    assert isinstance(given, ExceptionGroup)
    assert given.exceptions == (failure,)


@pytest.mark.parametrize("grouped", [False, True])
async def test_what_is_no_exception_ends_serving(engine: Engine, grouped: bool) -> None:
    log = Log()

    async def handler(conn: Conn) -> None:
        raise BaseExceptionGroup("both", [Fatal(), ValueError()]) if grouped else Fatal()

    with pytest.raises(BaseExceptionGroup) as raised:
        async with serving(engine, handler, on_error=log) as listener:
            await told(listener)
            await trio.sleep_forever()
    assert raised.value.split(Fatal)[0] is not None
    assert log.errors == []


async def test_an_on_error_that_raises_ends_serving(engine: Engine) -> None:
    def on_error(conn: Conn, exc: Exception) -> None:
        raise exc

    async def of_the_wrong_kind(conn: Conn, exc: Exception) -> None:
        raise AssertionError

    for function, kind in ((on_error, KeyError), (of_the_wrong_kind, TypeError)):
        with pytest.raises(BaseExceptionGroup) as raised:
            async with serving(engine, picky, on_error=function) as listener:
                await told(listener)
                await trio.sleep_forever()
        assert raised.value.split(kind)[0] is not None


async def test_bad_values(engine: Engine) -> None:
    async with await engine.listen(LOCAL) as listener:
        with pytest.raises(TypeError, match="on_error must be callable"):
            await listener.serve(echo, on_error=5)  # type: ignore[arg-type]


async def test_the_end_by_a_timeout_is_no_error(engine: Engine) -> None:
    log = Log()

    async def handler(conn: Conn) -> None:
        conn.idle_timeout = Idle(read=0.01)
        await conn.receive_some()

    async with serving(engine, handler, on_error=log) as listener:
        with dial(listener) as sock:
            sock.setblocking(False)
            assert await trio.socket.from_stdlib_socket(sock).recv(1) == b""
        await until(lambda: listener.statistics().handlers == 0)
    assert log.errors == []


async def test_over_tls(engine: Engine) -> None:
    log = Log()
    async with (
        await engine.listen("tls://127.0.0.1:0", tls=server_context()) as listener,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(partial(listener.serve, picky, on_error=log))
        address = "tls://{}:{}".format(*listener.address[:2])
        connect = partial(engine.connect, address, tls=client_context(), server_hostname=NAME)
        for number in range(2):
            stream = await connect()
            await stream.send_all(b"bad")
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
            await trio.aclose_forcefully(stream)
            await until(partial(log.has, number + 1))
        async with await connect() as stream:
            await stream.send_all(b"good")
            assert await stream.receive_some() == b"good"
        assert {type(exc) for exc in log.errors} == {KeyError}
        nursery.cancel_scope.cancel()


async def test_over_a_websocket(engine: Engine) -> None:
    log = Log()

    async def handler(ws: Any) -> None:
        async for message in ws:
            if message == "bad":
                raise KeyError(message)
            await ws.send(message)

    async with (
        await engine.listen("ws://127.0.0.1:0") as listener,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(partial(listener.serve, handler, on_error=log))
        address = "ws://{}:{}".format(*listener.address[:2])
        async with open_websocket(address, engine=engine) as ws:
            await ws.send("bad")
            with pytest.raises(ConnectionClosed) as raised:
                await ws.receive()
            assert raised.value.code == 1011
        async with open_websocket(address, engine=engine) as ws:
            await ws.send("good")
            assert await ws.receive() == "good"
        assert [repr(exc) for exc in log.errors] == ["KeyError('bad')"]
        nursery.cancel_scope.cancel()
