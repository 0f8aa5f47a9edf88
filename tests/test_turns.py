"""A turn of a reactor is bounded, and nobody sleeps on what is left."""

from __future__ import annotations

import select
import socket

import pytest
import trio

from trio_wknet import Conn, Limits, open_engine

EVENTS = 256
TURN_BYTES = 524288
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


async def what_turns_receive(
    conns: list[Conn], peers: list[socket.socket], data: bytes
) -> list[int]:
    """Have each get some data. The bytes that came in each turn, while any were left."""
    for peer in peers:
        peer.send(data)
    found = []
    left = len(data) * len(conns)
    while left:
        before = sum(received(conns))
        await turns()
        found.append(sum(received(conns)) - before)
        left -= found[-1]
    for conn in conns:
        assert await conn.receive_exactly(len(data)) == data
    return found


async def test_turns_that_receive_much_take_fewer_events(nothing_left: None) -> None:
    """So that what came in a turn is still in a core's cache when its task runs."""
    pairs = [socket.socketpair() for _ in range(60)]
    peers = [theirs for _, theirs in pairs]
    async with open_engine(0) as engine:
        adopted = [engine.adopt(ours) for ours, _ in pairs]
        conns = [conn for conn in adopted if isinstance(conn, Conn)]
        await turns(4)
        much = bytes(60_000)
        first = await what_turns_receive(conns, peers, much)
        assert max(first) > TURN_BYTES
        then = await what_turns_receive(conns, peers, much)
        assert TURN_BYTES / 2 < max(then) <= TURN_BYTES
        little = await what_turns_receive(conns, peers, b"x")
        assert max(little[:1]) < 20, "as before"
        assert max(little) > 20, "and soon more"
        for conn, peer in zip(conns, peers, strict=True):
            conn.abort()
            peer.close()


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
