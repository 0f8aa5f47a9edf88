"""Exceptions, reasons and endpoints of trio-websocket's interface."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Iterable

Headers = tuple[tuple[bytes, bytes], ...]

_NAMES = {
    1000: "NORMAL_CLOSURE",
    1001: "GOING_AWAY",
    1002: "PROTOCOL_ERROR",
    1003: "UNSUPPORTED_DATA",
    1005: "NO_STATUS_RCVD",
    1006: "ABNORMAL_CLOSURE",
    1007: "INVALID_FRAME_PAYLOAD_DATA",
    1008: "POLICY_VIOLATION",
    1009: "MESSAGE_TOO_BIG",
    1010: "MANDATORY_EXT",
    1011: "INTERNAL_ERROR",
    1012: "SERVICE_RESTART",
    1013: "TRY_AGAIN_LATER",
    1015: "TLS_HANDSHAKE_FAILED",
}


class HandshakeError(Exception):
    """Connecting to a server, or disconnecting from it, failed."""


class ConnectionTimeout(HandshakeError):
    """Connecting took longer than ``connect_timeout``."""


class DisconnectionTimeout(HandshakeError):
    """Disconnecting took longer than ``disconnect_timeout``."""


class ConnectionClosed(Exception):
    """The connection is closed, or being closed.

    Attributes:
      reason: a `CloseReason`.
    """

    def __init__(self, reason: CloseReason | None) -> None:
        super().__init__(reason)
        self.reason = reason

    def __repr__(self) -> str:
        return f"{type(self).__name__}<{self.reason}>"


class ConnectionRejected(HandshakeError):
    """The server refused the handshake.

    Attributes:
      status_code: the HTTP status.
      headers: name and value of each header.
      body: the response's body.
    """

    def __init__(self, status_code: int, headers: Headers, body: bytes | None) -> None:
        super().__init__(status_code, headers, body)
        self.status_code = status_code
        self.headers = headers
        self.body = body

    def __repr__(self) -> str:
        return f"{type(self).__name__}<status_code={self.status_code}>"


class CloseReason:
    """Why a connection was closed.

    Args:
      code: the code of the close frame; 1006 if there was none.
      reason: its text; None if it is empty.
    """

    def __init__(self, code: int, reason: str | None) -> None:
        self._code = code
        self._reason = reason

    @property
    def code(self) -> int:
        """The code."""
        return self._code

    @property
    def name(self) -> str:
        """The code's name, such as ``"NORMAL_CLOSURE"``; or the range that it is in."""
        if self._code in _NAMES:
            return _NAMES[self._code]
        if 1000 <= self._code < 3000:
            return "RFC_RESERVED"
        if 3000 <= self._code < 4000:
            return "IANA_RESERVED"
        return "PRIVATE_RESERVED" if 4000 <= self._code < 5000 else "INVALID_CODE"

    @property
    def reason(self) -> str | None:
        """The text; None if it is empty."""
        return self._reason

    def __repr__(self) -> str:
        return f"{type(self).__name__}<code={self.code}, name={self.name}, reason={self.reason}>"


class Endpoint:
    """One end of a connection, or a listener's.

    Args:
      address: the IP address.
      port: the port.
      is_ssl: whether TLS is used.

    Raises:
      ValueError: if ``address`` is no IP address.

    Attributes:
      address: an ``ipaddress.IPv4Address`` or ``ipaddress.IPv6Address``.
      port: the port.
      is_ssl: whether TLS is used.
    """

    def __init__(self, address: str | int, port: int, is_ssl: bool) -> None:
        self.address = ip_address(address)
        self.port = port
        self.is_ssl = is_ssl

    @property
    def url(self) -> str:
        """Such as ``"ws://127.0.0.1:8000"``. The port that is usual is left out."""
        scheme, usual = ("wss", 443) if self.is_ssl else ("ws", 80)
        port = "" if self.port == usual else f":{self.port}"
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{scheme}://{host}{port}"

    def __repr__(self) -> str:
        return f'Endpoint(address="{self.address}", port={self.port}, is_ssl={self.is_ssl})'


def endpoint_of(stream: trio.abc.Stream, *, local: bool) -> Endpoint | str:
    """One end of a stream; its repr if that is no TCP connection."""
    is_ssl = isinstance(stream, trio.SSLStream)
    transport = stream.transport_stream if is_ssl else stream  # type: ignore[attr-defined]
    if isinstance(transport, trio.SocketStream):
        socket = transport.socket
        address = socket.getsockname() if local else socket.getpeername()
        if isinstance(address, tuple):
            return Endpoint(address[0], address[1], is_ssl)
    return repr(stream)


def as_text(headers: Iterable[tuple[bytes, bytes]] | None) -> tuple[tuple[str, str], ...]:
    """Headers as this library has them."""
    pairs = headers or ()
    return tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in pairs)


def as_bytes(
    headers: Iterable[tuple[str, str]], without: Iterable[str] = (), prefix: str = "\0"
) -> Headers:
    """Headers as trio-websocket has them, without the handshake's own."""
    return tuple(
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in headers
        if name.lower() not in without and not name.lower().startswith(prefix)
    )
