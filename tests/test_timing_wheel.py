"""TimingWheel, turned by hand."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import ManualClock

from trio_wknet import Timer, TimingWheel

TICK = 0.010
VISITS_A_TURN = 4096


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def wheel(clock: ManualClock) -> TimingWheel:
    return TimingWheel(clock=clock)


def test_a_call_is_made_once_and_not_early(clock: ManualClock, wheel: TimingWheel) -> None:
    wheel.call_later(1.0, clock.note, "a")
    assert wheel.turn() == 0
    clock.now = 0.999
    assert wheel.turn() == 0
    clock.now = 1.0
    assert wheel.turn() == 1
    clock.now = 2.0
    assert wheel.turn() == 0
    assert clock.calls == [("a", 1.0)]


@pytest.mark.parametrize("start", [0.0, 0.003, 17.0, 123456.789, 1e9, -5.0])
@pytest.mark.parametrize("delay", [0, 0.001, 0.01, 0.0123, 9.99, 10, 300, 86400, 1e8])
def test_a_call_is_late_by_at_most_a_tick(start: float, delay: float) -> None:
    clock = ManualClock(start)
    wheel = TimingWheel(TICK, clock=clock)
    wheel.call_later(delay, clock.note)
    error = 1e-6 if start == 1e9 else 1e-9  # what doubles of that size cannot tell
    clock.now = start + delay - max(error, 1e-9 * delay)
    assert wheel.turn() == 0
    clock.now = start + delay + TICK + error
    assert wheel.turn() == 1


def test_calls_come_in_order_of_ticks(clock: ManualClock, wheel: TimingWheel) -> None:
    for delay in [5, 3, 400, 0.5, 12, 3, 90_000, 0.02]:
        wheel.call_later(delay, clock.note, delay)
    clock.now = 100_000
    assert wheel.turn() == 8
    assert [what for what, _ in clock.calls] == [0.02, 0.5, 3, 3, 5, 12, 400, 90_000]


def test_cancel(clock: ManualClock, wheel: TimingWheel) -> None:
    timer = wheel.call_later(1, clock.note)
    timer.cancel()
    timer.cancel()
    other = wheel.call_later(1, clock.note, "other")  # in the place of the first
    timer.cancel()
    clock.now = 2
    assert wheel.turn() == 1
    other.cancel()
    assert clock.calls == [("other", 2)]
    assert wheel.statistics().cancelled == 1


@pytest.mark.parametrize("before", [0.5, 1.0, 1000.0])
@pytest.mark.parametrize("after", [0.25, 1.0, 3.0, 3000.0])
def test_reset_moves_a_call(
    clock: ManualClock, wheel: TimingWheel, before: float, after: float
) -> None:
    timer = wheel.call_later(before, clock.note)
    clock.now = 0.25
    wheel.turn()
    timer.reset(after)
    assert wheel.statistics().pending == 1
    clock.now = 0.25 + after - 0.001
    assert wheel.turn() == 0
    clock.now = 0.25 + after + TICK
    assert wheel.turn() == 1


def test_reset_repeats_the_last_delay(clock: ManualClock, wheel: TimingWheel) -> None:
    timer = wheel.call_later(10, clock.note)
    timer.reset(2)
    for now in (2, 4):  # also after it was called
        clock.now = now
        assert wheel.turn() == 1
        timer.reset()
    timer.cancel()
    timer.reset()  # and after it was cancelled
    clock.now = 6
    assert wheel.turn() == 1


def test_a_timer_can_be_dropped(clock: ManualClock, wheel: TimingWheel) -> None:
    wheel.call_later(1, clock.note, "dropped")
    gc.collect()
    clock.now = 1
    assert wheel.turn() == 1


def test_a_callback_may_do_anything_with_timers(clock: ManualClock, wheel: TimingWheel) -> None:
    def meddle() -> None:
        clock.note("meddle")
        due.cancel()  # it is due now, too
        moved.reset(5)
        early.reset(0.5)
        meddling.cancel()
        meddling.reset(2)
        wheel.call_later(0, clock.note, "new")
        assert wheel.turn() in (1, 0)

    meddling = wheel.call_later(1, meddle)
    due = wheel.call_later(1, clock.note, "due")
    moved = wheel.call_later(1, clock.note, "moved")
    wheel.call_later(1, clock.note, "stays")
    early = wheel.call_later(100, clock.note, "early")
    clock.now = 1
    assert wheel.turn() == 2
    assert [what for what, _ in clock.calls] == ["meddle", "stays"]
    meddling.cancel()
    clock.now = 1.02
    wheel.turn()
    clock.now = 1.52
    wheel.turn()
    assert clock.calls[2:] == [("new", 1.02), ("early", 1.52)]
    clock.now = 6
    assert wheel.turn() == 1
    assert wheel.statistics().pending == 0


def test_a_clock_that_goes_back_is_harmless(clock: ManualClock, wheel: TimingWheel) -> None:
    clock.now = 1000
    wheel.turn()
    wheel.call_later(100, clock.note, "old")
    clock.now = 500
    wheel.turn()
    wheel.call_later(1, clock.note, "new")
    clock.now = 501
    assert wheel.turn() == 1
    clock.now = float("nan")
    assert wheel.turn() == 0
    clock.now = 1100
    assert wheel.turn() == 1


def test_many_timers(clock: ManualClock, wheel: TimingWheel) -> None:
    timers = [wheel.call_later(index % 1000 / 7, clock.note, index) for index in range(20_000)]
    for timer in timers[::2]:
        timer.cancel()
    for timer in timers[1::4]:
        timer.reset(200)
    while wheel.statistics().pending:
        clock.now += 0.5
        wheel.turn()
    at = {index: now for index, now in clock.calls if isinstance(index, int)}
    assert len(clock.calls) == len(at) == 10_000
    assert all(200 <= at[index] <= 201 for index in range(1, 20_000, 4))
    assert all(
        index % 1000 / 7 <= at[index] <= index % 1000 / 7 + 1 for index in range(3, 20_000, 4)
    )


def test_one_turn_makes_all_calls_that_are_due(clock: ManualClock, wheel: TimingWheel) -> None:
    for _ in range(2 * VISITS_A_TURN + 1):
        wheel.call_later(1, clock.note)
    clock.now = 1
    assert wheel.turn() == 2 * VISITS_A_TURN + 1


def test_parts_of_a_nanosecond_are_not_early(clock: ManualClock) -> None:
    wheel = TimingWheel(1e-9, clock=clock)
    wheel.call_later(1.5e-9, clock.note)
    clock.now = 1.1e-9
    assert wheel.turn() == 0
    clock.now = 2.1e-9
    assert wheel.turn() == 1


def test_statistics(clock: ManualClock, wheel: TimingWheel) -> None:
    wheel.call_later(1, clock.note)
    wheel.call_later(1000, clock.note)
    wheel.call_later(1, clock.note).cancel()
    assert "2 timers" in repr(wheel)
    clock.now = 1
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
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_timers_make_no_cycles(clock: ManualClock, wheel: TimingWheel, no_collector: None) -> None:
    cancelled, fired, pending = Owner(), Owner(), Owner()
    gone = [weakref.ref(owner) for owner in (cancelled, fired, pending)]
    kept = wheel.call_later(1, cancelled.called)
    wheel.call_later(1, fired.called)
    wheel.call_later(100, pending.called)
    kept.cancel()
    del kept
    clock.now = 1
    wheel.turn()
    del cancelled, fired, pending
    assert [ref() is None for ref in gone] == [True, True, False]


def test_a_wheel_with_timers_can_be_dropped(no_collector: None) -> None:
    wheel, owner = TimingWheel(clock=ManualClock()), Owner()
    gone = weakref.ref(owner), weakref.ref(wheel)
    wheel.call_later(100, owner.called)
    timer = wheel.call_later(100, owner.called)
    del owner, wheel
    timer.cancel()  # which keeps the wheel
    del timer
    assert [ref() for ref in gone] == [None, None]


def test_cycles_through_a_wheel_are_collected() -> None:
    owner = Owner(TimingWheel(clock=ManualClock()))
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
    clock: ManualClock, wheel: TimingWheel, unraisable: list[Any], error: type[BaseException]
) -> None:
    def fail() -> None:
        raise error("on purpose")

    for fn in (clock.note, fail, clock.note):
        wheel.call_later(1, fn)
    clock.now = 1
    assert wheel.turn() == 3
    assert len(clock.calls) == 2
    assert [type(report.exc_value) for report in unraisable] == [error]
    assert unraisable[0].object is fail


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
    clock: ManualClock, wheel: TimingWheel, delay: Any, error: type[Exception], says: str
) -> None:
    timer = wheel.call_later(1, clock.note)
    with pytest.raises(error, match=says):
        wheel.call_later(delay, clock.note)
    with pytest.raises(error, match=says):
        wheel.move_on_after(delay)
    if delay is not None:
        with pytest.raises(error, match=says):
            timer.reset(delay)
    clock.now = 1
    assert wheel.turn() == 1  # what it was
    timer.reset()
    clock.now = 2
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
    with pytest.raises(TypeError, match="call_later returns one"):
        Timer()
