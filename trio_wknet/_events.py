"""Event mode's Python half: callbacks that are async run as tasks, one at a time for
a connection. Which callback is due is the native half's to say (`events.pyx`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from trio_wknet._native.events import EventServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_wknet._conn import Conn
    from trio_wknet._listener import Listener


class EventServing(EventServer):
    """One `Listener.serve_events`."""

    def __init__(
        self,
        listener: Listener,
        nursery: trio.Nursery,
        on_data: Callable[[Conn], Awaitable[object] | None],
        on_connect: Callable[[Conn], Awaitable[object] | None] | None,
        on_close: Callable[[Conn, str], Awaitable[object] | None] | None,
        on_error: Callable[[Conn, Exception], object] | None,
    ) -> None:
        self._told = trio.Event()
        self._listener = listener
        self._on_error = on_error
        super().__init__(
            listener, nursery, on_data, on_connect, on_close, on_error, lambda: self._told.set()
        )

    async def serve(self) -> None:
        """Until a callback's exception ends it, or the listener has stopped accepting
        and every connection is gone."""
        self._start()
        try:
            while self._failure is None:
                if not self.accepting:
                    if not self._listener._draining:
                        raise trio.ClosedResourceError("this listener was closed")
                    if not self.open:
                        return
                await self._told.wait()
                self._told = trio.Event()
        finally:
            self._stop()
            if self._failure is not None:
                raise self._failure

    async def _run(self, conn: Conn, awaitable: Awaitable[object]) -> None:
        """The task of on_connect and on_data: goes on while the connection has news."""
        following: Awaitable[object] | None = awaitable
        try:
            with trio.CancelScope() as scope:
                self._set_running(conn, scope)
                while following is not None:
                    await following
                    following = self._next(conn)
            if scope.cancelled_caught:
                self._ended(conn)
        except Exception as exc:
            if not self._settled(conn, exc):
                raise
        except BaseException:
            conn._drop()
            self._ended(conn)
            raise
        finally:
            self._set_running(conn, None)

    async def _run_last(self, conn: Conn, awaitable: Awaitable[object]) -> None:
        """The task of on_close."""
        try:
            await awaitable
        except Exception as exc:
            if self._on_error is None:
                raise
            self._on_error(conn, exc)
        finally:
            self._count_down()
