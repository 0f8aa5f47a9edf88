"""Listening for TLS."""

from __future__ import annotations

import ssl
from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from trio_wknet._handler_errors import run_handler
from trio_wknet._listener import Listener, _require_optional
from trio_wknet._options import check_some_seconds
from trio_wknet._over_listener import OverListener, Started
from trio_wknet._tls import TLSStream, check_context, over_conn
from trio_wknet._tls_handshakes import Handshakes
from trio_wknet._trio_bases import TLSListenerBase
from trio_wknet._usage_errors import require_callable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_wknet._conn import Conn
    from trio_wknet._handler_errors import OnError
    from trio_wknet._statistics import ListenerStatistics


class TLSListener(OverListener, TLSListenerBase):  # type: ignore[misc]  # final, see _trio_bases.py
    """Accepts connections with TLS. `open_wknet_listener` and `Engine.listen` open one, for an
    address that begins with ``tls://``; over any other `Listener`, as of a unix socket, it is
    made by hand. It passes for a `trio.SSLListener`, which `trio.serve_listeners` takes.

    Its methods belong to the Trio run and the thread in which its engine was opened.

    Args:
      listener: the `Listener` of its connections, which is closed along with it.
      ssl_context: a server's `ssl.SSLContext`.
      handshake_time: seconds that a handshake may take. Above 0, up to 86400; default 10.
      https_compatible: end streams as HTTPS does, see `TLSStream`. Default False.

    Raises:
      TypeError, ValueError: if an argument is invalid.
    """

    def __init__(
        self,
        listener: Listener,
        ssl_context: ssl.SSLContext,
        *,
        handshake_time: float = 10.0,
        https_compatible: bool = False,
    ) -> None:
        if not isinstance(listener, Listener):
            raise TypeError(f"listener must be a Listener, not {listener!r}")
        check_context(ssl_context, "ssl_context", server_side=True)
        check_some_seconds("handshake_time", handshake_time)
        self.listener: Listener = listener
        self.ssl_context = ssl_context
        self._https_compatible = https_compatible
        self._handshakes = Handshakes(
            listener._totals, ssl_context, handshake_time, https_compatible
        )

    def __repr__(self) -> str:
        return f"<trio_wknet.TLSListener over {self.listener!r}>"

    @property
    def transport_listener(self) -> Listener:  # type: ignore[override]  # Trio's can be set
        """The `Listener` of its connections, by the name that it has in `trio.SSLListener`."""
        return self.listener

    async def serve(
        self,
        handler: Callable[[TLSStream], Awaitable[object]],
        *,
        on_error: Callable[[TLSStream, Exception], object] | None = None,
        handler_nursery: trio.Nursery | None = None,
        task_status: trio.TaskStatus[TLSListener] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept connections, and run ``handler(stream)`` in a task for each whose handshake is
        done. A checkpoint.

        In all else like `Listener.serve`. When the handler returns, the stream is closed
        properly (`TLSStream.aclose`). If it raises, is cancelled, or is idle for too long,
        the peer gets no goodbye: it is to see a stream that was cut off.

        A handshake that fails, or is not done within ``handshake_time``, ends its connection,
        and nothing else. It is counted in ``statistics().failed_handshakes``, and logged as
        ``trio_wknet.tls``. At most 256 handshakes are under way at a time. If more
        are to begin, the oldest ones that have taken more than a twentieth of the time are
        ended.

        Args:
          handler: an async function of one argument, the `TLSStream`.
          on_error: a plain function, called as ``on_error(stream, exc)`` with what a handler
              raises, as in `Listener.serve`. The connection is closed afterwards, without a
              goodbye. None, the default: an exception ends serving.
          handler_nursery: where the handlers run; by default in a nursery of this call.
          task_status: for ``nursery.start``; it is started with this listener.

        Raises:
          trio.ClosedResourceError: if the listener is closed, before or during the call.
          trio.BusyResourceError: if another task is accepting on this listener.
          TypeError: if the handler or ``on_error`` is not callable.
          RuntimeError: if called from another thread, or if the engine is closed.
        """
        require_callable(handler=handler)
        _require_optional(on_error=on_error)
        try:
            await self.listener.serve(
                partial(self._run_handler, handler, on_error),
                handler_nursery=handler_nursery,
                task_status=Started(task_status, self),
            )
        finally:
            if not self.listener._open:  # else another task serves it, or will
                self._handshakes.no_more()

    async def _run_handler(
        self,
        handler: Callable[[TLSStream], Awaitable[object]],
        on_error: OnError | None,
        conn: Conn,
    ) -> None:
        stream = await self._handshakes.perform(conn)
        if stream is not None:
            if await run_handler(handler, stream, conn, on_error):
                await stream.aclose()
            else:
                conn._drop()

    async def accept(self) -> TLSStream:
        """Wait for a connection, and return the stream over it, like `Listener.accept`. A
        checkpoint.

        Its handshake is not done, so that a slow peer does not hold up others: the first
        receive or send performs it, in the peer's time, as with `trio.SSLListener`. To bound
        it, await `TLSStream.do_handshake` within `trio.fail_after`, or use `serve`.

        Returns:
          A `TLSStream`.

        Raises:
          trio.ClosedResourceError: if the listener is closed, before or during the call.
          trio.BusyResourceError: if another task is accepting on this listener.
          RuntimeError: if called from another thread, or if the engine is closed.
        """
        conn = await self.listener.accept()
        try:
            return self._over(conn)
        except BaseException:
            conn._drop()
            raise

    def _over(self, conn: Conn) -> TLSStream:
        return over_conn(
            conn, self.ssl_context, server_side=True, https_compatible=self._https_compatible
        )

    def statistics(self) -> ListenerStatistics:
        """Return a snapshot of the listener's counters. Not a checkpoint.

        Returns:
          A `ListenerStatistics`.

        Raises:
          RuntimeError: if called from another thread.
        """
        below = self.listener.statistics()
        under_way = self._handshakes.under_way
        return attrs.evolve(
            below,
            handlers=below.handlers - under_way,
            handshakes=under_way,
        )


# For type checkers see _trio_bases.py.
trio.SSLListener.register(TLSListener)
