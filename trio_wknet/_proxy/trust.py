"""The peers whose PROXY headers are trusted: the load balancers of a listener."""

from __future__ import annotations

import socket
from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, TypeAlias

import attrs

from trio_wknet._sockets.facade import borrowed

Network: TypeAlias = str | IPv4Network | IPv6Network | IPv4Address | IPv6Address

UNIX = "unix:"  # every process that may connect to the unix socket; nginx uses the same word


@attrs.frozen
class Trusted:
    """The networks of the trusted peers. On a unix socket all peers are trusted: the
    permissions of its file say which may connect."""

    networks: tuple[IPv4Network | IPv6Network, ...]

    def trusts(self, fd: int, family: int) -> bool:
        """Whether a connection's peer is trusted.

        Raises:
          OSError: if it is gone.
        """
        if family == socket.AF_UNIX:
            return True
        with borrowed(fd, family) as sock:
            address = ip_address(sock.getpeername()[0])
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self.networks)


def parse_trusted(networks: Collection[Network] | None, *, unix: bool) -> Trusted | None:
    """What the argument ``proxy_protocol`` of a listener means; ``unix``: on a unix
    socket.

    Raises:
      TypeError, ValueError: if it is not a collection of networks, or no peer could match;
          the message says why.
    """
    if networks is None:
        return None
    if isinstance(networks, (str, bytes)) or not isinstance(networks, Collection):
        raise TypeError(f"proxy_protocol must be a collection of networks, not {networks!r}")
    parsed = tuple(
        parse_network(network, "proxy_protocol") for network in networks if network != UNIX
    )
    if unix and UNIX not in networks:
        raise ValueError(f"proxy_protocol must hold {UNIX!r} for a unix socket, not {networks!r}")
    if not unix and not parsed:
        raise ValueError(f"proxy_protocol must hold a network for TCP, not {networks!r}")
    return Trusted(parsed)


def parse_network(network: object, name: str) -> IPv4Network | IPv6Network:
    """One network of the argument with this name.

    Raises:
      TypeError, ValueError: if it is none.
    """
    if not isinstance(network, (str, IPv4Network, IPv6Network, IPv4Address, IPv6Address)):
        raise TypeError(f"{name} must hold networks, not {network!r}")
    try:
        return ip_network(network)
    except ValueError as exc:
        raise ValueError(f"{name} must hold networks: {exc}") from None


def peer_of(fd: int, family: int) -> Any:
    """A connection's peer; None if it is gone."""
    try:
        with borrowed(fd, family) as sock:
            return sock.getpeername()
    except OSError:
        return None
