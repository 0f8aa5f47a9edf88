"""`Idle`: a limit for each direction. A peer that never answers does not live on because it is
sent to, nor one that never reads because it sends."""

from __future__ import annotations

import os
import pickle
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from helpers import conn_and_peer, dial, read_all, unix_path, until, url
from test_idle import LOCAL, discard, in_time, talk_but_in, virtual_pair
from tls_helpers import NAME, client_context, server_context
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_wknet import (
    Conn,
    ConnectionClosed,
    Engine,
    FixedLength,
    FrameChannel,
    Idle,
    Listener,
    open_engine,
    open_websocket,
    open_wknet_listener,
)

LONG = 60.0  # seconds: never passes in a test
SIDES = ["read", "write"]


def only(side: str, seconds: float = 0.05, other: float | None = LONG) -> Idle:
    """A limit that passes, and one of the other direction that does not."""
    return Idle(read=seconds, write=other) if side == "read" else Idle(read=other, write=seconds)


# -- what it is ------------------------------------------------------------------------


def test_a_value() -> None:
    idle = Idle(read=1, write=2.5)
    assert idle == Idle(write=2.5, read=1) != Idle(read=1)
    assert hash(idle) == hash(Idle(read=1, write=2.5))
    assert repr(idle) == "Idle(read=1, write=2.5)"
    assert pickle.loads(pickle.dumps(idle)) == idle
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        idle.read = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        Idle(1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="Idle needs read or write"):
        Idle()


@pytest.mark.parametrize("side", SIDES)
def test_bad_values_are_named(side: str) -> None:
    for value in ("1", True, 1j, [1]):
        wrong: Any = {side: value}
        with pytest.raises(TypeError, match=f"^{side} must be a number of seconds, not"):
            Idle(**wrong)
    for number in (0, -1, float("inf"), float("nan"), 1_073_742):
        with pytest.raises(ValueError, match=f"^{side} must be more than 0 seconds, up to 1073741"):
            Idle(**{side: number})
    Idle(**{side: 1_073_741})


async def test_where_it_is_taken(engine: Engine) -> None:
    for idle in (Idle(read=30), Idle(write=40), Idle(read=50, write=60.5)):
        async with await engine.listen(LOCAL, idle_timeout=idle) as listener:
            conn = await engine.connect(url(listener))
            accepted = await listener.accept()
            assert accepted.idle_timeout == idle
            assert conn.idle_timeout is None
            conn.idle_timeout = idle
            assert conn.idle_timeout == idle
            conn.idle_timeout = 7
            assert conn.idle_timeout == 7
            conn.idle_timeout = idle
            conn.idle_timeout = None
            assert conn.idle_timeout is None
            with pytest.raises(TypeError, match="read and write must be None if seconds is"):
                conn.idle_scope(idle, read=1)
            conn.abort()
            accepted.abort()
    with pytest.raises(TypeError, match="idle_timeout must be a number of seconds, not"):
        await engine.listen(LOCAL, idle_timeout=(1, 2))  # type: ignore[call-overload]


async def test_milliseconds(engine: Engine) -> None:
    async with conn_and_peer(engine) as (conn, _):
        conn.idle_timeout = Idle(read=30.00001, write=1_073_741)
        assert conn.idle_timeout == Idle(read=30.001, write=1_073_741)


# -- when, by virtual time -----------------------------------------------------------------


@pytest.mark.parametrize("other", [None, 8.0, 1000.0])
@pytest.mark.parametrize("side", SIDES)
async def test_bytes_in_the_other_direction_do_not_count(
    autojump_clock: MockClock, side: str, other: float | None
) -> None:
    async with virtual_pair() as (conn, peer), trio.open_nursery() as nursery:
        conn.idle_timeout = only(side, 3, other)
        nursery.start_soon(talk_but_in, side, conn, peer)
        while conn.close_reason is None:
            with suppress(trio.ClosedResourceError):
                if not await conn.receive_some():
                    break
        assert in_time(3)
        assert conn.close_reason == f"{side} idle"
        with pytest.raises(trio.ClosedResourceError, match=rf"already closed \({side} idle\)"):
            await conn.send_all(b"x")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("side", SIDES)
async def test_a_plain_number_counts_both(autojump_clock: MockClock, side: str) -> None:
    async with virtual_pair() as (conn, peer), trio.open_nursery() as nursery:
        conn.idle_timeout = 3
        nursery.start_soon(talk_but_in, side, conn, peer)
        nursery.start_soon(discard, conn)
        await trio.sleep(30)
        assert conn.close_reason is None
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("side", SIDES)
async def test_bytes_in_the_direction_count(autojump_clock: MockClock, side: str) -> None:
    other = "write" if side == "read" else "read"
    async with virtual_pair() as (conn, peer), trio.open_nursery() as nursery:
        conn.idle_timeout = Idle(**{side: 3})
        nursery.start_soon(talk_but_in, other, conn, peer)
        nursery.start_soon(discard, conn)
        await trio.sleep(30)
        assert conn.close_reason is None
        nursery.cancel_scope.cancel()


async def test_the_first_of_two_counts(autojump_clock: MockClock) -> None:
    async with virtual_pair() as (conn, peer):
        conn.idle_timeout = Idle(read=3, write=5)
        await trio.sleep(2)
        peer.send(b"x")  # now reading has until 5, as writing has
        assert await conn.receive_some() == b"x"
        await trio.sleep(1)
        peer.send(b"x")
        assert await conn.receive_some() == b"x"
        await conn.wait_closed()
        assert in_time(5)
        assert conn.close_reason == "write idle"


async def test_a_scope_takes_it(autojump_clock: MockClock) -> None:
    async with virtual_pair() as (conn, peer), trio.open_nursery() as nursery:
        nursery.start_soon(talk_but_in, "read", conn, peer)
        with conn.idle_scope(Idle(read=2, write=8)) as scope:
            await conn.receive_some()
        assert scope.cancelled_caught
        assert in_time(2)
        nursery.cancel_scope.cancel()


async def test_a_handler_that_does_not_end_is_closed_under(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """After the same time again, though it goes on to send."""
    conns: list[Conn] = []
    cancelled: list[float] = []

    async def handler(conn: Conn) -> None:
        conns.append(conn)
        try:
            await trio.sleep_forever()
        finally:
            cancelled.append(trio.current_time())
            with trio.CancelScope(shield=True):
                while True:
                    await trio.sleep(0.3)
                    await conn.send_all(b"x")

    async with (
        open_wknet_listener(f"unix://{tmp_path}/idle", idle_timeout=Idle(read=1)) as listener,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(listener.serve, handler)
        async with await trio.open_unix_socket(unix_path(listener)) as stream:
            assert set(await read_all(stream)) <= set(b"x")
        assert 1 <= cancelled[0] <= 1.03
        assert 2 <= trio.current_time() <= 2.06
        assert conns[0].close_reason == "read idle"
        nursery.cancel_scope.cancel()


# -- in every form -------------------------------------------------------------------------


@attrs.define
class Served:
    """A server that talks in one direction only, and what it saw of the end."""

    side: str  # the direction without bytes
    reasons: list[str | None] = attrs.field(factory=list)
    conns: list[Conn] = attrs.field(factory=list)

    async def talk(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Until the connection is closed; if it is to be idle in writing, the peer talks."""
        while True:
            if self.side == "read":
                await send(b"tick")
            await trio.sleep(0.005)

    async def handler(self, stream: Any) -> None:
        self.conns.append(stream.transport_stream if hasattr(stream, "do_handshake") else stream)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.talk, stream.send_all)
            async for _ in stream:
                pass

    async def on_connect(self, conn: Any) -> None:
        send = conn.send if isinstance(conn, FrameChannel) else conn.send_all
        await self.talk(send)

    def on_data(self, conn: Any) -> None:
        if isinstance(conn, Conn):
            conn.receive_nowait()

    def on_close(self, conn: Any, reason: str) -> None:
        self.reasons.append(reason)


async def served(listener: Listener, how: str, server: Served, nursery: trio.Nursery) -> None:
    if how == "tasks":
        await nursery.start(listener.serve, server.handler)
        return
    on: dict[str, Any] = {"on_connect": server.on_connect, "on_close": server.on_close}
    if how == "events":
        await nursery.start(partial(listener.serve_events, server.on_data, **on))
    else:
        on_frames = lambda channel, frames: None  # noqa: E731
        await nursery.start(partial(listener.serve_frames, FixedLength(4), on_frames, **on))


async def babble(peer: Any, side: str) -> None:
    """The other end: reads, and talks if it is writing that is to be idle."""

    async def talk() -> None:
        with suppress(trio.BrokenResourceError, OSError):
            while True:
                await peer.send(b"tick")
                await trio.sleep(0.005)

    async with trio.open_nursery() as nursery:
        if side == "write":
            nursery.start_soon(talk)
        with suppress(OSError):
            await read_all(peer)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("how", ["tasks", "events", "frames"])
@pytest.mark.parametrize("side", SIDES)
async def test_one_side_in_real_time(
    engine: Engine, kind: str, tmp_path: Path, side: str, how: str
) -> None:
    address = LOCAL if kind == "tcp" else f"unix://{tmp_path}/socket"
    server = Served(side)
    async with (
        await engine.listen(address, idle_timeout=only(side)) as listener,
        trio.open_nursery() as nursery,
    ):
        await served(listener, how, server, nursery)
        with dial(listener) as sock:
            sock.setblocking(False)
            await babble(trio.socket.from_stdlib_socket(sock), side)
        if how == "tasks":
            await until(lambda: [c.close_reason for c in server.conns] == [f"{side} idle"])
        else:
            await until(lambda: server.reasons == [f"{side} idle"])
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def tls_client(engine: Engine, listener: Any) -> AsyncIterator[Any]:
    address = "tls://{}:{}".format(*listener.address[:2])
    stream = await engine.connect(address, tls=client_context(), server_hostname=NAME)
    async with stream:
        yield stream


@pytest.mark.parametrize("side", SIDES)
async def test_over_tls(engine: Engine, side: str) -> None:
    server = Served(side)
    context: ssl.SSLContext = server_context()
    async with (
        await engine.listen("tls://127.0.0.1:0", tls=context, idle_timeout=LONG) as listener,
        trio.open_nursery() as nursery,
    ):

        async def handler(stream: Any) -> None:
            stream.idle_timeout = only(side)
            assert stream.idle_timeout == only(side)
            await server.handler(stream)

        await nursery.start(listener.serve, handler)
        async with tls_client(engine, listener) as stream, trio.open_nursery() as talking:

            async def talk() -> None:
                with suppress(trio.BrokenResourceError):
                    while side == "write":
                        await stream.send_all(b"tick")
                        await trio.sleep(0.005)

            talking.start_soon(talk)
            with suppress(trio.BrokenResourceError):
                await read_all(stream)
            talking.cancel_scope.cancel()
        await until(lambda: [c.close_reason for c in server.conns] == [f"{side} idle"])
        nursery.cancel_scope.cancel()


async def test_over_a_websocket(engine: Engine) -> None:
    """Its peer reads, and never says anything."""
    ended: list[Any] = []
    async with (
        await engine.listen("ws://127.0.0.1:0", idle_timeout=only("read", 0.2)) as listener,
        trio.open_nursery() as nursery,
    ):

        async def handler(ws: Any) -> None:
            ended.append(ws)
            while True:
                await ws.send("tick")
                await trio.sleep(0.005)

        await nursery.start(listener.serve, handler)
        address = "ws://{}:{}".format(*listener.address[:2])
        async with open_websocket(address, engine=engine) as ws:
            with pytest.raises(ConnectionClosed):
                while True:
                    await ws.receive()
        await until(lambda: ended[0].conn.close_reason == "read idle")
        nursery.cancel_scope.cancel()


async def test_the_end_of_a_busy_sender(reactors: int, nothing_left: None) -> None:
    """News of its sends, which come along with the idleness, do not put it off."""
    async with open_engine(reactors) as engine, conn_and_peer(engine) as (conn, peer):
        conn.idle_timeout = only("read")

        async def flood() -> None:
            while True:
                await conn.send_all(bytes(100_000))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_all, peer)
            with pytest.raises(trio.ClosedResourceError, match="read idle"):
                await flood()
        assert conn.close_reason == "read idle"


@pytest.mark.parametrize("kind", ["scope", "timeout"])
async def test_a_loop_that_is_held_up_again_and_again(engine: Engine, kind: str) -> None:
    """What is due is excused once, until bytes move in its own direction."""
    async with conn_and_peer(engine) as (conn, _):
        scope = trio.CancelScope()
        if kind == "scope":
            scope = conn.idle_scope(read=0.05)
        else:
            conn.idle_timeout = only("read")
        with scope:
            for _ in range(100):
                if conn.close_reason is not None:
                    break
                conn.send_nowait(b"x")
                time.sleep(0.025)  # noqa: ASYNC251  # longer than what is no stall
                await trio.sleep(0.001)
        assert scope.cancelled_caught or conn.close_reason == "read idle"


async def test_news_of_sending_that_come_along(engine: Engine) -> None:
    """A sender gets room while the loop is held up, and that is reported together with the
    idleness of reading, again and again."""
    async with conn_and_peer(engine, "unix") as (conn, peer), trio.open_nursery() as nursery:
        conn.idle_timeout = only("read")

        async def flood() -> None:
            with suppress(trio.ClosedResourceError):
                while True:
                    await conn.send_all(bytes(500_000))

        nursery.start_soon(flood)
        for _ in range(20):
            await wait_all_tasks_blocked()
            if conn.close_reason is not None:
                break
            with suppress(BlockingIOError), socket.socket(fileno=os.dup(peer.fileno())) as sock:
                sock.setblocking(False)
                while sock.recv(65536):
                    pass
            time.sleep(0.06)  # noqa: ASYNC251  # longer than the limit
        assert conn.close_reason == "read idle"
