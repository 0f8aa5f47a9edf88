"""Framings: how a stream of bytes is divided into messages.

They are plain values, checked here once; the scanners on the reactor (`framing.pyx`) work
with the numbers that `compiled` gives.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import attrs

from trio_wknet._native.trio.framed import CompiledFraming
from trio_wknet._options import _boolean, _integer

_MAX_FRAME = 1 << 30
_MAX_HEADER = 65_536

# FramingKind in framing.pxd.
_LENGTH_PREFIXED, _DELIMITED, _FIXED_LENGTH, _VARINT_PREFIXED = 1, 2, 3, 4

_max_frame = _integer(1, _MAX_FRAME)


def _size(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"size must be an integer, not {value!r}")
    if value not in (1, 2, 3, 4, 8):
        raise ValueError(f"size must be 1, 2, 3, 4 or 8 bytes, not {value!r}")


def _byteorder(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value not in ("big", "little"):
        raise ValueError(f"byteorder must be 'big' or 'little', not {value!r}")


def _bytes(value: object) -> object:
    return bytes(value) if isinstance(value, (bytearray, memoryview)) else value


def _delimiter(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, bytes):
        raise TypeError(f"delimiter must be bytes, not {value!r}")
    if not 1 <= len(value) <= _MAX_HEADER:
        raise ValueError(f"delimiter must hold 1 to {_MAX_HEADER} bytes, not {len(value)}")


def _strip(instance: LengthPrefixed, attribute: attrs.Attribute[Any], value: int | None) -> None:
    if value is None:
        return
    _integer(0, _MAX_HEADER)(instance, attribute, value)
    most = instance.offset + instance.size + max(instance.adjustment, 0)
    if value > most:
        raise ValueError(
            f"strip must be at most {most}, the header and a positive adjustment, not {value}"
        )


def _fits(instance: Delimited, attribute: attrs.Attribute[Any], value: int) -> None:
    _max_frame(instance, attribute, value)
    if instance.keep and value < len(instance.delimiter):
        raise ValueError(
            f"max_frame must be at least {len(instance.delimiter)}, the delimiter that is kept, "
            f"not {value}"
        )


@attrs.frozen
class LengthPrefixed:
    """A length in front of each frame, as in most binary protocols.

    On the wire a frame is ``offset`` bytes, then the length field, then as many bytes as the
    field says plus ``adjustment``. Delivered is all of that but the first ``strip`` bytes.
    The same as netty's ``LengthFieldBasedFrameDecoder``, whose ``lengthFieldOffset``,
    ``lengthFieldLength``, ``lengthAdjustment`` and ``initialBytesToStrip`` these are, with
    two differences: what is stripped is by default the header, and ``max_frame`` bounds
    what is delivered.

    The frame ``hello``, with a length of two bytes:

    ===================================  =============================  ================
    on the wire                          ``LengthPrefixed(2, ...)``     delivered
    ===================================  =============================  ================
    ``00 05 hello``                                                     ``hello``
    ``05 00 hello``                      ``"little"``                   ``hello``
    ``00 05 hello``                      ``strip=0``                    ``00 05 hello``
    ``00 07 hello`` (counts itself)      ``adjustment=-2``              ``hello``
    ``ca fe 00 05 hello``                ``offset=2``                   ``hello``
    ``ca fe 00 05 hello``                ``offset=2, strip=0``          ``ca fe 00 05 hello``
    ``00 05 fe hello`` (a byte more)     ``adjustment=1``               ``fe hello``
    ``00 05 fe hello``                   ``adjustment=1, strip=3``      ``hello``
    ``ca 00 05 fe hello``                ``offset=1, adjustment=1,      ``fe hello``
                                         strip=3``
    ``ca 00 09 fe hello`` (the whole)    ``offset=1, adjustment=-3,     ``fe hello``
                                         strip=3``
    ===================================  =============================  ================

    A frame is sent as it is delivered, so what is stripped must follow from it: all framings
    can send that strip nothing, and without ``offset`` those that strip bytes of the length
    field only. The length is written for the caller where it is stripped; a frame that begins
    with its header must tell its own length. With any other framing, sending raises
    `ValueError`.

    Raises:
      TypeError, ValueError: for a value of the wrong type or out of range; the message
          names it.
    """

    size: int = attrs.field(validator=_size)
    """Bytes of the length field: 1, 2, 3, 4 or 8."""

    byteorder: Literal["big", "little"] = attrs.field(default="big", validator=_byteorder)
    """Of the length field: ``"big"`` or ``"little"``. Default ``"big"``."""

    offset: int = attrs.field(default=0, kw_only=True, validator=_integer(0, _MAX_HEADER - 8))
    """Bytes in front of the length field. Default 0."""

    adjustment: int = attrs.field(
        default=0, kw_only=True, validator=_integer(-_MAX_FRAME, _MAX_FRAME)
    )
    """What is added to the length to get the number of bytes behind the field. Negative
    where the length counts the header, too. Default 0."""

    strip: int | None = attrs.field(default=None, kw_only=True, validator=_strip)
    """Bytes at the front that are not delivered: at most the header and a positive
    ``adjustment``, which are in every frame. Default ``offset + size``."""

    max_frame: int = attrs.field(kw_only=True, validator=_max_frame)
    """The most bytes that a frame may have as it is delivered, up to 2**30. A longer one is
    a `FrameTooLong` at its header."""

    @property
    def _stripped(self) -> int:
        return self.offset + self.size if self.strip is None else self.strip

    def _compile(self) -> CompiledFraming:
        return CompiledFraming(
            _LENGTH_PREFIXED,
            size=self.size,
            little_endian=self.byteorder == "little",
            offset=self.offset,
            adjustment=self.adjustment,
            strip=self._stripped,
            max_frame=self.max_frame,
        )


@attrs.frozen
class Delimited:
    """Frames that end with a delimiter, such as lines.

    Raises:
      TypeError, ValueError: for a value of the wrong type or out of range; the message
          names it.
    """

    delimiter: bytes = attrs.field(converter=_bytes, validator=_delimiter)
    """What ends a frame: 1 to 65536 bytes."""

    keep: bool = attrs.field(default=False, kw_only=True, validator=_boolean)
    """Whether it is delivered with its frame. Default False."""

    max_frame: int = attrs.field(kw_only=True, validator=_fits)
    """The most bytes that a frame may have as it is delivered, up to 2**30. Where more come
    without a delimiter, that is a `FrameTooLong`."""

    def _compile(self) -> CompiledFraming:
        return CompiledFraming(
            _DELIMITED, delimiter=self.delimiter, keep=self.keep, max_frame=self.max_frame
        )


@attrs.frozen
class FixedLength:
    """Frames of one length.

    Raises:
      TypeError, ValueError: for ``n``.
    """

    n: int = attrs.field(validator=_max_frame)
    """Bytes of each, from 1 to 2**30."""

    def _compile(self) -> CompiledFraming:
        return CompiledFraming(_FIXED_LENGTH, max_frame=self.n)


@attrs.frozen
class VarintPrefixed:
    """A varint in front of each frame, as protobuf's ``writeDelimitedTo`` writes it: seven
    bits of the length in each byte, the lowest first, all but the last with the high bit
    set.

    Raises:
      TypeError, ValueError: for ``max_frame``.
    """

    max_frame: int = attrs.field(validator=_max_frame)
    """The most bytes that a frame may have, without its length, up to 2**30."""

    def _compile(self) -> CompiledFraming:
        return CompiledFraming(_VARINT_PREFIXED, max_frame=self.max_frame)


Framing = LengthPrefixed | Delimited | FixedLength | VarintPrefixed
FRAMINGS = (LengthPrefixed, Delimited, FixedLength, VarintPrefixed)


def require_framing(framing: object) -> None:
    """Refuse what is no framing.

    Raises:
      TypeError: saying so.
    """
    if not isinstance(framing, FRAMINGS):
        names = ", ".join(kind.__name__ for kind in FRAMINGS)
        raise TypeError(f"framing must be one of {names}, not {framing!r}")


@lru_cache(maxsize=256)
def compiled(framing: Framing) -> CompiledFraming:
    """The numbers that the scanners work with. A listener's connections share them."""
    return framing._compile()
