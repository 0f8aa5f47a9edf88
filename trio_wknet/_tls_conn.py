"""A `Conn` whose bytes are those of a TLS stream.

A byte that is sent on it past the stream would go out unencrypted, and one that is received
from it would be missing in a record. A flag would have to be checked by every receive and send
of every connection. The class of an object costs nothing to check, so a connection's class
is exchanged for as long as TLS is on it. The stream itself calls the methods of the native
layers (tls.pyx).
"""

from __future__ import annotations

from typing import Any, NoReturn

import trio

from trio_wknet._conn import Conn


class TLSConn(Conn):  # type: ignore[misc]  # final, see _trio_bases.py
    """A `Conn` on which `Conn.start_tls` has begun TLS. It refuses whatever receives, sends or
    takes the socket away; all else is as before."""

    __slots__ = ()


def _refuse(conn: TLSConn, *_: Any, **__: Any) -> NoReturn:
    conn._ensure_thread()
    if not conn._open:
        raise trio.ClosedResourceError("this connection was already closed")
    raise trio.BusyResourceError(
        "this connection's bytes are those of a TLS stream: use the TLSStream; its unwrap() gives "
        "the connection back"
    )


for _name in (
    *("receive_some", "receive_nowait", "receive_into", "peek", "discard", "framed"),
    *("receive_exactly", "receive_exactly_nowait", "receive_until", "receive_until_nowait"),
    *("send_all", "send_nowait", "send_vectored", "send_file", "send_eof", "flush"),
    *("wait_send_all_might_not_block", "detach", "start_tls"),
):
    setattr(TLSConn, _name, _refuse)


def begin_tls(conn: Conn) -> None:
    """Have a connection used by a TLS stream only."""
    conn.__class__ = TLSConn


def end_tls(transport: object) -> None:
    """The stream gave its transport back."""
    if isinstance(transport, TLSConn):
        transport.__class__ = Conn  # type: ignore[assignment]
