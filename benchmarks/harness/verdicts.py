"""Figures beside the bounds that are wanted of them, and whether they are met."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import attrs
from rich.table import Table

from harness.rounds import take_turns
from trio_wknet._load.cpu import CpuMeter
from trio_wknet._load.options import LoadOptions
from trio_wknet._load.run import run_load


@attrs.frozen(kw_only=True)
class Row:
    """A figure, and the bound that is wanted."""

    what: str
    value: float
    bound: str
    met: bool


def echo(host: str, port: int, pid: int, connections: int) -> tuple[float, float]:
    """A closed loop on a server's process: CPU of a message, and messages a second."""
    meter = CpuMeter(pid)
    options = LoadOptions(host, port, connections=connections, duration=2, warmup=0.5)
    result = run_load(options, on_progress=meter.note)
    return meter.per_message or 0.0, result.messages_per_second


def echo_cost(
    off: str,
    on: str,
    rounds: int,
    one: Callable[[str], tuple[float, float]],
    report: Callable[[str], object],
) -> list[Row]:
    """What something costs an echo, with and without it in turn: `one` measures a form, as `echo`
    does."""
    found = take_turns((off, on), rounds, one, report)
    pairs = list(zip(found[off], found[on], strict=True))
    cpu = median(without[0] / with_it[0] for without, with_it in pairs)
    rate = median(with_it[1] / without[1] for without, with_it in pairs)
    return [
        Row(what="echo, CPU of a message: off to on", value=cpu, bound="0.98", met=cpu >= 0.98),
        Row(what="echo, messages a second: on to off", value=rate, bound="0.98", met=rate >= 0.98),
    ]


def table(rows: list[Row]) -> Table:
    shown = Table("what", "is", "wanted", "met")
    for row in rows:
        shown.add_row(row.what, f"{row.value:,.2f}", row.bound, "yes" if row.met else "no")
    return shown
