"""The bridge between a core and a Trio run: who wakes Trio, and who drains.

Facts. A reactor thread must not take the GIL (it might wait a switch interval,
5 ms, for it), so it cannot call `TrioToken.run_sync_soon`; it can write to an
eventfd that Trio waits on. A task in ``wait_readable`` costs a step, an epoll_ctl
and a whole turn of Trio's loop between the event and the handlers.

Decision. Completions are drained in an instrument's ``after_io_wait``, which Trio
calls right where it processes its own events: the tasks woken there run in the
same turn. The eventfd is rung only if Trio sleeps, which ``before_io_wait`` tells;
under load it is silent. A system task, the pump, keeps the eventfd armed and does
nothing else. In-loop the descriptor is the reactor's own epoll.

Trade-off. One Python call for each turn of Trio's loop while an engine is open,
also in turns that have nothing to do with it.

Trio logs and removes an instrument that raises; these hooks never do.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from trio_wknet._native.bridge import InLoopHooks, ThreadedHooks

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_wknet._native.core import Core

_PARKED = object()


class Bridge:
    """One for each engine."""

    def __init__(self, core: Core, on_run_end: Callable[[], None]) -> None:
        self._core = core
        self._on_run_end = on_run_end
        self._open = True
        pump = trio.lowlevel.spawn_system_task(self._run_pump, name="trio_wknet bridge")
        hooks = InLoopHooks if core.in_loop else ThreadedHooks
        self._hooks = hooks(core, pump)
        trio.lowlevel.add_instrument(self._hooks)

    async def _run_pump(self) -> None:
        task = trio.lowlevel.current_task()
        core = self._core
        if not self._open:
            return  # closed before this task's first step
        descriptor = core.fileno()
        try:
            while self._open:
                if core.unfinished():
                    # In-loop, with work left over: let other tasks run, not wait.
                    await trio.lowlevel.checkpoint()
                else:
                    task.custom_sleep_data = _PARKED
                    await self._wait(descriptor)
                    if self._open:
                        core.still()
        except trio.ClosedResourceError:
            pass  # by `close`
        finally:
            # Cancelled: the run ends, and nobody closed the engine.
            if self._open:
                self._on_run_end()

    async def _wait(self, descriptor: int) -> None:
        if not self._core.virtual:
            await trio.lowlevel.wait_readable(descriptor)
            return
        with trio.CancelScope() as scope:
            self._core.wait_with(scope)
            await trio.lowlevel.wait_readable(descriptor)

    def close(self) -> None:
        """Stop draining, and wake the pump out of the descriptor. Idempotent."""
        if self._open:
            self._open = False
            # A run that crashed is not there any more to be told.
            with suppress(RuntimeError):
                trio.lowlevel.remove_instrument(self._hooks)
                trio.lowlevel.notify_closing(self._core.fileno())
