"""Opening a WebSocket as a client."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, TypedDict, overload

import trio

from trio_wknet._engine import Engine, default_engine
from trio_wknet._options import ConnOptions, Limits
from trio_wknet._usage_errors import for_async_with
from trio_wknet._websocket.extra import opening
from trio_wknet._websocket.http import check_headers
from trio_wknet._websocket.options import WebSocketOptions, with_subprotocols
from trio_wknet._websocket.url import parse_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping
    from contextlib import AbstractAsyncContextManager

    from typing_extensions import Unpack

    from trio_wknet._conn import Conn
    from trio_wknet._tls import TLSStream
    from trio_wknet._websocket.channel import WebSocket
    from trio_wknet._websocket.stream import StreamWebSocket

    class OpenSettings(TypedDict, total=False):
        """What can be set of any WebSocket."""

        subprotocols: Iterable[str] | None
        headers: Mapping[str, str] | Iterable[tuple[str, str]]
        engine: Engine | None
        options: WebSocketOptions
        limits: Limits
        conn_options: ConnOptions


@overload
def open_websocket(
    url: str, *, tls: None = None, **settings: Unpack[OpenSettings]
) -> AbstractAsyncContextManager[WebSocket]: ...


@overload
def open_websocket(
    url: str, *, tls: ssl.SSLContext, **settings: Unpack[OpenSettings]
) -> AbstractAsyncContextManager[StreamWebSocket]: ...


@for_async_with
async def open_websocket(
    url: str,
    *,
    tls: ssl.SSLContext | None = None,
    subprotocols: Iterable[str] | None = None,
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    engine: Engine | None = None,
    options: WebSocketOptions = WebSocketOptions(),
    limits: Limits = Limits(),
    conn_options: ConnOptions = ConnOptions(),
) -> AsyncIterator[Any]:
    """Open a WebSocket for the duration of an ``async with`` block::

        async with open_websocket("ws://127.0.0.1:5200/chat") as websocket:
            await websocket.send("hello")
            print(await websocket.receive())

    Leaving the block closes it with code 1000 (`WebSocket.aclose`). Entering and leaving are
    checkpoints.

    Args:
      url: ``"ws://host[:port][/path][?query]"``, or with TLS ``"wss://..."``; the port is by
          default 80 or 443.
      tls: for ``wss://``, an `ssl.SSLContext`; None, the default, is
          `ssl.create_default_context`, which trusts what the system trusts.
      subprotocols: those that are offered, the preferred one first; by default
          ``options.subprotocols``.
      headers: more headers of the request, such as ``Authorization``: a mapping, or pairs of
          name and value. By default none.
      engine: the engine to use. None, the default, uses the run's default engine.
      options: by default ``WebSocketOptions()``.
      limits: the limits of the connection; by default ``Limits()``.
      conn_options: its socket options; by default ``ConnOptions()``.

    Returns:
      An async context manager, whose value is the `WebSocket`, or for ``wss://`` the
      `StreamWebSocket`.

    Raises:
      HandshakeRejected: if the server answers with something else than a WebSocket.
      HandshakeError: if it does not answer properly.
      trio.TooSlowError: if connecting and the handshake take longer than
          ``options.handshake_time``.
      OSError: if the host does not resolve, or no address could be reached.
      trio.BrokenResourceError: if the handshake of TLS fails. Its cause is the `OSError`, which
          an `ssl.SSLError` is, as for a certificate that is not trusted.
      ValueError, TypeError: if an argument is invalid.
      ImportError: if h11 is not installed (the extra ``websocket``).
      RuntimeError: outside of a Trio run; or if ``engine`` is closed, or belongs to another
          thread.
    """
    websocket = await connect_websocket(
        url,
        tls=tls,
        subprotocols=subprotocols,
        headers=headers,
        engine=engine,
        options=options,
        limits=limits,
        conn_options=conn_options,
    )
    try:
        yield websocket
    finally:
        await websocket.aclose()


async def connect_websocket(
    url: str,
    *,
    tls: ssl.SSLContext | None,
    subprotocols: Iterable[str] | None,
    headers: Mapping[str, str] | Iterable[tuple[str, str]],
    engine: Engine | None,
    options: WebSocketOptions,
    limits: Limits,
    conn_options: ConnOptions,
) -> WebSocket | StreamWebSocket:
    """What `open_websocket` does on entering."""
    parsed = parse_url(url)
    if parsed.is_secure and tls is None:
        tls = ssl.create_default_context()
    elif not parsed.is_secure and tls is not None:
        raise ValueError(f"tls must be None unless url begins with 'wss://', not {url!r}")
    given = check_headers(headers, "headers")
    connect = opening().connect
    options = with_subprotocols(options, subprotocols)
    if engine is None:
        engine = default_engine(None)
    elif not isinstance(engine, Engine):
        raise TypeError(f"engine must be an Engine, not {engine!r}")
    host = f"[{parsed.host}]" if ":" in parsed.host else parsed.host
    with trio.fail_after(options.handshake_time):
        stream: Conn | TLSStream = await engine.connect(
            f"{'tls' if parsed.is_secure else 'tcp'}://{host}:{parsed.port}",
            tls=tls,
            limits=limits,
            options=conn_options,
        )
        try:
            websocket: WebSocket | StreamWebSocket = await connect(stream, parsed, given, options)
            return websocket
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
