"""What the demo found: rounds of load on each server, their medians, and the table."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from statistics import median
from typing import Any

import attrs
import trio
from rich.table import Table

from trio_wknet._cli.text import time_text
from trio_wknet._load.options import LoadOptions
from trio_wknet._load.run import LoadResult


@attrs.frozen
class Round:
    """One load on one server."""

    result: LoadResult
    cpu: float | None
    """Seconds of the server's CPU for a message."""

    def to_json(self) -> dict[str, Any]:
        """The result as the bench command gives it, and the CPU."""
        return {**self.result.to_json(), "cpu_per_message": self.cpu}


@attrs.frozen
class Figures:
    """The medians of a server's rounds; None for what no round measured."""

    messages_per_second: float
    p50: float
    p99: float
    cpu_per_message: float | None

    @classmethod
    def of(cls, rounds: list[Round]) -> Figures:
        costs = [one.cpu for one in rounds if one.cpu is not None]
        return cls(
            messages_per_second=median(one.result.messages_per_second for one in rounds),
            p50=median(one.result.latency.p50 for one in rounds),
            p99=median(one.result.latency.p99 for one in rounds),
            cpu_per_message=median(costs) if costs else None,
        )


@attrs.frozen
class Comparison:
    """Both servers, under the same load."""

    options: LoadOptions
    reactors: int
    wknet: list[Round]
    trio: list[Round]

    def gains(self) -> dict[str, float | None]:
        """How many times better this library is: more messages, less of the rest."""
        ours, theirs = Figures.of(self.wknet), Figures.of(self.trio)
        return {
            "messages_per_second": _ratio(ours.messages_per_second, theirs.messages_per_second),
            "p50": _ratio(theirs.p50, ours.p50),
            "p99": _ratio(theirs.p99, ours.p99),
            "cpu_per_message": _ratio(theirs.cpu_per_message, ours.cpu_per_message),
        }

    def to_json(self) -> dict[str, Any]:
        """All of it as a dict for JSON; times are in seconds."""
        return {
            "trio_wknet": _side(self.wknet),
            "trio": _side(self.trio),
            "gain": self.gains(),
            "measured": {
                "connections": self.options.connections,
                "size": self.options.size,
                "duration": self.options.duration,
                "rounds": len(self.wknet),
                "reactors": self.reactors,
                "cores": len(os.sched_getaffinity(0)),
                "pinned": False,
                "python": platform.python_version(),
                "trio": trio.__version__,
            },
        }

    def what_was_measured(self) -> str:
        """The line that a reader needs to judge the figures."""
        options, cores = self.options, len(os.sched_getaffinity(0))
        return (
            f"Echo over {options.connections:,} TCP connections on loopback, {options.size:,} "
            f"bytes, one message at a time on each: {len(self.wknet)} rounds of "
            f"{options.duration:g} s in turn, medians. Server and load are a process each, not "
            f"pinned, on {cores} core{'s' * (cores != 1)} that they share with everything else "
            f"that runs here. Python {platform.python_version()}, Trio {trio.__version__}."
        )

    def table(self) -> Table:
        """Both servers side by side."""
        ours, theirs, gains = Figures.of(self.wknet), Figures.of(self.trio), self.gains()
        table = Table()
        table.add_column()
        table.add_column(f"trio_wknet\n{reactors_text(self.reactors)}", justify="right")
        table.add_column("Trio\nserve_tcp", justify="right")
        table.add_column("better\nby", justify="right", style="bold")
        for title, name, text in _ROWS:
            values = (text(getattr(side, name)) for side in (ours, theirs))
            table.add_row(title, *values, _gain_text(gains[name]))
        table.add_section()
        for number, pair in enumerate(zip(self.wknet, self.trio, strict=True), 1):
            rates = (f"{one.result.messages_per_second:,.0f}" for one in pair)
            table.add_row(f"messages/s, round {number}", *rates, style="dim")
        return table


def reactors_text(reactors: int) -> str:
    """How an engine runs."""
    return "in-loop" if reactors == 0 else f"{reactors} reactor thread{'s' * (reactors > 1)}"


def _cost_text(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e6:.1f} µs"


def _gain_text(gain: float | None) -> str:
    if gain is None:
        return "-"
    return f"[{'green' if gain >= 1 else 'red'}]{gain:.2f} x[/]"


_ROWS: list[tuple[str, str, Callable[[Any], str]]] = [
    ("messages/s", "messages_per_second", "{:,.0f}".format),
    ("latency p50", "p50", time_text),
    ("latency p99", "p99", time_text),
    ("server CPU a message", "cpu_per_message", _cost_text),
]


def _side(rounds: list[Round]) -> dict[str, Any]:
    return {**attrs.asdict(Figures.of(rounds)), "rounds": [one.to_json() for one in rounds]}


def _ratio(over: float | None, under: float | None) -> float | None:
    return over / under if over is not None and under else None
