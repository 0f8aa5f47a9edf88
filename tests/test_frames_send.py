"""The sending half of a FrameChannel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from frame_models import split, streams
from helpers import PATIENCE, SMALL, conn_and_peer, content, read, read_all, two_conns
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from trio_wknet import (
    Conn,
    Delimited,
    Engine,
    FixedLength,
    LengthPrefixed,
    Limits,
    VarintPrefixed,
    WebSocket,
    open_engine,
)
from trio_wknet._native.testing import ReactorSender

MAX = 1 << 20
PREFIXED = LengthPrefixed(4, max_frame=MAX)
Peer = tuple[Conn, Any]


def prefixed(frame: bytes) -> bytes:
    return len(frame).to_bytes(4, "big") + frame


WIRE = [
    (LengthPrefixed(1, max_frame=255), b"hello", b"\x05hello"),
    (LengthPrefixed(2, max_frame=MAX), b"hello", b"\x00\x05hello"),
    (LengthPrefixed(2, "little", max_frame=MAX), b"hello", b"\x05\x00hello"),
    (LengthPrefixed(3, max_frame=MAX), b"x" * 300, b"\x00\x01\x2c" + b"x" * 300),
    (LengthPrefixed(4, adjustment=-4, max_frame=MAX), b"hello", b"\x00\x00\x00\x09hello"),
    (LengthPrefixed(8, max_frame=MAX), b"", bytes(8)),
    (LengthPrefixed(2, strip=0, max_frame=MAX), b"\x00\x05hello", b"\x00\x05hello"),
    (LengthPrefixed(2, strip=1, max_frame=MAX), b"\x05hello", b"\x00\x05hello"),
    (LengthPrefixed(2, "little", strip=1, max_frame=MAX), b"\x00hello", b"\x05\x00hello"),
    (
        LengthPrefixed(2, offset=2, strip=0, adjustment=-4, max_frame=MAX),
        b"\xca\xfe\x00\x09hello",
        b"\xca\xfe\x00\x09hello",
    ),
    (LengthPrefixed(1, adjustment=2, max_frame=MAX), b"\xfe\xfehello", b"\x05\xfe\xfehello"),
    (Delimited(b"\r\n", max_frame=MAX), b"hello", b"hello\r\n"),
    (Delimited(b"\n", keep=True, max_frame=MAX), b"hello\n", b"hello\n"),
    (FixedLength(5), b"hello", b"hello"),
    (VarintPrefixed(MAX), b"hello", b"\x05hello"),
    (VarintPrefixed(MAX), b"x" * 300, b"\xac\x02" + b"x" * 300),
]


@pytest.mark.parametrize(("framing", "frame", "wire"), WIRE)
async def test_on_the_wire(peer: Peer, framing: Any, frame: bytes, wire: bytes) -> None:
    conn, sock = peer
    channel = conn.framed(framing)
    await channel.send(frame)
    await channel.send_many([frame, bytearray(frame), memoryview(frame)])
    channel.send_nowait(frame)
    channel.send_many_nowait([frame, frame])
    assert await read(sock, 7 * len(wire)) == 7 * wire
    assert channel.statistics().frames_sent == 7
    assert channel.statistics().bytes_sent == 7 * len(frame)
    assert channel.statistics().batches_sent == 4


REFUSED = [
    (LengthPrefixed(1, max_frame=MAX), bytes(256), "does not fit the field of 1"),
    (LengthPrefixed(2, adjustment=3, max_frame=MAX), b"ab", "does not fit"),
    (LengthPrefixed(4, max_frame=10), bytes(11), r"11 bytes, more than max_frame \(10\)"),
    (LengthPrefixed(4, offset=1, max_frame=10), bytes(5), "strips bytes that no frame tells"),
    (LengthPrefixed(4, offset=1, strip=1, max_frame=10), bytes(4), "strips bytes that no frame"),
    (LengthPrefixed(2, adjustment=1, strip=3, max_frame=10), b"a", "strips bytes that no frame"),
    (LengthPrefixed(4, strip=0, max_frame=10), b"\0\0\0", "header alone has 4"),
    (LengthPrefixed(4, offset=3, strip=0, max_frame=10), bytes(6), "header alone has 7"),
    (LengthPrefixed(2, strip=1, max_frame=10), b"", "header alone has 1"),
    (LengthPrefixed(4, strip=0, max_frame=10), b"\0\0\0\2a", "must say 1, and does not"),
    (LengthPrefixed(2, strip=1, max_frame=10), b"\2a", "must say 1, and does not"),
    (LengthPrefixed(1, strip=0, adjustment=9, max_frame=99), b"\0abc", "-6, does not fit"),
    (Delimited(b"\r\n", max_frame=MAX), b"a\r\nb", "holds the delimiter"),
    (Delimited(b"aab", max_frame=MAX), b"xaab", "holds the delimiter"),
    (Delimited(b"aa", max_frame=MAX), b"xa", "one too early"),
    (Delimited(b"\n", keep=True, max_frame=MAX), b"a", "must end with the delimiter"),
    (Delimited(b"\n", keep=True, max_frame=MAX), b"a\nb\n", "hold no other"),
    (FixedLength(5), b"hell", "every frame has 5"),
    (VarintPrefixed(10), bytes(11), "more than max_frame"),
]


@pytest.mark.parametrize(("framing", "frame", "why"), REFUSED)
async def test_what_cannot_be_delivered(
    engine: Engine, framing: Any, frame: bytes, why: str
) -> None:
    async with conn_and_peer(engine) as (conn, _):
        channel = conn.framed(framing)
        calls: list[tuple[str, Callable[[], None]]] = [
            ("value", lambda: channel.send_nowait(frame)),
            (r"frames\[0\]", lambda: channel.send_many_nowait([frame])),
        ]
        for name, call in calls:
            with pytest.raises(ValueError, match=why) as raised:
                call()
            assert str(raised.value).startswith(name.replace("\\", ""))
        with pytest.raises(ValueError, match=why):
            await channel.send(frame)
        with pytest.raises(ValueError, match=why):
            await channel.send_many([frame])
        assert conn.statistics().bytes_sent == 0


async def test_bad_input(peer: Peer) -> None:
    conn, _ = peer
    channel = conn.framed(PREFIXED)
    with pytest.raises(TypeError, match="value must be contiguous and bytes-like, not str"):
        await channel.send("a")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"frames\[1\] must be contiguous.*not int"):
        channel.send_many_nowait([b"a", 5])  # type: ignore[list-item]
    for frames in (b"abc", 5):
        with pytest.raises(TypeError, match="frames must be an iterable of frames"):
            await channel.send_many(frames)  # type: ignore[arg-type]
    assert conn.statistics().bytes_sent == 0


async def test_many_in_one_call(peer: Peer) -> None:
    conn, sock = peer
    channel = conn.framed(PREFIXED)
    frames = [content(n, n * 311 % 6000) for n in range(40)]
    await channel.send_many(frames)
    await channel.send_many([])
    channel.send_many_nowait([])
    assert conn.statistics().send_calls == 1
    wire = b"".join(map(prefixed, frames))
    assert await read(sock, len(wire)) == wire


async def test_a_frame_that_was_begun_is_sent_whole(engine: Engine, kind: str) -> None:
    """Its send is cancelled: the reactor sends the rest, ahead of what comes next."""
    async with conn_and_peer(engine, kind, limits=Limits(outbound=10_000), options=SMALL) as (
        conn,
        sock,
    ):
        channel = conn.framed(PREFIXED)
        frame = content("begun", 700_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channel.send, frame)
            await wait_all_tasks_blocked()
            channel.send_nowait(b"behind")
            ReactorSender(conn).send(prefixed(b"pong"))
            nursery.cancel_scope.cancel()
        wire = prefixed(frame) + prefixed(b"behind") + prefixed(b"pong")
        assert await read(sock, len(wire)) == wire
        with trio.fail_after(PATIENCE):
            await conn.flush()


async def test_a_frame_that_was_not_begun_is_not_sent(engine: Engine, kind: str) -> None:
    async with conn_and_peer(engine, kind, options=SMALL) as (conn, sock):
        channel = conn.framed(PREFIXED)
        ahead = content("ahead", 500_000)
        channel.send_nowait(ahead)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channel.send, b"never")
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        channel.send_nowait(b"end")
        wire = prefixed(ahead) + prefixed(b"end")
        assert await read(sock, len(wire)) == wire


async def test_many_are_cut_between_frames(engine: Engine, kind: str) -> None:
    async with conn_and_peer(engine, kind, options=SMALL) as (conn, sock):
        channel = conn.framed(PREFIXED)
        frames = [content(n, 1000 + n * 713 % 9000) for n in range(300)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channel.send_many, frames)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        sent = channel.statistics().frames_sent
        assert 0 < sent < 300
        channel.send_nowait(b"end")
        wire = b"".join(map(prefixed, [*frames[:sent], b"end"]))
        assert await read(sock, len(wire)) == wire


async def test_closing_under_a_send_leaves_no_torn_frame(engine: Engine, kind: str) -> None:
    async with conn_and_peer(engine, kind, options=SMALL) as (conn, sock):
        channel = conn.framed(PREFIXED)
        frame = content("closed", 500_000)
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await channel.send(frame)

            nursery.start_soon(send)
            await wait_all_tasks_blocked()
            await channel.aclose()
            assert await read_all(sock) == prefixed(frame)


FRAMES = st.lists(st.one_of(st.binary(max_size=200), st.integers(0, 60_000).map(bytes)), max_size=6)


@pytest.mark.parametrize("reactors", [0, 1])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["send", "many", "nowait", "many_nowait", "cancel"]), FRAMES),
        max_size=10,
    )
)
def test_any_steps(reactors: int, steps: list[tuple[str, list[bytes]]]) -> None:
    """What one side counts as sent the other receives, whole and in order."""

    async def main() -> None:
        limits = Limits(outbound=8_000_000)
        async with (
            open_engine(reactors) as engine,
            two_conns(engine, "unix", options=SMALL, limits=limits) as (one, other),
            trio.open_nursery() as nursery,
        ):
            out, back = one.framed(PREFIXED), other.framed(PREFIXED)
            expected: list[bytes] = []

            async def act() -> None:
                for how, frames in steps:
                    before = out.statistics().frames_sent
                    if how == "send":
                        for frame in frames:
                            await out.send(frame)
                    elif how == "nowait":
                        for frame in frames:
                            out.send_nowait(frame)
                    elif how == "many_nowait":
                        out.send_many_nowait(frames)
                    else:
                        with trio.move_on_after(0.0001 if how == "cancel" else 1000):
                            await out.send_many(frames)
                    expected.extend(frames[: out.statistics().frames_sent - before])
                await one.send_eof()

            nursery.start_soon(act)
            received = [frame async for frame in back]
            assert received == expected
            assert out.statistics().bytes_sent == sum(map(len, expected))

    trio.run(main)


def tells_all(framing: Any) -> bool:
    """Whether what is stripped follows from what is delivered."""
    if not isinstance(framing, LengthPrefixed) or framing.strip == 0:
        return True
    return framing.offset == 0 and (framing.strip is None or framing.strip <= framing.size)


@pytest.mark.parametrize("reactors", [0, 1])
@given(stream=streams())
def test_what_was_delivered_can_be_sent(reactors: int, stream: tuple[Any, bytes]) -> None:
    """In every framing where that can be: the peer has the same frames delivered."""
    framing, data = stream
    frames = split(framing, data)[0]

    async def main() -> None:
        limits = Limits(outbound=8_000_000)
        async with (
            open_engine(reactors) as engine,
            two_conns(engine, "unix", limits=limits) as (one, other),
            trio.open_nursery() as nursery,
        ):
            out, back = one.framed(framing), other.framed(framing)

            async def send() -> None:
                for i in range(0, len(frames), 3):
                    out.send_nowait(frames[i])
                    out.send_many_nowait(map(memoryview, frames[i + 1 : i + 2]))
                    await out.send_many(frames[i + 2 : i + 3])
                await one.send_eof()

            if tells_all(framing) or not frames:
                nursery.start_soon(send)
                assert [frame async for frame in back] == frames
                return
            with pytest.raises(ValueError, match="strips bytes that no frame tells"):
                out.send_nowait(frames[0])
            with pytest.raises(ValueError, match="strips bytes that no frame tells"):
                await out.send(frames[0])
            assert one.statistics().bytes_sent == 0

    trio.run(main)


@pytest.mark.parametrize("one", ["frames", "websocket"])
async def test_what_was_not_sent_is_let_go_of(engine: Engine, one: str) -> None:
    """A buffer may be resized again, however the send has failed."""
    async with conn_and_peer(engine, limits=Limits(outbound=1000)) as (conn, _):
        channel: Any = conn.framed(PREFIXED) if one == "frames" else WebSocket._over(conn, "server")
        data = bytearray(10)
        for bad in ([data, 5], [data, bytes(2000)]):
            with pytest.raises((TypeError, ValueError)):
                channel.send_many_nowait(bad)
            data.append(1)
        with pytest.raises(TypeError):
            await channel.send_many([data, 5])
        data.append(1)
        data.extend(bytes(2000))
        with pytest.raises(ValueError, match="outbound"):
            channel.send_nowait(data)
        data.append(1)
