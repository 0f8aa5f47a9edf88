"""What came of a scenario: each server's rounds, and the ratios that were wanted."""

from __future__ import annotations

from statistics import median
from typing import Any

import attrs
from rich.table import Table
from scenarios import Scenario, Wanted

from trio_wknet._demo_result import Round
from trio_wknet._load_text import complaint, time_text


def figure(scenario: Scenario, one: Round) -> float:
    """A round in the scenario's unit."""
    result = one.result
    bulk = scenario.unit == "MB/s"
    return result.megabytes_per_second if bulk else result.messages_per_second


@attrs.frozen(kw_only=True)
class Verdict:
    """A ratio that was wanted, and the one there is."""

    scenario: str
    title: str
    ours: str
    """The better one of our servers."""
    peer: str
    wanted: float
    ratio: float
    """Of the medians."""
    lowest: float
    """Of the ratios of single rounds."""
    highest: float
    cpu_ratio: float | None
    """The peer's CPU for a message over ours: what a busy machine changes least."""

    @property
    def met(self) -> bool:
        return self.ratio >= self.wanted


@attrs.frozen
class Result:
    """All rounds of a scenario, by server; the rounds of all were measured in turn."""

    scenario: Scenario
    rounds: dict[str, list[Round]]

    def figures(self, server: str) -> list[float]:
        return [figure(self.scenario, one) for one in self.rounds[server]]

    def median(self, server: str) -> float:
        return median(self.figures(server))

    def best(self) -> str:
        """The better one of our servers."""
        return max(self.scenario.ours, key=self.median)

    def verdicts(self) -> list[Verdict]:
        return [self._verdict(wanted) for wanted in self.scenario.wanted]

    def _verdict(self, wanted: Wanted) -> Verdict:
        best = self.best()
        pairs = zip(self.figures(best), self.figures(wanted.peer), strict=True)
        ratios = [_ratio(ours, theirs) for ours, theirs in pairs]
        return Verdict(
            scenario=self.scenario.name,
            title=self.scenario.title,
            ours=best,
            peer=wanted.peer,
            wanted=wanted.ratio,
            ratio=_ratio(self.median(best), self.median(wanted.peer)),
            lowest=min(ratios),
            highest=max(ratios),
            cpu_ratio=self._cpu_ratio(best, wanted.peer),
        )

    def _cpu_ratio(self, ours: str, peer: str) -> float | None:
        cost, peers_cost = self.cost(ours), self.cost(peer)
        return peers_cost / cost if cost and peers_cost else None

    def failures(self) -> list[str]:
        """Rounds in which not all went well, in words."""
        return [
            f"{self.scenario.name}, {server}, round {number}: {complaint(one.result)}"
            for server, rounds in self.rounds.items()
            for number, one in enumerate(rounds, 1)
            if not one.result.ok or one.result.errors.total
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "scenario": attrs.asdict(self.scenario),
            "servers": {name: self._server_json(name) for name in self.rounds},
            "verdicts": [{**attrs.asdict(v), "met": v.met} for v in self.verdicts()],
        }

    def _server_json(self, server: str) -> dict[str, Any]:
        figures = self.figures(server)
        return {
            "median": median(figures),
            "lowest": min(figures),
            "highest": max(figures),
            "cpu_per_message": self.cost(server),
            "rounds": [one.to_json() for one in self.rounds[server]],
        }

    def cost(self, server: str) -> float | None:
        """Seconds of the server's CPU for a message, the median."""
        costs = [one.cpu for one in self.rounds[server] if one.cpu is not None]
        return median(costs) if costs else None

    def table(self) -> Table:
        """A row for each server, beside the peers' ratios to it."""
        where = "server and load pinned" if self.scenario.pinned else "not pinned"
        table = Table(title=f"{self.scenario.title} ({where})", title_justify="left")
        table.add_column("server", no_wrap=True)
        for head in (self.scenario.unit, "lowest", "highest", "p50", "p99", "CPU µs"):
            table.add_column(head, justify="right")
        best = self.best()
        for server in self.rounds:
            style = "bold" if server == best else None
            table.add_row(server, *self._cells(server), style=style)
        return table

    def _cells(self, server: str) -> list[str]:
        figures, cost = self.figures(server), self.cost(server)
        latencies = [one.result.latency for one in self.rounds[server]]
        return [
            *(f"{value:,.0f}" for value in (median(figures), min(figures), max(figures))),
            time_text(median(latency.p50 for latency in latencies)),
            time_text(median(latency.p99 for latency in latencies)),
            "-" if cost is None else f"{cost * 1e6:.1f}",
        ]


def _ratio(ours: float, theirs: float) -> float:
    return ours / theirs if theirs else 0.0


def verdict_table(verdicts: list[Verdict]) -> Table:
    """Every ratio that was wanted, and whether it is there."""
    table = Table(title="What was wanted", title_justify="left")
    for head in ("work", "ours", "against"):
        table.add_column(head)
    for head in ("ratio", "rounds", "at least", "", "by CPU"):
        table.add_column(head, justify="right")
    for v in verdicts:
        met = "[green]met[/]" if v.met else "[bold white on red] MISSED [/]"
        spread = f"{v.lowest:.2f} to {v.highest:.2f}"
        by_cpu = "-" if v.cpu_ratio is None else f"{v.cpu_ratio:.2f}"
        ratios = (f"{v.ratio:.2f}", spread, f"{v.wanted:.2f}", met, by_cpu)
        table.add_row(v.title, v.ours, v.peer, *ratios)
    return table
