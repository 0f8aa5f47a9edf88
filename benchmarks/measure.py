"""One server under one load, once: the unit that all benchmarks are made of."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
from scenarios import Scenario

from trio_wknet._demo_result import Round
from trio_wknet._load import run_load
from trio_wknet._load_cpu import CpuMeter

SERVERS = Path(__file__).with_name("servers.py")


@attrs.frozen
class Settings:
    """How thoroughly to measure."""

    rounds: int
    duration: float
    warmup: float


@attrs.frozen
class Server:
    pid: int
    port: int


@contextmanager
def serving(name: str, core: int | None) -> Iterator[Server]:
    """A server in a process of its own, on one core if that is given."""
    command = [sys.executable, str(SERVERS), name, "" if core is None else str(core)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            port = process.stdout.readline()
            if not port:
                raise RuntimeError(f"the server {name} did not start")
            yield Server(process.pid, int(port))
            process.stdin.close()
            process.wait(10)
        finally:
            process.kill()  # nothing, if it has ended


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
    with serving(name, core) as server, running_on(others):
        meter = CpuMeter(server.pid)
        options = scenario.load(server.port, settings.warmup, settings.duration)
        return Round(run_load(options, on_progress=meter.note), meter.per_message)
