"""Event mode's Python half: async callbacks run as tasks, one at a time per connection. The
native half decides which callback is due (`events.pyx`, `frame_events.pyx`)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import trio

from trio_wknet._frame_channel import FrameChannel
from trio_wknet._framing import compiled
from trio_wknet._native.trio.events import EventServer
from trio_wknet._native.trio.frame_events import FrameServer
from trio_wknet._native.trio.latch import Latch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_wknet._conn import Conn
    from trio_wknet._framing import Framing
    from trio_wknet._listener import Listener


class Serving(EventServer):
    """What a `Listener.serve_events` and a `Listener.serve_frames` share."""

    _listener: Listener
    _told: Latch

    def _tell(self) -> None:
        self._told.set()

    async def serve(self) -> None:
        """Until the listener has stopped accepting and every connection is gone."""
        self._start()
        try:
            while self.accepting or (self.open and self._listener._draining):
                await self._told.wait()
                self._told = Latch(self._listener._core)
                self.run_on_close()
                self._raise_failure()
            if not self._listener._draining:
                raise trio.ClosedResourceError("this listener was closed")
        finally:
            self.stop(running=False)

    # As in the drain, Ctrl-C waits.

    @trio.lowlevel.enable_ki_protection
    def run_on_close(self) -> None:
        """Call on_close where no drain will."""
        self._run_on_close()

    @trio.lowlevel.enable_ki_protection
    def stop(self, *, running: bool) -> None:
        """Close what is still served; if ``running``, also connections with a running
        callback."""
        self._stop(running)

    async def _run(self, conn: Conn, awaitable: Awaitable[object]) -> None:
        """The task of on_connect or on_data."""
        try:
            with trio.CancelScope() as scope:
                self._set_running(conn, scope)
                await awaitable
        except BaseException as exc:
            if not self._settled(conn, exc):
                raise
        finally:
            self._set_running(conn, None)
        self._callback_done(conn)

    async def _run_last(self, conn: Conn, awaitable: Awaitable[object]) -> None:
        """The task of on_close."""
        try:
            await awaitable
        except Exception as exc:
            if not self._reported(conn, exc):
                raise
        finally:
            self._count_down()

    async def _raise(self, exception: BaseException) -> None:
        """The task of what a plain callback raised."""
        try:
            raise exception
        finally:
            del exception  # or it would keep itself alive


class EventServing(Serving):
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
        self._told = Latch(listener._core)
        self._listener = listener
        super().__init__(listener, nursery, on_data, on_connect, on_close, on_error, self._tell)


class FrameServing(Serving, FrameServer):
    """One `Listener.serve_frames`."""

    def __init__(
        self,
        listener: Listener,
        nursery: trio.Nursery,
        framing: Framing,
        on_frames: Callable[[FrameChannel, list[bytes]], Awaitable[object] | None],
        on_connect: Callable[[FrameChannel], Awaitable[object] | None] | None,
        on_close: Callable[[FrameChannel, str], Awaitable[object] | None] | None,
        on_error: Callable[[FrameChannel, Exception], object] | None,
    ) -> None:
        self._told = Latch(listener._core)
        self._listener = listener
        FrameServer.__init__(
            self,
            listener,
            nursery,
            framing,
            compiled(framing),
            partial(FrameChannel.__new__, FrameChannel),
            on_frames,
            on_connect,
            on_close,
            on_error,
            self._tell,
        )
