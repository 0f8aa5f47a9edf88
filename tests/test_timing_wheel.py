"""TimingWheel, turned by hand and in Trio runs with virtual time."""

from __future__ import annotations

import gc
import queue
import sys
import threading
import weakref
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from trio_wknet import Timer, TimingWheel

TICK = 0.010
VISITS_A_TURN = 4096


class Hands:
    """A clock that is moved by hand, and what was called when."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self.calls: list[tuple[object, float]] = []

    def __call__(self) -> float:
        return self.now

    def note(self, what: object = None) -> None:
        self.calls.append((what, self.now))


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
def wheel(hands: Hands) -> TimingWheel:
    return TimingWheel(clock=hands)


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    caught: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", caught.append)
    return caught


# --- by hand --------------------------------------------------------------------------


def test_a_call_is_made_once_and_not_early(hands: Hands, wheel: TimingWheel) -> None:
    wheel.call_later(1.0, hands.note, "a")
    assert wheel.turn() == 0
    hands.now = 0.999
    assert wheel.turn() == 0
    hands.now = 1.0
    assert wheel.turn() == 1
    hands.now = 2.0
    assert wheel.turn() == 0
    assert hands.calls == [("a", 1.0)]


@pytest.mark.parametrize("start", [0.0, 0.003, 17.0, 123456.789, 1e9, -5.0])
@pytest.mark.parametrize("delay", [0, 0.001, 0.01, 0.0123, 9.99, 10, 300, 86400, 1e8])
def test_a_call_is_late_by_at_most_a_tick(start: float, delay: float) -> None:
    hands = Hands(start)
    wheel = TimingWheel(TICK, clock=hands)
    wheel.call_later(delay, hands.note)
    error = 1e-6 if start == 1e9 else 1e-9  # what doubles of that size cannot tell
    hands.now = start + delay - max(error, 1e-9 * delay)
    assert wheel.turn() == 0
    hands.now = start + delay + TICK + error
    assert wheel.turn() == 1


def test_calls_come_in_order_of_ticks(hands: Hands, wheel: TimingWheel) -> None:
    for delay in [5, 3, 400, 0.5, 12, 3, 90_000, 0.02]:
        wheel.call_later(delay, hands.note, delay)
    hands.now = 100_000
    assert wheel.turn() == 8
    assert [what for what, _ in hands.calls] == [0.02, 0.5, 3, 3, 5, 12, 400, 90_000]


def test_cancel(hands: Hands, wheel: TimingWheel) -> None:
    timer = wheel.call_later(1, hands.note)
    timer.cancel()
    timer.cancel()
    other = wheel.call_later(1, hands.note, "other")  # in the place of the first
    timer.cancel()
    hands.now = 2
    assert wheel.turn() == 1
    other.cancel()
    assert hands.calls == [("other", 2)]
    assert wheel.statistics().cancelled == 1


@pytest.mark.parametrize("before", [0.5, 1.0, 1000.0])
@pytest.mark.parametrize("after", [0.25, 1.0, 3.0, 3000.0])
def test_reset_moves_a_call(hands: Hands, wheel: TimingWheel, before: float, after: float) -> None:
    timer = wheel.call_later(before, hands.note)
    hands.now = 0.25
    wheel.turn()
    timer.reset(after)
    assert wheel.statistics().pending == 1
    hands.now = 0.25 + after - 0.001
    assert wheel.turn() == 0
    hands.now = 0.25 + after + TICK
    assert wheel.turn() == 1


def test_reset_repeats_the_last_delay(hands: Hands, wheel: TimingWheel) -> None:
    timer = wheel.call_later(10, hands.note)
    timer.reset(2)
    for now in (2, 4):  # also after it was called
        hands.now = now
        assert wheel.turn() == 1
        timer.reset()
    timer.cancel()
    timer.reset()  # and after it was cancelled
    hands.now = 6
    assert wheel.turn() == 1


def test_a_timer_can_be_dropped(hands: Hands, wheel: TimingWheel) -> None:
    wheel.call_later(1, hands.note, "dropped")
    gc.collect()
    hands.now = 1
    assert wheel.turn() == 1


def test_a_callback_may_do_anything_with_timers(hands: Hands, wheel: TimingWheel) -> None:
    def meddle() -> None:
        hands.note("meddle")
        due.cancel()  # it is due now, too
        moved.reset(5)
        early.reset(0.5)
        meddling.cancel()
        meddling.reset(2)
        wheel.call_later(0, hands.note, "new")
        assert wheel.turn() in (1, 0)

    meddling = wheel.call_later(1, meddle)
    due = wheel.call_later(1, hands.note, "due")
    moved = wheel.call_later(1, hands.note, "moved")
    wheel.call_later(1, hands.note, "stays")
    early = wheel.call_later(100, hands.note, "early")
    hands.now = 1
    assert wheel.turn() == 2
    assert [what for what, _ in hands.calls] == ["meddle", "stays"]
    meddling.cancel()
    hands.now = 1.02
    wheel.turn()
    hands.now = 1.52
    wheel.turn()
    assert hands.calls[2:] == [("new", 1.02), ("early", 1.52)]
    hands.now = 6
    assert wheel.turn() == 1
    assert wheel.statistics().pending == 0


def test_a_clock_that_goes_back_is_harmless(hands: Hands, wheel: TimingWheel) -> None:
    hands.now = 1000
    wheel.turn()
    wheel.call_later(100, hands.note, "old")
    hands.now = 500
    wheel.turn()
    wheel.call_later(1, hands.note, "new")
    hands.now = 501
    assert wheel.turn() == 1
    hands.now = float("nan")
    assert wheel.turn() == 0
    hands.now = 1100
    assert wheel.turn() == 1


def test_many_timers(hands: Hands, wheel: TimingWheel) -> None:
    timers = [wheel.call_later(index % 1000 / 7, hands.note, index) for index in range(20_000)]
    for timer in timers[::2]:
        timer.cancel()
    for timer in timers[1::4]:
        timer.reset(200)
    while wheel.statistics().pending:
        hands.now += 0.5
        wheel.turn()
    at = {index: now for index, now in hands.calls if isinstance(index, int)}
    assert len(hands.calls) == len(at) == 10_000
    assert all(200 <= at[index] <= 201 for index in range(1, 20_000, 4))
    assert all(
        index % 1000 / 7 <= at[index] <= index % 1000 / 7 + 1 for index in range(3, 20_000, 4)
    )


def test_statistics(hands: Hands, wheel: TimingWheel) -> None:
    wheel.call_later(1, hands.note)
    wheel.call_later(1000, hands.note)
    wheel.call_later(1, hands.note).cancel()
    assert "2 timers" in repr(wheel)
    hands.now = 1
    wheel.turn()
    found = wheel.statistics()
    assert (found.pending, found.fired, found.cancelled) == (1, 1, 1)
    assert (found.turns, found.visits) == (1, 1)


# --- memory -----------------------------------------------------------------------------


class Owner:
    """Has a timer that calls it, and a wheel."""

    def __init__(self, wheel: TimingWheel | None = None) -> None:
        self.wheel = wheel
        self.timer: Timer | None = None

    def called(self) -> None: ...


@pytest.fixture
def no_collector() -> Any:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_timers_make_no_cycles(hands: Hands, wheel: TimingWheel, no_collector: None) -> None:
    cancelled, fired, pending = Owner(), Owner(), Owner()
    gone = [weakref.ref(owner) for owner in (cancelled, fired, pending)]
    kept = wheel.call_later(1, cancelled.called)
    wheel.call_later(1, fired.called)
    wheel.call_later(100, pending.called)
    kept.cancel()
    del kept
    hands.now = 1
    wheel.turn()
    del cancelled, fired, pending
    assert [ref() is None for ref in gone] == [True, True, False]
    del wheel  # with a timer pending
    # The fixture has the wheel, too.


def test_a_wheel_with_timers_can_be_dropped(no_collector: None) -> None:
    wheel, owner = TimingWheel(clock=Hands()), Owner()
    gone = weakref.ref(owner), weakref.ref(wheel)
    wheel.call_later(100, owner.called)
    timer = wheel.call_later(100, owner.called)
    del owner, wheel
    timer.cancel()  # which keeps the wheel
    del timer
    assert [ref() for ref in gone] == [None, None]


def test_cycles_through_a_wheel_are_collected() -> None:
    owner = Owner(TimingWheel(clock=Hands()))
    assert owner.wheel is not None
    owner.timer = owner.wheel.call_later(100, owner.called)
    scope = owner.wheel.move_on_after(100)
    gone = weakref.ref(owner), weakref.ref(owner.wheel)
    del owner, scope
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


# --- exceptions ---------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, BaseException])
def test_what_a_callback_raises_is_reported(
    hands: Hands, wheel: TimingWheel, unraisable: list[Any], error: type[BaseException]
) -> None:
    def fail() -> None:
        raise error("on purpose")

    for fn in (hands.note, fail, hands.note):
        wheel.call_later(1, fn)
    hands.now = 1
    assert wheel.turn() == 3
    assert len(hands.calls) == 2
    assert [type(report.exc_value) for report in unraisable] == [error]
    assert unraisable[0].object is fail


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


BAD_DELAYS: list[tuple[Any, type[Exception], str]] = [
    (-1, ValueError, "delay must be finite and not negative, not -1"),
    (-1e-9, ValueError, "-1e-09"),
    (float("nan"), ValueError, "nan"),
    (float("inf"), ValueError, "inf"),
    (10**400, ValueError, "delay must be finite"),
    ("1", TypeError, "delay must be a number of seconds, not '1'"),
    (None, TypeError, "None"),
    (True, TypeError, "True"),
    (1j, TypeError, "1j"),
]


@pytest.mark.parametrize(("delay", "error", "says"), BAD_DELAYS)
def test_bad_delays(
    hands: Hands, wheel: TimingWheel, delay: Any, error: type[Exception], says: str
) -> None:
    timer = wheel.call_later(1, hands.note)
    with pytest.raises(error, match=says):
        wheel.call_later(delay, hands.note)
    with pytest.raises(error, match=says):
        wheel.move_on_after(delay)
    if delay is not None:
        with pytest.raises(error, match=says):
            timer.reset(delay)
    hands.now = 1
    assert wheel.turn() == 1  # what it was
    timer.reset()
    hands.now = 2
    assert wheel.turn() == 1


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"tick": 0}, ValueError, "tick must be from 1e-9 to 1e9 seconds, not 0"),
        ({"tick": -1}, ValueError, "tick must be finite and not negative, not -1"),
        ({"tick": float("nan")}, ValueError, "tick"),
        ({"tick": 1e10}, ValueError, "tick"),
        ({"tick": "0.01"}, TypeError, "tick must be a number"),
        ({"slots": 1}, ValueError, "slots must be from 2 to 4096, not 1"),
        ({"slots": 4097}, ValueError, "4097"),
        ({"slots": 10.0}, TypeError, "slots must be an integer, not 10.0"),
        ({"slots": True}, TypeError, "True"),
        ({"clock": 5}, TypeError, "clock must be callable, not 5"),
    ],
)
def test_bad_wheels(arguments: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        TimingWheel(**arguments)


def test_what_cannot_be_called(wheel: TimingWheel) -> None:
    with pytest.raises(TypeError, match="fn must be callable, not 5"):
        wheel.call_later(1, 5)  # type: ignore[arg-type]
    assert wheel.statistics().pending == 0


def test_a_clock_that_fails(wheel: TimingWheel) -> None:
    def broken() -> float:
        raise OSError("no time")

    with pytest.raises(OSError, match="no time"):
        TimingWheel(clock=broken)
    with pytest.raises(TypeError):
        TimingWheel(clock=lambda: "late")  # type: ignore[arg-type, return-value]


def test_timers_are_not_made_by_hand() -> None:
    with pytest.raises(TypeError, match="given by call_later"):
        Timer()


# --- in a run -----------------------------------------------------------------------------


async def test_virtual_time(autojump_clock: MockClock) -> None:
    wheel, hands = TimingWheel(), Hands()
    start = trio.current_time()
    done = trio.Event()
    for delay in (0, 0.005, 5, 0.5, 400, 86400, 20_000):
        wheel.call_later(delay, lambda: hands.calls.append((None, trio.current_time() - start)))
    wheel.call_later(86401, done.set)
    await done.wait()
    expected = [0, 0.005, 0.5, 5, 400, 20_000, 86400]
    for (_, at), delay in zip(hands.calls, expected, strict=True):
        assert delay <= at <= delay + TICK + 1e-9
    assert trio.current_time() - start < 86401 + 2 * TICK


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
    wheel, calls = TimingWheel(), []
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


def test_a_run_ends_with_timers_pending() -> None:
    wheel, owner = TimingWheel(), Owner()
    gone = weakref.ref(owner)

    async def main() -> Timer:
        timer = wheel.call_later(1000, owner.called)
        wheel.call_later(2000, print)
        await trio.testing.wait_all_tasks_blocked()
        return timer

    timer = trio.run(main)
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


async def test_other_threads_are_refused(hands: Hands, wheel: TimingWheel) -> None:
    of_the_run = TimingWheel()
    timers = [of_the_run.call_later(1000, print), wheel.call_later(1000, print)]

    def elsewhere() -> None:
        uses: list[Callable[[], object]] = [wheel.turn]
        for used in (of_the_run, wheel):
            uses.append(lambda used=used: used.call_later(1, print))
            uses.append(used.move_on_after(1).__enter__)
        for timer in timers:
            uses += [timer.cancel, timer.reset]
        for use in uses:
            with pytest.raises(RuntimeError, match="belongs to another thread"):
                use()

    await trio.to_thread.run_sync(elsewhere)
    assert of_the_run.statistics().pending == 1
    assert wheel.statistics().pending == 1


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


def test_a_run_that_is_ending() -> None:
    wheel, refused, kept = TimingWheel(), [], []

    async def outlive() -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            with pytest.raises(RuntimeError, match="a Trio run that is ending"):
                wheel.call_later(1, print)
            refused.append(True)

    async def main() -> None:
        generator = outlive()
        kept.append(generator)
        await generator.asend(None)

    trio.run(main)
    assert refused == [True]
    assert wheel.statistics().pending == 0


def test_in_guest_mode() -> None:
    """The host's own code, between Trio's turns, may use the wheel."""
    todo: queue.Queue[Callable[[], object]] = queue.Queue()
    wheel, calls, outcomes = TimingWheel(), [], []
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
    with pytest.raises(RuntimeError, match="entered before"), guard:
        pass
    assert wheel.statistics().pending == 0


def test_a_scope_outside_of_a_task(wheel: TimingWheel) -> None:
    with pytest.raises(RuntimeError), wheel.move_on_after(5):
        raise AssertionError("it was entered")
    assert wheel.statistics().pending == 0
