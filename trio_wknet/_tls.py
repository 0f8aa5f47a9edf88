"""TLSStream: `trio.SSLStream`'s contract over compiled receives and sends.

The work is done by the native base (`_native/trio/tls.pyx`); here is what need not be fast:
making one, its end, and what it forwards to the `ssl.SSLObject`.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, ClassVar

import idna
import trio

from trio_wknet._native.trio.idle_point import IdlePoint
from trio_wknet._native.trio.idle_scopes import IdleWatch
from trio_wknet._native.trio.tls import ensure_unused, leave_groups
from trio_wknet._native.trio.tls_send import TLSSend
from trio_wknet._tls_conn import begin_tls, end_tls
from trio_wknet._tls_frame_channel import TLSFrameChannel
from trio_wknet._tls_over_conn import OverConn
from trio_wknet._trio_bases import TLSStreamBase

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from trio_wknet._conn import Conn
    from trio_wknet._files import BinaryFile
    from trio_wknet._framing import Framing


class TLSStream(TLSSend, OverConn, TLSStreamBase):  # type: ignore[misc,override]  # final, see _trio_bases.py
    """TLS over a `Conn`: all of `trio.SSLStream`, and ``isinstance`` of it.

    Over another transport it behaves the same, at about the cost of `trio.SSLStream`.
    ``ssl`` does the encryption, with the caller's own context: its callbacks, certificates
    and options apply.

    What differs from `trio.SSLStream`, over a `Conn`:

    * `receive_some` returns what several records held, if they are there.
    * `aclose` says goodbye without waiting for a peer that does not read: the reactor
      sends it, see `Conn.aclose`. While another task is sending, it ends without.
    * Tasks that wait for a handshake that fails in another task get
      `trio.BrokenResourceError`.

    As with `trio.SSLStream`, a renegotiation of TLS 1.2 that meets data of the application breaks
    the stream.

    What a `Conn` has besides, it has, too, but for `Conn.peek`, `Conn.discard`,
    `Conn.send_eof`, `Conn.close_nowait` and `Conn.detach`. ``context`` is the
    `ssl.SSLContext`, and what is about the socket is that of the ``transport_stream``.

    All of `ssl.SSLObject`'s attributes and methods are those of the stream, too. Those that
    tell of the encrypted connection, such as ``cipher`` and ``selected_alpn_protocol``,
    raise `trio.NeedHandshakeError` before the handshake.

    Args:
      transport_stream: a `Conn`, or any `trio.abc.Stream`, which is the stream's from here
          on.
      ssl_context: an `ssl.SSLContext`.
      server_hostname: for a client, the name that is sent to the server, and that its
          certificate is checked for; by default None, with which the handshake fails if the
          context checks names.
      server_side: whether this is the server's end; by default False.
      https_compatible: whether to end streams as HTTPS does: no goodbye is sent, and none
          is expected. By default False: an end without goodbye is a broken stream.

    Raises:
      TypeError: if ``transport_stream`` is not a `trio.abc.Stream`, or ``ssl_context`` not
          an `ssl.SSLContext`.
      ValueError: if ``server_hostname`` is not valid.
    """

    _forwarded: ClassVar = {
        "compression",
        "context",
        "cipher",
        "get_channel_binding",
        "getpeercert",
        "pending",
        "selected_alpn_protocol",
        "selected_npn_protocol",
        "server_hostname",
        "server_side",
        "session",
        "session_reused",
        "shared_ciphers",
        "version",
    }
    _after_handshake: ClassVar = _forwarded - {
        "context",
        "pending",
        "server_hostname",
        "server_side",
        "session",
    }

    def __init__(
        self,
        transport_stream: trio.abc.Stream,
        ssl_context: ssl.SSLContext,
        *,
        server_hostname: str | bytes | None = None,
        server_side: bool = False,
        https_compatible: bool = False,
    ) -> None:
        if not isinstance(transport_stream, trio.abc.Stream):
            raise TypeError(f"transport_stream must be a trio.abc.Stream, not {transport_stream!r}")
        if not isinstance(ssl_context, ssl.SSLContext):
            raise TypeError(f"ssl_context must be an ssl.SSLContext, not {ssl_context!r}")
        if isinstance(server_hostname, str) and not server_hostname.isascii():
            server_hostname = idna.encode(server_hostname, uts46=True)
        self._begin(transport_stream, ssl_context, server_hostname, server_side, https_compatible)

    def __getattr__(self, name: str) -> Any:
        if name not in self._forwarded:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if name in self._after_handshake and not self._handshaken:
            raise trio.NeedHandshakeError(f"call do_handshake() before calling {name!r}")
        return getattr(self._ssl_object, name)

    def __setattr__(self, name: str, value: object) -> None:
        if name in self._forwarded:
            setattr(self._ssl_object, name, value)
        else:
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._forwarded]

    def idle_point(self) -> AbstractContextManager[trio.CancelScope]:
        """Say that nothing but the wait in this block is under way, like `Conn.idle_point`. Not
        a checkpoint.

        A record of which a part has come counts as a request that has begun, unless OpenSSL has
        taken that part in already, which cannot be seen; the handshake does not count as one.
        Over another transport than a `Conn` nothing cancels the block.

        Returns:
          A context manager, to be entered once, whose value is the `trio.CancelScope`.

        Raises:
          RuntimeError: if it is entered in another thread, or twice.
        """
        return self._idle_point(None)

    def _idle_point(self, holds: Callable[[], bool] | None) -> IdlePoint:
        """`holds` tells whether a layer above has bytes that were not received."""
        transport = self.transport_stream
        conn = transport if isinstance(transport, IdleWatch) else None
        return IdlePoint(conn, self, holds)

    async def do_handshake(self) -> None:
        """Ensure that the handshake is done. A checkpoint.

        `receive_some` and `send_all` do the same. If another task is at it, this waits for
        that one. If the call is cancelled, the stream is broken.

        Raises:
          trio.ClosedResourceError: if the stream is closed, before or during the call.
          trio.BrokenResourceError: if the handshake fails, or the connection broke. Its
              cause is the `OSError`, which an `ssl.SSLError` is.
          RuntimeError: if called from another thread.
        """
        await self._handshake()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the transport takes bytes again, or is broken. A checkpoint.

        It is a hint: `send_all` may still wait.

        Raises:
          trio.ClosedResourceError: if the stream is closed, before or during the call.
          trio.BrokenResourceError: if it is broken.
          trio.BusyResourceError: if another task is sending.
          RuntimeError: if called from another thread.
        """
        await self._wait_writable()

    def framed(self, framing: Framing) -> TLSFrameChannel:
        """Receive and send messages instead of bytes, like `Conn.framed`. Not a checkpoint.

        Frames are found in what was decrypted, from the first byte that was not taken. Until
        `TLSFrameChannel.unframe` gives the stream back, receiving bytes from it, and `unwrap`,
        is refused.

        Args:
          framing: how the stream is divided: `LengthPrefixed`, `Delimited`, `FixedLength` or
              `VarintPrefixed`, with frames of at most 2**29 bytes.

        Returns:
          A `TLSFrameChannel`.

        Raises:
          TypeError, ValueError: ``framing`` is none of these, or allows longer frames.
          trio.BusyResourceError: it is framed already, or a task is receiving from it.
          trio.ClosedResourceError: closed here.
          trio.BrokenResourceError: the stream is broken.
          RuntimeError: if called from another thread.
        """
        return TLSFrameChannel._over(self, framing)

    async def send_file(self, file: BinaryFile, offset: int = 0, count: int | None = None) -> int:
        """Encrypt a file, or a part of it, and send that; returns once the kernel owns every
        byte. A checkpoint.

        It takes the same files as `Conn.send_file`, and reads them in worker threads where a
        disk has to be waited for. If the call is cancelled while it reads, the stream can still
        be used; in the middle of a record it is broken, as by `send_all`.

        Args:
          file: a file opened in binary mode for reading, by `open` or `trio.open_file`, or an
              object with a ``read`` that returns bytes.
          offset: where to begin, in bytes from the file's beginning; by default 0.
          count: the most bytes to send; by default None, all up to the end.

        Returns:
          The number of bytes of the file that were sent, fewer than ``count`` if it ends before.

        Raises:
          trio.ClosedResourceError: if the stream is closed, before or during the call.
          trio.BrokenResourceError: if the connection broke, or TLS failed. Its cause is the
              `OSError`, which an `ssl.SSLError` is.
          trio.BusyResourceError: if another task is sending.
          TypeError: if ``file`` is not a binary file, or another argument not an integer.
          ValueError: if ``file`` is closed or not opened for reading, or ``offset`` or
              ``count`` is negative.
          OSError: if the file cannot be read, or there is no descriptor left: it takes one.
          RuntimeError: if called from another thread.
        """
        from trio_wknet._files import open_source

        return await self._send_file(open_source(file, offset, count))

    async def unwrap(self) -> tuple[Any, bytes]:
        """Say goodbye and wait for the peer's, after which the transport can be used
        without encryption. A checkpoint. Afterwards this stream is closed, and its
        ``transport_stream`` is None.

        Returns:
          The transport, and the bytes that came behind the peer's goodbye, which are to be
          taken for received from it.

        Raises:
          trio.ClosedResourceError: if the stream is closed, before or during the call.
          trio.BrokenResourceError: if the connection broke, or TLS failed, as by data that
              has not been received. Its cause is the `OSError`, which an `ssl.SSLError` is.
          trio.BusyResourceError: if another task is receiving or sending.
          RuntimeError: if called from another thread.
        """
        transport, rest = await self._shut_down()
        end_tls(transport)
        return transport, rest

    async def aclose(self) -> None:
        """Say goodbye, and close the transport. A checkpoint. Idempotent.

        A handshake that was not done is done first. With ``https_compatible`` there is no
        goodbye, and over a broken stream neither. If the call is cancelled, as by
        `trio.aclose_forcefully`, the transport is closed at once, without goodbye.

        Raises:
          trio.BrokenResourceError: if the handshake fails.
          RuntimeError: if called from another thread.
        """
        await self._close()


# For type checkers see _trio_bases.py.
trio.SSLStream.register(TLSStream)


def check_context(context: object, name: str, *, server_side: bool) -> ssl.SSLContext:
    """The context, if it is one for this end.

    Raises:
      TypeError, ValueError: the message begins with `name`.
    """
    if not isinstance(context, ssl.SSLContext):
        raise TypeError(f"{name} must be an ssl.SSLContext, not {context!r}")
    other = ssl.PROTOCOL_TLS_CLIENT if server_side else ssl.PROTOCOL_TLS_SERVER
    if context.protocol == other:
        end = "server" if server_side else "client"
        raise ValueError(f"{name} must be a context for a {end}, not {context!r} of the other end")
    return context


def check_server_hostname(context: ssl.SSLContext, name: object, *, server_side: bool) -> None:
    """Refuse a name that cannot be one, and its absence where one is needed."""
    if name is not None and not isinstance(name, (str, bytes)):
        raise TypeError(f"server_hostname must be a string or None, not {name!r}")
    if server_side and name is not None:
        raise ValueError(f"server_hostname must be None for the server's end, not {name!r}")
    if not server_side and context.check_hostname and not name:
        raise ValueError("server_hostname must be given: the context checks names")


def over_conn(
    conn: Conn,
    context: ssl.SSLContext,
    *,
    server_side: bool,
    server_hostname: str | bytes | None = None,
    https_compatible: bool = False,
) -> TLSStream:
    """A stream over a connection, which from here on refuses to be used without it."""
    ensure_unused(conn)
    stream = TLSStream(
        conn,
        context,
        server_side=server_side,
        server_hostname=server_hostname,
        https_compatible=https_compatible,
    )
    begin_tls(conn)
    leave_groups(conn)
    return stream


async def start_tls(
    conn: Conn,
    context: ssl.SSLContext,
    *,
    server_side: bool,
    server_hostname: str | bytes | None = None,
    https_compatible: bool = False,
) -> TLSStream:
    """What `Conn.start_tls` does, but for checking its arguments."""
    stream = over_conn(
        conn,
        context,
        server_side=server_side,
        server_hostname=server_hostname,
        https_compatible=https_compatible,
    )
    try:
        await stream.do_handshake()
    except trio.BrokenResourceError:
        stream._leave_to_reactor()  # the alert, which says why
        conn.close_nowait()
        raise
    except BaseException:
        conn._drop()
        raise
    return stream
