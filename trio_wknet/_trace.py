"""Trace: where messages spend their time, for the viewers of Chrome's trace format.

Facts. What a trace needs is known in three places: the reactor knows when epoll reported
bytes and when they were in the ring, the drain knows which task it woke for them, and Trio
knows when that task ran. If each asked for each message whether there is a trace, every
program would pay for it.

Decision. The reactor keeps such times anyway. The drain is replaced while there is a
trace (`Bridge.trace_with`), and Trio has instruments. `trace.pyx` puts their times
together. So without a trace nothing is paid.

Trade-off. A message that a task finds without waiting, because it came while an earlier
one was handled, is not traced: no task was woken for it.
"""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import trio

from trio_wknet._bridge import trace_run
from trio_wknet._native.trio.trace import Tracer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from trio_wknet._native.trio.trace import _Times

STAGES = ("kernel to ring", "ring to drain", "drain to handler", "handler to socket")
UNANSWERED = "handler"


class Trace(Tracer, trio.abc.Instrument):
    """Where messages spend their time, from the kernel to the answer.

    A trace is on for a part of a Trio run, or for all of it::

        with trio_wknet.Trace() as trace:
            await trio.sleep(10)
        trace.save("trace.json")

        trace = trio_wknet.Trace()
        trio.run(main, instruments=[trace])

    It traces every engine of the run. A run has at most one trace at a time. Without one,
    tracing costs nothing; a trace adds nearly half to the cost of an echo.

    A message is what a task, or a callback of `Listener.serve_events` or
    `Listener.serve_frames`, was woken for: on a framed connection any number of frames. What
    comes while its task is not waiting to receive is not traced. These are the stages
    of a message, each beginning where the one before ends:

    * *kernel to ring*: from the return of the ``epoll_wait`` that reported it to the end of
      the receive. It is unknown for the first traced message of a connection.
    * *ring to drain*: until Trio's thread drained it. If more bytes came
      meanwhile, it begins when the last of them were in the ring.
    * *drain to handler*: until the task ran, or the callback was called.
    * *handler to socket*: until the kernel had taken the first data that was sent on the
      same connection; with several sends in one step of the task, the last of them. If
      nothing was sent before the task waited again or ended, or before the
      callback returned, the stage is called *handler*, and ends there. It is also called
      that if the connection was closed in the step that sent, because its counters are gone
      then.

    Beside its ``bytes``, which were in the buffer when it was drained, a message on a framed
    connection has ``frames``, the number of frames that were taken in its time, and
    ``frame_bytes``, as they were delivered. In event mode, 0 frames are a part of one that is
    larger than ``limits.inbound``. They are unknown if the connection was closed meanwhile.

    `to_json` and `save` may be called from any thread.

    Args:
      limit: the number of messages to keep, 1 or more; by default 10 000. Older ones are
          dropped. Each takes about 330 bytes.

    Raises:
      TypeError, ValueError: if ``limit`` is invalid.
      RuntimeError: on entering, if the run is already traced; on entering or leaving, if
          the trace is on in another thread.
    """

    def __init__(self, limit: int = 10_000) -> None:
        if not isinstance(limit, int) or isinstance(limit, bool):
            raise TypeError(f"limit must be an int, not {limit!r}")
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit!r}")
        self._messages: deque[_Times] = deque(maxlen=limit)
        self._thread: int | None = None  # where it is on
        super().__init__(self._messages.append)

    def __enter__(self) -> Trace:
        self._check_thread()
        trace_run(self)
        trio.lowlevel.add_instrument(self)
        self._thread = threading.get_ident()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._check_thread()
        trio.lowlevel.remove_instrument(self)
        trace_run(None)
        self._thread = None
        self._forget()

    def _check_thread(self) -> None:
        if self._thread not in (None, threading.get_ident()):
            raise RuntimeError(
                "this trace is on in the Trio run of another thread: "
                "use trio.from_thread.run_sync to call it from here"
            )

    def before_run(self) -> None:
        trace_run(self)
        self._thread = threading.get_ident()

    def after_run(self) -> None:
        self._thread = None
        self._forget()

    def to_json(self) -> dict[str, Any]:
        """Return what was traced so far, in `Chrome's trace event format
        <https://chromium.googlesource.com/catapult/+/HEAD/tracing/README.md>`__. Not a
        checkpoint.

        Each message is an asynchronous event with one below it for each stage. Times are
        microseconds of the engine's clock, normally ``time.monotonic()``.

        Returns:
          An object that ``json.dumps`` takes.
        """
        events = [event for it in enumerate(tuple(self._messages)) for event in _events(*it)]
        return {"traceEvents": events, "displayTimeUnit": "ns"}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_json` to a file, for https://ui.perfetto.dev or ``chrome://tracing``.
        Not a checkpoint: it blocks for about half a second for 10 000 messages, so do not
        call it while the server is busy.

        Args:
          path: the file to write.

        Raises:
          OSError: if the file cannot be written.
        """
        text = json.dumps(self.to_json())  # whole, in C; dump would go piece by piece
        with open(path, "w") as file:
            file.write(text)


def _events(number: int, message: _Times) -> Iterator[dict[str, Any]]:
    conn, size = message[:2]
    times = message[2:7]
    answered, frames, frame_bytes = message[7:]
    same = {"cat": "message", "id": number, "pid": os.getpid(), "tid": 0}

    def event(phase: str, name: str, time: int, **more: object) -> dict[str, Any]:
        return {"name": name, "ph": phase, "ts": time / 1000, **same, **more}

    whole = f"connection {conn}"
    args: dict[str, int | None] = {"bytes": size, "answered": answered}
    if frames is not None:
        args |= {"frames": frames, "frame_bytes": frame_bytes}
    yield event("b", whole, times[0], args=args)
    for name, begin, end in zip(STAGES, times, times[1:], strict=False):
        if name != STAGES[0] or begin != end:
            shown = UNANSWERED if name == STAGES[-1] and not answered else name
            yield event("b", shown, begin)
            yield event("e", shown, end)
    yield event("e", whole, times[-1])
