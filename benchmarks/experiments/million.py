"""A million connections without their descriptors: ``python benchmarks/experiment.py million``.

The slot map, a wheel and a pool are given what a million connections would give them:
a slot and an idle timeout each, and a buffer for each that is busy at once. Memory is
the process's resident set; times are CPU time, and of what is done from Python they
hold Python's call. Looking up is beside a `dict` of as many, in turn, medians.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import attrs
from rich.console import Console
from rich.table import Table

from harness.machine import Machine
from harness.memory import Footprint
from trio_wknet._native.testing import BlockPool, NodeWheel, SlotTable

S = 10**9
TICK_NS = 10**7
ROUNDS = 9
LOOKUPS = 20_000  # of one case in one round
BUFFER = 4096
KEEP = 16 << 20  # bytes, what an engine's pool may keep


@attrs.frozen
class Row:
    part: str
    work: str
    figure: float
    unit: str


def resident() -> int:
    return Footprint.of(os.getpid()).resident


def timed(do: Callable[[], object], times: int) -> float:
    """CPU nanoseconds of one of a number."""
    start = time.thread_time_ns()
    do()
    return (time.thread_time_ns() - start) / times


def look_up(get: Callable[[int], object], keys: Sequence[int]) -> None:
    for key in keys:
        get(key)


def slot_map(count: int) -> list[Row]:
    table = SlotTable()
    handles = array("Q", bytes(8 * count))

    def fill() -> None:
        for number in range(count):
            handles[number] = table.add(number)

    before = resident()
    taking = timed(fill, count)
    held = resident() - before
    by_dict = dict.fromkeys(handles)
    # Equal to the dict's keys, and not the same objects, as a number from elsewhere.
    keys = [int(str(handle)) for handle in random.Random(1).choices(handles, k=LOOKUPS)]
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(ROUNDS):
        ours.append(timed(lambda: look_up(table.get, keys), LOOKUPS))
        theirs.append(timed(lambda: look_up(by_dict.get, keys), LOOKUPS))

    def empty() -> None:
        for handle in handles:
            table.remove(handle)

    with_all = resident()
    returning = timed(empty, count)
    left = held - (with_all - resident())
    return [
        Row("slot_map", "memory of a connection's slot", held / count, "B"),
        Row("slot_map", "take a slot", taking, "ns"),
        Row("slot_map", "look one up", median(ours), "ns"),
        Row("slot_map", "look one up in a dict", median(theirs), "ns"),
        Row("slot_map", "return a slot", returning, "ns"),
        Row("slot_map", "memory left when all are returned", left / 2**20, "MiB"),
    ]


def wheel(count: int) -> list[Row]:
    timeout = 300 * S
    wheel = NodeWheel(TICK_NS, 1000, 0, count)
    opened = array("Q", (random.Random(2).randrange(timeout) for _ in range(count)))

    def add() -> None:
        for number in range(count):
            wheel.add(number, opened[number] + timeout)

    before = resident()
    adding = timed(add, count)
    added = resident() - before

    def expire() -> None:
        while len(wheel):
            wheel.turn(wheel.next())
            while wheel.take() is not None:
                pass

    return [
        Row("wheel", "memory of a timeout, its time included", added / count, "B"),
        Row("wheel", "set a timeout of five minutes", adding, "ns"),
        Row("wheel", "turn to it, and take it", timed(expire, count), "ns"),
        Row("wheel", "looks at each", wheel.visits / count, ""),
    ]


def pool(busy: int) -> list[Row]:
    blocks = BlockPool(KEEP)
    numbers: list[int] = []
    before = resident()
    taking = timed(lambda: numbers.extend(blocks.take(BUFFER) for _ in range(busy)), busy)
    peak = resident() - before

    def give() -> None:
        for number in numbers:
            blocks.give(number)

    giving = timed(give, busy)
    blocks.trim()
    return [
        Row("pool", f"memory of a busy connection's {BUFFER:,} bytes", peak / busy, "B"),
        Row("pool", "take a block", taking, "ns"),
        Row("pool", "give it back", giving, "ns"),
        Row("pool", "kept for reuse after the peak", blocks.counts()[0] / 2**20, "MiB"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=1_000_000)
    parser.add_argument("--busy", type=int, default=100_000, help="with a buffer at once")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    asked = parser.parse_args()
    if asked.connections < 1 or asked.busy < 1:
        parser.error("--connections and --busy must be at least 1")
    rows = [*slot_map(asked.connections), *wheel(asked.connections), *pool(asked.busy)]
    table = Table(title=f"{asked.connections:,} connections, {asked.busy:,} of them busy")
    for heading in ("part", "work", "figure"):
        table.add_column(heading, justify="right" if heading == "figure" else "left")
    for row in rows:
        table.add_row(row.part, row.work, f"{row.figure:,.1f} {row.unit}")
    Console().print(table)
    if asked.json is not None:
        found: dict[str, Any] = {"machine": attrs.asdict(Machine.here()), "rows": []}
        found["rows"] = [attrs.asdict(row) for row in rows]
        asked.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
