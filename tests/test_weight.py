"""What a connection makes its server hold: user-space memory, with the default limits.

A peer that sends without end and reads nothing stops an echo in the middle of a send. On
Trio's own transport the handler then holds 64 KiB.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from event_servers import address_of, caller, served
from helpers import conn_and_peer, content, fill, send, until

from trio_wknet import Conn, ConnOptions, Engine, Limits

RECEIVE_BUFFER = 65_536
DEFAULT = Limits()
BUFFERS = ConnOptions(send_buffer=65_536, receive_buffer=65_536)
PATIENT = 10.0


class Server:
    """An echo, and what its connection holds."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.own = max(engine.reactors, 1) * RECEIVE_BUFFER
        self.object = 0

    @property
    def held(self) -> int:
        """Bytes in blocks, and in the object that is being sent."""
        return self.engine.statistics().pool_in_use - self.own + self.object

    async def send(self, conn: Conn, data: bytes | bytearray) -> None:
        self.object = len(data)
        await conn.send_all(data)
        self.object = 0

    async def handler(self, conn: Conn) -> None:
        with suppress(trio.BrokenResourceError):
            async for data in conn:
                await self.send(conn, data)

    async def with_a_buffer(self, conn: Conn) -> None:
        buffer = bytearray(DEFAULT.inbound)
        with suppress(trio.BrokenResourceError):
            while n := await conn.receive_into(buffer):
                self.object = len(buffer)
                await conn.send_all(memoryview(buffer)[:n])

    async def never(self, conn: Conn) -> None:
        with suppress(trio.BrokenResourceError):
            await conn.wait_closed()

    async def callback(self, conn: Conn) -> None:
        await self.send(conn, conn.receive_nowait())

    def plain_callback(self, conn: Conn) -> Awaitable[None] | None:
        """Queues, and is called again when that is sent."""
        conn.send_nowait(conn.receive_nowait())
        return conn.flush() if conn.statistics().buffered_outbound else None

    def callback_never(self, conn: Conn) -> None:
        pass


async def flood(listener: Any, server: Server, least: int = DEFAULT.inbound) -> int:
    """Send until nothing goes for a while, and much is held. The most that ever was."""
    most = 0
    idle = 0
    with caller(listener) as peer:
        while idle < 50 or server.held < least:
            idle = 0 if fill(peer._sock) else idle + 1
            await trio.sleep(0.001)
            most = max(most, server.held)
    return most


@pytest.mark.parametrize("form", ["handler", "with_a_buffer", "never"])
async def test_a_peer_that_does_not_read(
    engine: Engine, kind: str, tmp_path: Path, form: str
) -> None:
    server = Server(engine)
    listener = await engine.listen(address_of(kind, tmp_path), options=BUFFERS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.serve, getattr(server, form))
        most = await flood(listener, server)
        nursery.cancel_scope.cancel()
    bound = DEFAULT.inbound if form == "never" else 2 * DEFAULT.inbound
    assert most <= bound


@pytest.mark.parametrize("form", ["callback", "plain_callback", "callback_never"])
async def test_a_peer_that_does_not_read_in_event_mode(
    engine: Engine, kind: str, tmp_path: Path, form: str
) -> None:
    server = Server(engine)
    async with served(
        engine,
        getattr(server, form),
        address=address_of(kind, tmp_path),
        options=BUFFERS,
        on_error=lambda *_: None,
    ) as listener:
        # What is queued for the plain one is what the kernel did not take of an object.
        most = await flood(listener, server, 1 if form == "plain_callback" else DEFAULT.inbound)
    bound = DEFAULT.inbound if form == "callback_never" else 2 * DEFAULT.inbound
    assert most <= bound


@pytest.mark.parametrize("inbound", [1, 1000, 4096, 20_000, 33_000, 65_536, 100_000, 1 << 20])
async def test_no_more_than_the_mark_is_received(engine: Engine, kind: str, inbound: int) -> None:
    """And the block is the smallest that holds it."""
    own = engine.statistics().pool_in_use
    async with conn_and_peer(engine, kind, limits=Limits(inbound=inbound)) as (conn, sock):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, sock, bytes(2 * inbound + 100_000))
            await until(lambda: conn.statistics().buffered_inbound == inbound)
            block = 512
            while block < inbound:
                block *= 2
            assert engine.statistics().pool_in_use - own == block
            nursery.cancel_scope.cancel()


async def test_a_large_wish_gets_its_block_at_once(engine: Engine, kind: str) -> None:
    """To double it again and again would copy it all, while others wait."""
    size, sent = 48 << 20, 3 << 20
    own = engine.statistics().pool_in_use
    async with conn_and_peer(engine, kind) as (conn, sock):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.receive_exactly, size)
            await send(sock, content("wish", sent))
            await until(lambda: conn.statistics().buffered_inbound == sent)
            assert engine.statistics().pool_in_use - own == 64 << 20
            nursery.cancel_scope.cancel()
        assert await conn.receive_exactly(sent) == content("wish", sent)
        assert engine.statistics().pool_in_use == own


async def test_what_was_waited_for_and_is_not_is_not_read_on_for(engine: Engine) -> None:
    """A receiver that raised the mark has gone, and left more than the limit behind."""
    async with conn_and_peer(engine, limits=Limits(inbound=1000)) as (conn, sock):
        with trio.move_on_after(PATIENT) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(conn.receive_exactly, 100_000)
                await send(sock, bytes(50_000))
                await until(lambda: conn.statistics().buffered_inbound == 50_000)
                nursery.cancel_scope.cancel()
        assert not scope.cancelled_caught
        await send(sock, bytes(50_000))
        for _ in range(10):
            await trio.lowlevel.checkpoint()
        assert conn.statistics().buffered_inbound == 50_000
        assert await conn.receive_exactly(100_000) == bytes(100_000)


async def by_some(conn: Conn, left: int) -> bytes | bytearray:
    return await conn.receive_some()


async def by_a_few(conn: Conn, left: int) -> bytes | bytearray:
    return await conn.receive_some(40_000)


async def by_buffer(conn: Conn, left: int) -> bytes | bytearray:
    buffer = bytearray(150_000)
    return buffer[: await conn.receive_into(buffer)]


async def by_count(conn: Conn, left: int) -> bytes | bytearray:
    return await conn.receive_exactly(min(left, 90_000))


async def by_polling(conn: Conn, left: int) -> bytes | bytearray:
    while True:
        try:
            return conn.receive_nowait()
        except trio.WouldBlock:
            await trio.sleep(0)


async def when_readable(conn: Conn, left: int) -> bytes | bytearray:
    """Whoever looks before it receives sees what is there."""
    await until(conn.socket.is_readable)
    return await by_polling(conn, left)


WAYS: list[Callable[[Conn, int], Awaitable[bytes | bytearray]]] = [
    by_some,
    by_a_few,
    by_buffer,
    by_count,
    by_polling,
    when_readable,
]


@pytest.mark.parametrize("seed", range(3))
async def test_each_way_to_receive_goes_on_from_any_other(
    engine: Engine, kind: str, seed: int
) -> None:
    """Reading pauses and goes on, by the reactor or by whoever receives; bursts end where
    a receive has taken exactly what was there, or less, or find it waiting."""
    random = Random(seed)
    size = 6_000_000
    data = content(seed, size)
    got = bytearray()

    async def peer_sends(sock: Any) -> None:
        at = 0
        while at < size:
            end = min(size, at + random.choice([1, 1000, 65_536, 131_072, 300_000]))
            await send(sock, data[at:end])
            at = end
            if random.random() < 0.5:
                # Not before what was sent is received, so that the next is an edge.
                await until(lambda: len(got) >= at or random.random() < 0.1)  # noqa: B023

    async with conn_and_peer(engine, kind) as (conn, sock):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer_sends, sock)
            while len(got) < size:
                receive = random.choice(WAYS)
                # To ask for more than the peer sends before it waits would be to hang.
                got += await (by_some if receive is by_count else receive)(conn, size - len(got))
        assert got == data
        sock.shutdown(socket.SHUT_WR)
        assert await conn.receive_some() == b""


async def test_an_error_that_a_receive_finds_by_itself_is_not_an_end(engine: Engine) -> None:
    """A reset throws away what was not received, and is told to whoever asks first."""
    for _ in range(20):
        async with conn_and_peer(engine, "tcp") as (conn, sock):
            sent = 0
            while conn.statistics().buffered_inbound < DEFAULT.inbound:
                sent += fill(sock._sock)
                await trio.lowlevel.checkpoint()
            sent += fill(sock._sock)
            got = len(await conn.receive_some())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
            with pytest.raises(trio.BrokenResourceError) as raised:
                while data := await conn.receive_some():
                    got += len(data)
            assert isinstance(raised.value.__cause__, ConnectionResetError)
            assert got <= sent


async def test_bytes_that_are_left_to_the_handler_have_come(engine: Engine, kind: str) -> None:
    """They are in the socket until it receives again, and its connection is not idle."""
    buffers = ConnOptions(send_buffer=1 << 20, receive_buffer=1 << 20)
    async with conn_and_peer(engine, kind, options=buffers) as (conn, sock):
        await send(sock, bytes(131_072))
        await until(lambda: conn.statistics().buffered_inbound == DEFAULT.inbound)
        got = 0
        while got < 131_072:
            got += len(await conn.receive_some())
        for _ in range(3):
            before = last_moved(conn)
            await until(lambda: conn.statistics().uptime > before + 0.005)  # noqa: B023
            await send(sock, b"x")
            await until(lambda: last_moved(conn) > before + 0.001)  # noqa: B023


def last_moved(conn: Conn) -> float:
    """Seconds from the connection's begin until bytes moved last."""
    now = conn.statistics()
    return now.uptime - now.idle_time
