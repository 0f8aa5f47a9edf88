"""What ``.socket`` is: a facade with addresses and options, which cannot move bytes."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakKeyDictionary

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def borrowed(fd: int, family: int) -> Iterator[socket.socket]:
    """A socket object over a descriptor that stays its owner's."""
    if fd < 0:
        raise trio.ClosedResourceError("this socket was already closed")
    sock = socket.socket(family, socket.SOCK_STREAM, 0, fileno=fd)
    try:
        yield sock
    finally:
        sock.detach()


def _family(number: int) -> socket.AddressFamily:
    try:
        return socket.AddressFamily(number)
    except ValueError:  # Python itself uses a number if it has no name
        return number  # type: ignore[return-value]


class SocketFacade(trio.socket.SocketType):
    """The socket under a `Conn` or a `Listener`, for software that asks it for
    addresses and options. Its send and receive methods raise RuntimeError, because bytes
    belong to the reactor. Once it is closed, its methods raise OSError (EBADF), like
    those of any socket.
    """

    def __init__(
        self,
        family: int,
        fileno: Callable[[], int],
        is_readable: Callable[[], bool],
        close: Callable[[], None],
        ensure_usable: Callable[[], None],
    ) -> None:
        super().__init__()
        self._family = _family(family)
        self._fileno = fileno
        self._is_readable = is_readable
        self._close = close
        self._ensure_usable = ensure_usable

    def __repr__(self) -> str:
        return f"<trio_wknet socket fd={self.fileno()} family={self._family!r}>"

    @property
    def family(self) -> socket.AddressFamily:
        return self._family

    @property
    def type(self) -> socket.SocketKind:
        return socket.SOCK_STREAM

    @property
    def proto(self) -> int:
        if self._fileno() >= 0:
            return int(self.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL))
        return socket.IPPROTO_TCP if self._family in (socket.AF_INET, socket.AF_INET6) else 0

    def fileno(self) -> int:
        """The descriptor; -1 once closed here, even while it lingers."""
        return self._fileno()

    def getsockname(self) -> Any:
        with self._borrowed() as sock:
            return sock.getsockname()

    def getpeername(self) -> Any:
        with self._borrowed() as sock:
            return sock.getpeername()

    def getsockopt(self, level: int, optname: int, buflen: int | None = None) -> Any:
        with self._borrowed() as sock:
            return (
                sock.getsockopt(level, optname)
                if buflen is None
                else sock.getsockopt(level, optname, buflen)
            )

    def setsockopt(self, level: int, optname: int, value: Any, optlen: int | None = None) -> None:
        with self._borrowed() as sock:
            if optlen is None:
                sock.setsockopt(level, optname, value)
            else:
                sock.setsockopt(level, optname, value, optlen)

    def get_inheritable(self) -> bool:
        with self._borrowed() as sock:
            return bool(sock.get_inheritable())

    def set_inheritable(self, inheritable: bool) -> None:
        with self._borrowed() as sock:
            sock.set_inheritable(inheritable)

    def is_readable(self) -> bool:
        """Whether a receive would not wait: there are bytes, the end, or an error."""
        return self._is_readable()

    def close(self) -> None:
        """Close the connection, as its ``aclose`` does, or the listener."""
        self._close()

    def _borrowed(self) -> Any:
        # In another thread the descriptor's number might be reused by the time of the call.
        self._ensure_usable()
        descriptor = self._fileno()
        if descriptor < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return borrowed(descriptor, self._family)


_INSTEAD = {
    "accept": "Listener.accept",
    "bind": "Engine.listen",
    "listen": "Engine.listen",
    "connect": "Engine.connect",
    "recv": "Conn.receive_some",
    "recv_into": "Conn.receive_into",
    "recvfrom": "Conn.receive_some",
    "recvfrom_into": "Conn.receive_into",
    "recvmsg": "Conn.receive_some",
    "recvmsg_into": "Conn.receive_into",
    "send": "Conn.send_all",
    "sendto": "Conn.send_all",
    "sendmsg": "Conn.send_all",
    "wait_writable": "Conn.wait_send_all_might_not_block",
    "shutdown": "Conn.send_eof",
    "detach": "Conn.detach",
    "dup": "Conn.detach",
}


def _refusal(name: str, instead: str) -> Callable[..., NoReturn]:
    def refuse(self: SocketFacade, *_: object, **__: object) -> NoReturn:
        raise RuntimeError(f"socket.{name}: this socket belongs to a reactor; use {instead}")

    refuse.__name__ = name
    return refuse


for _name, _instead in _INSTEAD.items():
    setattr(SocketFacade, _name, _refusal(_name, _instead))


# What a socket of the standard library became a handle on.
_facades: WeakKeyDictionary[socket.socket, SocketFacade] = WeakKeyDictionary()


def make_handle(sock: socket.socket, facade: SocketFacade) -> None:
    """Make a detached socket object a handle on the owner of its descriptor. The code that
    made it may still ask for its name, and may close it instead of the stream."""
    _facades[sock] = facade
    sock.__class__ = _Handle
    sock._closed = False  # type: ignore[attr-defined]  # `detach` closed it


def stand_in(facade: SocketFacade) -> socket.socket:
    """Make another such handle. Raises `trio.ClosedResourceError`."""
    facade._ensure_usable()
    descriptor = facade.fileno()
    if descriptor < 0:
        raise trio.ClosedResourceError("this socket was already closed")
    sock = non_blocking(descriptor)
    sock.detach()
    make_handle(sock, facade)
    return sock


def non_blocking(descriptor: int) -> socket.socket:
    """A socket object for a descriptor that a reactor has driven, with the right state: it is
    non-blocking, and has the right protocol. It owns the descriptor,
    unless this raises (OSError, MemoryError).
    """
    sock = socket.socket(fileno=descriptor)
    try:
        sock.setblocking(False)
    except BaseException:
        sock.detach()
        raise
    return sock


class _Handle(socket.socket):
    __slots__ = ()

    def fileno(self) -> int:
        return _facades[self].fileno()

    def close(self) -> None:
        _facades[self].close()  # first: it may refuse
        super().close()

    def getsockname(self) -> Any:
        return _facades[self].getsockname()

    def getpeername(self) -> Any:
        return _facades[self].getpeername()

    def getsockopt(self, *args: Any) -> Any:
        return _facades[self].getsockopt(*args)

    def setsockopt(self, *args: Any) -> None:
        _facades[self].setsockopt(*args)
