"""One server under one load, once: the unit that all benchmarks are made of."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
from scenarios import Scenario
from worker import Worker

from trio_wknet._demo_result import Round
from trio_wknet._load import run_load
from trio_wknet._load_cpu import CpuMeter


@attrs.frozen
class Settings:
    """How thoroughly to measure."""

    rounds: int
    duration: float
    warmup: float


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
        super().__init__("servers.py", name, *given)

    def __enter__(self) -> Server:
        super().__enter__()
        try:
            self.port: int = self.answer()
        except BaseException as exc:
            self.__exit__(type(exc))
            raise
        return self


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


def measure(scenario: Scenario, name: str, settings: Settings) -> Round:
    """A fresh server, loaded once."""
    core, others = pick_cores(scenario)
    with Server(name, core) as server, running_on(others):
        meter = CpuMeter(server.pid)
        options = scenario.load(server.port, settings.warmup, settings.duration)
        return Round(run_load(options, on_progress=meter.note), meter.per_message)
