"""What the connections of a listener, and of an engine, have come to: ``statistics()``."""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from helpers import dial, dialled, read, read_all, two_conns, until, url
from tls_helpers import NAME, client_context, server_context

import trio_wknet
from trio_wknet import (
    Conn,
    Delimited,
    Engine,
    FrameChannel,
    Limits,
    Listener,
    Traffic,
    WebSocket,
    WebSocketOptions,
    open_engine,
)
from trio_wknet._native.trio.totals import REASONS

LOCAL = "tcp://127.0.0.1:0"
LINES = Delimited(b"\n", max_frame=1000)


def some(counts: Mapping[str, int]) -> dict[str, int]:
    return {reason: count for reason, count in counts.items() if count}


def conserves(listener: Listener) -> None:
    """Every connection that was accepted is somewhere."""
    found = listener.statistics()
    ended = sum(found.closed_by.values())
    assert found.accepted == found.waiting + found.open + ended


@asynccontextmanager
async def served(
    engine: Engine, kind: str, tmp_path: Path, handler: Callable[[Conn], Awaitable[object]]
) -> AsyncIterator[Listener]:
    """A listener whose connections are served by a handler."""
    address = LOCAL if kind == "tcp" else f"unix://{tmp_path}/socket"
    async with trio.open_nursery() as nursery:
        listener = await nursery.start(
            (await engine.listen(address)).serve, handler
        )  # fmt: skip
        yield listener
        nursery.cancel_scope.cancel()


async def echo_lines(conn: Conn) -> None:
    async for data in conn:
        await conn.send_all(data)


async def test_bytes_of_what_is_open_and_of_what_has_ended(
    engine: Engine, kind: str, tmp_path: Path
) -> None:
    async with served(engine, kind, tmp_path, echo_lines) as listener:
        before = listener.statistics()
        assert (before.open, some(before.closed_by), before.traffic) == (0, {}, Traffic(
            bytes_received=0, bytes_sent=0, messages_received=0, messages_sent=0,
            buffered_inbound=0, buffered_outbound=0,
        ))  # fmt: skip
        conns = [await engine.connect(url(listener)) for _ in range(3)]
        for conn in conns:
            await conn.send_all(b"hello")
            assert await read(conn, 5) == b"hello"
        found = listener.statistics()
        assert (found.accepted, found.open, found.waiting) == (3, 3, 0)
        assert (found.traffic.bytes_received, found.traffic.bytes_sent) == (15, 15)
        conserves(listener)
        for conn in conns[:2]:
            await conn.aclose()
        await until(lambda: listener.statistics().open == 1)
        found = listener.statistics()
        assert (found.traffic.bytes_received, found.traffic.bytes_sent) == (15, 15)
        assert some(found.closed_by) == {"eof": 2}
        conserves(listener)
        # The clients count for the engine, along with the others.
        everything = engine.statistics()
        assert (everything.accepted, everything.connected, everything.open) == (3, 3, 2)
        assert (everything.traffic.bytes_received, everything.traffic.bytes_sent) == (30, 30)
        assert some(everything.closed_by) == {"eof": 2, "closed": 2}
        assert engine.listeners == (listener,)
        await conns[2].aclose()
        await until(lambda: listener.statistics().open == 0)
    # What a listener has seen stays, in the engine, too.
    assert listener.statistics().traffic.bytes_received == 15
    found, everything = listener.statistics(), engine.statistics()
    assert (found.accepted, found.open) == (3, 0)
    assert (everything.accepted, everything.open, len(engine.listeners)) == (3, 0, 0)
    assert everything.traffic.bytes_sent == 30
    assert everything.traffic.buffered_inbound == everything.traffic.buffered_outbound == 0


async def test_the_sums_are_those_of_the_connections(engine: Engine, kind: str) -> None:
    async with two_conns(engine, kind) as (client, server):
        await client.send_all(b"x" * 1000)
        await until(lambda: server.statistics().buffered_inbound == 1000)
        traffic = engine.statistics().traffic
        assert (traffic.bytes_sent, traffic.bytes_received) == (1000, 1000)
        assert (traffic.buffered_inbound, traffic.buffered_outbound) == (1000, 0)
        assert len(await read(server, 400)) == 400
        assert engine.statistics().traffic.buffered_inbound == 600
        client.send_nowait(b"y")
        client.send_nowait(b"z")  # kept for the end of the turn
        assert engine.statistics().traffic.buffered_outbound == 1
        await client.flush()
        server.abort()
        client.abort()
        traffic = engine.statistics().traffic
        assert traffic.buffered_inbound == traffic.buffered_outbound == 0
        assert traffic.bytes_sent == client.statistics().bytes_sent == 1002
        assert traffic.bytes_received == server.statistics().bytes_received


ENDS: dict[str, Callable[[Conn], object]] = {
    "closed": Conn.close_nowait,
    "aborted": Conn.abort,
}


@pytest.mark.parametrize("reason", ENDS)
async def test_an_end_by_this_program(
    engine: Engine, kind: str, tmp_path: Path, reason: str
) -> None:
    async def handler(conn: Conn) -> None:
        ENDS[reason](conn)

    async with served(engine, kind, tmp_path, handler) as listener:
        with dialled(listener, 2):
            await until(lambda: listener.statistics().closed_by[reason] == 2)
        assert some(listener.statistics().closed_by) == {reason: 2}
        assert some(engine.statistics().closed_by) == {reason: 2}


async def test_a_detached_connection(engine: Engine) -> None:
    async with two_conns(engine) as (client, _):
        sock, _ = await client.detach()
        sock.close()
        assert engine.statistics().closed_by["detached"] == 1


async def test_a_reset(engine: Engine) -> None:
    async with await engine.listen(LOCAL) as listener:
        peer = dial(listener)
        conn = await listener.accept()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        await conn.wait_closed()
        await conn.aclose()
        assert some(listener.statistics().closed_by) == {"reset": 1}


async def test_another_error(engine: Engine) -> None:
    """One that the kernel reports: nothing was acknowledged in time."""
    async with two_conns(engine) as (client, server):
        client.setsockopt(socket.IPPROTO_TCP, 18, 1)  # TCP_USER_TIMEOUT, milliseconds
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await client.send_all(bytes(1 << 20))
        client.abort()
        text = os.strerror(errno.ETIMEDOUT)
        assert engine.statistics().closed_by[text] == 1
        assert server.close_reason is None


async def test_an_idle_connection(engine: Engine) -> None:
    async with trio.open_nursery() as nursery:
        listener = await engine.listen(LOCAL, idle_timeout=0.01)
        nursery.start_soon(listener.serve, echo_lines)
        with dialled(listener, 1):
            await until(lambda: listener.statistics().closed_by["idle"] == 1)
        conserves(listener)
        nursery.cancel_scope.cancel()


def echo_events(conn: Conn) -> None:
    conn.send_nowait(conn.receive_nowait())


async def test_events(engine: Engine) -> None:
    """They need no object to count, and an object that comes and goes changes nothing."""
    async with trio.open_nursery() as nursery:
        listener = await nursery.start((await engine.listen(LOCAL)).serve_events, echo_events)
        clients = [await engine.connect(url(listener)) for _ in range(2)]
        for client in clients:
            await client.send_all(b"ab")
            assert await read(client, 2) == b"ab"
        found = listener.statistics()
        assert (found.open, found.traffic.bytes_received, found.traffic.bytes_sent) == (2, 4, 4)
        assert all(conn.engine is engine for conn in engine.connections.values())
        assert listener.statistics().open == 2
        await clients[0].aclose()
        await until(lambda: listener.statistics().open == 1)
        assert some(listener.statistics().closed_by) == {"eof": 1}
        conserves(listener)
        nursery.cancel_scope.cancel()
    await clients[1].aclose()
    found = listener.statistics()
    assert (found.open, some(found.closed_by)) == (0, {"eof": 1, "closed": 1})
    assert (found.traffic.bytes_received, found.traffic.bytes_sent) == (4, 4)


async def test_frames(engine: Engine) -> None:
    def on_frames(channel: FrameChannel, frames: list[bytes]) -> None:
        channel.send_many_nowait(frames)

    async with trio.open_nursery() as nursery:
        listener = await nursery.start(
            (await engine.listen(LOCAL)).serve_frames, LINES, on_frames
        )  # fmt: skip
        client = await engine.connect(url(listener))
        channel = client.framed(LINES)
        await channel.send_many([b"a", b"b", b"c"])
        for _ in range(3):
            await channel.receive()
        traffic = listener.statistics().traffic
        assert (traffic.messages_received, traffic.messages_sent) == (3, 3)
        # A channel that is given up has counted, and the next one counts anew.
        channel.unframe()
        traffic = engine.statistics().traffic
        assert (traffic.messages_received, traffic.messages_sent) == (6, 6)
        await client.framed(LINES).send(b"d")
        await until(lambda: listener.statistics().traffic.messages_received == 4)
        await client.aclose()
        await until(lambda: listener.statistics().open == 0)
        traffic = engine.statistics().traffic
        assert (traffic.messages_received, traffic.messages_sent) == (7, 8)
        with dialled(listener, 1) as (peer,):
            peer.sendall(bytes(2 << 20))
            await until(lambda: listener.statistics().closed_by["frame too long"] == 1)
        conserves(listener)
        nursery.cancel_scope.cancel()


async def test_websockets(engine: Engine) -> None:
    pytest.importorskip("h11")
    async with trio.open_nursery() as nursery:
        top = await engine.listen("ws://127.0.0.1:0", websocket=WebSocketOptions())
        listener = await nursery.start(
            top.serve_messages, lambda websocket, found: websocket.send_many_nowait(found)
        )
        assert listener.engine is engine
        conn = await engine.connect(url(listener))
        websocket = await WebSocket.connect(conn, "ws://localhost/")
        await websocket.send("hello")
        assert await websocket.receive() == "hello"
        traffic = listener.statistics().traffic
        assert (traffic.messages_received, traffic.messages_sent) == (1, 1)
        await websocket.aclose()
        await until(lambda: listener.statistics().open == 0)
        traffic = engine.statistics().traffic
        assert (traffic.messages_received, traffic.messages_sent) == (2, 2)
        nursery.cancel_scope.cancel()


async def test_handshakes(engine: Engine) -> None:
    async with trio.open_nursery() as nursery:
        listener = await engine.listen("tls://127.0.0.1:0", tls=server_context())
        nursery.start_soon(listener.serve, lambda stream: read_all(stream))
        address = url(listener).replace("tcp:", "tls:")
        stream = await engine.connect(address, tls=client_context(), server_hostname=NAME)
        await until(lambda: listener.statistics().handshakes_done == 1)
        with dialled(listener, 1) as (peer,):
            peer.sendall(b"no TLS at all" * 10)
            await until(lambda: listener.statistics().failed_handshakes == 1)
        for found in (listener.statistics(), listener.listener.statistics()):
            assert (found.handshakes_done, found.failed_handshakes) == (1, 1)
            assert found.handshake_seconds > 0
        everything = engine.statistics()
        assert (everything.handshakes_done, everything.failed_handshakes) == (2, 1)
        assert everything.handshake_seconds > listener.statistics().handshake_seconds
        await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_what_waits_is_not_open(engine: Engine) -> None:
    async with await engine.listen(LOCAL, limits=Limits(accept_queue=8)) as listener:
        with dialled(listener, 3):
            await until(lambda: listener.statistics().waiting == 3)
            conn = await listener.accept()
            found = listener.statistics()
            assert (found.accepted, found.waiting, found.open) == (3, 2, 1)
            conserves(listener)
            # What is dropped without an owner is closed, too.
            with pytest.warns(ResourceWarning):
                del conn
            found = listener.statistics()
            assert (found.open, found.closed_by["closed"]) == (0, 1)


async def test_the_end_of_an_engine(reactors: int) -> None:
    async with open_engine(reactors) as engine:
        listener = await engine.listen(LOCAL)
        peer = dial(listener)
        conn = await listener.accept()
        assert listener.engine is conn.engine is engine
    peer.close()
    found = listener.statistics()
    assert (found.open, some(found.closed_by)) == (0, {"engine closed": 1})
    # Both are known after the end.
    assert listener.engine is conn.engine is engine
    with pytest.raises(RuntimeError, match="closed"):
        engine.listeners  # noqa: B018
    with pytest.raises(RuntimeError, match="closed"):
        engine.statistics()


async def test_the_peers_address_after_the_end(engine: Engine) -> None:
    async with two_conns(engine) as (client, server):
        address = client.remote_address
        await client.aclose()
        assert client.remote_address == address
        assert f"raddr={address!r}" in repr(client)
        server.abort()
        assert f"raddr={client.local_address!r}" in repr(server)


def test_every_reason_is_known() -> None:
    """Whatever a connection is let go of for has a counter."""
    native = Path(trio_wknet.__file__).parent / "_native" / "trio"
    used = {
        reason
        for path in native.glob("*.pyx")
        for found in re.findall(
            r'let_go\([^"\n]*"([^"\n]+)"|(?:return|else) "((?:\w+ )?idle)"', path.read_text()
        )
        for reason in filter(None, found)
    }
    assert {"closed", "idle", "read idle", "write idle", "aborted"} <= used <= set(REASONS)
