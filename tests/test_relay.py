"""Relays: what one connection receives is sent on another one, by their reactors."""

from __future__ import annotations

import errno
import random
import signal
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any

import pytest
import trio
from helpers import (
    SMALL,
    conn_and_peer,
    content,
    descriptors,
    few_descriptors,
    plain_pair,
    read,
    read_all,
    send,
    until,
)
from trio.testing import MockClock, memory_stream_pair

from trio_wknet import (
    Conn,
    ConnOptions,
    Engine,
    FixedLength,
    Limits,
    RelayBroken,
    RelayResult,
    open_engine,
    relay,
)
from trio_wknet._tls_conn import TLSConn

# Windows in which messages of bulk arrive as a whole.
PIPED = ConnOptions(send_buffer=100_000, receive_buffer=100_000)
RESOLUTION = 0.02  # seconds: of the time that a byte is noted with
MUCH = 1_500_000  # bytes; more than kernels and pipes hold on the way


class Ends:
    """Two connections that are to be relayed, their peers, and the relay."""

    def __init__(self, nursery: trio.Nursery, a: Conn, b: Conn, left: Any, right: Any) -> None:
        self.nursery, self.a, self.b, self.left, self.right = nursery, a, b, left, right
        self.scope = trio.CancelScope()
        self.result: RelayResult | None = None
        self.failure: Exception | None = None
        self.over = trio.Event()

    async def relay(self, **options: Any) -> None:
        try:
            with self.scope:
                self.result = await relay(self.a, self.b, **options)
        except Exception as exc:
            self.failure = exc
        finally:
            self.over.set()

    def start(self, **options: Any) -> None:
        self.nursery.start_soon(partial(self.relay, **options))

    async def broken(self) -> RelayBroken:
        await self.over.wait()
        assert isinstance(self.failure, RelayBroken)
        return self.failure


@asynccontextmanager
async def ends(
    engine: Engine,
    kind: str = "tcp",
    *,
    other: Engine | None = None,
    options: ConnOptions | None = None,
    limits: Limits | None = None,
) -> AsyncIterator[Ends]:
    how: dict[str, Any] = {"options": options}
    if limits is not None:
        how["limits"] = limits
    async with (
        conn_and_peer(engine, kind, **how) as (a, left),
        conn_and_peer(other or engine, kind, **how) as (b, right),
        trio.open_nursery() as nursery,
    ):
        yield Ends(nursery, a, b, left, right)
        nursery.cancel_scope.cancel()


async def in_pieces(peer: Any, data: bytes, seed: object) -> None:
    """Send with sizes from 1 byte to 100 000, and then the end."""
    draw = random.Random(repr(seed))
    at = 0
    while at < len(data):
        size = draw.choice((1, 50, 512, 5000, 32768, 65536, 100_000))
        await send(peer, data[at : at + size])
        at += size
    peer.shutdown(socket.SHUT_WR)


async def both_ways(it: Ends, size: int = MUCH) -> None:
    """Random content both ways at once, every byte checked, and both ends."""
    there, back = content("there", size), content("back", size)
    got: dict[str, bytes] = {}

    async def collect(name: str, peer: Any) -> None:
        got[name] = await read_all(peer)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_pieces, it.left, there, 1)
        nursery.start_soon(in_pieces, it.right, back, 2)
        nursery.start_soon(collect, "right", it.right)
        nursery.start_soon(collect, "left", it.left)
    assert got["right"] == there
    assert got["left"] == back
    await it.over.wait()
    assert it.failure is None
    assert it.result == RelayResult(a_to_b=size, b_to_a=size)


async def test_random_content_both_ways(engine: Engine, kind: str) -> None:
    async with ends(engine, kind) as it:
        it.start()
        await both_ways(it)
        for conn in (it.a, it.b):
            assert conn.statistics().bytes_received == MUCH
            assert conn.statistics().bytes_sent == MUCH
            assert conn.statistics().buffered_outbound == 0


@pytest.mark.parametrize("buffer", [1, 5000, 1 << 20])
async def test_any_buffer(engine: Engine, buffer: int) -> None:
    async with ends(engine) as it:
        it.start(buffer=buffer)
        await both_ways(it, 2000 if buffer == 1 else 400_000)


async def test_small_kernel_buffers(engine: Engine) -> None:
    """The pipe's EAGAIN and the socket's: in small windows both are met often."""
    async with ends(engine, options=SMALL) as it:
        it.start()
        await both_ways(it, 300_000)


async def test_a_pipe_full_of_small_packets(engine: Engine) -> None:
    """A pipe is full with few bytes in it, if each packet takes one of its places. What is behind
    that is read once there is room, though no more comes that would tell."""
    async with ends(engine, options=PIPED) as it:
        it.start()
        sent = bytearray()

        async def put(size: int) -> bool:
            """Send, and say whether all of it is taken soon."""
            data = content(len(sent), size)
            await send(it.left, data)
            sent.extend(data)
            with trio.move_on_after(0.1):
                await until(lambda: it.a.statistics().bytes_received == total + len(sent))
            return it.a.statistics().bytes_received == total + len(sent)

        total = await until_spliced(it)
        while held(it) == 0:
            await put(32768)
            await trio.sleep(0.02)  # for as long as the socket behind it takes some
        assert it.b.statistics().buffered_outbound == 0
        packets = 0
        while await put(100):
            packets += 1
        assert held(it) < 60_000
        assert packets < 1000
        with trio.fail_after(5):
            assert await read(it.right, len(sent)) == sent
            it.left.shutdown(socket.SHUT_WR)
            it.right.shutdown(socket.SHUT_WR)
            await it.over.wait()
        assert it.result == RelayResult(a_to_b=total + len(sent), b_to_a=0)


async def test_bulk_into_a_small_window(engine: Engine) -> None:
    """The end is known while the pipe holds bytes, and is sent behind them."""
    before, data = pipes(), content("window", 250_000)
    async with (
        conn_and_peer(engine, options=PIPED) as (a, left),
        conn_and_peer(engine, options=SMALL) as (b, right),
        trio.open_nursery() as nursery,
    ):
        it = Ends(nursery, a, b, left, right)
        it.start()
        with trio.fail_after(5):
            await send(left, data[:150_000])
            await read_slowly(right, data[:100_000])
            await send(left, data[150_000:200_000])
            await read_slowly(right, data[100_000:150_000])
            await send(left, data[200_000:250_000])
            left.shutdown(socket.SHUT_WR)
            await read_slowly(right, data[150_000:250_000])
            assert await right.recv(1) == b""
            assert pipes() == before + 2
            right.shutdown(socket.SHUT_WR)
            await it.over.wait()
        assert it.result == RelayResult(a_to_b=250_000, b_to_a=0)


async def read_slowly(peer: Any, data: bytes) -> None:
    for at in range(0, len(data), 2500):
        assert await read(peer, 2500) == data[at : at + 2500]
        await trio.lowlevel.checkpoint()


async def until_spliced(it: Ends) -> int:
    """Relay until a pipe is used and is empty; how many bytes that took."""
    before, total = pipes(), 0
    while pipes() == before:
        await send(it.left, bytes(100_000))
        assert await read(it.right, 100_000) == bytes(100_000)
        total += 100_000
    return total


def held(it: Ends) -> int:
    """Bytes in the pipe from `a` to `b`."""
    a, b = it.a.statistics(), it.b.statistics()
    return a.bytes_received - b.bytes_sent - b.buffered_outbound


async def test_pings_of_one_byte(engine: Engine, kind: str) -> None:
    async with ends(engine, kind) as it:
        it.start()
        for number in range(50):
            await send(it.left, bytes([number]))
            assert await read(it.right, 1) == bytes([number])
            await send(it.right, bytes([number, 1]))
            assert await read(it.left, 2) == bytes([number, 1])


async def test_small_between_large(engine: Engine, kind: str) -> None:
    """Copied and spliced in turn, and in order."""
    async with ends(engine, kind) as it:
        it.start()
        for number in range(6):
            for size in (65536, 1, 65536, 512):
                data = content((number, size), size)
                await send(it.left, data)
                assert await read(it.right, size) == data


async def test_what_came_before(engine: Engine, kind: str) -> None:
    """What both have received and not taken goes first; and so does what is to be sent."""
    async with ends(engine, kind) as it:
        early = {it.left: content("left", 30_000), it.right: content("right", 30_000)}
        for peer, data in early.items():
            await send(peer, data)
        await until(lambda: it.a.statistics().buffered_inbound == 30_000)
        await until(lambda: it.b.statistics().buffered_inbound == 30_000)
        assert await it.a.receive_exactly(1000) == early[it.left][:1000]
        it.b.send_nowait(b"queued before")
        it.start()
        await send(it.left, b"later")
        assert await read(it.right, 13) == b"queued before"
        assert await read(it.right, 29_005) == early[it.left][1000:] + b"later"
        assert await read(it.left, 30_000) == early[it.right]
        it.left.shutdown(socket.SHUT_WR)
        it.right.shutdown(socket.SHUT_WR)
        await it.over.wait()
        assert it.result == RelayResult(a_to_b=29_005, b_to_a=30_000)


async def test_ends_and_bytes_from_before_while_paused(engine: Engine, kind: str) -> None:
    """Reading was paused, and the peer has finished: all of it is relayed, and the end."""
    limits = Limits(inbound=4096)
    async with ends(engine, kind, limits=limits) as it:
        data = content("much", 50_000)
        await send(it.left, data)
        it.left.shutdown(socket.SHUT_WR)
        await until(lambda: it.a.statistics().buffered_inbound == 4096)
        it.start()
        assert await read_all(it.right) == data
        await send(it.right, b"answer")
        assert await read(it.left, 6) == b"answer"
        it.right.shutdown(socket.SHUT_WR)
        await it.over.wait()
        assert it.result == RelayResult(a_to_b=50_000, b_to_a=6)


async def test_queued_bytes_and_broadcasts_go_first(engine: Engine) -> None:
    async with ends(engine, options=SMALL) as it:
        group = engine.group()
        group.add(it.b)
        ahead = fill_with(it.b)
        group.broadcast_nowait(b"broadcast")
        await send(it.left, b"relayed")
        it.start()
        assert await read(it.right, len(ahead) + 16) == ahead + b"broadcast" + b"relayed"


def fill_with(conn: Conn) -> bytes:
    """Send until some of it is queued."""
    sent = bytearray()
    while conn.statistics().buffered_outbound < 20_000:
        data = content(len(sent), 5000)
        conn.send_nowait(data)
        sent += data
    return bytes(sent)


async def test_half_closed_first(engine: Engine, kind: str) -> None:
    """The end of one direction is carried over, and the other direction goes on."""
    async with ends(engine, kind) as it:
        it.start()
        await send(it.left, b"question")
        it.left.shutdown(socket.SHUT_WR)
        assert await read_all(it.right) == b"question"
        for number in range(3):
            await send(it.right, b"%d" % number)
            assert await read(it.left, 1) == b"%d" % number
        assert not it.over.is_set()
        assert it.a.close_reason == "eof"
        it.right.shutdown(socket.SHUT_WR)
        assert await read_all(it.left) == b""
        await it.over.wait()
        assert it.result == RelayResult(a_to_b=8, b_to_a=3)
        with pytest.raises(trio.ClosedResourceError, match="EOF"):
            await it.b.send_all(b"x")
        await it.b.send_eof()  # idempotent
        assert await it.a.receive_some() == b""


def reset(peer: Any) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


async def test_a_side_is_reset(engine: Engine) -> None:
    """Whichever it is: what it sent before arrives, and the relay says which one it was."""
    for name in ("a", "b"):
        async with ends(engine) as it:
            peer, other = (it.left, it.right) if name == "a" else (it.right, it.left)
            it.start()
            await send(peer, b"before")
            assert await read(other, 6) == b"before"
            reset(peer)
            failure = await it.broken()
            assert failure.side == name
            assert isinstance(failure.__cause__, OSError)
            assert failure.__cause__.errno == errno.ECONNRESET
            assert failure.result == RelayResult(a_to_b=6 * (name == "a"), b_to_a=6 * (name == "b"))
            assert (it.a if name == "a" else it.b).close_reason == "reset"
            # The other one can be used.
            healthy = it.b if name == "a" else it.a
            await healthy.send_all(b"bye")
            assert await read(other, 3) == b"bye"
            await send(other, b"yes")
            assert await healthy.receive_exactly(3) == b"yes"


async def test_no_signal_for_a_broken_connection(engine: Engine, kind: str) -> None:
    """splice has no flag against SIGPIPE, which ends a program that has not ignored it."""
    signals: list[int] = []
    before = signal.signal(signal.SIGPIPE, lambda number, _: signals.append(number))
    try:
        for _ in range(5):
            async with ends(engine, kind, options=PIPED) as it:
                it.start()
                await send(it.left, bytes(100_000))
                assert await read(it.right, 100_000) == bytes(100_000)
                it.right.close()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send, it.left, bytes(MUCH))
                    assert (await it.broken()).side == "b"
                    nursery.cancel_scope.cancel()
    finally:
        signal.signal(signal.SIGPIPE, before)
    assert signals == []


async def test_reset_after_its_end(engine: Engine) -> None:
    """It has finished sending, so it is not read any more. That it is gone is noticed though
    nothing is sent to it."""
    async with ends(engine) as it:
        it.start()
        it.left.shutdown(socket.SHUT_WR)
        assert await read_all(it.right) == b""
        reset(it.left)
        assert (await it.broken()).side == "a"


async def test_an_answer_before_a_reset(engine: Engine) -> None:
    """A peer answers, and closes with unread input, which resets the connection: its answer is
    relayed."""
    async with ends(engine) as it:
        await send(it.left, b"request")
        it.start()
        await until(lambda: it.b.statistics().bytes_sent == 7)
        await send(it.right, b"too large")
        it.right.close()  # with unread input
        assert await read(it.left, 9) == b"too large"
        assert (await it.broken()).side == "b"


async def test_a_peer_that_does_not_read(engine: Engine, kind: str) -> None:
    """It slows the other one down, and memory is bounded."""
    async with ends(engine, kind, options=SMALL) as it:
        it.start(buffer=20_000)
        data = content("stalled", 4_000_000)
        sent = 0

        async def pour() -> None:
            nonlocal sent
            while sent < len(data):
                sent += await it.left.send(data[sent : sent + 65536])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pour)
            seen = -1
            while seen != sent:
                seen = sent
                await trio.sleep(0.05)
            assert sent < len(data)
            taken = it.a.statistics().bytes_received - it.b.statistics().bytes_sent
            assert taken <= 20_000
            assert it.a.statistics().buffered_inbound == 0
            assert it.b.statistics().buffered_outbound <= 20_000
            # The other direction is not stalled.
            await send(it.right, b"back")
            assert await read(it.left, 4) == b"back"
            assert await read(it.right, len(data)) == data


async def test_closed_by_another_task(engine: Engine, kind: str) -> None:
    for name in ("a", "b"):
        async with ends(engine, kind) as it:
            it.start()
            await send(it.left, b"x")
            assert await read(it.right, 1) == b"x"
            await (it.a if name == "a" else it.b).aclose()
            await it.over.wait()
            assert isinstance(it.failure, trio.ClosedResourceError)
            assert f"{name} was closed" in str(it.failure)
            assert await read_all(it.left if name == "a" else it.right) == b""


async def test_both_closed(engine: Engine) -> None:
    async with ends(engine) as it:
        it.start()
        await send(it.left, b"x")
        assert await read(it.right, 1) == b"x"
        it.a.close_nowait()
        it.b.abort()
        await it.over.wait()
        assert isinstance(it.failure, trio.ClosedResourceError)


async def test_closed_with_bytes_on_the_way(engine: Engine, kind: str) -> None:
    """What was taken from one and meant for the other, which is closed gracefully, is sent."""
    async with ends(engine, kind, options=SMALL) as it:
        data = content("way", 60_000)
        it.start()
        sent = await pour(it, data, 0, piece=5000, seconds=0.05)
        it.b.close_nowait()
        await it.over.wait()
        it.left.shutdown(socket.SHUT_WR)
        arrived = await read_all(it.right)
        assert arrived + await read_all(it.a) == data[:sent]


async def pour(it: Ends, data: bytes, sent: int, *, piece: int, seconds: float) -> int:
    """Send what is left of it, in pieces, for a time. Returns how much of it is sent then."""
    with trio.move_on_after(seconds):
        while sent < len(data):
            sent += await it.left.send(data[sent : sent + piece])
    return sent


async def go_on(it: Ends, sent: int, data: bytes) -> None:
    """After a relay was cancelled: nothing is lost, in either direction, and both go on."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, it.left, data[sent:])
        nursery.start_soon(pass_on, it)
        assert await read(it.right, len(data)) == data
        nursery.cancel_scope.cancel()
    await it.b.send_all(b"more")
    assert await read(it.right, 4) == b"more"
    await send(it.right, b"back")
    assert await it.b.receive_exactly(4) == b"back"
    with trio.move_on_after(0):
        await relay(it.a, it.b)
    await it.a.send_all(b"and on")
    assert await read(it.left, 6) == b"and on"


async def pass_on(it: Ends) -> None:
    """What the relay has not taken."""
    async for data in it.a:
        await it.b.send_all(data)


@pytest.mark.parametrize("moment", ["at once", "under way", "full"])
async def test_cancelled(engine: Engine, kind: str, moment: str) -> None:
    data = content("cancelled", 2_000_000)
    async with ends(engine, kind, options=SMALL) as it:
        it.start(buffer=50_000)
        sent = 0

        async def pour() -> None:
            nonlocal sent
            while sent < len(data):
                sent += await it.left.send(data[sent : sent + 65536])

        with trio.CancelScope() as pouring:
            async with trio.open_nursery() as nursery:
                if moment != "at once":
                    nursery.start_soon(pour)
                if moment == "under way":
                    await until(lambda: it.b.statistics().bytes_sent > 1000)
                elif moment == "full":
                    seen = -1
                    while seen != sent:
                        seen = sent
                        await trio.sleep(0.02)
                it.scope.cancel()
                await it.over.wait()
                pouring.cancel()
        assert it.scope.cancelled_caught
        await go_on(it, sent, data)


async def test_cancelled_with_bytes_in_the_pipe(engine: Engine) -> None:
    """What a pipe holds is left to be sent."""
    data = content("pipe", 4_000_000)
    async with ends(engine, options=PIPED) as it:
        before = pipes()
        it.start()
        sent = 0
        while pipes() == before:
            sent += await it.left.send(data[sent : sent + 100_000])
            got = await it.right.recv(1 << 20)
            data, sent = data[len(got) :], sent - len(got)
        sent = await pour(it, data, sent, piece=65536, seconds=0.3)
        it.scope.cancel()
        await it.over.wait()
        await go_on(it, sent, data)


async def test_cancelled_before_and_again(engine: Engine) -> None:
    async with ends(engine) as it:
        with trio.CancelScope() as scope:
            scope.cancel()
            await relay(it.a, it.b)
        assert scope.cancelled_caught
        for number in range(20):  # begun and stopped while bytes move
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(relay, it.a, it.b)
                    await send(it.left, bytes([number]))
                    if number % 3:
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
        it.start()
        assert await read(it.right, 20) == bytes(range(20))


async def test_it_owns_both(engine: Engine) -> None:
    async with ends(engine) as it:
        it.start()
        await send(it.left, b"x")
        assert await read(it.right, 1) == b"x"
        for conn in (it.a, it.b):
            for call in (
                conn.receive_some,
                lambda conn=conn: conn.send_all(b"x"),
                conn.send_eof,
                conn.flush,
                conn.detach,
                conn.wait_send_all_might_not_block,
            ):
                with pytest.raises(trio.BusyResourceError):
                    await call()
            with pytest.raises(trio.BusyResourceError):
                conn.send_nowait(b"x")
            with pytest.raises(trio.BusyResourceError):
                conn.send_nowait(b"x" * 10)
            with pytest.raises(trio.BusyResourceError):
                conn.receive_nowait()
            with pytest.raises(trio.BusyResourceError):
                conn.peek()
            with pytest.raises(trio.BusyResourceError):
                conn.framed(FixedLength(1))
        with pytest.raises(trio.BusyResourceError):
            await relay(it.b, it.a)
        it.left.close()
        it.right.close()
        await it.over.wait()


async def test_busy_when_it_begins(engine: Engine) -> None:
    async with ends(engine) as it:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.b.receive_some)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await relay(it.a, it.b)
            nursery.cancel_scope.cancel()
        channel = it.a.framed(FixedLength(1))
        with pytest.raises(trio.BusyResourceError):
            await relay(it.a, it.b)
        channel.unframe()
        await send(it.left, b"x")
        await until(lambda: it.a.statistics().buffered_inbound)
        with it.a.peek(), pytest.raises(BufferError):
            await relay(it.a, it.b)
        it.a.close_nowait()
        with pytest.raises(trio.ClosedResourceError):
            await relay(it.b, it.a)


async def test_bad_arguments(engine: Engine) -> None:
    async with ends(engine) as it:
        with pytest.raises(ValueError, match="not the same one"):
            await relay(it.a, it.a)
        with pytest.raises(TypeError, match=r"^b must be"):
            await relay(it.a, 1)  # type: ignore[arg-type]
        for bad in (0, -1, 1 << 31):
            with pytest.raises(ValueError, match=r"^buffer must be"):
                await relay(it.a, it.b, buffer=bad)
        for worse in ("1", 1.5, True, None):
            with pytest.raises(TypeError, match=r"^buffer must be"):
                await relay(it.a, it.b, buffer=worse)  # type: ignore[arg-type]


async def test_another_thread(engine: Engine) -> None:
    async with ends(engine) as it:

        def call() -> None:
            with pytest.raises(RuntimeError, match="another thread"):
                trio.run(relay, it.a, it.b)

        await trio.to_thread.run_sync(call)


async def test_with_tls_or_callbacks(engine: Engine) -> None:
    async with ends(engine) as it:
        it.a.__class__ = TLSConn  # as start_tls does
        with pytest.raises(trio.BusyResourceError, match="TLS"):
            await relay(it.b, it.a)
        it.a.__class__ = Conn


async def test_relayed_bytes_are_not_idle(autojump_clock: MockClock) -> None:
    """Exactly, by virtual time: bytes that a relay moves count for either side."""
    async with open_engine() as engine, ends(engine, "unix") as it:
        it.a.idle_timeout = 0.3
        it.start()
        with it.b.idle_scope(0.3) as scope:
            for _ in range(10):
                await send(it.left, b"x")
                assert await read(it.right, 1) == b"x"
                await trio.sleep(0.2)
        assert not scope.cancelled_caught
        assert not it.over.is_set()
        start = trio.current_time()
        await it.over.wait()
        assert 0.05 <= trio.current_time() - start <= 0.15
        assert it.a.close_reason == "idle"


@pytest.mark.parametrize("size", [1, 100_000])
async def test_relayed_bytes_are_noted(engine: Engine, size: int) -> None:
    """When the last byte moved, by whichever reactor, copied or spliced."""
    async with ends(engine, options=PIPED) as it:
        it.start()
        if size > 1:
            await until_spliced(it)
        await trio.sleep(2 * RESOLUTION)
        moved = trio.current_time()

        def late() -> float:
            """By how much the noted times are before it."""
            passed = trio.current_time() - moved
            return max(conn.statistics().idle_time for conn in (it.a, it.b)) - passed

        assert late() > RESOLUTION
        await send(it.left, bytes(size))
        assert await read(it.right, size) == bytes(size)
        await until(lambda: late() <= RESOLUTION)


async def test_a_silent_relay_times_out(engine: Engine) -> None:
    async with ends(engine) as it:
        it.a.idle_timeout = 0.1
        it.start()
        with it.b.idle_scope(write=0.05) as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught
        await it.over.wait()
        assert isinstance(it.failure, trio.ClosedResourceError)
        assert it.a.close_reason == "idle"


async def test_bulk_is_not_idle(engine: Engine) -> None:
    async with ends(engine) as it:
        it.start()
        before = it.b.statistics()
        await send(it.left, bytes(65536))
        await read(it.right, 65536)
        await send(it.left, bytes(65536))
        await read(it.right, 65536)
        await until(lambda: it.b.statistics().bytes_sent == before.bytes_sent + 131072)
        assert it.b.statistics().idle_time < 10
        with it.b.cancel_on_disconnect() as scope:
            it.right.close()
            await trio.sleep_forever()
        assert scope.cancelled_caught


def adopted(engine: Engine, pair: Any) -> Conn:
    conn = engine.adopt(pair[0])
    assert isinstance(conn, Conn)
    return conn


async def test_the_engine_ends(reactors: int, nothing_left: None) -> None:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            with plain_peers() as (left, right):
                async with open_engine(reactors) as engine:
                    it = Ends(nursery, adopted(engine, left), adopted(engine, right), None, None)
                    it.start()
                    left[1].sendall(content("end", 100_000))
                    await until(lambda: it.b.statistics().bytes_sent)
                await it.over.wait()
                assert isinstance(it.failure, trio.ClosedResourceError)


@contextmanager
def plain_peers() -> Iterator[Any]:
    pairs = plain_pair(), plain_pair()
    yield pairs
    for _, peer in pairs:
        peer.close()


def pipes() -> int:
    return sum(what.startswith("pipe:") for what in descriptors().values())


async def test_pipes_are_opened_for_bulk_and_closed(engine: Engine) -> None:
    before = pipes()
    async with ends(engine) as it:
        it.start()
        await send(it.left, b"small")
        assert await read(it.right, 5) == b"small"
        assert pipes() == before
        for _ in range(3):
            await send(it.left, bytes(200_000))
            await read(it.right, 200_000)
        assert pipes() == before + 2
        it.scope.cancel()
        await it.over.wait()
        assert pipes() == before


async def test_without_descriptors(engine: Engine) -> None:
    """No pipe can be opened: everything is copied."""
    async with ends(engine) as it:
        with few_descriptors(0):
            it.start()
            await both_ways(it, 500_000)


FORMS = [(0, 1), (1, 0), (2, 2), (0, 0)]


@pytest.mark.parametrize("forms", FORMS)
async def test_of_two_engines(forms: tuple[int, int], nothing_left: None) -> None:
    with trio.fail_after(20):
        async with open_engine(forms[0]) as one, open_engine(forms[1]) as two:
            async with ends(one, other=two) as it:
                it.start()
                await both_ways(it)
            async with ends(one, other=two, options=SMALL) as it:
                it.start(buffer=5000)
                data = content("two", 1_000_000)
                sent = await pour(it, data, 0, piece=5000, seconds=0.05)
                it.scope.cancel()
                await it.over.wait()
                await go_on(it, sent, data)


async def test_an_engine_of_two_ends(nothing_left: None) -> None:
    with trio.fail_after(20):
        async with open_engine(1) as one, trio.open_nursery() as nursery:
            with plain_peers() as (left, right):
                a = adopted(one, left)
                async with open_engine(1) as two:
                    it = Ends(nursery, a, adopted(two, right), None, None)
                    it.start()
                    left[1].sendall(b"x")
                    await until(lambda: it.b.statistics().bytes_sent)
                await it.over.wait()
                assert isinstance(it.failure, trio.ClosedResourceError)
                await a.send_all(b"still there")
                a.abort()


# --- other streams ----------------------------------------------------------------------


async def test_other_streams(engine: Engine) -> None:
    """A Conn and a stream of Trio's, by two tasks."""
    async with conn_and_peer(engine) as (a, left), conn_and_peer(engine) as (b, right):
        ours, theirs = memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, a, ours)
            await send(left, b"question")
            assert await read(theirs, 8) == b"question"
            await theirs.send_all(b"answer")
            assert await read(left, 6) == b"answer"
            await theirs.send_eof()
            assert await read_all(left) == b""
            left.shutdown(socket.SHUT_WR)
            assert await read_all(theirs) == b""
        ours, theirs = memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_broken, b, ours)
            await send(right, b"x")
            assert await read(theirs, 1) == b"x"
            reset(right)


async def expect_broken(b: Conn, ours: trio.abc.Stream) -> None:
    with pytest.raises(RelayBroken) as caught:
        await relay(ours, b)
    assert caught.value.side == "b"
    assert caught.value.result == RelayResult(a_to_b=0, b_to_a=1)


class Whole(trio.abc.Stream):
    """A stream that cannot end one direction alone, as one with TLS."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream

    async def send_all(self, data: Any) -> None:
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> Any:
        return await self.stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.stream.aclose()


async def test_streams_without_half_close(engine: Engine) -> None:
    """The end of one direction ends the relay."""
    ours, theirs = memory_stream_pair()
    async with conn_and_peer(engine) as (a, left), trio.open_nursery() as nursery:
        nursery.start_soon(relay, a, Whole(ours))
        await send(left, b"x")
        assert await read(theirs, 1) == b"x"
        left.shutdown(socket.SHUT_WR)


def test_the_exception_can_be_pickled() -> None:
    import pickle

    failure = RelayBroken("b", RelayResult(a_to_b=1, b_to_a=2))
    copy = pickle.loads(pickle.dumps(failure))
    assert (copy.side, copy.result, str(copy)) == (failure.side, failure.result, str(failure))


# --- stress ------------------------------------------------------------------------------


async def test_churn(engine: Engine) -> None:
    """Relays that begin, are cancelled, broken and closed at any moment, with bytes under way."""
    draw = random.Random(7)
    for _ in range(25):
        async with ends(engine, options=draw.choice((None, SMALL))) as it:
            it.start(buffer=draw.choice((3000, 65536)))
            size = draw.choice((10, 100_000, 400_000))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ignoring, send, it.left, bytes(size))
                nursery.start_soon(ignoring, send, it.right, bytes(size))
                nursery.start_soon(ignoring, read, it.right, size)
                for _ in range(draw.randrange(30)):
                    await trio.lowlevel.checkpoint()
                await trio.sleep(draw.random() / 500)
                draw.choice(
                    (
                        it.scope.cancel,
                        it.a.close_nowait,
                        it.b.abort,
                        lambda: reset(it.left),
                        lambda: reset(it.right),
                        partial(abort_both, it),
                    )
                )()
                await trio.sleep(0.001)
                nursery.cancel_scope.cancel()
            it.scope.cancel()
            await it.over.wait()


def abort_both(it: Ends) -> None:
    it.a.abort()
    it.b.abort()


async def ignoring(call: Callable[..., Awaitable[object]], *args: Any) -> None:
    with suppress(OSError, EOFError, trio.ClosedResourceError):
        await call(*args)
