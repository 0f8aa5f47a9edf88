"""trio-websocket's interface over this library's WebSockets, for software that is written for
it: only the import changes.

Every name of trio-websocket 0.12 is here, and does what it does there. What differs:

* Over a `trio_wknet.Conn`, which `serve_websocket` and `open_websocket` use without TLS, the
  reactor decodes, answers pings and closes, whether or not a task receives. Over TLS, and over
  other streams, a task in the connection's nursery reads, as in trio-websocket.
* ``max_message_size`` counts the bytes of a text in UTF-8, not its characters, and is at most
  2**29. ``message_queue_size`` and ``receive_buffer_size`` are ignored: what waits is bounded
  in bytes, by ``limits.inbound``, or by 64 KiB over other streams.
* The peer is held to RFC 6455 strictly; so is `WebSocketRequest.accept`, which refuses a
  subprotocol that the client did not propose with `ValueError`. `WebSocketConnection.aclose`
  refuses a code that a close frame must not hold.
* There is nothing of wsproto in it, and `WebSocketConnection` cannot be constructed.
"""

from trio_wknet.contrib.trio_websocket._client import (
    connect_websocket,
    connect_websocket_url,
    open_websocket,
    open_websocket_url,
    wrap_client_stream,
)
from trio_wknet.contrib.trio_websocket._connection import WebSocketConnection
from trio_wknet.contrib.trio_websocket._server import (
    WebSocketRequest,
    WebSocketServer,
    serve_websocket,
    wrap_server_stream,
)
from trio_wknet.contrib.trio_websocket._values import (
    CloseReason,
    ConnectionClosed,
    ConnectionRejected,
    ConnectionTimeout,
    DisconnectionTimeout,
    Endpoint,
    HandshakeError,
)

__all__ = [
    "CloseReason",
    "ConnectionClosed",
    "ConnectionRejected",
    "ConnectionTimeout",
    "DisconnectionTimeout",
    "Endpoint",
    "HandshakeError",
    "WebSocketConnection",
    "WebSocketRequest",
    "WebSocketServer",
    "connect_websocket",
    "connect_websocket_url",
    "open_websocket",
    "open_websocket_url",
    "serve_websocket",
    "wrap_client_stream",
    "wrap_server_stream",
]
