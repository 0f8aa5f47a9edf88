"""TimingWheel: who turns the wheel of timers, in a Trio run or by hand.

Facts. A deadline costs Trio an entry in its heap and a cancel scope around it; setting
and dropping one takes some microseconds. Most timers of a server are cancelled, or moved,
before they are due.

Decision. Setting and dropping a timer touches only the wheel. One system task, the
driver, sleeps until the next time at which the wheel must be looked at. That is an
ordinary deadline of Trio's, so virtual time works as for any other task. The driver is
woken only for a timer that is due before that. It exists while there are timers: an empty
wheel wakes nothing.

Trade-off. Trio may wake once for a timer that was cancelled meanwhile, and for a bucket
whose timers only move down a level.

A system task that raises ends the run with TrioInternalError. So the driver never raises:
what callbacks raise goes to sys.unraisablehook.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakSet

import trio

from trio_wknet._native.public.timer import Timers
from trio_wknet._statistics import WheelStatistics

if TYPE_CHECKING:
    from collections.abc import Callable


class _RunEnd(trio.abc.Instrument):
    """Tells the wheels of a run when it is over."""

    def __init__(self) -> None:
        self.wheels: WeakSet[TimingWheel] = WeakSet()

    def after_run(self) -> None:
        for wheel in tuple(self.wheels):
            wheel._end()


_run_end: trio.lowlevel.RunVar[_RunEnd] = trio.lowlevel.RunVar("trio_wknet timing wheels")


def _this_runs_end() -> _RunEnd:
    try:
        return _run_end.get()
    except LookupError:
        end = _RunEnd()
        trio.lowlevel.add_instrument(end)
        _run_end.set(end)
        return end


class TimingWheel(Timers):
    """A hierarchical timing wheel: timers that cost next to nothing to set, to move and to
    cancel, at the price of accuracy.

    A wheel belongs to the Trio run, and the thread, in which it is first used, and uses
    that run's clock. When the run ends, its timers are dropped. It needs no
    closing. With a ``clock`` of its own it belongs to no run, and is turned by hand.

    Args:
      tick: in seconds, from 1e-9 to 1e9; by default 0.010. A timer is late by at most one
          tick plus the time that the thread is busy.
      slots: the buckets of each level, from 2 to 4096; by default 1000. A timer that lasts
          longer than this number of ticks is put on a higher level, and is looked at once
          on each level on its way down. A slot takes 8 bytes on each level (5 by default).
      clock: a function that returns the time in seconds; for tests, or for time of another
          kind. Calls are then made by `turn` only. By default the run's clock is used.

    Raises:
      TypeError, ValueError: if an argument is invalid.
      MemoryError: if there is no memory for the buckets.
    """

    def __init__(
        self,
        tick: float = 0.010,
        slots: int = 1000,
        *,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._manual = clock is not None
        self._driven = False
        self._sleep = trio.CancelScope()  # of the driver

    def __repr__(self) -> str:
        return f"<trio_wknet.TimingWheel with {self._counters()[0]} timers>"

    def turn(self) -> int:
        """Make the calls that are due by the wheel's own clock. Calls that these schedule
        are made in a later turn. Not a checkpoint.

        Returns:
          The number of calls that were made.

        Raises:
          RuntimeError: if the wheel has no clock of its own, or belongs to another thread.
        """
        if not self._manual:
            raise RuntimeError("this timing wheel is turned by its Trio run")
        before = self._counters()[1]
        while not self._run_due():
            pass
        return self._counters()[1] - before

    def statistics(self) -> WheelStatistics:
        """Return a snapshot of the counters. Not a checkpoint.

        Returns:
          A `WheelStatistics`.

        Raises:
          RuntimeError: if the wheel belongs to another thread.
        """
        self._check_thread()
        pending, fired, cancelled, turns, visits = self._counters()
        return WheelStatistics(
            pending=pending, fired=fired, cancelled=cancelled, turns=turns, visits=visits
        )

    # --- the run's side ------------------------------------------------------

    def _attach(self) -> None:
        try:
            clock = trio.lowlevel.current_clock()
        except RuntimeError:
            raise RuntimeError(
                "a timing wheel without a clock of its own can only be used in a Trio run"
            ) from None
        _this_runs_end().wheels.add(self)
        self._start(clock.current_time)

    def _rouse(self, moment: float) -> None:
        if self._driven:
            self._sleep.deadline = moment
        else:
            self._sleep = trio.CancelScope(deadline=moment)
            self._start_driver()

    def _start_driver(self) -> None:
        try:
            trio.lowlevel.spawn_system_task(self._drive, name="trio_wknet timing wheel")
        except RuntimeError:
            raise RuntimeError("this timing wheel belongs to a Trio run that is ending") from None
        self._driven = True

    async def _drive(self) -> None:
        """Cancelled when the run ends."""
        moment: float | None
        try:
            # It first sleeps until the moment that it was started for, even if that timer is
            # cancelled by now. A timer that is set meanwhile only moves the deadline.
            while True:
                with self._sleep:
                    await trio.sleep_forever()
                self._run_due()
                if (moment := self._watch()) is None:
                    return
                self._sleep = trio.CancelScope(deadline=moment)
        finally:
            self._driven = False
            self._unwatch()
