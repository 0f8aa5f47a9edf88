"""Trace: where messages spend their time, for the viewers of Chrome's trace format.

Facts. What a trace must know is known to three: the reactor (when epoll told of bytes,
when they were in the ring), the drain (whom it woke for them), and Trio (when that task
ran). Asking each of them for each message whether there is a trace would cost everybody.

Decision. The first keeps such times anyway. The second is replaced while there is a
trace (`Bridge.trace_with`), and the third has instruments. What they say is put together
in `trace.pyx`.

Trade-off. A message that a task finds without waiting, because it came while an earlier
one was handled, is not seen: nobody was woken for it.
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

    It sees every engine of the run. There may be one at a time. While there is none it
    costs nothing; one that is on adds nearly half to what an echo costs.

    Args:
      limit: how many messages are kept at most, the latest; 1 or more. Each takes some
          330 bytes.

    A message is what a task, or a callback of `Listener.serve_events`, was woken for.
    What comes while its task is not waiting to receive is not traced. The stages of a
    message, each beginning where the one before ends:

    * *kernel to ring*: from the return of the ``epoll_wait`` that told of it to the end of
      the receive. It is not known of the first message that is seen of a connection.
    * *ring to drain*: until Trio's thread looked for what has come. If more bytes came
      meanwhile, from when the last of them were there.
    * *drain to handler*: until the task ran, or the callback was called.
    * *handler to socket*: until the kernel had taken what was first sent on the same
      connection; that of several sends in one step of the task which was last. If
      nothing was sent there before the task waited again, or ended, or before the
      callback returned, the stage is called *handler*, and ends with that. So it is where
      the connection was closed in the step that sent: its counts are gone.

    Raises `TypeError` or `ValueError` for ``limit``, and `RuntimeError` if it is entered
    where the run is traced already, or entered or left in another thread than the one where
    it is on. `to_json` and `save` may be called from any thread.
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
        """What was traced so far, as an object of `Chrome's trace event format
        <https://chromium.googlesource.com/catapult/+/HEAD/tracing/README.md>`__.

        Each message is an asynchronous event with one below it for each stage. Times are
        microseconds of the engine's clock, ``time.monotonic()`` as a rule.
        """
        events = [event for it in enumerate(tuple(self._messages)) for event in _events(*it)]
        return {"traceEvents": events, "displayTimeUnit": "ns"}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_json` to a file, for https://ui.perfetto.dev or ``chrome://tracing``.
        Takes half a second or so for 10 000 messages: do not do it while the server is
        busy."""
        text = json.dumps(self.to_json())  # whole, in C; dump would go piece by piece
        with open(path, "w") as file:
            file.write(text)


def _events(number: int, message: _Times) -> Iterator[dict[str, Any]]:
    conn, size, *times, answered = message
    same = {"cat": "message", "id": number, "pid": os.getpid(), "tid": 0}

    def event(phase: str, name: str, time: int, **more: object) -> dict[str, Any]:
        return {"name": name, "ph": phase, "ts": time / 1000, **same, **more}

    whole = f"connection {conn}"
    yield event("b", whole, times[0], args={"bytes": size, "answered": answered})
    for name, begin, end in zip(STAGES, times, times[1:], strict=False):
        if name != STAGES[0] or begin != end:
            shown = UNANSWERED if name == STAGES[-1] and not answered else name
            yield event("b", shown, begin)
            yield event("e", shown, end)
    yield event("e", whole, times[-1])
