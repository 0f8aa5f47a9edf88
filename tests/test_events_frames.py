"""Event mode with frames: which lists callbacks get, and how a connection ends."""

from __future__ import annotations

import functools
import socket
import sys
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from event_servers import LOCAL, STYLES, address_of, caller, served, served_frames, styled
from frame_models import pieces, split, streams
from helpers import content, dial, read, read_all, send, until
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_wknet import (
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
    open_engine,
)

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

MIB = 1 << 20
FOUR = LengthPrefixed(4, max_frame=4 * MIB)


def prefixed(*frames: bytes) -> bytes:
    return b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)


class Log:
    """Callbacks that write down what comes, and check the contract."""

    def __init__(self, style: str = "plain", *, answer: bool = False) -> None:
        self.answer = answer
        self.lists: list[list[bytes]] = []
        self.errors: list[Exception] = []
        self.reasons: list[str] = []
        self.running: set[int] = set()
        self.on_connect = styled(self._connect, style)
        self.on_frames = styled(self._frames, style)
        self.on_close = styled(self._close, style)

    def _connect(self, channel: FrameChannel) -> None:
        assert isinstance(channel, FrameChannel)
        assert channel.conn.context is None
        channel.conn.context = 0  # frames

    def _frames(self, channel: FrameChannel, frames: list[bytes]) -> None:
        assert type(frames) is list
        assert frames
        channel.conn.context += len(frames)
        self.lists.append(frames)
        if self.answer:
            channel.send_many_nowait(frames)

    def on_error(self, channel: FrameChannel, exc: Exception) -> None:
        assert isinstance(channel, FrameChannel)
        self.errors.append(exc)

    def _close(self, channel: FrameChannel, reason: str) -> None:
        assert channel.conn.close_reason == reason
        assert channel.conn.id is None
        assert channel.statistics().frames_received == channel.conn.context
        self.reasons.append(reason)

    @property
    def callbacks(self) -> dict[str, Any]:
        return {
            "on_connect": self.on_connect,
            "on_close": self.on_close,
            "on_error": self.on_error,
        }

    @property
    def frames(self) -> list[bytes]:
        return [frame for frames in self.lists for frame in frames]


def shut(peer: Any) -> None:
    peer.shutdown(socket.SHUT_WR)


def reset(peer: Any) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peer.close()


# -- delivery --------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
async def test_lists_of_whole_frames(engine: Engine, kind: str, style: str, tmp_path: Path) -> None:
    log = Log(style, answer=True)
    address = address_of(kind, tmp_path)
    async with served_frames(engine, FOUR, log.on_frames, address, **log.callbacks) as listener:
        with caller(listener) as peer:
            many = [content(n, n % 90) for n in range(1000)]
            for frames in ([b"one"], [b"two", b"", b"three"], many):
                wire = prefixed(*frames)
                await send(peer, wire)
                assert await read(peer, len(wire)) == wire
            for byte in prefixed(b"byte by byte"):
                await send(peer, bytes([byte]))
                await trio.lowlevel.checkpoint()
            assert await read(peer, 16) == prefixed(b"byte by byte")
            calls = len(log.lists)
            assert not log.reasons
        await until(lambda: log.reasons == ["eof"])
        await until(lambda: listener.statistics().handlers == 0)
    assert log.frames == [b"one", b"two", b"", b"three", *many, b"byte by byte"]
    assert log.errors == []
    # Packets may be split, but nothing is called for each frame, or each byte.
    assert calls < 100


@pytest.mark.parametrize("style", STYLES)
async def test_frames_beyond_the_bound(engine: Engine, kind: str, style: str) -> None:
    log = Log(style)
    sent = [content(n, n * 199_999 % (3 * MIB)) for n in range(12)] + [b"small"] * 5
    limits = Limits(inbound=10_000)
    async with served_frames(
        engine, FOUR, log.on_frames, limits=limits, **log.callbacks
    ) as listener:
        with caller(listener) as peer:
            await send(peer, prefixed(*sent))
        await until(lambda: log.reasons == ["eof"])
    assert log.frames == sent


@pytest.mark.parametrize(
    ("framing", "wire", "frames"),
    [
        (Delimited(b"\r\n", max_frame=9), b"a\r\nbc\r\n\r\n", [b"a", b"bc", b""]),
        (FixedLength(2), b"abcdef", [b"ab", b"cd", b"ef"]),
        (VarintPrefixed(300), b"\1a\0" + b"\xac\2" + b"x" * 300, [b"a", b"", b"x" * 300]),
        (LengthPrefixed(1, strip=0, max_frame=9), b"\1a\2bc", [b"\1a", b"\2bc"]),
    ],
)
async def test_every_framing(
    engine: Engine, framing: Any, wire: bytes, frames: list[bytes]
) -> None:
    log = Log()
    async with served_frames(engine, framing, log.on_frames, **log.callbacks) as listener:
        with caller(listener) as peer:
            await send(peer, wire)
        await until(lambda: log.reasons == ["eof"])
    assert log.frames == frames
    assert log.errors == []


async def test_what_came_before_serving(engine: Engine) -> None:
    log = Log()
    listener = await engine.listen(LOCAL)
    for _ in range(10):
        with dial(listener) as sock:
            sock.send(prefixed(b"early", b"bird"))
    await until(lambda: listener.statistics().waiting == 10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            functools.partial(listener.serve_frames, FOUR, log.on_frames, on_connect=log.on_connect)
        )
        await until(lambda: log.frames == [b"early", b"bird"] * 10)
        nursery.cancel_scope.cancel()


async def test_nothing_is_called_for_a_part(engine: Engine) -> None:
    log = Log()
    async with served_frames(engine, FOUR, log.on_frames, on_connect=log.on_connect) as listener:
        with caller(listener) as peer:
            wakes = engine.statistics().wakes
            wire = prefixed(bytes(300))
            for byte in wire[:-1]:
                await send(peer, bytes([byte]))
                await trio.lowlevel.checkpoint()
            (conn,) = engine.connections.values()
            await until(lambda: conn.statistics().buffered_inbound == len(wire) - 1)
            assert log.lists == []
            assert engine.statistics().wakes - wakes < 20
            await send(peer, wire[-1:])
            await until(lambda: log.lists == [[bytes(300)]])


async def test_on_connect_may_send(engine: Engine) -> None:
    log = Log()

    async def greet_later(channel: FrameChannel) -> None:
        await channel.send(b"hello")

    for greet in (lambda channel: channel.send_nowait(b"hello"), greet_later):
        async with served_frames(engine, FOUR, log.on_frames, on_connect=greet) as listener:
            with caller(listener) as peer:
                assert await read(peer, 9) == prefixed(b"hello")


async def test_a_slow_callback_holds_the_peer_back(engine: Engine, kind: str) -> None:
    """What comes meanwhile waits, up to the bound; other connections do not."""
    go = trio.Event()
    lists: list[list[bytes]] = []
    frames = [content(n, 1000) for n in range(2000)]

    async def on_frames(channel: FrameChannel, got: list[bytes]) -> None:
        lists.append(got)
        if got == [b"quick"]:
            return
        await go.wait()
        assert channel.conn.statistics().buffered_inbound <= 20_000

    async with served_frames(engine, FOUR, on_frames, limits=Limits(inbound=20_000)) as listener:
        with caller(listener) as peer, caller(listener) as other:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, peer, prefixed(*frames))
                await until(lambda: lists)
                await send(other, prefixed(b"quick"))
                await until(lambda: [b"quick"] in lists)
                await wait_all_tasks_blocked()
                assert len(lists) == 2
                go.set()
            await until(lambda: sum(map(len, lists)) == 2001)
    lists.remove([b"quick"])
    assert [frame for got in lists for frame in got] == frames
    assert max(map(len, lists)) < 60


# -- receiving in a callback -----------------------------------------------------------------------


async def test_a_receive_in_a_callback(engine: Engine, kind: str) -> None:
    """Without waiting there is nothing more; an async one waits for what comes next, and the
    server goes on behind that."""
    log: list[Any] = []

    async def on_frames(channel: FrameChannel, frames: list[bytes]) -> None:
        log.append(frames)
        for receive in (channel.receive_nowait, channel.receive_many_nowait):
            with pytest.raises(trio.WouldBlock):
                receive()
        if frames == [b"begin"]:
            channel.send_nowait(b"go on")
            log.append(await channel.receive())
            assert await anext(channel) == b"by hand, too"
            with trio.move_on_after(0):
                await channel.receive()

    async with served_frames(engine, FOUR, on_frames) as listener:
        with caller(listener) as peer:
            await send(peer, prefixed(b"begin"))
            assert await read(peer, 9) == prefixed(b"go on")
            await send(peer, prefixed(b"by hand"))
            await until(lambda: len(log) == 2)
            await send(peer, prefixed(b"by hand, too"))
            await wait_all_tasks_blocked()
            await send(peer, prefixed(b"as a list"))
            await until(lambda: len(log) == 3)
    assert log == [[b"begin"], b"by hand", [b"as a list"]]


@pytest.mark.parametrize("rest", [b"", b"\0", b"\xff" * 4])
async def test_no_end_is_told_inside_a_callback(engine: Engine, rest: bytes) -> None:
    """Nor is what is refused: so a plain callback may take frames up to WouldBlock."""
    log: list[Any] = []

    async def on_frames(channel: FrameChannel, frames: list[bytes]) -> None:
        await until(lambda: channel.conn.close_reason == "eof")
        with pytest.raises(trio.WouldBlock):
            channel.receive_many_nowait()
        with pytest.raises(trio.WouldBlock):
            channel.receive_nowait()
        log.extend(frames)

    errors: list[Exception] = []
    async with served_frames(
        engine,
        FOUR,
        on_frames,
        on_close=lambda _, reason: log.append(reason),
        on_error=lambda _, exc: errors.append(exc),
    ) as listener:
        with caller(listener) as peer:
            await send(peer, prefixed(b"last") + rest)
        await until(lambda: len(log) == 2)
    assert log == [b"last", "eof"]
    kinds = {b"": [], b"\0": [IncompleteRead], b"\xff" * 4: [FrameTooLong]}
    assert list(map(type, errors)) == kinds[rest]


async def test_a_task_may_not_wait_for_what_the_server_takes(engine: Engine) -> None:
    channels: list[FrameChannel] = []
    log = Log()
    async with served_frames(engine, FOUR, log.on_frames, on_connect=channels.append) as listener:
        with caller(listener) as peer:
            await until(lambda: channels)
            (channel,) = channels
            for receive in (channel.receive, channel.receive_many, channel.__anext__):
                with pytest.raises(trio.BusyResourceError, match="serve_frames receives"):
                    await receive()
            for ask in (channel.receive_nowait, channel.receive_many_nowait):
                with pytest.raises(trio.WouldBlock):
                    ask()
            with pytest.raises(trio.BusyResourceError, match="serve_frames receives"):
                channel.unframe()
            with pytest.raises(trio.BusyResourceError, match="serve_frames receives"):
                channel.conn.framed(FOUR)
            for of_bytes in (channel.conn.receive_some, channel.conn.detach):
                with pytest.raises(trio.BusyResourceError):
                    await of_bytes()
            await channel.send(b"from a task")
            assert await read(peer, 15) == prefixed(b"from a task")


async def test_it_stays_framed_in_callbacks(engine: Engine) -> None:
    """A channel that was thrown away gives nobody the right to another framing."""
    refused: list[str] = []

    async def on_frames(channel: FrameChannel, frames: list[bytes]) -> None:
        conn = channel.conn
        for way in (channel.unframe, lambda: conn.framed(FOUR), conn.receive_nowait):
            with pytest.raises(trio.BusyResourceError) as raised:
                way()
            refused.append(str(raised.value))
        gone = weakref.ref(channel)
        del channel, raised, way  # with all that refers to it
        assert gone() is None
        with pytest.raises(trio.BusyResourceError):
            conn.framed(FixedLength(1))
        conn.send_nowait(b"done")

    async with served_frames(engine, FOUR, on_frames) as listener:
        with caller(listener) as peer:
            for _ in range(2):
                await send(peer, prefixed(b"x"))
                assert await read(peer, 4) == b"done"
    assert len(refused) == 6


PARTS = [b"\0\0", prefixed(bytes(100))[:-1], prefixed(bytes(2 * MIB))[:-1]]

# -- ends ------------------------------------------------------------------------------------------

REFUSED = [
    (b"\xff" * 4, FrameTooLong, "frame too long"),
    (b"\0\0\0\0", MalformedFrame, "malformed frame"),
]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("wire", "error", "reason"), REFUSED)
async def test_a_refused_frame(
    engine: Engine, style: str, wire: bytes, error: type[Exception], reason: str
) -> None:
    """It comes behind every whole one, to on_error, which may still send; and it ends its
    connection alone."""
    log = Log(style)
    framing = LengthPrefixed(4, adjustment=-1, max_frame=100)

    def on_error(channel: FrameChannel, exc: Exception) -> None:
        log.on_error(channel, exc)
        channel.send_nowait(b"refused")

    callbacks = {**log.callbacks, "on_error": on_error}
    async with served_frames(engine, framing, log.on_frames, **callbacks) as listener:
        with caller(listener) as peer, caller(listener) as other:
            await send(peer, b"\0\0\0\2a\0\0\0\3bc" + wire + b"more")
            assert await read_all(peer) == b"\0\0\0\x08refused"
            await until(lambda: log.reasons == [reason])
            await send(other, b"\0\0\0\4def")
            await until(lambda: len(log.frames) == 3)
    assert log.frames == [b"a", b"bc", b"def"]
    assert list(map(type, log.errors)) == [error]


@pytest.mark.parametrize("wire", [b"\xff" * 4, b"\0\0\0\0", b"\0\0", b"\0\0\0\7abc"])
async def test_a_peer_cannot_end_serving(engine: Engine, kind: str, wire: bytes) -> None:
    """Without on_error, too."""
    framing = LengthPrefixed(4, adjustment=-1, max_frame=100)
    lists: list[list[bytes]] = []
    async with served_frames(engine, framing, lambda _, frames: lists.append(frames)) as listener:
        with caller(listener) as peer:
            await send(peer, wire)
            shut(peer)
            assert await read_all(peer) == b""
        with caller(listener) as peer:
            await send(peer, b"\0\0\0\3ok")
            await until(lambda: lists == [[b"ok"]])


@pytest.mark.parametrize("rest", PARTS)
async def test_an_end_inside_a_frame(engine: Engine, kind: str, rest: bytes) -> None:
    log = Log()
    async with served_frames(engine, FOUR, log.on_frames, **log.callbacks) as listener:
        with caller(listener) as peer:
            await send(peer, prefixed(b"whole") + rest)
        await until(lambda: log.reasons == ["eof"])
    assert log.frames == [b"whole"]
    (error,) = log.errors
    assert isinstance(error, IncompleteRead)
    assert error.buffered == len(rest)


@pytest.mark.parametrize("rest", [b"", b"\0\0", prefixed(bytes(2 * MIB))[:-1]])
async def test_a_reset(engine: Engine, rest: bytes) -> None:
    log = Log()
    async with served_frames(engine, FOUR, log.on_frames, **log.callbacks) as listener:
        with caller(listener) as peer:
            await send(peer, prefixed(b"whole") + rest)
            await until(lambda: log.frames == [b"whole"])
            (conn,) = engine.connections.values()
            await until(lambda: conn.statistics().bytes_received == 9 + len(rest))
            reset(peer)
        await until(lambda: log.reasons == ["reset"])
    (error,) = log.errors
    assert isinstance(error, trio.BrokenResourceError)
    assert isinstance(error.__cause__, ConnectionResetError)


async def test_the_last_frames_are_answered(engine: Engine, kind: str) -> None:
    """The peer has finished sending, and reads on."""
    log = Log(answer=True)
    frames = [content(n, 5000) for n in range(50)]
    async with served_frames(engine, FOUR, log.on_frames, **log.callbacks) as listener:
        with caller(listener) as peer:
            await send(peer, prefixed(*frames))
            shut(peer)
            assert await read_all(peer) == prefixed(*frames)
        await until(lambda: log.reasons == ["eof"])


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("which", ["on_connect", "on_frames", "on_close"])
async def test_a_callback_raises(engine: Engine, which: str, style: str) -> None:
    """on_error gets the channel; without one, serving ends."""

    def wrong(channel: FrameChannel, *_: Any) -> None:
        raise ValueError(which)

    log = Log()
    callbacks: dict[str, Any] = {"on_frames": print, "on_error": log.on_error}
    callbacks[which] = styled(wrong, style)
    async with served_frames(engine, FOUR, **callbacks) as listener:
        with caller(listener) as peer:
            await send(peer, prefixed(b"x"))
            if which == "on_close":
                shut(peer)
            assert await read_all(peer) == b""
        await until(lambda: log.errors)
    assert [str(error) for error in log.errors] == [which]
    del callbacks["on_error"]
    with pytest.raises(BaseExceptionGroup) as raised:
        async with served_frames(engine, FOUR, **callbacks) as listener:
            with caller(listener) as peer:
                await send(peer, prefixed(b"x"))
                if which == "on_close":
                    shut(peer)
                await trio.sleep_forever()
    assert raised.group_contains(ValueError, match=which)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("way", ["aclose", "close_nowait", "abort"])
async def test_a_callback_closes(engine: Engine, style: str, way: str) -> None:
    log = Log()

    def on_frames(channel: FrameChannel, frames: list[bytes]) -> None:
        log.on_frames(channel, frames)
        channel.send_nowait(b"bye")
        getattr(channel.conn, way)()
        assert not log.reasons
        with pytest.raises(trio.ClosedResourceError):
            channel.send_nowait(b"late")
        with pytest.raises(trio.ClosedResourceError):
            channel.receive_nowait()

    async def closing(channel: FrameChannel, frames: list[bytes]) -> None:
        log.on_frames(channel, frames)
        channel.send_nowait(b"bye")
        await channel.aclose()

    callback = closing if way == "aclose" else styled(on_frames, style)
    async with served_frames(engine, FOUR, callback, **log.callbacks) as listener:
        with caller(listener) as peer:
            await send(peer, prefixed(b"x"))
            if way == "abort":
                with suppress(ConnectionResetError):
                    await read_all(peer)
            else:
                assert await read_all(peer) == prefixed(b"bye")
            await until(lambda: log.reasons == ["aborted" if way == "abort" else "closed"])
    assert log.errors == []


@pytest.mark.parametrize("wire", [b"", b"\0\0\0\5ab", prefixed(bytes(2 * MIB))[:-1]])
async def test_idle_inside_a_frame(autojump_clock: MockClock, wire: bytes) -> None:
    log = Log()
    async with open_engine(0) as engine:
        listener = await engine.listen(LOCAL, idle_timeout=5)
        async with trio.open_nursery() as nursery:
            await nursery.start(
                functools.partial(listener.serve_frames, FOUR, log.on_frames, **log.callbacks)
            )
            with dial(listener) as sock:
                sock.setblocking(False)
                peer = trio.socket.from_stdlib_socket(sock.dup())
                await send(peer, wire)
                began = trio.current_time()
                assert await read_all(peer) == b""
                assert 5 <= trio.current_time() - began < 7
                peer.close()
            assert log.reasons == ["idle"]
            assert log.errors == []
            nursery.cancel_scope.cancel()


async def test_drain_inside_a_frame(engine: Engine, kind: str, tmp_path: Path) -> None:
    log = Log(answer=True)
    listener = await engine.listen(address_of(kind, tmp_path))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            functools.partial(listener.serve_frames, FOUR, log.on_frames, **log.callbacks)
        )
        with caller(listener) as peer:
            await send(peer, prefixed(b"whole") + b"\0\0\0\4ha")
            await until(lambda: log.frames)
            nursery.start_soon(listener.drain)
            await wait_all_tasks_blocked()
            assert not log.reasons
            await send(peer, b"lf")
            shut(peer)
            assert await read_all(peer) == prefixed(b"whole", b"half")
    # serve_frames has returned, with the last connection.
    assert log.reasons == ["eof"]


@pytest.mark.parametrize("style", STYLES)
async def test_cancelled(engine: Engine, style: str) -> None:
    log = Log(style)
    async with served_frames(engine, FOUR, log.on_frames, **log.callbacks) as listener:
        socks = [dial(listener), dial(listener)]
        socks[0].send(prefixed(b"x") + b"\0\0")
        socks[1].send(prefixed(b"y"))
        await until(lambda: len(log.frames) == 2)
        await wait_all_tasks_blocked()
    for sock in socks:
        sock.close()
    if style == "plain":  # others are cancelled, too
        assert log.reasons == ["closed", "closed"]
    assert log.errors == []
    assert list(engine.connections) == []


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["on_frames", "on_connect", "on_close", "on_error"])
async def test_what_is_not_callable_is_refused(engine: Engine, name: str) -> None:
    arguments: dict[str, Any] = {"on_frames": print, name: 5}
    async with await engine.listen(LOCAL) as listener:
        with pytest.raises(TypeError, match=f"{name} must be callable, not 5"):
            await listener.serve_frames(FOUR, **arguments)
        with pytest.raises(TypeError, match=r"framing must be one of LengthPrefixed, .* not 4"):
            await listener.serve_frames(4, print)  # type: ignore[arg-type]
        with dial(listener):  # nothing has begun
            (await listener.accept()).abort()


async def test_one_serves_at_a_time(engine: Engine) -> None:
    async with served_frames(engine, FOUR, print) as listener:
        with pytest.raises(trio.BusyResourceError, match="is serving this listener"):
            await listener.serve_frames(FOUR, print)
        with pytest.raises(trio.BusyResourceError, match="is serving this listener"):
            await listener.serve_events(print)
    async with served(engine, print) as listener:
        with pytest.raises(trio.BusyResourceError, match="is serving this listener"):
            await listener.serve_frames(FOUR, print)
    with pytest.raises(trio.ClosedResourceError):
        await listener.serve_frames(FOUR, print)


async def test_a_callback_that_returns_nonsense(engine: Engine) -> None:
    with pytest.raises(BaseExceptionGroup) as raised:
        async with served_frames(engine, FOUR, lambda channel, frames: frames) as listener:
            with caller(listener) as peer:
                await send(peer, prefixed(b"x"))
                await trio.sleep_forever()
    assert raised.group_contains(TypeError, match=r"must return None or be an async function")


# -- a model ---------------------------------------------------------------------------------------


async def check(
    reactors: int, kind: str, inbound: int, framing: Any, sent: list[bytes], style: str, folder: str
) -> None:
    frames, rest, end = split(framing, b"".join(sent))
    log = Log(style)
    async with open_engine(reactors) as engine:
        address = LOCAL if kind == "tcp" else f"unix://{folder}/socket"
        async with served_frames(
            engine, framing, log.on_frames, address, Limits(inbound=inbound), **log.callbacks
        ) as listener:
            with trio.fail_after(10), caller(listener) as peer:
                with suppress(ConnectionResetError, BrokenPipeError):  # once it is refused
                    for piece in sent:
                        await send(peer, piece)
                        await trio.lowlevel.checkpoint()
                    shut(peer)
                await until(lambda: log.reasons)
    assert log.frames == frames
    assert list(map(type, log.errors)) == ([] if end is trio.EndOfChannel else [end])
    if end is IncompleteRead:
        assert log.errors[0].args[0].endswith(f" {len(rest)} bytes are there")


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("reactors", [0, 1])
@given(
    stream=streams(),
    inbound=st.sampled_from([1, 3, 16, 600, 65_536, 65_536]),
    style=st.sampled_from(STYLES),
    data=st.data(),
)
def test_any_split_of_any_frames(
    reactors: int,
    kind: str,
    tmp_path_factory: pytest.TempPathFactory,
    stream: Any,
    inbound: int,
    style: str,
    data: Any,
) -> None:
    framing, wire = stream
    if inbound < 600:
        wire = wire[:3000]  # each piece so small takes its turns
    sent = data.draw(pieces(wire))
    folder = str(tmp_path_factory.mktemp("model"))
    trio.run(check, reactors, kind, inbound, framing, sent, style, folder)
