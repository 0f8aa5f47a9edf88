"""The handshakes of a listener: bounded in time and in number, counted, and logged.

Peers that do not go on with theirs would take the places of others for all of their time. So
there are two times, as for PROXY headers: after its grace, a short part of the time, a handshake
may go on only while its place is not needed. The one that began first gives way. A burst of
honest clients is over within the grace, or waits for places.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import trio

from trio_wknet._native.trio.failure_log import FailureLog
from trio_wknet._tls import start_tls

if TYPE_CHECKING:
    import ssl

    from trio_wknet._conn import Conn
    from trio_wknet._native.trio.totals import Totals
    from trio_wknet._tls import TLSStream

logger = logging.getLogger("trio_wknet.tls")

MAX_HANDSHAKES = 256  # under way at a time, of a listener
GRACE_PART = 20  # the grace is this fraction of the time for a handshake


class Handshakes:
    """Those of one listener.

    Args:
      totals: the listener's.
      context: the server's.
      seconds: the time for each.
      https_compatible: whether the streams are to end as HTTPS does.
    """

    def __init__(
        self, totals: Totals, context: ssl.SSLContext, seconds: float, https_compatible: bool
    ) -> None:
        self._totals = totals
        self._start = partial(
            start_tls, context=context, server_side=True, https_compatible=https_compatible
        )
        self.seconds = seconds
        self.waiting = 0
        self._began: dict[trio.CancelScope, float] = {}  # in this order
        self._freed = trio.lowlevel.ParkingLot()
        self._log = FailureLog(logger, "%d more handshakes failed, unlogged", logging.INFO)
        self._no_more = False

    @property
    def under_way(self) -> int:
        return self.waiting + len(self._began)

    def no_more(self) -> None:
        """No more connections are accepted."""
        self._no_more = True
        self._check_over()

    def _check_over(self) -> None:
        if self._no_more and self.under_way == 0:
            self._log.write_rest()

    async def perform(self, conn: Conn) -> TLSStream | None:
        """The stream over an accepted connection; None if it failed, and is closed."""
        try:
            return await self._perform(conn)
        finally:
            self._check_over()

    async def _perform(self, conn: Conn) -> TLSStream | None:
        began = False
        try:
            with trio.move_on_after(self.seconds) as scope:
                await self._take_place(scope)
                began = True
                try:
                    return await self._start(conn)
                finally:
                    self._leave(scope)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            why = str(exc.__cause__ or exc)
        else:
            late = trio.current_time() >= scope.deadline
            why = "no handshake in time" if late else "no handshake yet, and others wait"
        if not began:  # else it has counted itself
            self._totals.handshake_given_up()
        level = logging.DEBUG if _is_check(conn) else logging.INFO
        if (before := self._log.take_line(level)) >= 0:
            self._log.write(level, before, "no TLS with %s: %s", _peer(conn), why)
        return None

    async def _take_place(self, scope: trio.CancelScope) -> None:
        self.waiting += 1
        try:
            while len(self._began) >= MAX_HANDSHAKES:
                oldest, began = next(iter(self._began.items()))
                over = began + self.seconds / GRACE_PART
                if trio.current_time() >= over:
                    self._leave(oldest)
                    oldest.cancel()
                else:
                    with trio.move_on_at(over):
                        await self._freed.park()
        finally:
            self.waiting -= 1
        self._began[scope] = trio.current_time()

    def _leave(self, scope: trio.CancelScope) -> None:
        if self._began.pop(scope, None) is not None:
            self._freed.unpark()


def _is_check(conn: Conn) -> bool:
    """Whether a balancer may have looked if a server listens: without a byte, or with a header
    that says that it forwards nobody."""
    header = conn.proxy_header
    if header is not None:
        return header.source is None
    return conn.statistics().bytes_received == 0


def _peer(conn: Conn) -> str:
    try:
        return repr(conn.remote_address)
    except OSError:
        return "a peer that is gone"
