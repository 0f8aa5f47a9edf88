"""What a message costs the server, in CPU time, seen from outside of it."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trio_wknet._load.run import LoadProgress


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used, in all its threads; `OSError` if it is gone.

    The clock is that of clock_getcpuclockid(3), whose number Linux derives from the
    process's. It is as precise as the scheduler's own accounting; /proc/<pid>/stat
    counts in hundredths of a second, which is too coarse for a short run.
    """
    return time.clock_gettime(~pid << 3 | 2)


class CpuMeter:
    """CPU time of a server for each message of the measured window.

    Pass `note` to `run_load` as `on_progress`. Both the time and the messages are counted
    between the first and the last call inside the window, so connecting,
    warming up and the end are not included.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._looks: list[tuple[float, int]] = []

    def note(self, now: LoadProgress) -> None:
        """Look at the clock, if the run is in its measured window."""
        if now.phase != "measure":
            return
        with suppress(OSError):  # if it is gone, the load's result will say so
            self._looks[1:] = [(cpu_seconds(self._pid), now.messages)]

    @property
    def per_message(self) -> float | None:
        """Seconds; None when the window was too short to look twice."""
        if len(self._looks) < 2 or self._looks[0][1] == self._looks[1][1]:
            return None
        (began, before), (ended, after) = self._looks
        return (ended - began) / (after - before)
