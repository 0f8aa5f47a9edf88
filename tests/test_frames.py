"""Receiving frames: bounds, bad input, ends, and what goes with a connection meanwhile."""

from __future__ import annotations

import copy
import gc
import pickle
import random
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest
import trio
from frame_models import split
from helpers import conn_and_peer, content, read, read_all, send, tcp_address, until
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from trio_wknet import (
    Conn,
    Delimited,
    Engine,
    FixedLength,
    FrameChannel,
    FrameTooLong,
    IncompleteRead,
    LengthPrefixed,
    Limits,
    MalformedFrame,
    VarintPrefixed,
)

Peer = tuple[Conn, Any]
FOUR = LengthPrefixed(4, max_frame=65_536)
LINES = Delimited(b"\r\n", max_frame=1000)
MIB = 1 << 20


def prefixed(*frames: bytes) -> bytes:
    return b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)


async def buffered(conn: Conn, size: int) -> None:
    await until(lambda: conn.statistics().buffered_inbound >= size, f"{size} bytes inbound")


# -- the framings ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "wire", "delivered"),
    [
        ({}, b"\0\5hello", b"hello"),
        ({"byteorder": "little"}, b"\5\0hello", b"hello"),
        ({"strip": 0}, b"\0\5hello", b"\0\5hello"),
        ({"adjustment": -2}, b"\0\7hello", b"hello"),
        ({"offset": 2}, b"\xca\xfe\0\5hello", b"hello"),
        ({"offset": 2, "strip": 0}, b"\xca\xfe\0\5hello", b"\xca\xfe\0\5hello"),
        ({"adjustment": 1}, b"\0\5\xfehello", b"\xfehello"),
        ({"adjustment": 1, "strip": 3}, b"\0\5\xfehello", b"hello"),
        ({"offset": 1, "adjustment": 1, "strip": 3}, b"\xca\0\5\xfehello", b"\xfehello"),
        ({"offset": 1, "adjustment": -3, "strip": 3}, b"\xca\0\x09\xfehello", b"\xfehello"),
    ],
)
async def test_the_table_of_length_prefixed(
    peer: Peer, arguments: Any, wire: bytes, delivered: bytes
) -> None:
    conn, sock = peer
    framing = LengthPrefixed(2, max_frame=100, **arguments)
    assert split(framing, wire + wire)[0] == [delivered, delivered]
    channel = conn.framed(framing)
    await send(sock, wire + wire)
    assert await channel.receive() == delivered
    assert await channel.receive() == delivered
    assert await read_all_frames(sock, channel) == []


async def read_all_frames(sock: Any, channel: FrameChannel) -> list[bytes]:
    sock.close()
    return [frame async for frame in channel]


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: LengthPrefixed(5, max_frame=1), ValueError, "^size must be 1, 2, 3, 4 or 8"),
        (lambda: LengthPrefixed("4", max_frame=1), TypeError, "^size must be an integer"),  # type: ignore[arg-type]
        (lambda: LengthPrefixed(4, "middle", max_frame=1), ValueError, "^byteorder must be"),  # type: ignore[arg-type]
        (lambda: LengthPrefixed(4, offset=-1, max_frame=1), ValueError, "^offset must be from 0"),
        (lambda: LengthPrefixed(4, adjustment=2**40, max_frame=1), ValueError, "^adjustment must"),
        (lambda: LengthPrefixed(4, strip=5, max_frame=1), ValueError, "^strip must be at most 4"),
        (lambda: LengthPrefixed(4, strip=-1, max_frame=1), ValueError, "^strip must be from 0"),
        (lambda: LengthPrefixed(4, max_frame=0), ValueError, "^max_frame must be from 1"),
        (lambda: LengthPrefixed(4, max_frame=2**30 + 1), ValueError, "^max_frame must be"),
        (lambda: LengthPrefixed(4), TypeError, "max_frame"),  # type: ignore[call-arg]
        (lambda: Delimited("\n", max_frame=1), TypeError, "^delimiter must be bytes"),
        (lambda: Delimited(b"", max_frame=1), ValueError, "^delimiter must hold 1 to 65536"),
        (lambda: Delimited(bytes(65_537), max_frame=1), ValueError, "^delimiter must hold 1"),
        (lambda: Delimited(b"\r\n", keep=True, max_frame=1), ValueError, "^max_frame must be at"),
        (lambda: Delimited(b"\n", keep=1, max_frame=1), TypeError, "^keep must be True or"),  # type: ignore[arg-type]
        (lambda: Delimited(b"\n"), TypeError, "max_frame"),  # type: ignore[call-arg]
        (lambda: FixedLength(0), ValueError, "^n must be from 1"),
        (lambda: VarintPrefixed(0), ValueError, "^max_frame must be from 1"),
        (lambda: VarintPrefixed(), TypeError, "max_frame"),  # type: ignore[call-arg]
    ],
)
def test_bad_framings_are_refused(make: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()


@pytest.mark.parametrize("framing", [FOUR, LINES, FixedLength(3), VarintPrefixed(9)])
def test_framings_are_values(framing: Any) -> None:
    assert pickle.loads(pickle.dumps(framing)) == framing == copy.copy(framing)
    assert hash(framing) == hash(copy.deepcopy(framing))


def test_errors_can_be_pickled() -> None:
    for error in (FrameTooLong(2**63, 5), FrameTooLong(None, 5), MalformedFrame(-1)):
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), vars(again)) == (str(error), vars(error))


async def test_what_is_no_framing_is_refused(peer: Peer) -> None:
    with pytest.raises(TypeError, match=r"^framing must be one of LengthPrefixed"):
        peer[0].framed(4)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Conn\.framed gives channels"):
        FrameChannel()


# -- lengths that are refused ------------------------------------------------------


@pytest.mark.parametrize(
    ("framing", "wire", "announced"),
    [
        (LengthPrefixed(8, max_frame=100), b"\x80" + bytes(7), 2**63),
        (LengthPrefixed(8, max_frame=100), b"\xff" * 8, 2**64 - 1),
        (LengthPrefixed(8, "little", max_frame=100), bytes(4) + b"\1\0\0\0", 2**32),
        (LengthPrefixed(4, max_frame=100), b"\xff" * 4, 2**32 - 1),
        (LengthPrefixed(1, max_frame=100), b"\x65", 101),
        # The limit is of what is delivered, after the adjustment.
        (LengthPrefixed(1, adjustment=1, max_frame=100), b"\x64", 101),
        (LengthPrefixed(1, strip=0, max_frame=100), b"\x64", 101),
        (LengthPrefixed(8, adjustment=2**30, max_frame=2**30), b"\xff" * 8, 2**64 + 2**30 - 1),
        (VarintPrefixed(100), b"\x65", 101),
        (VarintPrefixed(100), b"\xff" * 9 + b"\1", 2**64 - 1),
    ],
)
async def test_a_length_is_refused_at_its_header(
    peer: Peer, framing: Any, wire: bytes, announced: int
) -> None:
    conn, sock = peer
    channel = conn.framed(framing)
    await send(sock, wire)
    for _ in range(2):
        with pytest.raises(FrameTooLong) as raised:
            await channel.receive()
        assert raised.value.announced == announced
        assert raised.value.allowed == framing.max_frame
    with pytest.raises(FrameTooLong):
        channel.receive_many_nowait()
    # Nothing is lost: the stream can be gone on with as bytes.
    assert channel.unframe() is conn
    assert await conn.receive_some() == wire
    await send(sock, b"more")
    assert await conn.receive_some() == b"more"


@pytest.mark.parametrize(
    ("framing", "wire"),
    [
        (LengthPrefixed(1, max_frame=100), b"\x64" + bytes(100)),
        (LengthPrefixed(1, adjustment=-1, max_frame=100), b"\x65" + bytes(100)),
        (LengthPrefixed(1, adjustment=1, max_frame=100), b"\x63" + bytes(100)),
        (LengthPrefixed(1, strip=0, max_frame=100), b"\x63" + bytes(99)),
        (VarintPrefixed(100), b"\x64" + bytes(100)),
        (Delimited(b"\r\n", max_frame=100), bytes(100) + b"\r\n"),
        (Delimited(b"\r\n", keep=True, max_frame=100), bytes(98) + b"\r\n"),
    ],
)
async def test_as_much_as_is_allowed_is_delivered(peer: Peer, framing: Any, wire: bytes) -> None:
    conn, sock = peer
    channel = conn.framed(framing)
    for byte in wire:
        await send(sock, bytes([byte]))
    assert len(await channel.receive()) == 100


@pytest.mark.parametrize(
    ("framing", "wire", "announced"),
    [
        (LengthPrefixed(1, adjustment=-3, max_frame=100), b"\2", -1),
        (LengthPrefixed(4, adjustment=-(2**30), max_frame=100), bytes(4), -(2**30)),
        (VarintPrefixed(100), b"\x80" * 10, None),
        (VarintPrefixed(100), b"\xff" * 9 + b"\2", None),
    ],
)
async def test_what_cannot_be_a_length_is_refused(
    peer: Peer, framing: Any, wire: bytes, announced: int | None
) -> None:
    conn, sock = peer
    channel = conn.framed(framing)
    await send(sock, wire)
    with pytest.raises(MalformedFrame) as raised:
        await channel.receive()
    assert raised.value.announced == announced
    assert await channel.unframe().receive_some() == wire


async def test_whole_frames_come_before_a_refused_one(peer: Peer) -> None:
    conn, sock = peer
    channel = conn.framed(FOUR)
    wire = prefixed(b"one", b"two") + b"\xff" * 4
    await send(sock, wire)
    await buffered(conn, len(wire))
    assert await channel.receive_many() == [b"one", b"two"]
    with pytest.raises(FrameTooLong):
        await channel.receive_many()


@pytest.mark.parametrize("keep", [False, True])
async def test_lines_without_an_end_are_refused(peer: Peer, keep: bool) -> None:
    conn, sock = peer
    channel = conn.framed(Delimited(b"\r\n", keep=keep, max_frame=100))
    await send(sock, bytes(100) + b"\r")
    if keep:  # the delimiter would be past it
        with pytest.raises(FrameTooLong) as raised:
            await channel.receive()
        assert raised.value.announced is None
        return
    await buffered(conn, 101)
    with pytest.raises(trio.WouldBlock):
        channel.receive_nowait()
    await send(sock, b"x")
    with pytest.raises(FrameTooLong, match="no delimiter ends the frame within 100 bytes"):
        await channel.receive()


# -- memory and wakes ---------------------------------------------------------------


async def test_an_announced_length_takes_no_memory(engine: Engine) -> None:
    limits = Limits(inbound=2**30)
    async with conn_and_peer(engine, limits=limits) as (conn, sock):
        before = engine.statistics()
        channel = conn.framed(LengthPrefixed(4, max_frame=2**30))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channel.receive)
            await send(sock, (2**30).to_bytes(4, "big") + bytes(2 * MIB))
            await until(lambda: conn.statistics().bytes_received > 2 * MIB)
            await wait_all_tasks_blocked()
            statistics = engine.statistics()
            nursery.cancel_scope.cancel()
        assert statistics.pool_in_use - before.pool_in_use <= 4 * MIB
        assert conn.statistics().buffered_inbound <= MIB
        assert len(await read(channel.unframe(), 2 * MIB + 4)) == 2 * MIB + 4


async def receive_impatiently(channel: FrameChannel, received: list[bytes]) -> None:
    """Receive, and be cancelled soon."""

    async def receive() -> None:
        received.append(await channel.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


async def test_a_large_frame_does_not_lift_the_inbound_bound(engine: Engine, kind: str) -> None:
    frame = content("large", 3 * MIB)
    most = 0
    async with conn_and_peer(engine, kind, limits=Limits(inbound=10_000)) as (conn, sock):
        channel = conn.framed(LengthPrefixed(4, max_frame=4 * MIB))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, sock, prefixed(frame, b"small", frame))
            for expected in (frame, b"small", frame):
                received: list[bytes] = []
                while not received:
                    await receive_impatiently(channel, received)
                    most = max(most, conn.statistics().buffered_inbound)
                assert received == [expected]
        assert most <= 10_000


async def test_trio_is_woken_for_whole_frames_only(engine: Engine) -> None:
    async with conn_and_peer(engine) as (conn, sock):
        channel = conn.framed(FOUR)
        steps: list[object] = []

        class Steps(trio.abc.Instrument):
            def before_task_step(self, task: trio.lowlevel.Task) -> None:
                if task.name == "receiver":
                    steps.append(task)

        async def receive() -> None:
            assert await channel.receive() == bytes(500)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, name="receiver")
            await wait_all_tasks_blocked()
            trio.lowlevel.add_instrument(watch := Steps())
            for byte in prefixed(bytes(500)):
                received = conn.statistics().bytes_received
                await send(sock, bytes([byte]))
                await until(lambda: conn.statistics().bytes_received > received)  # noqa: B023
        trio.lowlevel.remove_instrument(watch)
        assert len(steps) == 1


async def test_a_delimiter_is_found_across_receives_and_the_rings_edge(engine: Engine) -> None:
    choose = random.Random(5)
    async with conn_and_peer(engine) as (conn, sock):
        channel = conn.framed(Delimited(b"aac", max_frame=1000))
        await send(sock, b"aa")
        for _ in range(150):  # never empty, the ring of 512 bytes goes round, and on
            frame = bytes(choose.choice(b"ab") for _ in range(choose.randrange(30)))
            wire = b"c" + frame + b"aacaa"
            cut = choose.randrange(1, len(wire))
            await send(sock, wire[:cut])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, sock, wire[cut:])
                assert await channel.receive() == b""
                assert await channel.receive() == frame
            await buffered(conn, 2)


async def test_frames_queue_up_to_the_bound_while_nobody_receives(
    engine: Engine, kind: str
) -> None:
    frames = [content(number, number % 700) for number in range(2000)]
    async with conn_and_peer(engine, kind, limits=Limits(inbound=20_000)) as (conn, sock):
        channel = conn.framed(FOUR)
        received: list[bytes] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, sock, prefixed(*frames))
            await buffered(conn, 20_000)
            while len(received) < len(frames):
                received += await channel.receive_many()
                assert conn.statistics().buffered_inbound <= 20_000
                await wait_all_tasks_blocked()
        assert received == frames
        statistics = channel.statistics()
        assert statistics.frames_received == 2000
        assert statistics.bytes_received == sum(map(len, frames))
        assert 1 < statistics.batches_received < 200


# -- contract ------------------------------------------------------------------------


async def test_receives_are_checkpoints(peer: Peer) -> None:
    conn, sock = peer
    channel = conn.framed(FOUR)
    await send(sock, prefixed(b"a", b"b", b"c"))
    await buffered(conn, 15)
    with assert_checkpoints():
        assert await channel.receive() == b"a"
    with assert_checkpoints():
        assert await channel.receive_many(1) == [b"b"]
    with assert_checkpoints():
        assert await channel.__anext__() == b"c"


@pytest.mark.parametrize("name", ["receive_many", "receive_many_nowait"])
async def test_max_frames_is_checked(peer: Peer, name: str) -> None:
    conn, sock = peer
    receive = getattr(conn.framed(FOUR), name)
    await send(sock, prefixed(b"a"))
    await buffered(conn, 5)
    for bad, error in ((0, ValueError), (-1, ValueError), ("x", TypeError), (1.5, TypeError)):
        with pytest.raises(error, match=r"^max_frames must be"):
            await receive(bad)


async def test_a_second_receiver_is_refused(peer: Peer) -> None:
    conn, _ = peer
    channel = conn.framed(FOUR)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.receive)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError, match="another task is receiving"):
            await channel.receive_many()
        with pytest.raises(trio.BusyResourceError):
            channel.receive_nowait()
        with pytest.raises(trio.BusyResourceError):
            channel.unframe()
        nursery.cancel_scope.cancel()


async def test_bytes_are_not_received_past_the_channel(peer: Peer) -> None:
    conn, sock = peer
    channel = conn.framed(FOUR)
    await send(sock, b"1234")
    await buffered(conn, 4)
    for receive in (
        conn.receive_some,
        lambda: conn.receive_into(bytearray(4)),
        lambda: conn.receive_exactly(4),
        lambda: conn.receive_until(b"4"),
        conn.detach,
    ):
        with pytest.raises(trio.BusyResourceError, match="unframe"):
            await receive()
    nowait: list[Callable[[], object]] = [
        conn.receive_nowait,
        lambda: conn.receive_exactly_nowait(4),
        lambda: conn.receive_until_nowait(b"4"),
    ]
    for receive_nowait in nowait:
        with pytest.raises(trio.BusyResourceError, match="unframe"):
            receive_nowait()
    with pytest.raises(trio.BusyResourceError, match="unframe"):
        conn.framed(LINES)
    assert await channel.unframe().receive_some() == b"1234"
    with pytest.raises(trio.ClosedResourceError, match="unframe"):
        await channel.receive()
    with pytest.raises(trio.ClosedResourceError, match="unframe"):
        channel.receive_nowait()
    with pytest.raises(trio.ClosedResourceError, match="unframe"):
        channel.unframe()


@pytest.mark.parametrize("part", [0, 2, 4, 7, 100_000, 3_000_000])
async def test_unframe_gives_every_byte_that_was_not_taken(
    engine: Engine, kind: str, part: int
) -> None:
    """From any place in a frame, and however much of it was moved."""
    wire = (4_000_000).to_bytes(4, "big") + content("part", 4_000_000)
    async with conn_and_peer(engine, kind) as (conn, sock):
        channel = conn.framed(LengthPrefixed(4, max_frame=4_000_000))
        await send(sock, prefixed(b"first"))
        assert await channel.receive() == b"first"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channel.receive)
            await send(sock, wire[:part])
            await until(lambda: conn.statistics().bytes_received == part + 9)
            nursery.cancel_scope.cancel()
        # By lines, and back: nothing is doubled or lost.
        again = channel.unframe().framed(LINES).unframe()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, sock, wire[part:])
            assert await read(again, len(wire)) == wire


async def test_a_channel_that_was_thrown_away_is_succeeded(peer: Peer) -> None:
    conn, sock = peer
    await send(sock, prefixed(b"one", b"two"))
    async for frame in conn.framed(FOUR):
        assert frame == b"one"
        break
    gc.collect()
    assert await conn.framed(FOUR).receive() == b"two"


# -- the end -------------------------------------------------------------------------


async def test_the_end_between_frames(peer: Peer) -> None:
    conn, sock = peer
    channel = conn.framed(FOUR)
    await send(sock, prefixed(b"last"))
    sock.close()
    assert await channel.receive() == b"last"
    for _ in range(2):
        with pytest.raises(trio.EndOfChannel):
            await channel.receive()
    with pytest.raises(trio.EndOfChannel):
        channel.receive_many_nowait()
    assert [frame async for frame in channel] == []


@pytest.mark.parametrize(
    ("framing", "wire", "expected"),
    [
        (FOUR, b"\0\0", 4),
        (FOUR, b"\0\0\0\5hell", 9),
        (LINES, b"hello\r", None),
        (FixedLength(5), b"hell", 5),
        (VarintPrefixed(1000), b"\x80", 2),
        (LengthPrefixed(4, max_frame=MIB), b"\0\x10\0\0" + bytes(300_000), MIB + 4),
    ],
)
async def test_the_end_inside_a_frame(
    peer: Peer, framing: Any, wire: bytes, expected: int | None
) -> None:
    conn, sock = peer
    channel = conn.framed(framing)

    async def finish() -> None:
        await send(sock, wire)
        sock.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(finish)
        for _ in range(2):
            with pytest.raises(IncompleteRead) as raised:
                await channel.receive()
            assert (raised.value.expected, raised.value.buffered) == (expected, len(wire))
    assert await read_all(channel.unframe()) == wire


@pytest.mark.parametrize("wire", [b"", b"\0\0", b"\0\0\0\5hell"])
async def test_a_reset_inside_a_frame(engine: Engine, wire: bytes) -> None:
    async with conn_and_peer(engine) as (conn, sock):
        channel = conn.framed(FOUR)
        await send(sock, prefixed(b"whole") + wire)
        await buffered(conn, 9 + len(wire))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        await conn.wait_closed()
        assert await channel.receive() == b"whole"
        with pytest.raises(trio.BrokenResourceError):
            await channel.receive()


@pytest.mark.parametrize("how", ["aclose", "abort", "engine"])
async def test_a_close_inside_a_frame_wakes_the_receiver(
    engine: Engine, kind: str, how: str
) -> None:
    async with conn_and_peer(engine, kind) as (conn, sock):
        channel = conn.framed(LengthPrefixed(4, max_frame=MIB))

        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await channel.receive()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await send(sock, MIB.to_bytes(4, "big") + bytes(200_000))
            await until(lambda: conn.statistics().bytes_received == 200_004)
            if how == "aclose":
                await channel.aclose()
            elif how == "abort":
                conn.abort()
            else:
                await engine._aclose()
        with pytest.raises(trio.ClosedResourceError):
            channel.receive_nowait()
        with pytest.raises(trio.ClosedResourceError):
            conn.framed(FOUR)
        assert channel.statistics().frames_received == 0


async def test_an_idle_timeout_inside_a_frame(peer: Peer) -> None:
    conn, sock = peer
    channel = conn.framed(FOUR)
    await send(sock, b"\0\0\0\5hell")
    await buffered(conn, 8)
    conn.idle_timeout = 0.02
    with pytest.raises(trio.ClosedResourceError):
        await channel.receive()
    assert conn.close_reason == "idle"


async def test_a_listener_drains_when_its_frames_are_done(engine: Engine) -> None:
    done: list[bytes] = []

    async def handler(conn: Conn) -> None:
        async with conn.framed(FOUR) as channel:
            async for frame in channel:
                done.append(frame)

    listener = await engine.listen("tcp://127.0.0.1:0")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.serve, handler)
        client = await trio.open_tcp_stream(*tcp_address(listener))
        await client.send_all(prefixed(b"one")[:6])
        await until(lambda: listener.statistics().handlers == 1)
        nursery.start_soon(listener.drain)
        await wait_all_tasks_blocked()
        await client.send_all(prefixed(b"one")[6:] + prefixed(b"two"))
        await client.aclose()
    assert done == [b"one", b"two"]


async def test_a_channel_is_trios(peer: Peer) -> None:
    conn, sock = peer
    channel = conn.framed(FOUR)
    assert isinstance(channel, trio.abc.Channel)
    assert channel.conn is conn
    assert channel.framing is FOUR
    assert "LengthPrefixed(size=4" in repr(channel)
    await channel.send(b"hello")
    assert await read(sock, 9) == prefixed(b"hello")
    async with channel:
        pass
    assert conn.close_reason == "closed"
