"""The bridge between a core and a Trio run: what wakes Trio, and what drains.

Facts. A reactor thread must not take the GIL (it might wait a switch interval,
5 ms, for it), so it cannot call `TrioToken.run_sync_soon`; it can write to an
eventfd that Trio waits on. A task in ``wait_readable`` costs a step, an epoll_ctl
and a whole turn of Trio's loop between the event and the handlers.

Decision. Completions are drained in an instrument's ``after_io_wait``, which Trio
calls when it processes its own events: the tasks woken there run in the
same turn. The eventfd is written only if Trio sleeps, which ``before_io_wait`` notes;
under load it is silent. A system task, the pump, only keeps the eventfd armed.
In-loop the descriptor is the reactor's own epoll. The hooks do two more
things, since they are called anyway: sends that tasks deferred (`send_batch.pyx`), and
spinning for a moment before sleeping (`spin.pyx`).

Trade-off. One or two calls for each turn of Trio's loop while an engine is open,
also in turns that have nothing to do with it.

The end. When the main task is done Trio cancels system tasks, the pump among them;
then it runs the ``finally`` blocks of asynchronous generators, which may still
use streams; then it ends. An engine that was not closed lives until then: a thread
takes the pump's place, and `Instrument.after_run` closes the engine.

Trio logs and removes an instrument that raises; these hooks never do.
"""

from __future__ import annotations

import os
import select
import threading
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import trio

from trio_wknet._native.trio.bridge import Hooks
from trio_wknet._native.trio.trace import TracedHooks, keep_exact_times

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_wknet._native.trio.core import Core
    from trio_wknet._native.trio.trace import Tracer

_PARKED = object()


class _Run:
    """What the engines of a run have in common: their tracer, if there is one."""

    def __init__(self) -> None:
        self.bridges: set[Bridge] = set()
        self.tracer: Tracer | None = None


_run: trio.lowlevel.RunVar[_Run] = trio.lowlevel.RunVar("trio_wknet bridges")


def _this_run() -> _Run:
    try:
        return _run.get()
    except LookupError:
        _run.set(_Run())
        return _run.get()


def trace_run(tracer: Tracer | None) -> None:
    """Trace the engines of this run, those to come too; None: no longer."""
    run = _this_run()
    if tracer is not None and run.tracer is not None:
        raise RuntimeError("this run is traced already")
    run.tracer = tracer
    for bridge in run.bridges:
        bridge.trace_with(tracer)


class Bridge:
    """The bridge of one engine. ``on_run_end`` is called if it is open when the run ends."""

    def __init__(self, core: Core, on_run_end: Callable[[], None]) -> None:
        self._core = core
        self._on_run_end = on_run_end
        self._open = True
        self._last_watch: _LastWatch | None = None
        self._run = _this_run()
        self._run_end = _RunEnd(on_run_end)
        self._pump_task = self._spawn_pump()
        self._hooks = self._make_hooks(self._run.tracer)
        try:
            trio.lowlevel.add_instrument(self._hooks)
            trio.lowlevel.add_instrument(self._run_end)
            self._run.bridges.add(self)
        except BaseException:
            self.close()
            raise

    def _make_hooks(self, tracer: Tracer | None) -> trio.abc.Instrument:
        core, pump = self._core, self._pump_task
        if tracer is None:
            return Hooks(core, pump)
        return TracedHooks(core, pump, tracer)

    def trace_with(self, tracer: Tracer | None) -> None:
        """Let a tracer see the completions as they are drained; None: no tracer."""
        trio.lowlevel.remove_instrument(self._hooks)
        self._hooks = self._make_hooks(tracer)
        trio.lowlevel.add_instrument(self._hooks)
        keep_exact_times(self._core, tracer is not None)

    def _spawn_pump(self) -> Any:
        try:
            return trio.lowlevel.spawn_system_task(self._run_pump, name="trio_wknet bridge")
        except RuntimeError:  # the main task is done, and system tasks are gone
            self._last_watch = _LastWatch(self._core)
            return SimpleNamespace(custom_sleep_data=None)

    async def _run_pump(self) -> None:
        if not self._goes_on():
            return  # closed before this task's first step
        try:
            await self._pump()
        except trio.ClosedResourceError:
            pass  # by `close`
        except BaseException:
            # The run ends: its main task is done, or this has failed, which Trio turns
            # into an internal error. Tasks that are cancelled then may still wait for the
            # engine, even shielded.
            if self._goes_on():
                self._watch_to_the_end()
            raise

    def _goes_on(self) -> bool:
        """In a forked child the pump must not wait for the descriptor: it is the parent's."""
        return self._open and not self._core.forked

    def _watch_to_the_end(self) -> None:
        try:
            self._last_watch = _LastWatch(self._core)
        except (OSError, RuntimeError, MemoryError):  # no descriptor, no thread left for it
            self._on_run_end()

    async def _pump(self) -> None:
        task = trio.lowlevel.current_task()
        core = self._core
        descriptor = core.fileno()
        while self._goes_on():
            if core.unfinished():
                # In-loop, with work left over: let other tasks run, not wait.
                await trio.lowlevel.checkpoint()
            else:
                task.custom_sleep_data = _PARKED
                await self._wait(descriptor)
                if self._open:
                    core.still()

    async def _wait(self, descriptor: int) -> None:
        if not self._core.virtual:
            await trio.lowlevel.wait_readable(descriptor)
            return
        with trio.CancelScope() as scope:
            self._core.wait_with(scope)
            await trio.lowlevel.wait_readable(descriptor)

    def close(self) -> None:
        """Stop draining, and wake the pump out of the descriptor. Idempotent."""
        if not self._open:
            return
        self._open = False
        self._run.bridges.discard(self)
        if self._last_watch is not None:
            self._last_watch.stop()
        # A run that crashed does not exist any more.
        with suppress(RuntimeError):
            self._remove(self._hooks)
            self._remove(self._run_end)
            trio.lowlevel.notify_closing(self._core.fileno())

    @staticmethod
    def _remove(instrument: trio.abc.Instrument) -> None:
        with suppress(KeyError):  # not added yet
            trio.lowlevel.remove_instrument(instrument)


class _RunEnd(trio.abc.Instrument):
    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback

    def after_run(self) -> None:
        self._callback()


class _LastWatch:
    """A thread that wakes Trio for completions when no task can wait for them any
    more. The hooks drain as always."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._token = trio.lowlevel.current_trio_token()
        self._callback = threading.Semaphore(0)
        self._stopped = False
        self._bell = os.eventfd(0)
        self._thread = threading.Thread(target=self._watch, name="wknet-last-watch", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            os.close(self._bell)
            raise

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._core.fileno(), select.POLLIN)
        poll.register(self._bell, select.POLLIN)
        while poll.poll() and not self._stopped:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._tell)
            self._callback.acquire()

    def _tell(self) -> None:
        if not self._stopped:
            self._core.still()
            self._callback.release()

    def stop(self) -> None:
        self._stopped = True
        os.eventfd_write(self._bell, 1)
        self._callback.release()
        self._thread.join()
        os.close(self._bell)
