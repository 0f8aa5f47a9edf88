"""The timing wheel beside what else sets timers: ``python benchmarks/experiment.py timers``.

What a timer costs from Python, set and dropped before it is due (as most are):
`TimingWheel`, Trio's deadlines, asyncio and uvloop, in turn in one process, medians of
rounds. What memory it takes. And what a million idle connections cost a reactor: the
native wheel with a timeout of five minutes for each, while bytes arrive. There the
activity and the clock are simulated, and only the wheel's own work is timed. All times
are CPU time, which others on the machine disturb less.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import attrs
import trio
import uvloop
from rich.console import Console
from rich.table import Table

from harness.machine import Machine
from trio_wknet import TimingWheel
from trio_wknet._native.testing import NodeWheel

ROUNDS = 9
BATCH = 1000
SECONDS = 0.05  # of one case in one round
S = 10**9
TICK_NS = 10**7


def nothing() -> None: ...


@attrs.frozen
class Case:
    """One way to do one kind of work."""

    work: str
    by: str
    do: Callable[[], object]
    between: Callable[[], object] = nothing
    """Run between batches, not timed: asyncio throws cancelled timers away later."""

    def batch(self) -> float:
        """Nanoseconds of one, the mean of a batch."""
        do, start = self.do, time.thread_time_ns()
        for _ in range(BATCH):
            do()
        spent = time.thread_time_ns() - start
        self.between()
        return spent / BATCH

    def round(self) -> float:
        end, times = time.perf_counter() + SECONDS, []
        while time.perf_counter() < end:
            times.append(self.batch())
        return median(times)


def _turn(loop: asyncio.AbstractEventLoop) -> Callable[[], object]:
    async def pass_by() -> None:
        await asyncio.sleep(0)

    return lambda: loop.run_until_complete(pass_by())


def loop_case(name: str, loop: asyncio.AbstractEventLoop) -> Case:
    return Case("set and cancel", name, lambda: loop.call_later(10, nothing).cancel(), _turn(loop))


def cases(loops: dict[str, asyncio.AbstractEventLoop]) -> list[Case]:
    wheel = TimingWheel()
    timer = wheel.call_later(10, nothing)
    scope = trio.CancelScope(deadline=trio.current_time() + 10)
    scope.__enter__()

    def scope_of_trio() -> None:
        with trio.move_on_after(10):  # noqa: ASYNC100
            pass

    def scope_of_the_wheel() -> None:
        with wheel.move_on_after(10):
            pass

    def move_deadline() -> None:
        scope.deadline = trio.current_time() + 10

    return [
        Case("set and cancel", "TimingWheel", lambda: wheel.call_later(10, nothing).cancel()),
        *(loop_case(name, loop) for name, loop in loops.items()),
        Case("enter and leave a scope", "TimingWheel.move_on_after", scope_of_the_wheel),
        Case("enter and leave a scope", "trio.move_on_after", scope_of_trio),
        Case("move to a later time", "Timer.reset", timer.reset),
        Case("move to a later time", "trio scope.deadline", move_deadline),
    ]


async def time_all(rounds: int) -> list[tuple[Case, float]]:
    loops = {"asyncio": asyncio.new_event_loop(), "uvloop": uvloop.new_event_loop()}
    todo = cases(loops)
    times: list[list[float]] = [[] for _ in todo]
    for _ in range(rounds):
        for case, found in zip(todo, times, strict=True):
            found.append(case.round())
            await trio.lowlevel.checkpoint()
    for loop in loops.values():
        loop.close()
    return [(case, median(found)) for case, found in zip(todo, times, strict=True)]


# --- memory -----------------------------------------------------------------------------


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def memory(number: int) -> list[tuple[str, float]]:
    """Bytes of one timer. All are kept to the end: memory given back would be used again."""
    loop = asyncio.new_event_loop()
    dropping, keeping = (TimingWheel(clock=time.perf_counter) for _ in range(2))

    def drop() -> None:
        dropping.call_later(300, nothing)

    kept: list[list[Any]] = []
    rows = []
    for name, make in [
        ("TimingWheel, Timer dropped", drop),
        ("TimingWheel, Timer kept", lambda: keeping.call_later(300, nothing)),
        ("asyncio", lambda: loop.call_later(300, nothing)),
    ]:
        kept.append([None] * number)
        before = resident()
        for index in range(number):
            kept[-1][index] = make()
        rows.append((name, (resident() - before) / number))
    loop.close()
    return rows


# --- idle connections -------------------------------------------------------------------


@attrs.frozen
class Idle:
    """What a wheel did for a number of connections."""

    connections: int
    seconds: int
    bytes_each: float
    """With the 8 bytes in which a node keeps its time here; a connection has that."""
    cpu_percent: float
    visits: float
    """Of a connection, in the length of its timeout."""
    ns_a_visit: float
    worst_turn_ms: float


def idle(connections: int, *, timeout: int = 300, seconds: int = 600, every: int = 30) -> Idle:
    """Connections that were all accepted within ten seconds, and have a byte every so
    many seconds on average, at random."""
    rng, before = random.Random(1), resident()
    wheel = NodeWheel(TICK_NS, 1000, 0, connections)
    now = 10 * S
    for index in range(connections):
        wheel.add(index, now * index // connections + timeout * S)
    grown = resident() - before
    spent, worst = 0, 0
    active_a_tick = connections * TICK_NS // (every * S)
    for _ in range(seconds * S // TICK_NS):
        now += TICK_NS
        for _ in range(active_a_tick):
            wheel.postpone(rng.randrange(connections), now + timeout * S)
        if wheel.next() > now:
            continue
        start = time.thread_time_ns()
        wheel.turn(now)
        while wheel.take() is not None:
            pass
        took = time.thread_time_ns() - start
        spent, worst = spent + took, max(worst, took)
    return Idle(
        connections=connections,
        seconds=seconds,
        bytes_each=grown / connections,
        cpu_percent=spent / (seconds * S) * 100,
        visits=wheel.visits / connections / (seconds / timeout),
        ns_a_visit=spent / max(1, wheel.visits),
        worst_turn_ms=worst / 1e6,
    )


# --- showing ----------------------------------------------------------------------------


def costs_table(costs: list[tuple[Case, float]]) -> Table:
    table = Table(title="From Python", title_justify="left")
    for column in ("work", "by", "ns", "times ours"):
        table.add_column(column, justify="right" if column[0] in "nt" else "left")
    ours: dict[str, float] = {}
    for case, ns in costs:
        if case.work not in ours:
            table.add_section()
        first = ours.setdefault(case.work, ns)
        table.add_row(case.work, case.by, f"{ns:,.0f}", f"{ns / first:.1f}")
    return table


def memory_table(rows: list[tuple[str, float]], number: int) -> Table:
    table = Table(title=f"Bytes of one of {number:,} timers", title_justify="left")
    table.add_column("timer")
    table.add_column("bytes", justify="right")
    for name, size in rows:
        table.add_row(name, f"{size:.0f}")
    return table


def idle_table(found: Idle) -> Table:
    table = Table(title=f"{found.connections:,} idle connections", title_justify="left")
    table.add_column("what")
    table.add_column("", justify="right")
    table.add_row("bytes of one", f"{found.bytes_each:.1f}")
    table.add_row("% of a core", f"{found.cpu_percent:.4f}")
    table.add_row("visits of one in a timeout", f"{found.visits:.2f}")
    table.add_row("ns of a visit", f"{found.ns_a_visit:.0f}")
    table.add_row("ms of the longest turn", f"{found.worst_turn_ms:.2f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the timing wheel beside its peers.")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--timers", type=int, default=1_000_000, help="for memory")
    parser.add_argument("--idle", type=int, default=1_000_000, help="connections; 0: leave out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE")
    arguments = parser.parse_args()
    console, machine = Console(), Machine.here()
    console.print(str(machine), highlight=False)
    costs = trio.run(time_all, arguments.rounds)
    console.print(costs_table(costs))
    sizes = memory(arguments.timers)
    console.print(memory_table(sizes, arguments.timers))
    found = idle(arguments.idle) if arguments.idle else None
    if found is not None:
        console.print(idle_table(found))
    if arguments.json:
        report = {
            "machine": attrs.asdict(machine),
            "costs": [{"work": case.work, "by": case.by, "ns": ns} for case, ns in costs],
            "bytes": dict(sizes),
            "idle": None if found is None else attrs.asdict(found),
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
