"""Sending: order, back-pressure, bounds, and what is known after a failure."""

from __future__ import annotations

import random
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.lowlevel
from helpers import (
    PATIENCE,
    SMALL,
    clog,
    conn_and_peer,
    content,
    plain_pair,
    read,
    read_all,
    two_conns,
    until,
)
from trio.testing import wait_all_tasks_blocked

from trio_wknet import Conn, ConnOptions, Engine, Limits, open_engine

Peer = tuple[Conn, Any]


def reset(sock: Any) -> None:
    """Close so that the other end gets a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


# -- send_all ----------------------------------------------------------------------


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
async def test_send_all_under_back_pressure(engine: Engine, kind: str, make: Any) -> None:
    data = content("pressure", 600_000)
    async with two_conns(engine, kind, limits=Limits(inbound=5000), options=SMALL) as (one, other):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.send_all, make(data))
            assert await read(other, len(data)) == data
        statistics = one.statistics()
        assert (statistics.bytes_sent, statistics.buffered_outbound) == (len(data), 0)
        assert other.statistics().bytes_received == len(data)


async def test_send_all_returns_once_the_kernel_owns_the_bytes(peer: Peer) -> None:
    conn, sock = peer
    await conn.send_all(b"bye")
    conn._drop()
    assert await read_all(sock) == b"bye"


async def test_a_bytearray_may_be_resized_after_sending(peer: Peer) -> None:
    conn, sock = peer
    data = bytearray(b"abc")
    await conn.send_all(data)
    data += b"d"
    conn.send_nowait(data)
    data.clear()
    await conn.flush()
    assert await read(sock, 7) == b"abcabcd"


async def test_a_bytearray_may_be_resized_after_sending_was_cancelled(engine: Engine) -> None:
    async with conn_and_peer(engine, options=SMALL) as (conn, _):
        data = bytearray(1_000_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.send_all, data)
            await wait_all_tasks_blocked()
            with pytest.raises(BufferError):
                data.append(0)
            nursery.cancel_scope.cancel()
        data.append(0)


async def test_a_cancelled_send_tells_how_far_it_came(engine: Engine, kind: str) -> None:
    """Pitfall 17."""
    async with conn_and_peer(engine, kind, options=SMALL) as (conn, sock):
        data = content("cancelled", 3_000_000)
        received = bytearray()
        sent = 0
        with trio.move_on_after(0):
            await conn.send_all(data)
        assert conn.statistics().bytes_sent == 0
        for _ in range(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(conn.send_all, data[sent:])
                received += await read(sock, 20_000)
                nursery.cancel_scope.cancel()
            sent = conn.statistics().bytes_sent
            assert len(received) <= sent < len(data)
        await conn.aclose()
        received += await read_all(sock)
        assert received == data[:sent]


async def test_wait_send_all_might_not_block(engine: Engine, kind: str) -> None:
    async with conn_and_peer(engine, kind, options=SMALL) as (conn, sock):
        await conn.wait_send_all_might_not_block()
        await clog(conn)
        sent = conn.statistics().bytes_sent
        woken = []

        async def wait() -> None:
            await conn.wait_send_all_might_not_block()
            woken.append(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            assert not woken
            await read(sock, sent)


# -- send_nowait, flush --------------------------------------------------------------


async def test_order_of_the_ways_to_send(engine: Engine, kind: str) -> None:
    """What send_nowait queued is never overtaken."""
    async with two_conns(engine, kind, options=SMALL) as (one, other):
        pieces = [content(n, n * 37 % 9000) for n in range(300)]

        async def write() -> None:
            for n, piece in enumerate(pieces):
                if n % 3 == 0:
                    await one.send_all(piece)
                else:
                    one.send_nowait(piece)
                if n % 7 == 0:
                    await one.flush()
                    assert one.statistics().buffered_outbound == 0
            await one.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            assert await read_all(other) == b"".join(pieces)


async def test_send_nowait_is_bounded_and_refuses_whole(engine: Engine, kind: str) -> None:
    async with conn_and_peer(engine, kind, limits=Limits(outbound=10_000), options=SMALL) as (
        conn,
        sock,
    ):
        accepted: list[bytes] = []
        while True:
            piece = content(len(accepted), 777)
            try:
                conn.send_nowait(piece)
            except trio.WouldBlock:
                # TCP may still be moving what the kernel took.
                if conn.statistics().buffered_outbound > 9223:
                    break
                await trio.lowlevel.checkpoint()
                continue
            accepted.append(piece)
        assert conn.statistics().buffered_outbound <= 10_000
        await conn.aclose()
        assert await read_all(sock) == b"".join(accepted)


async def test_send_nowait_of_more_than_it_may_hold(engine: Engine) -> None:
    async with conn_and_peer(engine, limits=Limits(outbound=100)) as (conn, sock):
        with pytest.raises(ValueError, match=r"101 bytes.*limits\.outbound \(100\)"):
            conn.send_nowait(bytes(101))
        conn.send_nowait(b"x" * 100)
        await conn.send_all(b"y" * 101)
        assert await read(sock, 201) == b"x" * 100 + b"y" * 101


async def test_flush_waits_until_the_ring_is_empty(engine: Engine, kind: str) -> None:
    async with conn_and_peer(engine, kind, options=SMALL) as (conn, sock):
        data = content("flush", 900_000)
        conn.send_nowait(data)
        assert conn.statistics().buffered_outbound > 0
        flushed = []

        async def flush() -> None:
            await conn.flush()
            flushed.append(conn.statistics().buffered_outbound)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flush)
            await wait_all_tasks_blocked()
            assert not flushed
            assert await read(sock, len(data)) == data
        assert flushed == [0]
        assert conn.statistics().bytes_sent == len(data)


async def test_cancelled_flush_and_send_leave_the_ring_alone(engine: Engine, kind: str) -> None:
    async with conn_and_peer(engine, kind, options=SMALL) as (conn, sock):
        data = content("ring", 900_000)
        conn.send_nowait(data)
        for call in (conn.flush, lambda: conn.send_all(b"never"), conn.send_eof):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call)
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        conn.send_nowait(b"end")
        assert await read(sock, len(data) + 3) == data + b"end"


async def test_no_byte_is_stranded(engine: Engine, kind: str, long: bool) -> None:
    """Bytes are added again and again while the reactor is about to find the ring empty:
    a process reads as fast as it can. By chance, that is; `nox -s interleavings` tries
    each order of the steps."""
    small = ConnOptions(send_buffer=32768, receive_buffer=32768)
    dice = random.Random(kind)
    ours, theirs = plain_pair(kind, small)
    with subprocess.Popen(["cat"], stdin=theirs, stdout=subprocess.DEVNULL):  # noqa: ASYNC220
        theirs.close()
        conn = engine.adopt(ours, options=small)
        assert isinstance(conn, Conn)
        end = time.monotonic() + (30 if long else 0.5)
        while time.monotonic() < end:
            try:
                for _ in range(200):
                    conn.send_nowait(bytes(dice.randrange(1, 2500)))
            except trio.WouldBlock:
                with trio.fail_after(PATIENCE):
                    await conn.flush()
            await trio.lowlevel.checkpoint()
        with trio.fail_after(PATIENCE):
            await conn.flush()
        await conn.aclose()


# -- turns -----------------------------------------------------------------------------


SENDERS: dict[str, Callable[[Conn], Any]] = {
    "send_all": lambda conn: conn.send_all(bytes(10_000_000)),
    "wait": lambda conn: conn.wait_send_all_might_not_block(),
    "send_eof": lambda conn: conn.send_eof(),
    "flush": lambda conn: conn.flush(),
    "detach": lambda conn: conn.detach(),
}


@pytest.mark.parametrize("first", ["send_all", "wait", "send_eof", "flush"])
async def test_one_sender_at_a_time(engine: Engine, first: str) -> None:
    limits = Limits(outbound=1_000_000)
    async with conn_and_peer(engine, "unix", limits=limits, options=SMALL) as (conn, _):
        if first in ("send_eof", "flush"):
            conn.send_nowait(bytes(500_000))
        elif first == "wait":
            await clog(conn)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(SENDERS[first], conn)
            await wait_all_tasks_blocked()
            for second in SENDERS.values():
                with pytest.raises(trio.BusyResourceError):
                    await second(conn)
            if first == "send_eof":
                with pytest.raises(trio.BusyResourceError):
                    conn.send_nowait(b"x")
            else:
                conn.send_nowait(b"x")
            nursery.cancel_scope.cancel()
        conn.send_nowait(b"x")


async def test_receiving_and_sending_do_not_exclude_each_other(peer: Peer) -> None:
    conn, sock = peer
    async with trio.open_nursery() as nursery:
        nursery.start_soon(conn.receive_exactly, 1)
        await wait_all_tasks_blocked()
        await conn.send_all(b"abc")
        assert await read(sock, 3) == b"abc"
        await sock.send(b"x")


# -- the end ------------------------------------------------------------------------------


async def test_after_send_eof(peer: Peer) -> None:
    conn, sock = peer
    conn.send_nowait(b"abc")
    await conn.send_eof()
    await conn.send_eof()
    assert await read_all(sock) == b"abc"
    with pytest.raises(trio.ClosedResourceError):
        await conn.send_all(b"x")
    with pytest.raises(trio.ClosedResourceError):
        conn.send_nowait(b"x")
    await sock.send(b"still heard")
    assert await conn.receive_exactly(11) == b"still heard"


async def test_a_broken_connection_stays_broken(peer: Peer) -> None:
    conn, sock = peer
    reset(sock)
    await conn.wait_closed()
    for _ in range(3):
        calls: list[Callable[[], Any]] = [lambda: conn.send_all(b"x"), conn.send_eof, conn.flush]
        for call in calls:
            with pytest.raises(trio.BrokenResourceError) as raised:
                for _ in range(3):
                    await call()
            assert isinstance(raised.value.__cause__, OSError)
        with pytest.raises(trio.BrokenResourceError) as raised:
            conn.send_nowait(b"x")
        assert isinstance(raised.value.__cause__, OSError)
    await conn.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await conn.send_all(b"x")


@pytest.mark.parametrize("call", ["send_all", "wait", "send_eof", "flush"])
async def test_a_reset_wakes_whoever_sends(engine: Engine, kind: str, call: str) -> None:
    """Pitfall 12: uvicorn's drain hung after a disconnect."""
    async with conn_and_peer(engine, kind, options=SMALL) as (conn, sock):
        if call in ("send_eof", "flush"):
            conn.send_nowait(bytes(500_000))
        elif call == "wait":
            with trio.move_on_after(0.01):
                await conn.send_all(bytes(10_000_000))

        causes: list[Any] = []

        async def use() -> None:
            try:
                await SENDERS[call](conn)
            except trio.BrokenResourceError as exc:
                causes.append(exc.__cause__)
            else:
                assert call == "wait"  # which may say so or leave it to send_all

        async with trio.open_nursery() as nursery:
            nursery.start_soon(use)
            await wait_all_tasks_blocked()
            if conn.statistics().buffered_outbound:
                # What arranged for a wake when the ring filled has had its turn.
                left = conn.statistics().buffered_outbound
                await read(sock, 60_000)
                await until(lambda: conn.statistics().buffered_outbound < left)
                await wait_all_tasks_blocked()
            reset(sock)
        assert all(isinstance(cause, OSError) for cause in causes)
        with pytest.raises(trio.BrokenResourceError):
            await conn.send_all(b"x")
        await until(lambda: conn.statistics().buffered_outbound == 0)


async def test_data_of_the_wrong_type(peer: Peer) -> None:
    conn, sock = peer
    for value in ("text", 5, None, ["x"]):
        with pytest.raises(TypeError, match="data must be contiguous and bytes-like"):
            await conn.send_all(value)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="data must be contiguous and bytes-like"):
            conn.send_nowait(value)  # type: ignore[arg-type]
    with pytest.raises((BufferError, TypeError)):
        await conn.send_all(memoryview(b"abcdef")[::2])
    await conn.send_all(b"ok")
    assert await read(sock, 2) == b"ok"


# -- corking --------------------------------------------------------------------------


async def settled(conn: Conn) -> None:
    """Behind the end of this turn of Trio's loop."""
    await trio.lowlevel.checkpoint()


async def test_what_a_turn_sends_leaves_in_two_calls(peer: Peer) -> None:
    """The first at once, the others together, at the turn's end."""
    conn, sock = peer
    pieces = [content(n, 10 + n) for n in range(100)]
    for piece in pieces:
        conn.send_nowait(piece)
    statistics = conn.statistics()
    assert (statistics.send_calls, statistics.bytes_sent) == (1, 10)
    assert statistics.buffered_outbound == sum(map(len, pieces[1:]))
    await settled(conn)
    statistics = conn.statistics()
    assert (statistics.send_calls, statistics.buffered_outbound) == (2, 0)
    assert await read(sock, sum(map(len, pieces))) == b"".join(pieces)


async def test_much_does_not_wait_for_the_turns_end(peer: Peer) -> None:
    conn, sock = peer
    for _ in range(40):
        conn.send_nowait(bytes(1000))
    assert conn.statistics().buffered_outbound < 32_768
    conn.send_nowait(bytes(50_000))
    assert await read(sock, 90_000) == bytes(90_000)


async def test_trio_does_not_sleep_on_what_is_corked(peer: Peer) -> None:
    conn, sock = peer
    conn.send_nowait(b"a")
    conn.send_nowait(b"b")
    with trio.fail_after(PATIENCE):
        assert await read(sock, 2) == b"ab"


@pytest.mark.parametrize("how", ["send_all", "flush", "send_eof", "aclose", "drop"])
async def test_whatever_comes_next_sends_what_is_corked(peer: Peer, how: str) -> None:
    conn, sock = peer
    for letter in (b"a", b"b", b"c"):
        conn.send_nowait(letter)
    assert conn.statistics().buffered_outbound == 2
    if how == "drop":
        conn._drop()
    elif how == "send_all":
        await conn.send_all(b"d")
    else:
        await getattr(conn, how)()
    assert await read(sock, 3) == b"abc"


async def test_the_engines_end_sends_what_is_corked(
    reactors: int, kind: str, nothing_left: None
) -> None:
    ours, theirs = plain_pair(kind)
    async with open_engine(reactors) as engine:
        conn = engine.adopt(ours)
        assert isinstance(conn, Conn)
        await trio.lowlevel.checkpoint()
        for letter in (b"a", b"b", b"c"):
            conn.send_nowait(letter)
        assert conn.statistics().buffered_outbound == 2
    with theirs:
        assert theirs.recv(10, socket.MSG_WAITALL) == b"abc"


async def test_a_send_all_goes_with_what_is_corked(peer: Peer) -> None:
    """In one call."""
    conn, sock = peer
    conn.send_nowait(b"first")
    conn.send_nowait(b"header")
    await conn.send_all(b"body")
    assert conn.statistics().send_calls == 2
    assert await read(sock, 15) == b"firstheaderbody"


async def test_detaching_sends_what_is_corked(peer: Peer) -> None:
    conn, sock = peer
    conn.send_nowait(b"a")
    conn.send_nowait(b"b")
    ours, _ = await conn.detach()
    ours.close()
    assert await read_all(sock) == b"ab"


async def test_the_limit_counts_what_is_corked(engine: Engine, kind: str) -> None:
    """And the kernel is asked before it is refused."""
    async with conn_and_peer(engine, kind, limits=Limits(outbound=100)) as (conn, sock):
        for _ in range(50):
            conn.send_nowait(bytes(60))
            assert conn.statistics().buffered_outbound <= 100
        assert await read(sock, 3000) == bytes(3000)


async def test_an_error_is_told_by_the_next_call(peer: Peer) -> None:
    conn, sock = peer
    conn.send_nowait(b"a")
    reset(sock)
    await conn.wait_closed()
    with pytest.raises(trio.BrokenResourceError):
        for _ in range(3):
            conn.send_nowait(b"b")
    await settled(conn)
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError):
            conn.send_nowait(b"c")
    assert conn.statistics().buffered_outbound == 0


async def test_outside_of_a_turn_nothing_is_corked(peer: Peer) -> None:
    """Such as in a signal's handler, or guest mode's host, while Trio waits."""
    conn, sock = peer
    sent: list[int] = []

    class Waits(trio.abc.Instrument):
        def before_io_wait(self, timeout: float) -> None:
            if not sent:
                conn.send_nowait(b"a")
                conn.send_nowait(b"b")
                sent.append(conn.statistics().bytes_sent)

    waits = Waits()
    trio.lowlevel.add_instrument(waits)
    await settled(conn)
    trio.lowlevel.remove_instrument(waits)
    assert sent == [2]
    assert await read(sock, 2) == b"ab"


async def test_a_send_nowait_goes_behind_a_send_all(engine: Engine, kind: str) -> None:
    """Within the bound, whatever the task that sends waits for."""
    limits = Limits(outbound=10_000)
    async with conn_and_peer(engine, kind, limits=limits, options=SMALL) as (conn, sock):
        data = content("all", 1_000_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.send_all, data)
            await wait_all_tasks_blocked()
            pieces = [content(n, 900) for n in range(11)]
            for piece in pieces:
                conn.send_nowait(piece)
            with pytest.raises(trio.WouldBlock):
                conn.send_nowait(bytes(101))
            expected = data + b"".join(pieces)
            assert await read(sock, len(expected)) == expected
        with trio.fail_after(PATIENCE):
            await conn.flush()


async def test_nothing_follows_a_message_that_was_torn(engine: Engine, kind: str) -> None:
    """Closed by another task in the middle of a `send_all`: what waited behind it is dropped."""
    async with conn_and_peer(engine, kind, options=SMALL) as (conn, sock):
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await conn.send_all(bytes(1_000_000))

            nursery.start_soon(send)
            await wait_all_tasks_blocked()
            conn.send_nowait(b"behind")
            await conn.aclose()
        assert not any(await read_all(sock))
