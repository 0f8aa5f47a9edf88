"""Addresses with TLS."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl

_WITHOUT = {"tls": "tcp", "wss": "ws"}


def split_tls(
    address: str | int, context: object, *, server_side: bool
) -> tuple[str | int, ssl.SSLContext | None]:
    """The address without TLS that ``tls://host:port`` or ``wss://host:port[/path]`` is over,
    and the context; None if it is an address without TLS.

    Raises:
      TypeError, ValueError: if ``tls`` is not a context for this end, or does not go with the
          address.
    """
    scheme, rest = "", ""
    if isinstance(address, str):
        scheme, _, rest = address.partition("://")
    if scheme not in _WITHOUT:
        if context is not None:
            raise ValueError(
                f"tls must be None unless the address begins with 'tls://' or 'wss://', "
                f"not {address!r}"
            )
        return address, None
    if context is None:
        raise ValueError(f"tls must be given for {address!r}: an ssl.SSLContext")
    from trio_wknet._tls import check_context

    return f"{_WITHOUT[scheme]}://{rest}", check_context(context, "tls", server_side=server_side)
