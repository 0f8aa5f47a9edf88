"""What can be set of a WebSocket."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from trio_wknet._options import _boolean, _integer, _some_seconds
from trio_wknet._websocket.http import is_token

if TYPE_CHECKING:
    from collections.abc import Iterable

_MAX_MESSAGE = 1 << 29


def _tokens(value: Iterable[str]) -> tuple[str, ...]:
    """Names of subprotocols, in the order of preference."""
    if isinstance(value, str):
        raise TypeError(f"subprotocols must be several names, not the string {value!r}")
    try:
        names = tuple(value)
    except TypeError:
        raise TypeError(f"subprotocols must be several names, not {value!r}") from None
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"subprotocols must be strings, not {name!r}")
        if not is_token(name):
            raise ValueError(f"subprotocols: {name!r} is no token")
    if len(set(names)) < len(names):
        raise ValueError(f"subprotocols must differ: {names!r}")
    return names


def _origins(value: Iterable[str | None] | None) -> tuple[str | None, ...] | None:
    if value is None:
        return None
    if isinstance(value, str):
        raise TypeError(f"origins must be several origins, not the string {value!r}")
    try:
        origins = tuple(value)
    except TypeError:
        raise TypeError(f"origins must be several origins, not {value!r}") from None
    for origin in origins:
        if origin is not None and not isinstance(origin, str):
            raise TypeError(f"origins must be strings or None, not {origin!r}")
    return origins


@attrs.frozen(kw_only=True)
class PerMessageDeflate:
    """Compression of messages (RFC 7692), as this end wants it. What both ends agree on may be
    less.

    A connection with it takes some 40 KiB for receiving and 260 KiB for sending with the
    default window, and with one of 12 bits an eighth of that. With
    ``context_takeover=False`` nothing is kept between messages.

    Raises:
      TypeError, ValueError: if a value has the wrong type, or is out of range; the
          message names it.
    """

    level: int = attrs.field(default=2, validator=_integer(0, 9))
    """zlib's: 1 is fastest, 9 smallest, 0 stores. Default 2: with JSON of 1 KiB it takes half
    as long as zlib's own default, 6, for a tenth more bytes."""

    window_bits: int = attrs.field(default=15, validator=_integer(9, 15))
    """The window of what is sent, and of what is asked of the peer, is 2 to the power of this
    number of bytes. From 9 to 15; default 15. (The protocol allows 8, and zlib does not: an
    offer that insists on it is not accepted.)"""

    context_takeover: bool = attrs.field(default=True, validator=_boolean)
    """Whether a message is compressed with what was sent before in mind, in both directions.
    Default True. Without it every message stands for itself, and no memory is kept between
    messages."""

    threshold: int = attrs.field(default=64, validator=_integer(0, _MAX_MESSAGE))
    """Bytes from which on a message is compressed. From 0 to 2**29; default 64."""


@attrs.frozen(kw_only=True)
class WebSocketOptions:
    """How a WebSocket is opened, kept and closed, of a listener's or a client's.

    Raises:
      TypeError, ValueError: if a value has the wrong type, or is out of range; the
          message names it.
    """

    max_message: int = attrs.field(default=1_048_576, validator=_integer(1, _MAX_MESSAGE))
    """Bytes of a received message, decompressed, all its fragments together. A longer one
    closes the WebSocket with code 1009, at the header that announces it. From 1 to 2**29;
    default 1048576."""

    max_fragments: int = attrs.field(default=65_536, validator=_integer(1, _MAX_MESSAGE))
    """Fragments of a received message. More of them close the WebSocket with code 1009. From
    1 to 2**29; default 65536."""

    handshake_time: float = attrs.field(default=10.0, validator=_some_seconds)
    """Seconds that the handshake may take. Above 0, up to 86400; default 10."""

    max_header: int = attrs.field(default=8192, validator=_integer(256, 65_536))
    """Bytes of the peer's request or response, its body excluded. From 256 to 65536; default
    8192."""

    close_time: float = attrs.field(default=10.0, validator=_some_seconds)
    """Seconds that `WebSocket.aclose` waits for the peer's close frame. Above 0, up to 86400;
    default 10."""

    subprotocols: tuple[str, ...] = attrs.field(default=(), converter=_tokens)
    """Names of application protocols, the preferred one first: those that a client offers,
    or a server can speak. Default none."""

    origins: tuple[str | None, ...] | None = attrs.field(default=None, converter=_origins)
    """For a server, the values of ``Origin`` that it accepts, such as
    ``"https://example.org"``; None in it accepts clients that send none, as no browser does.
    Default None: any. A server that recognises its users by cookies must set it, or pages
    from anywhere can act for them."""

    ping_interval: float | None = attrs.field(
        default=None, validator=attrs.validators.optional(_some_seconds)
    )
    """Seconds without bytes from the peer after which it is sent a ping. Above 0, up to
    86400; default None: never. No task runs for it: the reactor sends it, and sees the pong.
    Nor is Trio's loop woken, unless it turns the reactor (``reactors=0``). Each ping is bytes
    sent, and each pong bytes received, so an ``idle_timeout`` that is longer than this never
    passes while the peer answers."""

    ping_timeout: float | None = attrs.field(
        default=None, validator=attrs.validators.optional(_some_seconds)
    )
    """Seconds after such a ping within which the peer has to send something, or else the
    connection ends, with ``close_code`` 1011 and ``close_reason`` ``"ping timeout"``, which
    whoever sends or receives learns from `ConnectionClosed`. Above 0, up to 86400; default
    None: as long as ``ping_interval``. While messages that were not received hold up reading
    (``limits.inbound``), the peer is not judged. Neither is done over a stream that is no
    `Conn`."""

    compression: PerMessageDeflate | None = attrs.field(
        default=None,
        validator=attrs.validators.optional(attrs.validators.instance_of(PerMessageDeflate)),
    )
    """Compress messages if the peer can, too. Default None: never."""


def check_options(options: object) -> None:
    if not isinstance(options, WebSocketOptions):
        raise TypeError(f"options must be WebSocketOptions, not {options!r}")


def with_subprotocols(
    options: WebSocketOptions, subprotocols: Iterable[str] | None
) -> WebSocketOptions:
    """The options, with these subprotocols if there are any.

    Raises:
      TypeError, ValueError: if one of them is invalid.
    """
    check_options(options)
    if subprotocols is None:
        return options
    return attrs.evolve(options, subprotocols=subprotocols)
