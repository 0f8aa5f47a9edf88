"""One server under one load, once: the unit that all benchmarks are made of."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property

import attrs

from harness.scenarios import Quantity, Scenario
from harness.slow_consumer import slow_consumer
from harness.worker import Worker
from trio_wknet._load.cpu import CpuMeter
from trio_wknet._load.run import LoadProgress, LoadResult, prepare, run_prepared
from trio_wknet._native.load.histogram import Histogram


@attrs.frozen
class Settings:
    """How thoroughly to measure."""

    rounds: int
    duration: float
    warmup: float
    most_connections: int | None = None


class Server(Worker):
    """A server in a process of its own; `servers.py` says which there are."""

    def __init__(
        self,
        name: str,
        core: int | None = None,
        port: int | None = None,
        idle_timeout: float | None = None,
    ) -> None:
        options = {"--core": core, "--port": port, "--idle-timeout": idle_timeout}
        given = [f"{name}={value}" for name, value in options.items() if value is not None]
        super().__init__("harness/servers.py", name, *given)

    @cached_property
    def port(self) -> int:
        """Where it listens; waits until it does."""
        return int(self.answer())


@attrs.frozen
class Measured:
    """What one load on one server came to."""

    result: LoadResult
    cpu: float | None
    """Seconds of the server's CPU for a message, all its threads; None: too short to tell."""
    load_cpu: float | None
    """The same of the load generator's process."""
    latency: Histogram

    @property
    def busy(self) -> float | None:
        """How many cores the server kept busy."""
        return self._cores(self.cpu)

    @property
    def load_busy(self) -> float | None:
        """How many cores the load kept busy: near 1, it was what held things up."""
        return self._cores(self.load_cpu)

    def _cores(self, cpu: float | None) -> float | None:
        return None if cpu is None else cpu * self.result.messages_per_second

    def value(self, of: Quantity, bulk: bool = False) -> float | None:
        if of == "cpu":
            return self.cpu
        if of == "p99":
            return self.result.latency.p99
        return self.result.megabytes_per_second if bulk else self.result.messages_per_second


@contextmanager
def running_on(cores: set[int]) -> Iterator[None]:
    """This thread, and those it starts, on some cores only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def pick_cores(scenario: Scenario) -> tuple[int | None, set[int]]:
    """The server's core, or None for any, and those of the load."""
    cores = sorted(os.sched_getaffinity(0))
    if not scenario.pinned:
        return None, set(cores)
    # With only one core they share it; the result's machine says so.
    return cores[0], {cores[-1]}


@contextmanager
def started(scenario: Scenario, names: tuple[str, ...]) -> Iterator[dict[str, Server]]:
    """Fresh servers, all of which listen. They start side by side, and end so: it takes
    less time, and one without load costs the others nothing."""
    core, _ = pick_cores(scenario)
    with ExitStack() as stack:
        servers = {name: stack.enter_context(Server(name, core)) for name in names}
        for server in servers.values():
            _ = server.port
        yield servers
        for server in servers.values():
            server.end()


def measure(scenario: Scenario, server: Server, settings: Settings) -> Measured:
    """Put the load on a server, once."""
    options = scenario.load(server.port, settings.warmup, settings.duration)
    meter, own = CpuMeter(server.pid), CpuMeter(os.getpid())

    def note(now: LoadProgress) -> None:
        meter.note(now)
        own.note(now)

    with ExitStack() as stack:
        stack.enter_context(running_on(pick_cores(scenario)[1]))
        if scenario.slow:
            stack.enter_context(slow_consumer(server.port))
        generator = prepare(options)
        result = run_prepared(options, generator, note)
    return Measured(result, meter.per_message, own.per_message, generator.latency)
