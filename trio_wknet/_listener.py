"""Listener: open, accept, serve, drain."""

from __future__ import annotations

import os
import socket
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

import trio

from trio_wknet._admission import native_arguments
from trio_wknet._conn import Conn
from trio_wknet._events import EventServing, FrameServing, Serving
from trio_wknet._framing import require_framing
from trio_wknet._handler_errors import is_of_the_end, run_handler
from trio_wknet._handler_tasks import frames_below, trios_stream
from trio_wknet._native.trio.admission import NativeAdmission
from trio_wknet._native.trio.latch import Latch
from trio_wknet._native.trio.listen import NativeListener
from trio_wknet._native.trio.proxy_gate import ProxyGate
from trio_wknet._native.trio.tally import tally
from trio_wknet._options import Limits, check_grace
from trio_wknet._shortage import ShortageLog
from trio_wknet._sockets.facade import SocketFacade, borrowed
from trio_wknet._statistics import ListenerStatistics, ended_by, refused_by, traffic
from trio_wknet._trio_bases import ListenerBase
from trio_wknet._usage_errors import GivenWhenOpened, require_callable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import FrameType

    from trio_wknet._admission import Admission
    from trio_wknet._engine import Engine
    from trio_wknet._frame_channel import FrameChannel
    from trio_wknet._framing import Framing
    from trio_wknet._handler_errors import OnError
    from trio_wknet._native.trio.core import Core
    from trio_wknet._proxy.trust import Trusted
    from trio_wknet._sockets.address import SocketAddress

# The most connections that `serve` accepts at once: handlers started by one wake of its task.
_BATCH = 64


class Listener(NativeListener, ListenerBase):  # type: ignore[misc]  # final, see _trio_bases.py
    """Accepts connections on one or several addresses. `open_wknet_listener`,
    `Engine.listen` and `Engine.adopt` open one.

    It is a `trio.abc.Listener`: `trio.serve_listeners` takes it. Its own `serve`
    closes connections gracefully, and can be drained.

    Its methods belong to the Trio run and the thread in which its engine was opened: they
    raise `RuntimeError` in any other thread, and once the engine is closed.
    """

    _path: str | None = None  # the socket file to remove at the end; set once it listens
    _draining = False

    admission = GivenWhenOpened()
    idle_timeout = GivenWhenOpened()
    proxy_protocol = GivenWhenOpened()
    reuse_port = GivenWhenOpened()
    backlog = GivenWhenOpened()
    options = GivenWhenOpened()
    limits = GivenWhenOpened()

    def __init__(self, *_: NoReturn, **__: NoReturn) -> None:
        raise TypeError(
            "a Listener cannot be constructed; write 'async with open_wknet_listener(address) "
            "as listener:' or 'await engine.listen(address)'"
        )

    @classmethod
    def _open_on(cls, *args: Any, **options: Any) -> Listener:
        listener = cls.__new__(cls)
        listener._start(*args, **options)
        return listener

    def _start(
        self,
        core: Core,
        sockets: list[socket.socket],
        limits: Limits,
        *,
        timeout: tuple[int, int],
        spread: bool,
        path: str | None,
        trusted: Trusted | None,
        admission: Admission | None,
    ) -> None:
        self._family = int(sockets[0].family)
        self._addresses: list[SocketAddress] = [sock.getsockname() for sock in sockets]
        self._path_id = _file_id(path)
        self._handlers = 0
        self._serving = 0
        self._served = Latch(core)
        self._scopes: set[trio.CancelScope] = set()  # what `drain` cancels after its grace
        self._cut: int | None = None  # how many connections that has cut off
        self._events: Serving | None = None
        self._shortages = ShortageLog("has stopped accepting for a while", "accepts again")
        for sock in sockets:
            sock.setblocking(False)
        descriptors = [(sock, sock.fileno(), int(sock.family)) for sock in sockets]
        gate = None if trusted is None else ProxyGate(trusted, limits.proxy_header_time)
        native = None
        if admission is not None:
            native = NativeAdmission(*native_arguments(admission, gated=gate is not None))
        self._listen(core, descriptors, limits, spread, timeout, gate, native)
        for sock in sockets:
            sock.detach()
        self._path = path

    def __repr__(self) -> str:
        state = "" if self._open else " closed"
        return f"<trio_wknet.Listener {self.address!r}{state}>"

    def __del__(self) -> None:
        # More than good manners: the engine's list of what is open holds no reference, so an
        # object that is gone must not be left in it.
        try:
            if self._open:
                warnings.warn(f"unclosed listener {self!r}", ResourceWarning, stacklevel=1)
        finally:  # warnings may be errors
            self._wake_nobody()
            self._close_all()

    # --- serving -------------------------------------------------------------

    async def serve(
        self,
        handler: Callable[[Conn], Awaitable[object]],
        *,
        on_error: Callable[[Conn, Exception], object] | None = None,
        handler_nursery: trio.Nursery | None = None,
        task_status: trio.TaskStatus[Listener] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept connections, and run ``handler(conn)`` in a task for each. A checkpoint.

        Like `trio.serve_listeners`: an exception in a handler propagates out of this call
        (in an exception group) and cancels the other handlers, unless there is an
        ``on_error``, or ``handler_nursery`` handles it; the listener is closed at the end. Unlike
        `trio.serve_listeners`, it closes a connection gracefully (`Conn.aclose`) when its
        handler returns. A connection whose handler raised or was cancelled is closed at
        once.

        With an idle timeout (`open_wknet_listener`, `Conn.idle_timeout`), the handler
        of a connection that was idle for that time is cancelled, and the
        connection is closed gracefully, with ``close_reason`` ``"idle"``, or ``"read idle"`` or
        ``"write idle"`` by an `Idle`; serving goes on. If a handler shields itself from that
        cancellation, the connection is closed under it after the same time again. If only the
        handler sets an idle timeout, and the listener has none, there is no cancel scope around
        the handler: the connection is closed under it, and the `trio.ClosedResourceError` that
        this raises in the handler does not end serving.

        It returns after `drain`. Otherwise it ends only by an exception or by cancellation.

        Args:
          handler: an async function of one argument, the `Conn`.
          on_error: a plain function, called as ``on_error(conn, exc)`` with what a handler raises,
              an `Exception` or a group of some. The connection is closed gracefully afterwards,
              and serving goes on, unless ``on_error`` raises. Cancellation is not for it, nor is
              what is no `Exception`, such as `KeyboardInterrupt`; of a group with
              `trio.Cancelled` it gets the rest. None, the default: an exception ends serving.
          handler_nursery: where the handlers run; by default in a nursery of this call.
          task_status: for ``nursery.start``; it is started with the listener.

        Raises:
          trio.ClosedResourceError: if the listener is closed, before or during the call.
          trio.BusyResourceError: if another task is accepting on this listener.
          TypeError: if the handler or ``on_error`` is not callable. If the handler is not
              an async function, the task of the first connection raises TypeError.
          RuntimeError: if called from another thread, or if the engine is closed.
        """
        require_callable(handler=handler)
        _require_optional(on_error=on_error)
        self._ensure_usable()
        self._require_not_served()
        self._serving += 1
        try:
            async with trio.open_nursery() as nursery:
                self._add_scope(nursery.cancel_scope)
                task_status.started(self)
                await self._accept_all(handler, on_error, nursery, handler_nursery)
        finally:
            await self._close_and_wait()
            self._serving -= 1
            self._check_served()

    async def _accept_all(
        self,
        handler: Callable[[Conn], Awaitable[object]],
        on_error: OnError | None,
        nursery: trio.Nursery,
        handler_nursery: trio.Nursery | None,
    ) -> None:
        run = self._run_handler if handler_nursery is None else self._run_in_scope
        start_soon = (handler_nursery or nursery).start_soon
        while True:
            try:
                conns = await self._accept_batch(_BATCH)
            except trio.ClosedResourceError:
                if self._draining:
                    return
                raise
            try:
                while conns:
                    start_soon(run, handler, conns[0], on_error, name=handler)
                    self._handlers += 1
                    conns.pop(0)
            finally:
                for conn in conns:  # the nursery is closed: no handler will get them
                    conn._drop()

    async def _run_in_scope(
        self, handler: Callable[[Conn], Awaitable[object]], conn: Conn, on_error: OnError | None
    ) -> None:
        """In the caller's nursery, whose own scope `drain` must not cancel."""
        with trio.CancelScope() as scope:
            self._add_scope(scope)
            try:
                await self._run_handler(handler, conn, on_error)
            finally:
                self._scopes.discard(scope)

    async def _run_handler(
        self, handler: Callable[[Conn], Awaitable[object]], conn: Conn, on_error: OnError | None
    ) -> None:
        try:
            if conn.idle_timeout is None:
                await run_handler(handler, conn, conn, on_error)
                conn._close()
            else:
                with conn._handler_scope() as scope:
                    await run_handler(handler, conn, conn, on_error)
                conn._close((scope.cancelled_caught and conn._idle_reason) or "closed")
        except Exception as exc:
            if not is_of_the_end(conn, exc):
                raise
        finally:
            conn._drop()  # does nothing if it was closed above or by the handler
            self._handlers -= 1
            self._check_served()

    async def serve_events(
        self,
        on_data: Callable[[Conn], Awaitable[object] | None],
        *,
        on_connect: Callable[[Conn], Awaitable[object] | None] | None = None,
        on_close: Callable[[Conn, str], Awaitable[object] | None] | None = None,
        on_error: Callable[[Conn, Exception], object] | None = None,
        task_status: trio.TaskStatus[Listener] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept connections, and serve them by callbacks: for many connections that
        are quiet most of the time. A quiet one has no task, no object and no buffer.
        A checkpoint.

        For each connection the callbacks run in this order, one at a time:

        * ``on_connect(conn)``, once;
        * ``on_data(conn)``, whenever there are unread bytes that the last call had
          not seen;
        * ``on_close(conn, reason)``, once, when the connection is closed, with its
          ``close_reason``: by the peer, after ``on_data`` has seen every byte; by
          this program; or by an error.

        A callback is a plain function or an async function. A plain function runs in
        Trio's I/O step, outside of any task, and must not block. An async function runs
        as a task in a nursery of this call; when it has returned, the connection has no
        task again. ``conn`` may be kept after the callback. Keep an application's state
        of a connection in ``conn.context``.

        Each connection has its own context variables, as in a handler's task: what a
        callback sets, later callbacks of the same connection see, and those of others
        do not. They start as copies of the context of this call.

        An exception in a callback closes its connection and propagates out of this call
        (in an exception group), unless there is an ``on_error``.

        When the peer has finished sending, and ``on_data`` has seen all its bytes, the
        connection is closed gracefully: what ``send_nowait`` left is still sent.
        A callback that leaves ``limits.inbound`` bytes unread is not called again until it
        takes some; the reactor stops reading, and TCP holds the peer back.

        It returns after `drain`, once every connection is gone. Otherwise it ends only by
        an exception or by cancellation, which closes the connections at once, with
        ``on_close``. The listener is closed at the end.

        Args:
          on_data: takes what it can use (``receive_nowait``), and may leave the
              rest: it is called again once more has arrived; or, if it asked for more
              than there was (``receive_exactly_nowait``, ``receive_until_nowait``), once
              that may have arrived, or the end before it.
          on_connect: called before ``on_data``; by default nothing is.
          on_close: called at the end; by default nothing is.
          on_error: a plain function, called as ``on_error(conn, exc)`` with the exception
              of a callback. The connection is closed gracefully afterwards, and serving
              goes on, unless ``on_error`` raises. By default an exception ends serving.
          task_status: for ``nursery.start``; it is started with the listener.

        Raises:
          trio.ClosedResourceError: if the listener is closed, before or during the call.
          trio.BusyResourceError: if another task is accepting on this listener.
          TypeError: if a callback is not callable.
          RuntimeError: if called from another thread, or if the engine is closed.
        """
        require_callable(on_data=on_data)
        _require_optional(on_connect=on_connect, on_close=on_close, on_error=on_error)
        await self._serve_by_callbacks(
            lambda nursery: EventServing(self, nursery, on_data, on_connect, on_close, on_error),
            task_status,
        )

    async def serve_frames(
        self,
        framing: Framing,
        on_frames: Callable[[FrameChannel, list[bytes]], Awaitable[object] | None],
        *,
        on_connect: Callable[[FrameChannel], Awaitable[object] | None] | None = None,
        on_close: Callable[[FrameChannel, str], Awaitable[object] | None] | None = None,
        on_error: Callable[[FrameChannel, Exception], object] | None = None,
        task_status: trio.TaskStatus[Listener] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Like `serve_events`, but with messages instead of bytes: a callback gets all the
        frames that have come. A checkpoint.

        For each connection the callbacks run in this order, one at a time:

        * ``on_connect(channel)``, once;
        * ``on_frames(channel, frames)``, whenever whole frames have come, with a list of all
          of them, at least one;
        * ``on_close(channel, reason)``, once, when the connection is closed, with the
          ``close_reason`` of `Conn`.

        ``channel`` is the connection's `FrameChannel`, and may be kept after the callback;
        ``channel.conn`` is its `Conn`, and ``channel.conn.context`` is the place for an
        application's state of the connection. The connection stays framed: `FrameChannel.unframe`
        raises `trio.BusyResourceError`.

        A quiet connection has no task, no object and no buffer, and nothing is called for a
        part of a frame. Plain and async functions, context variables, exceptions in callbacks,
        draining, cancellation and idle timeouts follow the rules of `serve_events`. An async
        callback may receive what comes next from the channel itself. Where a receive without
        waiting would raise anything but `trio.WouldBlock` for what the peer did, it raises
        `trio.WouldBlock` here, in a callback or between two: the end is reported when the callback
        has returned.

        When the peer has finished sending behind a whole frame, and ``on_frames`` has had every
        one, the connection is closed gracefully: what ``send_nowait`` left is still sent. Any
        other end is an error of this connection alone. It goes to ``on_error``, after every
        whole frame that came before it, and then the connection is closed gracefully, with or
        without an ``on_error``; serving goes on:

        * `FrameTooLong`, `MalformedFrame`: the next frame was refused at its header. The
          reason is ``"frame too long"`` or ``"malformed frame"``.
        * `IncompleteRead`: the peer finished sending inside a frame.
        * `trio.BrokenResourceError`: the connection broke. Its cause is the `OSError`.

        A frame larger than ``limits.inbound`` is moved out of the connection's buffer in parts;
        memory for it grows with the bytes that have come. While an async callback runs, up to
        ``limits.inbound`` bytes of further frames wait, and then TCP holds the peer back.

        Args:
          framing: how the streams are divided: `LengthPrefixed`, `Delimited`, `FixedLength`
              or `VarintPrefixed`.
          on_frames: called with the channel and a list of `bytes`.
          on_connect: called before ``on_frames``; by default nothing is.
          on_close: called at the end; by default nothing is.
          on_error: a plain function, called as ``on_error(channel, exc)`` with an error of the
              connection, as above, or with the exception of a callback. The connection is
              closed gracefully afterwards, and serving goes on, unless ``on_error`` raises. By
              default an exception of a callback ends serving.
          task_status: for ``nursery.start``; it is started with the listener.

        Raises:
          trio.ClosedResourceError: if the listener is closed, before or during the call.
          trio.BusyResourceError: if another task is accepting on this listener.
          TypeError: if ``framing`` is not one, or a callback is not callable.
          RuntimeError: if called from another thread, or if the engine is closed.
        """
        require_framing(framing)
        require_callable(on_frames=on_frames)
        _require_optional(on_connect=on_connect, on_close=on_close, on_error=on_error)
        await self._serve_by_callbacks(
            lambda nursery: FrameServing(
                self, nursery, framing, on_frames, on_connect, on_close, on_error
            ),
            task_status,
        )

    async def _serve_by_callbacks(
        self, make: Callable[[trio.Nursery], Serving], task_status: trio.TaskStatus[Listener]
    ) -> None:
        self._ensure_usable()
        self._require_not_served()
        self._require_free()
        self._serving += 1
        try:
            async with trio.open_nursery() as nursery:
                self._add_scope(nursery.cancel_scope)
                self._events = serving = make(nursery)
                task_status.started(self)
                await serving.serve()
        finally:
            try:
                if self._events is not None:
                    # Does nothing, unless Ctrl-C came between a callback and what follows it.
                    self._events.stop(running=True)
            finally:
                self._events = None
                await self._close_and_wait()
                self._serving -= 1
                self._check_served()

    def _require_not_served(self) -> None:
        # A serving task need not be waiting in accept at this moment, so that is no test.
        if self._serving:
            raise trio.BusyResourceError("another task is serving this listener")

    def _check_served(self) -> None:
        if not self._draining or self._serving or self._handlers:
            return
        if self._gave_all_back():
            self._served.set()

    async def drain(self, *, grace: float | None = None) -> int:
        """Stop accepting, and wait until the accepted connections have been served. A
        checkpoint.

        Connections that the kernel had already queued are still accepted and
        handled; a unix socket's file is removed at once. Handlers that are at an idle point
        (`Conn.idle_point`) do not wait for another request. What it waits for depends on
        how the listener is served:

        * by `serve`: for the handlers; then `serve` returns.
        * by `serve_events` or `serve_frames`: until every connection is gone; then that
          returns.
        * by `accept`, in a loop of the application or by `trio.serve_listeners`, with
          or without TLS in between: until every connection that `accept` returned is
          closed. `accept` waits for that as well, and then raises
          `trio.ClosedResourceError`, which ends `trio.serve_listeners`.

        If no task is serving it, the listener is closed, with the connections that were
        not accepted.

        With ``grace``, what is left after that time is cut off:

        * `serve` cancels the handlers, in its own nursery or in ``handler_nursery``, and
          closes their connections at once; then it returns. Cleanup that they shield is waited
          for.
        * `serve_events` and `serve_frames` close the connections at once, with ``on_close``,
          and cancel async callbacks; then they return. Connections that are quiet are not
          closed before.
        * `accept` raises `trio.ClosedResourceError` at once, with which
          `trio.serve_listeners` cancels its handlers; then the connections that it returned
          are closed at once, if they are open still.

        Connections that were not accepted yet are closed. It may be called again meanwhile: the
        grace that ends first counts. If the call is cancelled, draining goes on without it,
        and without its grace.

        Args:
          grace: seconds, from 0 to 86400. None, the default: it waits without bound.

        Returns:
          How many connections were cut off, by this call or another one; 0 without any
          ``grace``.

        Raises:
          TypeError, ValueError: if ``grace`` is invalid.
          RuntimeError: if called from a handler of this listener, or from a task that a
              handler has started: it would wait for itself. Call it from another task. (A
              handler that the application's own loop around `accept` has started cannot
              be recognised: there it waits forever.) Also if called from another thread,
              or if the engine is closed.
        """
        check_grace(grace)
        self._ensure_usable()
        if any(map(self._is_handlers, frames_below())):
            raise RuntimeError(
                "drain() called from a handler that it waits for: the handler would wait for "
                "itself; call it from a task that no handler has started"
            )
        self._draining = True
        self._begin_draining(self._soon(self._accept_is_over))
        if self._open and self._serving:
            self._stop()
        elif self._open and self._is_accepted_from():
            self._drain_by_accept(self._check_served)
        else:
            await self._close_and_wait()
        self._check_served()
        await self._wait_served(grace)
        await self._close_and_wait()
        return self._cut or 0

    async def _wait_served(self, grace: float | None) -> None:
        if grace is None:
            await self._served.wait()
            return
        with trio.move_on_after(grace) as scope:
            await self._served.wait()
        if scope.cancelled_caught:
            await self._cut_off()
            await self._served.wait()

    async def _cut_off(self) -> None:
        """The grace is over: end what is still being served."""
        if self._cut is None:
            in_events = 0 if self._events is None else self._events.open
            self._cut = self._handlers + self._handed_out() + in_events
        for scope in list(self._scopes):
            scope.cancel()
        if self._is_accepted_from():
            await self._close_and_wait()
            # In the first of two turns `accept` raises, in whichever order tasks run, and with
            # it the nursery of `trio.serve_listeners` cancels its handlers. They see
            # that, and not a connection that is closed under them.
            for _ in range(2):
                await trio.lowlevel.cancel_shielded_checkpoint()
            self._drop_handed_out()

    def _add_scope(self, scope: trio.CancelScope) -> None:
        self._scopes.add(scope)
        if self._cut is not None:
            scope.cancel()

    def _is_handlers(self, frame: FrameType) -> bool:
        """Whether a frame is the first of a handler that a drain would wait for."""
        if frame.f_code in _HANDLERS:
            of = frame.f_locals["self"]
            return getattr(of, "_listener", of) is self
        stream = trios_stream(frame)
        return isinstance(stream, Conn) and self._gave(stream)

    def _soon(self, function: Callable[[], None]) -> Callable[[], None]:
        """A function that may be called in any thread, and calls `function` in Trio's."""
        token = trio.lowlevel.current_trio_token()

        def call() -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(function, idempotent=True)

        return call

    def _accept_is_over(self) -> None:
        self._wake_acceptor()
        self._check_served()

    async def aclose(self) -> None:
        """Stop listening, and close connections that were not accepted. A checkpoint.

        Accepted connections stay open. Afterwards the address can be bound again.
        Idempotent.

        Raises:
          RuntimeError: if called from another thread.
        """
        self._ensure_thread()
        await self._close_and_wait()
        await trio.lowlevel.checkpoint()

    async def _close_and_wait(self) -> None:
        try:
            if self._open:
                closed = Latch(self._core)
                self._close_ports(closed.set)
                # The reactors need one turn for it, so this wait is short, and may be shielded.
                await closed.wait(shielded=True)
        finally:
            self._close_all()

    def _close_all(self) -> None:
        self._close()
        self._check_served()

    def _remove_file(self) -> None:
        path, self._path = self._path, None
        # Another process may have put its own socket there since; and in a forked child the
        # socket is still the parent's. Such a file is left alone.
        if path is None or self._core.forked or _file_id(path) != self._path_id:
            return
        with suppress(OSError):
            os.unlink(path)

    # --- facts ---------------------------------------------------------------

    @property
    def address(self) -> SocketAddress:
        """The first address, as `socket.socket.getsockname` returns it: for TCP it
        begins with host and port, with the real port if 0 was asked for."""
        return self._addresses[0]

    @property
    def addresses(self) -> list[SocketAddress]:
        """All addresses that it is bound to, each once."""
        return list(dict.fromkeys(self._addresses))

    @property
    def socket(self) -> SocketFacade:  # type: ignore[override]  # Trio's can be set
        """The first listening socket's names and options."""
        return SocketFacade(
            self._family,
            self._first_descriptor,
            self._is_readable,
            self._close_here,
            self._ensure_usable,
        )

    def _is_readable(self) -> bool:
        self._ensure_thread()
        waiting: int = self._counters()[1]
        return waiting > 0

    def _close_here(self) -> None:
        self._ensure_thread()
        self._close_all()

    def _first_descriptor(self) -> int:
        descriptors = self._fds
        return descriptors[0] if descriptors else -1

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        """Set an option on every listening socket; connections accepted later
        inherit it. Not a checkpoint.

        Args:
          level: such as `socket.SOL_SOCKET`.
          option: such as `socket.SO_RCVBUF`.
          value: an integer, or bytes for an option that is a struct.

        Raises:
          trio.ClosedResourceError: if the listener is closed.
          OSError: if the kernel refuses the option.
          RuntimeError: if called from another thread.
        """
        self._ensure_usable()
        if not self._open:
            raise trio.ClosedResourceError("this listener was already closed")
        for descriptor in self._fds:
            with borrowed(descriptor, self._family) as sock:
                sock.setsockopt(level, option, value)

    def _end_shortage(self) -> None:
        self._shortages.close(self)

    def _update_shortage(self) -> None:
        _, _, starved, _, shortages = self._counters()
        self._shortages.update(self, starved > 0, shortages, self._shortage())

    @property
    def engine(self) -> Engine:
        """The `Engine` that it belongs to."""
        return self._core.engine

    def statistics(self) -> ListenerStatistics:
        """Return a snapshot of the counters. Not a checkpoint. It looks at each open connection
        of the engine, which takes up to 0.2 microseconds each.

        Returns:
          A `ListenerStatistics`.

        Raises:
          RuntimeError: if called from another thread.
        """
        self._ensure_thread()
        totals = self._totals
        counted = totals.open > 0 and not (self._core.closed or self._core.forked)
        if counted:
            tally(self._core)
        return self._as_of_tally(counted)

    def _as_of_tally(self, counted: bool) -> ListenerStatistics:
        """`counted`: what is open was counted just now; else it does not count."""
        totals = self._totals
        accepted, waiting, starved, _, shortages = self._counters()
        counts = self._refused()
        refused = refused_by(counts)
        served = self._events.open if self._events is not None else 0
        return ListenerStatistics(
            accepted=accepted,
            waiting=waiting,
            refused=sum(refused.values()),
            refused_by=refused,
            ended_by=ended_by(counts),
            starved=starved > 0,
            shortages=shortages,
            handlers=self._handlers + served,
            open=totals.open,
            closed_by=totals.closed_by(),
            traffic=traffic(totals.sums(counted)),
            handshakes_done=totals.handshakes,
            handshake_seconds=totals.handshake_seconds,
            failed_handshakes=totals.failed_handshakes,
        )


trio.SocketListener.register(Listener)  # as Conn with trio.SocketStream


# The functions whose frame is a handler's first, see _handler_tasks.py.
_HANDLERS = {
    function.__code__ for function in (Listener._run_handler, Serving._run, Serving._run_last)
}


def _require_optional(**callbacks: object) -> None:
    """Refuse callbacks that are not callable; None is no callback."""
    require_callable(**{name: fn for name, fn in callbacks.items() if fn is not None})


def _file_id(path: str | None) -> tuple[int, int] | None:
    """What distinguishes a file from a later one with the same name."""
    if path is None:
        return None
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
