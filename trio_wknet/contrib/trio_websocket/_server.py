"""Servers of trio-websocket's interface."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import trio

from trio_wknet._drop_in.functions import open_tcp_listeners
from trio_wknet._tls import TLSStream
from trio_wknet._websocket.extra import opening
from trio_wknet._websocket.http import Response, tokens_of
from trio_wknet._websocket.options import with_subprotocols
from trio_wknet.contrib.trio_websocket._client import (
    CONN_TIMEOUT,
    MAX_MESSAGE_SIZE,
    MESSAGE_QUEUE_SIZE,
    OWN,
    RECEIVE_BYTES,
    options_for,
)
from trio_wknet.contrib.trio_websocket._connection import WebSocketConnection
from trio_wknet.contrib.trio_websocket._values import (
    CloseReason,
    ConnectionClosed,
    Endpoint,
    as_bytes,
    as_text,
    endpoint_of,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Sequence


class SecureListener(trio.abc.Listener[TLSStream]):
    """A listener whose streams are TLS."""

    def __init__(
        self, transport_listener: trio.SocketListener, ssl_context: ssl.SSLContext
    ) -> None:
        self.transport_listener = transport_listener
        self._context = ssl_context

    async def accept(self) -> TLSStream:
        stream = await self.transport_listener.accept()
        return TLSStream(stream, self._context, server_side=True, https_compatible=True)

    async def aclose(self) -> None:
        await self.transport_listener.aclose()


class WebSocketRequest:
    """A client's request, which the handler accepts or rejects."""

    def __init__(self, *_: NoReturn, **__: NoReturn) -> None:
        raise TypeError("a WebSocketRequest cannot be constructed; a handler gets one")

    # An `opening.Proposal`, whose module needs h11.
    _proposal: Any
    _nursery: trio.Nursery
    _connection: WebSocketConnection | None
    _is_answered: bool

    @classmethod
    def _of(cls, proposal: Any, nursery: trio.Nursery) -> WebSocketRequest:
        request = cls.__new__(cls)
        request._proposal = proposal
        request._nursery = nursery
        request._connection = None
        request._is_answered = False
        return request

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The request's headers, names in lower case, but for the handshake's own."""
        return list(as_bytes(self._proposal.request.headers, ("host", *OWN)))

    @property
    def path(self) -> str:
        """The path and the query."""
        target: str = self._proposal.request.target
        return target

    @property
    def proposed_subprotocols(self) -> tuple[str, ...]:
        """The subprotocols that the client proposes."""
        return tuple(tokens_of(self._proposal.request.headers, "sec-websocket-protocol"))

    @property
    def local(self) -> Endpoint | str:
        """This end: an `Endpoint`, or the stream's ``repr()`` if it is not of TCP."""
        return endpoint_of(self._proposal.stream, local=True)

    @property
    def remote(self) -> Endpoint | str:
        """The client's end, likewise."""
        return endpoint_of(self._proposal.stream, local=False)

    def _answer(self) -> None:
        if self._is_answered:
            raise RuntimeError("this request was answered already")
        self._is_answered = True

    async def accept(
        self,
        *,
        subprotocol: str | None = None,
        extra_headers: list[tuple[bytes, bytes]] | None = None,
    ) -> WebSocketConnection:
        """Accept the request. A checkpoint.

        Args:
          subprotocol: one of those that the client proposes; by default none.
          extra_headers: more headers of the response, pairs of bytes; by default none.

        Returns:
          A `WebSocketConnection`.

        Raises:
          ConnectionClosed: if the client has gone.
          ValueError: if the client did not propose the subprotocol, or a header cannot be sent.
          RuntimeError: if the request was answered already.
        """
        if subprotocol is not None and subprotocol not in self.proposed_subprotocols:
            raise ValueError(f"subprotocol {subprotocol!r} was not proposed by the client")
        proposal = self._proposal
        chosen = () if subprotocol is None else (subprotocol,)
        proposal.side.options = with_subprotocols(proposal.side.options, chosen)
        self._answer()
        await trio.lowlevel.checkpoint()
        websocket = await proposal.accept(as_text(extra_headers))
        if websocket is None:
            raise ConnectionClosed(CloseReason(1006, None))
        headers = as_bytes(proposal.request.headers, ("host", *OWN))
        self._connection = WebSocketConnection._over(
            websocket, self._nursery, headers, client=False
        )
        return self._connection

    async def reject(
        self,
        status_code: int,
        *,
        extra_headers: list[tuple[bytes, bytes]] | None = None,
        body: bytes | None = None,
    ) -> None:
        """Reject the request with an HTTP response. A checkpoint.

        Args:
          status_code: from 200 to 599.
          extra_headers: more headers of the response, pairs of bytes; by default none.
          body: the response's body; by default none.

        Raises:
          TypeError, ValueError: if an argument is invalid.
          RuntimeError: if the request was answered already.
        """
        response = Response(status_code, body or b"", as_text(extra_headers))
        self._answer()
        await trio.lowlevel.checkpoint()
        await self._proposal.refuse(response)

    async def _aclose(self) -> None:
        """At the handler's end."""
        if self._connection is not None:
            await self._connection.aclose()
        else:
            with suppress(trio.BrokenResourceError):  # the client has gone
                await self._proposal.stream.aclose()


async def _receive_request(
    nursery: trio.Nursery, stream: trio.abc.Stream, max_message_size: int
) -> WebSocketRequest | None:
    """A proper request; None if there was none, which was answered as far as possible."""
    proposal = await opening().receive_proposal(stream, options_for(max_message_size))
    return None if proposal is None else WebSocketRequest._of(proposal, nursery)


async def wrap_server_stream(
    nursery: trio.Nursery,
    stream: trio.abc.Stream,
    message_queue_size: int = MESSAGE_QUEUE_SIZE,
    max_message_size: int = MAX_MESSAGE_SIZE,
    receive_buffer_size: int | None = RECEIVE_BYTES,
) -> WebSocketRequest:
    """Receive a request from a stream, as a server. A checkpoint.

    Args:
      nursery: for the task that sees to the connection.
      stream: the stream. If this raises, it is the caller's to close.
      message_queue_size: ignored.
      max_message_size: bytes of a received message; default 1 MiB.
      receive_buffer_size: ignored.

    Returns:
      A `WebSocketRequest`.

    Raises:
      ConnectionClosed: if no proper request came. It was answered as far as possible.
    """
    request = await _receive_request(nursery, stream, max_message_size)
    if request is None:
        raise ConnectionClosed(CloseReason(1006, None))
    return request


class WebSocketServer:
    """A server on listeners that exist already.

    Args:
      handler: an async function of one argument, the `WebSocketRequest`.
      listeners: one or more listeners.
      handler_nursery: where the handlers run; by default in a nursery of the server's.
      message_queue_size: ignored.
      max_message_size: bytes of a received message; default 1 MiB.
      receive_buffer_size: ignored.
      connect_timeout: seconds that a client's request may take; default 60.
      disconnect_timeout: seconds that closing may take after the handler has returned;
          default 60.

    Raises:
      ValueError: if there are no listeners.
    """

    def __init__(
        self,
        handler: Callable[[WebSocketRequest], Awaitable[None]],
        listeners: Sequence[trio.abc.Listener[Any]],
        *,
        handler_nursery: trio.Nursery | None = None,
        message_queue_size: int = MESSAGE_QUEUE_SIZE,
        max_message_size: int = MAX_MESSAGE_SIZE,
        receive_buffer_size: int | None = RECEIVE_BYTES,
        connect_timeout: float = CONN_TIMEOUT,
        disconnect_timeout: float = CONN_TIMEOUT,
    ) -> None:
        if len(listeners) == 0:
            raise ValueError("Listeners must contain at least one item.")
        self._handler = handler
        self._listeners = list(listeners)
        self._handler_nursery = handler_nursery
        self._max_message_size = max_message_size
        self._connect_timeout = connect_timeout
        self._disconnect_timeout = disconnect_timeout

    @property
    def port(self) -> int:
        """The port, if there is one listener, and it is of TCP.

        Raises:
          RuntimeError: if there are several, or it has no port.
        """
        if len(self._listeners) > 1:
            raise RuntimeError("Cannot get port because this server has more than 1 listener.")
        listener = self.listeners[0]
        if isinstance(listener, str):
            raise RuntimeError(f"This socket does not have a port: {listener!r}")
        return listener.port

    @property
    def listeners(self) -> list[Endpoint | str]:
        """For each listener an `Endpoint`, or its ``repr()`` if it is not of TCP."""
        return list(map(_endpoint, self._listeners))

    async def run(
        self, *, task_status: trio.TaskStatus[WebSocketServer] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        """Serve, until it is cancelled. A checkpoint.

        Args:
          task_status: for ``nursery.start``; it is started with this server.

        Raises:
          BaseExceptionGroup: with what a handler raises, if there is no ``handler_nursery``.
        """
        async with trio.open_nursery() as nursery:
            serve = partial(
                trio.serve_listeners,
                self._handle_connection,
                self._listeners,
                handler_nursery=self._handler_nursery,
            )
            await nursery.start(serve)
            task_status.started(self)
            await trio.sleep_forever()
        raise AssertionError  # for type checkers

    async def _handle_connection(self, stream: trio.abc.Stream) -> None:
        async with trio.open_nursery() as nursery:
            request = None
            with trio.move_on_after(self._connect_timeout):
                request = await _receive_request(nursery, stream, self._max_message_size)
            if request is None:
                await trio.aclose_forcefully(stream)
                return
            try:
                await self._handler(request)
            finally:
                with trio.move_on_after(self._disconnect_timeout):
                    await request._aclose()
                nursery.cancel_scope.cancel()


def _endpoint(listener: Any) -> Endpoint | str:
    is_ssl = isinstance(listener, (SecureListener, trio.SSLListener))
    transport = listener.transport_listener if is_ssl else listener
    if isinstance(transport, trio.SocketListener):
        name = transport.socket.getsockname()
        if isinstance(name, tuple):
            return Endpoint(name[0], name[1], is_ssl)
    return repr(listener)


async def serve_websocket(
    handler: Callable[[WebSocketRequest], Awaitable[None]],
    host: str | bytes | None,
    port: int,
    ssl_context: ssl.SSLContext | None,
    *,
    handler_nursery: trio.Nursery | None = None,
    message_queue_size: int = MESSAGE_QUEUE_SIZE,
    max_message_size: int = MAX_MESSAGE_SIZE,
    receive_buffer_size: int | None = RECEIVE_BYTES,
    connect_timeout: float = CONN_TIMEOUT,
    disconnect_timeout: float = CONN_TIMEOUT,
    task_status: trio.TaskStatus[WebSocketServer] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve on TCP, until it is cancelled. A checkpoint.

    Args:
      handler: an async function of one argument, the `WebSocketRequest`. When it returns, its
          connection is closed.
      host: a name or an address; None is all interfaces.
      port: the port. With 0 each address gets a free port of its own.
      ssl_context: for TLS; None for none.
      handler_nursery: where the handlers run; by default in a nursery of this call.
      message_queue_size: ignored.
      max_message_size: bytes of a received message; default 1 MiB.
      receive_buffer_size: ignored.
      connect_timeout: seconds that a client's request may take; default 60.
      disconnect_timeout: seconds that closing may take after the handler has returned;
          default 60.
      task_status: for ``nursery.start``; it is started with the `WebSocketServer`.

    Raises:
      OSError: if the host does not resolve or an address cannot be bound.
      BaseExceptionGroup: with what a handler raises, if there is no ``handler_nursery``.
    """
    listeners: list[Any] = list(await open_tcp_listeners(port, host=host))
    if ssl_context is not None:
        listeners = [SecureListener(listener, ssl_context) for listener in listeners]
    server = WebSocketServer(
        handler,
        listeners,
        handler_nursery=handler_nursery,
        max_message_size=max_message_size,
        connect_timeout=connect_timeout,
        disconnect_timeout=disconnect_timeout,
    )
    await server.run(task_status=task_status)
