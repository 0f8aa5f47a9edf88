"""Clients of trio-websocket's interface."""

from __future__ import annotations

import ssl
import sys
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import trio

from trio_wknet import _errors
from trio_wknet._drop_in.functions import open_tcp_stream
from trio_wknet._tls import TLSStream
from trio_wknet._websocket.extra import opening
from trio_wknet._websocket.options import WebSocketOptions
from trio_wknet._websocket.url import URL
from trio_wknet.contrib.trio_websocket._connection import WebSocketConnection
from trio_wknet.contrib.trio_websocket._values import (
    ConnectionRejected,
    ConnectionTimeout,
    DisconnectionTimeout,
    HandshakeError,
    as_bytes,
    as_text,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
    from contextlib import AbstractAsyncContextManager

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

CONN_TIMEOUT = 60  # seconds
MESSAGE_QUEUE_SIZE = 1
MAX_MESSAGE_SIZE = 1 << 20  # bytes
RECEIVE_BYTES = 4096
LONGEST = 86_400.0  # seconds: the caller bounds what takes time
MAX_MESSAGE = 1 << 29  # bytes

# The request's and the response's that the handshake sets by itself.
OWN = frozenset(
    {
        "connection",
        "sec-websocket-accept",
        "sec-websocket-extensions",
        "sec-websocket-key",
        "sec-websocket-protocol",
        "sec-websocket-version",
        "upgrade",
    }
)


def options_for(
    max_message_size: int, subprotocols: Iterable[str] | None = None
) -> WebSocketOptions:
    return WebSocketOptions(
        max_message=min(max_message_size, MAX_MESSAGE),
        max_header=65_536,
        handshake_time=LONGEST,
        close_time=LONGEST,
        subprotocols=tuple(subprotocols or ()),
    )


@asynccontextmanager
async def open_websocket(
    host: str,
    port: int,
    resource: str,
    *,
    use_ssl: bool | ssl.SSLContext,
    subprotocols: Iterable[str] | None = None,
    extra_headers: list[tuple[bytes, bytes]] | None = None,
    message_queue_size: int = MESSAGE_QUEUE_SIZE,
    max_message_size: int = MAX_MESSAGE_SIZE,
    receive_buffer_size: int | None = RECEIVE_BYTES,
    connect_timeout: float = CONN_TIMEOUT,
    disconnect_timeout: float = CONN_TIMEOUT,
) -> AsyncIterator[WebSocketConnection]:
    """Open a connection for the duration of an ``async with`` block, at whose end it is closed.
    Entering and leaving are checkpoints.

    An exception of the block is raised as it is, in no group.

    Args:
      host: the server's name or address.
      port: its port.
      resource: the path and the query.
      use_ssl: True for TLS with `ssl.create_default_context`; an `ssl.SSLContext` for TLS
          with that one; False for none.
      subprotocols: those that are offered, the preferred one first; by default none.
      extra_headers: more headers of the request, pairs of bytes; by default none. Those that the
          handshake sets are left out.
      message_queue_size: ignored.
      max_message_size: bytes of a received message; default 1 MiB. A longer one closes the
          connection with code 1009.
      receive_buffer_size: ignored.
      connect_timeout: seconds that entering may take; default 60.
      disconnect_timeout: seconds that closing may take; default 60.

    Returns:
      An async context manager, whose value is the `WebSocketConnection`.

    Raises:
      ConnectionRejected: if the server answers with something else than a WebSocket.
      ConnectionTimeout: if connecting takes too long.
      DisconnectionTimeout: if closing takes too long.
      HandshakeError: if the server cannot be reached, or does not answer properly.
      TypeError, ValueError: if an argument is invalid.
    """
    raised: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                connect = partial(
                    connect_websocket,
                    nursery,
                    host,
                    port,
                    resource,
                    use_ssl=use_ssl,
                    subprotocols=subprotocols,
                    extra_headers=extra_headers,
                    message_queue_size=message_queue_size,
                    max_message_size=max_message_size,
                    receive_buffer_size=receive_buffer_size,
                )
                connection = await _connect(connect, connect_timeout)
                try:
                    yield connection
                finally:
                    await _disconnect(connection, disconnect_timeout)
            except BaseException as exc:
                # The nursery would wrap it. If that is cancelled, nothing is lost: it is
                # raised where the nursery has ended.
                raised = exc
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # Only what reads can be in it, and has failed for a reason of the interpreter's.
        raise group.exceptions[0] from raised
    if raised is not None:
        raise raised


async def _connect(
    connect: Callable[[], Awaitable[WebSocketConnection]], seconds: float
) -> WebSocketConnection:
    try:
        with trio.fail_after(seconds):
            return await connect()
    except trio.TooSlowError:
        raise ConnectionTimeout from None
    except OSError as exc:
        raise HandshakeError from exc


async def _disconnect(connection: WebSocketConnection, seconds: float) -> None:
    try:
        with trio.fail_after(seconds):
            await connection.aclose()
    except trio.TooSlowError:
        raise DisconnectionTimeout from None


async def connect_websocket(
    nursery: trio.Nursery,
    host: str,
    port: int,
    resource: str,
    *,
    use_ssl: bool | ssl.SSLContext,
    subprotocols: Iterable[str] | None = None,
    extra_headers: list[tuple[bytes, bytes]] | None = None,
    message_queue_size: int = MESSAGE_QUEUE_SIZE,
    max_message_size: int = MAX_MESSAGE_SIZE,
    receive_buffer_size: int | None = RECEIVE_BYTES,
) -> WebSocketConnection:
    """Open a connection, which the caller has to close. A checkpoint.

    Args:
      nursery: for the task that reads, if TLS is used.
      host: the server's name or address.
      port: its port.
      resource: the path and the query.
      use_ssl: as in `open_websocket`.
      subprotocols: those that are offered; by default none.
      extra_headers: more headers of the request; by default none.
      message_queue_size: ignored.
      max_message_size: bytes of a received message; default 1 MiB.
      receive_buffer_size: ignored.

    Returns:
      A `WebSocketConnection`.

    Raises:
      ConnectionRejected, HandshakeError: as `open_websocket` does.
      OSError: if the server cannot be reached.
      TypeError, ValueError: if an argument is invalid.
    """
    context: ssl.SSLContext | None
    if use_ssl is True:
        context = ssl.create_default_context()
    elif use_ssl is False:
        context = None
    elif isinstance(use_ssl, ssl.SSLContext):
        context = use_ssl
    else:
        raise TypeError("`use_ssl` argument must be bool or ssl.SSLContext")
    stream: trio.abc.Stream = await open_tcp_stream(host, port)
    if context is not None:
        stream = TLSStream(stream, context, server_hostname=host, https_compatible=True)
    bare = f"[{host}]" if ":" in host else host
    try:
        return await wrap_client_stream(
            nursery,
            stream,
            bare if port in (80, 443) else f"{bare}:{port}",
            resource,
            subprotocols=subprotocols,
            extra_headers=extra_headers,
            message_queue_size=message_queue_size,
            max_message_size=max_message_size,
            receive_buffer_size=receive_buffer_size,
        )
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


def open_websocket_url(
    url: str,
    ssl_context: ssl.SSLContext | None = None,
    *,
    subprotocols: Iterable[str] | None = None,
    extra_headers: list[tuple[bytes, bytes]] | None = None,
    message_queue_size: int = MESSAGE_QUEUE_SIZE,
    max_message_size: int = MAX_MESSAGE_SIZE,
    connect_timeout: float = CONN_TIMEOUT,
    disconnect_timeout: float = CONN_TIMEOUT,
    receive_buffer_size: int | None = RECEIVE_BYTES,
) -> AbstractAsyncContextManager[WebSocketConnection]:
    """`open_websocket` with a URL. Not a checkpoint, but entering and leaving the block are.

    Args:
      url: ``"ws://host[:port][/path][?query]"``, or ``"wss://..."``.
      ssl_context: for ``wss``; by default `ssl.create_default_context`'s.
      subprotocols: as in `open_websocket`.
      extra_headers: likewise.
      message_queue_size: ignored.
      max_message_size: as in `open_websocket`.
      connect_timeout: likewise.
      disconnect_timeout: likewise.
      receive_buffer_size: ignored.

    Returns:
      An async context manager, whose value is the `WebSocketConnection`.

    Raises:
      ValueError: if ``url`` is not of a WebSocket, or has no TLS for ``ssl_context``.
    """
    host, port, resource, use_ssl = _split(url, ssl_context)
    return open_websocket(
        host,
        port,
        resource,
        use_ssl=use_ssl,
        subprotocols=subprotocols,
        extra_headers=extra_headers,
        message_queue_size=message_queue_size,
        max_message_size=max_message_size,
        receive_buffer_size=receive_buffer_size,
        connect_timeout=connect_timeout,
        disconnect_timeout=disconnect_timeout,
    )


async def connect_websocket_url(
    nursery: trio.Nursery,
    url: str,
    ssl_context: ssl.SSLContext | None = None,
    *,
    subprotocols: Iterable[str] | None = None,
    extra_headers: list[tuple[bytes, bytes]] | None = None,
    message_queue_size: int = MESSAGE_QUEUE_SIZE,
    max_message_size: int = MAX_MESSAGE_SIZE,
    receive_buffer_size: int | None = RECEIVE_BYTES,
) -> WebSocketConnection:
    """`connect_websocket` with a URL. A checkpoint.

    Args:
      nursery: for the task that reads, if TLS is used.
      url: as in `open_websocket_url`.
      ssl_context: likewise.
      subprotocols: as in `connect_websocket`.
      extra_headers: likewise.
      message_queue_size: ignored.
      max_message_size: as in `connect_websocket`.
      receive_buffer_size: ignored.

    Returns:
      A `WebSocketConnection`.

    Raises:
      ValueError: if ``url`` is not of a WebSocket, or has no TLS for ``ssl_context``.
      ConnectionRejected, HandshakeError, OSError: as `connect_websocket` does.
    """
    host, port, resource, use_ssl = _split(url, ssl_context)
    return await connect_websocket(
        nursery,
        host,
        port,
        resource,
        use_ssl=use_ssl,
        subprotocols=subprotocols,
        extra_headers=extra_headers,
        message_queue_size=message_queue_size,
        max_message_size=max_message_size,
        receive_buffer_size=receive_buffer_size,
    )


def _split(
    url: str, ssl_context: ssl.SSLContext | None
) -> tuple[str, int, str, bool | ssl.SSLContext]:
    parts = urlsplit(str(url))  # of a yarl.URL, too
    if parts.scheme not in ("ws", "wss"):
        raise ValueError(f'WebSocket URL scheme must be "ws:" or "wss:", not {url!r}')
    if parts.scheme == "ws" and ssl_context is not None:
        raise ValueError("SSL context must be None for ws: URL scheme")
    if parts.hostname is None:
        raise ValueError("URL host must not be None")
    usual = 443 if parts.scheme == "wss" else 80
    resource = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    use_ssl = parts.scheme == "wss" if ssl_context is None else ssl_context
    return parts.hostname, usual if parts.port is None else parts.port, resource, use_ssl


async def wrap_client_stream(
    nursery: trio.Nursery,
    stream: trio.abc.Stream,
    host: str,
    resource: str,
    *,
    subprotocols: Iterable[str] | None = None,
    extra_headers: list[tuple[bytes, bytes]] | None = None,
    message_queue_size: int = MESSAGE_QUEUE_SIZE,
    max_message_size: int = MAX_MESSAGE_SIZE,
    receive_buffer_size: int | None = RECEIVE_BYTES,
) -> WebSocketConnection:
    """Make a stream a connection, as a client. A checkpoint.

    Args:
      nursery: for the task that reads, if the stream is no `trio_wknet.Conn`.
      stream: the stream, which is closed along with the connection. If this raises, it is the
          caller's to close.
      host: the request's ``Host`` header.
      resource: the path and the query.
      subprotocols: those that are offered; by default none.
      extra_headers: more headers of the request; by default none.
      message_queue_size: ignored.
      max_message_size: bytes of a received message; default 1 MiB.
      receive_buffer_size: ignored.

    Returns:
      A `WebSocketConnection`.

    Raises:
      ConnectionRejected, HandshakeError: as `open_websocket` does.
      TypeError, ValueError: if an argument is invalid.
    """
    headers = [(n, v) for n, v in as_text(extra_headers) if n.lower() not in OWN]
    options = options_for(max_message_size, subprotocols)
    try:
        websocket, answer = await opening().connect_and_tell(
            stream, URL(host, 0, resource, host), headers, options
        )
    except _errors.HandshakeRejected as exc:
        raise ConnectionRejected(exc.status, as_bytes(exc.headers), exc.body) from None
    except _errors.HandshakeError as exc:
        raise HandshakeError(*exc.args) from exc
    return WebSocketConnection._over(websocket, nursery, as_bytes(answer, OWN), client=True)
