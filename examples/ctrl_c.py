"""Ends an example at Ctrl-C, by cancelling it.

Without this `KeyboardInterrupt` comes out of `trio.run`, as ever in Trio: wrapped in
an exception group, because `Listener.serve` has a nursery.
"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from typing import Any

import trio


def run_until_ctrl_c(main: Callable[..., Awaitable[object]], *args: Any) -> None:
    """Like `trio.run`, but returns at Ctrl-C."""

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(cancel_on_ctrl_c, nursery.cancel_scope)
            await main(*args)
            nursery.cancel_scope.cancel()

    trio.run(run)


async def cancel_on_ctrl_c(scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()
