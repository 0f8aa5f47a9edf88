"""Load in Python, for what the native generator does not speak: TLS, compressed messages. It
hides some of what servers differ in, so look at their CPU for a message."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from contextlib import ExitStack

import attrs

from harness.measure import running_on
from harness.worker import Worker
from trio_wknet._load.cpu import cpu_seconds


class PythonLoad:
    """Connections, each with a message in flight. Subclasses open them, and receive."""

    def __init__(self, stack: ExitStack) -> None:
        self._poll = stack.enter_context(select.epoll())
        self._answered = 0

    def _receive(self, fd: int) -> None:
        """Receive on a connection. Count a message that is whole, and send the next."""
        raise NotImplementedError

    def run(self, duration: float) -> int:
        """Messages that were answered within a number of seconds."""
        before, end = self._answered, time.perf_counter() + duration
        while time.perf_counter() < end:
            for fd, _ in self._poll.poll(1.0):
                self._receive(fd)
        return self._answered - before


@attrs.frozen
class Round:
    """What one server did, once."""

    per_second: float
    cpu: float
    """Seconds of the server's CPU for a message."""
    load_busy: float
    """How many cores the load kept busy: near 1, it was what held things up."""


def measure(
    script: str,
    name: str,
    warmup: float,
    duration: float,
    connect: Callable[[int, ExitStack], PythonLoad],
) -> Round:
    """A fresh server, which the script starts by its name, warmed up and loaded once."""
    cores = sorted(os.sched_getaffinity(0))
    with (
        Worker(script, "--serve", name, f"--core={cores[0]}") as server,
        ExitStack() as stack,
    ):
        port = server.answer()
        stack.enter_context(running_on({cores[-1]}))
        load = connect(port, stack)
        load.run(warmup)
        before, own, began = cpu_seconds(server.pid), time.process_time(), time.perf_counter()
        answered = load.run(duration)
        took = time.perf_counter() - began
        spent, own = cpu_seconds(server.pid) - before, time.process_time() - own
    if not answered:
        raise RuntimeError(f"{name} answered nothing")
    return Round(answered / took, spent / answered, own / took)
