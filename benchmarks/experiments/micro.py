"""The core's parts beside what Python offers: ``python benchmarks/experiment.py micro``.

The parts work without Python, in the reactors. Here they are reached through the faces
that tests use, so most of each figure is the Python call. The column "without calls"
takes that off: as many times as the statement calls something, what a compiled call
that only reads one field costs. What the faces do besides (a number made, a dict kept)
stays in, so that column is still more than what a reactor pays.
"""

from __future__ import annotations

import argparse
import json
import timeit
from pathlib import Path
from statistics import median

import attrs
from rich.console import Console
from rich.table import Table

from harness.machine import Machine

ROUNDS = 7
SECONDS = 0.02


@attrs.frozen
class Case:
    """One way to do one kind of work."""

    work: str
    by: str
    statement: str
    calls: int
    setup: str = ""
    each: int = 1
    """How many times the statement does it."""


LOOP = Case("the loop itself", "pass", "pass", 0)
CALL = Case(
    "a compiled call",
    "waiting()",
    "waiting()",
    1,
    "from trio_wknet._native.testing import LetterBox; waiting = LetterBox(1).waiting",
)

_POOL = """
from trio_wknet._native.testing import BlockPool
pool = BlockPool(1 << 20)
take, give = pool.take, pool.give
"""
_TABLE = """
import random
from trio_wknet._native.testing import SlotTable
table = SlotTable()
add, get, remove = table.add, table.get, table.remove
def some(number):
    handles = [add(7) for _ in range(number)]
    return random.Random(1).choices(handles, k=1000)
"""
_DICT = """
import random
d = {}
def some(number):
    # Keys like handles, in no order, so that a lookup misses the caches alike.
    d.update((1 << 32 | i, 7) for i in range(number))
    return random.Random(1).choices(list(d), k=1000)
"""
_BOX = """
from trio_wknet._native.testing import LetterBox
box = LetterBox(100)
post, take = box.post, box.take
"""
_DEQUE = """
from collections import deque
d = deque()
append, popleft = d.append, d.popleft
"""
_QUEUE = "from queue import SimpleQueue; q = SimpleQueue(); put, get = q.put, q.get"
_RING = """
from trio_wknet import RingBuffer
ring = RingBuffer(1 << 20)
write, read, data = ring.write, ring.read, bytes({size})
write(bytes({backlog}))
"""
_BYTEARRAY = "b, data = bytearray({backlog}), bytes({size})"
_HISTOGRAM = "from trio_wknet._native.load.histogram import Histogram; record = Histogram().record"


def _pool(size: int) -> list[Case]:
    work = f"take and give {size:,} bytes"
    return [
        Case(work, "BlockPool", f"give(take({size}))", 2, _POOL),
        Case(work, "bytearray", f"bytearray({size})", 1),
    ]


def _lookup(number: int) -> list[Case]:
    work = f"look up one of {number:,}"
    load = f"handles = some({number})"
    bound = f"{_DICT}\n{load}; get = d.get"
    return [
        Case(work, "SlotTable", "for h in handles: get(h)", 1, f"{_TABLE}\n{load}", 1000),
        Case(work, "dict.get", "for h in handles: get(h)", 1, bound, 1000),
        Case(work, "dict[...]", "for h in handles: d[h]", 0, f"{_DICT}\n{load}", 1000),
    ]


def _ring(size: int, backlog: int) -> list[Case]:
    work = f"write and read {size:,} bytes" + (f" behind {backlog:,}" if backlog else "")
    statement = f"b += data; b[:{size}]; del b[:{size}]"
    sizes = {"size": size, "backlog": backlog}
    return [
        Case(work, "RingBuffer", f"write(data); read({size})", 2, _RING.format(**sizes)),
        Case(work, "bytearray", statement, 0, _BYTEARRAY.format(**sizes)),
    ]


CASES = [
    *_pool(4096),
    *_pool(65536),
    *_lookup(100),
    *_lookup(100_000),
    Case("add and remove", "SlotTable", "remove(add(7))", 2, _TABLE),
    Case("add and remove", "dict", "d[7 << 32] = 7; del d[7 << 32]", 0, "d = {}"),
    *_ring(64, 0),
    *_ring(64, 65536),
    *_ring(16384, 0),
    Case("post one, take one", "LetterBox", "post(5, 1); take()", 2, _BOX),
    Case("post one, take one", "deque", "append(5); popleft()", 2, _DEQUE),
    Case("post one, take one", "SimpleQueue", "put(5); get()", 2, _QUEUE),
    Case("post 100, take all", "LetterBox", "for i in range(100): post(i, 1)\ntake()", 101, _BOX),
    Case(
        "post 100, take all",
        "deque",
        "for i in range(100): append(i)\nfor i in range(100): popleft()",
        200,
        _DEQUE,
    ),
    Case("record a latency", "Histogram", "record(1_234_567)", 1, _HISTOGRAM),
    Case("record a latency", "list", "append(1_234_567)", 1, "append = [].append"),
]


def time_all(cases: list[Case], rounds: int) -> list[float]:
    """Nanoseconds of each case, loop included: medians of rounds, taken in turn."""
    timers = [timeit.Timer(case.statement, case.setup) for case in cases]
    numbers = [_how_often(timer) for timer in timers]
    found: list[list[float]] = [[] for _ in cases]
    for _ in range(rounds):
        for times, timer, number in zip(found, timers, numbers, strict=True):
            times.append(timer.timeit(number) / number * 1e9)
    return [median(times) for times in found]


def _how_often(timer: timeit.Timer) -> int:
    number = 1
    while (seconds := timer.timeit(number)) < SECONDS / 4:
        number *= 4
    return max(1, int(number * SECONDS / seconds))


def net(case: Case, time: float, loop: float, call: float) -> float:
    """What is left without the calls."""
    own_loop = 0 if case.each > 1 else loop
    return max(0.0, (time - own_loop) / case.each - case.calls * (call - loop))


@attrs.frozen
class Found:
    """What a case took, in nanoseconds each time."""

    case: Case
    ns: float
    without_calls: float


def measure(rounds: int, cases: list[Case]) -> tuple[float, list[Found]]:
    """What a compiled call costs, and the cases."""
    loop, call, *times = time_all([LOOP, CALL, *cases], rounds)
    found = [
        Found(case, time / case.each, net(case, time, loop, call))
        for case, time in zip(cases, times, strict=True)
    ]
    return call - loop, found


def table(call: float, found: list[Found]) -> Table:
    table = Table(title=f"A compiled call from Python: {call:.0f} ns", title_justify="left")
    table.add_column("work")
    table.add_column("by")
    table.add_column("ns", justify="right")
    table.add_column("without calls", justify="right")
    work = ""
    for one in found:
        if one.case.work != work:
            table.add_section()
        first, work = one.case.work if one.case.work != work else "", one.case.work
        table.add_row(first, one.case.by, f"{one.ns:,.0f}", f"{one.without_calls:,.0f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the core's parts beside their peers.")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE")
    arguments = parser.parse_args()
    console, machine = Console(), Machine.here()
    console.print(str(machine), highlight=False)
    call, found = measure(arguments.rounds, CASES)
    console.print(table(call, found))
    if arguments.json:
        rows = [attrs.asdict(one) for one in found]
        report = {"machine": attrs.asdict(machine), "call": call, "cases": rows}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
