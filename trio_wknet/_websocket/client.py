"""Opening a WebSocket as a client."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

    from trio_wknet._websocket.channel import WebSocket


@for_async_with
async def open_websocket(
    url: str,
    *,
    subprotocols: Iterable[str] | None = None,
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    engine: Engine | None = None,
    options: WebSocketOptions = WebSocketOptions(),
    limits: Limits = Limits(),
    conn_options: ConnOptions = ConnOptions(),
) -> AsyncIterator[WebSocket]:
    """Open a WebSocket for the duration of an ``async with`` block::

        async with open_websocket("ws://127.0.0.1:5200/chat") as websocket:
            await websocket.send("hello")
            print(await websocket.receive())

    Leaving the block closes it with code 1000 (`WebSocket.aclose`). Entering and leaving are
    checkpoints.

    Args:
      url: ``"ws://host[:port][/path][?query]"``; the port is by default 80.
      subprotocols: those that are offered, the preferred one first; by default
          ``options.subprotocols``.
      headers: more headers of the request, such as ``Authorization``: a mapping, or pairs of
          name and value. By default none.
      engine: the engine to use. None, the default, uses the run's default engine.
      options: by default ``WebSocketOptions()``.
      limits: the limits of the connection; by default ``Limits()``.
      conn_options: its socket options; by default ``ConnOptions()``.

    Returns:
      An async context manager, whose value is the `WebSocket`.

    Raises:
      HandshakeRejected: if the server answers with something else than a WebSocket.
      HandshakeError: if it does not answer properly.
      trio.TooSlowError: if connecting and the handshake take longer than
          ``options.handshake_time``.
      OSError: if the host does not resolve, or no address could be reached.
      ValueError, TypeError: if an argument is invalid.
      ImportError: if h11 is not installed (the extra ``websocket``).
      RuntimeError: outside of a Trio run; or if ``engine`` is closed, or belongs to another
          thread.
    """
    websocket = await connect_websocket(
        url,
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
    subprotocols: Iterable[str] | None,
    headers: Mapping[str, str] | Iterable[tuple[str, str]],
    engine: Engine | None,
    options: WebSocketOptions,
    limits: Limits,
    conn_options: ConnOptions,
) -> WebSocket:
    """What `open_websocket` does on entering."""
    parsed = parse_url(url)
    given = check_headers(headers, "headers")
    connect = opening().connect
    options = with_subprotocols(options, subprotocols)
    if engine is None:
        engine = default_engine(None)
    elif not isinstance(engine, Engine):
        raise TypeError(f"engine must be an Engine, not {engine!r}")
    host = f"[{parsed.host}]" if ":" in parsed.host else parsed.host
    with trio.fail_after(options.handshake_time):
        conn = await engine.connect(
            f"tcp://{host}:{parsed.port}", limits=limits, options=conn_options
        )
        try:
            websocket: WebSocket = await connect(conn, parsed, given, options)
            return websocket
        except BaseException:
            conn._drop()
            raise
