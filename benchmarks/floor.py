"""What a stream echo on Trio cannot cost less than: ``python benchmarks/floor.py``.

A message takes a task two steps of Trio's scheduler: it is woken out of its receive, and
its send is a schedule point, as Trio's contract has it. *The scheduler alone* is a hundred
tasks that take such steps, each in the way that costs least (woken, with one outcome for
all), and do nothing else: no operation, no handler, no byte. *The system calls alone* are
an echo server in C under the load that all servers get. A library that leaves Trio's
scheduler and its contract as they are pays for the first whatever it does, and for about
the second: how they are batched, and whom they have to wake, changes it by some tenths.
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
from machine import Machine
from measure import Settings
from rich.console import Console
from rich.table import Table
from rounds import able, run_scenario
from scenarios import SCENARIOS
from trio.lowlevel import Abort, cancel_shielded_checkpoint, reschedule, wait_task_rescheduled

TASKS = 100
TURNS = 2000
SCENARIO = next(scenario for scenario in SCENARIOS if scenario.name == "echo-100")
STEPS = 2
"""That a message takes."""
WOKEN = outcome.Value(None)
SYSTEM_CALLS = "c-epoll"
SERVERS = ("wknet-inloop", "wknet-threaded", "uvloop-streams", "trio")


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


async def scheduler_alone(turns: int = TURNS) -> float:
    """CPU in seconds of the two steps that a message takes."""

    async def task() -> None:
        await steps()

    async with trio.open_nursery() as nursery:
        for _ in range(TASKS):
            nursery.start_soon(task)
        await trio.testing.wait_all_tasks_blocked()
        tasks = list(nursery.child_tasks)
        began = time.thread_time()
        for _ in range(STEPS * turns):
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


def measure(settings: Settings, report: Callable[[str], object]) -> Costs:
    """All of them in turn, round by round."""
    names = able(SCENARIO, (SYSTEM_CALLS, *SERVERS))
    scheduler: list[float] = []
    servers: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(settings.rounds):
        scheduler.append(trio.run(scheduler_alone))
        result = run_scenario(SCENARIO, names, attrs.evolve(settings, rounds=1), report)
        for name, rounds in result.rounds.items():
            servers[name] += [one.cpu for one in rounds if one.cpu is not None]
    return Costs(median(scheduler), {name: median(costs) for name, costs in servers.items()})


def table(costs: Costs) -> Table:
    result = Table(title=SCENARIO.title)
    result.add_column("")
    result.add_column("CPU for a message", justify="right")
    result.add_column("to the floor", justify="right")
    lines = [
        ("Trio's scheduler alone", costs.scheduler),
        ("the system calls alone", costs.servers[SYSTEM_CALLS]),
        ("the floor: both", costs.floor),
        *((name, costs.servers[name]) for name in SERVERS if name in costs.servers),
    ]
    for what, cost in lines:
        result.add_row(what, f"{cost * 1e6:.2f} µs", f"{cost / costs.floor:.2f}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare servers with what must be paid.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--duration", type=float, default=2.0, help="seconds of a load")
    arguments = parser.parse_args()
    console = Console()
    console.print(str(Machine.here()), highlight=False)
    settings = Settings(rounds=arguments.rounds, duration=arguments.duration, warmup=0.5)
    with console.status("") as status:
        costs = measure(settings, status.update)
    console.print(table(costs))


if __name__ == "__main__":
    main()
