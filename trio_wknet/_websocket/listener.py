"""Listening for WebSockets."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from trio_wknet._errors import ConnectionClosed, is_only
from trio_wknet._handler_errors import report
from trio_wknet._listener import Listener, _require_optional
from trio_wknet._over_listener import OverListener, Started
from trio_wknet._tls_listener import TLSListener
from trio_wknet._usage_errors import call_handler, require_callable
from trio_wknet._websocket.channel import WebSocket
from trio_wknet._websocket.extra import events, opening
from trio_wknet._websocket.options import WebSocketOptions, check_options

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_wknet._conn import Conn
    from trio_wknet._handler_errors import OnError
    from trio_wknet._tls import TLSStream
    from trio_wknet._websocket.opening import OnRequest
    from trio_wknet._websocket.stream import StreamWebSocket

GOING_AWAY = 1001
INTERNAL_ERROR = 1011


class WebSocketListener(OverListener):
    """Accepts WebSockets. `open_wknet_listener` and `Engine.listen` open one, for an address
    that begins with ``ws://`` or ``wss://``, or with ``websocket=WebSocketOptions(...)``.

    Its methods belong to the Trio run and the thread in which its engine was opened.

    Args:
      listener: the `Listener` or `TLSListener` of its connections, which is closed along with
          it.
      options: by default ``WebSocketOptions()``.
      path: the only path that may become a WebSocket; None, the default: any may.

    Raises:
      TypeError, ValueError: if an argument is invalid.
      ImportError: if h11 is not installed (the extra ``websocket``).
    """

    def __init__(
        self,
        listener: Listener | TLSListener,
        *,
        options: WebSocketOptions = WebSocketOptions(),
        path: str | None = None,
    ) -> None:
        if not isinstance(listener, Listener | TLSListener):
            raise TypeError(f"listener must be a Listener or a TLSListener, not {listener!r}")
        check_options(options)
        if path is not None and not isinstance(path, str):
            raise TypeError(f"path must be a string or None, not {path!r}")
        if path is not None and not path.startswith("/"):
            raise ValueError(f"path must begin with '/', not {path!r}")
        self._accept = opening().accept
        self.listener = listener
        self.options = options
        self.path = path

    def __repr__(self) -> str:
        return f"<trio_wknet.WebSocketListener over {self.listener!r}>"

    async def serve(
        self,
        handler: Callable[[Any], Awaitable[object]],
        *,
        on_error: Callable[[Any, Exception], object] | None = None,
        on_request: OnRequest | None = None,
        handler_nursery: trio.Nursery | None = None,
        task_status: trio.TaskStatus[WebSocketListener] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept connections, and run ``handler(websocket)`` in a task for each that becomes a
        WebSocket. A checkpoint.

        In all else like `Listener.serve`. When the handler returns, the WebSocket is closed
        properly, with code 1000; if it raises, with 1011 and at once; if it is cancelled, with
        1001 and at once. `ConnectionClosed` out of a handler whose WebSocket is closed
        does not end serving.

        A handshake that is not complete within ``options.handshake_time`` ends its
        connection. A request that cannot become a WebSocket gets an HTTP error, behind which
        its connection is closed.

        Args:
          handler: an async function of one argument, the `WebSocket`; over TLS, a
              `StreamWebSocket`.
          on_error: a plain function, called as ``on_error(websocket, exc)`` with what a handler
              raises, as in `Listener.serve`. The WebSocket is closed afterwards, with 1011 unless
              it was closed already. None, the default: an exception ends serving.
          on_request: called as ``on_request(request)`` with every `Request`, before it is
              answered; it may be an async function. It returns a `Response`, which is sent
              instead of any other answer, as for a page, a health check, or a user who may
              not connect; or None, with which the handshake goes on. By default None.
          handler_nursery: where the handlers run; by default in a nursery of this call.
          task_status: for ``nursery.start``; it is started with this listener.

        Raises:
          trio.ClosedResourceError: if the listener is closed, before or during the call.
          trio.BusyResourceError: if another task is accepting on this listener.
          TypeError: if the handler, ``on_error`` or ``on_request`` is not callable.
          RuntimeError: if called from another thread, or if the engine is closed.
        """
        require_callable(handler=handler)
        _require_optional(on_error=on_error, on_request=on_request)
        await self.listener.serve(
            partial(self._run_handler, handler, on_error, on_request),
            handler_nursery=handler_nursery,
            task_status=Started(task_status, self),
        )

    async def _run_handler(
        self,
        handler: Callable[[Any], Awaitable[object]],
        on_error: OnError | None,
        on_request: OnRequest | None,
        stream: Conn | TLSStream,
    ) -> None:
        websocket: WebSocket | StreamWebSocket | None = await self._accept(
            stream, self.path, self.options, on_request
        )
        if websocket is None:
            return
        try:
            await call_handler(handler, websocket)
        except trio.Cancelled:
            _end_at_once(websocket, GOING_AWAY)
            raise
        except BaseException as exc:
            if websocket.close_code is not None and is_only(exc, ConnectionClosed):
                return
            try:
                if on_error is None:
                    raise
                report(on_error, websocket, exc)
            finally:
                if websocket.close_code is None:
                    _end_at_once(websocket, INTERNAL_ERROR)
            return
        await websocket.aclose()

    async def serve_messages(
        self,
        on_messages: Callable[[WebSocket, list[str | bytes]], Awaitable[object] | None],
        *,
        on_connect: Callable[[WebSocket], Awaitable[object] | None] | None = None,
        on_close: Callable[[WebSocket, int, str], Awaitable[object] | None] | None = None,
        on_error: Callable[[WebSocket, Exception], object] | None = None,
        on_request: OnRequest | None = None,
        task_status: trio.TaskStatus[WebSocketListener] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve by callbacks instead of tasks, like `Listener.serve_frames`: a callback gets
        all the messages that have come. A checkpoint.

        For each connection that becomes a WebSocket the callbacks run in this order, one at a
        time:

        * ``on_connect(websocket)``, once, when the handshake is done;
        * ``on_messages(websocket, messages)``, whenever whole messages have come, with a list
          of all of them, at least one, each a `str` or `bytes`;
        * ``on_close(websocket, code, reason)``, once, when the connection is closed, with
          ``close_code`` and ``close_reason`` of the `WebSocket`.

        ``websocket`` may be kept after the callback; ``websocket.conn.context`` is the place
        for an application's state of the connection.

        A quiet WebSocket has no task, no object and no buffer, but its `Request`, and its
        state of compression if that was agreed on. Nothing is called for a part of a message,
        or for a ping. A handshake has no task either, unless ``on_request`` is an async
        function. Plain and async functions, context variables, exceptions in callbacks,
        draining, cancellation and idle timeouts follow the rules of `Listener.serve_events`.
        An async callback may receive what comes next from the WebSocket itself. Where a
        receive without waiting would raise `ConnectionClosed` for what the peer did, it raises
        `trio.WouldBlock`: the end is reported when the callback has returned.

        When the peer has closed the WebSocket normally (1000, 1001, 1005), and
        ``on_messages`` has had every message, the connection is closed. Any other end goes to
        ``on_error`` first, as a `ConnectionClosed`, also behind every message: a message that
        the protocol or the options forbid, another code, a connection that broke or was
        closed without a close frame. None of them ends serving, with or without an
        ``on_error``; nor does a `ConnectionClosed` that a callback lets pass, as from
        ``send_nowait`` to a peer that is closing, once its WebSocket is closed.

        A WebSocket that is closed by this program without a close frame, as by an idle
        timeout or at the end of serving, is sent code 1001; one whose callback raised, 1011.

        Handshakes are bounded and refused as in `serve`; no callback but ``on_request`` is
        called for them.

        Args:
          on_messages: called with the WebSocket and a list of its messages.
          on_connect: called before ``on_messages``; by default nothing is.
          on_close: called at the end; by default nothing is.
          on_error: a plain function, called as ``on_error(websocket, exc)`` with an error of
              the connection, as above, or with the exception of a callback. The connection is
              closed afterwards, and serving goes on, unless ``on_error`` raises. By default
              an exception of a callback ends serving.
          on_request: as of `serve`. What it raises ends serving, as there is no WebSocket
              for ``on_error``. By default None.
          task_status: for ``nursery.start``; it is started with this listener.

        Raises:
          trio.ClosedResourceError: if the listener is closed, before or during the call.
          trio.BusyResourceError: if another task is accepting on this listener.
          TypeError: if a callback is not callable.
          RuntimeError: if the listener is one of TLS, for which `serve` is there; if called
              from another thread; or if the engine is closed.
        """
        require_callable(on_messages=on_messages)
        _require_optional(
            on_connect=on_connect, on_close=on_close, on_error=on_error, on_request=on_request
        )
        serving = events().MessageServing
        listener = self.listener
        if isinstance(listener, TLSListener):
            raise RuntimeError(
                "serve_messages() cannot serve TLS, whose bytes no reactor decodes; use serve()"
            )
        await listener._serve_by_callbacks(
            lambda nursery: serving(
                listener,
                nursery,
                self.options,
                self.path,
                on_messages,
                on_connect,
                on_close,
                on_error,
                on_request,
            ),
            Started(task_status, self),
        )


def _end_at_once(websocket: WebSocket | StreamWebSocket, code: int) -> None:
    if isinstance(websocket, WebSocket):
        websocket._say_goodbye(code, b"")
    else:
        websocket._end_at_once(code)
