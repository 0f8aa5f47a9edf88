"""Frames over TLS: `TLSStream.framed`."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Any

import pytest
import trio
from helpers import content, until
from tls_helpers import NAME, client_context, records, server_context, shake_hands, two_tls
from trio.testing import assert_checkpoints, memory_stream_pair, wait_all_tasks_blocked

from trio_wknet import (
    Delimited,
    Engine,
    FixedLength,
    FrameTooLong,
    IncompleteRead,
    LengthPrefixed,
    MalformedFrame,
    TLSFrameChannel,
    TLSStream,
    VarintPrefixed,
)
from trio_wknet._framing import Framing

Pair = tuple[TLSStream, TLSStream]
LINES = Delimited(b"\n", max_frame=100)
FRAMINGS: dict[str, Framing] = {
    "length": LengthPrefixed(4, max_frame=1 << 20),
    "header": LengthPrefixed(2, "little", strip=0, adjustment=-2, max_frame=65535),
    "lines": Delimited(b"\r\n", max_frame=1 << 20),
    "fixed": FixedLength(64),
    "varint": VarintPrefixed(max_frame=1 << 20),
}


@pytest.fixture
async def tls(engine: Engine) -> AsyncIterator[Pair]:
    async with two_tls(engine) as pair:
        yield pair


async def over_another_transport() -> Pair:
    client, server = memory_stream_pair()
    one = TLSStream(client, client_context(), server_hostname=NAME)
    other = TLSStream(server, server_context(), server_side=True)
    await shake_hands(one, other)
    return one, other


def frames_for(name: str) -> list[bytes]:
    sizes = [64] * 5 if name == "fixed" else [1, 64, 3, 16384, 40_000, 5, 5, 5]
    frames = [content(size, size).replace(b"\r", b" ") for size in sizes]
    if name == "header":
        return [(len(it) + 2).to_bytes(2, "little") + it for it in frames]
    return frames


async def check_frames(one: TLSStream, other: TLSStream, name: str) -> None:
    framing, frames = FRAMINGS[name], frames_for(name)
    ours, theirs = one.framed(framing), other.framed(framing)
    assert (ours.stream, ours.framing) == (one, framing)

    async def send() -> None:
        for frame in frames:
            await ours.send(frame)
        await ours.send_many(frames)
        await ours.send_many([])
        await ours.send_many(bytearray(frame) for frame in frames)
        await ours.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        got = [await theirs.receive(), *await theirs.receive_many(1)]
        got += await theirs.receive_many()
        got += [frame async for frame in theirs]
    assert got == frames * 3
    for _ in range(2):
        with pytest.raises(trio.EndOfChannel):
            await theirs.receive()
    sent, received = ours.statistics(), theirs.statistics()
    assert sent.frames_sent == received.frames_received == len(got)
    assert sent.bytes_sent == received.bytes_received == sum(map(len, got))


@pytest.mark.parametrize("name", FRAMINGS)
async def test_frames(tls: Pair, name: str) -> None:
    await check_frames(*tls, name)


@pytest.mark.parametrize("name", FRAMINGS)
async def test_frames_over_another_transport(name: str) -> None:
    await check_frames(*await over_another_transport(), name)


async def test_without_waiting(tls: Pair) -> None:
    one, other = tls
    ours, theirs = one.framed(LINES), other.framed(LINES)
    for call in (theirs.receive_nowait, theirs.receive_many_nowait):
        with pytest.raises(trio.WouldBlock):
            call()
    ours.send_nowait(b"a")
    ours.send_many_nowait([b"b", b"c"])
    ours.send_nowait(b"d")
    got: list[bytes] = []

    def more() -> bool:
        try:
            got.extend(theirs.receive_many_nowait(2))
        except trio.WouldBlock:
            return False
        return len(got) == 4

    await until(more)
    assert got == [b"a", b"b", b"c", b"d"]
    ours.send_nowait(b"e")
    await until(lambda: other.statistics().buffered_inbound > 0)
    assert theirs.receive_nowait() == b"e"
    await one.aclose()
    await until(lambda: other.close_reason == "eof")
    with pytest.raises(trio.EndOfChannel):
        theirs.receive_nowait()


async def test_bytes_before_and_behind(tls: Pair) -> None:
    """A channel begins with what was not taken, and gives back what it has not."""
    one, other = tls
    await one.send_all(b"HELLO\r\nline\nand\nrest")
    assert await other.receive_until(b"\r\n") == b"HELLO"
    channel = other.framed(LINES)
    assert await channel.receive() == b"line"
    assert channel.unframe() is other
    assert await other.receive_exactly(2) == b"an"
    again = other.framed(LINES)
    assert await again.receive() == b"d"
    assert again.unframe().receive_nowait() == b"rest"
    with pytest.raises(trio.ClosedResourceError, match="unframe"):
        await channel.receive()
    with pytest.raises(trio.ClosedResourceError, match="unframe"):
        await channel.send(b"x")
    with pytest.raises(trio.ClosedResourceError, match="unframe"):
        channel.unframe()


async def test_who_may_receive(tls: Pair) -> None:
    one, other = tls
    channel = other.framed(LINES)
    receives: list[Callable[[], Any]] = [
        other.receive_some,
        lambda: other.receive_exactly(1),
        other.unwrap,
    ]
    for call in receives:
        with pytest.raises(trio.BusyResourceError, match="framed"):
            await call()
    with pytest.raises(trio.BusyResourceError, match="framed"):
        other.receive_nowait()
    with pytest.raises(trio.BusyResourceError, match="framed"):
        other.framed(LINES)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.receive)
        await wait_all_tasks_blocked()
        for call in (channel.receive, channel.receive_many):
            with pytest.raises(trio.BusyResourceError):
                await call()
        with pytest.raises(trio.BusyResourceError):
            channel.receive_nowait()
        with pytest.raises(trio.BusyResourceError):
            channel.unframe()
        nursery.cancel_scope.cancel()
    await one.send_all(b"fine\n")
    assert await channel.receive() == b"fine"
    await other.send_all(b"bytes may be sent")
    assert await one.receive_exactly(17) == b"bytes may be sent"


async def test_a_channel_that_was_thrown_away(tls: Pair) -> None:
    one, other = tls
    await one.send_all(b"a\nb\npart")
    channel = other.framed(LINES)
    assert await channel.receive() == b"a"
    del channel
    gc.collect()
    with pytest.raises(trio.BusyResourceError):
        await other.receive_some()
    channel = other.framed(LINES)
    assert await channel.receive() == b"b"
    assert channel.unframe().receive_nowait() == b"part"


async def test_what_is_refused(tls: Pair) -> None:
    one, other = tls
    await one.send_all(b"fine\n" + b"x" * 101)
    channel = other.framed(LINES)
    assert await channel.receive() == b"fine"
    for _ in range(2):
        with pytest.raises(FrameTooLong):
            await channel.receive()
        with pytest.raises(FrameTooLong):
            channel.receive_many_nowait()
    assert len(await channel.unframe().receive_exactly(101)) == 101
    malformed = one.framed(VarintPrefixed(max_frame=100))
    await other.send_all(b"\xff" * 10)
    with pytest.raises(MalformedFrame):
        await malformed.receive()


async def test_the_end_inside_of_a_frame(tls: Pair) -> None:
    one, other = tls
    channel = other.framed(LengthPrefixed(2, max_frame=100))
    await one.send_all(b"\0\2ok\0\5par")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.aclose)
        assert await channel.receive() == b"ok"
        for _ in range(2):
            with pytest.raises(IncompleteRead) as cut:
                await channel.receive()
            assert (cut.value.expected, cut.value.buffered) == (7, 5)
    assert await channel.unframe().receive_some() == b"\0\5par"


async def test_whole_frames_come_ahead_of_a_truncation(tls: Pair) -> None:
    one, other = tls
    channel = other.framed(LINES)
    await one.send_all(b"a\nb\nc")
    assert await channel.receive() == b"a"
    await trio.aclose_forcefully(one)
    assert await channel.receive() == b"b"
    with pytest.raises(trio.BrokenResourceError):
        await channel.receive()
    await other.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await channel.receive()
    with pytest.raises(trio.ClosedResourceError):
        channel.send_nowait(b"x")


async def test_what_cannot_be_sent(tls: Pair) -> None:
    one, other = tls
    channel = one.framed(LINES)
    with pytest.raises(ValueError, match="value holds the delimiter"):
        await channel.send(b"a\nb")
    with pytest.raises(ValueError, match="value holds the delimiter"):
        channel.send_nowait(b"a\nb")
    with pytest.raises(TypeError, match="value must be"):
        await channel.send("text")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"frames\[1\] is 101 bytes"):
        await channel.send_many([b"a", bytes(101)])
    with pytest.raises(TypeError, match="frames must be an iterable"):
        channel.send_many_nowait(b"bytes")  # type: ignore[arg-type]
    await channel.send(b"fine")
    assert await other.receive_until(b"\n") == b"fine"


async def test_what_cannot_be_made(tls: Pair) -> None:
    with pytest.raises(TypeError, match="framing must be"):
        tls[0].framed(b"\n")  # type: ignore[arg-type]
    for longer in (FixedLength(1 << 30), Delimited(b"\n", max_frame=1 << 30)):
        with pytest.raises(ValueError, match="at most 536870912 bytes"):
            tls[0].framed(longer)
    with pytest.raises(TypeError, match=r"TLSStream\.framed gives channels"):
        TLSFrameChannel()
    assert repr(tls[0].framed(LINES)).startswith("<trio_wknet.TLSFrameChannel Delimited(")


async def test_checkpoints(tls: Pair) -> None:
    ours, theirs = (stream.framed(LINES) for stream in tls)
    with assert_checkpoints():
        await ours.send_many([b"a", b"b", b"c"])
    with assert_checkpoints():
        await ours.send(b"d")
    for _ in range(3):
        with assert_checkpoints():
            await theirs.receive()
    with assert_checkpoints():
        await theirs.receive_many()


async def test_cancelled_at_any_step_nothing_is_lost(tls: Pair) -> None:
    one, other = tls
    values = Random(2)
    frames = [content(n, values.randrange(0, 300)) for n in range(150)]
    framing = LengthPrefixed(2, max_frame=1000)
    channel = other.framed(framing)
    wire = b"".join(len(it).to_bytes(2, "big") + it for it in frames)
    got: list[bytes] = []

    async def send() -> None:
        """Records that end anywhere, and come in parts."""
        at = 0
        while at < len(wire):
            size = values.randrange(1, 500)
            record = records(one, wire[at : at + size])
            cut = values.randrange(len(record))
            for part in (record[:cut], record[cut:]):
                await one.transport_stream.send_all(part)
            at += size

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while len(got) < len(frames):
            with trio.CancelScope() as scope:
                when = values.choice([-1.0, 0.0, 0.0, 1e-4, 9.0])
                if when < 0:
                    scope.cancel()
                scope.deadline = trio.current_time() + when
                if values.random() < 0.5:
                    got.append(await channel.receive())
                else:
                    got += await channel.receive_many()
    assert got == frames
