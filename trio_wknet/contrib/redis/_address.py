"""The URL of a broker."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import attrs
from coredis.connection import Location, TCPLocation
from coredis.pool import ConnectionPool

if TYPE_CHECKING:
    from trio_wknet.contrib.redis._connection import Settings

SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")
# They are set here, whatever a URL says: what is received is bytes, and commands have answers.
FIXED = {"decode_responses": False, "noreply": False}


@attrs.frozen(kw_only=True)
class Sentinels:
    """Those who know where a service's primary is."""

    locations: tuple[Location, ...]
    service: str
    settings: Settings


@attrs.frozen(kw_only=True)
class Address:
    """Where a broker is, and how to connect to it."""

    locations: tuple[Location, ...]
    settings: Settings
    sentinels: Sentinels | None = None


def parse(url: str, ssl_context: ssl.SSLContext | None) -> Address:
    """Take a URL to pieces. Its password is never part of an error.

    Raises:
      ValueError, TypeError: it is not valid.
    """
    if not isinstance(url, str):
        raise TypeError(f"url must be a str, not {type(url).__name__}")
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        allowed = ", ".join(f"{it}://" for it in SCHEMES)
        raise ValueError(f"url must begin with one of {allowed}, not {parts.scheme!r}")
    if ssl_context is not None and not parts.scheme.startswith("rediss"):
        raise ValueError("url must begin with rediss for an ssl_context")
    if parts.scheme.endswith("+sentinel"):
        return _with_sentinels(parts, ssl_context)
    if parts.scheme == "unix":
        if not parts.path:
            raise ValueError("url must have the path of a socket, as in unix:///run/redis.sock")
    elif parts.path.strip("/") and not parts.path.strip("/").isdecimal():
        raise ValueError(f"url must end with the number of a database, not {parts.path!r}")
    return _read(parts, ssl_context)


def _read(parts: SplitResult, ssl_context: ssl.SSLContext | None) -> Address:
    """One that coredis knows, but for several hosts."""
    user, at, hosts = parts.netloc.rpartition("@")
    settings: dict[str, Any] = {}
    if parts.scheme == "rediss":
        if ssl_context is not None:
            settings["ssl_context"] = ssl_context
        elif "ssl_" not in parts.query:
            settings["ssl_context"] = ssl.create_default_context()  # coredis' trusts any name
    locations = []
    for host in hosts.split(","):
        one = parts._replace(netloc=user + at + host).geturl()
        try:
            pool = ConnectionPool.from_url(one, decode_components=True, **settings)
        except (ValueError, KeyError, TypeError) as exc:
            raise ValueError(f"url is not valid: {exc}") from None
        if pool.location is None:
            raise ValueError("url must have a host, as in redis://localhost")
        locations.append(pool.location)
    return Address(locations=tuple(locations), settings={**dict(pool.connection_kwargs), **FIXED})


def _with_sentinels(parts: SplitResult, ssl_context: ssl.SSLContext | None) -> Address:
    """``redis+sentinel://user:password@host:26379,host/service/database``. User and password are
    the servers'; sentinels have theirs in the query."""
    service, _, database = unquote(parts.path.strip("/")).partition("/")
    if not service or (database and not database.isdecimal()):
        raise ValueError(
            "url must name the service that Sentinel watches, "
            "as in redis+sentinel://localhost:26379/service"
        )
    user, at, hosts = parts.netloc.rpartition("@")
    scheme = parts.scheme.removesuffix("+sentinel")
    plain = SplitResult(scheme, user + at + hosts, f"/{database}", parts.query, "")
    servers = _read(plain, ssl_context)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    settings = {name: it for name, it in servers.settings.items() if name not in _SERVERS_ALONE}
    for name in ("username", "password"):
        if f"sentinel_{name}" in query:
            settings[name] = query[f"sentinel_{name}"]
    locations = tuple(
        TCPLocation(it.host, _sentinel_port(host))
        for it, host in zip(servers.locations, hosts.split(","), strict=True)
        if isinstance(it, TCPLocation)
    )
    sentinels = Sentinels(locations=locations, service=service, settings=settings)
    return Address(locations=(), settings=servers.settings, sentinels=sentinels)


_SERVERS_ALONE = ("username", "password", "credential_provider", "db")


def _sentinel_port(host: str) -> int:
    return urlsplit(f"//{host}").port or 26379
