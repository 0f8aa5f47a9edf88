"""Event mode: what a connection's callbacks are told, in which order, and when."""

from __future__ import annotations

import functools
import socket
import time
from contextlib import ExitStack, suppress
from contextvars import ContextVar
from itertools import chain, cycle
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel
from event_servers import (
    LOCAL,
    STYLES,
    Journal,
    Visit,
    address_of,
    caller,
    echo,
    recorded,
    served,
    styled,
    take,
    turns_pass,
)
from helpers import SMALL, content, dial, dialled, read, read_all, send, until
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_wknet import Conn, Engine, Limits, open_engine

LINGER_BRIEFLY = Limits(linger_time=0.05)


# -- order -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
async def test_connect_data_close(engine: Engine, kind: str, style: str, tmp_path: Path) -> None:
    journal = Journal(style=style)
    async with recorded(engine, journal, address_of(kind, tmp_path)) as listener:
        with caller(listener) as peer:
            for n, word in enumerate([b"one", b"two", b"three"]):
                await peer.send(word)
                await until(lambda: journal.visits and journal.visits[0].calls > n)  # noqa: B023
            assert not journal.ends
        await until(lambda: journal.ends == ["eof"])
    assert [bytes(visit.received) for visit in journal.visits] == [b"onetwothree"]
    assert journal.visits[0].calls == 3


@pytest.mark.parametrize("style", STYLES)
async def test_what_came_before_serving_waits_for_on_connect(engine: Engine, style: str) -> None:
    """Pitfall 18: even the end comes after on_connect, and after on_data."""
    journal = Journal(style=style)
    listener = await engine.listen(LOCAL)
    for n in range(10):
        with dial(listener) as sock:
            sock.send(b"early %d" % n)
    await until(lambda: listener.statistics().waiting == 10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            functools.partial(listener.serve_events, journal.on_data, **journal.callbacks)
        )
        await until(lambda: journal.ends == ["eof"] * 10)
        nursery.cancel_scope.cancel()
    assert sorted(v.received for v in journal.visits) == [b"early %d" % n for n in range(10)]


async def test_nothing_comes_while_on_connect_runs(engine: Engine) -> None:
    go = trio.Event()
    log: list[Any] = []

    async def on_connect(conn: Conn) -> None:
        log.append("connect")
        await go.wait()
        log.append("connected")

    def on_data(conn: Conn) -> None:
        log.append(conn.receive_nowait())

    def on_close(conn: Conn, reason: str) -> None:
        log.append(reason)

    async with served(engine, on_data, on_connect=on_connect, on_close=on_close) as listener:
        with caller(listener) as peer:
            await peer.send(b"data")
        await turns_pass(engine)
        assert log == ["connect"]
        go.set()
        await until(lambda: len(log) == 4)
    assert log == ["connect", "connected", b"data", "eof"]


async def test_on_data_alone_is_enough(engine: Engine, kind: str, tmp_path: Path) -> None:
    async with served(engine, echo, address=address_of(kind, tmp_path)) as listener:
        for n in range(20):
            with caller(listener) as peer:
                data = content(n, n * 1000 + 1)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send, peer, data)
                    assert await read(peer, len(data)) == data
        await until(lambda: listener.statistics().handlers == 0)


async def test_statistics_count_what_is_served(engine: Engine) -> None:
    async with served(engine, echo) as listener:
        with dialled(listener, 3):
            await until(lambda: listener.statistics().handlers == 3)
            assert listener.statistics().accepted == 3
        await until(lambda: listener.statistics().handlers == 0)


# -- which callables -------------------------------------------------------------------------------


class Callbacks:
    """An object whose methods are callbacks, and that is one itself."""

    def __init__(self) -> None:
        self.log: list[Any] = []

    def __call__(self, conn: Conn) -> None:
        self.log.append(conn.receive_nowait())

    async def on_connect(self, conn: Conn) -> None:
        self.log.append("connect")

    async def on_close(self, more: str, conn: Conn, reason: str) -> None:
        self.log.append((more, reason))


async def test_any_callable_will_do(engine: Engine) -> None:
    callbacks = Callbacks()
    on_close = functools.partial(callbacks.on_close, "more")
    async with served(
        engine, callbacks, on_connect=callbacks.on_connect, on_close=on_close
    ) as listener:
        with caller(listener) as peer:
            await peer.send(b"x")
        await until(lambda: len(callbacks.log) == 3)
    assert callbacks.log == ["connect", b"x", ("more", "eof")]


async def test_an_operation_may_be_returned(engine: Engine) -> None:
    """What `send_all` returns is awaitable, if no coroutine of Python's."""
    async with served(engine, lambda conn: conn.send_all(conn.receive_nowait())) as listener:
        with caller(listener) as peer:
            await peer.send(b"there and back")
            assert await read(peer, 14) == b"there and back"


@pytest.mark.parametrize("name", ["on_data", "on_connect", "on_close", "on_error"])
async def test_what_is_not_callable_is_refused(engine: Engine, name: str) -> None:
    callbacks: dict[str, Any] = {"on_data": echo, name: "not callable"}
    async with await engine.listen(LOCAL) as listener:
        with pytest.raises(TypeError, match=f"{name} must be callable, not 'not callable'"):
            await listener.serve_events(**callbacks)
        # Nothing has begun.
        with dial(listener):
            (await listener.accept()).abort()


# -- when on_data is called ------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
async def test_what_is_left_waits_for_more(engine: Engine, kind: str, style: str) -> None:
    """Pitfall 15: on_data is not called again for what it has seen."""

    def lines(conn: Conn) -> bytes:
        visit: Visit = conn.context
        visit.notes = conn.statistics().buffered_inbound
        return take(conn) if visit.notes >= 10 else b""

    journal = Journal(lines, style)
    async with recorded(engine, journal) as listener:
        with caller(listener) as peer:
            for n in range(1, 11):
                await peer.send(b"x")
                await until(lambda: journal.visits and journal.visits[0].calls == n)  # noqa: B023
                assert journal.visits[0].notes == n
                await turns_pass(engine, 2)
                assert journal.visits[0].calls == n
            assert journal.visits[0].received == b"x" * 10


@pytest.mark.parametrize("style", STYLES)
async def test_a_message_of_more_than_half_the_bound(engine: Engine, style: str) -> None:
    """What waits for the rest of it must get the rest, though reading had paused."""
    size, count = 70_000, 20
    data = content("messages", size * count)

    def messages(conn: Conn) -> bytes:
        whole = conn.statistics().buffered_inbound // size * size
        return conn.receive_nowait(whole) if whole else b""

    journal = Journal(messages, style)
    async with recorded(engine, journal, limits=Limits(inbound=100_000)) as listener:
        with caller(listener) as peer:
            await send(peer, data)
            await until(lambda: journal.visits and journal.visits[0].received == data)


async def test_bytes_taken_between_callbacks_are_not_waited_for(engine: Engine) -> None:
    """A task takes what a callback left. The next byte is news, though fewer are there
    than had been."""
    conns: list[Conn] = []
    calls = []

    def on_data(conn: Conn) -> None:
        calls.append(conn.statistics().buffered_inbound)

    async with served(engine, on_data, on_connect=conns.append) as listener:
        with caller(listener) as peer:
            for n in range(1, 4):
                await peer.send(b"left by the callback")
                await until(lambda: len(calls) == 2 * n - 1)  # noqa: B023
                assert conns[0].receive_nowait(5) == b"left "
                assert conns[0].receive_nowait() == b"by the callback"
                await peer.send(b"1")
                await until(lambda: len(calls) == 2 * n)  # noqa: B023
                assert conns[0].receive_nowait() == b"1"
    assert calls == [20, 1] * 3


async def test_reading_goes_on_when_a_task_takes_some(engine: Engine) -> None:
    """Likewise where reading had paused."""
    conns: list[Conn] = []
    calls: list[Conn] = []
    async with served(
        engine, calls.append, on_connect=conns.append, limits=Limits(inbound=1000)
    ) as listener:
        with caller(listener) as peer:
            await send(peer, bytes(100_000))
            await until(lambda: calls and conns[0].statistics().buffered_inbound >= 1000)
            await turns_pass(engine)
            (conn,) = conns
            for left in chain([999] * 20, cycle([500, 0])):
                before = len(calls)
                unread = conn.statistics().buffered_inbound
                if unread > left:
                    conn.receive_nowait(unread - left)
                if conn.statistics().bytes_received == 100_000:
                    break
                await until(lambda: len(calls) > before)  # noqa: B023


@pytest.mark.parametrize("style", STYLES)
async def test_what_is_never_taken_parks(engine: Engine, kind: str, style: str) -> None:
    """Pitfall 15: at the bound nothing is called, nothing is read, nothing turns."""
    journal = Journal(lambda conn: None, style)
    async with recorded(engine, journal, limits=Limits(inbound=1000)) as listener:
        with caller(listener) as peer:
            await send(peer, bytes(100_000))
            await until(lambda: journal.visits and journal.visits[0].calls)
            await turns_pass(engine)
            calls, turns = journal.visits[0].calls, reactor_turns(engine)
            for _ in range(500):
                await trio.lowlevel.checkpoint()
            with trio.move_on_after(0.05):
                await trio.sleep_forever()
            assert reactor_turns(engine) - turns < 20
            assert journal.visits[0].calls == calls < 5
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        # A reset is noticed all the same, and nobody need take the bytes.
        await until(lambda: journal.ends == ["reset"])
    assert journal.visits[0].calls == calls


def reactor_turns(engine: Engine) -> int:
    return sum(reactor.turns for reactor in engine.statistics().reactors)


async def test_after_parking_every_byte_comes(engine: Engine, kind: str, tmp_path: Path) -> None:
    """Also those that were in the kernel when the peer closed."""
    conns: list[Conn] = []
    journal = Journal(lambda conn: take(conn) if conns else None)
    address = address_of(kind, tmp_path)
    data = content("parked", 60_000)

    def on_connect(conn: Conn) -> None:
        journal.on_connect(conn)
        journal.visits[0].notes = conn

    async with served(
        engine,
        journal.on_data,
        address=address,
        on_connect=on_connect,
        on_close=journal.on_close,
        limits=Limits(inbound=1000),
    ) as listener:
        with caller(listener) as peer:
            for at in range(0, len(data), 2000):
                await send(peer, data[at : at + 2000])
                await trio.lowlevel.checkpoint()
        await until(lambda: journal.visits and journal.visits[0].calls)
        await turns_pass(engine)
        assert not journal.ends
        (visit,) = journal.visits
        conns.append(visit.notes)
        visit.received += conns[0].receive_nowait()
        await until(lambda: journal.ends == ["eof"])
    assert visit.received == data


async def test_all_that_came_before_a_reset_is_seen(engine: Engine) -> None:
    """A reset that comes while reading has paused is told ahead of the bytes before it."""
    conns: list[Conn] = []

    async def on_data(conn: Conn) -> None:
        conns.append(conn)
        await until(lambda: conn.close_reason == "reset")
        received.extend(conn.receive_nowait())

    received = bytearray()
    ends: list[str] = []
    data = content("reset", 40_000)
    async with served(
        engine, on_data, on_close=lambda _, reason: ends.append(reason), limits=Limits(inbound=1000)
    ) as listener:
        with caller(listener) as peer:
            await send(peer, data[:20_000])
            await until(lambda: conns and conns[0].statistics().buffered_inbound >= 1000)
            await send(peer, data[20_000:])
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await until(lambda: ends == ["reset"])
    assert received == data


async def test_the_rest_at_the_end_is_not_waited_for(engine: Engine, kind: str) -> None:
    """The peer ends in the middle of a message: on_close, though bytes are unread."""
    journal = Journal(lambda conn: None)
    async with recorded(engine, journal) as listener:
        with caller(listener) as peer:
            await peer.send(b"half a messa")
        await until(lambda: journal.ends == ["eof"])
    assert journal.visits[0].calls == 1


@pytest.mark.parametrize("style", STYLES)
async def test_a_peer_that_finished_sending_is_answered(
    engine: Engine, kind: str, style: str, tmp_path: Path
) -> None:
    """The answer, more than the kernel takes, is sent although the peer has ended."""
    answer = content("answer", 300_000)

    def respond(conn: Conn) -> bytes:
        question = conn.receive_nowait()
        if question.endswith(b"?"):
            conn.send_nowait(answer)
        return question

    journal = Journal(respond, style)
    address = address_of(kind, tmp_path)
    async with recorded(engine, journal, address, options=SMALL) as listener:
        for _ in range(3):
            with caller(listener) as peer:
                await peer.send(b"what?")
                peer.shutdown(socket.SHUT_WR)
                assert await read_all(peer) == answer
        await until(lambda: journal.ends == ["eof"] * 3)


# -- async callbacks -------------------------------------------------------------------------------


async def test_an_async_callback_may_take_its_time(engine: Engine) -> None:
    """What comes meanwhile waits for it; others do not."""
    go = trio.Event()
    log: list[Any] = []

    async def on_data(conn: Conn) -> None:
        log.append("begin")
        await go.wait()
        log.append(conn.receive_nowait())

    async with served(engine, on_data) as listener:
        with caller(listener) as peer:
            await peer.send(b"first")
            await until(lambda: log)
            for _ in range(5):
                await peer.send(b" more")
                await turns_pass(engine, 1)
            assert log == ["begin"]
            go.set()
            await until(lambda: len(log) == 2)
            await peer.send(b"second")
            await until(lambda: len(log) == 4)
    assert log == ["begin", b"first" + b" more" * 5, "begin", b"second"]


async def test_an_async_callback_may_wait_for_bytes(engine: Engine, kind: str) -> None:
    """It has the connection to itself: a message that begins in one callback ends in it,
    and what it took there is not news."""
    messages: list[bytes] = []
    calls = 0

    async def on_data(conn: Conn) -> None:
        nonlocal calls
        calls += 1
        while conn.statistics().buffered_inbound:
            size = int.from_bytes(await conn.receive_exactly(4), "big")
            messages.append(await conn.receive_exactly(size))

    sent = [content(n, n * 7919 + 1) for n in range(20)]
    async with served(engine, on_data, limits=Limits(inbound=5000)) as listener:
        with caller(listener) as peer:
            for message in sent:
                data = len(message).to_bytes(4, "big") + message
                for at in range(0, len(data), 3001):
                    await send(peer, data[at : at + 3001])
                    await trio.lowlevel.checkpoint()
            await until(lambda: len(messages) == len(sent))
    assert messages == sent
    assert calls <= len(sent)


async def test_async_callbacks_are_tasks_of_serve_events(engine: Engine) -> None:
    """With the callback's name; and none in between."""
    tasks: list[trio.lowlevel.Task] = []
    serving: list[trio.lowlevel.Task] = []

    async def on_data(conn: Conn) -> None:
        tasks.append(trio.lowlevel.current_task())
        conn.receive_nowait()

    async def serve(task_status: Any) -> None:
        serving.append(trio.lowlevel.current_task())
        await listener.serve_events(on_data, task_status=task_status)

    listener = await engine.listen(LOCAL)
    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        with dialled(listener, 10) as socks:
            for sock in socks:
                sock.send(b"x")
            await until(lambda: len(tasks) == 10)
            await wait_all_tasks_blocked()
            (children,) = [n.child_tasks for n in serving[0].child_nurseries]
            assert children == set()
        nursery.cancel_scope.cancel()
    assert all(task.name.endswith("on_data") for task in tasks)
    assert len(set(tasks)) == 10


# -- sending ---------------------------------------------------------------------------------------


async def test_send_nowait_is_bounded(engine: Engine, kind: str, tmp_path: Path) -> None:
    """A callback that would send more than `limits.outbound` is told so, and goes on."""
    outcomes: list[str] = []

    def on_data(conn: Conn) -> None:
        conn.receive_nowait()
        try:
            while True:
                conn.send_nowait(bytes(10_000))
        except trio.WouldBlock:
            outcomes.append("would block")

    limits = Limits(outbound=50_000)
    address = address_of(kind, tmp_path)
    async with served(engine, on_data, address=address, limits=limits, options=SMALL) as listener:
        with caller(listener) as peer:
            await peer.send(b"go")
            await until(lambda: outcomes)
            assert await read(peer, 50_000) == bytes(50_000)
            await peer.send(b"go")
            await until(lambda: len(outcomes) == 2)


async def test_a_peer_that_does_not_read_holds_its_own_callback_only(engine: Engine) -> None:
    began = trio.Event()
    ends: list[Any] = []

    async def on_data(conn: Conn) -> None:
        if conn.receive_nowait() == b"flood":
            began.set()
            await conn.send_all(bytes(10_000_000))
        else:
            await conn.send_all(b"answer")

    def on_error(conn: Conn, exc: Exception) -> None:
        ends.append(type(exc))

    async with served(
        engine, on_data, on_error=on_error, on_close=lambda conn, reason: ends.append(reason)
    ) as listener:
        with caller(listener) as deaf, caller(listener) as other:
            await deaf.send(b"flood")
            await began.wait()
            for _ in range(3):
                await other.send(b"?")
                assert await read(other, 6) == b"answer"
            assert ends == []
            deaf.close()  # with unread bytes: a reset
            await until(lambda: len(ends) == 2)
    assert ends[0] is trio.BrokenResourceError


# -- whoever else uses the connection --------------------------------------------------------------


async def test_only_callbacks_wait_for_bytes(engine: Engine) -> None:
    conns: list[Conn] = []
    async with served(engine, echo, on_connect=conns.append) as listener:
        with caller(listener) as peer:
            await until(lambda: conns)
            (conn,) = conns
            for call in (
                lambda: conn.receive_some(),
                lambda: conn.receive_exactly(1),
                lambda: conn.receive_until(b"\n"),
                lambda: conn.receive_into(bytearray(1)),
                lambda: conn.__anext__(),
            ):
                with pytest.raises(trio.BusyResourceError, match="serve_events"):
                    await call()
            with pytest.raises(trio.WouldBlock):
                conn.receive_nowait()
            # Everything else is free to all.
            await conn.send_all(b"from a task")
            assert await read(peer, 11) == b"from a task"
            await peer.send(b"echo")
            assert await read(peer, 4) == b"echo"


async def test_a_task_may_watch_for_the_end(engine: Engine) -> None:
    conns: list[Conn] = []
    async with served(engine, echo, on_connect=conns.append) as listener:
        with caller(listener) as peer:
            await until(lambda: conns)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(conns[0].wait_closed)
                await wait_all_tasks_blocked()
                await peer.send(b"echo")
                assert await read(peer, 4) == b"echo"
                peer.shutdown(socket.SHUT_WR)
            assert conns[0].close_reason == "eof"
        with caller(listener) as peer:
            await until(lambda: len(conns) == 2)
            with conns[1].cancel_on_disconnect():
                pass
            # The wish to know of the end was the server's, too.
        await until(lambda: listener.statistics().handlers == 0)


# -- where callbacks run ---------------------------------------------------------------------------

who: ContextVar[str] = ContextVar("who")


@pytest.mark.parametrize("style", STYLES)
async def test_callbacks_see_the_context_of_serve_events(engine: Engine, style: str) -> None:
    seen: list[str] = []

    def see(conn: Conn, reason: str = "") -> None:
        seen.append(who.get())

    callbacks: dict[str, Any] = {
        name: styled(see, style) for name in ("on_data", "on_connect", "on_close")
    }
    who.set("serving")
    async with served(engine, **callbacks) as listener:
        who.set("somebody else")
        with caller(listener) as peer:
            await peer.send(b"x")
            await until(lambda: len(seen) == 2)
        await until(lambda: len(seen) == 3)
        with caller(listener):
            await until(lambda: len(seen) == 4)
    # One more where on_close is called because serving ends, if it need not wait.
    assert set(seen) == {"serving"}
    assert len(seen) == {"plain": 5, "async": 4, "mixed": 4}[style]


async def test_a_plain_callback_is_outside_every_task(engine: Engine) -> None:
    """There is no current task; but Trio's synchronous functions work."""
    event = trio.Event()
    log: list[Any] = []

    async def task() -> None:
        log.append("task")

    def on_data(conn: Conn) -> None:
        conn.receive_nowait()
        with pytest.raises(RuntimeError):
            trio.lowlevel.current_task()
        assert trio.current_time() > 0
        event.set()
        nursery.start_soon(task)

    async with trio.open_nursery() as nursery:
        async with served(engine, on_data) as listener:
            with caller(listener) as peer:
                await peer.send(b"x")
                await event.wait()
                await until(lambda: log)


# -- fairness --------------------------------------------------------------------------------------


@pytest.mark.parametrize("reactors", [1, 2])
@pytest.mark.parametrize("style", ["plain", "async"])
async def test_a_flood_does_not_keep_others_from_theirs(engine: Engine, style: str) -> None:
    """Pitfall 13. Whenever on_data returns here, there is more already. Tasks run in
    between, and so do other connections' callbacks."""
    flood: Any = None
    calls = 0
    served_after: list[int] = []

    def on_data(conn: Conn) -> None:
        nonlocal calls
        if conn.receive_nowait() == b"quiet":
            served_after.append(calls)
            conn.send_nowait(b"served")
            return
        calls += 1
        assert calls < 20_000, "the others are never served"
        if len(served_after) < 5:
            flood.send(b"!")
            # The reactor is another thread, and needs no GIL.
            while not conn.statistics().buffered_inbound:
                pass

    async def never_waits(conn: Conn) -> None:
        on_data(conn)

    async with served(engine, on_data if style == "plain" else never_waits) as listener:
        with dial(listener) as flood, caller(listener) as quiet:
            flood.send(b"!")
            await until(lambda: calls)
            for _ in range(5):
                await quiet.send(b"quiet")
                assert await read(quiet, 6) == b"served"
    assert len(served_after) == 5


async def test_a_plain_callback_that_blocks(engine: Engine) -> None:
    """Whatever comes meanwhile, also for itself, is only late: told once, and in order."""
    socks: list[socket.socket] = []

    def progress() -> list[Any]:
        return [(visit.calls, len(visit.log)) for visit in journal.visits]

    def use(conn: Conn) -> bytes:
        data = take(conn)
        if data == b"block":
            before = progress()
            for word in (b"one", b"two", b"three"):
                for sock in socks[:4]:
                    sock.send(word)
                time.sleep(0.01)  # reactor threads have their turns
            socks[3].close()
            socks.append(dial(listener))
            socks[-1].send(b"new")
            socks[-1].close()
            time.sleep(0.01)
            assert progress() == before
        return data

    journal = Journal(use)
    async with recorded(engine, journal) as listener:
        with ExitStack() as stack:
            for n in range(1, 5):
                socks.append(stack.enter_context(dial(listener)))
                await until(lambda: len(journal.visits) == n)  # noqa: B023
            socks[0].send(b"block")
            others = [b"onetwothree"] * 3
            expected = [b"blockonetwothree", *others, b"new"]
            await until(lambda: [bytes(visit.received) for visit in journal.visits] == expected)
            await until(lambda: journal.ends == ["eof"] * 2)
            assert [len(visit.log) for visit in journal.visits] == [1, 1, 1, 2, 2]


async def test_many_at_once_are_taken_in_by_and_by(engine: Engine) -> None:
    """A burst of connections does not hold Trio up: tasks run in between. A drain takes in 64;
    the hook drains once, and three times more at most where it is late (stall.pyx)."""
    turn = 0
    connected: dict[int, int] = {}

    class Turns(trio.abc.Instrument):
        def before_io_wait(self, timeout: float) -> None:
            nonlocal turn
            turn += 1

    def on_connect(conn: Conn) -> None:
        connected[turn] = connected.get(turn, 0) + 1

    listener = await engine.listen(LOCAL)
    instrument = Turns()
    trio.lowlevel.add_instrument(instrument)
    with dialled(listener, 300):
        await until(lambda: listener.statistics().waiting == 300)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                functools.partial(listener.serve_events, echo, on_connect=on_connect)
            )
            await until(lambda: sum(connected.values()) == 300)
            nursery.cancel_scope.cancel()
    trio.lowlevel.remove_instrument(instrument)
    assert max(connected.values()) <= 64 * (1 + 3)
    assert min(connected.values()) <= 64


# -- whose listener it is --------------------------------------------------------------------------


async def test_one_serves_at_a_time(engine: Engine) -> None:
    async with served(engine, echo) as listener:
        for call in (
            lambda: listener.serve_events(echo),
            lambda: listener.serve(lambda conn: conn.aclose()),
            lambda: listener.accept(),
        ):
            with pytest.raises(trio.BusyResourceError):
                await call()
        with caller(listener) as peer:
            await peer.send(b"served on")
            assert await read(peer, 9) == b"served on"


async def test_not_while_others_accept(engine: Engine) -> None:
    listener = await engine.listen(LOCAL)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.accept)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await listener.serve_events(echo)
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        await nursery.start(functools.partial(listener.serve, Conn.wait_closed))
        # Its task need not have come to wait yet.
        with pytest.raises(trio.BusyResourceError):
            await listener.serve_events(echo)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await listener.serve_events(echo)
        with dial(listener):
            await until(lambda: listener.statistics().handlers == 1)
        nursery.cancel_scope.cancel()


async def test_two_listeners_of_one_engine(engine: Engine, tmp_path: Path) -> None:
    """And what one accepted is not the other's to end."""
    async with served(engine, echo) as one:
        with caller(one) as peer:
            await peer.send(b"before")
            assert await read(peer, 6) == b"before"
            async with served(engine, echo, address=address_of("unix", tmp_path)) as other:
                with caller(other) as another:
                    await another.send(b"x")
                    assert await read(another, 1) == b"x"
            await peer.send(b"after")
            assert await read(peer, 5) == b"after"


# -- time ------------------------------------------------------------------------------------------


async def test_virtual_time(autojump_clock: MockClock) -> None:
    """An async callback that sleeps for an hour, under a clock that jumps."""

    async def on_data(conn: Conn) -> None:
        data = conn.receive_nowait()
        await trio.sleep(3600)
        await conn.send_all(data)

    with trio.fail_after(10_000):
        async with open_engine() as engine, served(engine, on_data) as listener:
            with caller(listener) as peer:
                for _ in range(2):
                    await peer.send(b"later")
                    assert await read(peer, 5) == b"later"
    assert trio.current_time() >= 7200


# -- slots are reused ------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
async def test_nothing_of_one_connection_comes_to_the_next(
    engine: Engine, style: str, long: bool
) -> None:
    """Thousands of connections in the same few slots, ended at any moment by either
    side: each is told of its own bytes only."""
    rounds = 20_000 if long else 400

    def use(conn: Conn) -> bytes:
        visit: Visit = conn.context
        visit.notes = visit.notes or conn.id
        assert conn.id == visit.notes
        data = take(conn)
        if data[:1] == b"a":
            conn.abort()
        elif data[:1] == b"c":
            conn.close_nowait()
        return data

    journal = Journal(use, style)
    ids = set()

    def end(sock: socket.socket, n: int) -> None:
        if n % 4 == 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()

    async with recorded(engine, journal, limits=LINGER_BRIEFLY) as listener:
        waiting: list[tuple[int, socket.socket]] = []
        for n in range(rounds):
            sock = dial(listener)
            sock.send(b"%d|" % n)
            waiting.append((n, sock))
            if len(waiting) == 10:
                await until(lambda: len(journal.visits) == n + 1)  # noqa: B023
                for m, open_one in waiting:
                    with suppress(OSError):
                        open_one.send(b"abcd"[m % 4 :][:1] + b"%d|" % m)
                    end(open_one, m)
                waiting.clear()
        await until(lambda: len(journal.visits) == rounds and journal.over)
        ids = {visit.notes for visit in journal.visits if visit.notes}
    for visit in journal.visits:
        words = [word.lstrip(b"abcd") for word in bytes(visit.received).split(b"|")[:-1]]
        assert len(set(words)) <= 1, visit.received
    assert len(ids) > rounds // 2
    assert len({number & 0xFFFFFFFF for number in ids}) < rounds // 2, "no slot was reused"


async def test_what_is_kept_of_a_connection_reaches_no_other(engine: Engine, long: bool) -> None:
    """Ids and objects of connections that are gone, while their slots are others'."""
    ids: list[int] = []
    kept: list[Conn] = []

    def on_data(conn: Conn) -> None:
        assert engine.connections[conn.id or 0] is conn
        for number in ids[-10:]:
            assert engine.connections.get(number) is None
        for old in kept[-10:]:
            old.abort()
            with pytest.raises(trio.ClosedResourceError):
                old.send_nowait(b"from elsewhere")
        assert conn.id is not None
        ids.append(conn.id)
        if len(ids) % 3 == 0:
            kept.append(conn)
        echo(conn)
        conn.close_nowait()

    rounds = 20_000 if long else 1000
    async with served(engine, on_data) as listener:
        for n in range(rounds):
            with caller(listener) as peer:
                await peer.send(b"%6d" % n)
                assert await read_all(peer) == b"%6d" % n
        assert len(set(ids)) == rounds
        assert len({number % 2**32 for number in ids}) < rounds // 10, "slots were not reused"
        assert not any(number in engine.connections for number in ids)


async def test_thousands_at_once(engine: Engine, long: bool) -> None:
    count = 5000 if long else 300
    journal = Journal(echo_and_tell)
    async with recorded(engine, journal) as listener:
        with ExitStack() as stack:
            peers = [stack.enter_context(caller(listener)) for _ in range(count)]
            for n, peer in enumerate(peers):
                await peer.send(b"%6d" % n)
            for n, peer in enumerate(peers):
                assert await read(peer, 6) == b"%6d" % n
            assert listener.statistics().handlers == count
        await until(lambda: journal.over)
    assert journal.ends == ["eof"] * count


def echo_and_tell(conn: Conn) -> bytes:
    data = conn.receive_nowait()
    conn.send_nowait(data)
    return data
