"""A turn of a reactor is bounded, in events and in bytes, and what waits comes first."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from trio_wknet import Conn, open_engine

EVENTS = 256
TURN_BYTES = 262_144
RECEIVE = 65_536
MESSAGE = 50_000

Pair = tuple[Conn, socket.socket]


@asynccontextmanager
async def in_loop(count: int) -> AsyncIterator[list[Pair]]:
    """Connections and their peers, of an engine that a checkpoint turns once."""
    async with open_engine(0) as engine:
        pairs: list[Pair] = []
        try:
            for _ in range(count):
                ours, theirs = socket.socketpair()
                theirs.setblocking(False)
                conn = engine.adopt(ours)
                assert isinstance(conn, Conn)
                pairs.append((conn, theirs))
            await turns(4)  # all are watched, and writable
            yield pairs
        finally:
            for conn, peer in pairs:
                conn.abort()
                peer.close()


async def turns(count: int = 1) -> None:
    for _ in range(count):
        await trio.lowlevel.checkpoint()


def received(pairs: list[Pair]) -> list[int]:
    return [conn.statistics().bytes_received for conn, _ in pairs]


async def test_events(nothing_left: None) -> None:
    async with in_loop(600) as pairs:
        for _, peer in pairs:
            peer.send(b"x")
        found = []
        for _ in range(10):
            before = sum(received(pairs))
            await turns()
            found.append(sum(received(pairs)) - before)
        assert max(found) == EVENTS
        assert received(pairs) == [1] * 600


async def test_bytes(nothing_left: None) -> None:
    async with in_loop(30) as pairs:
        for _, peer in pairs:
            assert peer.send(bytes(MESSAGE)) == MESSAGE
        found = []
        for _ in range(30):
            before = sum(received(pairs))
            await turns()
            found.append(sum(received(pairs)) - before)
        assert TURN_BYTES <= max(found) < TURN_BYTES + RECEIVE
        assert received(pairs) == [MESSAGE] * 30


async def test_one_that_never_stops_does_not_keep_others_waiting(nothing_left: None) -> None:
    async with in_loop(20) as pairs:
        (flood, source), *others = pairs

        def pour() -> None:
            while flood.statistics().buffered_inbound:
                flood.receive_nowait()
            try:
                while True:
                    source.send(bytes(RECEIVE))
            except BlockingIOError:
                pass

        pour()
        for _, peer in others:
            peer.send(bytes(MESSAGE))
        for _ in range(20):
            await turns()
            pour()
        assert received(others) == [MESSAGE] * 19
        assert flood.statistics().bytes_received > MESSAGE


async def test_the_end_is_told_though_bytes_wait(nothing_left: None) -> None:
    async with in_loop(30) as pairs:
        for _, peer in pairs:
            peer.send(bytes(MESSAGE))
            peer.shutdown(socket.SHUT_WR)
        for conn, _ in pairs:
            data = bytearray()
            while more := await conn.receive_some():
                data += more
            assert data == bytes(MESSAGE)
