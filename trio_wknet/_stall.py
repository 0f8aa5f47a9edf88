"""Telling that Trio's loop does not come round: a task computes, or has called what blocks.

Decision. A thread of Python's own looks, a few times for each `after`, and only where somebody
asked for it; not the reactors. Whoever notices must take the stack of Trio's thread, for which it
needs the GIL, and so a thread that may wait for the GIL, which a reactor's never does. Given that
thread, a reactor could only add a check to each of its turns, and a timer for when it sleeps.

What Trio's side has to say is there anyway: the hook after each of its waits notes the time
(stall.pyx), and the hook before one that it sleeps. Both are written and read under the GIL.

If the loop is stuck in C code that keeps the GIL, nothing of Python's can run, this thread
included. It asks for the GIL, and gets it when that code returns to the interpreter; then it tells
what it finds, which is where that code was called, as a rule; and that it was late itself.
"""

from __future__ import annotations

import inspect
import logging
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Literal

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_wknet._native.trio.core import Core

    OnStall = Callable[["Stall"], object] | Literal["log"]

logger = logging.getLogger("trio_wknet.stall")

LOOKS = 4  # for each `after`, while nothing is wrong
END_LOOKS = 0.05  # seconds between looks, at most, until the end of a stall


@attrs.frozen(kw_only=True)
class Stall:
    """Trio's loop has not come round for too long, because a task, a callback or a finalizer
    did not return: what ``on_stall`` is called with."""

    seconds: float
    """For how long, so far. At its end: within 0.05 seconds."""
    over: bool
    """False when it is noticed; True when it has ended."""
    late: float
    """Seconds by which it was noticed late, because something kept the GIL, or a core, from the
    thread that looks. More than some hundredths mean, as a rule, that C code ran which does not
    let go of the GIL."""
    stack: traceback.StackSummary
    """Where Trio's thread was when the stall was noticed, from the thread's first function on;
    the same at the end. ``"".join(stack.format())`` is its text."""


@attrs.define
class Lookout:
    """Which stalls there are, from what the hooks have noted (seconds, on any one clock)."""

    after: float
    told: float | None = None  # since when the loop runs that was told of

    def look(
        self, since: float | None, now: float
    ) -> tuple[Literal["begun", "over"] | None, float]:
        """What is new, and how long it may take to the next look. `since`: when the loop came
        round, if it has not since; None: it sleeps."""
        if self.told is not None:
            if self.told == since:
                return None, min(self.after / LOOKS, END_LOOKS)
            self.told = None
            return "over", self.after / LOOKS
        if since is None:
            return None, self.after / LOOKS
        left = since + self.after - now
        if left > 0:
            return None, min(left, self.after / LOOKS)
        self.told = since
        return "begun", min(self.after / LOOKS, END_LOOKS)


class StallWatch:
    """The thread that looks, from its construction to `close`. For the thread of the Trio run that
    has opened the engine."""

    def __init__(self, core: Core, on_stall: OnStall, after: float) -> None:
        self._core = core
        self._on_stall = log_stall if on_stall == "log" else on_stall
        self._lookout = Lookout(after)
        self._watched = threading.get_ident()
        self._stop = threading.Event()
        self._last: Stall | None = None
        self._thread = threading.Thread(
            target=self._run, args=(after / LOOKS,), name="wknet-stalls", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop; a stall that goes on is over."""
        self._stop.set()
        self._thread.join()

    def _run(self, pause: float) -> None:
        planned = time.monotonic() + pause
        while not self._stop.wait(pause):
            pause = self._look(time.monotonic() - planned)
            planned = time.monotonic() + pause
        if self._last is not None:
            self._tell(attrs.evolve(self._last, over=True))

    def _look(self, late: float) -> float:
        since, now = self._core.running_since()
        new, pause = self._lookout.look(since, now)
        if new == "begun" and since is not None:
            self._last = Stall(
                seconds=now - since, over=False, late=max(0.0, late), stack=self._stack()
            )
            self._tell(self._last)
        elif new == "over" and self._last is not None:
            last, self._last = self._last, None
            self._tell(attrs.evolve(last, over=True))
        elif self._last is not None and since is not None:
            self._last = attrs.evolve(self._last, seconds=now - since)
        return pause

    def _stack(self) -> traceback.StackSummary:
        frame = sys._current_frames().get(self._watched)
        stack = traceback.StackSummary.extract(traceback.walk_stack(frame))
        stack.reverse()
        return stack

    def _tell(self, stall: Stall) -> None:
        try:
            self._on_stall(stall)
        except Exception:
            logger.exception("on_stall raised")


def log_stall(stall: Stall) -> None:
    """What ``on_stall="log"`` does."""
    if stall.over:
        logger.warning("Trio's loop has come round after %.2f s", stall.seconds)
        return
    logger.warning(
        "Trio's loop has not come round for %.2f s (noticed %.2f s late):\n%s",
        stall.seconds,
        stall.late,
        "".join(stall.stack.format()),
    )


def check_on_stall(on_stall: object) -> None:
    if on_stall is None or on_stall == "log":
        return
    if not callable(on_stall):
        raise TypeError(f"on_stall must be callable, 'log' or None, not {on_stall!r}")
    if inspect.iscoroutinefunction(on_stall):
        raise TypeError(f"on_stall must be a plain function, not {on_stall!r}")
