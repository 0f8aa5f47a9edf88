"""Many connections: ``python benchmarks/scale.py``, some twenty minutes.

Measures what an idle connection costs in memory, what many of them do to throughput,
latency and garbage collection, what a message to all of a group takes, and the whole course of
crowds of up to 100 000. What was wanted and is missed is said loudly, and is not an error.

``--json SCALE.json`` is what `scale_page.py` makes the figures of docs/scale.md from.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import attrs
import trio
from rich.console import Console
from rich.table import Table

from experiments import micro
from experiments.crowd import Course, Plan, idle_timeout_for, run_crowd
from experiments.scale_rows import ROWS, NotAnswered, Report, Row, Size
from harness.machine import Machine
from harness.measure import Settings
from harness.worker import WorkerFailed
from scale_page import row_cells

FULL = Size(
    settings=Settings(rounds=5, duration=2.0, warmup=0.5),
    memory=10_000,
    collected=15_000,
    idle=15_000,
    rate=10_000.0,
    members=(1, 1000, 5000, 10_000),
    repeats=3,
)
QUICK = Size(
    settings=Settings(rounds=1, duration=0.3, warmup=0.1),
    memory=100,
    collected=100,
    idle=100,
    rate=1000.0,
    members=(20,),
    repeats=1,
)
CORE = ("look up", "take and give")
"""What of `micro.py` belongs here, by how its name begins."""
UVLOOP = {"memory", "echo", "timers"}
"""What has uvloop as a peer."""


def plans(quick: bool) -> list[Plan]:
    """The crowds."""
    wanted = [
        ("wknet-inloop-events-idle", 19_000, 1),
        ("wknet-inloop-idle", 19_000, 1),
        ("wknet-inloop-events-idle", 100_000, 6),
    ]
    if quick:
        wanted = [("wknet-inloop-events-idle", 100, 1), ("wknet-threaded-events-idle", 100, 2)]
    return [
        Plan(
            server=server,
            connections=connections,
            servers=servers,
            quiet=0.2 if quick else 10.0,
            idle_timeout=4.0 if quick else idle_timeout_for(connections),
        )
        for server, connections, servers in wanted
    ]


@attrs.define
class Found:
    """Everything that was measured."""

    machine: Machine
    size: Size
    rows: list[Row]
    crowds: list[Course]
    core: list[micro.Found]
    timers: list[tuple[str, str, float]]
    """Work, by whom, and nanoseconds."""
    million: dict[str, float]
    """What a wheel does for a number of connections: fields of `timers.Idle`."""

    def to_json(self) -> dict[str, Any]:
        return {
            "machine": attrs.asdict(self.machine),
            "size": attrs.asdict(self.size),
            "rows": [row.to_json() for row in self.rows],
            "crowds": [crowd.to_json() for crowd in self.crowds],
            "core": [attrs.asdict(one) for one in self.core],
            "timers": self.timers,
            "million": self.million,
        }


def measure_all(found: Found, only: list[str], quick: bool, report: Report) -> None:
    """Measure what was asked for, and keep each figure as soon as it is there."""
    for name, rows in ROWS.items():
        if name in only:
            found.rows += rows(found.size, report)
    if "core" in only:
        report("the core's parts")
        cases = [case for case in micro.CASES if case.work.startswith(CORE)]
        found.core += micro.measure(found.size.settings.rounds, cases)[1]
    if "timers" in only:
        report("timers")
        measure_timers(found, quick)
    if "crowds" in only:
        for plan in plans(quick):
            title = f"{plan.connections:,} connections, {plan.server}: "
            found.crowds.append(run_crowd(plan, lambda what, title=title: report(title + what)))


def measure_timers(found: Found, quick: bool) -> None:
    import timers  # needs uvloop, which not everybody has

    costs = trio.run(timers.time_all, found.size.settings.rounds)
    found.timers = [(case.work, case.by, ns) for case, ns in costs]
    found.million = attrs.asdict(timers.idle(1_000 if quick else 1_000_000))


def table(rows: list[Row]) -> Table:
    """Every figure, and whether it is what was wanted."""
    result = Table(title="Medians; ratios of medians", title_justify="left", show_lines=True)
    result.add_column("what")
    for head in ("ours", "others", "figure", "wanted", ""):
        result.add_column(head, justify="right")
    for row in rows:
        met = {None: "", True: "[green]met[/]", False: "[bold white on red] MISSED [/]"}[row.met]
        result.add_row(row.what, *row_cells(row.to_json(), "\n"), met)
    return result


def show(found: Found, console: Console) -> None:
    if found.rows:
        console.print(table(found.rows))
    for course in found.crowds:
        console.print(course.table())
    missed = [row.name for row in found.rows if row.met is False]
    if missed:
        console.print(f"[bold red]MISSED: {', '.join(missed)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what many connections cost.")
    names = [*ROWS, "core", "timers", "crowds"]
    parser.add_argument("--only", action="append", choices=names, help="may be repeated")
    parser.add_argument("--quick", action="store_true", help="few connections: does it work?")
    parser.add_argument("--rounds", type=int, help=f"default {FULL.settings.rounds}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE")
    arguments = parser.parse_args()
    arguments.only = arguments.only or names
    return arguments


def main() -> None:
    arguments = parse()
    size = QUICK if arguments.quick else FULL
    if arguments.rounds:
        settings = attrs.evolve(size.settings, rounds=arguments.rounds)
        size = attrs.evolve(size, settings=settings)
    if UVLOOP & {*arguments.only} and importlib.util.find_spec("uvloop") is None:
        sys.exit("scale.py: uvloop is needed as a peer: pip install 'trio-wknet[bench]'")
    console = Console()
    found = Found(Machine.here(), size, [], [], [], [], {})
    console.print(str(found.machine), highlight=False)
    try:
        with console.status("") as status:
            measure_all(found, arguments.only, arguments.quick, status.update)
    except (ValueError, OSError, WorkerFailed, NotAnswered) as exc:
        sys.exit(f"scale.py: {exc}")
    except KeyboardInterrupt:
        sys.exit("scale.py: interrupted")
    finally:
        show(found, console)
        if arguments.json:
            arguments.json.write_text(json.dumps(found.to_json(), indent=1) + "\n")


if __name__ == "__main__":
    main()
