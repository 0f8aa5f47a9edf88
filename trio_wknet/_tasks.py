"""Which task is behind a connection, and what it waits for.

Nothing is recorded while tasks run: it is found when somebody asks. The handler of a connection
is known by its first frame, as a drain knows it (_handler_tasks.py), and a connection knows the
tasks that are parked in it.
"""

from __future__ import annotations

import gc
import traceback
from typing import TYPE_CHECKING, Any, Literal

import attrs
import trio

from trio_wknet._conn import Conn
from trio_wknet._events import Serving
from trio_wknet._handler_tasks import frames_below, trios_stream
from trio_wknet._listener import Listener
from trio_wknet._native.trio.listen import Accept
from trio_wknet._native.trio.tally import conns_with_objects
from trio_wknet._tls import TLSStream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from trio_wknet._native.trio.core import Core

# The functions that a handler's task begins with, each with a local variable `conn`.
_HANDLERS = {
    function.__code__ for function in (Listener._run_handler, Serving._run, Serving._run_last)
}
WaitsFor = Literal["receive", "send", "accept", "nothing", "other"]


@attrs.frozen(kw_only=True, eq=False)
class ConnTask:
    """A task that serves a connection, or waits in it, as it was when `Engine.tasks` looked."""

    conn: Conn
    """The connection."""
    task: trio.lowlevel.Task
    """The task."""
    name: str
    """The task's name: by default the handler's."""
    waits_for: WaitsFor
    """``"receive"``, ``"send"``: it waits in a call of this connection. ``"accept"``: for a
    connection of some listener. ``"nothing"``: it is the task that asked. ``"other"``: all else,
    such as another connection, a nursery, or its turn to run; `stack` says what."""
    since: float
    """Seconds since bytes last moved on the connection. It has waited for the peer for no longer;
    nothing records when a wait begins, because that would cost something for each message."""

    def stack(self) -> traceback.StackSummary:
        """Return where the task is now, from its first function to the one that waits. Not a
        checkpoint.

        ``"".join(stack().format())`` is its traceback. Waiting in this library ends at the
        function that called it.

        Returns:
          A `traceback.StackSummary`, empty if the task has ended.

        Raises:
          RuntimeError: outside of a Trio run.
        """
        if self.task is trio.lowlevel.current_task():
            frames = _running_frames()
        else:
            frames = [frame for frame, _ in _chain(self.task)]
        return traceback.StackSummary.extract((frame, frame.f_lineno) for frame in frames)


def tasks_of(core: Core) -> list[ConnTask]:
    """Those of an engine, sorted by the connections' ids."""
    waiting: dict[tuple[Conn, trio.lowlevel.Task], WaitsFor] = {}
    for conn in conns_with_objects(core):
        receiver, sender = conn._parked_tasks
        if receiver is not None:
            waiting[conn, receiver] = "receive"
        if sender is not None:
            waiting[conn, sender] = "send"
    found = [
        _describe(conn, task, waiting.pop((conn, task), None))
        for task in _all_tasks()
        for conn in _served_by(task)
        if conn._core is core and conn._open
    ]
    found += [_describe(conn, task, what) for (conn, task), what in waiting.items()]
    return sorted(found, key=lambda one: one.conn.id or 0)


def _describe(conn: Conn, task: trio.lowlevel.Task, waits_for: WaitsFor | None) -> ConnTask:
    if waits_for is None:
        waits_for = _other_wait(task)
    return ConnTask(
        conn=conn,
        task=task,
        name=task.name,
        waits_for=waits_for,
        since=conn.statistics().idle_time,
    )


def _other_wait(task: trio.lowlevel.Task) -> WaitsFor:
    if task is trio.lowlevel.current_task():
        return "nothing"
    return "accept" if isinstance(_awaited(task), Accept) else "other"


def _all_tasks() -> Iterator[trio.lowlevel.Task]:
    """Every task of the run."""
    root = trio.lowlevel.current_root_task()
    unseen = [] if root is None else [root]
    while unseen:
        task = unseen.pop()
        yield task
        for nursery in task.child_nurseries:
            unseen.extend(nursery.child_tasks)


def _served_by(task: trio.lowlevel.Task) -> Iterator[Conn]:
    """The connections whose handler a task is: at most one, but for handlers that call another
    one's."""
    if task is trio.lowlevel.current_task():
        frames = _running_frames()
    else:
        frames = [frame for frame, _ in _chain(task)]
    for frame in frames:
        served: object
        if frame.f_code in _HANDLERS:
            served = frame.f_locals.get("conn")
            served = getattr(served, "conn", served)  # a channel, or a WebSocket
        else:
            served = trios_stream(frame)
        while isinstance(served, TLSStream):
            served = served.transport_stream
        if isinstance(served, Conn):
            yield served


# --- stacks ---------------------------------------------------------------------------


def _running_frames() -> list[FrameType]:
    """Of the task that runs, the outermost first."""
    first = trio.lowlevel.current_task()
    frames = []
    for frame in frames_below():
        frames.append(frame)
        if frame is getattr(first.coro, "cr_frame", None):
            break
    frames.reverse()
    return [frame for frame in frames if frame.f_globals.get("__name__") != __name__]


def _chain(task: trio.lowlevel.Task) -> Iterator[tuple[FrameType, object]]:
    """The frames of a task that waits, the outermost first, each with what it awaits. As Trio's
    `Task.iter_await_frames`, which does not say what is at the end."""
    awaiting: Any = task.coro
    while awaiting is not None:
        frame, following = _step(awaiting)
        if frame is not None:
            yield frame, following
        awaiting = following


def _step(awaiting: Any) -> tuple[FrameType | None, Any]:
    for kind, follows in (("cr", "cr_await"), ("gi", "gi_yieldfrom")):
        if hasattr(awaiting, f"{kind}_frame"):
            return getattr(awaiting, f"{kind}_frame"), getattr(awaiting, follows)
    if type(awaiting).__name__ in ("async_generator_asend", "async_generator_athrow"):
        for referent in gc.get_referents(awaiting):  # it has no attribute for it
            if hasattr(referent, "ag_frame"):
                return referent.ag_frame, referent.ag_await
    return None, None


def _awaited(task: trio.lowlevel.Task) -> object:
    """What is at the end."""
    return next(reversed([following for _, following in _chain(task)]), None)
