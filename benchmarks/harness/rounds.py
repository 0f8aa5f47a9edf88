"""All rounds of a scenario, its servers in turn."""

from __future__ import annotations

from collections.abc import Callable, Container
from statistics import median
from typing import TypeVar

import attrs

from harness.measure import Settings, measure, started
from harness.result import Result
from harness.scenarios import Scenario
from harness.servers import missing

T = TypeVar("T")

CALIBRATIONS = 3
"""Loads that Trio's maximum is the median of."""


def in_turn(servers: tuple[str, ...], number: int) -> tuple[str, ...]:
    """The order of a round: each begins with another one."""
    first = number % len(servers)
    return (*servers[first:], *servers[:first])


def take_turns(
    names: tuple[str, ...], rounds: int, one: Callable[[str], T], report: Callable[[str], object]
) -> dict[str, list[T]]:
    """Measure all in turn, round by round; each round begins with another one."""
    found: dict[str, list[T]] = {name: [] for name in names}
    for number in range(rounds):
        for name in in_turn(names, number):
            report(f"{name}, round {number + 1} of {rounds}")
            found[name].append(one(name))
    return found


def able(scenario: Scenario, only: Container[str] | None = None) -> tuple[str, ...]:
    """Its servers that can run here, or those of them that are named."""
    wanted = (name for name in scenario.servers if only is None or name in only)
    return tuple(name for name in wanted if missing(name) is None)


def run_scenario(
    scenario: Scenario,
    names: tuple[str, ...],
    settings: Settings,
    report: Callable[[str], object],
) -> Result:
    """Measure some of its servers, at least one, round by round.

    What else happens on the machine hits all of them alike. Raises `WorkerFailed` or
    `OSError` where a server fails.
    """
    scenario = at_its_rate(scenario.within(settings.most_connections), settings, report)
    result = Result(scenario, {name: [] for name in names})
    for number in range(settings.rounds):
        with started(scenario, names) as servers:
            for name in in_turn(names, number):
                report(f"{scenario.name}, round {number + 1}, {name}")
                result.rounds[name].append(measure(scenario, servers[name], settings))
    return result


def at_its_rate(
    scenario: Scenario, settings: Settings, report: Callable[[str], object]
) -> Scenario:
    """The scenario with the rate that follows from Trio's maximum, where one does."""
    if scenario.of_trio is None:
        return scenario
    report(f"{scenario.name}, Trio's maximum")
    closed = attrs.evolve(scenario, of_trio=None)
    rates = []
    for _ in range(min(CALIBRATIONS, settings.rounds)):
        with started(closed, ("trio",)) as servers:
            rates.append(measure(closed, servers["trio"], settings).result.messages_per_second)
    return attrs.evolve(scenario, rate=max(1.0, scenario.of_trio * median(rates)))
