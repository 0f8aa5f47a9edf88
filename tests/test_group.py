"""Groups: who is a member, what each of them gets, and in which order."""

from __future__ import annotations

import gc
import pickle
import random
import weakref
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing
from event_servers import Journal, caller, served
from helpers import (
    SMALL,
    clog,
    conn_and_peer,
    content,
    dialled,
    read,
    read_all,
    send,
    tcp_address,
    until,
)
from websocket_model import BINARY, CLOSE, TEXT, close_payload, frame

from trio_wknet import (
    BroadcastIncomplete,
    BroadcastResult,
    Conn,
    Delimited,
    Engine,
    LengthPrefixed,
    Limits,
    WebSocket,
    WebSocketOptions,
    open_engine,
    open_websocket,
)

Pair = tuple[Conn, Any]
FOUR = LengthPrefixed(4, max_frame=65536)
LINES = Delimited(b"\n", max_frame=20)


def result(sent: int = 0, queued: int = 0, skipped: int = 0, closed: int = 0) -> BroadcastResult:
    return BroadcastResult(sent=sent, queued=queued, skipped=skipped, closed=closed)


@asynccontextmanager
async def pairs(
    engine: Engine, count: int, kind: str = "tcp", **how: Any
) -> AsyncIterator[list[Pair]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(conn_and_peer(engine, kind, **how))
            for _ in range(count)
        ]


# -- members ---------------------------------------------------------------------------------------


async def test_members(engine: Engine, kind: str) -> None:
    async with pairs(engine, 3, kind) as ((a, _), (b, _), (c, _)):
        group, other = engine.group(), engine.group()
        assert len(group) == 0
        assert list(group) == []
        assert group, "one without members is a group all the same"
        for _ in range(2):  # idempotent
            group.add(a)
            group.add(b)
            other.add(b)
        assert len(group) == 2
        assert a in group
        assert b in group
        assert c not in group
        assert "no member" not in group
        assert set(group) == {a, b}
        for _ in range(2):
            group.discard(a)
            group.discard(c)
        assert list(group) == [b]
        await b.aclose()
        assert len(group) == len(other) == 0
        assert b not in group
        group.discard(b)
        with pytest.raises(trio.ClosedResourceError):
            group.add(b)


async def test_iteration_is_over_a_snapshot(engine: Engine) -> None:
    async with pairs(engine, 20) as made:
        group = engine.group()
        for conn, _ in made:
            group.add(conn)
        seen = []
        for number, conn in enumerate(group):
            seen.append(conn)
            if number == 0:
                gone = next(it for it, _ in made if it is not conn)
                gone.abort()
        assert len(seen) == len(set(seen)) == 19
        assert gone not in seen


@pytest.mark.parametrize(
    "close", [Conn.abort, Conn.close_nowait, Conn.detach, Conn.aclose], ids=lambda it: it.__name__
)
async def test_they_leave_when_they_close(engine: Engine, close: Any) -> None:
    async with conn_and_peer(engine) as (conn, _):
        groups = [engine.group() for _ in range(50)]
        for group in groups:
            group.add(conn)
        closing = close(conn)
        if closing is not None:
            taken = await closing
            if taken is not None:
                taken[0].close()
        assert [len(group) for group in groups] == [0] * 50


async def test_a_group_outlives_its_engine(reactors: int) -> None:
    async with open_engine(reactors=reactors) as engine:
        group = engine.group()
        async with conn_and_peer(engine) as (conn, peer):
            group.add(conn)
            sending = group.broadcast_nowait(b"last words")
            assert await read(peer, 10) == b"last words"
            await sending.wait()
            left = group.broadcast_nowait(b"not waited for")
    assert len(group) == 0
    await left.wait()
    for use in (list, lambda it: it.broadcast_nowait(b""), lambda it: it.add(conn)):
        with pytest.raises((RuntimeError, trio.ClosedResourceError)):
            use(group)


async def test_quiet_connections_have_no_object(engine: Engine) -> None:
    """They are served by callbacks, and belong to a group all the same."""
    journal = Journal()
    group = engine.group()
    objects: weakref.WeakSet[Conn] = weakref.WeakSet()

    def on_connect(conn: Conn) -> None:
        journal.on_connect(conn)
        group.add(conn)
        objects.add(conn)

    async with served(
        engine, journal.on_data, on_connect=on_connect, on_close=journal.on_close
    ) as (listener):
        with dialled(listener, 20) as socks:
            await until(lambda: len(group) == 20)
            gc.collect()
            assert len(objects) == 0
            await group.broadcast_nowait(b"hello").wait()
            assert len(engine.connections) == 20
            for sock in socks:
                with trio.socket.from_stdlib_socket(sock.dup()) as peer:
                    assert await read(peer, 5) == b"hello"
            socks[0].close()
            await until(lambda: len(group) == 19)
        await until(lambda: len(group) == 0)


async def test_from_a_callback(engine: Engine) -> None:
    """A chat of ten lines: what one says, the others get."""
    group = engine.group()

    def on_data(conn: Conn) -> None:
        group.broadcast_nowait(conn.receive_nowait(), exclude=[conn])

    async with served(engine, on_data, on_connect=group.add) as listener:
        with caller(listener) as a, caller(listener) as b, caller(listener) as c:
            await until(lambda: len(group) == 3)
            for number in range(100):
                await send((a, b, c)[number % 3], b"%04d" % number)
                for peer in ((b, c), (a, c), (a, b))[number % 3]:
                    assert await read(peer, 4) == b"%04d" % number


# -- forms -----------------------------------------------------------------------------------------


async def test_each_gets_its_form(engine: Engine, kind: str) -> None:
    async with pairs(engine, 5, kind) as made:
        (plain, p0), (prefixed, p1), (lines, p2), (server, p3), (client, p4) = made
        group = engine.group()
        group.add(plain)
        group.add(prefixed.framed(FOUR))
        group.add(lines.framed(LINES))
        group.add(WebSocket._over(server, "server"))
        group.add(WebSocket._over(client, "client"))
        for data in (
            b"bytes",
            bytearray(b"bytes"),
            memoryview(b"bytes"),
            "text\N{SNOWMAN}",
            b"x" * 20,
        ):
            raw = data.encode() if isinstance(data, str) else bytes(data)
            done = await group.broadcast_nowait(data).wait()
            assert done == result(sent=5)
            assert await read(p0, len(raw)) == raw
            assert await read(p1, 4 + len(raw)) == len(raw).to_bytes(4, "big") + raw
            assert await read(p2, len(raw) + 1) == raw + b"\n"
            kind_of = TEXT if isinstance(data, str) else BINARY
            plainly = frame(kind_of, raw)
            assert await read(p3, len(plainly)) == plainly
            masked = await read(p4, len(plainly) + 4)
            assert masked[1] & 0x80
            key = masked[-4 - len(raw) : -len(raw)]
            assert bytes(b ^ key[i % 4] for i, b in enumerate(masked[-len(raw) :])) == raw


async def test_a_large_message(engine: Engine, kind: str) -> None:
    data = content("large", 900_000)
    async with pairs(engine, 2, kind) as ((a, p0), (b, p1)):
        group = engine.group()
        group.add(a)
        group.add(b.framed(LengthPrefixed(3, max_frame=1_000_000)))
        sending = group.broadcast_nowait(data)
        assert await read(p0, len(data)) == data
        assert await read(p1, 3 + len(data)) == len(data).to_bytes(3, "big") + data
        done = await sending.wait()
        assert done.sent + done.queued == 2


async def test_one_form_at_a_time(engine: Engine) -> None:
    async with conn_and_peer(engine) as (conn, peer):
        group = engine.group()
        group.add(conn)
        channel = conn.framed(FOUR)
        group.add(channel)
        assert len(group) == 1
        assert conn in group
        assert channel in group
        await group.broadcast_nowait(b"framed").wait()
        assert await read(peer, 10) == b"\0\0\0\6framed"
        group.add(conn)
        await group.broadcast_nowait(b"raw").wait()
        assert await read(peer, 3) == b"raw"
        channel.unframe()
        assert conn in group, "it gets bytes as before"
        channel = conn.framed(LINES)
        group.add(channel)
        more = engine.group()
        more.add(channel)
        channel.unframe()
        assert len(group) == len(more) == 0, "nobody could take frames any more"
        with pytest.raises(trio.ClosedResourceError, match="unframe"):
            group.add(channel)


async def test_nobody_gets_what_one_cannot(engine: Engine) -> None:
    async with pairs(engine, 2) as ((a, p0), (b, p1)):
        group = engine.group()
        group.add(a)
        group.add(b.framed(LINES))
        for bad in (b"much too long for a line", b"two\nlines"):
            with pytest.raises(ValueError, match="data"):
                group.broadcast_nowait(bad)
            with pytest.raises(ValueError, match="data"):
                await group.broadcast(bad)
        await group.broadcast_nowait(b"good").wait()
        assert await read(p0, 4) == b"good"
        assert await read(p1, 5) == b"good\n"


async def test_a_websocket_that_closes(engine: Engine, kind: str) -> None:
    """Nothing follows a close frame."""
    async with pairs(engine, 2, kind) as ((a, p0), (b, p1)):
        closing, asked = WebSocket._over(a, "server"), WebSocket._over(b, "server")
        group = engine.group()
        group.add(closing)
        group.add(asked)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(closing.aclose)
            assert await read(p0, 4) == frame(CLOSE, close_payload(1000))
            await send(p1, frame(CLOSE, close_payload(1000), key=b"keys"))
            assert await read(p1, 4) == frame(CLOSE, close_payload(1000))
            assert await group.broadcast_nowait("late").wait() == result(closed=2)
            await send(p0, frame(CLOSE, close_payload(1000), key=b"keys"))
            assert await read_all(p0) == b""
        await asked.aclose()
        assert await read_all(p1) == b""
        assert len(group) == 0


# -- order -----------------------------------------------------------------------------------------


async def test_what_is_sent_later_comes_later(engine: Engine, kind: str) -> None:
    """By every way of sending, also if the reactor has not come to the broadcast yet."""
    async with pairs(engine, 4, kind) as ((a, p0), (b, p1), (c, p2), (d, p3)):
        group = engine.group()
        channel, ws = b.framed(LINES), WebSocket._over(c, "server")
        for member in (a, channel, ws, d):
            group.add(member)
        for number in range(50):
            data = b"%d" % number
            before = number % 4 < 2
            if before:
                a.send_nowait(b"before")
                channel.send_nowait(b"before")
                ws.send_nowait(b"before")
            first = group.broadcast_nowait(data)
            if number % 2:
                a.send_nowait(b"nowait")
                channel.send_nowait(b"nowait")
                ws.send_nowait(b"nowait")
            second = group.broadcast_nowait(data * 2)
            await a.send_all(b"all")
            await channel.send(b"all")
            await ws.send(b"all")
            wanted = [
                *([b"before"] if before else []),
                data,
                *([b"nowait"] if number % 2 else []),
                data * 2,
                b"all",
            ]
            assert await read(p0, len(b"".join(wanted))) == b"".join(wanted)
            lines = b"".join(it + b"\n" for it in wanted)
            assert await read(p1, len(lines)) == lines
            frames = b"".join(frame(BINARY, it) for it in wanted)
            assert await read(p2, len(frames)) == frames
            for sending in (first, second):
                done = await sending.wait()
                assert done.sent + done.queued == 4
            assert await read(p3, 3 * len(data)) == data * 3


async def test_ends_come_last(engine: Engine, kind: str) -> None:
    async with pairs(engine, 4, kind) as ((a, p0), (b, p1), (c, p2), (d, p3)):
        group = engine.group()
        for conn in (a, b, c, d):
            group.add(conn)
        sending = group.broadcast_nowait(b"last words")
        await a.send_eof()
        await b.aclose()
        c.close_nowait()
        sock, _ = await d.detach()
        for peer in (p0, p1, p2):
            assert await read_all(peer) == b"last words"
        assert await read(p3, 10) == b"last words"
        sock.close()
        done = await sending.wait()
        assert done.sent + done.queued == 4
        assert await group.broadcast_nowait(b"too late").wait() == result(closed=1)


async def test_behind_a_message_that_was_begun(engine: Engine, kind: str) -> None:
    async with conn_and_peer(engine, kind, options=SMALL) as (conn, peer):
        group = engine.group()
        group.add(conn)
        data = content("begun", 1_000_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.send_all, data)
            await trio.testing.wait_all_tasks_blocked()
            assert await group.broadcast_nowait(b"behind").wait() == result(queued=1)
            assert await read(peer, len(data)) == data
        assert await read(peer, 6) == b"behind"


async def test_many_members_take_turns(engine: Engine) -> None:
    """More than a reactor sends to in a turn; and those that have left, closed, or joined
    meanwhile."""
    async with served(engine, Conn.receive_nowait) as listener:
        with dialled(listener, 700) as socks:
            await until(lambda: len(engine.connections) == 700)
            group = engine.group()
            conns = list(engine.connections.values())
            for conn in conns[:-1]:
                group.add(conn)
            sending = [group.broadcast_nowait(b"%d" % number) for number in range(10)]
            group.discard(conns[0])
            conns[1].abort()
            group.add(conns[-1])
            done = [await it.wait() for it in sending]
            assert [it.sent + it.queued + it.closed for it in done] == [699] * 10
            assert sum(it.closed for it in done) <= 10
            assert all(it.skipped == 0 for it in done)
            got = 0
            for sock in socks:
                sock.settimeout(0.0)
                with suppress(BlockingIOError, ConnectionResetError):
                    data = sock.recv(100)
                    assert data in (b"0123456789", b"")
                    got += data != b""
            assert 698 <= got <= 699


# -- slow members ----------------------------------------------------------------------------------


@asynccontextmanager
async def slow_one(engine: Engine, kind: str) -> AsyncIterator[tuple[Any, Conn, Any, Conn, Any]]:
    """A group of two, one of which does not read: 1000 bytes more can be queued for it."""
    limits = Limits(outbound=1000)
    async with (
        conn_and_peer(engine, kind, options=SMALL, limits=limits) as (slow, slow_peer),
        conn_and_peer(engine, kind, limits=limits) as (good, peer),
    ):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(clog, slow)
                await trio.testing.wait_all_tasks_blocked(0.05)
                scope.cancel()
        group = engine.group()
        group.add(slow)
        group.add(good)
        yield group, slow, slow_peer, good, peer


async def fill_up(group: Any, peer: Any) -> None:
    """Broadcasts of 100 bytes until the slow one cannot queue any more."""
    skipped = 0
    for _ in range(1000):
        done = await group.broadcast_nowait(b"f" * 100).wait()
        await read(peer, 100)
        skipped += done.skipped
        if skipped:
            return
    raise AssertionError("the kernel takes it all")


async def test_a_slow_one_is_skipped(engine: Engine, kind: str) -> None:
    async with slow_one(engine, kind) as (group, slow, slow_peer, _, peer):
        await fill_up(group, peer)
        for number in range(100):
            done = await group.broadcast_nowait(b"%0100d" % number).wait()
            assert done == result(sent=1, skipped=1)
            assert await read(peer, 100) == b"%0100d" % number
        assert slow.statistics().buffered_outbound <= 1000
        with trio.move_on_after(5):
            while slow.statistics().buffered_outbound:
                await slow_peer.recv(65536)
        done = await group.broadcast_nowait(b"again").wait()
        assert done.skipped == 0, "it has caught up"


async def test_one_silent_member_among_many(engine: Engine) -> None:
    """It costs its `limits.outbound` at most, and the others get everything, in order."""
    limits, messages = Limits(outbound=20_000), [b"%01024d" % number for number in range(200)]
    async with (
        conn_and_peer(engine, "unix", limits=limits, options=SMALL) as (silent, silent_peer),
        pairs(engine, 99, "unix", limits=limits) as others,
    ):
        group = engine.group()
        for conn in (silent, *(conn for conn, _ in others)):
            group.add(conn)
        skipped = 0
        for start in range(0, 200, 20):
            some = messages[start : start + 20]
            for message in some:
                done = await group.broadcast_nowait(message).wait()
                assert (done.sent, done.closed) == (100 - done.queued - done.skipped, 0)
                skipped += done.skipped
                assert silent.statistics().buffered_outbound <= 20_000
            for _, peer in others:
                assert await read(peer, 20 * 1024) == b"".join(some)
        got = await read(silent_peer, (200 - skipped) * 1024)
        assert got == b"".join(messages[: 200 - skipped])
        assert 100 < skipped < 200


async def test_a_slow_one_is_closed(engine: Engine, kind: str) -> None:
    async with slow_one(engine, kind) as (group, slow, slow_peer, good, peer):
        async with trio.open_nursery() as nursery:

            async def waits() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await slow.receive_some()

            nursery.start_soon(waits)
            await trio.testing.wait_all_tasks_blocked()
            await fill_up(group, peer)
            done = await group.broadcast_nowait(b"x" * 100, when_slow="close").wait()
            assert done == result(sent=1, closed=1)
        assert slow.close_reason == "slow"
        assert list(group) == [good]
        assert good.close_reason is None
        with suppress(ConnectionResetError):
            await read_all(slow_peer)


@pytest.mark.parametrize("member", ["conn", "channel", "websocket"])
async def test_nothing_follows_a_gap(engine: Engine, member: str) -> None:
    """Who is to be closed for being slow gets nothing more, from anybody."""
    for number in range(20):
        async with conn_and_peer(engine, limits=Limits(outbound=1000)) as (slow, peer):
            group = engine.group()
            it: Any = slow
            if member == "channel":
                it = slow.framed(LengthPrefixed(4, max_frame=10_000))
            elif member == "websocket":
                it = WebSocket._over(slow, "server")
            group.add(it)
            first = group.broadcast_nowait(b"1" * 5000, when_slow="close")
            if number % 2:
                await trio.lowlevel.checkpoint()  # now the reactor may be first
            second = group.broadcast_nowait(b"2" * 10)
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                it.send_nowait(b"3" * 10)
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await (slow.send_all(b"4" * 10) if member == "conn" else it.send(b"4" * 10))
            assert await first.wait() == result(closed=1)
            late = await second.wait()
            assert late.sent + late.queued == 0
            assert slow.close_reason == "slow"
            received = b""
            with suppress(ConnectionResetError):
                received = await read_all(peer)
            assert received == b""


async def test_a_slow_one_is_an_error(engine: Engine, kind: str) -> None:
    async with slow_one(engine, kind) as (group, _, _, _, peer):
        done = await group.broadcast_nowait(b"", when_slow="error").wait()
        assert done == result(), "nothing to send"
        await fill_up(group, peer)
        sending = group.broadcast_nowait(b"x" * 100, when_slow="error")
        for _ in range(2):
            with pytest.raises(BroadcastIncomplete, match="1 members") as raised:
                await sending.wait()
            assert raised.value.result == result(sent=1, skipped=1)
        again = pickle.loads(pickle.dumps(raised.value))
        assert again.result == raised.value.result


async def test_who_is_closed_by_callbacks(engine: Engine) -> None:
    journal = Journal()
    group = engine.group()

    def on_connect(conn: Conn) -> None:
        journal.on_connect(conn)
        group.add(conn)

    async with served(
        engine,
        journal.on_data,
        on_connect=on_connect,
        on_close=journal.on_close,
        limits=Limits(outbound=100_000),
        options=SMALL,
    ) as listener:
        with caller(listener) as peer:
            await until(lambda: len(group) == 1)
            while len(group):
                await group.broadcast_nowait(bytes(100_000), when_slow="close").wait()
            await until(lambda: journal.ends == ["slow"])
            with suppress(ConnectionResetError):
                await read_all(peer)


async def test_a_message_beyond_the_bound(engine: Engine) -> None:
    async with conn_and_peer(engine, limits=Limits(outbound=10)) as (conn, peer):
        group = engine.group()
        group.add(conn)
        assert await group.broadcast_nowait(b"eleven byte").wait() == result(skipped=1)
        assert await group.broadcast_nowait(b"ten bytes!").wait() == result(sent=1)
        assert await read(peer, 10) == b"ten bytes!"


# -- the bound of a group --------------------------------------------------------------------------


async def test_broadcasts_in_progress_are_bounded(engine: Engine) -> None:
    async with conn_and_peer(engine) as (conn, peer):
        group = engine.group(max_pending=1000)
        group.add(conn)
        sending = [group.broadcast_nowait(b"a" * 5000)]  # nothing is in progress
        with pytest.raises(trio.WouldBlock):
            while True:
                sending.append(group.broadcast_nowait(b"b" * 200))
        async with trio.open_nursery() as nursery:

            async def next_one(letter: bytes) -> None:
                sending.append(await group.broadcast(letter * 990))

            # In order, whatever the scheduler's.
            for letter in (b"1", b"2", b"3"):
                nursery.start_soon(next_one, letter)
                await trio.testing.wait_all_tasks_blocked()
        for it in sending:
            await it.wait()
        assert group.pending == 0
        size = 5000 + 200 * (len(sending) - 4) + 3 * 990
        data = await read(peer, size)
        assert data.startswith(b"a" * 5000)
        assert data.endswith(b"1" * 990 + b"2" * 990 + b"3" * 990)


async def test_a_broadcast_that_waits_can_be_cancelled(reactors: int) -> None:
    async with open_engine(reactors=0) as engine, conn_and_peer(engine) as (conn, peer):
        group = engine.group(max_pending=0)
        group.add(conn)
        first = group.broadcast_nowait(b"first")
        with trio.CancelScope() as scope:
            scope.cancel()
            await group.broadcast(b"cancelled")
        with trio.CancelScope() as scope:
            scope.cancel()
            await first.wait()
        assert scope.cancelled_caught
        assert await first.wait() == result(sent=1)
        await (await group.broadcast(b"second")).wait()
        assert await read(peer, 11) == b"firstsecond"


async def test_excluded(engine: Engine) -> None:
    async with pairs(engine, 3) as ((a, p0), (b, p1), (c, _)):
        group = engine.group()
        group.add(a)
        group.add(b.framed(FOUR))
        c.abort()
        assert await group.broadcast_nowait(b"b", exclude={a, c}).wait() == result(sent=1)
        assert await group.broadcast_nowait(b"a", exclude=(it for it in [b])).wait() == result(
            sent=1
        )
        assert await group.broadcast_nowait(b"nobody", exclude=[a, b]).wait() == result()
        assert await group.broadcast_nowait(b"both").wait() == result(sent=2)
        assert await read(p0, 5) == b"aboth"
        assert await read(p1, 5 + 8) == b"\0\0\0\1b\0\0\0\4both"


async def test_bad_input(engine: Engine) -> None:
    bad: Any
    for bad in (1.5, True, "1", None):
        with pytest.raises(TypeError, match="max_pending"):
            engine.group(max_pending=bad)
    with pytest.raises(ValueError, match="max_pending"):
        engine.group(max_pending=-1)
    async with conn_and_peer(engine) as (conn, peer), open_engine(reactors=0) as stranger:
        group = engine.group()
        with pytest.raises(ValueError, match="engine"):
            stranger.group().add(conn)
        for bad in (None, 1, conn.socket, engine):
            for use in (
                group.add,
                group.discard,
                lambda it: group.broadcast_nowait(b"", exclude=[it]),
            ):
                with pytest.raises(TypeError, match="member must be"):
                    use(bad)
        with pytest.raises(TypeError, match="exclude must be"):
            group.broadcast_nowait(b"", exclude=conn)  # type: ignore[arg-type]
        group.add(conn)
        for bad in (None, 1, [b"x"], memoryview(b"abcd")[::2]):
            with pytest.raises(TypeError, match="data must be"):
                group.broadcast_nowait(bad)
        with pytest.raises(ValueError, match="data cannot be sent as text"):
            group.broadcast_nowait("\ud800")
        for bad in ("drop", None, 1):
            with pytest.raises(ValueError, match="when_slow"):
                group.broadcast_nowait(b"x", when_slow=bad)
            with pytest.raises(ValueError, match="when_slow"):
                await group.broadcast(b"x", when_slow=bad)
        for kind in (type(group), type(engine.groups), type(group.broadcast_nowait(b""))):
            with pytest.raises(TypeError, match="cannot be constructed"):
                kind()
        await group.broadcast_nowait(b"lost nothing").wait()
        assert await read(peer, 12) == b"lost nothing"


# -- by key ----------------------------------------------------------------------------------------


async def test_groups_by_key(engine: Engine) -> None:
    async with pairs(engine, 3) as ((a, p0), (b, _), (c, _)):
        groups = engine.groups
        assert dict(groups) == {}
        with pytest.raises(TypeError):
            groups.join("room", None)  # type: ignore[arg-type]
        assert "room" not in groups
        room = groups.join("room", a)
        assert groups.join("room", b) is room is groups["room"]
        assert groups.join(7, b) is groups[7]
        assert set(groups) == {"room", 7}
        groups.leave("room", c)
        groups.leave("nowhere", c)
        await groups["room"].broadcast_nowait(b"hi", exclude=[b]).wait()
        assert await read(p0, 2) == b"hi"
        b.abort()
        assert set(groups) == {"room"}
        assert groups.get(7) is None
        groups.leave("room", a)
        assert len(groups) == 0
        with pytest.raises(KeyError):
            groups["room"]
        # One that was kept does not disturb its successor.
        successor = groups.join("room", c)
        room.add(a)
        room.discard(a)
        assert groups["room"] is successor


# -- churn -----------------------------------------------------------------------------------------


def split(data: bytes | bytearray) -> dict[int, list[int]]:
    """Messages of 20 bytes, by sender; a message tells its sender and number."""
    found: dict[int, list[int]] = {}
    assert len(data) % 20 == 0
    for at in range(0, len(data), 20):
        sender, number = data[at : at + 20].split()
        found.setdefault(int(sender), []).append(int(number))
    return found


async def test_churn(engine: Engine, kind: str, long: bool) -> None:
    """Members join, leave and close, and everybody sends, while broadcasts go on. Whoever is a
    member from begin to end gets every message, in order; and nobody gets one twice."""
    group = engine.group()
    rounds = 2000 if long else 150
    dice = random.Random(7)
    async with pairs(engine, 6, kind) as steady:
        numbers = {id(conn): 0 for conn, _ in steady}
        async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
            # The nursery is left first, when all have read to the end.
            got: dict[int, bytearray] = {}

            async def reads(key: int, peer: Any) -> None:
                got[key] = bytearray()
                with suppress(ConnectionResetError):
                    while data := await peer.recv(65536):
                        got[key] += data

            for number, (conn, peer) in enumerate(steady):
                group.add(conn)
                nursery.start_soon(reads, number, peer)
            passing: list[Conn] = []
            for number in range(rounds):
                if dice.random() < 0.4:
                    conn, peer = await stack.enter_async_context(conn_and_peer(engine, kind))
                    nursery.start_soon(reads, 100 + number, peer)
                    passing.append(conn)
                    group.add(conn)
                sending = group.broadcast_nowait(b"%9d %9d\n" % (0, number))
                for conn, _ in dice.sample(steady, 3):
                    numbers[id(conn)] += 1
                    data = b"%9d %9d\n" % (1, numbers[id(conn)])
                    if dice.random() < 0.5:
                        conn.send_nowait(data)
                    else:
                        await conn.send_all(data)
                if passing and dice.random() < 0.4:
                    gone = passing.pop(dice.randrange(len(passing)))
                    group.discard(gone)
                    dice.choice((Conn.abort, Conn.close_nowait))(gone)
                if dice.random() < 0.2:
                    await sending.wait()
            for conn in [*passing, *(conn for conn, _ in steady)]:
                conn.close_nowait()
        for number, (conn, _) in enumerate(steady):
            found = split(got[number])
            assert found[0] == list(range(rounds))
            assert found.get(1, []) == list(range(1, numbers[id(conn)] + 1))
        for key, received_by in got.items():
            if key >= 100:
                received = split(received_by[: len(received_by) // 20 * 20]).get(0, [])
                assert received == list(range(key - 100, key - 100 + len(received)))


async def test_websockets_in_full(engine: Engine) -> None:
    """As an application has them: a listener in a block, handlers that join, and clients."""
    group = engine.group()

    async def handler(websocket: WebSocket) -> None:
        group.add(websocket)
        async for message in websocket:
            group.broadcast_nowait(message, exclude=[websocket])

    address, options = "ws://127.0.0.1:0", WebSocketOptions()
    async with (
        await engine.listen(address, websocket=options) as listener,
        trio.open_nursery() as (nursery),
    ):
        nursery.start_soon(listener.serve, handler)
        host, port = tcp_address(listener.listener)
        url = f"ws://{host}:{port}"
        async with open_websocket(url) as a, open_websocket(url) as b:
            await until(lambda: len(group) == 2)
            for text in ("hello", b"bytes"):
                await a.send(text)
                assert await b.receive() == text
        await until(lambda: len(group) == 0)
        nursery.cancel_scope.cancel()
    with pytest.raises(OSError, match="failed"):
        await trio.open_tcp_stream(host, port)
