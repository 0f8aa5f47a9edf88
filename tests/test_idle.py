"""Idle scopes and idle timeouts: by virtual time exactly, by real time never early."""

from __future__ import annotations

import gc
import math
import socket
import sys
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from helpers import (
    conn_and_peer,
    dialled,
    echo,
    is_served,
    plain_pair,
    read_all,
    unix_path,
    until,
    url,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_wknet import Conn, Engine, Idle, Listener, open_engine, open_wknet_listener

LOCAL = "tcp://127.0.0.1:0"
LATE = 0.02  # seconds: two ticks of the wheel
NOISE = 1e-5  # seconds: clocks in floating point, and a microsecond of the alarm


def in_time(due: float) -> bool:
    """Whether this is when something that was due has to happen."""
    return due - NOISE <= trio.current_time() <= due + LATE + NOISE


@asynccontextmanager
async def virtual_pair() -> AsyncIterator[tuple[Conn, socket.socket]]:
    """A connection and its peer, in a run with a clock that jumps. A unix socket has
    what is sent to it at once, so that no time passes while bytes are under way."""
    async with open_engine() as engine:
        ours, theirs = plain_pair("unix")
        conn = engine.adopt(ours)
        assert isinstance(conn, Conn)
        with theirs:
            yield conn, theirs
        conn.abort()


@asynccontextmanager
async def virtual_listener(folder: Path, idle_timeout: float | None) -> AsyncIterator[Listener]:
    async with open_wknet_listener(f"unix://{folder}/idle", idle_timeout=idle_timeout) as listener:
        yield listener


async def discard(conn: Conn) -> None:
    async for _ in conn:
        pass


async def talk_but_in(direction: str, conn: Conn, peer: socket.socket) -> None:
    """Have bytes move now and then, in the other direction."""
    while True:
        await trio.sleep(0.3)
        if direction == "read":
            await conn.send_all(b"x")
        else:
            peer.send(b"x")


async def wait_until(when: float) -> None:
    await trio.sleep_until(when)


# -- arguments -------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["1", b"1", True, 1j, [1], object()])
async def test_what_is_no_number_is_refused(engine: Engine, value: Any) -> None:
    async with conn_and_peer(engine) as (conn, _):
        for name in ("seconds", "read", "write"):
            with pytest.raises(TypeError, match=f"{name} must be a number of seconds, not"):
                conn.idle_scope(**{name: value})
        with pytest.raises(TypeError, match="idle_timeout must be a number of seconds, not"):
            conn.idle_timeout = value
        assert conn.idle_timeout is None
    with pytest.raises(TypeError, match="idle_timeout must be a number"):
        await engine.listen(LOCAL, idle_timeout=value)


@pytest.mark.parametrize("value", [0, 0.0, -1, -0.5, math.inf, -math.inf, math.nan])
async def test_a_time_that_cannot_be_is_refused(engine: Engine, value: float) -> None:
    async with conn_and_peer(engine) as (conn, _):
        for name in ("seconds", "read", "write"):
            with pytest.raises(ValueError, match=f"{name} must be more than 0 seconds"):
                conn.idle_scope(**{name: value})
        with pytest.raises(ValueError, match="idle_timeout must be more than 0"):
            conn.idle_timeout = value
        assert conn.idle_timeout is None
    with pytest.raises(ValueError, match="idle_timeout must be more than 0"):
        await engine.listen(LOCAL, idle_timeout=value)
    with pytest.raises(ValueError, match="idle_timeout must be more than 0"):
        async with open_wknet_listener(LOCAL, engine=engine, idle_timeout=value):
            pass


async def test_a_scope_needs_a_time(engine: Engine) -> None:
    async with conn_and_peer(engine) as (conn, _):
        with pytest.raises(TypeError, match="seconds, read or write"):
            conn.idle_scope()
        with pytest.raises(TypeError):
            conn.idle_scope(1, 2)  # type: ignore[call-arg]


async def test_very_long_and_very_short_times(engine: Engine) -> None:
    async with conn_and_peer(engine) as (conn, _):
        with conn.idle_scope(1e300, read=10**400, write=2.0**31):
            await trio.lowlevel.checkpoint()
        with conn.idle_scope(1e-12) as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught
        conn.idle_timeout = 1_073_741
        assert conn.idle_timeout == 1_073_741
        with pytest.raises(ValueError, match="idle_timeout must be at most 1073741 seconds"):
            conn.idle_timeout = 1_073_742
        conn.idle_timeout = 1e-9
        assert conn.idle_timeout == 0.001


# -- a scope like any other --------------------------------------------------------------


async def test_it_is_trios_own_scope(engine: Engine) -> None:
    async with conn_and_peer(engine) as (conn, _):
        scope = conn.idle_scope(60, read=50, write=40)
        assert type(scope) is trio.CancelScope
        assert scope.deadline == math.inf
        assert not scope.shield
        assert not scope.cancel_called
        with scope:
            scope.cancel()
            await trio.sleep_forever()
        assert scope.cancelled_caught
        with trio.move_on_after(0.01) as outer, conn.idle_scope(60) as inner:
            await trio.sleep_forever()
        assert outer.cancelled_caught
        assert not inner.cancel_called


async def test_scopes_nest_and_shield(autojump_clock: MockClock) -> None:
    async with virtual_pair() as (conn, _):
        with conn.idle_scope(1) as outer:
            with conn.idle_scope(3) as shielding:
                shielding.shield = True
                await trio.sleep_forever()
            assert shielding.cancelled_caught
            assert in_time(3)
            assert outer.cancel_called
            await trio.sleep_forever()
        assert outer.cancelled_caught
        assert in_time(3)


async def test_the_inner_scope_of_two_is_cancelled(autojump_clock: MockClock) -> None:
    async with virtual_pair() as (conn, _):
        with conn.idle_scope(2) as outer:
            with conn.idle_scope(1) as inner:
                await trio.sleep_forever()
            assert inner.cancelled_caught
            assert in_time(1)
            assert not outer.cancel_called
            await trio.sleep_forever()
        assert outer.cancelled_caught
        assert in_time(2)


async def test_a_scope_that_was_left_is_not_touched(autojump_clock: MockClock) -> None:
    async with virtual_pair() as (conn, _):
        with conn.idle_scope(1) as scope:
            pass
        await trio.sleep(5)
        assert not scope.cancel_called
        assert not scope.cancelled_caught


async def test_a_scope_that_is_not_entered_yet(autojump_clock: MockClock) -> None:
    async with virtual_pair() as (conn, _):
        late, in_time_entered = conn.idle_scope(1), conn.idle_scope(6)
        await trio.sleep(5)
        with late:
            await trio.sleep_forever()
        assert late.cancelled_caught
        assert in_time(5)
        with in_time_entered:
            await trio.sleep_forever()
        assert in_time_entered.cancelled_caught
        assert in_time(6), "it counts from its creation"


async def test_a_scope_whose_deadline_is_set_besides(autojump_clock: MockClock) -> None:
    async with virtual_pair() as (conn, _):
        for deadline, ends in ((0.5, 0.5), (10, 1)):
            start = trio.current_time()
            with conn.idle_scope(1) as scope:
                scope.deadline = start + deadline
                await trio.sleep_forever()
            assert scope.cancelled_caught
            assert in_time(start + ends)
        relative = conn.idle_scope(1)
        relative.relative_deadline = 10
        await trio.sleep(5)
        with relative:
            await trio.lowlevel.checkpoint()
        assert relative.cancelled_caught


async def test_one_scope_around_several_tasks(autojump_clock: MockClock) -> None:
    async with virtual_pair() as (conn, peer):

        async def talk() -> None:
            for _ in range(10):
                await trio.sleep(0.9)
                peer.send(b"x")

        with conn.idle_scope(1) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(talk)
                nursery.start_soon(discard, conn)
        assert scope.cancelled_caught
        assert in_time(10)


# -- in virtual time: when -----------------------------------------------------------------


@pytest.mark.parametrize("limit", [0.001, 0.01, 0.5, 1, 7.3, 30, 3600, 86400 * 30])
async def test_never_early_and_two_ticks_late_at_most(
    autojump_clock: MockClock, limit: float
) -> None:
    """30 days are more than a rule can say: the reactor looks in between."""
    async with virtual_pair() as (conn, _):
        for offset in (0, 0.0001, 0.005, 0.0199):
            await trio.sleep(offset)
            start = trio.current_time()
            with conn.idle_scope(limit) as scope:
                await conn.receive_some()
            assert scope.cancelled_caught
            assert in_time(start + limit)


@pytest.mark.parametrize("direction", ["read", "write"])
async def test_bytes_in_the_other_direction_do_not_count(
    autojump_clock: MockClock, direction: str
) -> None:
    async with virtual_pair() as (conn, peer), trio.open_nursery() as nursery:
        nursery.start_soon(discard, conn)
        nursery.start_soon(talk_but_in, direction, conn, peer)
        with conn.idle_scope(20, **{direction: 1}) as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught
        assert in_time(1)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("direction", ["read", "write"])
@pytest.mark.parametrize("beside", [{"seconds": 1.0}, {"seconds": 1.0, "read": 8.0, "write": 8.0}])
async def test_a_longer_time_for_another_direction(
    autojump_clock: MockClock, direction: str, beside: dict[str, float]
) -> None:
    """The rule for both has to come due with either, also after the first look."""
    async with virtual_pair() as (conn, peer), trio.open_nursery() as nursery:
        nursery.start_soon(discard, conn)
        nursery.start_soon(talk_but_in, direction, conn, peer)
        with conn.idle_scope(**{**beside, direction: 5.0}) as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught
        assert in_time(5)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("direction", ["read", "write"])
async def test_bytes_in_the_direction_count(autojump_clock: MockClock, direction: str) -> None:
    async with virtual_pair() as (conn, peer), trio.open_nursery() as nursery:
        nursery.start_soon(discard, conn)

        async def talk() -> None:
            for _ in range(20):
                await trio.sleep(0.9)
                if direction == "write":
                    await conn.send_all(b"x")
                else:
                    peer.send(b"x")

        nursery.start_soon(talk)
        with conn.idle_scope(**{direction: 1.0}) as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught
        assert in_time(19)
        nursery.cancel_scope.cancel()


async def test_what_the_reactor_sends_counts_as_sent(autojump_clock: MockClock) -> None:
    """What send_nowait left behind moves when the peer takes it."""
    async with virtual_pair() as (conn, peer), trio.open_nursery() as nursery:
        conn.send_nowait(bytes(1_000_000))
        assert conn.statistics().buffered_outbound > 0

        async def take() -> None:
            peer.setblocking(False)
            while conn.statistics().buffered_outbound:
                await trio.sleep(0.9)
                with suppress(BlockingIOError):
                    while peer.recv(65536):
                        pass
                await wait_all_tasks_blocked()
            took.append(trio.current_time())

        took: list[float] = []
        nursery.start_soon(take)
        with conn.idle_scope(write=1) as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught
        assert took[0] > 3
        assert in_time(took[0] + 1)


async def test_a_send_that_moves_nothing_does_not_count(autojump_clock: MockClock) -> None:
    async with virtual_pair() as (conn, _), trio.open_nursery() as nursery:
        with trio.move_on_after(0.001):
            while True:
                await conn.send_all(bytes(65536))
        start = trio.current_time()

        async def push() -> None:
            while True:
                await trio.sleep(0.3)
                with trio.move_on_after(0):
                    await conn.send_all(b"")
                with trio.move_on_after(0.1):
                    await conn.send_all(b"x")

        nursery.start_soon(push)
        with conn.idle_scope(write=1) as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught
        assert in_time(start + 1)
        nursery.cancel_scope.cancel()


async def test_it_counts_from_its_creation(autojump_clock: MockClock) -> None:
    async with virtual_pair() as (conn, _):
        await trio.sleep(100)
        with conn.idle_scope(1) as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught
        assert in_time(101)


async def test_a_stricter_scope_beside_a_lax_one(autojump_clock: MockClock) -> None:
    async with virtual_pair() as (conn, _):
        with conn.idle_scope(1000) as lax:
            for limit in (100, 10, 1, 0.1):
                start = trio.current_time()
                with conn.idle_scope(limit) as strict:
                    await trio.sleep_forever()
                assert strict.cancelled_caught
                assert in_time(start + limit)
            assert not lax.cancel_called
            await trio.sleep_forever()
        assert in_time(1000)


async def test_a_lax_scope_after_a_strict_one_was_left(autojump_clock: MockClock) -> None:
    async with virtual_pair() as (conn, _):
        with conn.idle_scope(0.1):
            pass
        with conn.idle_scope(5) as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught
        assert in_time(5)


# -- in virtual time: any combination, against a model ---------------------------------------

# Actions happen at tenths of a second, and times are tenths and a half: what is due is
# due between actions.
TENTHS = st.integers(0, 40)
LIMIT = st.one_of(st.none(), st.integers(0, 30).map(lambda n: n / 10 + 0.05))
ACTION = st.one_of(
    st.tuples(st.just("receive")),
    st.tuples(st.just("send")),
    st.tuples(st.just("scope"), LIMIT, LIMIT, LIMIT),
    st.tuples(st.just("leave"), st.integers(0, 5)),
    st.tuples(st.just("timeout"), LIMIT, st.none(), st.none()),
    st.tuples(st.just("timeout"), st.none(), LIMIT, LIMIT),
)


@attrs.define
class Modelled:
    """A scope as it should be: of each direction, when it began and how long it may be."""

    created: float
    limits: dict[str, float]
    left: float = math.inf

    def due(self, moved: dict[str, list[float]], by: float) -> float:
        """When it comes due, going by what moved before then."""
        dues = []
        for direction, limit in self.limits.items():
            last = self.created
            for when in sorted(moved[direction]):
                if self.created <= when <= min(last + limit, by):
                    last = when
            dues.append(last + limit)
        return min(dues)


class Model:
    """What a connection with some scopes and a timeout should do."""

    def __init__(self) -> None:
        self.scopes: list[Modelled] = []
        self.moved: dict[str, list[float]] = {"either": [], "read": [], "write": []}
        self.timeouts: list[tuple[float, dict[str, float]]] = [(0.0, {})]

    def move(self, direction: str, now: float) -> None:
        self.moved["either"].append(now)
        self.moved[direction].append(now)

    def closed(self) -> tuple[float, str]:
        """When the idle timeout closes the connection, and for what reason."""
        starts = [when for when, _ in self.timeouts]
        for (when, limits), until_ in zip(self.timeouts, [*starts[1:], math.inf], strict=True):
            dues = {
                "idle" if name == "either" else f"{name} idle": Modelled(when, {name: limit}).due(
                    self.moved, math.inf
                )
                for name, limit in limits.items()
            }
            reason = min(dues, key=dues.__getitem__, default="")
            if dues and dues[reason] < until_:
                return dues[reason], reason
        return math.inf, ""


async def live(actions: list[tuple[Any, ...]], times: list[int], end: float) -> None:
    """Do it, and compare."""
    model = Model()
    cancelled: dict[int, float] = {}
    leave: list[trio.Event] = []
    async with virtual_pair() as (conn, peer), trio.open_nursery() as nursery:

        async def hold(number: int, scope: trio.CancelScope) -> None:
            with scope:
                await leave[number].wait()
            if scope.cancelled_caught:
                cancelled[number] = trio.current_time()

        async def receive() -> None:
            with suppress(trio.ClosedResourceError):
                await discard(conn)
            closed.append(trio.current_time())

        closed: list[float] = []
        nursery.start_soon(receive)
        for action, tenth in zip(actions, sorted(times), strict=False):
            now = tenth / 10
            await wait_until(now)
            if model.closed()[0] < now:
                break
            match_action(action, now, conn, peer, model, leave, nursery, hold)
            await trio.testing.wait_all_tasks_blocked()
        await wait_until(end)
        over, reason = model.closed()
        assert bool(closed) == (over < end)
        if closed:
            assert over - NOISE <= closed[0] <= over + LATE + NOISE
            assert conn.close_reason == reason
        for number, scope in enumerate(model.scopes):
            due = scope.due(model.moved, over)
            if due < min(scope.left, end) and due <= over:
                assert due - NOISE <= cancelled[number] <= due + LATE + NOISE
            elif due > over + LATE or scope.left < due:
                assert number not in cancelled
        nursery.cancel_scope.cancel()


def limits_of(limits: list[float | None]) -> dict[str, float]:
    named = zip(("either", "read", "write"), limits, strict=True)
    return {name: limit for name, limit in named if limit is not None}


def match_action(
    action: tuple[Any, ...],
    now: float,
    conn: Conn,
    peer: socket.socket,
    model: Model,
    leave: list[trio.Event],
    nursery: trio.Nursery,
    hold: Callable[..., Any],
) -> None:
    kind, *arguments = action
    if kind == "receive":
        peer.send(b"x")
        model.move("read", now)
    elif kind == "send":
        conn.send_nowait(b"x")
        model.move("write", now)
    elif kind == "timeout":
        limits = limits_of(arguments)
        sides = {name: limit for name, limit in limits.items() if name != "either"}
        conn.idle_timeout = Idle(**sides) if sides else limits.get("either")
        model.timeouts.append((now, limits))
    elif kind == "leave" and arguments[0] < len(leave):
        leave[arguments[0]].set()
        model.scopes[arguments[0]].left = min(model.scopes[arguments[0]].left, now)
    elif kind == "scope" and any(limit is not None for limit in arguments):
        seconds, read, write = arguments
        scope = conn.idle_scope(seconds, read=read, write=write)
        model.scopes.append(Modelled(now, limits_of(arguments)))
        leave.append(trio.Event())
        nursery.start_soon(hold, len(leave) - 1, scope)


@given(actions=st.lists(ACTION, max_size=15), times=st.lists(TENTHS, min_size=15, max_size=15))
@settings(max_examples=150, deadline=None)
def test_any_combination_does_as_the_model(
    actions: list[tuple[Any, ...]], times: list[int]
) -> None:
    trio.run(live, actions, times, 8.0, clock=MockClock(autojump_threshold=0))


# -- in real time --------------------------------------------------------------------------


async def test_never_early(engine: Engine, kind: str) -> None:
    async with conn_and_peer(engine, kind) as (conn, peer):
        for number in range(10):
            limit = 0.0013 * (number + 1)
            start = time.monotonic()
            with conn.idle_scope(limit) as scope:
                await conn.receive_some()
            assert scope.cancelled_caught
            assert time.monotonic() - start >= limit
            received = False
            with conn.idle_scope(limit) as scope:
                with trio.CancelScope(shield=True):
                    start = time.monotonic()
                    await peer.send(b"x")
                while await conn.receive_some():
                    received = True
            # On a busy machine it may have been too late for this byte.
            assert not received or time.monotonic() - start >= limit
            while not received:
                received = bool(await conn.receive_some())
            with conn.idle_scope(write=limit, read=60) as scope:
                start = time.monotonic()
                conn.send_nowait(b"x")
                await trio.sleep_forever()
            assert time.monotonic() - start >= limit
            await peer.recv(1)


async def test_each_direction_in_real_time(engine: Engine) -> None:
    async with conn_and_peer(engine) as (conn, peer), trio.open_nursery() as nursery:

        async def talk() -> None:
            while True:
                await conn.send_all(b"x")
                await peer.recv(1)
                await trio.sleep(0.001)

        nursery.start_soon(talk)
        for options in (
            {"read": 0.02},
            {"read": 0.02, "seconds": 60.0},
            {"read": 0.02, "write": 60.0},
        ):
            with conn.idle_scope(**options) as scope:
                await conn.receive_some()
            assert scope.cancelled_caught
        nursery.cancel_scope.cancel()


async def test_many_connections_at_once(engine: Engine) -> None:
    fired = 0
    async with await engine.listen(LOCAL) as listener, trio.open_nursery() as nursery:

        async def wait(conn: Conn) -> None:
            nonlocal fired
            with conn.idle_scope(0.05) as scope:
                await conn.receive_some()
            fired += scope.cancelled_caught
            conn.abort()

        with dialled(listener, 100):
            async with trio.open_nursery() as waiting:
                for _ in range(100):
                    waiting.start_soon(wait, await listener.accept())
        assert fired == 100
        nursery.cancel_scope.cancel()


async def test_a_scope_in_a_loop_wakes_nobody(engine: Engine) -> None:
    """The reactor watches a rule that is strict enough already."""
    async with conn_and_peer(engine) as (conn, _):
        with conn.idle_scope(30):
            pass
        await until(lambda: sum(r.turns for r in engine.statistics().reactors))
        await trio.sleep(0.01)
        before = sum(r.turns for r in engine.statistics().reactors)
        for _ in range(1000):
            with conn.idle_scope(30) as scope:
                assert not scope.cancel_called
        with conn.idle_scope(100), conn.idle_scope(31):
            pass
        assert sum(r.turns for r in engine.statistics().reactors) - before < 10


async def test_scopes_that_are_gone_leave_nothing_behind(engine: Engine) -> None:
    async with conn_and_peer(engine) as (conn, _):

        def use(count: int) -> None:
            for _ in range(count):
                with conn.idle_scope(30, read=20, write=10) as scope:
                    assert not scope.cancel_called

        use(100)
        gc.collect()
        before = sys.getallocatedblocks()
        use(5000)
        assert sys.getallocatedblocks() - before < 500


# -- the end of the connection ------------------------------------------------------------------


@pytest.mark.parametrize("how", ["aclose", "abort", "detach"])
async def test_a_scope_that_outlives_the_connection(autojump_clock: MockClock, how: str) -> None:
    async with virtual_pair() as (conn, _):
        with conn.idle_scope(1) as scope:
            result: Any = getattr(conn, how)()
            if how == "detach":
                sock, _unread = await result
                sock.close()
            elif result is not None:
                await result
            await trio.sleep(10)
            assert not scope.cancel_called
        with pytest.raises(trio.ClosedResourceError):
            conn.idle_scope(1)
        assert conn.idle_timeout is None
        with pytest.raises(trio.ClosedResourceError):
            conn.idle_timeout = 1


async def test_scope_and_connection_are_not_kept(engine: Engine) -> None:
    async with conn_and_peer(engine) as (conn, _):
        scope = conn.idle_scope(60)
        reference = weakref.ref(scope)
        del scope
        gc.collect()
        assert reference() is None
        scope = conn.idle_scope(60)
        conn.abort()
        connection = weakref.ref(conn)
    del conn
    gc.collect()
    assert connection() is None
    assert not scope.cancel_called


async def test_the_end_of_an_engine(reactors: int, nothing_left: None) -> None:
    async with open_engine(reactors) as engine:
        ours, theirs = plain_pair()
        conn = engine.adopt(ours)
        assert isinstance(conn, Conn)
        scope = conn.idle_scope(0.02)
        conn.idle_timeout = 0.02
    theirs.close()
    with scope:
        await trio.sleep(0.05)
    assert not scope.cancel_called
    assert conn.close_reason == "engine closed"
    with pytest.raises(trio.ClosedResourceError):
        conn.idle_scope(1)


async def test_a_peer_that_is_gone_is_idle(autojump_clock: MockClock) -> None:
    """The end is no byte, and a scope of a connection that broke is a scope still."""
    async with virtual_pair() as (conn, peer):
        peer.close()
        with conn.idle_scope(1) as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught
        assert in_time(1)
        assert conn.close_reason == "eof"
        with suppress(trio.BrokenResourceError):
            await conn.send_all(b"x")
        with conn.idle_scope(1) as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught


async def test_timers_of_slots_that_were_used_before(engine: Engine, long: bool) -> None:
    """Pitfall 4: wknet's idle callback outlives its connection."""
    kept: list[tuple[Conn, socket.socket, trio.CancelScope]] = []
    async with trio.open_nursery() as nursery:

        async def wait(conn: Conn, number: int) -> None:
            with conn.idle_scope(0.001 * (number % 30 + 1), read=0.002):
                if number % 3:
                    await trio.sleep_forever()
            conn.abort()

        for number in range(20_000 if long else 2000):
            ours, theirs = plain_pair("unix")
            conn = engine.adopt(ours)
            assert isinstance(conn, Conn)
            if number % 100 == 99:
                conn.idle_timeout = 60
                kept.append((conn, theirs, conn.idle_scope(60, read=50, write=40)))
                await trio.sleep(0.002)
            else:
                theirs.close()
                nursery.start_soon(wait, conn, number)
    await trio.sleep(0.1)
    for conn, theirs, scope in kept:
        assert conn.close_reason is None
        assert not scope.cancel_called
        conn.abort()
        theirs.close()


# -- the idle timeout of a connection -------------------------------------------------------------


async def test_whoever_waits_is_told(autojump_clock: MockClock) -> None:
    async with virtual_pair() as (conn, peer):
        assert conn.idle_timeout is None
        conn.idle_timeout = 1.5
        assert conn.idle_timeout == 1.5
        told: list[str] = []

        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await conn.receive_some()
            told.append("receive")

        async def end() -> None:
            await conn.wait_closed()
            told.append("end")

        async def disconnect() -> None:
            with conn.cancel_on_disconnect():
                await trio.sleep_forever()
            told.append("disconnect")

        async with trio.open_nursery() as nursery:
            for waiter in (receive, end, disconnect):
                nursery.start_soon(waiter)
        assert in_time(1.5)
        assert sorted(told) == ["disconnect", "end", "receive"]
        assert conn.close_reason == "idle"
        assert conn.idle_timeout is None
        assert peer.recv(1) == b"", "closed gracefully"


async def test_a_sender_that_is_stuck_is_told(autojump_clock: MockClock) -> None:
    async with virtual_pair() as (conn, _):
        conn.idle_timeout = 2
        with pytest.raises(trio.ClosedResourceError):
            while True:
                await conn.send_all(bytes(65536))
        assert in_time(2)
        assert conn.close_reason == "idle"


async def test_bytes_put_the_timeout_off(autojump_clock: MockClock) -> None:
    async with virtual_pair() as (conn, peer), trio.open_nursery() as nursery:
        conn.idle_timeout = 1
        nursery.start_soon(conn.wait_closed)
        for number in range(10):
            await trio.sleep(0.9)
            if number % 2:
                peer.send(b"x")
                await conn.receive_some()
            else:
                await conn.send_all(b"x")
    assert in_time(10)
    assert conn.close_reason == "idle"


@pytest.mark.parametrize(
    ("second", "ends"), [(0.5, 3.5), (5, 8), (2, 5), (None, math.inf), (0.001, 3.001)]
)
async def test_another_timeout_while_one_runs(
    autojump_clock: MockClock, second: float | None, ends: float
) -> None:
    async with virtual_pair() as (conn, _):
        conn.idle_timeout = 4
        await trio.sleep(3)
        conn.idle_timeout = second
        with trio.move_on_after(100) as patience:
            await conn.wait_closed()
        assert patience.cancelled_caught == (ends == math.inf)
        if ends < math.inf:
            assert in_time(ends)
            assert conn.close_reason == "idle"


async def test_a_timeout_beside_scopes(autojump_clock: MockClock) -> None:
    async with virtual_pair() as (conn, _):
        conn.idle_timeout = 2
        with conn.idle_scope(3) as never, conn.idle_scope(1) as first:
            await conn.receive_some()
        assert first.cancelled_caught
        assert in_time(1)
        with pytest.raises(trio.ClosedResourceError):
            await conn.receive_some()
        assert in_time(2)
        with never.__class__():
            await trio.sleep(5)
        assert not never.cancel_called


async def test_a_scope_that_is_due_with_the_timeout(autojump_clock: MockClock) -> None:
    async with virtual_pair() as (conn, _):
        conn.idle_timeout = 1
        with conn.idle_scope(1) as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught
        assert in_time(1)
        assert conn.close_reason == "idle"


async def test_what_ended_it_first_is_the_reason(autojump_clock: MockClock) -> None:
    async with virtual_pair() as (conn, peer):
        conn.idle_timeout = 1
        peer.shutdown(socket.SHUT_WR)
        assert await conn.receive_some() == b""
        await trio.sleep(0.999)
        conn.send_nowait(b"")
        await trio.sleep(0.03)
        with pytest.raises(trio.ClosedResourceError):
            conn.send_nowait(b"")
        assert conn.close_reason == "eof"


async def test_detaching_is_not_idle(autojump_clock: MockClock) -> None:
    async with virtual_pair() as (conn, _):
        conn.idle_timeout = 1
        await trio.sleep(0.999)
        sock, _ = await conn.detach()
        await trio.sleep(5)
        assert conn.close_reason == "detached"
        assert sock.fileno() >= 0
        sock.close()


# -- listeners -----------------------------------------------------------------------------------


async def test_serve_cancels_the_handler_and_goes_on(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    ended: list[tuple[float, type[BaseException] | None]] = []
    conns: list[Conn] = []

    async def handler(conn: Conn) -> None:
        conns.append(conn)
        assert conn.idle_timeout == 3
        try:
            await echo(conn)
        finally:
            ended.append((trio.current_time(), sys.exc_info()[0]))

    async with virtual_listener(tmp_path, 3) as listener, trio.open_nursery() as nursery:
        await nursery.start(listener.serve, handler)
        for number in range(3):
            stream = await trio.open_unix_socket(unix_path(listener))
            async with stream:
                for _ in range(4):
                    await trio.sleep(2)
                    await stream.send_all(b"x")
                    assert await stream.receive_some() == b"x"
                last = trio.current_time()
                assert await stream.receive_some() == b"", "closed gracefully"
                assert in_time(last + 3)
            assert len(ended) == number + 1
            assert ended[-1][1] is trio.Cancelled
            assert conns[-1].close_reason == "idle"
        await until(lambda: listener.statistics().handlers == 0)
        nursery.cancel_scope.cancel()


async def test_serve_in_real_time(engine: Engine, kind: str, tmp_path: Path) -> None:
    address = LOCAL if kind == "tcp" else f"unix://{tmp_path}/socket"
    reasons: list[str | None] = []

    async def handler(conn: Conn) -> None:
        try:
            await echo(conn)
        except trio.Cancelled:
            reasons.append(conn.close_reason)
            raise

    async with (
        await engine.listen(address, idle_timeout=0.05) as listener,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(listener.serve, handler)
        for _ in range(2):  # serving goes on
            with dialled(listener, 20) as socks:
                for sock in socks:
                    sock.setblocking(False)
                    assert await trio.socket.from_stdlib_socket(sock).recv(1) == b""
        assert reasons == [None] * 40, "open until the handler has ended"
        nursery.cancel_scope.cancel()


async def test_a_handler_may_say_goodbye(autojump_clock: MockClock, tmp_path: Path) -> None:
    async def handler(conn: Conn) -> None:
        try:
            await echo(conn)
        finally:
            with trio.CancelScope(shield=True):
                await conn.send_all(b"bye")

    async with virtual_listener(tmp_path, 1) as listener, trio.open_nursery() as nursery:
        await nursery.start(listener.serve, handler)
        async with await trio.open_unix_socket(unix_path(listener)) as stream:
            assert await read_all(stream) == b"bye"
        nursery.cancel_scope.cancel()


async def test_a_handler_that_does_not_end_is_closed_under(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    conns: list[Conn] = []

    async def handler(conn: Conn) -> None:
        conns.append(conn)
        with trio.CancelScope(shield=True):
            await echo(conn)

    async with virtual_listener(tmp_path, 1) as listener, trio.open_nursery() as nursery:
        await nursery.start(listener.serve, handler)
        start = trio.current_time()
        async with await trio.open_unix_socket(unix_path(listener)) as stream:
            assert await stream.receive_some() == b""
            assert start + 2 <= trio.current_time() <= start + 2 + 2 * LATE + NOISE
        assert conns[0].close_reason == "idle"
        async with await trio.open_unix_socket(unix_path(listener)) as stream:
            await stream.send_all(b"x")
            assert await stream.receive_some() == b"x", "serve goes on"
        nursery.cancel_scope.cancel()


async def test_a_handler_whose_scope_is_cancelled_may_fail(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def handler(conn: Conn) -> None:
        try:
            await echo(conn)
        finally:
            raise KeyError("cleaning up")

    async with virtual_listener(tmp_path, 1) as listener:
        with pytest.raises(Exception) as raised:  # noqa: PT011
            async with trio.open_nursery() as nursery:
                await nursery.start(listener.serve, handler)
                async with await trio.open_unix_socket(unix_path(listener)) as stream:
                    await stream.receive_some()
        assert raised.group_contains(KeyError, match="cleaning up")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("before", [None, 50])
async def test_a_handler_sets_its_own_timeout(
    autojump_clock: MockClock, tmp_path: Path, nested: bool, before: float | None
) -> None:
    conns: list[Conn] = []

    async def handler(conn: Conn) -> None:
        conns.append(conn)
        assert conn.idle_timeout == before
        conn.idle_timeout = 2
        if nested:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(echo, conn)
        else:
            await echo(conn)

    async with virtual_listener(tmp_path, before) as listener, trio.open_nursery() as nursery:
        await nursery.start(listener.serve, handler)
        for number in range(2):
            start = trio.current_time()
            async with await trio.open_unix_socket(unix_path(listener)) as stream:
                assert await stream.receive_some() == b""
            assert in_time(start + 2)
            assert conns[number].close_reason == "idle"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("error", [KeyError, trio.ClosedResourceError])
async def test_other_errors_of_handlers_end_serve(
    autojump_clock: MockClock, tmp_path: Path, error: type[Exception]
) -> None:
    """ClosedResourceError, too, if it was not the timeout that closed the connection."""

    async def handler(conn: Conn) -> None:
        await conn.receive_some()
        raise error("on purpose")

    async with virtual_listener(tmp_path, 5) as listener:
        with pytest.raises(Exception) as raised:  # noqa: PT011
            async with trio.open_nursery() as nursery:
                await nursery.start(listener.serve, handler)
                async with await trio.open_unix_socket(unix_path(listener)) as stream:
                    await stream.send_all(b"x")
                    await trio.sleep_forever()
        assert raised.group_contains(error, match="on purpose")


async def test_a_handler_switches_the_timeout_off(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def handler(conn: Conn) -> None:
        conn.idle_timeout = None
        await echo(conn)

    async with virtual_listener(tmp_path, 1) as listener, trio.open_nursery() as nursery:
        await nursery.start(listener.serve, handler)
        async with await trio.open_unix_socket(unix_path(listener)) as stream:
            await trio.sleep(1000)
            await stream.send_all(b"x")
            assert await stream.receive_some() == b"x"
        nursery.cancel_scope.cancel()


async def test_handlers_that_end_by_themselves(autojump_clock: MockClock, tmp_path: Path) -> None:
    conns: list[Conn] = []

    async def handler(conn: Conn) -> None:
        conns.append(conn)
        await conn.receive_some()

    async with virtual_listener(tmp_path, 1) as listener, trio.open_nursery() as nursery:
        await nursery.start(listener.serve, handler)
        async with await trio.open_unix_socket(unix_path(listener)) as stream:
            await stream.send_all(b"x")
            assert await stream.receive_some() == b""
            assert conns[0].close_reason == "closed"
        await trio.sleep(10)
        async with await trio.open_unix_socket(unix_path(listener)) as stream:
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            await trio.lowlevel.cancel_shielded_checkpoint()
    assert conns[1].close_reason == "closed"


async def test_who_accepts_gets_connections_with_a_timeout(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with virtual_listener(tmp_path, 1) as listener:
        async with await trio.open_unix_socket(unix_path(listener)) as stream:
            conn = await listener.accept()
            assert conn.idle_timeout == 1
            start = trio.current_time()
            with pytest.raises(trio.ClosedResourceError):
                await conn.receive_some()
            assert in_time(start + 1)
            assert conn.close_reason == "idle"
            assert await stream.receive_some() == b""


@pytest.mark.parametrize("waits", [0, 0.5, 0.999, 1, 1.005, 1.02, 10])
async def test_it_counts_from_being_accepted(
    autojump_clock: MockClock, tmp_path: Path, waits: float
) -> None:
    """Also where it came due before anybody had the connection."""
    async with virtual_listener(tmp_path, 1) as listener:
        async with await trio.open_unix_socket(unix_path(listener)):
            await trio.sleep(waits)
            conn = await listener.accept()
            start = trio.current_time()
            await conn.wait_closed()
            assert in_time(start + 1)
            assert conn.close_reason == "idle"


async def test_nobody_accepts(engine: Engine) -> None:
    """What came due meanwhile is in nobody's clock."""
    async with await engine.listen(LOCAL, idle_timeout=0.01) as listener:
        with dialled(listener, 20) as socks:
            await until(lambda: listener.statistics().waiting == 20)
            await trio.sleep(0.05)
            for _ in range(10):
                start = time.monotonic()
                conn = await listener.accept()
                await conn.wait_closed()
                assert time.monotonic() - start >= 0.01, "it counts from being accepted"
                assert conn.close_reason == "idle"
            assert len(socks) == 20


async def test_trio_serves_it(autojump_clock: MockClock, tmp_path: Path) -> None:
    async def handler(conn: Conn) -> None:
        with suppress(trio.ClosedResourceError):
            await echo(conn)

    async with virtual_listener(tmp_path, 1) as listener, trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handler, [listener])
        for _ in range(2):
            async with await trio.open_unix_socket(unix_path(listener)) as stream:
                start = trio.current_time()
                assert await stream.receive_some() == b""
                assert in_time(start + 1)
        nursery.cancel_scope.cancel()


async def test_connections_that_are_made_have_none(engine: Engine) -> None:
    async with (
        open_wknet_listener(LOCAL, engine=engine, idle_timeout=300) as listener,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(listener.serve, echo)
        conn = await engine.connect(url(listener))
        assert conn.idle_timeout is None
        conn.abort()
        nursery.cancel_scope.cancel()


async def test_a_timeout_in_the_midst_of_traffic(engine: Engine) -> None:
    """Nobody who talks is cut off. Even a busy machine moves some byte in ten seconds."""
    async with (
        await engine.listen(LOCAL, idle_timeout=10) as listener,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(listener.serve, echo)
        async with trio.open_nursery() as clients:
            for n in range(50):
                clients.start_soon(is_served, engine, listener, bytes(n * 10_000))
        nursery.cancel_scope.cancel()


# -- served by callbacks -----------------------------------------------------------------------


async def test_callbacks_are_told_of_idleness(autojump_clock: MockClock, tmp_path: Path) -> None:
    ends: list[tuple[float, str, Any]] = []

    def on_connect(conn: Conn) -> None:
        conn.context = trio.current_time()
        assert conn.idle_timeout == 2

    def on_data(conn: Conn) -> None:
        if conn.receive_nowait() == b"longer":
            conn.idle_timeout = 5

    def on_close(conn: Conn, reason: str) -> None:
        ends.append((trio.current_time(), reason, conn.context))

    async with virtual_listener(tmp_path, 2) as listener, trio.open_nursery() as nursery:
        await nursery.start(
            partial(listener.serve_events, on_data, on_connect=on_connect, on_close=on_close)
        )
        for says, span in ((b"x", 2), (b"longer", 5)):
            start = trio.current_time()
            async with await trio.open_unix_socket(unix_path(listener)) as stream:
                await trio.sleep(1.5)
                await stream.send_all(says)
                assert await stream.receive_some() == b""
                assert in_time(start + 1.5 + span)
            assert ends.pop()[1:] == ("idle", start)
        await until(lambda: listener.statistics().handlers == 0)
        nursery.cancel_scope.cancel()


async def test_an_async_callback_is_cancelled(autojump_clock: MockClock, tmp_path: Path) -> None:
    ends: list[str] = []

    async def on_data(conn: Conn) -> None:
        conn.receive_nowait()
        with conn.idle_scope(0.5) as scope:
            await conn.receive_some()
        assert scope.cancelled_caught
        try:
            await trio.sleep_forever()
        finally:
            ends.append("cancelled")

    def on_close(conn: Conn, reason: str) -> None:
        ends.append(reason)

    async with virtual_listener(tmp_path, 2) as listener, trio.open_nursery() as nursery:
        await nursery.start(partial(listener.serve_events, on_data, on_close=on_close))
        for _ in range(2):
            start = trio.current_time()
            async with await trio.open_unix_socket(unix_path(listener)) as stream:
                await stream.send_all(b"x")
                assert await stream.receive_some() == b""
            assert in_time(start + 2)
            await wait_all_tasks_blocked()
            assert ends == ["cancelled", "idle"]
            ends.clear()
        nursery.cancel_scope.cancel()


async def test_a_scope_that_a_callback_kept(autojump_clock: MockClock, tmp_path: Path) -> None:
    """It ends with its connection's object, and is not that of the next connection, to
    which an object may be lent."""
    scopes: list[trio.CancelScope] = []
    conns: list[Conn] = []

    def on_data(conn: Conn) -> None:
        scopes.append(conn.idle_scope(1))
        if conn.receive_nowait() == b"keep":
            conns.append(conn)

    async with virtual_listener(tmp_path, None) as listener, trio.open_nursery() as nursery:
        await nursery.start(listener.serve_events, on_data)
        async with (
            await trio.open_unix_socket(unix_path(listener)) as one,
            await trio.open_unix_socket(unix_path(listener)) as other,
        ):
            for stream, says in ((one, b"x"), (other, b"keep")):
                await stream.send_all(says)
                await wait_all_tasks_blocked()
            await trio.sleep(5)
            assert [scope.cancel_called for scope in scopes] == [False, True]
        nursery.cancel_scope.cancel()
