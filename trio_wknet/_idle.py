"""Idle: an idle timeout with a limit of its own for each direction."""

from __future__ import annotations

from typing import Any

import attrs

MAX_SECONDS = 1_073_741  # what a rule of the core can say, in milliseconds (idle.pxd)


def _some_seconds(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{attribute.name} must be a number of seconds, not {value!r}")
    if not 0 < value <= MAX_SECONDS:
        raise ValueError(
            f"{attribute.name} must be more than 0 seconds, up to {MAX_SECONDS}, not {value!r}; "
            "None means no limit"
        )


@attrs.frozen(kw_only=True)
class Idle:
    """How long each direction of a connection may be without bytes, for ``idle_timeout``.

    A plain number there bounds the time without bytes in either direction: a peer that never
    answers lives on for as long as the server sends to it. Here each direction has a limit of
    its own, and the one that passes first counts::

        async with open_wknet_listener(address, idle_timeout=Idle(read=60)) as listener:
            ...

    The connection is closed with ``close_reason`` ``"read idle"`` or ``"write idle"``.

    Raises:
      TypeError, ValueError: if a value has the wrong type, or is out of range, or neither is
          given; the message names it.
    """

    read: float | None = attrs.field(
        default=None, validator=attrs.validators.optional(_some_seconds)
    )
    """Seconds without bytes received. Above 0, up to 1073741 (12 days), rounded up to
    milliseconds. None, the default: no limit."""

    write: float | None = attrs.field(
        default=None, validator=attrs.validators.optional(_some_seconds)
    )
    """Seconds without bytes sent, that is, taken by the kernel, whether or not there were
    any to send. The same values. None, the default: no limit."""

    def __attrs_post_init__(self) -> None:
        if self.read is None and self.write is None:
            raise ValueError("Idle needs read or write")
