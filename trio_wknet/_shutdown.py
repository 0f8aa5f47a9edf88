"""Ending a program on a signal: first gracefully, then at once."""

from __future__ import annotations

import signal
import threading
from functools import partial
from typing import TYPE_CHECKING, NoReturn

import trio

from trio_wknet._listener import Listener
from trio_wknet._options import check_grace
from trio_wknet._over_listener import OverListener
from trio_wknet._usage_errors import for_async_with

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Shutdown:
    """The value of `drain_on_signal`'s block."""

    signal: signal.Signals | None = None
    """The first signal that has come; None: none has."""

    _nursery: trio.Nursery
    _grace: float | None
    _listeners: list[Listener | OverListener]
    _begun: trio.Event

    def __init__(self, *_: NoReturn, **__: NoReturn) -> None:
        raise TypeError(
            "a Shutdown cannot be constructed; write 'async with drain_on_signal(listener) as "
            "shutdown:'"
        )

    @classmethod
    def _of(cls, nursery: trio.Nursery, grace: float | None) -> Shutdown:
        shutdown = cls.__new__(cls)
        shutdown._nursery = nursery
        shutdown._grace = grace
        shutdown._listeners = []
        shutdown._begun = trio.Event()
        return shutdown

    def add(self, *listeners: Listener | OverListener) -> None:
        """Drain these, too: when the signal comes, or now, if it has come. Not a checkpoint.

        Args:
          listeners: each a `Listener`, `TLSListener` or `WebSocketListener`.

        Raises:
          TypeError: if one of them is something else.
          RuntimeError: if the signal has come, and the block is left.
        """
        _check_listeners(listeners)
        self._listeners.extend(listeners)
        if self.signal is not None:
            self._drain(*listeners)

    async def wait(self) -> None:
        """Wait until the first signal has come. A checkpoint. It is what other software takes
        for its own end, such as hypercorn's ``shutdown_trigger``.

        Raises:
          RuntimeError: if called outside of Trio.
        """
        await self._begun.wait()

    def _drain(self, *listeners: Listener | OverListener) -> None:
        for listener in listeners:
            self._nursery.start_soon(partial(listener.drain, grace=self._grace))

    async def _watch(self, scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
        """Until the second signal. The one after that has its usual effect again."""
        with scope, trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            self.signal = signal.Signals(await anext(signals))
            self._begun.set()
            self._drain(*self._listeners)
            await anext(signals)
            self._nursery.cancel_scope.cancel()


@for_async_with
async def drain_on_signal(
    *listeners: Listener | OverListener, grace: float | None = None
) -> AsyncIterator[Shutdown]:
    """Drain listeners when the program is asked to end. In an ``async with`` block::

        async with (
            open_wknet_listener("tcp://localhost:5100") as listener,
            drain_on_signal(listener, grace=10),
        ):
            await listener.serve(handler)

    The first SIGTERM or SIGINT (Ctrl-C) in the block drains all of the listeners, at the same
    time, as `Listener.drain` does: serving them ends, and with it the block, as a rule. The
    second one cancels the block, which then ends without an exception. A third one has its
    usual effect.

    At its end the block waits for the drains that have begun. Signals have the effects that
    they had before, then. Without a signal, it does nothing. Entering and leaving are
    checkpoints.

    Leaving a listener's own block may take up to ``Limits.linger_time`` more, for peers that
    are slow to take their last answers. For the second signal to end that, too, put this block
    around the listener's, and add the listener to its value: ``shutdown.add(listener)``.

    Args:
      listeners: each a `Listener`, `TLSListener` or `WebSocketListener`.
      grace: seconds after which `Listener.drain` cuts connections off, from 0 to 86400; None,
          the default: it waits without bound, or until the second signal.

    Returns:
      A context manager, whose value is a `Shutdown`.

    Raises:
      TypeError, ValueError: if an argument is invalid.
      RuntimeError: if it is not entered in the main thread, which alone gets signals.
    """
    _check_listeners(listeners)
    check_grace(grace)
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("drain_on_signal needs the main thread: signals come to no other")
    failure: BaseException | None = None
    watch = trio.CancelScope()
    try:
        async with trio.open_nursery() as nursery:
            shutdown = Shutdown._of(nursery, grace)
            shutdown.add(*listeners)
            await nursery.start(shutdown._watch, watch)
            try:
                yield shutdown
            except BaseException as exc:
                failure = exc
                raise
            watch.cancel()
    except BaseException as raised:
        if getattr(raised, "exceptions", None) != (failure,):
            raise
    else:
        return
    # Alone, as if there were no nursery in between.
    assert failure is not None
    raise failure


def _check_listeners(listeners: tuple[object, ...]) -> None:
    for listener in listeners:
        if not isinstance(listener, (Listener, OverListener)):
            raise TypeError(f"listeners must be listeners of trio_wknet, not {listener!r}")
