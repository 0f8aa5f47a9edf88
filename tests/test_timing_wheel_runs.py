"""TimingWheel in Trio runs, which turn it; most in virtual time."""

from __future__ import annotations

import gc
import queue
import random
import threading
import weakref
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any

import outcome
import pytest
import trio
from helpers import ManualClock
from trio.testing import MockClock

from trio_wknet import Timer, TimingWheel
from trio_wknet._native.public.timer import Timers

TICK = 0.010
VISITS_A_TURN = 4096


async def test_virtual_time(autojump_clock: MockClock) -> None:
    wheel, clock = TimingWheel(), ManualClock()
    start = trio.current_time()
    done = trio.Event()
    for delay in (0, 0.005, 5, 0.5, 400, 86400, 20_000):
        wheel.call_later(delay, lambda: clock.calls.append((None, trio.current_time() - start)))
    wheel.call_later(86401, done.set)
    await done.wait()
    expected = [0, 0.005, 0.5, 5, 400, 20_000, 86400]
    for (_, at), delay in zip(clock.calls, expected, strict=True):
        assert delay <= at <= delay + TICK + 1e-9
    assert trio.current_time() - start < 86401 + 2 * TICK


class Watched(Timers):
    """Turned at the moments that it says."""

    roused: float | None = None

    def _rouse(self, moment: float) -> None:
        self.roused = moment


@pytest.mark.parametrize("seed", range(20))
def test_no_moment_is_too_early(seed: int) -> None:
    """However doubles are rounded, at the moment that the wheel says it has something to
    do. Otherwise a driver would spin, in virtual time for good."""
    rng = random.Random(seed)
    clock = ManualClock(rng.choice([0.0, rng.uniform(0, 1e6), rng.uniform(1e6, 1e9)]))
    wheel = Watched(rng.choice([0.01, 0.001, 1 / 3]))
    wheel._start(clock)
    for _ in range(100):
        wheel._unwatch()
        wheel.call_later(rng.choice([0, rng.random(), rng.uniform(0, 1e5)]), clock.note)
        if rng.random() < 0.5:
            assert wheel.roused is not None
            clock.now = max(clock.now, wheel.roused)
        else:
            moment = wheel._watch()
            assert moment is not None
            clock.now = max(clock.now, moment)
        visits = wheel._counters()[4]
        wheel._run_due()
        assert wheel._counters()[4] > visits


async def test_one_timer_wakes_trio_once(autojump_clock: MockClock) -> None:
    wheel, done = TimingWheel(), trio.Event()
    wheel.call_later(0.123, done.set)
    await done.wait()
    assert wheel.statistics().turns == 1


async def test_a_failing_callback_does_not_end_the_run(
    autojump_clock: MockClock, unraisable: list[Any]
) -> None:
    def fail() -> None:
        raise ValueError("on purpose")

    wheel, called = TimingWheel(), trio.Event()
    wheel.call_later(1, fail)
    wheel.call_later(1, called.set)
    await called.wait()
    assert len(unraisable) == 1


async def test_an_earlier_timer_is_not_missed(autojump_clock: MockClock) -> None:
    wheel, calls = TimingWheel(), []
    wheel.call_later(100, lambda: calls.append(100))
    await trio.sleep(1)  # the driver sleeps now
    wheel.call_later(50, lambda: calls.append(50))
    timer = wheel.call_later(80, lambda: calls.append(80))
    timer.reset(20)
    await trio.sleep(20.02)
    assert calls == [80]
    await trio.sleep(30)
    assert calls == [80, 50]
    await trio.sleep(50)
    assert calls == [80, 50, 100]


async def test_resetting_later_is_found_out(autojump_clock: MockClock) -> None:
    wheel, called = TimingWheel(), trio.Event()
    timer = wheel.call_later(10, called.set)
    start = trio.current_time()
    for _ in range(30):
        await trio.sleep(1)
        timer.reset()
    await called.wait()
    assert 40 <= trio.current_time() - start < 40.1
    assert wheel.statistics().visits < 10


async def test_cancelled_timers_leave_trio_alone(autojump_clock: MockClock) -> None:
    wheel = TimingWheel()

    def living() -> int:
        return trio.lowlevel.current_statistics().tasks_living

    alone = living()
    for _ in range(5):
        for _ in range(100):
            wheel.call_later(10, print).cancel()
        assert living() == alone + 1  # one task, which was started once and sleeps
        await trio.sleep(1)
    assert wheel.statistics().turns == 0
    await trio.sleep(10)
    assert living() == alone  # an empty wheel wakes nobody
    assert wheel.statistics().turns == 1
    done = trio.Event()
    wheel.call_later(1, done.set)
    await done.wait()


async def test_a_callback_that_asks_for_itself_leaves_time_to_others(
    autojump_clock: MockClock,
) -> None:
    wheel, calls = TimingWheel(), []

    def again() -> None:
        calls.append(trio.current_time())
        wheel.call_later(0, again)

    again()
    await trio.sleep(1)
    assert 99 <= len(calls) <= 102


async def test_a_great_many_calls_leave_time_to_others(mock_clock: MockClock) -> None:
    wheel = TimingWheel()
    calls: list[int] = []
    number = 3 * VISITS_A_TURN
    for index in range(number):
        wheel.call_later(1, calls.append, index)
    await trio.testing.wait_all_tasks_blocked()
    mock_clock.jump(1)
    seen = set()
    while len(calls) < number:
        seen.add(len(calls))
        await trio.lowlevel.checkpoint()
    assert any(0 < called < number for called in seen)


async def test_callbacks_wake_tasks(autojump_clock: MockClock) -> None:
    """In the middle of a run, a callback may do what any synchronous code may."""
    wheel = TimingWheel()
    send, receive = trio.open_memory_channel[int](1)
    async with trio.open_nursery() as nursery:

        async def child() -> None:
            await send.send(7)

        wheel.call_later(1, nursery.start_soon, child)
        assert await receive.receive() == 7


class Owner:
    def called(self) -> None: ...


def test_a_run_ends_with_timers_pending() -> None:
    wheel, owner = TimingWheel(), Owner()
    gone = weakref.ref(owner)

    async def main(owner: Owner) -> Timer:
        timer = wheel.call_later(1000, owner.called)
        wheel.call_later(2000, print)
        await trio.testing.wait_all_tasks_blocked()
        return timer

    timer = trio.run(main, owner)
    assert wheel.statistics().pending == 0
    timer.cancel()
    with pytest.raises(RuntimeError, match="belongs to a Trio run that has ended"):
        timer.reset()
    with pytest.raises(RuntimeError, match="belongs to a Trio run that has ended"):
        wheel.call_later(1, print)
    assert "not pending" in repr(timer)
    del timer, owner
    gc.collect()  # what Trio leaves
    assert gone() is None

    async def another() -> None:
        with pytest.raises(RuntimeError, match="belongs to a Trio run that has ended"):
            wheel.call_later(1, print)
        with pytest.raises(RuntimeError, match="belongs to a Trio run that has ended"):
            with wheel.move_on_after(1):
                raise AssertionError("it was entered")

    trio.run(another)


def test_a_wheel_belongs_to_the_run_of_its_first_use() -> None:
    wheel = TimingWheel()
    with pytest.raises(RuntimeError, match="can only be used in a Trio run"):
        wheel.call_later(1, print)

    async def main() -> None:
        done = trio.Event()
        wheel.call_later(0.01, done.set)
        await done.wait()

    trio.run(main)


async def test_other_threads_are_refused() -> None:
    clock = ManualClock()
    of_the_run, by_hand = TimingWheel(), TimingWheel(clock=clock)
    timers = [of_the_run.call_later(1000, print), by_hand.call_later(1000, print)]

    def elsewhere() -> None:
        uses: list[Callable[[], object]] = [by_hand.turn]
        for used in (of_the_run, by_hand):
            uses.append(partial(used.call_later, 1, print))
            uses.append(used.move_on_after(1).__enter__)
        for timer in timers:
            uses += [timer.cancel, timer.reset, partial(timer.reset, 1)]
        for use in uses:
            with pytest.raises(RuntimeError, match="belongs to another thread"):
                use()

    await trio.to_thread.run_sync(elsewhere)
    assert of_the_run.statistics().pending == 1
    assert by_hand.statistics().pending == 1
    timers[1].reset()  # the delay is what it was
    clock.now = 999
    assert by_hand.turn() == 0


async def test_a_run_turns_its_wheels_itself() -> None:
    with pytest.raises(RuntimeError, match="turned by its Trio run"):
        TimingWheel().turn()


async def test_a_dropped_wheel_makes_its_calls(autojump_clock: MockClock) -> None:
    wheel, done = TimingWheel(), trio.Event()
    gone = weakref.ref(wheel)
    wheel.call_later(1, done.set)
    del wheel
    gc.collect()
    await done.wait()
    await trio.testing.wait_all_tasks_blocked()
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("sleeping", [False, True])
def test_a_run_that_is_ending(sleeping: bool) -> None:
    wheel, refused, kept = TimingWheel(), [], []

    async def outlive() -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            with pytest.raises(RuntimeError, match="a Trio run that is ending"):
                wheel.call_later(1, print)
            refused.append(True)

    async def main() -> None:
        if sleeping:
            wheel.call_later(0.5, print)
            await trio.testing.wait_all_tasks_blocked()
        generator = outlive()
        kept.append(generator)
        await generator.asend(None)

    trio.run(main, clock=MockClock())
    assert refused == [True]
    assert wheel.statistics().pending == 0


def test_in_guest_mode() -> None:
    """The host's own code, between Trio's turns, may use the wheel."""
    todo: queue.Queue[Callable[[], object]] = queue.Queue()
    wheel, calls = TimingWheel(), []
    outcomes: list[outcome.Outcome[None]] = []
    done = trio.Event()

    async def main() -> None:
        wheel.call_later(3600, print)
        await trio.testing.wait_all_tasks_blocked()
        todo.put(lambda: wheel.call_later(0.01, called))
        await done.wait()

    def called() -> None:
        calls.append(threading.current_thread())
        done.set()

    trio.lowlevel.start_guest_run(
        main,
        run_sync_soon_threadsafe=todo.put,
        run_sync_soon_not_threadsafe=todo.put,
        done_callback=outcomes.append,
    )
    while not outcomes:
        todo.get()()
    outcomes[0].unwrap()
    assert calls == [threading.current_thread()]


# --- scopes -------------------------------------------------------------------------------


async def test_move_on_after(autojump_clock: MockClock) -> None:
    wheel, start = TimingWheel(), trio.current_time()
    with wheel.move_on_after(5) as scope:
        assert isinstance(scope, trio.CancelScope)
        await trio.sleep_forever()
    assert scope.cancelled_caught
    assert 5 <= trio.current_time() - start <= 5 + 2 * TICK


async def test_leaving_a_scope_disarms_it(autojump_clock: MockClock) -> None:
    wheel = TimingWheel()
    with wheel.move_on_after(5) as left:
        await trio.sleep(4)
    with pytest.raises(KeyError), wheel.move_on_after(5) as failed:
        raise KeyError
    assert wheel.statistics().pending == 0
    await trio.sleep(10)
    assert not left.cancel_called
    assert not failed.cancel_called


async def test_scopes_nest(autojump_clock: MockClock) -> None:
    wheel = TimingWheel()
    with wheel.move_on_after(5) as outer:
        with wheel.move_on_after(50) as inner:
            await trio.sleep_forever()
    assert outer.cancelled_caught
    assert not inner.cancelled_caught
    with wheel.move_on_after(5) as outer:
        with trio.CancelScope(shield=True), wheel.move_on_after(50) as inner:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
    assert outer.cancelled_caught
    assert inner.cancelled_caught


async def test_a_scope_is_entered_once() -> None:
    wheel = TimingWheel()
    guard = wheel.move_on_after(5)
    with guard:
        pass
    with pytest.raises(RuntimeError, match="already entered"), guard:
        pass
    assert wheel.statistics().pending == 0


def test_a_scope_outside_of_a_task() -> None:
    wheel = TimingWheel(clock=ManualClock())
    with pytest.raises(RuntimeError), wheel.move_on_after(5):
        raise AssertionError("it was entered")
    assert wheel.statistics().pending == 0
