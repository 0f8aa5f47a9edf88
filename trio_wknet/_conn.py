"""Conn: Trio's stream contract over one native slot.

Receiving and sending are in the native halves that this class derives from
(`receive.pyx`, `send.pyx`); here stands what need not be fast: closing, half
closing, waiting for the end, options, names, counters.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, NoReturn, overload

import trio

from trio_wknet._native.trio.idle_scopes import IdleWatch, expire
from trio_wknet._native.trio.latch import Latch
from trio_wknet._passes_for import StreamBase
from trio_wknet._socket import SocketFacade, non_blocking
from trio_wknet._socket_address import socket_address
from trio_wknet._statistics import ConnStatistics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trio_wknet._native.trio.core import Core
    from trio_wknet._options import Limits
    from trio_wknet._socket_address import SocketAddress

    if sys.version_info >= (3, 12):
        from collections.abc import Buffer
    else:
        from typing_extensions import Buffer


class Conn(IdleWatch, StreamBase):  # type: ignore[misc]  # final, see _passes_for.py
    """A connection whose socket is driven by a reactor.

    It is a `trio.abc.HalfCloseableStream` in full, with Trio's errors:

    * `trio.ClosedResourceError` after, and for whoever waits during, a local close;
    * `trio.BrokenResourceError` once the connection broke, with the `OSError` as
      its cause; bytes that arrived before are still received first;
    * `trio.BusyResourceError` for a second task that receives, or that sends,
      while another one does.

    Every async method is a checkpoint. One that is cancelled did not happen: no
    byte is lost. The exception is `send_all`, of which a part may have been sent;
    ``statistics().bytes_sent`` tells how much.

    Connections come from `Listener.accept`, `Listener.serve`, `Engine.connect` and
    `Engine.adopt`.
    """

    # Its fields are the native base's: in event mode an object may be made for each
    # message, and setting fields from Python would double what that costs.
    __slots__ = ("__weakref__",)

    def __init__(self, *_: NoReturn, **__: NoReturn) -> None:
        raise TypeError(
            "a Conn is not made: Listener.accept, Listener.serve, Engine.connect and "
            "Engine.adopt give it"
        )

    @classmethod
    def _from_socket(cls, core: Core, sock: socket.socket, limits: Limits) -> Conn:
        conn = cls.__new__(cls)
        sock.setblocking(False)
        conn._adopt(core, sock, sock.fileno(), int(sock.family), limits)
        sock.detach()
        return conn

    def __repr__(self) -> str:
        state = self.close_reason or "open"
        ends = ""
        with suppress(OSError):  # what was never connected
            ends = f" laddr={self.local_address!r} raddr={self.remote_address!r}"
        return f"<trio_wknet.Conn id={self.id} {state}{ends}>"

    # --- the end -------------------------------------------------------------

    async def aclose(self) -> None:
        """Close gracefully. A checkpoint; does not wait for the peer.

        The reactor sends what ``send_nowait`` left, then FIN, and then reads and
        discards until the peer ends too, so that unread input does not make the
        kernel send a reset, which would destroy what the peer has not yet read.
        `Limits.linger_time` and `Limits.linger_bytes` bound that.

        Cancelled, as by `trio.aclose_forcefully`, it closes at once: what the
        kernel has taken is still sent, what ``send_nowait`` left is not.

        Closing again does nothing. Raises nothing but `trio.Cancelled`, and
        `RuntimeError` in another thread.
        """
        self._ensure_thread()
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
        except BaseException:
            self._drop()
            raise
        self._close()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def close_nowait(self) -> None:
        """Close gracefully, like `aclose`, where nothing can be awaited. Not a
        checkpoint. Does nothing on a closed connection. Raises `RuntimeError` in
        another thread."""
        self._close()

    def abort(self) -> None:
        """Close at once with a reset: the peer gets an error, and loses what it has
        not yet read. Not a checkpoint. Does nothing on a closed connection.
        Raises `RuntimeError` in another thread."""
        self._abort()

    async def detach(self) -> tuple[socket.socket, bytes]:
        """Take the socket back from the reactor. A checkpoint.

        Returns the socket, non-blocking, and the bytes that were received and not
        yet taken. What ``send_nowait`` left is sent first. The connection is
        closed afterwards, with ``close_reason`` ``"detached"``. Who begins to send
        meanwhile, or to receive once all is sent, gets `trio.BusyResourceError`.

        Raises `trio.BusyResourceError` while another task sends or receives,
        `trio.ClosedResourceError`, `trio.BrokenResourceError`. Cancelled before all
        is sent, it has done nothing; from then on it cannot be cancelled.
        """
        await self._detach()
        try:
            unread = self._take_unread()
            sock = non_blocking(self._fd)
        except BaseException:
            self._drop()  # nobody watches it any more
            raise
        self._take_descriptor()
        return sock, unread

    @property
    def close_reason(self) -> str | None:
        """Why the connection ended: the first thing that ended it.

        None while it is open in both directions. ``"eof"``: the peer finished
        sending; what it should still receive may yet be sent. ``"reset"``: the peer
        reset it. Another error of the system: its text. ``"closed"``,
        ``"aborted"``, ``"detached"``: by this program. ``"idle"``: by its idle
        timeout. ``"engine closed"``.
        """
        return self._reason()

    async def wait_closed(self) -> None:
        """Wait until ``close_reason`` is not None: the peer finished sending or is
        gone, or the connection was closed here. Needs nobody to receive. A
        checkpoint."""
        ended = Latch(self._core)
        with self._watching_for_end(ended.set):
            await ended.wait()

    @contextmanager
    def cancel_on_disconnect(self) -> Iterator[trio.CancelScope]:
        """A cancel scope that is cancelled when the peer finishes sending or is
        gone, or the connection is closed here. Needs nobody to receive::

            with conn.cancel_on_disconnect() as scope:
                await long_computation()
            if scope.cancelled_caught:
                return
        """
        self._ensure_usable()
        with trio.CancelScope() as scope, self._watching_for_end(partial(expire, scope)):
            yield scope

    @contextmanager
    def _watching_for_end(self, told: Callable[[], object]) -> Iterator[None]:
        self._ensure_usable()
        if self._end_watchers is None:
            self._end_watchers = []
        self._end_watchers.append(told)
        self._when_ended(self._tell_end_watchers)
        try:
            yield
        finally:
            self._end_watchers.remove(told)

    def _tell_end_watchers(self) -> None:
        # Called again if it runs out of memory: what is told twice takes no notice.
        for told in self._end_watchers or ():
            told()

    # --- facts ---------------------------------------------------------------

    @property
    def id(self) -> int | None:
        """A number that no other connection of the engine has or will have soon:
        generation and slot. None once closed."""
        return self._handle

    @property
    def local_address(self) -> SocketAddress:
        """This end's address, as `socket.socket.getsockname` gives it: host and port
        for TCP, and more for IPv6; a path, or bytes for an abstract name, of a unix
        socket. Stays after the close."""
        return self._address(remote=False)

    @property
    def remote_address(self) -> SocketAddress:
        """The peer's address, as `socket.socket.getpeername` gives it. It stays, also
        after the peer has reset the connection, and after the close.

        Where a load balancer has told by the PROXY protocol whom the connection is
        for, the address of that client; ``socket.getpeername()`` is the balancer's."""
        header = self.proxy_header
        if header is not None and header.source is not None:
            return header.source
        return self._address(remote=True)

    def _address(self, *, remote: bool) -> SocketAddress:
        if self._addresses is None:
            self._addresses = {}
        if remote not in self._addresses:
            raw = self._raw_address(remote)
            if not raw:  # never connected, or the memory lacked to keep it
                raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
            self._addresses[remote] = socket_address(raw)
        return self._addresses[remote]

    @property
    def socket(self) -> SocketFacade:  # type: ignore[override]  # Trio's can be set
        """The socket's names and options, for software that asks for them. Its
        ``fileno()`` is -1 once closed here."""
        if self._facade is None:
            family = socket.AF_UNSPEC if self._family is None else self._family
            self._facade = SocketFacade(
                family, lambda: self._fd, self._is_readable, self._close, self._ensure_usable
            )
        return self._facade

    @overload
    def setsockopt(self, level: int, option: int, value: int | Buffer) -> None: ...

    @overload
    def setsockopt(self, level: int, option: int, value: None, length: int) -> None: ...

    def setsockopt(
        self, level: int, option: int, value: int | Buffer | None, length: int | None = None
    ) -> None:
        """Set an option of the socket, like `trio.SocketStream.setsockopt`."""
        if length is None and value is None:
            raise TypeError("value must not be None unless length is given")
        if length is not None and value is not None:
            raise TypeError(f"value must be None where length is given, not {value!r}")
        self._open_socket().setsockopt(level, option, value, length)

    @overload
    def getsockopt(self, level: int, option: int) -> int: ...

    @overload
    def getsockopt(self, level: int, option: int, buffersize: int) -> bytes: ...

    def getsockopt(self, level: int, option: int, buffersize: int = 0) -> int | bytes:
        """Read an option of the socket, like `trio.SocketStream.getsockopt`."""
        value: int | bytes = self._open_socket().getsockopt(level, option, buffersize or None)
        return value

    def _open_socket(self) -> SocketFacade:
        self._ensure_usable()
        if not self._open:
            raise trio.ClosedResourceError("this connection was already closed")
        return self.socket

    def statistics(self) -> ConnStatistics:
        """A snapshot of the counters."""
        self._ensure_thread()
        received, receives, sent, sends, unread, unsent, idle, age = self._counters()
        return ConnStatistics(
            bytes_received=received,
            receive_calls=receives,
            bytes_sent=sent,
            send_calls=sends,
            buffered_inbound=unread,
            buffered_outbound=unsent,
            idle_time=idle / 1e9,
            uptime=age / 1e9,
        )


# Software asks this before it uses a stream's `socket`, `setsockopt` or addresses,
# all of which are here. What type checkers are told: _passes_for.py.
trio.SocketStream.register(Conn)
