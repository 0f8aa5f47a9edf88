"""The benchmark: ``python benchmarks/run.py``, some forty minutes; see ``--help``.

Servers are measured in turn, round by round, each time in a fresh process, so that
what else happens on the machine hits all of them alike. Ratios are of medians. Missing
one is said loudly, but only a load that was not answered properly is exit code 1.

``--json BENCHMARKS.json`` is what `plot.py` and `bench_page.py` make the pictures and the
figures of docs/benchmarks.md from.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import trio
from rich.console import Console

from experiments.idle_memory import Growth, growth_of_all, growth_table
from harness.machine import Machine
from harness.measure import Settings
from harness.result import Beside, Result, verdict_table
from harness.rounds import able, run_scenario
from harness.scenarios import SCENARIOS
from harness.servers import SERVERS, missing
from harness.worker import WorkerFailed

THOROUGH = Settings(rounds=7, duration=1.0, warmup=0.3)
QUICK = Settings(rounds=1, duration=0.25, warmup=0.05, most_connections=200)
MEMORY_COUNTS = (0, 1000, 5000, 15_000)
MEMORY_ROUNDS = 3
"""Memory hardly differs from one round to the next."""
FILE_WIDTH = 160
"""Characters of a line, where there is no terminal."""
BESIDE = ("memory", "timers")
"""What is no scenario: its names in ``--only``."""


@attrs.define
class Found:
    """Everything that was measured."""

    machine: Machine
    settings: Settings
    seconds: float = 0.0
    results: list[Result] = attrs.Factory(list)
    memory: Growth | None = None
    timers: list[tuple[str, str, float]] = attrs.Factory(list)
    """Work, by whom, and nanoseconds."""

    def to_json(self) -> dict[str, Any]:
        return {
            "machine": attrs.asdict(self.machine),
            "settings": attrs.asdict(self.settings),
            "seconds": self.seconds,
            "results": [result.to_json() for result in self.results],
            "beside_own": Beside.of(self.results).to_json(),
            "memory": None if self.memory is None else self.memory.to_json(),
            "timers": self.timers,
        }


def measure_all(found: Found, arguments: argparse.Namespace, console: Console) -> None:
    """Measure what was asked for, and keep each figure as soon as it is there."""
    only, settings = arguments.only, found.settings
    with console.status("") as status:
        for scenario in SCENARIOS:
            names = able(scenario, arguments.server)
            if scenario.name not in only or not names:
                continue
            result = run_scenario(scenario, names, settings, status.update)
            found.results.append(result)
            console.print(result.table())
        if "memory" in only:
            found.memory = measure_memory(settings, arguments.server, status.update)
            console.print(growth_table(found.memory))
        if "timers" in only and importlib.util.find_spec("uvloop"):
            status.update("timers")
            found.timers = measure_timers(settings)


def measure_memory(
    settings: Settings, only: list[str] | None, report: Callable[[str], object]
) -> Growth:
    most = settings.most_connections or MEMORY_COUNTS[-1]
    counts = tuple(dict.fromkeys(min(count, most) for count in MEMORY_COUNTS))
    return growth_of_all(counts, min(MEMORY_ROUNDS, settings.rounds), report, only)


def measure_timers(settings: Settings) -> list[tuple[str, str, float]]:
    import timers  # needs uvloop, which not everybody has

    costs = trio.run(timers.time_all, settings.rounds)
    return [(case.work, case.by, ns) for case, ns in costs]


def show(found: Found, console: Console) -> None:
    """The ratios that were wanted, and what went wrong."""
    verdicts = [verdict for result in found.results for verdict in result.verdicts()]
    if verdicts:
        console.print(verdict_table(verdicts))
    missed = [verdict for verdict in verdicts if not verdict.met]
    if missed:
        console.print(f"[bold red]{len(missed)} of {len(verdicts)} wanted ratios were MISSED.")
    show_beside(Beside.of(found.results), console)
    for result in found.results:
        for wanted in result.unmeasured():
            what = f"{wanted.of} of {result.scenario.name} against {wanted.peer}"
            console.print(f"[bold red]Not measured: {what}")
        for failure in result.failures():
            console.print(f"[bold red]NOT ANSWERED PROPERLY: {failure}")


def show_beside(beside: Beside, console: Console) -> None:
    """Where ours is slower than Trio's own transport."""
    for verdict in beside.slower():
        console.print(
            f"[bold red]SLOWER THAN TRIO'S OWN: {verdict.title}: {verdict.ours} {verdict.ratio:.2f}"
        )
    if beside.verdicts and not beside.slower():
        console.print(f"In none of {len(beside.verdicts)} cells slower than Trio's own transport.")


def text_of(found: dict[str, Any]) -> str:
    """JSON in which a list of figures is one line."""
    text = json.dumps(found, indent=1)
    return re.sub(r"\[\s([^][{}]*)\]", lambda m: f"[{' '.join(m[1].split())}]", text) + "\n"


def parse() -> argparse.Namespace:
    names = [*(scenario.name for scenario in SCENARIOS), *BESIDE]
    parser = argparse.ArgumentParser(
        description="Measure this library against its peers.",
        epilog="NAME is one of: " + ", ".join(names),
    )
    what: dict[str, Any] = {"action": "append", "metavar": "NAME", "help": "may be repeated"}
    parser.add_argument("--only", choices=names, **what)
    parser.add_argument("--server", choices=list(SERVERS), **what)
    parser.add_argument("--quick", action="store_true", help="does it work? Under two minutes")
    parser.add_argument("--rounds", type=int, help=f"default {THOROUGH.rounds}")
    parser.add_argument("--duration", type=float, help=f"seconds, default {THOROUGH.duration}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE")
    arguments = parser.parse_args()
    arguments.only = arguments.only or names
    return arguments


def chosen_settings(arguments: argparse.Namespace) -> Settings:
    given = {"rounds": arguments.rounds, "duration": arguments.duration}
    changes = {name: value for name, value in given.items() if value is not None}
    return attrs.evolve(QUICK if arguments.quick else THOROUGH, **changes)


def main() -> None:
    arguments = parse()
    began = time.monotonic()
    console = Console(width=None if sys.stdout.isatty() else FILE_WIDTH)
    found = Found(Machine.here(), chosen_settings(arguments))
    console.print(str(found.machine), highlight=False)
    for lack in sorted({lack for lack in map(missing, SERVERS) if lack}):
        console.print(f"[yellow]{lack} is missing, and so are its servers.")
    try:
        measure_all(found, arguments, console)
    except (OSError, WorkerFailed) as exc:
        sys.exit(f"run.py: {exc}")
    except KeyboardInterrupt:
        sys.exit("run.py: interrupted")
    finally:
        found.seconds = time.monotonic() - began
        show(found, console)
        if arguments.json:
            arguments.json.write_text(text_of(found.to_json()))
    sys.exit(any(result.failures() for result in found.results))


if __name__ == "__main__":
    main()
