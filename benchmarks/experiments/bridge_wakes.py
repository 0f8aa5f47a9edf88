"""Somebody outside of Trio wakes a batch of parked tasks: the ways to do it.

- token: `TrioToken.run_sync_soon`, which wants the GIL;
- system task: an eventfd that a system task waits for in `wait_readable`;
- instrument: the same eventfd, rung only while Trio sleeps, and an instrument's
  `after_io_wait` that wakes the tasks. This is what trio_wknet/_bridge.py does.

Outside is a thread, which has to take the GIL like any thread that runs Python, or a
forked process, which stands for a reactor thread: it never wants the GIL. The next batch
comes as soon as the last task of the one before has parked again.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import attrs
import trio
from rich.table import Table
from trio.lowlevel import (
    Abort,
    Task,
    current_task,
    current_trio_token,
    reschedule,
    wait_task_rescheduled,
)

# --- Outside and inside ------------------------------------------------------------

POSTED, ASLEEP, SENT_AT, OVER = range(4)


class Link:
    """Memory that both sides see, and the two eventfds between them."""

    def __init__(self) -> None:
        self.memory = memoryview(mmap.mmap(-1, 4096)).cast("Q")
        self.go = os.eventfd(0)
        self.bell = os.eventfd(0)

    def close(self) -> None:
        os.close(self.go)
        os.close(self.bell)


def post_batches(link: Link, wake: Callable[[], object]) -> None:
    """The outside: a batch whenever the inside says go, until it is over."""
    memory = link.memory
    while os.eventfd_read(link.go) and not memory[OVER]:
        memory[SENT_AT] = time.perf_counter_ns()
        memory[POSTED] += 1
        wake()


class Party:
    """The inside: parked tasks that are woken together."""

    def __init__(self, link: Link, size: int) -> None:
        self.link = link
        self.size = size
        self.parked: list[Task] = []
        self.seen = 0
        self.latencies: list[int] = []

    def drain(self) -> None:
        """Wake them, if a batch was posted."""
        posted = self.link.memory[POSTED]
        if posted != self.seen:
            self.seen = posted
            woken, self.parked = self.parked, []
            for task in woken:
                reschedule(task)

    async def member(self) -> None:
        task = current_task()
        memory = self.link.memory

        def abort(_: object) -> Abort:
            self.parked.remove(task)
            return Abort.SUCCEEDED

        while True:
            self.parked.append(task)
            if len(self.parked) == self.size:
                os.eventfd_write(self.link.go, 1)
            await wait_task_rescheduled(abort)
            if not self.parked:  # the first one to run
                self.latencies.append(time.perf_counter_ns() - memory[SENT_AT])


# --- Three ways to wake ----------------------------------------------------------------


def by_token(party: Party, nursery: trio.Nursery) -> Callable[[], object]:
    token = current_trio_token()
    return lambda: token.run_sync_soon(party.drain, idempotent=True)


def by_system_task(party: Party, nursery: trio.Nursery) -> Callable[[], object]:
    bell = party.link.bell

    async def pump() -> None:
        while True:
            await trio.lowlevel.wait_readable(bell)
            os.eventfd_read(bell)
            party.drain()

    nursery.start_soon(pump)
    return partial(os.eventfd_write, bell, 1)


class Drainer(trio.abc.Instrument):
    def __init__(self, party: Party) -> None:
        self.party = party
        self.memory = party.link.memory

    def before_io_wait(self, timeout: float) -> None:
        if timeout > 0:
            self.memory[ASLEEP] = 1
            if self.memory[POSTED] != self.party.seen:
                self.memory[ASLEEP] = 0
                os.eventfd_write(self.party.link.bell, 1)

    def after_io_wait(self, timeout: float) -> None:
        self.memory[ASLEEP] = 0
        self.party.drain()


def by_instrument(party: Party, nursery: trio.Nursery) -> Callable[[], object]:
    bell, memory = party.link.bell, party.link.memory

    async def pump() -> None:
        while True:
            await trio.lowlevel.wait_readable(bell)
            os.eventfd_read(bell)

    def wake() -> None:
        if memory[ASLEEP]:
            memory[ASLEEP] = 0
            os.eventfd_write(bell, 1)

    trio.lowlevel.add_instrument(Drainer(party))
    nursery.start_soon(pump)
    return wake


# --- One measurement -----------------------------------------------------------------


@attrs.frozen
class Variant:
    way: Callable[[Party, trio.Nursery], Callable[[], object]]
    process: bool
    """Outside is a process, else a thread."""

    def __str__(self) -> str:
        where = "process, no GIL" if self.process else "thread"
        return f"{self.way.__name__.removeprefix('by_').replace('_', ' ')}, from a {where}"


VARIANTS = (
    Variant(by_token, False),
    Variant(by_system_task, False),
    Variant(by_instrument, False),
    Variant(by_system_task, True),
    Variant(by_instrument, True),
)


@attrs.frozen
class Sample:
    """All in µs."""

    batch: float
    """From one batch to the next."""
    latency: float
    """From the wake to the first task's step, the median."""
    worst: float
    """The same, the 99th percentile."""
    cpu: float
    """CPU of Trio's thread for a batch."""
    starved: bool
    """Not one batch was posted: the outside never got the GIL. What waits for it is
    woken at each `epoll_wait` that Trio's thread makes without waiting, finds the GIL
    taken again, and begins its 5 ms anew, after which it could have insisted. All times
    are then those of the whole measurement."""


async def spin() -> None:
    while True:
        sum(range(4000))
        await trio.lowlevel.checkpoint()


def start_outside(variant: Variant, link: Link, wake: Callable[[], object]) -> Callable[[], object]:
    """Start it; returns what waits for its end."""
    if not variant.process:
        thread = threading.Thread(target=post_batches, args=(link, wake))
        thread.start()
        return thread.join
    pid = os.fork()
    if pid == 0:
        try:
            post_batches(link, wake)
        finally:
            os._exit(0)
    return partial(os.waitpid, pid, 0)


async def batches(variant: Variant, size: int, busy: bool, seconds: float) -> Sample:
    """Wake a party again and again."""
    link = Link()
    party = Party(link, size)
    async with trio.open_nursery() as nursery:
        wait_for_end = start_outside(variant, link, variant.way(party, nursery))
        began, cpu = time.perf_counter(), time.thread_time()
        for _ in range(size):
            nursery.start_soon(party.member)
        if busy:
            nursery.start_soon(spin)
        await trio.sleep(seconds)
        took, cpu = time.perf_counter() - began, time.thread_time() - cpu
        link.memory[OVER] = 1
        nursery.cancel_scope.cancel()
    os.eventfd_write(link.go, 1)
    wait_for_end()
    link.close()
    return summary(party, took, cpu)


def summary(party: Party, took: float, cpu: float) -> Sample:
    starved = not party.latencies
    latencies = sorted(party.latencies) or [int(took * 1e9)]
    number = len(latencies)
    return Sample(
        batch=took / number * 1e6,
        latency=latencies[number // 2] / 1e3,
        worst=latencies[number * 99 // 100] / 1e3,
        cpu=cpu / number * 1e6,
        starved=starved,
    )


def wake_table(size: int, busy: bool, rounds: int, seconds: float) -> Table:
    """All variants under one condition."""
    samples: dict[Variant, list[Sample]] = {variant: [] for variant in VARIANTS}
    for _ in range(rounds):
        for variant, found in samples.items():
            found.append(trio.run(batches, variant, size, busy, seconds))
    state = "busy" if busy else "idle otherwise"
    table = Table(title=f"Batches of {size}, Trio {state}: µs", title_justify="left")
    table.add_column("woken by", no_wrap=True)
    for name in ("latency p50", "p99", "batch to batch", "Trio's CPU a batch", "starved"):
        table.add_column(name, justify="right")
    for variant, found in samples.items():
        columns = zip(*(attrs.astuple(sample) for sample in found), strict=True)
        batch, latency, worst, cpu, _ = (median(column) for column in columns)
        row = (f"{value:,.1f}" for value in (latency, worst, batch, cpu))
        starved = sum(sample.starved for sample in found)
        table.add_row(str(variant), *row, f"{starved} of {rounds}")
    return table
