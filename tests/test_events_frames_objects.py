"""Event mode with frames: a quiet connection is its slot and its scan. Channels come and go,
and one that the application keeps stays."""

from __future__ import annotations

import gc
import random
import sys
import threading
import weakref
from contextlib import suppress
from typing import Any

import pytest
import trio
from event_servers import STYLES, address_of, caller, served_frames, styled
from helpers import SMALL, Gate, dialled, read, until
from trio.testing import wait_all_tasks_blocked

from trio_wknet import Conn, Engine, FrameChannel, LengthPrefixed, Limits
from trio_wknet._framing import compiled

FOUR = LengthPrefixed(4, max_frame=100_000)


def prefixed(*frames: bytes) -> bytes:
    return b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)


def echo(channel: FrameChannel, frames: list[bytes]) -> None:
    channel.send_many_nowait(frames)


def objects() -> int:
    return sum(type(it) in (Conn, FrameChannel) for it in gc.get_objects())


def in_use(engine: Engine) -> int:
    return sum(reactor.pool_in_use for reactor in engine.statistics().reactors)


async def hear(peer: Any, word: bytes = b"hello") -> None:
    await peer.send(prefixed(word))
    assert await read(peer, 4 + len(word)) == prefixed(word)


@pytest.mark.parametrize("style", STYLES)
async def test_a_quiet_connection_has_no_object_and_no_buffer(engine: Engine, style: str) -> None:
    gc.collect()
    already = objects()
    before = in_use(engine)
    async with served_frames(engine, FOUR, styled(echo, style)) as listener:
        with dialled(listener, 50) as socks:
            peers = [trio.socket.from_stdlib_socket(sock.dup()) for sock in socks]
            for _ in range(2):
                for peer in peers:
                    await hear(peer)
            await wait_all_tasks_blocked()
            # But for one of each, kept for the next callback.
            assert objects() - already <= 2
            await until(lambda: in_use(engine) == before)
            for peer in peers:
                peer.close()
        await until(lambda: listener.statistics().handlers == 0)


async def test_a_plain_callback_makes_no_object(engine: Engine) -> None:
    """The same two objects serve one connection after another, without what they knew."""
    seen: dict[int, Any] = {}
    ids: set[tuple[int, int]] = set()

    def on_frames(channel: FrameChannel, frames: list[bytes]) -> None:
        conn = channel.conn
        ids.add((id(channel), id(conn)))
        assert conn.id is not None
        assert seen.setdefault(conn.id, conn.remote_address) == conn.remote_address
        conn.context = (conn.context or 0) + 1
        assert channel.framing is FOUR
        assert channel.statistics().frames_received == conn.context
        channel.send_many_nowait(frames)
        assert channel.statistics().frames_sent == conn.context

    async with served_frames(engine, FOUR, on_frames) as listener:
        with caller(listener) as one, caller(listener) as two, caller(listener) as three:
            for _ in range(5):
                for peer in (one, two, three):
                    await hear(peer)
            addresses = {peer.getsockname() for peer in (one, two, three)}
    assert set(seen.values()) == addresses
    # Asking for an address marks an object: that one is not lent again.
    ids.clear()

    def plain(channel: FrameChannel, frames: list[bytes]) -> None:
        ids.add((id(channel), id(channel.conn)))
        channel.send_many_nowait(frames)

    async with served_frames(engine, FOUR, plain) as listener:
        with caller(listener) as one, caller(listener) as two:
            for _ in range(5):
                for peer in (one, two):
                    await hear(peer)
    assert len(ids) == 1


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("keep", ["channel", "conn", "weakly"])
async def test_what_is_kept_stays(engine: Engine, style: str, keep: str) -> None:
    keeps: dict[str, Any] = {
        "channel": lambda channel: channel,
        "conn": lambda channel: channel.conn,
        "weakly": weakref.ref,
    }
    kept: dict[int, Any] = {}
    closed: list[Any] = []

    def on_frames(channel: FrameChannel, frames: list[bytes]) -> None:
        context = channel.conn.context
        if context in kept and keep == "channel":
            assert kept[context] is channel
        if context in kept and keep == "conn":
            assert kept[context] is channel.conn
        if context in kept and keep == "weakly":
            assert kept[context]() is None
        channel.conn.context = int(frames[0])
        kept[int(frames[0])] = keeps[keep](channel)
        assert channel.conn.id is not None
        echo(channel, frames)

    def on_close(channel: FrameChannel, reason: str) -> None:
        closed.append(channel if keep == "channel" else channel.conn)
        assert channel.statistics().frames_received == 4
        assert channel.conn.context in kept

    async with served_frames(engine, FOUR, styled(on_frames, style), on_close=on_close) as listener:
        with caller(listener) as one, caller(listener) as two:
            for _ in range(4):
                for name, peer in ((b"1", one), (b"2", two)):
                    await hear(peer, name)
                    await wait_all_tasks_blocked()
                    gc.collect()
            if keep == "channel":
                for number, peer in ((1, one), (2, two)):
                    await kept[number].send(b"from a task")
                    assert await read(peer, 15) == prefixed(b"from a task")
        await until(lambda: len(closed) == 2)
    if keep != "weakly":
        assert {id(it) for it in closed} == {id(it) for it in kept.values()}
    if keep == "channel":
        for channel in kept.values():  # though its connection is gone
            assert channel.statistics().frames_received == 4
            with pytest.raises(trio.ClosedResourceError):
                channel.receive_nowait()


@pytest.mark.parametrize("way", ["close_nowait", "abort"])
async def test_closed_between_callbacks(engine: Engine, way: str) -> None:
    """By who keeps the connection only: on_close gets a channel all the same."""
    conns: list[Conn] = []
    closed: list[Any] = []

    def on_close(channel: FrameChannel, reason: str) -> None:
        closed.append((channel.conn is conns[0], channel.statistics().frames_received, reason))
        with pytest.raises(trio.ClosedResourceError):
            channel.send_nowait(b"x")

    async with served_frames(
        engine,
        FOUR,
        echo,
        on_connect=lambda channel: conns.append(channel.conn),
        on_close=on_close,
    ) as listener:
        with caller(listener) as peer:
            await hear(peer)
            getattr(conns[0], way)()
            assert not closed
            await until(lambda: closed)
    assert closed == [(True, 1, "aborted" if way == "abort" else "closed")]


async def test_a_context_that_refers_to_its_channel(engine: Engine) -> None:
    class Session:
        def __init__(self, channel: FrameChannel) -> None:
            self.channel = channel

    sessions: list[weakref.ref[Session]] = []

    def on_connect(channel: FrameChannel) -> None:
        channel.conn.context = Session(channel)
        sessions.append(weakref.ref(channel.conn.context))

    def on_frames(channel: FrameChannel, frames: list[bytes]) -> None:
        assert channel.conn.context.channel is channel
        echo(channel, frames)

    async with served_frames(engine, FOUR, on_frames, on_connect=on_connect) as listener:
        with caller(listener) as peer:
            for _ in range(3):
                await hear(peer)
                gc.collect()
            assert sessions[0]() is not None
        await until(lambda: listener.statistics().handlers == 0)
        gc.collect()
        assert sessions[0]() is None


async def test_the_collector_finds_a_channel_that_is_handed_out_meanwhile(engine: Engine) -> None:
    """In another thread it has found a channel in a cycle, and before it comes to finalize
    that, a frame arrives, and the application keeps the channel."""
    held: list[Any] = []
    kept: list[FrameChannel] = []

    def on_connect(channel: FrameChannel) -> None:
        gate = Gate()
        cycle: list[Any] = [gate, channel]
        cycle.append(cycle)
        held.append(cycle)

    def on_frames(channel: FrameChannel, frames: list[bytes]) -> None:
        kept.append(channel)
        echo(channel, frames)

    gc.collect()
    async with served_frames(engine, FOUR, on_frames, on_connect=on_connect) as listener:
        with caller(listener) as peer:
            await until(lambda: held)
            identity = id(held[0][1])
            reached, go = held[0][0].reached, held[0][0].go
            gc.disable()
            try:
                held.clear()
                collector = threading.Thread(target=gc.collect)
                collector.start()
                await until(reached.is_set)
                await hear(peer)
                assert [id(channel) for channel in kept] == [identity]
                go.set()
                await until(lambda: not collector.is_alive())
                collector.join()
            finally:
                gc.enable()
            kept[0].send_nowait(b"alive")
            assert await read(peer, 9) == prefixed(b"alive")
            gone = weakref.ref(kept.pop())
            assert gone() is None
            await hear(peer)


REACHED, GO = threading.Event(), threading.Event()


class Untracked:
    """A gate that the collector does not know: its turn comes while garbage is cleared."""

    __slots__ = ()

    def __del__(self) -> None:
        REACHED.set()
        assert GO.wait(30)


async def test_the_collector_clears_what_is_handed_out_meanwhile(engine: Engine) -> None:
    """It has come to clear a cycle, and the channel in it, which it may have cleared before,
    is still there for a frame that arrives."""
    held: list[Any] = []
    kept: list[FrameChannel] = []

    def on_connect(channel: FrameChannel) -> None:
        cycle: list[Any] = [channel, Untracked()]  # cleared from the end
        cycle.append(cycle)
        held.append(cycle)

    def on_frames(channel: FrameChannel, frames: list[bytes]) -> None:
        kept.append(channel)
        echo(channel, frames)

    gc.collect()
    REACHED.clear()
    GO.clear()
    async with served_frames(engine, FOUR, on_frames, on_connect=on_connect) as listener:
        with caller(listener) as peer:
            await until(lambda: held)
            identity = id(held[0][0])
            gc.disable()
            try:
                held.clear()
                collector = threading.Thread(target=gc.collect)
                collector.start()
                await until(REACHED.is_set)
                await hear(peer)
                assert [id(channel) for channel in kept] == [identity]
                GO.set()
                await until(lambda: not collector.is_alive())
                collector.join()
            finally:
                gc.enable()
            await hear(peer)
            assert kept[0] is kept[1]


async def test_a_channel_that_another_thread_is_freeing(engine: Engine) -> None:
    """Deep in a structure that is being freed, it waits without a reference left (CPython's
    trashcan): it is not there any more for anybody."""
    roots: list[Any] = []
    async with served_frames(engine, FOUR, echo, on_connect=roots.append) as listener:
        for depth in range(45, 55):
            with caller(listener) as peer:
                await until(lambda: roots)
                gate = Gate()
                reached, go = gate.reached, gate.go
                nested: Any = [roots.pop()]
                for _ in range(depth):
                    nested = [nested]
                roots.append([gate, nested])
                del gate, nested
                freeing = threading.Thread(target=roots.clear)
                freeing.start()
                await until(reached.is_set)
                for _ in range(3):
                    await hear(peer)
                go.set()
                await until(lambda: not freeing.is_alive())  # noqa: B023
                freeing.join()
                await hear(peer)


# -- churn -----------------------------------------------------------------------------------------


class Server:
    """Callbacks that do all that is allowed, at random, and check each connection's frames:
    the number of the connection, and a count."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.kept: list[Any] = []
        self.open = 0
        self.errors = 0

    def on_connect(self, channel: FrameChannel) -> None:
        self.open += 1
        channel.conn.context = []

    def check(self, channel: FrameChannel, frames: list[bytes]) -> None:
        seen: list[bytes] = channel.conn.context
        assert frames
        for frame in frames:
            if seen:
                assert frame[:4] == seen[-1][:4]
                assert frame[4:8] == (int.from_bytes(seen[-1][4:8], "big") + 1).to_bytes(4, "big")
            seen.append(frame[:8])

    def on_frames(self, channel: FrameChannel, frames: list[bytes]) -> Any:
        self.check(channel, frames)
        way = self.dice.random()
        if way < 0.2:
            self.kept.append(self.dice.choice([channel, channel.conn, weakref.ref(channel)]))
        if len(self.kept) > 8:
            del self.kept[: self.dice.randrange(8)]
        if way < 0.02:
            channel.conn.abort()
        elif way < 0.04:
            channel.conn.close_nowait()
        elif way < 0.06:
            raise ValueError
        elif way < 0.4:
            return self.slowly(channel, frames)
        with suppress(trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            channel.send_many_nowait([frame[:8] for frame in frames])
        return None

    async def slowly(self, channel: FrameChannel, frames: list[bytes]) -> None:
        await trio.lowlevel.checkpoint()
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            if self.dice.random() < 0.5:
                with trio.move_on_after(0.0005):
                    await channel.send_many([frame[:8] for frame in frames])
            with suppress(trio.EndOfChannel), trio.move_on_after(0.0005):
                self.check(channel, await channel.receive_many())

    def on_error(self, channel: FrameChannel, exc: Exception) -> None:
        self.errors += 1
        assert isinstance(channel, FrameChannel)

    def on_close(self, channel: FrameChannel, reason: str) -> None:
        assert channel.statistics().frames_received >= len(channel.conn.context)
        self.open -= 1


async def client(listener: Any, number: int, dice: random.Random) -> None:
    with caller(listener) as peer, suppress(OSError):
        for count in range(dice.randrange(40)):
            size = dice.choice([0, 5, 300, 30_000])
            wire = prefixed(number.to_bytes(4, "big") + count.to_bytes(4, "big") + bytes(size))
            while wire:
                wire = wire[await peer.send(wire[: dice.choice([1, 7, 500, len(wire)])]) :]
            if dice.random() < 0.5:
                with trio.move_on_after(0.001):
                    await peer.recv(5000)
        if dice.random() < 0.3:
            await peer.send(dice.choice([b"\0", b"\xff" * 5, b"\0\0\0\1"]))
        if dice.random() < 0.3:
            peer.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER: a reset


async def test_churn(engine: Engine, kind: str, tmp_path: Any, long: bool) -> None:
    dice = random.Random(11)
    server = Server(dice)
    gc.collect()
    # Each scan refers to the compiled framing.
    scans = sys.getrefcount(compiled(FOUR))
    numbers = iter(range(4000 if long else 100))
    limits = Limits(inbound=20_000, linger_time=0.2)

    async def clients() -> None:
        for number in numbers:
            await client(listener, number, random.Random(number))

    callbacks = (server.on_connect, server.on_close, server.on_error)
    names = ("on_connect", "on_close", "on_error")
    async with served_frames(
        engine,
        FOUR,
        server.on_frames,
        address_of(kind, tmp_path),
        limits,
        SMALL,
        **dict(zip(names, callbacks, strict=True)),
    ) as listener:
        async with trio.open_nursery() as nursery:
            for _ in range(12):
                nursery.start_soon(clients)
        await until(lambda: listener.statistics().handlers == 0)
        assert server.open == 0
        assert server.errors > 0
    server.kept.clear()
    gc.collect()
    left = sys.getrefcount(compiled(FOUR)) - scans
    assert left == 0
