"""What the log says about shortages: of descriptors, of memory, of epoll watches.

Nothing fails then. A listener stops accepting until there are some again, and clients
wait in the kernel's queue, which only the clients would notice. So one line says when
that begins, and another when it is over. At the limit it may begin and end many times
per second: a stop that begins within QUIET seconds of the last line gets none, and the next
line says how many these were.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("trio_wknet.shortage")

QUIET = 10.0  # seconds


class ShortageLog:
    """The lines about one thing that can run short.

    Args:
      stops, goes_on: how it says that it has stopped, and that it goes on.
      clock: tells the time in seconds.
    """

    def __init__(
        self, stops: str, goes_on: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stops = stops
        self._goes_on = goes_on
        self._clock = clock
        self._times = 0
        self._began: float | None = None  # of the stop that was logged
        self._last_line: float | None = None
        self._unsaid = 0

    def update(self, what: object, lacking: bool, times: int, error: int) -> None:
        """Something may have changed for `what`: whether it is short now, how often it
        has been so far, and the errno of the last time."""
        begun, self._times = times - self._times, times
        if begun and self._began is None:
            self._begin(what, begun, error)
        elif begun:
            self._unsaid += begun
        if not lacking and self._began is not None:
            self._end(what)

    def close(self, what: object) -> None:
        """`what` is closed: a line ends the shortage that it was in, if a line began it."""
        if self._began is None:
            return
        seconds, self._began = self._clock() - self._began, None
        logger.warning("%r was closed, %.1f s into the shortage", what, seconds)

    def _begin(self, what: object, begun: int, error: int) -> None:
        now = self._clock()
        if self._last_line is not None and now - self._last_line < QUIET:
            self._unsaid += begun
            return
        self._began = self._last_line = now
        before = f" (and {self._unsaid} times before, unlogged)" if self._unsaid else ""
        self._unsaid = begun - 1
        reason = f"[{errno.errorcode.get(error, error)}] {os.strerror(error)}"
        logger.warning("%r %s: %s%s", what, self._stops, reason, before)

    def _end(self, what: object) -> None:
        assert self._began is not None
        now = self._clock()
        seconds, self._began, self._last_line = now - self._began, None, now
        logger.warning(
            "%r %s after %.1f s; it has stopped %d times so far",
            what,
            self._goes_on,
            seconds,
            self._times,
        )
