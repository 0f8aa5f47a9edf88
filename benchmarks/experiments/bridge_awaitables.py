"""An awaitable by hand beside an `async def` of the same steps from `trio.lowlevel`.

With data at hand that is the library's compiled operation, on a real connection. With a
wait both are written in Python, so that only the form differs. A hundred tasks do it side
by side, so that a turn of Trio's loop, some µs whatever happens in it, does not hide the
rest.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from statistics import median
from typing import Any

import attrs
import outcome
import trio
from rich.table import Table
from trio.lowlevel import (
    Abort,
    Task,
    cancel_shielded_checkpoint,
    checkpoint_if_cancelled,
    current_task,
    reschedule,
    wait_task_rescheduled,
)

from trio_wknet import Conn, Engine, open_engine

TASKS = 100


async def receive_by_coroutine(conn: Conn, most: int) -> bytes:
    """What the compiled operation does, for data that is at hand."""
    await checkpoint_if_cancelled()
    data: bytes = conn.receive_nowait(most)
    await cancel_shielded_checkpoint()
    return data


async def timed(jobs: list[Callable[[], Any]], steps: int) -> float:
    """CPU in ns per step, of steps that the jobs take concurrently."""
    began = time.thread_time_ns()
    async with trio.open_nursery() as nursery:
        for job in jobs:
            nursery.start_soon(job)
    return (time.thread_time_ns() - began) / steps


async def time_at_hand(receive: Callable[[Conn, int], Any], each: int) -> float:
    """To receive a byte that has arrived."""

    async def job(conn: Conn) -> None:
        for _ in range(each):
            await receive(conn, 1)

    async with open_engine(0) as engine:
        conns = [await filled(engine, each) for _ in range(TASKS)]
        took = await timed([partial(job, conn) for conn in conns], each * TASKS)
        for conn in conns:
            conn.abort()
    return took


async def filled(engine: Engine, size: int) -> Conn:
    """A connection on which a number of bytes has arrived."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.send(bytes(size))
    conn = engine.adopt(ours)
    assert isinstance(conn, Conn)
    while conn.statistics().buffered_inbound < size:
        await trio.lowlevel.checkpoint()
    return conn


class Box:
    """A place for one value, and for one who waits for it."""

    def __init__(self, by_hand: bool) -> None:
        self.by_hand = by_hand
        self.value: int | None = None
        self.waiter: Task | None = None
        # The trap of a wait by hand may be yielded any number of times.
        waiting = wait_task_rescheduled(self.abort)  # noqa: ASYNC105
        self.trap = waiting.send(None)
        waiting.close()

    def abort(self, _: object) -> Abort:
        self.waiter = None
        return Abort.SUCCEEDED

    def put(self, value: int) -> None:
        self.value = value
        waiter, self.waiter = self.waiter, None
        if waiter is None:
            return
        # A coroutine unwraps the outcome, which may be done once.
        if self.by_hand:
            reschedule(waiter, WOKEN)
        else:
            reschedule(waiter)

    def take(self) -> int | None:
        value, self.value = self.value, None
        return value


async def take_by_coroutine(box: Box) -> int | None:
    await checkpoint_if_cancelled()
    if box.value is None:
        box.waiter = current_task()
        await wait_task_rescheduled(box.abort)
    else:
        await cancel_shielded_checkpoint()
    return box.take()


WOKEN = outcome.Value(None)
_caught = cancel_shielded_checkpoint()  # noqa: ASYNC105
SCHEDULE_POINT = _caught.send(None)
_caught.close()


class TakeByHand:
    """The same without a frame for each layer, and with an outcome never unwrapped.

    Trio delivers a pending cancellation to a task that parks, so only a task that does
    not has to look for one.
    """

    __slots__ = ("box",)

    def __init__(self, box: Box) -> None:
        self.box = box

    def __await__(self) -> TakeByHand:
        return self

    def __iter__(self) -> TakeByHand:
        return self

    def __next__(self) -> object:
        if self.box.value is None:
            self.box.waiter = current_task()
            return self.box.trap
        with suppress(StopIteration):
            checkpoint_if_cancelled().send(None)  # noqa: ASYNC105
        return SCHEDULE_POINT

    def send(self, sent: outcome.Outcome[None]) -> object:
        if sent is not WOKEN:
            sent.unwrap()
        raise StopIteration(self.box.take())


async def time_wait(take: Callable[[Box], Any], each: int) -> float:
    """To park, be woken, and run: pairs of tasks that play ping-pong."""

    async def first(mine: Box, other: Box) -> None:
        for _ in range(each):
            other.put(1)
            await take(mine)

    async def second(mine: Box, other: Box) -> None:
        for _ in range(each):
            await take(mine)
            other.put(1)

    jobs: list[Callable[[], Any]] = []
    for _ in range(TASKS // 2):
        left, right = (Box(take is TakeByHand) for _ in range(2))
        jobs += [partial(first, left, right), partial(second, right, left)]
    return await timed(jobs, each * TASKS)


async def time_checkpoint(tasks: int, each: int) -> float:
    """Of a bare checkpoint, Trio's own part in all of these."""

    async def job() -> None:
        for _ in range(each):
            await trio.lowlevel.checkpoint()

    return await timed([job] * tasks, each * tasks)


async def time_bridged_checkpoint(tasks: int, each: int) -> float:
    """The same with an engine open, whose instrument takes part in every turn."""
    async with open_engine(1):
        return await time_checkpoint(tasks, each)


@attrs.frozen
class Case:
    work: str
    form: str
    run: Callable[[int], Any]


CASES = (
    Case("data at hand", "operation, compiled", partial(time_at_hand, Conn.receive_some)),
    Case("data at hand", "async def", partial(time_at_hand, receive_by_coroutine)),
    Case("a wait", "by hand, in Python", partial(time_wait, TakeByHand)),
    Case("a wait", "async def", partial(time_wait, take_by_coroutine)),
    Case("checkpoint()", "async def", partial(time_checkpoint, TASKS)),
    Case("a turn of Trio's loop", "", partial(time_checkpoint, 1)),
    Case(
        "a turn of Trio's loop", "with an engine's instrument", partial(time_bridged_checkpoint, 1)
    ),
)


def awaitable_table(rounds: int, each: int) -> Table:
    """Both forms, beside what a turn of Trio's loop costs anyway."""
    times: list[list[float]] = [[] for _ in CASES]
    for _ in range(rounds):
        for case, found in zip(CASES, times, strict=True):
            found.append(trio.run(case.run, each))
    table = Table(title="Awaitables: CPU in ns", title_justify="left")
    for head in ("work", "form"):
        table.add_column(head)
    table.add_column("ns", justify="right")
    for case, found in zip(CASES, times, strict=True):
        table.add_row(case.work, case.form, f"{median(found):,.0f}")
    return table
