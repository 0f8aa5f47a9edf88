"""Conn: Trio's stream contract over one native slot.

Receiving and sending are in the native layers that this class derives from (`stream.pyx`
lists them). This file has what need not be fast: closing, waiting for the end, options,
addresses, counters.
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

from trio_wknet._frame_channel import FrameChannel
from trio_wknet._native.trio.idle_point import IdlePoint
from trio_wknet._native.trio.idle_scopes import IdleWatch, expire
from trio_wknet._native.trio.latch import Latch
from trio_wknet._sockets.address import socket_address
from trio_wknet._sockets.facade import SocketFacade, non_blocking
from trio_wknet._statistics import ConnStatistics
from trio_wknet._trio_bases import StreamBase

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from trio_wknet._engine import Engine
    from trio_wknet._files import BinaryFile
    from trio_wknet._framing import Framing
    from trio_wknet._native.trio.core import Core
    from trio_wknet._options import Limits
    from trio_wknet._sockets.address import SocketAddress
    from trio_wknet._tls import TLSStream

    if sys.version_info >= (3, 12):
        from collections.abc import Buffer
    else:
        from typing_extensions import Buffer


class Conn(IdleWatch, StreamBase):  # type: ignore[misc]  # final, see _trio_bases.py
    """A connection whose socket is driven by a reactor.

    It implements all of `trio.abc.HalfCloseableStream`, with Trio's errors:

    * `trio.ClosedResourceError` after a local close, also in tasks that are waiting
      when it happens;
    * `trio.BrokenResourceError` once the connection broke, with the `OSError` as
      its cause; bytes that arrived before are still received first;
    * `trio.BusyResourceError` for a second task that receives, or sends,
      while another one does.

    Every async method is a checkpoint. Cancellation is atomic: a cancelled receive has
    consumed no data. The exception is `send_all`, which may have sent a part;
    ``statistics().bytes_sent`` says how much.

    Its methods belong to the Trio run and the thread in which its engine was opened: they
    raise `RuntimeError` in any other thread, and in a forked child.

    `Listener.accept`, `Listener.serve`, `Engine.connect` and `Engine.adopt` return
    connections; there is no other way to make one.
    """

    # Its fields are the native base's: in event mode an object may be made for each
    # message, and setting fields from Python would double what that costs.
    __slots__ = ("__weakref__",)

    def __init__(self, *_: NoReturn, **__: NoReturn) -> None:
        raise TypeError(
            "a Conn cannot be constructed; Listener.accept, Listener.serve, Engine.connect and "
            "Engine.adopt return one"
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
        """Close gracefully. A checkpoint; it does not wait for the peer.

        The reactor sends what ``send_nowait`` left, then FIN, and then reads and
        discards input until the peer finishes too. Otherwise unread input would make the
        kernel send a reset, which destroys what the peer has not yet read.
        `Limits.linger_time` and `Limits.linger_bytes` bound that.

        If it is cancelled, as by `trio.aclose_forcefully`, it closes at once: what the
        kernel has taken is still sent, what ``send_nowait`` left is not. Idempotent.

        Raises:
          RuntimeError: if called from another thread. Nothing else, but `trio.Cancelled`.
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
        """Close gracefully, like `aclose`, from code that cannot await. Not a
        checkpoint. Idempotent.

        Raises:
          RuntimeError: if called from another thread.
        """
        self._close()

    def abort(self) -> None:
        """Close at once with a reset: the peer gets an error, and loses what it has
        not yet read. Not a checkpoint. Idempotent.

        Raises:
          RuntimeError: if called from another thread.
        """
        self._abort()

    async def detach(self) -> tuple[socket.socket, bytes]:
        """Take the socket back from the reactor. A checkpoint.

        What ``send_nowait`` left is sent first. Afterwards the connection is closed, with
        ``close_reason`` ``"detached"``. A task that starts to send meanwhile, or to
        receive once everything is sent, gets `trio.BusyResourceError`. Cancelled before
        everything is sent, it has no effect; after that it cannot be cancelled.

        Returns:
          The socket, non-blocking, and the bytes that were received and not yet taken.

        Raises:
          trio.BusyResourceError: if another task is sending or receiving.
          trio.ClosedResourceError: if the connection is closed, before or during the call.
          trio.BrokenResourceError: if the connection broke. Its cause is the `OSError`.
          RuntimeError: if called from another thread.
        """
        await self._detach()
        try:
            unread = self._take_unread()
            sock = non_blocking(self._fd)
        except BaseException:
            self._drop()  # no reactor watches it any more
            raise
        self._take_descriptor()
        return sock, unread

    @property
    def close_reason(self) -> str | None:
        """Why the connection ended: the first thing that ended it.

        None while it is open in both directions. ``"eof"``: the peer finished
        sending; it can still be sent to. ``"reset"``: the peer
        reset it. For another system error, its text. ``"closed"``,
        ``"aborted"``, ``"detached"``: by this program. ``"slow"``: by a broadcast of a
        `Group`, because the peer did not read. ``"idle"``, ``"read idle"``, ``"write idle"``: by
        its idle timeout, which `Idle` divides by direction. ``"no first byte"``, ``"too slow"``:
        by the `Admission` of its listener. ``"budget"``: it held most when the engine held more
        than ``max_buffered`` (`open_engine`). ``"frame too long"``, ``"malformed frame"``: by
        `Listener.serve_frames`.
        ``"engine closed"``: with its engine.
        """
        return self._reason()

    async def wait_closed(self) -> None:
        """Wait until ``close_reason`` is not None: the peer finished sending or is
        gone, or the connection was closed by this program. Works even if no task is
        receiving. A checkpoint.

        Raises:
          RuntimeError: if called from another thread.
        """
        ended = Latch(self._core)
        with self._watching_for_end(ended.set):
            await ended.wait()

    @contextmanager
    def cancel_on_disconnect(self) -> Iterator[trio.CancelScope]:
        """A cancel scope that is cancelled when the peer finishes sending or is
        gone, or the connection is closed by this program. Works even if no task is
        receiving. Not a checkpoint::

            with conn.cancel_on_disconnect() as scope:
                await long_computation()
            if scope.cancelled_caught:
                return

        Returns:
          A context manager, whose value is the `trio.CancelScope`.

        Raises:
          RuntimeError: if entered in another thread.
        """
        self._ensure_usable()
        with trio.CancelScope() as scope, self._watching_for_end(partial(expire, scope)):
            yield scope

    @contextmanager
    def _watching_for_end(self, callback: Callable[[], object]) -> Iterator[None]:
        self._ensure_usable()
        if self._end_watchers is None:
            self._end_watchers = []
        self._end_watchers.append(callback)
        self._when_ended(self._call_end_watchers)
        try:
            yield
        finally:
            self._end_watchers.remove(callback)

    def _call_end_watchers(self) -> None:
        # It is called again if it ran out of memory, and calls some twice: so each of them
        # must be idempotent, as setting a latch and cancelling a scope are.
        for callback in self._end_watchers or ():
            callback()

    def idle_point(self) -> AbstractContextManager[trio.CancelScope]:
        """Say that nothing but the wait in this block is under way, so that `Listener.drain`
        may end it. Not a checkpoint::

            while True:
                with conn.idle_point() as scope:
                    request = await conn.receive_until(b"\\n")
                if scope.cancelled_caught:
                    return  # the server ends
                await conn.send_all(await answer(request))

        A drain cancels the block, and nothing else of the handler; and later blocks at their
        first checkpoint. The handler may still send a goodbye. Close the connection then, or
        have it closed, since the drain waits for that.

        A block is not cancelled if bytes are there that were not received: they are a request
        that has begun. Only ``grace`` bounds the time that its peer takes for the rest, and a
        peer that never pauses. Nor is it cancelled if the connection has not sent a byte and
        is less than a second old, before that second is over: its first request is on the
        way.

        Without a listener, as for a connection that was connected or adopted, nothing cancels
        the block. Blocks may be nested, and several tasks may be in one of their own.

        Returns:
          A context manager, to be entered once, whose value is the `trio.CancelScope`.

        Raises:
          RuntimeError: if it is entered in another thread, or twice.
        """
        return IdlePoint(self)

    @property
    def engine(self) -> Engine:
        """The `Engine` that it belongs to. Stays after the close."""
        return self._core.engine

    # --- files ---------------------------------------------------------------

    async def send_file(self, file: BinaryFile, offset: int = 0, count: int | None = None) -> int:
        """Send a file, or a part of it, like asyncio's ``loop.sendfile``, and return once the
        kernel owns every byte. A checkpoint.

        The bytes of a plain file do not pass through this process: the kernel sends them
        (``sendfile``). What is not in memory is read ahead in a worker thread, so no disk
        holds up Trio or a reactor. Unlike asyncio's, it neither uses nor moves the
        file's position, and the file may be closed meanwhile.

        Any other object with a binary ``read`` is read in worker threads: `io.BytesIO`, a pipe,
        a `gzip.GzipFile` (whose plain bytes are sent, not those of its descriptor). If it can
        seek, ``offset`` is where it is read from; its position afterwards is undefined. If the
        call is cancelled, or the connection closed, it ends when the read that has begun
        does.

        What `send_nowait` left is sent before it, and nothing that is sent later overtakes
        it. Without ``count`` it ends where the file ends when it gets there, so what is appended
        meanwhile is sent, too. A file that ends early, even one that is truncated meanwhile,
        is no error: compare what is returned with what you announced to the peer. The kernel
        keeps no copy of what it sends, so what is overwritten in the file before the peer has
        received it may arrive changed: replace files that are being sent, do not rewrite them.

        If the call is cancelled, the connection breaks, or the file cannot be read, a part may
        have been sent; ``statistics().bytes_sent`` says how much, as for `send_all`.

        Args:
          file: a file opened in binary mode for reading, by `open` or `trio.open_file`, or an
              object with a ``read`` that returns bytes.
          offset: where to begin, in bytes from the file's beginning; by default 0. If it
              cannot seek, only 0 is valid, and means its position.
          count: the most bytes to send; by default None, all up to the end.

        Returns:
          The number of bytes that were sent, fewer than ``count`` if the file ends before.

        Raises:
          trio.ClosedResourceError: if the connection is closed, before or during the call,
              or `send_eof` was called.
          trio.BrokenResourceError: if the connection broke. Its cause is the `OSError`.
          trio.BusyResourceError: if another task is sending.
          TypeError: if ``file`` is not a binary file, or another argument not an integer.
          ValueError: if ``file`` is closed or not opened for reading, or ``offset`` or
              ``count`` is negative.
          OSError: if the file cannot be read, or there is no descriptor left: it takes one.
          RuntimeError: if called from another thread.
        """
        from trio_wknet._files import open_source

        self._ensure_usable()
        return await self._send_file(open_source(file, offset, count))

    # --- messages ------------------------------------------------------------

    def framed(self, framing: Framing) -> FrameChannel:
        """Receive and send messages instead of bytes. Not a checkpoint.

        Frames are found on the reactor, from the first byte that was not taken. Until
        `FrameChannel.unframe` gives the connection back, receiving bytes from it, and
        detaching it, is refused.

        Args:
          framing: how the stream is divided: `LengthPrefixed`, `Delimited`, `FixedLength`
              or `VarintPrefixed`.

        Returns:
          A `FrameChannel`. It refers to the connection, which it does not close by being
          thrown away.

        Raises:
          TypeError: ``framing`` is none of these.
          trio.BusyResourceError: it is framed already, or a task is receiving from it or
              detaching it, or `Listener.serve_events` or `Listener.serve_frames` is.
          trio.ClosedResourceError: closed here.
        """
        return FrameChannel._over(self, framing)

    # --- TLS -----------------------------------------------------------------

    async def start_tls(
        self,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
    ) -> TLSStream:
        """Begin TLS on this connection, and perform the handshake. A checkpoint.

        What was received and not taken counts as the peer's first bytes of TLS. So a peer that
        speaks early, as behind a ``STARTTLS`` that it was sure of, loses nothing; and
        unencrypted commands that came along fail the handshake instead of being taken for
        encrypted ones. What `send_nowait` left is sent before.

        From the call on, the connection is the stream's: what receives or sends on it, and
        `framed`, `detach` and another `start_tls`, raise `trio.BusyResourceError`, until
        `TLSStream.unwrap` gives it back. It leaves its groups, whose broadcasts are not encrypted;
        those that were begun before must be over. Closing it, its ``close_reason``,
        ``context``, idle timeouts, addresses, options and statistics stay as they are; bytes
        that move, and that are counted, are those of TLS.

        If the handshake fails, the peer is sent an alert, and the connection is closed. If the
        call is cancelled, the connection is closed at once. The handshake takes as long as the
        peer makes it take: use a deadline (`trio.fail_after`).

        Args:
          context: an `ssl.SSLContext`, with all of its callbacks and options.
          server_side: whether this is the server's end; by default False.
          server_hostname: for a client, the name that is sent to the server, and that its
              certificate is checked for. It must be given if the context checks names; by
              default None.

        Returns:
          A `TLSStream`, whose handshake is done.

        Raises:
          trio.BrokenResourceError: if the handshake fails, or the connection broke. Its cause is
              the `OSError`, which an `ssl.SSLError` is.
          trio.BusyResourceError: if another task is receiving or sending, if the
              connection is framed, has TLS already, or if `Listener.serve_events` or
              `Listener.serve_frames` receives from it. It stays as it is.
          trio.ClosedResourceError: if the connection is closed, before or during the call, or
              `send_eof` was called.
          TypeError, ValueError: if an argument is invalid.
          RuntimeError: if called from another thread.
        """
        from trio_wknet._tls import check_context, check_server_hostname, start_tls

        self._ensure_usable()
        check_context(context, "context", server_side=server_side)
        check_server_hostname(context, server_hostname, server_side=server_side)
        return await start_tls(
            self, context, server_side=server_side, server_hostname=server_hostname
        )

    # --- facts ---------------------------------------------------------------

    @property
    def id(self) -> int | None:
        """A number that no other connection of the engine has, and that is not reused
        soon: generation and slot. None once closed."""
        return self._handle

    @property
    def local_address(self) -> SocketAddress:
        """This end's address, as `socket.socket.getsockname` returns it: host and port
        for TCP, and more for IPv6; for a unix socket a path, or bytes for an abstract
        name. It is kept after the connection is closed."""
        return self._address(remote=False)

    @property
    def remote_address(self) -> SocketAddress:
        """The peer's address, as `socket.socket.getpeername` returns it. It is kept
        after the peer has reset the connection, and after it is closed.

        If a load balancer sent the client's address in a PROXY header, it is that
        address; ``socket.getpeername()`` returns the balancer's."""
        header = self.proxy_header
        if header is not None and header.source is not None:
            return header.source
        return self._address(remote=True)

    def _address(self, *, remote: bool) -> SocketAddress:
        if self._addresses is None:
            self._addresses = {}
        if remote not in self._addresses:
            raw = self._raw_address(remote)
            if not raw:  # never connected, or there was no memory to keep it
                raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
            self._addresses[remote] = socket_address(raw)
        return self._addresses[remote]

    @property
    def socket(self) -> SocketFacade:  # type: ignore[override]  # Trio's can be set
        """The socket's addresses and options, for software that asks for them. Its
        ``fileno()`` is -1 once this program has closed the connection."""
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
        """Set an option of the socket, like `trio.SocketStream.setsockopt`. Not a
        checkpoint.

        Args:
          level: such as `socket.IPPROTO_TCP`.
          option: such as `socket.TCP_NODELAY`.
          value: an integer, or bytes for an option that is a struct; None with ``length``.
          length: the length in bytes of an option that is set without a value; by default
              None.

        Raises:
          trio.ClosedResourceError: if the connection is closed.
          TypeError: if ``value`` and ``length`` are both given, or both None.
          OSError: if the kernel refuses the option.
          RuntimeError: if called from another thread.
        """
        if length is None and value is None:
            raise TypeError("value must not be None unless length is given")
        if length is not None and value is not None:
            raise TypeError(f"value must be None if length is given, not {value!r}")
        self._open_socket().setsockopt(level, option, value, length)

    @overload
    def getsockopt(self, level: int, option: int) -> int: ...

    @overload
    def getsockopt(self, level: int, option: int, buffersize: int) -> bytes: ...

    def getsockopt(self, level: int, option: int, buffersize: int = 0) -> int | bytes:
        """Read an option of the socket, like `trio.SocketStream.getsockopt`. Not a
        checkpoint.

        Args:
          level: such as `socket.IPPROTO_TCP`.
          option: such as `socket.TCP_NODELAY`.
          buffersize: the size in bytes of an option that is a struct. 0, the default: it
              is an integer.

        Returns:
          An integer, or bytes if there is a ``buffersize``.

        Raises:
          trio.ClosedResourceError: if the connection is closed.
          OSError: if the kernel does not know the option.
          RuntimeError: if called from another thread.
        """
        value: int | bytes = self._open_socket().getsockopt(level, option, buffersize or None)
        return value

    def _open_socket(self) -> SocketFacade:
        self._ensure_usable()
        if not self._open:
            raise trio.ClosedResourceError("this connection was already closed")
        return self.socket

    def statistics(self) -> ConnStatistics:
        """Return a snapshot of the counters. Not a checkpoint. After the connection is
        closed they stay as they were then.

        Returns:
          A `ConnStatistics`.

        Raises:
          RuntimeError: if called from another thread.
        """
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


# Software checks isinstance(stream, trio.SocketStream) before it uses a stream's `socket`,
# `setsockopt` or addresses, all of which Conn has. For type checkers see _trio_bases.py.
trio.SocketStream.register(Conn)
