"""What can be set: bounds of a connection, and options of its socket."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MAX_RING_BYTES = 1 << 30
_MPTCP = 262  # IPPROTO_MPTCP, TCP over several paths: it has TCP's options


def _integer(low: int, high: int) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    """A validator that names the argument and its value."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{attribute.name} must be an integer, not {value!r}")
        if not low <= value <= high:
            raise ValueError(f"{attribute.name} must be from {low} to {high}, not {value}")

    return check


def _seconds(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{attribute.name} must be a number of seconds, not {value!r}")
    if not 0 <= value <= 86400:
        raise ValueError(f"{attribute.name} must be from 0 to 86400 seconds, not {value}")


def _some_seconds(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    _seconds(instance, attribute, value)
    if value == 0:
        raise ValueError(f"{attribute.name} must be more than 0 seconds")


def _boolean(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{attribute.name} must be True or False, not {value!r}")


def is_tcp(sock: socket.socket) -> bool:
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    # What Python says of a socket's protocol is what it was told.
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) in (socket.IPPROTO_TCP, _MPTCP)


@attrs.frozen(kw_only=True)
class Limits:
    """The bounds of every connection of a listener or an engine.

    Raises:
      TypeError, ValueError: for a value of the wrong type or out of range; the
          message names it.
    """

    inbound: int = attrs.field(default=65_536, validator=_integer(1, _MAX_RING_BYTES))
    """Bytes received and not yet taken by the application. At this mark, and not
    above it, the reactor stops reading, so that TCP holds the peer back, and goes on
    once half of them are taken. They lie in one block of memory, the next power of two.
    Default 64 KiB."""

    outbound: int = attrs.field(default=1_048_576, validator=_integer(1, _MAX_RING_BYTES))
    """Bytes that ``send_nowait`` may leave unsent. Past this mark it raises
    `trio.WouldBlock`. Default 1 MiB."""

    linger_time: float = attrs.field(default=10.0, validator=_seconds)
    """Seconds that a gracefully closed connection may take, in the background, to
    send what is left and to see the peer end. Once the peer's system has acknowledged all
    of it, its application has about a tenth of that to read and to end; after that, what
    it sends is answered with a reset. 0 closes at once. Default 10."""

    linger_bytes: int = attrs.field(default=16_777_216, validator=_integer(0, _MAX_RING_BYTES))
    """Bytes that may arrive, and are discarded, meanwhile. Default 16 MiB."""

    accept_queue: int = attrs.field(default=1024, validator=_integer(1, 65_535))
    """Accepted connections that may wait for ``accept``. At this mark the listener
    leaves further ones to the kernel's queue. Default 1024."""

    proxy_header_time: float = attrs.field(default=5.0, validator=_some_seconds)
    """Seconds within which the PROXY header of a connection must have come, where the
    listener asks for one; rounded up to milliseconds. Default 5."""


@attrs.frozen(kw_only=True)
class ConnOptions:
    """Socket options of connections, set before their first byte.

    None leaves the kernel's default. Raises TypeError and ValueError like `Limits`.
    """

    nodelay: bool = attrs.field(default=True, validator=_boolean)
    """``TCP_NODELAY``: send small writes at once. Default True, as Trio does. Not for
    sockets other than TCP's."""

    keepalive: bool = attrs.field(default=False, validator=_boolean)
    """``SO_KEEPALIVE``: have the kernel probe idle peers. Default False."""

    receive_buffer: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(_integer(1, _MAX_RING_BYTES))
    )
    """``SO_RCVBUF``, in bytes."""

    send_buffer: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(_integer(1, _MAX_RING_BYTES))
    )
    """``SO_SNDBUF``, in bytes. On Linux, connections accepted on a unix socket do not
    inherit it; set it by `Conn.setsockopt` there."""

    unix_mode: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(_integer(0, 0o777))
    )
    """Permission bits of a unix listener's socket file, for example ``0o660``."""

    def apply(self, sock: socket.socket) -> None:
        """Set the options on a socket; connections accepted from a listening
        socket inherit them.

        Raises:
          OSError: if the kernel refuses one.
        """
        for level, option, value in self._settings(is_tcp(sock)):
            sock.setsockopt(level, option, value)

    def _settings(self, tcp: bool) -> Iterator[tuple[int, int, int]]:
        if tcp and self.nodelay:
            yield socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
        if self.keepalive:
            yield socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1
        if self.receive_buffer is not None:
            yield socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer
        if self.send_buffer is not None:
            yield socket.SOL_SOCKET, socket.SO_SNDBUF, self.send_buffer
