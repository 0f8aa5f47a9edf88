"""A request and a response of HTTP, as far as WebSocket needs them."""

from __future__ import annotations

import http
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

HeaderList = tuple[tuple[str, str], ...]
_TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


def is_token(text: str) -> bool:
    """Whether it is a token in the sense of RFC 9110, section 5.6.2."""
    return bool(text) and _TOKEN.issuperset(text)


def check_headers(headers: Any, name: str) -> HeaderList:
    """Headers as pairs of strings, from a mapping or an iterable of pairs.

    Raises:
      TypeError, ValueError: if they are something else, or cannot be sent; the message names
          the argument.
    """
    given = headers.items() if hasattr(headers, "items") else headers
    try:
        pairs = [(key, value) for key, value in given]
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be pairs of strings, not {headers!r}") from None
    for key, value in pairs:
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"{name} must be pairs of strings, not {(key, value)!r}")
        if not is_token(key):
            raise ValueError(f"{name}: {key!r} is no name of a header")
        if value != value.strip() or not _is_field_value(value):
            raise ValueError(f"{name}: {value!r} cannot be the value of {key}")
    return tuple(pairs)


def _is_field_value(value: str) -> bool:
    """Printable, or a tab, and of one byte each."""
    return all(char == "\t" or " " <= char <= "~" or "\xa0" <= char <= "\xff" for char in value)


def values_of(headers: Iterable[tuple[str, str]], name: str) -> list[str]:
    """The values of all headers with a name."""
    return [value for key, value in headers if key.lower() == name]


def tokens_of(headers: Iterable[tuple[str, str]], name: str) -> list[str]:
    """The elements of a header that is a list, however many lines it has."""
    parts = (part.strip() for line in values_of(headers, name) for part in line.split(","))
    return [part for part in parts if part]


@attrs.frozen
class Request:
    """What a client asks for in its handshake, or in a plain HTTP request."""

    method: str
    """Such as ``"GET"``."""

    target: str
    """The path and the query, as they were sent: ``"/chat?room=1"``."""

    headers: HeaderList
    """Name, in lower case, and value of each header, in their order."""

    @property
    def path(self) -> str:
        """The target without its query, percent-encoding resolved."""
        return unquote(self.target.partition("?")[0])

    @property
    def query(self) -> str:
        """What follows the first ``?`` of the target, as it was sent; or ``""``."""
        return self.target.partition("?")[2]

    @property
    def is_upgrade(self) -> bool:
        """Whether it asks for a WebSocket, properly or not."""
        return "websocket" in map(str.lower, tokens_of(self.headers, "upgrade"))

    def header(self, name: str, default: str | None = None) -> str | None:
        """The value of a header. Not a checkpoint.

        Args:
          name: in any case.
          default: what to return if there is no such header; by default None.

        Returns:
          The value; values of several headers with this name are joined by ``", "``.
        """
        found = values_of(self.headers, name.lower())
        return ", ".join(found) if found else default


def _status(instance: object, attribute: attrs.Attribute[int], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"status must be an integer, not {value!r}")
    if not 200 <= value <= 599:
        raise ValueError(f"status must be from 200 to 599, not {value}")


def _bytes(instance: object, attribute: attrs.Attribute[bytes], value: object) -> None:
    if not isinstance(value, bytes):
        raise TypeError(f"body must be bytes, not {value!r}")


def _as_headers(value: object) -> HeaderList:
    return check_headers(value, "headers")


@attrs.frozen
class Response:
    """An HTTP answer to a request that does not become a WebSocket. The connection is closed
    behind it.

    Raises:
      TypeError, ValueError: if a value has the wrong type, or cannot be sent; the message
          names it.
    """

    status: int = attrs.field(validator=_status)
    """From 200 to 599."""

    body: bytes = attrs.field(default=b"", validator=_bytes)
    """Default ``b""``. It is not sent if the request's method is HEAD."""

    headers: HeaderList = attrs.field(default=(), converter=_as_headers)
    """A mapping, or pairs of name and value. ``Content-Length``, ``Date`` and ``Connection``
    are added. Default none."""


def plain(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    """A response that tells a person what is wrong."""
    phrase = http.HTTPStatus(status).phrase
    body = f"{status} {phrase}: {text}\n".encode()
    return Response(status, body, {"Content-Type": "text/plain; charset=utf-8", **(headers or {})})
