"""permessage-deflate (RFC 7692): its negotiation, and messages through zlib."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_wknet._websocket.options import PerMessageDeflate

NAME = "permessage-deflate"
_TAIL = b"\x00\x00\xff\xff"
_BITS = {str(bits): bits for bits in range(8, 16)}
_MIN_BITS = 9  # of zlib
_FLAGS = ("server_no_context_takeover", "client_no_context_takeover")


class Unacceptable(Exception):
    """A compressed message is one that the peer must not send.

    Attributes:
      code: what the WebSocket is closed with.
      reason: why, in ASCII.
    """

    def __init__(self, code: int, reason: bytes) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


@attrs.frozen
class Agreed:
    """What both ends have agreed on."""

    server_bits: int
    client_bits: int
    server_takeover: bool
    client_takeover: bool

    def header(self, *, asked_bits: bool) -> str:
        """The extension as a response has it. `asked_bits`: the client has said that its
        window may be limited."""
        parts = [NAME]
        if not self.server_takeover:
            parts.append("server_no_context_takeover")
        if not self.client_takeover:
            parts.append("client_no_context_takeover")
        if self.server_bits < 15:
            parts.append(f"server_max_window_bits={self.server_bits}")
        if asked_bits and self.client_bits < 15:
            parts.append(f"client_max_window_bits={self.client_bits}")
        return "; ".join(parts)


def offers_in(extensions: list[str]) -> Iterator[dict[str, str | None] | None]:
    """The parameters of each permessage-deflate in a list of extensions; None for one that is
    malformed."""
    for extension in extensions:
        name, *parts = (part.strip() for part in extension.split(";"))
        if name.lower() == NAME:
            yield _parameters(parts)


def _parameters(parts: list[str]) -> dict[str, str | None] | None:
    found: dict[str, str | None] = {}
    for part in parts:
        name, equals, value = (text.strip() for text in part.partition("="))
        name = name.lower()
        if name in found:
            return None
        found[name] = value.strip('"') if equals else None
    return found


def _bits(found: dict[str, str | None], name: str, *, bare: int | None) -> int | None:
    """A window's size in bits: 15 if nothing is said of it, `bare` if it is named without a
    value; None if it is malformed."""
    if name not in found:
        return 15
    value = found[name]
    return bare if value is None else _BITS.get(value)


def accept_offer(extensions: list[str], own: PerMessageDeflate) -> tuple[Agreed, str] | None:
    """By a server: what is agreed on, and the extension's text in the response; None if no
    offer can be accepted."""
    for offer in offers_in(extensions):
        if offer is None or not _is_known(offer):
            continue
        server_bits = _bits(offer, "server_max_window_bits", bare=None)
        client_bits = _bits(offer, "client_max_window_bits", bare=15)
        if server_bits is None or client_bits is None or server_bits < _MIN_BITS:
            continue
        asked_bits = "client_max_window_bits" in offer
        agreed = Agreed(
            server_bits=min(server_bits, own.window_bits),
            client_bits=min(client_bits, own.window_bits) if asked_bits else 15,
            server_takeover=own.context_takeover and "server_no_context_takeover" not in offer,
            client_takeover=own.context_takeover and "client_no_context_takeover" not in offer,
        )
        return agreed, agreed.header(asked_bits=asked_bits)
    return None


def _is_known(found: dict[str, str | None]) -> bool:
    """Whether all parameters exist, and those without a value have none."""
    bits = {"server_max_window_bits", "client_max_window_bits"}
    return set(found) <= bits.union(_FLAGS) and all(found.get(flag) is None for flag in _FLAGS)


def offer(own: PerMessageDeflate) -> str:
    """What a client offers."""
    parts = [NAME]
    if not own.context_takeover:
        parts += list(_FLAGS)
    if own.window_bits < 15:
        parts.append(f"server_max_window_bits={own.window_bits}")
        parts.append(f"client_max_window_bits={own.window_bits}")
    else:
        parts.append("client_max_window_bits")
    return "; ".join(parts)


def read_response(extensions: list[str], own: PerMessageDeflate) -> Agreed | None:
    """By a client: what the server has agreed on, if it has.

    Raises:
      ValueError: if it is not an answer to what `offer` offers.
    """
    if not extensions:
        return None
    found = list(offers_in(extensions))
    if len(extensions) != 1 or len(found) != 1 or found[0] is None or not _is_known(found[0]):
        raise ValueError(f"the server wants extensions that were not offered: {extensions}")
    answer = found[0]
    server_bits = _bits(answer, "server_max_window_bits", bare=None)
    client_bits = _bits(answer, "client_max_window_bits", bare=None)
    if server_bits is None or client_bits is None or client_bits < _MIN_BITS:
        raise ValueError(f"the server wants impossible windows: {extensions[0]}")
    if server_bits > own.window_bits or (
        not own.context_takeover and "server_no_context_takeover" not in answer
    ):
        raise ValueError(f"the server does not keep to the offer: {extensions[0]}")
    return Agreed(
        server_bits=server_bits,
        client_bits=min(client_bits, own.window_bits),
        server_takeover="server_no_context_takeover" not in answer,
        client_takeover=own.context_takeover and "client_no_context_takeover" not in answer,
    )


class Inflater:
    """Received messages, decompressed."""

    def __init__(self, bits: int, *, takeover: bool, max_message: int) -> None:
        self._bits = bits
        self._takeover = takeover
        self._max_message = max_message
        self._state = self._fresh()

    def _fresh(self) -> zlib._Decompress:
        return zlib.decompressobj(wbits=-max(self._bits, _MIN_BITS))

    def message(self, packed: bytes, *, is_text: bool) -> str | bytes:
        """A whole message, as it is delivered.

        Raises:
          Unacceptable: if it would be longer than allowed (never more than that is in memory),
              is not properly compressed, or is text and not UTF-8.
        """
        message = self._decompressed(packed)
        if not is_text:
            return message
        try:
            return message.decode()
        except UnicodeDecodeError:
            raise Unacceptable(1007, b"text is not UTF-8") from None

    def _decompressed(self, packed: bytes) -> bytes:
        state = self._state
        try:
            message = state.decompress(packed + _TAIL, self._max_message + 1)
        except zlib.error:
            raise Unacceptable(1002, b"message cannot be decompressed") from None
        if len(message) > self._max_message:
            raise Unacceptable(1009, b"message is too big")
        if state.eof or not self._takeover:
            self._state = self._fresh()
        return message


class Deflater:
    """Messages to send, compressed."""

    def __init__(self, bits: int, *, takeover: bool, own: PerMessageDeflate) -> None:
        self._bits = bits
        self._takeover = takeover
        self._level = own.level
        self.threshold = own.threshold
        self._state: zlib._Compress | None = None

    def compress(self, data: bytes | memoryview) -> bytes:
        """A whole message, as it is to be sent, next after those before."""
        state = self._state
        if state is None:
            state = self._fresh()
        if self._takeover:
            self._state = state
        return _packed(state, data)

    def compress_alone(self, data: bytes | memoryview) -> bytes:
        """A whole message that refers to none before it, and to which none refers."""
        return _packed(self._fresh(), data)

    def restart(self) -> None:
        """Refer to nothing that was compressed so far."""
        self._state = None

    def _fresh(self) -> zlib._Compress:
        # Hash tables in proportion to the window.
        return zlib.compressobj(self._level, zlib.DEFLATED, -self._bits, self._bits - 7)


def _packed(state: zlib._Compress, data: bytes | memoryview) -> bytes:
    packed = state.compress(data) + state.flush(zlib.Z_SYNC_FLUSH)
    return packed[: -len(_TAIL)]


def coders(
    agreed: Agreed, own: PerMessageDeflate, *, server: bool, max_message: int
) -> tuple[Inflater, Deflater]:
    """The two ends of compression at a server, or at a client."""
    mine = (agreed.server_bits, agreed.server_takeover)
    theirs = (agreed.client_bits, agreed.client_takeover)
    if not server:
        mine, theirs = theirs, mine
    return (
        Inflater(theirs[0], takeover=theirs[1], max_message=max_message),
        Deflater(mine[0], takeover=mine[1], own=own),
    )
