"""What an echo on Trio cannot cost less than: ``python benchmarks/experiment.py floor``.

A message takes a task two steps of Trio's scheduler: it is woken out of its receive, and
its send is a schedule point, as Trio's contract has it; with ``send_nowait`` one. *The
scheduler alone* is a hundred tasks that take such steps, each in the way that costs least
(woken, with one outcome for all), and do nothing else: no operation, no handler, no
byte. *The system calls alone* are an echo server in C under the load that all servers
get. A library that leaves Trio's scheduler and its contract as they are pays for the first
whatever it does, and for about the second: how they are batched, and whom they have to
wake, changes it by some tenths. Where messages are sent without waiting for answers, all
those under way may come together, and share their steps and calls.
"""

from __future__ import annotations

import argparse
import time
import types
from collections.abc import Callable, Generator
from statistics import median
from typing import Any

import attrs
import outcome
import trio
import trio.testing
from rich.console import Console
from rich.table import Table
from trio.lowlevel import Abort, cancel_shielded_checkpoint, reschedule, wait_task_rescheduled

from harness.machine import Machine
from harness.measure import Settings
from harness.rounds import able, run_scenario
from harness.scenarios import SCENARIOS, Scenario

TASKS = 100
TURNS = 4000
WOKEN = outcome.Value(None)
SYSTEM_CALLS = "c-epoll"
STEPS = {"echo-100": 2, "echo-nowait": 1, "depth-16": 2}
"""Of the scheduler, for all messages of a connection that come together."""


def caught(trap: Callable[..., Any], *arguments: object) -> Any:
    """What one of Trio's traps yields to its scheduler."""
    coroutine = trap(*arguments)
    message = coroutine.send(None)
    coroutine.close()
    return message


@types.coroutine
def steps() -> Generator[Any, Any, None]:
    """Be woken, again and again."""
    sleep = caught(wait_task_rescheduled, lambda _: Abort.SUCCEEDED)
    while (yield sleep) is WOKEN:
        pass


async def one_step(turns: int = TURNS) -> float:
    """CPU in seconds of a step of the scheduler."""

    async def task() -> None:
        await steps()

    async with trio.open_nursery() as nursery:
        for _ in range(TASKS):
            nursery.start_soon(task)
        await trio.testing.wait_all_tasks_blocked()
        tasks = list(nursery.child_tasks)
        began = time.thread_time()
        for _ in range(turns):
            for sleeper in tasks:
                reschedule(sleeper, WOKEN)
            for _ in range(2):  # so that all of them sleep again, in whatever order they run
                await cancel_shielded_checkpoint()
        took = time.thread_time() - began
        nursery.cancel_scope.cancel()
    return took / (turns * TASKS)


@attrs.frozen
class Costs:
    """CPU in seconds for a message, medians."""

    scheduler: float
    servers: dict[str, float]

    @property
    def floor(self) -> float:
        return self.scheduler + self.servers[SYSTEM_CALLS]


def with_system_calls(scenario: Scenario) -> Scenario:
    return attrs.evolve(scenario, others=(*scenario.others, SYSTEM_CALLS))


def measure(scenario: Scenario, settings: Settings, report: Callable[[str], object]) -> Costs:
    """The scheduler and all servers in turn, round by round."""
    names = able(scenario)
    share = STEPS[scenario.name] / scenario.depth
    scheduler: list[float] = []
    servers: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(settings.rounds):
        scheduler.append(share * trio.run(one_step))
        result = run_scenario(scenario, names, attrs.evolve(settings, rounds=1), report)
        for name, rounds in result.rounds.items():
            servers[name] += [one.cpu for one in rounds if one.cpu is not None]
    return Costs(median(scheduler), {name: median(costs) for name, costs in servers.items()})


def table(title: str, costs: Costs) -> Table:
    result = Table(title=title)
    result.add_column("")
    result.add_column("CPU for a message", justify="right")
    result.add_column("to the floor", justify="right")
    lines = [
        ("Trio's scheduler alone", costs.scheduler),
        ("the system calls alone", costs.servers[SYSTEM_CALLS]),
        ("the floor: both", costs.floor),
        *((name, cost) for name, cost in costs.servers.items() if name != SYSTEM_CALLS),
    ]
    for what, cost in lines:
        result.add_row(what, f"{cost * 1e6:.2f} µs", f"{cost / costs.floor:.2f}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare servers with what must be paid.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--duration", type=float, default=1.0, help="seconds of a load")
    parser.add_argument("--only", choices=list(STEPS), action="append", help="may be repeated")
    arguments = parser.parse_args()
    console = Console()
    console.print(str(Machine.here()), highlight=False)
    settings = Settings(rounds=arguments.rounds, duration=arguments.duration, warmup=0.3)
    for scenario in SCENARIOS:
        if scenario.name in (arguments.only or STEPS):
            with console.status("") as status:
                costs = measure(with_system_calls(scenario), settings, status.update)
            console.print(table(scenario.title, costs))


if __name__ == "__main__":
    main()
