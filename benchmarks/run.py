"""The benchmark: ``python benchmarks/run.py``, some eight minutes; see ``--help``.

Servers are measured in turn, round by round, each time in a fresh process, so that
what else happens on the machine hits all of them alike. Ratios are of medians. Missing
one is said loudly, but only a load that was not answered properly is exit code 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import attrs
from machine import Machine
from measure import Settings, measure
from result import Result, verdict_table
from rich.console import Console
from scenarios import SCENARIOS, SWEEP, Scenario

THOROUGH = Settings(rounds=5, duration=2.0, warmup=0.5)
QUICK = Settings(rounds=3, duration=0.5, warmup=0.2)


def run(scenario: Scenario, settings: Settings, console: Console) -> Result:
    """All rounds of a scenario, each beginning with another server."""
    servers = scenario.servers
    result = Result(scenario, {server: [] for server in servers})
    with console.status(scenario.name) as status:
        for number in range(settings.rounds):
            first = number % len(servers)
            for server in (*servers[first:], *servers[:first]):
                status.update(f"{scenario.name}, round {number + 1}, {server}")
                result.rounds[server].append(measure(scenario, server, settings))
    return result


def show(results: list[Result], console: Console) -> None:
    """The ratios that were wanted, and what went wrong."""
    verdicts = [verdict for result in results for verdict in result.verdicts()]
    if verdicts:
        console.print(verdict_table(verdicts))
    missed = [verdict for verdict in verdicts if not verdict.met]
    if missed:
        console.print(f"[bold red]{len(missed)} of {len(verdicts)} wanted ratios were MISSED.")
    for failure in (failure for result in results for failure in result.failures()):
        console.print(f"[bold red]NOT ANSWERED PROPERLY: {failure}")


def write(path: Path, machine: Machine, settings: Settings, results: list[Result]) -> None:
    """Everything that was measured, as JSON."""
    found = {
        "machine": attrs.asdict(machine),
        "settings": attrs.asdict(settings),
        "results": [result.to_json() for result in results],
    }
    path.write_text(json.dumps(found, indent=1) + "\n")


def parse() -> argparse.Namespace:
    names = [scenario.name for scenario in (*SCENARIOS, *SWEEP)]
    parser = argparse.ArgumentParser(description="Measure this library against its peers.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and shorter ones")
    parser.add_argument("--only", action="append", choices=names, help="may be repeated")
    parser.add_argument("--sweep", action="store_true", help="by connections, for plot.py")
    parser.add_argument("--rounds", type=int, help=f"default {THOROUGH.rounds}")
    parser.add_argument("--duration", type=float, help=f"seconds, default {THOROUGH.duration}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE")
    return parser.parse_args()


def choose(only: list[str] | None, sweep: bool) -> list[Scenario]:
    """The scenarios that were asked for."""
    if only:
        return [scenario for scenario in (*SCENARIOS, *SWEEP) if scenario.name in only]
    return list(SWEEP if sweep else SCENARIOS)


def main() -> None:
    arguments = parse()
    settings = QUICK if arguments.quick else THOROUGH
    if arguments.rounds:
        settings = attrs.evolve(settings, rounds=arguments.rounds)
    if arguments.duration:
        settings = attrs.evolve(settings, duration=arguments.duration)
    console, machine = Console(), Machine.here()
    console.print(str(machine), highlight=False)
    results = []
    for scenario in choose(arguments.only, arguments.sweep):
        results.append(run(scenario, settings, console))
        console.print(results[-1].table())
        if arguments.json:
            write(arguments.json, machine, settings, results)
    show(results, console)
    sys.exit(any(result.failures() for result in results))


if __name__ == "__main__":
    main()
