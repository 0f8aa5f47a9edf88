"""What load to put on which server: `LoadOptions`, every value checked.

Three modes, by what the options say:

- *closed loop*: each connection keeps `depth` messages in flight. It shows the server's
  maximum throughput. Its latencies say little: less is sent to a server that stalls,
  so the stall is one slow message per connection.
- *open loop*, with `rate`: messages are sent by the clock, whether or not answers
  come, and latency counts from when a message should have been sent. Only its percentiles
  are honest.
- *churn*: connect, one message there and back, close. A message is a transaction,
  and its latency includes the connect.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import attrs

from trio_wknet._load.protocol import MAX_MESSAGE, PROTOCOLS, Protocol
from trio_wknet._load.target import MAX_SOURCES, unix_path

OPEN_LOOP_DEPTH = 64

_Check = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def _whole(low: int, high: int, *, optional: bool = False) -> _Check:
    """An int in a range, or None where that is a choice."""

    def check(_: object, field: attrs.Attribute[Any], value: object) -> None:
        if optional and value is None:
            return
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{field.name} must be an int, not {value!r}")
        if not low <= value <= high:
            raise ValueError(f"{field.name} must be from {low} to {high}, not {value!r}")

    return check


def _number(low: float, high: float, *, optional: bool = False) -> _Check:
    """A real number in a range, or None where that is a choice."""

    def check(_: object, field: attrs.Attribute[Any], value: object) -> None:
        if optional and value is None:
            return
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise TypeError(f"{field.name} must be a number, not {value!r}")
        if not low <= value <= high:
            raise ValueError(f"{field.name} must be from {low:g} to {high:g}, not {value!r}")

    return check


def _kind(kind: type) -> _Check:
    def check(_: object, field: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, kind):
            raise TypeError(f"{field.name} must be a {kind.__name__}, not {value!r}")

    return check


def _protocol(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{field.name} must be a str, not {value!r}")
    if value not in PROTOCOLS:
        raise ValueError(f"{field.name} must be one of {', '.join(PROTOCOLS)}, not {value!r}")


@attrs.frozen
class LoadOptions:
    """What load to put on which server.

    An invalid value raises `TypeError` or `ValueError` that names the argument and the value.
    """

    host: str = attrs.field(validator=_kind(str))
    """A host name, an IPv4 or IPv6 address, `unix:///path`, or `unix://@name`."""
    port: int | None = attrs.field(default=None, validator=_whole(1, 65535, optional=True))
    """The TCP port; None, and only then, for a unix socket."""
    connections: int = attrs.field(default=100, kw_only=True, validator=_whole(1, 1 << 20))
    """Connections; in churn, the number of transactions in parallel."""
    size: int = attrs.field(default=64, kw_only=True, validator=_whole(1, 1 << 30))
    """Bytes of a message; of its payload, where the protocol puts a header before it."""
    protocol: Protocol = attrs.field(default="raw", kw_only=True, validator=_protocol)
    """What a message is: `raw` bytes; `length-prefixed`, with its length before it in 4 bytes,
    the most significant first; `websocket`, a binary message of WebSocket, behind the request
    to upgrade; `websocket-text`, a text message with characters of one to four bytes."""
    depth: int | None = attrs.field(
        default=None, kw_only=True, validator=_whole(1, 1 << 16, optional=True)
    )
    """Messages in flight per connection, at most. None is 1, or 64 with `rate`:
    there, messages that have to wait for it are sent later and counted from their schedule."""
    rate: float | None = attrs.field(
        default=None, kw_only=True, validator=_number(1e-3, 1e8, optional=True)
    )
    """Messages a second over all connections; None for the closed loop."""
    churn: bool = attrs.field(default=False, kw_only=True, validator=_kind(bool))
    """A new connection for every message."""
    count: int | None = attrs.field(
        default=None, kw_only=True, validator=_whole(1, 1 << 62, optional=True)
    )
    """End when this number of messages is answered or lost, warmup included."""
    verify: bool = attrs.field(default=False, kw_only=True, validator=_kind(bool))
    """Compare every byte that comes back. How many come back is always compared."""
    duration: float = attrs.field(default=10.0, kw_only=True, validator=_number(1e-3, 1e6))
    """Seconds measured."""
    warmup: float | None = attrs.field(
        default=None, kw_only=True, validator=_number(0, 1e6, optional=True)
    )
    """Seconds of load before that, not measured. None is 1, or 0 with `count`."""
    grace: float = attrs.field(default=5.0, kw_only=True, validator=_number(0, 1e6))
    """Seconds at the end for messages in flight; none is sent any more."""
    connect_timeout: float = attrs.field(default=5.0, kw_only=True, validator=_number(1e-3, 1e6))
    """Seconds that one connect may take."""
    ramp_timeout: float = attrs.field(default=60.0, kw_only=True, validator=_number(1e-3, 1e6))
    """Seconds for opening all connections; what is not open then counts as a timeout."""
    connecting: int = attrs.field(default=128, kw_only=True, validator=_whole(1, 1 << 20))
    """Concurrent connects, at most."""
    sources: int | None = attrs.field(
        default=None, kw_only=True, validator=_whole(0, MAX_SOURCES, optional=True)
    )
    """Local addresses 127.0.0.1 and following to connect from, so that ports do not run
    out; 0 leaves the choice to the kernel. None is 64 in churn, else as many as
    `connections` need; only a server on IPv4 loopback can have any."""

    def __attrs_post_init__(self) -> None:
        if (unix_path(self.host) is None) == (self.port is None):
            needed = "no port" if self.port is not None else "a port"
            raise ValueError(f"port: host {self.host!r} goes with {needed}, not {self.port!r}")
        if self.protocol != "raw" and self.size > MAX_MESSAGE:
            raise ValueError(
                f"size: a message of protocol {self.protocol} can have at most {MAX_MESSAGE} "
                f"bytes, not {self.size}"
            )
        if self.churn and self.rate is not None:
            raise ValueError(f"rate: churn has no rate, so not {self.rate!r}")
        if self.churn and self.depth not in (None, 1):
            raise ValueError(f"depth: churn has one message a connection, not {self.depth!r}")
        if self.mode == "closed" and self.connections * self.real_depth > 1 << 28:
            raise ValueError(
                f"depth: at most {1 << 28} messages can be in flight, not "
                f"{self.connections} * {self.depth!r}"
            )

    @property
    def mode(self) -> Literal["closed", "open", "churn"]:
        """Which of the three modes this is."""
        if self.churn:
            return "churn"
        return "closed" if self.rate is None else "open"

    @property
    def real_depth(self) -> int:
        """`depth`, with its default filled in."""
        return self.depth or (OPEN_LOOP_DEPTH if self.rate is not None else 1)

    @property
    def real_warmup(self) -> float:
        """`warmup`, with its default filled in."""
        if self.warmup is not None:
            return self.warmup
        return 1.0 if self.count is None else 0.0

    @property
    def scheduled(self) -> int:
        """How many messages an open loop sends in warmup and duration, `count` aside."""
        # Rounded first: 0.1 s at 30 a second is 3, not 3.0000000000000004.
        return math.ceil(round((self.rate or 0) * (self.real_warmup + self.duration), 6))
