"""TLS over what is ours, in place of `trio.SSLStream` and `trio.SSLListener`.

Trio's own take any transport, and as context anything that has ``wrap_bio``. Where a `Conn` or a
`Listener` of ours meets a context of the standard library's, ours do the same for less. Anything
else stays Trio's: so it behaves, and fails, as it always has.
"""

from __future__ import annotations

import ssl

from trio_wknet._conn import Conn
from trio_wknet._listener import Listener
from trio_wknet._tls import TLSStream
from trio_wknet._tls_conn import TLSConn
from trio_wknet._tls_listener import TLSListener


class SSLListener(TLSListener):  # type: ignore[misc]  # final, see _trio_bases.py
    """What stands in for a `trio.SSLListener`. What it accepts is as if made by
    `trio.SSLStream`: of a connection that can still be used without it, as by software that ends
    TCP's direction itself."""

    def _over(self, conn: Conn) -> TLSStream:
        return TLSStream(
            conn, self.ssl_context, server_side=True, https_compatible=self._https_compatible
        )


def is_for_ours(transport_stream: object, ssl_context: object) -> bool:
    """Whether a `TLSStream` does what `trio.SSLStream` would. TLS on a connection that has TLS is
    a mistake, which Trio's reports when it is used."""
    return (
        isinstance(transport_stream, Conn)
        and not isinstance(transport_stream, TLSConn)
        and isinstance(ssl_context, ssl.SSLContext)
    )


def is_listener_for_ours(transport_listener: object, ssl_context: object) -> bool:
    """Whether a `TLSListener` does what `trio.SSLListener` would. A client's context is a mistake,
    which Trio's reports when it accepts."""
    return (
        isinstance(transport_listener, Listener)
        and isinstance(ssl_context, ssl.SSLContext)
        and ssl_context.protocol != ssl.PROTOCOL_TLS_CLIENT
    )
