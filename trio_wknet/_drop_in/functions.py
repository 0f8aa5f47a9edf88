"""Trio's seven functions, by Trio's own code, with sockets on the reactors.

Each lets Trio's function do all of its work, Happy Eyeballs and errors included, and
then moves the sockets to the run's default engine. The result is a `Conn` or a `Listener`,
which pass for `trio.SocketStream` and `trio.SocketListener`; with TLS a `TLSStream` or a
`TLSListener`, which pass for `trio.SSLStream` and `trio.SSLListener`.

The annotations say `Conn` and `TLSStream` wherever code written for Trio's functions still
type-checks with them. Lists are annotated as Trio's; use ``isinstance(listener, Listener)`` to
tell a type checker more. In a run with a custom `trio.abc.SocketFactory` all of them are Trio's
own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import trio

from trio_wknet._drop_in.bypass import bypass
from trio_wknet._drop_in.classes import adopt_listener, adopt_stream
from trio_wknet._drop_in.tls import SSLListener, is_for_ours, is_listener_for_ours
from trio_wknet._sockets.unix_connect import connect_unix
from trio_wknet._tls import TLSStream

if TYPE_CHECKING:
    import os
    import ssl
    from collections.abc import Awaitable, Callable

    from trio_wknet._conn import Conn

HAPPY_EYEBALLS_DELAY = 0.25  # seconds


def _moved_stream(stream: trio.SocketStream) -> Any:
    try:
        return adopt_stream(stream)
    except BaseException:
        stream.socket.close()
        raise


def _moved_tls(
    stream: trio.SSLStream[trio.SocketStream], host: str | bytes, https_compatible: bool
) -> Any:
    """Another stream by the same context, which is Trio's default or the caller's."""
    context = stream.context
    conn = _moved_stream(stream.transport_stream)
    if is_for_ours(conn, context):
        return TLSStream(conn, context, server_hostname=host, https_compatible=https_compatible)
    stream.transport_stream = conn
    return stream


def _moved_listeners(listeners: list[trio.SocketListener]) -> list[Any]:
    moved: list[Any] = []
    try:
        for listener in listeners:
            moved.append(adopt_listener(listener))
    except BaseException:
        for listener in [*moved, *listeners]:
            listener.socket.close()
        raise
    return moved


def _tls_over(listener: Any, context: ssl.SSLContext, https_compatible: bool) -> Any:
    cls: Any = SSLListener if is_listener_for_ours(listener, context) else trio.SSLListener
    return cls(listener, context, https_compatible=https_compatible)


async def open_tcp_stream(
    host: str | bytes,
    port: int,
    *,
    happy_eyeballs_delay: float | None = HAPPY_EYEBALLS_DELAY,
    local_address: str | None = None,
) -> Conn:
    """`trio.open_tcp_stream`, whose stream is a `Conn` of the run's default engine. A
    checkpoint.

    Args:
      host: a name or an address. If it has several addresses, Happy Eyeballs tries them.
      port: the port number.
      happy_eyeballs_delay: seconds until the next address is tried; by default 0.25.
      local_address: the local address to connect from; by default the system chooses.

    Returns:
      A `Conn`.

    Raises:
      OSError: if no address could be reached.
      TypeError, ValueError: if an argument is invalid.
    """
    with bypass():
        stream = await trio.open_tcp_stream(
            host, port, happy_eyeballs_delay=happy_eyeballs_delay, local_address=local_address
        )
    return _moved_stream(stream)  # type: ignore[no-any-return]


async def open_unix_socket(
    filename: str | bytes | os.PathLike[str] | os.PathLike[bytes],
) -> Conn:
    """`trio.open_unix_socket`, whose stream is a `Conn` of the run's default engine. A
    checkpoint.

    While the server's queue is full it waits, as `Engine.connect` does; Trio's own returns
    a stream that is not connected.

    Args:
      filename: the path of the socket.

    Returns:
      A `Conn`.

    Raises:
      OSError: if it cannot be reached.
      TypeError: if ``filename`` is not a path.
    """
    stream = await connect_unix(filename)
    return _moved_stream(stream)  # type: ignore[no-any-return]


async def open_ssl_over_tcp_stream(
    host: str | bytes,
    port: int,
    *,
    https_compatible: bool = False,
    ssl_context: ssl.SSLContext | None = None,
    happy_eyeballs_delay: float | None = HAPPY_EYEBALLS_DELAY,
) -> TLSStream:
    """`trio.open_ssl_over_tcp_stream`, whose stream is a `TLSStream` over a `Conn` of the run's
    default engine. A checkpoint.

    The handshake is done by the first receive or send, or by `TLSStream.do_handshake`.

    Args:
      host: a name or an address. If it has several addresses, Happy Eyeballs tries them.
      port: the port number.
      https_compatible: end streams as HTTPS does; see `TLSStream`. Default False.
      ssl_context: by default `ssl.create_default_context`'s.
      happy_eyeballs_delay: seconds until the next address is tried; by default 0.25.

    Returns:
      A `TLSStream`.

    Raises:
      OSError: if no address could be reached.
      TypeError, ValueError: if an argument is invalid.
    """
    with bypass():
        stream = await trio.open_ssl_over_tcp_stream(
            host,
            port,
            https_compatible=https_compatible,
            ssl_context=ssl_context,
            happy_eyeballs_delay=happy_eyeballs_delay,
        )
    return _moved_tls(stream, host, https_compatible)  # type: ignore[no-any-return]


async def open_tcp_listeners(
    port: int, *, host: str | bytes | None = None, backlog: int | None = None
) -> list[trio.SocketListener]:
    """`trio.open_tcp_listeners`, whose listeners are `Listener` objects of the run's
    default engine. A checkpoint.

    Args:
      port: the port number. With 0 each address gets a free port of its own.
      host: a name or an address; None, the default, is all interfaces.
      backlog: the length of the kernel's queue; by default as long as it allows.

    Returns:
      A list of `Listener` objects, one for each address.

    Raises:
      OSError: if the host does not resolve or an address cannot be bound.
      TypeError, ValueError: if an argument is invalid.
    """
    with bypass():
        listeners = await trio.open_tcp_listeners(port, host=host, backlog=backlog)
    return _moved_listeners(listeners)


async def open_ssl_over_tcp_listeners(
    port: int,
    ssl_context: ssl.SSLContext,
    *,
    host: str | bytes | None = None,
    https_compatible: bool = False,
    backlog: int | None = None,
) -> list[trio.SSLListener[trio.SocketStream]]:
    """`trio.open_ssl_over_tcp_listeners`, whose listeners are `TLSListener` objects of the run's
    default engine. A checkpoint.

    Their ``accept`` does not wait for the handshake, and so does not bound it: that is the
    handler's task, as with Trio's. `TLSListener.serve` does both.

    Args:
      port: the port number. With 0 each address gets a free port of its own.
      ssl_context: the server's.
      host: a name or an address; None, the default, is all interfaces.
      https_compatible: end streams as HTTPS does; see `TLSStream`. Default False.
      backlog: the length of the kernel's queue; by default as long as it allows.

    Returns:
      A list of `TLSListener` objects, one for each address.

    Raises:
      OSError: if the host does not resolve or an address cannot be bound.
      TypeError, ValueError: if an argument is invalid.
    """
    listeners = await open_tcp_listeners(port, host=host, backlog=backlog)
    return [_tls_over(listener, ssl_context, https_compatible) for listener in listeners]


async def serve_tcp(
    handler: Callable[[Conn], Awaitable[object]],
    port: int,
    *,
    host: str | bytes | None = None,
    backlog: int | None = None,
    handler_nursery: trio.Nursery | None = None,
    task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """`trio.serve_tcp` on the run's default engine: the handlers get `Conn` objects. A
    checkpoint.

    Trio's own `trio.serve_listeners` does the serving: an exception in a handler ends the
    server, and a stream that its handler left open is closed at once. (`Listener.serve`
    closes it gracefully.) It ends only by cancellation or by an exception.

    Args:
      handler: an async function of one argument, the `Conn`.
      port: the port number. With 0 each address gets a free port of its own.
      host: a name or an address; None, the default, is all interfaces.
      backlog: the length of the kernel's queue; by default as long as it allows.
      handler_nursery: where the handlers run; by default in a nursery of this call.
      task_status: for ``nursery.start``; it is started with the list of listeners.

    Raises:
      OSError: if the host does not resolve or an address cannot be bound.
      TypeError, ValueError: if an argument is invalid.
    """
    listeners = await open_tcp_listeners(port, host=host, backlog=backlog)
    await trio.serve_listeners(
        handler, listeners, handler_nursery=handler_nursery, task_status=task_status
    )


async def serve_ssl_over_tcp(
    handler: Callable[[TLSStream], Awaitable[object]],
    port: int,
    ssl_context: ssl.SSLContext,
    *,
    host: str | bytes | None = None,
    https_compatible: bool = False,
    backlog: int | None = None,
    handler_nursery: trio.Nursery | None = None,
    task_status: trio.TaskStatus[
        list[trio.SSLListener[trio.SocketStream]]
    ] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """`trio.serve_ssl_over_tcp` on the run's default engine: the handlers get `TLSStream`
    objects over `Conn` objects. A checkpoint.

    Trio's own `trio.serve_listeners` does the serving, and so a handshake that fails raises
    `trio.BrokenResourceError` in the handler, and nothing bounds it in time; `TLSListener.serve`
    is the one that sees to both. It ends only by cancellation or by an exception.

    Args:
      handler: an async function of one argument, the `TLSStream`.
      port: the port number. With 0 each address gets a free port of its own.
      ssl_context: the server's.
      host: a name or an address; None, the default, is all interfaces.
      https_compatible: end streams as HTTPS does; see `TLSStream`. Default False.
      backlog: the length of the kernel's queue; by default as long as it allows.
      handler_nursery: where the handlers run; by default in a nursery of this call.
      task_status: for ``nursery.start``; it is started with the list of listeners.

    Raises:
      OSError: if the host does not resolve or an address cannot be bound.
      TypeError, ValueError: if an argument is invalid.
    """
    listeners = await open_ssl_over_tcp_listeners(
        port, ssl_context, host=host, https_compatible=https_compatible, backlog=backlog
    )
    await trio.serve_listeners(
        handler, listeners, handler_nursery=handler_nursery, task_status=task_status
    )
