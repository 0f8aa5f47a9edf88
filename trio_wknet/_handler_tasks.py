"""Whether a task is a handler of a listener, or was started by one.

A handler that waits for its listener's drain waits for itself. Recording which tasks
are handlers would cost something for each connection. But a handler's first frame is
a known function (`Listener.serve`, `serve_events` and `trio.serve_listeners` have
one each), and its locals say what it serves. So the frames below the caller are searched,
and those of the tasks that it descends from. The application's own loop around `accept`
cannot be recognised.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


def frames_below() -> Iterator[FrameType]:
    """The frames of the running task, innermost first, and of those it descends from."""
    task = trio.lowlevel.current_task()
    yield from _running_frames(task)
    nursery = task.parent_nursery
    while nursery is not None:
        yield from _suspended_frames(nursery.parent_task)
        nursery = nursery.parent_task.parent_nursery


def _running_frames(task: trio.lowlevel.Task) -> Iterator[FrameType]:
    first = getattr(task.coro, "cr_frame", None)
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        if frame is first:
            return
        frame = frame.f_back


def _suspended_frames(task: trio.lowlevel.Task) -> Iterator[FrameType]:
    awaiting: object = task.coro
    while awaiting is not None:
        frame: FrameType | None = getattr(awaiting, "cr_frame", None)
        if frame is not None:
            yield frame
        awaiting = getattr(awaiting, "cr_await", None)


def trios_stream(frame: FrameType) -> object:
    """What a handler of `trio.serve_listeners` serves, without TLS around it; None if the
    frame is not one's first."""
    if (frame.f_globals.get("__name__"), frame.f_code.co_name) != (
        "trio._highlevel_serve_listeners",
        "_run_handler",
    ):
        return None
    stream: object = frame.f_locals.get("stream")
    while isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    return stream
