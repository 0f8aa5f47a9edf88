"""What came of a scenario: each server's rounds, and the ratios that were wanted."""

from __future__ import annotations

from statistics import median
from typing import Any

import attrs
from rich import box
from rich.table import Table

from harness.measure import Measured
from harness.scenarios import BULK, Quantity, Scenario, Wanted
from trio_wknet._cli.text import complaint, time_text
from trio_wknet._load.run import LoadResult
from trio_wknet._native.load.histogram import Histogram

OWN = "trio"
"""The transport that ours must not be slower than, wherever both are measured."""
HEADS = ("p50", "p99", "p99.9", "CPU µs", "cores", "load's")
"""Of what follows a server's throughput; cores are those that it and the load keep busy."""
PERCENTS = (*range(100), *(99 + tenth / 10 for tenth in range(1, 10)), 99.95, 99.99)


@attrs.frozen(kw_only=True)
class Verdict:
    """A ratio that was wanted, and the one there is."""

    scenario: str
    title: str
    of: Quantity
    ours: str
    """The best one of our servers."""
    peer: str
    wanted: float
    at_most: bool
    ratio: float
    """Of the medians."""
    lowest: float
    """Of the ratios of single rounds."""
    highest: float
    cpu_ratio: float | None
    """The peer's CPU for a message over ours: what a busy machine changes least."""

    @property
    def met(self) -> bool:
        return self.ratio <= self.wanted if self.at_most else self.ratio >= self.wanted

    @property
    def bound(self) -> str:
        """The target, in words."""
        return f"{'at most' if self.at_most else 'at least'} {self.wanted:g}"

    def to_json(self) -> dict[str, Any]:
        return {**attrs.asdict(self), "met": self.met, "bound": self.bound}


@attrs.frozen
class Result:
    """All rounds of a scenario, by server; the rounds of all were measured in turn."""

    scenario: Scenario
    rounds: dict[str, list[Measured]]

    def values(self, server: str, of: Quantity = "throughput") -> list[float | None]:
        """By round, throughput in the scenario's unit; None where it was too short to tell."""
        bulk = self.scenario.size >= BULK
        return [one.value(of, bulk) for one in self.rounds[server]]

    def median(self, server: str, of: Quantity = "throughput") -> float | None:
        return _median(self.values(server, of))

    def best(self, of: Quantity, ours: tuple[str, ...]) -> str | None:
        """The best one of some servers, of those that were measured."""
        medians = {name: self.median(name, of) for name in ours if name in self.rounds}
        known = {name: value for name, value in medians.items() if value is not None}
        if not known:
            return None
        return (max if of == "throughput" else min)(known, key=lambda name: known[name])

    def verdicts(self) -> list[Verdict]:
        """Those for which both sides were measured."""
        found = (self._verdict(wanted) for wanted in self.scenario.wanted)
        return [verdict for verdict in found if verdict is not None]

    def unmeasured(self) -> list[Wanted]:
        """Targets of which one side was not measured."""
        return [wanted for wanted in self.scenario.wanted if self._verdict(wanted) is None]

    def beside_own(self) -> Verdict | None:
        """Whether the best of ours is as fast as Trio's own transport; None in an open loop,
        where the load says how fast all are, and where Trio's was not measured."""
        if self.scenario.rate is not None:
            return None
        return self._verdict(Wanted(OWN, 1.0))

    def _verdict(self, wanted: Wanted) -> Verdict | None:
        best = self.best(wanted.of, wanted.ours or self.scenario.ours)
        if best is None or (wanted.figure is None and wanted.peer not in self.rounds):
            return None
        sides = (self.values(best, wanted.of), self._peer_values(wanted))
        ratios = [_ratio(*pair) for pair in zip(*sides, strict=True)]
        known = [ratio for ratio in ratios if ratio is not None]
        ratio = _ratio(*map(_median, sides))
        if ratio is None or not known:
            return None
        return Verdict(
            scenario=self.scenario.name,
            title=self.scenario.title,
            of=wanted.of,
            ours=best,
            peer=wanted.peer,
            wanted=wanted.ratio,
            at_most=wanted.at_most,
            ratio=ratio,
            lowest=min(known),
            highest=max(known),
            cpu_ratio=None if wanted.figure else self._cpu_ratio(wanted.peer, best),
        )

    def _peer_values(self, wanted: Wanted) -> list[float | None]:
        if wanted.figure is None:
            return self.values(wanted.peer, wanted.of)
        return [wanted.figure] * len(next(iter(self.rounds.values())))

    def _cpu_ratio(self, peer: str, ours: str) -> float | None:
        return _ratio(self.median(peer, "cpu"), self.median(ours, "cpu"))

    def failures(self) -> list[str]:
        """Rounds in which not all went well, in words."""
        return [
            f"{self.scenario.name}, {server}, round {number}: {problem}"
            for server, rounds in self.rounds.items()
            for number, one in enumerate(rounds, 1)
            if (problem := _problem(one.result)) is not None
        ]

    def to_json(self) -> dict[str, Any]:
        own = self.beside_own()
        return {
            "scenario": {
                **attrs.asdict(self.scenario),
                "title": self.scenario.title,
                "unit": self.scenario.unit,
            },
            "servers": {name: self._server_json(name) for name in self.rounds},
            "verdicts": [verdict.to_json() for verdict in self.verdicts()],
            "unmeasured": [attrs.asdict(wanted) for wanted in self.unmeasured()],
            "beside_own": None if own is None else own.to_json(),
        }

    def _server_json(self, server: str) -> dict[str, Any]:
        rounds, figures = self.rounds[server], self.values(server)
        latencies = [one.result.latency for one in rounds]
        columns: dict[str, list[Any]] = {
            "throughput": figures,
            "p50": [latency.p50 for latency in latencies],
            "p99": [latency.p99 for latency in latencies],
            "p999": [latency.p999 for latency in latencies],
            "cpu": [one.cpu for one in rounds],
            "busy": [one.busy for one in rounds],
            "load_busy": [one.load_busy for one in rounds],
            "unfinished": [one.result.unfinished for one in rounds],
        }
        known = [figure for figure in figures if figure is not None]
        return {
            **{name: _median(column) for name, column in columns.items()},
            "lowest": min(known),
            "highest": max(known),
            "rounds": columns,
            "cdf": self._cdf(server) if self.scenario.rate is not None else None,
        }

    def _cdf(self, server: str) -> list[tuple[float, float]]:
        """Percent of the messages of all rounds, and the seconds that they took at most."""
        together = Histogram()
        for one in self.rounds[server]:
            together.merge(one.latency)
        return [(percent, together.percentile(percent) / 1e9) for percent in PERCENTS]

    def table(self) -> Table:
        """Every server's medians, the best of ours in bold."""
        title = f"{self.scenario.name}: {self.scenario.title}; {self.scenario.unit}"
        table = narrow_table(title)
        table.add_column("server", no_wrap=True)
        for head in ("median", "lowest", "highest", *HEADS):
            table.add_column(head, justify="right", no_wrap=True)
        best = self.best("throughput", self.scenario.ours)
        for server in self.rounds:
            style = "bold" if server == best else None
            table.add_row(server, *cells(self._server_json(server)), style=style)
        return table


def cells(server: dict[str, Any]) -> list[str]:
    """A server's medians in a row, from its JSON."""
    cpu = server["cpu"]
    return [
        *(f"{server[name]:,.0f}" for name in ("throughput", "lowest", "highest")),
        *(time_text(server[name]) for name in ("p50", "p99", "p999")),
        "-" if cpu is None else f"{cpu * 1e6:,.1f}",
        *("-" if server[n] is None else f"{server[n]:.2f}" for n in ("busy", "load_busy")),
    ]


def _problem(result: LoadResult) -> str | None:
    if not result.ok or result.errors.total:
        return complaint(result)
    if result.options.rate is not None and result.unfinished:
        return f"{result.unfinished} messages were not answered, so percentiles are not honest"
    return None


def _median(values: list[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _ratio(over: float | None, under: float | None) -> float | None:
    return None if over is None or not under else over / under


@attrs.frozen
class Beside:
    """The best of ours beside Trio's own transport, in every cell where both are."""

    verdicts: list[Verdict]

    @classmethod
    def of(cls, results: list[Result]) -> Beside:
        found = (result.beside_own() for result in results)
        return cls([verdict for verdict in found if verdict is not None])

    def slower(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if not verdict.met]

    def to_json(self) -> dict[str, Any]:
        return {
            "cells": len(self.verdicts),
            "lowest": min((verdict.ratio for verdict in self.verdicts), default=None),
            "slower": [verdict.scenario for verdict in self.slower()],
        }


def verdict_table(verdicts: list[Verdict]) -> Table:
    """Every ratio that was wanted, and whether it is there."""
    table = narrow_table("Targets")
    for head in ("cell", "of", "ours", "against"):
        table.add_column(head, no_wrap=True)
    for head in ("ratio", "rounds", "wanted", "", "by CPU"):
        table.add_column(head, justify="right", no_wrap=True)
    for v in verdicts:
        met = "[green]met[/]" if v.met else "[bold white on red]MISSED[/]"
        spread = f"{v.lowest:.2f} to {v.highest:.2f}"
        by_cpu = "-" if v.cpu_ratio is None else f"{v.cpu_ratio:.2f}"
        ratios = (f"{v.ratio:.2f}", spread, v.bound, met, by_cpu)
        table.add_row(v.scenario, v.of, v.ours, v.peer, *ratios)
    return table


def narrow_table(title: str) -> Table:
    """A table for terminals that are not wide."""
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
