"""A turn of a reactor is bounded, and nobody sleeps on what is left."""

from __future__ import annotations

import select
import socket

import pytest
import trio

from trio_wknet import Conn, Limits, open_engine

EVENTS = 256
SIZE = 4_000_000
"""Bytes; more than some turns receive on a connection."""
SO_SNDBUFFORCE = 32


async def turns(count: int = 1) -> None:
    """In-loop, a checkpoint is a turn of the reactor."""
    for _ in range(count):
        await trio.lowlevel.checkpoint()


def received(conns: list[Conn]) -> list[int]:
    return [conn.statistics().bytes_received for conn in conns]


async def test_events_of_a_turn(nothing_left: None) -> None:
    conns: list[Conn] = []
    peers: list[socket.socket] = []
    async with open_engine(0) as engine:
        for _ in range(600):
            ours, theirs = socket.socketpair()
            conn = engine.adopt(ours)
            assert isinstance(conn, Conn)
            conns.append(conn)
            peers.append(theirs)
        await turns(4)  # all are watched, and writable
        for peer in peers:
            peer.send(b"x")
        found = []
        for _ in range(10):
            before = sum(received(conns))
            await turns()
            found.append(sum(received(conns)) - before)
        for conn, peer in zip(conns, peers, strict=True):
            assert await conn.receive_some() == b"x"
            conn.abort()
            peer.close()
    assert max(found) == EVENTS


async def test_trio_does_not_sleep_on_what_is_left_to_read(nothing_left: None) -> None:
    """Its edge has been taken. The pump, which would look, is gone at the end of a run,
    and may be parked under a virtual clock."""
    async with open_engine(0) as engine:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        try:
            theirs.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 2 * SIZE)
        except PermissionError:
            ours.close()
            theirs.close()
            pytest.skip("the kernel does not hold so much for everybody")
        conn = engine.adopt(ours, limits=Limits(inbound=2 * SIZE))
        assert isinstance(conn, Conn)
        await turns(4)
        assert theirs.send(bytes(SIZE)) == SIZE
        await turns(3)  # the first wakes the reactor once more: its pool is large now
        assert 0 < received([conn])[0] < SIZE
        reactor = select.poll()
        reactor.register(engine._core.fileno(), select.POLLIN)
        assert reactor.poll(0)
        assert len(await conn.receive_exactly(SIZE)) == SIZE
        conn.abort()
        theirs.close()
