"""The opening handshake (RFC 6455, section 4), without any input or output.

h11 reads and writes the HTTP in it. Both functions get all bytes of a header, which the
caller takes out of the connection up to its blank line: what is behind it stays there, and is
the first messages.
"""

from __future__ import annotations

import base64
import hashlib
import os
from email.utils import formatdate
from http.client import responses
from typing import TYPE_CHECKING

import attrs
import h11

from trio_wknet._websocket import deflate
from trio_wknet._websocket.http import (
    HeaderList,
    Request,
    Response,
    plain,
    tokens_of,
    values_of,
)

if TYPE_CHECKING:
    from trio_wknet._websocket.options import WebSocketOptions

END_OF_HEADER = b"\r\n\r\n"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_VERSION = "13"


class Refused(Exception):
    """A server's answer that is not an upgrade."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


class BadResponse(Exception):
    """A client got something that is not an answer to its handshake."""


@attrs.frozen
class Handshake:
    """What was agreed on."""

    subprotocol: str | None
    compression: deflate.Agreed | None
    headers: HeaderList = attrs.field(default=(), eq=False)
    """A client's: those of the response."""


def accept_of(key: str) -> str:
    """The value of Sec-WebSocket-Accept for a key."""
    return base64.b64encode(hashlib.sha1(key.encode("latin-1") + _GUID).digest()).decode()


def _decoded(headers: h11._headers.Headers) -> HeaderList:
    return tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)


def _encoded(headers: HeaderList) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]


# --- the server's side --------------------------------------------------------------------


@attrs.define
class ServerSide:
    """One request, and its answer."""

    options: WebSocketOptions
    path: str | None
    """The only path that may become a WebSocket; None: any may."""

    _http: h11.Connection = attrs.field(init=False)
    _is_head: bool = attrs.field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        self._http = h11.Connection(h11.SERVER, self.options.max_header + len(END_OF_HEADER))

    def read(self, header: bytes) -> Request:
        """The request in a header, whose blank line is included.

        Raises:
          Refused: if it is malformed, or has a body.
        """
        try:
            self._http.receive_data(header)
            event = self._http.next_event()
        except h11.RemoteProtocolError as exc:
            raise Refused(plain(exc.error_status_hint, str(exc))) from None
        assert isinstance(event, h11.Request)  # the header is complete
        self._is_head = event.method == b"HEAD"
        request = Request(
            event.method.decode("ascii"), event.target.decode("latin-1"), _decoded(event.headers)
        )
        length = request.header("content-length", "0")
        if request.header("transfer-encoding") is not None or length != "0":
            raise Refused(plain(413, "a request must have no body"))
        return request

    def accept(self, request: Request, more: HeaderList = ()) -> tuple[Handshake, bytes]:
        """What is agreed on, and the response that says so, with more headers.

        Raises:
          Refused: if it cannot become a WebSocket.
        """
        key = self.check(request)
        offered = tokens_of(request.headers, "sec-websocket-protocol")
        subprotocol = next((name for name in self.options.subprotocols if name in offered), None)
        headers = [
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", accept_of(key)),
        ]
        if subprotocol is not None:
            headers.append(("Sec-WebSocket-Protocol", subprotocol))
        agreed = None
        if self.options.compression is not None:
            extensions = tokens_of(request.headers, "sec-websocket-extensions")
            found = deflate.accept_offer(extensions, self.options.compression)
            if found is not None:
                agreed, text = found
                headers.append(("Sec-WebSocket-Extensions", text))
        event = h11.InformationalResponse(
            status_code=101, headers=_encoded((*headers, *more)), reason=b"Switching Protocols"
        )
        response = self._http.send(event)
        assert response is not None
        return Handshake(subprotocol, agreed), response

    def check(self, request: Request) -> str:
        """The key of a proper handshake.

        Raises:
          Refused: if it is not one.
        """
        if self.path is not None and request.path != self.path:
            raise Refused(plain(404, f"there is nothing at {request.path}"))
        if not request.is_upgrade:
            headers = {"Upgrade": "websocket", "Sec-WebSocket-Version": _VERSION}
            raise Refused(plain(426, "this is a WebSocket server", headers))
        if request.method != "GET" or self._http.their_http_version != b"1.1":
            raise Refused(plain(400, "the handshake must be a GET of HTTP/1.1"))
        if "upgrade" not in map(str.lower, tokens_of(request.headers, "connection")):
            raise Refused(plain(400, "the handshake's Connection header must say Upgrade"))
        if values_of(request.headers, "sec-websocket-version") != [_VERSION]:
            raise Refused(plain(426, "the version must be 13", {"Sec-WebSocket-Version": _VERSION}))
        allowed = self.options.origins
        if allowed is not None and request.header("origin") not in allowed:
            raise Refused(plain(403, "pages from this origin may not connect"))
        keys = values_of(request.headers, "sec-websocket-key")
        if len(keys) != 1 or not _is_key(keys[0]):
            raise Refused(plain(400, "the handshake needs a Sec-WebSocket-Key of 16 bytes"))
        return keys[0]

    def answer(self, response: Response) -> bytes:
        """The bytes of a response that is not an upgrade."""
        given = {name.lower() for name, _ in response.headers}
        own = (
            ("Date", formatdate(usegmt=True)),
            ("Content-Length", str(len(response.body))),
            ("Connection", "close"),
        )
        headers = response.headers + tuple(pair for pair in own if pair[0].lower() not in given)
        try:
            head = h11.Response(
                status_code=response.status,
                headers=_encoded(headers),
                reason=responses.get(response.status, "").encode(),
            )
            parts = [self._http.send(head)]
            if response.body and not self._is_head:
                parts.append(self._http.send(h11.Data(data=response.body)))
            parts.append(self._http.send(h11.EndOfMessage()))
        except h11.LocalProtocolError as exc:
            raise ValueError(f"this response cannot be sent: {exc}") from None
        return b"".join(part for part in parts if part)


def _is_key(key: str) -> bool:
    try:
        return len(base64.b64decode(key.encode("latin-1"), validate=True)) == 16
    except ValueError:
        return False


# --- the client's side --------------------------------------------------------------------


@attrs.define
class ClientSide:
    """One request for a WebSocket, and what comes back."""

    options: WebSocketOptions
    host: str
    """With the port, where it is not the usual one."""
    target: str
    headers: HeaderList

    _http: h11.Connection = attrs.field(init=False)
    _key: str = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._http = h11.Connection(h11.CLIENT, self.options.max_header + len(END_OF_HEADER))
        self._key = base64.b64encode(os.urandom(16)).decode()

    def request(self) -> tuple[Request, bytes]:
        """The request, and its bytes."""
        headers: list[tuple[str, str]] = [
            ("Host", self.host),
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Key", self._key),
            ("Sec-WebSocket-Version", _VERSION),
        ]
        if self.options.subprotocols:
            headers.append(("Sec-WebSocket-Protocol", ", ".join(self.options.subprotocols)))
        if self.options.compression is not None:
            offer = deflate.offer(self.options.compression)
            headers.append(("Sec-WebSocket-Extensions", offer))
        own = {name.lower() for name, _ in headers}
        for name, _ in self.headers:
            if name.lower() in own:
                raise ValueError(f"headers must not contain {name}, which the handshake sets")
        headers += self.headers
        request = Request("GET", self.target, tuple((name.lower(), v) for name, v in headers))
        try:
            sent = self._http.send(
                h11.Request(method="GET", target=self.target, headers=_encoded(tuple(headers)))
            )
            end = self._http.send(h11.EndOfMessage())
        except h11.LocalProtocolError as exc:
            raise ValueError(f"this request cannot be sent: {exc}") from None
        return request, (sent or b"") + (end or b"")

    def read(self, header: bytes) -> Handshake | h11.Response | None:
        """What was agreed on; or the response of a server that does not agree, whose body
        follows; or None for an interim response, behind which comes another header.

        Raises:
          BadResponse: if it is neither.
        """
        try:
            self._http.receive_data(header)
            event = self._http.next_event()
        except h11.RemoteProtocolError as exc:
            raise BadResponse(f"the server's answer is not HTTP: {exc}") from None
        if isinstance(event, h11.Response):
            return event
        if not isinstance(event, h11.InformationalResponse):
            raise BadResponse(f"the server's answer is not a response: {event!r}")
        if event.status_code != 101:
            return None
        return self._agreed(_decoded(event.headers))

    def _agreed(self, headers: HeaderList) -> Handshake:
        if list(map(str.lower, tokens_of(headers, "upgrade"))) != ["websocket"]:
            raise BadResponse("the server's Upgrade header does not say websocket")
        if "upgrade" not in map(str.lower, tokens_of(headers, "connection")):
            raise BadResponse("the server's Connection header does not say Upgrade")
        if values_of(headers, "sec-websocket-accept") != [accept_of(self._key)]:
            raise BadResponse("the server's Sec-WebSocket-Accept is not the key's")
        subprotocols = values_of(headers, "sec-websocket-protocol")
        if subprotocols and (
            len(subprotocols) > 1 or subprotocols[0] not in self.options.subprotocols
        ):
            raise BadResponse(f"the server chose a subprotocol not offered: {subprotocols}")
        extensions = tokens_of(headers, "sec-websocket-extensions")
        compression = None
        if self.options.compression is not None:
            try:
                compression = deflate.read_response(extensions, self.options.compression)
            except ValueError as exc:
                raise BadResponse(str(exc)) from None
        elif extensions:
            raise BadResponse(f"the server wants extensions not offered: {extensions}")
        return Handshake(subprotocols[0] if subprotocols else None, compression, headers)

    def feed_body(self, data: bytes) -> None:
        """Bytes behind a refusal's header; none at the connection's end."""
        self._http.receive_data(data)

    def next_of_body(self) -> bytes | None:
        """The next part of a refusal's body; empty until more is fed; None at its end."""
        try:
            event = self._http.next_event()
        except h11.RemoteProtocolError:
            return None
        if isinstance(event, h11.Data):
            return bytes(event.data)
        return b"" if event is h11.NEED_DATA else None
