"""Admission: which connections a listener lets in, and how many."""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv4Network, IPv6Network, ip_address
from math import ceil
from typing import TYPE_CHECKING, Any, Literal

import attrs

from trio_wknet._options import _check_range, _integer, _some_seconds
from trio_wknet._proxy.trust import parse_network

if TYPE_CHECKING:
    from trio_wknet._proxy.trust import Network
    from trio_wknet._sockets.address import SocketAddress

_MOST = 2**31 - 1
_FASTEST = 1_000_000  # connections a second
_FASTEST_BYTES = 1_000_000_000  # a second
_SECOND = 1_000_000_000  # ns
_MAPPED = bytes(10) + b"\xff\xff"  # what IPv4 addresses begin with among those of IPv6


def _rate(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{attribute.name} must be a number, not {value!r}")
    if not 0 < value <= _FASTEST:
        raise ValueError(f"{attribute.name} must be above 0, up to {_FASTEST}, not {value!r}")


def _window(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    _check_range(attribute.name, value, 0.02, 3600)


def _when_full(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value not in ("wait", "refuse"):
        raise ValueError(f"{attribute.name} must be 'wait' or 'refuse', not {value!r}")


def _networks(networks: Collection[Network]) -> tuple[IPv4Network | IPv6Network, ...]:
    if isinstance(networks, (str, bytes)) or not isinstance(networks, Collection):
        raise TypeError(f"trusted must be a collection of networks, not {networks!r}")
    return tuple(parse_network(network, "trusted") for network in networks)


@attrs.frozen(kw_only=True)
class Admission:
    """Bounds on which connections a listener lets in. Each listener counts for itself, also if
    several are given the same object. What it refuses costs no object and no task::

        admission = Admission(max_connections=20_000, max_per_address=100)
        async with open_wknet_listener(address, admission=admission) as listener:
            ...

    Connections that were let in can be ended for being too slow. Then they end like a connection
    that broke: a receive or a send raises `trio.BrokenResourceError`, whose cause is an `OSError`
    with ``ETIMEDOUT``. `Listener.serve` goes on if a handler raises that. They are counted in
    ``statistics().ended_by``.

    A refused connection is accepted and reset at once. It is counted in
    ``statistics().refused_by`` of its listener and of its engine.

    Without the memory to count a connection, or without descriptors, nobody is let in uncounted,
    and nobody is refused for it: clients wait in the kernel's queue until there is some again
    (``statistics().starved``). A forked child has no part in the counts.

    Raises:
      TypeError, ValueError: if a value has the wrong type, or is out of range; the
          message names it.
    """

    max_connections: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(_integer(1, _MOST))
    )
    """Connections that may be open at a time: from the moment they are accepted until their
    descriptor is closed, which includes those that linger. What comes then, ``when_full`` says.
    From 1 to 2**31 - 1. None, the default: no limit."""

    max_per_address: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(_integer(1, _MOST))
    )
    """Connections that may be open at a time from one address: an IPv4 address, or a network
    of 64 bits of IPv6, as hosts choose the rest of their addresses themselves. More are
    refused, whatever ``when_full`` is: whose connection it is is known only when it is
    accepted. With ``proxy_protocol`` it is the address in the PROXY header, if that has one.
    Peers on unix sockets have none. From 1 to 2**31 - 1. None, the default: no limit."""

    accept_rate: float | None = attrs.field(
        default=None, validator=attrs.validators.optional(_rate)
    )
    """Connections a second that are let in, on average. After a quiet time, those of one
    second, but at least one, may come at once. What comes beyond that, ``when_full`` says.
    Above 0, up to 1000000. None, the default: no limit."""

    first_byte_time: float | None = attrs.field(
        default=None, validator=attrs.validators.optional(_some_seconds)
    )
    """Seconds within which the first byte of a connection must come, counted from when it was
    accepted, or from when its PROXY header has come. If it has not, the connection is ended,
    with ``close_reason`` ``"no first byte"``: for protocols in which the client speaks first.
    Above 0, up to 86400. None, the default: no limit."""

    min_rate: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(_integer(1, _FASTEST_BYTES))
    )
    """Bytes a second that a peer must manage while it sends, and while it is to read. It is
    judged by halves of ``rate_window``, and two that are too slow end a connection, with
    ``close_reason`` ``"too slow"``, unless something better lies between them:

    * of sending: bytes have come, but too few, none were sent to the peer, and a task or a
      callback waits for more. A half without any bytes counts neither way: a peer that sends
      nothing is idle, and not too slow (``idle_timeout``). One that gets answers may send as
      little as it likes. So it is not for protocols in which peers send small messages that are
      not answered.
    * of reading: of what waited to be sent at the half's begin, too few bytes have been
      acknowledged, and not all.

    From 1 to 1000000000. None, the default: no limit."""

    rate_window: float = attrs.field(default=10.0, validator=_window)
    """Seconds over which ``min_rate`` is judged. A peer that is too slow from some moment on is
    ended one to one and a half windows later. From 0.02 to 3600; default 10."""

    when_full: Literal["wait", "refuse"] = attrs.field(default="wait", validator=_when_full)
    """What happens to those for whom ``max_connections`` or ``accept_rate`` leaves no room.
    ``"wait"``, the default, leaves them in the kernel's queue (``backlog``), from where they
    are accepted when there is room; the kernel lets clients beyond that retry. ``"refuse"``
    refuses them at once, so that a client or a load balancer can turn to another server."""

    trusted: Collection[Network] = attrs.field(default=(), converter=_networks)
    """Networks and addresses, as strings (``"10.0.0.0/8"``) or objects of Python's
    ``ipaddress``, whose connections are always let in, and are not counted. While others wait
    for room in the kernel's queue, they wait among them. With ``proxy_protocol`` it is the
    address in the PROXY header that counts: ``max_connections`` and ``accept_rate`` hold
    for all until it has come. By default nobody."""


def native_arguments(admission: Admission, *, gated: bool) -> tuple[Any, ...]:
    """What `NativeAdmission` takes."""
    rate = admission.accept_rate
    interval = 0 if rate is None else max(1, round(_SECOND / rate))
    return (
        admission.max_connections or 0,
        admission.max_per_address or 0,
        interval,
        max(interval, _SECOND) if interval else 0,
        ceil((admission.first_byte_time or 0) * _SECOND),
        admission.min_rate or 0,
        ceil(admission.rate_window / 2 * _SECOND),
        admission.when_full == "wait",
        gated,
        [_as_bytes(network) for network in _networks(admission.trusted)],
    )


def _as_bytes(network: IPv4Network | IPv6Network) -> tuple[bytes, bytes]:
    """The prefix and the mask of a network among the addresses of IPv6."""
    if isinstance(network, IPv6Network):
        return network.network_address.packed, network.netmask.packed
    return _MAPPED + network.network_address.packed, b"\xff" * 12 + network.netmask.packed


def packed_address(address: SocketAddress | None) -> bytes | None:
    """The host of a socket's name, as 16 bytes; None if it has none."""
    if not isinstance(address, tuple):
        return None
    packed = ip_address(address[0].partition("%")[0]).packed
    return packed if len(packed) == 16 else _MAPPED + packed
