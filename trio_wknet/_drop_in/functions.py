"""Trio's seven functions, by Trio's own code, with sockets on the reactors.

Each lets Trio's function do all of its work, Happy Eyeballs and errors included, and
then moves the sockets to the run's default engine. What comes is a `Conn` or a `Listener`,
which pass for `trio.SocketStream` and `trio.SocketListener`.

The annotations say so wherever one that was written for Trio's functions still fits. Lists,
and streams inside TLS, are Trio's to a type checker, and ``isinstance(listener, Listener)``
tells it more. In a run with a custom `trio.abc.SocketFactory` all of them are Trio's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import trio

from trio_wknet._drop_in.classes import adopt_listener, adopt_stream
from trio_wknet._trios_own import trios_own
from trio_wknet._unix_connect import connect_unix

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


async def open_tcp_stream(
    host: str | bytes,
    port: int,
    *,
    happy_eyeballs_delay: float | None = HAPPY_EYEBALLS_DELAY,
    local_address: str | None = None,
) -> Conn:
    """`trio.open_tcp_stream`, whose stream is a `Conn` of the run's default engine.

    Arguments, errors and Happy Eyeballs are Trio's. A checkpoint.
    """
    with trios_own():
        stream = await trio.open_tcp_stream(
            host, port, happy_eyeballs_delay=happy_eyeballs_delay, local_address=local_address
        )
    return _moved_stream(stream)  # type: ignore[no-any-return]


async def open_unix_socket(
    filename: str | bytes | os.PathLike[str] | os.PathLike[bytes],
) -> Conn:
    """`trio.open_unix_socket`, whose stream is a `Conn` of the run's default engine.

    Arguments and errors are Trio's. While the server's queue is full it waits, as
    `Engine.connect` does, where Trio gives a stream that is not connected. A checkpoint.
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
) -> trio.SSLStream[trio.SocketStream]:
    """`trio.open_ssl_over_tcp_stream`: a `trio.SSLStream` around a `Conn` of the run's
    default engine.

    Arguments, errors and Happy Eyeballs are Trio's. A checkpoint.
    """
    with trios_own():
        stream = await trio.open_ssl_over_tcp_stream(
            host,
            port,
            https_compatible=https_compatible,
            ssl_context=ssl_context,
            happy_eyeballs_delay=happy_eyeballs_delay,
        )
    stream.transport_stream = _moved_stream(stream.transport_stream)
    return stream


async def open_tcp_listeners(
    port: int, *, host: str | bytes | None = None, backlog: int | None = None
) -> list[trio.SocketListener]:
    """`trio.open_tcp_listeners`, whose listeners are `Listener` objects of the run's
    default engine.

    Arguments and errors are Trio's; so port 0 with several addresses gives each a port
    of its own. A checkpoint.
    """
    with trios_own():
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
    """`trio.open_ssl_over_tcp_listeners`: `trio.SSLListener` objects around `Listener`
    objects of the run's default engine.

    Arguments and errors are Trio's. A checkpoint.
    """
    listeners = await open_tcp_listeners(port, host=host, backlog=backlog)
    return [
        trio.SSLListener(listener, ssl_context, https_compatible=https_compatible)
        for listener in listeners
    ]


async def serve_tcp(
    handler: Callable[[Conn], Awaitable[object]],
    port: int,
    *,
    host: str | bytes | None = None,
    backlog: int | None = None,
    handler_nursery: trio.Nursery | None = None,
    task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """`trio.serve_tcp` on the run's default engine: the handlers get `Conn` objects.

    Arguments, errors and behaviour are those of Trio, whose `trio.serve_listeners` does
    the serving: an exception in a handler ends the server, and a stream that its handler
    left open is closed at once. (`Listener.serve` closes it gracefully.) Ends only
    cancelled, or by an exception.
    """
    listeners = await open_tcp_listeners(port, host=host, backlog=backlog)
    await trio.serve_listeners(
        handler, listeners, handler_nursery=handler_nursery, task_status=task_status
    )


async def serve_ssl_over_tcp(
    handler: Callable[[trio.SSLStream[trio.SocketStream]], Awaitable[object]],
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
    """`trio.serve_ssl_over_tcp` on the run's default engine.

    Arguments, errors and behaviour are those of Trio, whose `trio.serve_listeners` does
    the serving. Ends only cancelled, or by an exception.
    """
    listeners = await open_ssl_over_tcp_listeners(
        port, ssl_context, host=host, https_compatible=https_compatible, backlog=backlog
    )
    await trio.serve_listeners(
        handler, listeners, handler_nursery=handler_nursery, task_status=task_status
    )
