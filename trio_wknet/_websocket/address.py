"""Addresses of listeners for WebSockets."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_wknet._listener import Listener
    from trio_wknet._tls_listener import TLSListener
    from trio_wknet._websocket.listener import WebSocketListener
    from trio_wknet._websocket.options import WebSocketOptions

    Wrap = Callable[[Listener | TLSListener], WebSocketListener]


def split_websocket(
    address: str | int, options: WebSocketOptions | None
) -> tuple[str | int, Wrap | None]:
    """The address that ``ws://host:port[/path]`` listens at, and what makes a
    `WebSocketListener` of the `Listener` there; None if it is not for WebSockets.

    Raises:
      TypeError: if ``websocket`` is not `WebSocketOptions`.
      ValueError: if the address has a query.
      ImportError: if h11 is not installed.
    """
    path = None
    is_websocket = options is not None
    if isinstance(address, str) and address.startswith("ws://"):
        is_websocket = True
        host, slash, rest = address[len("ws://") :].partition("/")
        if "?" in rest or "#" in rest:
            raise ValueError(f"address {address!r} must not have a query: any is accepted")
        address, path = f"tcp://{host}", slash + rest or None
    if not is_websocket:
        return address, None
    from trio_wknet._websocket.listener import WebSocketListener
    from trio_wknet._websocket.options import WebSocketOptions

    if options is None:
        options = WebSocketOptions()
    elif not isinstance(options, WebSocketOptions):
        raise TypeError(f"websocket must be WebSocketOptions or None, not {options!r}")
    return address, lambda listener: WebSocketListener(listener, options=options, path=path)
