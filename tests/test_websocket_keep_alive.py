"""Keep-alive of WebSockets: pings of the reactor's own to a silent peer, and what becomes of one
that stays silent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from helpers import SMALL, conn_and_peer, read, read_all, send, two_conns, until
from trio.testing import MockClock
from websocket_model import KEY, PING, PONG, TEXT, frame

from trio_wknet import ConnectionClosed, Engine, Limits, WebSocket, WebSocketOptions, open_engine

PAYLOAD = b"trio-wknet"
TIMED_OUT = b"\x88\x0e\x03\xf3ping timeout"


@asynccontextmanager
async def ws_and_peer(
    engine: Engine, kind: str = "tcp", role: Any = "server", **options: Any
) -> AsyncIterator[tuple[WebSocket, Any]]:
    limits = options.pop("limits", Limits())
    small = options.pop("small", None)
    async with conn_and_peer(engine, kind, limits=limits, options=small) as (conn, peer):
        yield WebSocket._over(conn, role, **options), peer


async def test_a_silent_peer_is_sent_pings(engine: Engine, kind: str) -> None:
    """Trio is not woken for them, nor for their pongs."""
    async with ws_and_peer(engine, kind, ping_interval=0.02, ping_timeout=3600) as (ws, peer):
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def receiving() -> None:
                assert await ws.receive() == "at last"

            await trio.testing.wait_all_tasks_blocked()
            wakes = engine.statistics().wakes
            for _ in range(4):
                assert await read(peer, 12) == frame(PING, PAYLOAD)
                await send(peer, frame(PONG, PAYLOAD, key=KEY))
            assert engine.statistics().wakes == wakes
            await send(peer, frame(TEXT, b"at last", key=KEY))
        assert ws.close_code is None


@pytest.mark.parametrize("role", ["server", "client"])
async def test_silence_ends_it(engine: Engine, kind: str, role: str) -> None:
    async with ws_and_peer(engine, kind, role, ping_interval=0.02) as (ws, peer):
        await send(peer, frame(TEXT, b"before", key=KEY if role == "server" else None))
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def pinging() -> None:
                with pytest.raises(ConnectionClosed):
                    await ws.ping(b"?")

            assert await ws.receive() == "before"
            with pytest.raises(trio.BrokenResourceError) as raised:
                await ws.receive()
        closed: Any = raised.value
        assert (closed.code, closed.reason, closed.by) == (1011, "ping timeout", "local")
        assert isinstance(closed.__cause__, TimeoutError)
        assert (ws.close_code, ws.close_reason) == (1011, "ping timeout")
        assert ws.conn.close_reason == "Connection timed out"
        wire = await read_all(peer)
        if role == "server":
            assert wire.endswith(frame(PING, PAYLOAD) + TIMED_OUT)
        with pytest.raises(ConnectionClosed):
            await ws.send("x")
        await ws.aclose()


async def test_a_sender_learns_it(engine: Engine, kind: str) -> None:
    """One that waits because the peer takes nothing."""
    async with ws_and_peer(engine, kind, small=SMALL, ping_interval=0.02) as (ws, _):
        with pytest.raises(ConnectionClosed, match="ping timeout"):
            await ws.send(bytes(10_000_000))


async def test_any_bytes_keep_it(engine: Engine, kind: str) -> None:
    """Not only pongs: parts of a message, too, of which nobody hears."""
    async with ws_and_peer(engine, kind, ping_interval=0.01, ping_timeout=0.5) as (ws, peer):
        message = frame(TEXT, bytes(20), key=KEY)
        for byte in message:
            await send(peer, bytes([byte]))
            await trio.sleep(0.03)
        assert await ws.receive() == "\0" * 20
        assert ws.close_code is None


async def test_who_is_held_back_is_not_judged(engine: Engine) -> None:
    """A peer whose pong could not be seen, behind messages that nobody takes."""
    limits = Limits(inbound=1000)
    async with ws_and_peer(engine, limits=limits, ping_interval=0.01) as (ws, peer):
        wire = frame(TEXT, bytes(100), key=KEY) * 200
        await send(peer, wire)
        await until(lambda: ws.statistics().messages_waiting >= 9)
        await trio.sleep(0.1)
        assert ws.close_code is None
        for _ in range(200):
            await ws.receive()
        with pytest.raises(ConnectionClosed, match="ping timeout"):
            await ws.receive()


async def test_both_ends(engine: Engine, kind: str) -> None:
    async with two_conns(engine, kind) as (client, server):
        one = WebSocket._over(client, "client", ping_interval=0.01)
        other = WebSocket._over(server, "server", ping_interval=0.01)
        await until(lambda: one.statistics().pings_answered + other.statistics().pings_answered > 5)
        await one.send("still there")
        assert await other.receive() == "still there"


async def test_an_idle_timeout_beside_it(engine: Engine, kind: str) -> None:
    """Pings are bytes: a longer idle timeout does not pass, and a shorter one is exact."""
    async with ws_and_peer(engine, kind, ping_interval=0.03, ping_timeout=60) as (ws, peer):
        ws.conn.idle_timeout = 0.6
        for _ in range(25):
            assert await read(peer, 12) == frame(PING, PAYLOAD)
            await send(peer, frame(PONG, PAYLOAD, key=KEY))
        assert ws.conn.close_reason is None
    async with ws_and_peer(engine, kind, ping_interval=5) as (ws, peer):
        ws.conn.idle_timeout = 0.01
        await until(lambda: ws.conn.close_reason == "idle")


async def test_it_ends_with_our_close_frame(engine: Engine) -> None:
    """The bound of the closing handshake is another one."""
    async with ws_and_peer(engine, ping_interval=0.01, close_timeout=0.1) as (ws, peer):
        assert await read(peer, 12) == frame(PING, PAYLOAD)
        await ws.aclose(4000)
        assert await read_all(peer) == b"\x88\x02\x0f\xa0"
        assert ws.close_code == 4000


async def test_a_clock_that_jumps(autojump_clock: MockClock) -> None:
    async with open_engine(0) as engine:
        async with two_conns(engine) as (client, server):
            one = WebSocket._over(client, "client", ping_interval=30, ping_timeout=10)
            other = WebSocket._over(server, "server")
            began = trio.current_time()
            await trio.sleep(95)
            assert other.statistics().pings_answered == 3
            assert one.close_code is None
        async with ws_and_peer(engine, ping_interval=30, ping_timeout=10) as (ws, _):
            began = trio.current_time()
            with pytest.raises(ConnectionClosed, match="ping timeout"):
                await ws.receive()
            assert 40 <= trio.current_time() - began < 40.2


def test_options() -> None:
    options = WebSocketOptions(ping_interval=20, ping_timeout=5.5)
    assert (options.ping_interval, options.ping_timeout) == (20, 5.5)
    for name in ("ping_interval", "ping_timeout"):
        for wrong in (0, -1, 86401, float("nan")):
            value: Any = {name: wrong}
            with pytest.raises(ValueError, match=name):
                WebSocketOptions(**value)
        for of_no_kind in ("1", True):
            argument: Any = {name: of_no_kind}
            with pytest.raises(TypeError, match=name):
                WebSocketOptions(**argument)
