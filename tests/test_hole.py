"""A stream ends at its first hole: what finds no memory is lost, and nothing that comes
behind it is delivered."""

from __future__ import annotations

import errno
from typing import Any

import pytest
import trio
from helpers import SMALL, conn_and_peer, content, dial, plain_pair, read_all, refusing, send, until

from trio_wknet import Conn, Engine

LOCAL = "tcp://127.0.0.1:0"
BEFORE = content("before", 300)  # a block of 512 bytes
HOLE = content("hole", 5000)  # which does not fit in there
BEHIND = content("behind", 100)


async def _turn(engine: Engine) -> None:
    """Until the reactors have looked at what had arrived."""
    for _ in range(2 * max(engine.reactors, 1)):
        ours, theirs = plain_pair("unix")
        conn = engine.adopt(ours)
        assert isinstance(conn, Conn)
        with theirs:
            theirs.send(b"x")
            assert await conn.receive_some() == b"x"
        conn.abort()


async def _break(engine: Engine, conn: Conn, peer: Any) -> None:
    await until(lambda: conn.statistics().buffered_inbound == len(BEFORE))
    with refusing("blocks"):
        peer.send(HOLE)
        await until(lambda: conn.close_reason is not None)
    peer.send(BEHIND)
    await _turn(engine)


async def _is_over(conn: Conn) -> None:
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError) as raised:
            await conn.receive_some()
        assert isinstance(raised.value.__cause__, OSError)
        assert raised.value.__cause__.errno == errno.ENOMEM


async def test_receiving(engine: Engine, kind: str) -> None:
    ours, theirs = plain_pair(kind)
    conn = engine.adopt(ours)
    assert isinstance(conn, Conn)
    with theirs:
        theirs.send(BEFORE)
        await _break(engine, conn, theirs)
        assert await conn.receive_some() == BEFORE
        await _is_over(conn)
        with pytest.raises(trio.BrokenResourceError):
            await conn.receive_exactly(1)
        conn.abort()


async def test_behind_the_gate(engine: Engine) -> None:
    listener = await engine.listen(LOCAL, proxy_protocol=["127.0.0.1"])
    with dial(listener) as client:
        client.send(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + BEFORE)
        conn = await listener.accept()
        await _break(engine, conn, client)
        assert await conn.receive_some() == BEFORE
        await _is_over(conn)
        conn.abort()
    await listener.aclose()


async def test_in_the_gate(engine: Engine) -> None:
    listener = await engine.listen(LOCAL, proxy_protocol=["127.0.0.1"])
    with dial(listener) as client:
        client.send(b"PROXY TCP4 192.0.2.1 ")
        await until(lambda: listener.statistics().waiting == 1)
        await _turn(engine)
        with refusing("blocks"):
            client.send(b"192.0.2.2 1 2\r\n" + HOLE)
            await until(lambda: listener.statistics().refused == 1)
        assert listener.statistics().waiting == 0
    await listener.aclose()


async def test_in_event_mode(engine: Engine) -> None:
    received = bytearray()
    closed: list[str] = []
    listener = await engine.listen(LOCAL)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            lambda: listener.serve_events(
                lambda conn: received.extend(conn.receive_nowait()),
                on_close=lambda conn, reason: closed.append(reason),
            )
        )
        async with await trio.open_tcp_stream(*listener.address) as peer:
            await send(peer.socket, BEFORE)
            await until(lambda: received == BEFORE)
            with refusing("blocks"):
                await send(peer.socket, HOLE)
                await until(lambda: closed)
        assert closed == ["Cannot allocate memory"]
        assert received == BEFORE
        nursery.cancel_scope.cancel()


async def test_sending(engine: Engine, kind: str) -> None:
    """What the kernel does not take, and finds no memory, is not followed by anything."""
    ours, theirs = plain_pair(kind)
    conn = engine.adopt(ours)
    assert isinstance(conn, Conn)
    data = content("sent", 60_000)
    sent = bytearray()
    with theirs:
        with refusing("blocks"), pytest.raises(MemoryError):
            while True:
                conn.send_nowait(data)
                sent += data
        sent += data[: conn.statistics().bytes_sent - len(sent)]
        with pytest.raises(trio.BrokenResourceError, match="Cannot allocate memory"):
            conn.send_nowait(b"more")
        with pytest.raises(trio.BrokenResourceError, match="Cannot allocate memory"):
            await conn.send_all(b"more")
        await conn.aclose()
        theirs.settimeout(10)

        def rest() -> bytes:
            got = bytearray()
            while piece := theirs.recv(1 << 20):
                got += piece
            return bytes(got)

        assert await trio.to_thread.run_sync(rest) == sent


async def test_broadcasting(engine: Engine, kind: str) -> None:
    """A part of it was sent: neither broadcasts nor the Trio side send anything behind."""
    async with conn_and_peer(engine, kind, options=SMALL) as (conn, peer):
        group = engine.group()
        group.add(conn)
        with refusing("blocks"):
            result = await group.broadcast_nowait(bytes(200_000)).wait()
        assert result.closed == 1
        with pytest.raises(trio.BrokenResourceError, match="Cannot allocate memory"):
            await conn.send_all(b"behind")
        with pytest.raises(trio.BrokenResourceError, match="Cannot allocate memory"):
            conn.send_nowait(b"behind")
        with pytest.raises(trio.BrokenResourceError, match="Cannot allocate memory"):
            await conn.send_vectored([b"behind"])
        await conn.aclose()
        assert set(await read_all(peer)) == {0}
