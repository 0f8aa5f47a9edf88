"""What can be set: limits of a connection, and options of its socket."""

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
    _check_range(attribute.name, value)


def _some_seconds(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    check_some_seconds(attribute.name, value)


def _check_range(name: str, value: object, low: float = 0, high: float = 86400) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high} seconds, not {value}")


def check_grace(grace: object) -> None:
    if grace is not None:
        _check_range("grace", grace)


def check_some_seconds(name: str, value: object) -> None:
    """Refuse what is no time, or none at all."""
    _check_range(name, value)
    if value == 0:
        raise ValueError(f"{name} must be more than 0 seconds")


def _boolean(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{attribute.name} must be True or False, not {value!r}")


def is_tcp(sock: socket.socket) -> bool:
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    # Python's own `proto` is whatever the socket object was created with, so ask the kernel.
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) in (socket.IPPROTO_TCP, _MPTCP)


@attrs.frozen(kw_only=True)
class Limits:
    """The limits of every connection of a listener, or of one connection.

    Raises:
      TypeError, ValueError: if a value has the wrong type, or is out of range; the
          message names it.
    """

    inbound: int = attrs.field(default=65_536, validator=_integer(1, _MAX_RING_BYTES))
    """Bytes received and not yet taken by the application. At this mark the reactor stops
    reading, so that TCP holds the peer back, and resumes once half of them are taken. They
    are in one block of memory, rounded up to a power of two. From 1 to 2**30; default
    65536."""

    outbound: int = attrs.field(default=1_048_576, validator=_integer(1, _MAX_RING_BYTES))
    """Bytes that `Conn.send_nowait` may leave unsent. Beyond this it raises
    `trio.WouldBlock`. From 1 to 2**30; default 1048576."""

    linger_time: float = attrs.field(default=10.0, validator=_seconds)
    """Seconds that a gracefully closed connection may take, in the background, to
    send what is left and to wait for the peer's end. Once the peer's kernel has acknowledged
    everything, the peer's application has about a tenth of that time to read and to
    finish; after that, what it sends is answered with a reset. 0 closes at once. From 0 to
    86400; default 10."""

    linger_bytes: int = attrs.field(default=16_777_216, validator=_integer(0, _MAX_RING_BYTES))
    """Bytes that may arrive, and are discarded, while a closed connection lingers. From 0 to
    2**30; default 16777216."""

    accept_queue: int = attrs.field(default=1024, validator=_integer(1, 65_535))
    """Accepted connections that may wait for `Listener.accept` or `Listener.serve`. At this
    mark the listener leaves further ones in the kernel's queue. From 1 to 65535; default
    1024."""

    proxy_header_time: float = attrs.field(default=5.0, validator=_some_seconds)
    """Seconds within which the PROXY header of a connection must arrive, if the
    listener requires one; rounded up to milliseconds. Above 0, up to 86400; default 5."""


@attrs.frozen(kw_only=True)
class ConnOptions:
    """Socket options of connections, set before their first byte. None leaves the kernel's
    default.

    Raises:
      TypeError, ValueError: if a value has the wrong type, or is out of range; the
          message names it.
    """

    nodelay: bool = attrs.field(default=True, validator=_boolean)
    """``TCP_NODELAY``: send small writes at once. Only for TCP. Default True, as in Trio."""

    keepalive: bool = attrs.field(default=False, validator=_boolean)
    """``SO_KEEPALIVE``: the kernel probes idle peers. Default False."""

    receive_buffer: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(_integer(1, _MAX_RING_BYTES))
    )
    """``SO_RCVBUF``, in bytes, from 1 to 2**30. Default None."""

    send_buffer: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(_integer(1, _MAX_RING_BYTES))
    )
    """``SO_SNDBUF``, in bytes, from 1 to 2**30. Connections accepted on a unix socket do not
    inherit it; set it with `Conn.setsockopt` there. Default None."""

    unix_mode: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(_integer(0, 0o777))
    )
    """Permission bits of a unix listener's socket file, for example ``0o660``. Default None:
    the process's umask decides."""

    def apply(self, sock: socket.socket) -> None:
        """Set the options on a socket. Connections accepted from a listening
        socket inherit them. Not a checkpoint.

        Args:
          sock: any socket.

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
