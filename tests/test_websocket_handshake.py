"""The opening handshake and compression, without any connection."""

from __future__ import annotations

import zlib
from typing import Any

import attrs
import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import PerMessageDeflate as PeersDeflate
from websockets.frames import Frame, Opcode

from trio_wknet._websocket import deflate
from trio_wknet._websocket.handshake import (
    BadResponse,
    ClientSide,
    Handshake,
    Refused,
    ServerSide,
    accept_of,
)
from trio_wknet._websocket.http import Request, Response, check_headers
from trio_wknet._websocket.options import PerMessageDeflate, WebSocketOptions

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
GOOD = {
    "Host": "example.org",
    "Upgrade": "websocket",
    "Connection": "keep-alive, Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}


def header(
    changes: dict[str, str | None] | None = None, first: str = "GET /chat?room=1 HTTP/1.1"
) -> bytes:
    """A request with some headers changed, or left out."""
    headers = {**GOOD, **(changes or {})}
    lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join([first, *lines, "", ""]).encode()


def ask(data: bytes, path: str | None = None, **options: Any) -> tuple[Handshake, bytes]:
    side = ServerSide(WebSocketOptions(**options), path)
    return side.accept(side.read(data))


def refusal(data: bytes, path: str | None = None, **options: Any) -> Response:
    with pytest.raises(Refused) as caught:
        ask(data, path, **options)
    return caught.value.response


def test_the_example_of_the_rfc() -> None:
    assert accept_of(KEY) == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    agreed, response = ask(header())
    assert agreed == Handshake(None, None)
    assert response == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    )


def test_a_request_says_what_was_asked_for() -> None:
    side = ServerSide(WebSocketOptions(), None)
    request = side.read(header({"Cookie": "a=1", "X-Name": "b"}, "GET /a%20b?c=%20d HTTP/1.1"))
    assert (request.method, request.target) == ("GET", "/a%20b?c=%20d")
    assert (request.path, request.query) == ("/a b", "c=%20d")
    assert request.header("COOKIE") == "a=1"
    assert request.header("missing") is None
    assert request.header("missing", "x") == "x"
    assert request.is_upgrade
    twice = Request("GET", "/", (("A", "1"), ("a", "2")))
    assert twice.header("A") == "1, 2"
    assert (twice.path, twice.query, twice.is_upgrade) == ("/", "", False)


@pytest.mark.parametrize(
    ("data", "status", "says"),
    [
        (b"rubbish\r\n\r\n", 400, "illegal request line"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "Host"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n", 400, "illegal header line"),
        (header(first="GET /chat HTTP/1.0"), 400, "HTTP/1.1"),
        (header(first="POST /chat HTTP/1.1"), 400, "GET"),
        (header({"Content-Length": "5"}), 413, "body"),
        (header({"Transfer-Encoding": "chunked"}), 413, "body"),
        (header({"Upgrade": None}), 426, "WebSocket server"),
        (header({"Upgrade": "h2c"}), 426, "WebSocket server"),
        (header({"Connection": None}), 400, "Connection"),
        (header({"Connection": "close"}), 400, "Connection"),
        (header({"Sec-WebSocket-Version": None}), 426, "13"),
        (header({"Sec-WebSocket-Version": "8"}), 426, "13"),
        (header({"Sec-WebSocket-Version": "13, 8"}), 426, "13"),
        (header({"Sec-WebSocket-Key": None}), 400, "16 bytes"),
        (header({"Sec-WebSocket-Key": "short"}), 400, "16 bytes"),
        (header({"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25j!!=="}), 400, "16 bytes"),
        (header({"Sec-WebSocket-Key": "c2hvcnQ="}), 400, "16 bytes"),
        (header({"sec-websocket-key": KEY}), 400, "16 bytes"),
    ],
)
def test_what_is_refused(data: bytes, status: int, says: str) -> None:
    response = refusal(data)
    assert response.status == status
    assert says in response.body.decode()
    if status == 426:
        assert dict(response.headers)["Sec-WebSocket-Version"] == "13"


def test_values_are_compared_as_the_rfc_says() -> None:
    ask(header({"Upgrade": "WebSocket", "Connection": "UPGRADE"}))
    ask(header({"Upgrade": "h2c, websocket"}))


def test_a_path() -> None:
    assert refusal(header(), "/other").status == 404
    ask(header(), "/chat")
    ask(header(first="GET /ch%61t HTTP/1.1"), "/chat")


@pytest.mark.parametrize(
    ("sent", "allowed", "accepted"),
    [
        (None, None, True),
        ("https://evil", None, True),
        (None, ["https://good"], False),
        (None, ["https://good", None], True),
        ("https://good", ["https://good"], True),
        ("https://good.evil", ["https://good"], False),
        ("null", ["https://good", None], False),
    ],
)
def test_origins(sent: str | None, allowed: list[str | None] | None, accepted: bool) -> None:
    data = header({"Origin": sent})
    if accepted:
        ask(data, origins=allowed)
    else:
        assert refusal(data, origins=allowed).status == 403


def test_two_origins_are_none_of_those_allowed() -> None:
    data = header({"Origin": "https://good", "origin": "https://good"})
    assert refusal(data, origins=["https://good"]).status == 403


def test_the_server_prefers_a_subprotocol() -> None:
    data = header({"Sec-WebSocket-Protocol": "b, a,c"})
    assert ask(data, subprotocols=["a", "b"])[0].subprotocol == "a"
    agreed, response = ask(data, subprotocols=["x"])
    assert agreed.subprotocol is None
    assert b"WebSocket-Protocol" not in response
    agreed, response = ask(data, subprotocols=["x", "c"])
    assert b"\r\nSec-WebSocket-Protocol: c\r\n" in response


# --- responses that are not an upgrade ----------------------------------------------------


def parsed(data: bytes, method: str = "GET") -> tuple[h11.Response, bytes]:
    """What an independent client reads."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    response = client.next_event()
    assert isinstance(response, h11.Response)
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    return response, body


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_plain_answer(method: str) -> None:
    side = ServerSide(WebSocketOptions(), None)
    side.read(f"{method} /health HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    data = side.answer(Response(200, b"fine", {"Content-Type": "text/plain", "X-Mine": "é"}))
    response, body = parsed(data, method)
    assert response.status_code == 200
    assert body == (b"fine" if method == "GET" else b"")
    headers = dict(response.headers)
    assert headers[b"content-length"] == b"4"
    assert headers[b"connection"] == b"close"
    assert headers[b"x-mine"] == "é".encode("latin-1")
    assert b"date" in headers


def test_an_answer_to_rubbish() -> None:
    side = ServerSide(WebSocketOptions(), None)
    with pytest.raises(Refused) as caught:
        side.read(b"rubbish\r\n\r\n")
    response, body = parsed(side.answer(caught.value.response))
    assert response.status_code == 400
    assert b"illegal" in body


def test_an_answer_whose_length_is_wrong() -> None:
    side = ServerSide(WebSocketOptions(), None)
    side.read(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    with pytest.raises(ValueError, match="this response cannot be sent"):
        side.answer(Response(200, b"four", {"Content-Length": "3"}))


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (("200",), TypeError, "status must be an integer"),
        ((True,), TypeError, "status must be an integer"),
        ((101,), ValueError, "status must be from 200 to 599"),
        ((200, "text"), TypeError, "body must be bytes"),
        ((200, b"", {"a b": "c"}), ValueError, "headers: 'a b' is no name"),
        ((200, b"", {"a": "c\r\nd: e"}), ValueError, "headers: 'c.* cannot be the value of a"),
        ((200, b"", {"a": "€"}), ValueError, "headers: '€' cannot be the value of a"),
        ((200, b"", {"a": 1}), TypeError, "headers must be pairs of strings"),
        ((200, b"", 5), TypeError, "headers must be pairs of strings"),
        ((200, b"", ["abc"]), TypeError, "headers must be pairs of strings"),
    ],
)
def test_bad_responses(arguments: tuple[Any, ...], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        Response(*arguments)


def test_headers_are_pairs_or_a_mapping() -> None:
    assert check_headers([("a", "1"), ("a", "2")], "x") == (("a", "1"), ("a", "2"))
    assert check_headers({"a": "1"}, "x") == (("a", "1"),)
    assert check_headers((), "x") == ()


# --- the client's side --------------------------------------------------------------------


def client(**options: Any) -> ClientSide:
    return ClientSide(WebSocketOptions(**options), "example.org", "/chat", (("Cookie", "a=1"),))


def both(server: dict[str, Any], mine: dict[str, Any]) -> tuple[Handshake, Any]:
    """What the two ends have agreed on."""
    ours = client(**mine)
    _, request = ours.request()
    accepted, response = ask(request, **server)
    return accepted, ours.read(response)


def test_the_two_sides_understand_each_other() -> None:
    at_server, at_client = both(
        {"subprotocols": ["a"], "compression": PerMessageDeflate()},
        {"subprotocols": ["b", "a"], "compression": PerMessageDeflate(window_bits=12)},
    )
    assert at_server == at_client == Handshake("a", deflate.Agreed(12, 12, True, True))


def test_the_request_of_a_client() -> None:
    ours = client(subprotocols=["b", "a"])
    request, data = ours.request()
    side = ServerSide(WebSocketOptions(), None)
    assert side.read(data) == request
    assert request.header("host") == "example.org"
    assert request.header("cookie") == "a=1"
    assert request.header("sec-websocket-protocol") == "b, a"
    assert client().request()[0] != client().request()[0]  # keys are random


def test_headers_that_the_handshake_sets() -> None:
    ours = attrs.evolve(client(), headers=(("upgrade", "h2c"),))
    with pytest.raises(ValueError, match="headers must not contain upgrade"):
        ours.request()
    with pytest.raises(ValueError, match="this request cannot be sent"):
        ClientSide(WebSocketOptions(), "a", "/a b", ()).request()


def response_to(ours: ClientSide, changes: dict[str, str | None]) -> bytes:
    """The server's response, with some headers changed, or left out."""
    _, data = ours.request()
    first, *lines = ask(data)[1].decode().strip().split("\r\n")
    headers = {**dict(line.split(": ") for line in lines), **changes}
    rest = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join([first, *rest, "", ""]).encode()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"Upgrade": None}, "Upgrade"),
        ({"Upgrade": "h2c"}, "Upgrade"),
        ({"Connection": "close"}, "Connection"),
        ({"Sec-WebSocket-Accept": None}, "Accept"),
        ({"Sec-WebSocket-Accept": "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="}, "Accept"),
        ({"Sec-WebSocket-Protocol": "x"}, "subprotocol not offered"),
        ({"Sec-WebSocket-Extensions": "permessage-deflate"}, "extensions not offered"),
    ],
)
def test_bad_answers(changes: dict[str, str | None], says: str) -> None:
    ours = client()
    with pytest.raises(BadResponse, match=says):
        ours.read(response_to(ours, changes))


def test_an_answer_that_is_not_http() -> None:
    ours = client()
    ours.request()
    with pytest.raises(BadResponse, match="not HTTP"):
        ours.read(b"SSH-2.0-OpenSSH\r\n\r\n")


def test_a_refusal_and_its_body() -> None:
    ours = client()
    ours.request()
    answer = ours.read(b"HTTP/1.1 404 Not Found\r\nContent-Length: 6\r\n\r\n")
    assert isinstance(answer, h11.Response)
    assert answer.status_code == 404
    assert ours.next_of_body() == b""
    ours.feed_body(b"abc")
    assert ours.next_of_body() == b"abc"
    assert ours.next_of_body() == b""
    ours.feed_body(b"def")
    assert ours.next_of_body() == b"def"
    assert ours.next_of_body() is None


def test_a_refusal_that_ends_with_the_connection() -> None:
    ours = client()
    ours.request()
    assert isinstance(ours.read(b"HTTP/1.1 500 Oh\r\n\r\n"), h11.Response)
    ours.feed_body(b"abc")
    assert ours.next_of_body() == b"abc"
    assert ours.next_of_body() == b""
    ours.feed_body(b"")
    assert ours.next_of_body() is None


def test_an_interim_response() -> None:
    ours = client()
    data = response_to(ours, {})
    assert ours.read(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n") is None
    assert ours.read(data) == Handshake(None, None)


# --- compression --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offer", "own", "agreed", "text"),
    [
        ("", {}, (15, 15, True, True), ""),
        ("; client_max_window_bits", {}, (15, 15, True, True), ""),
        ("; client_max_window_bits=10", {}, (15, 10, True, True), "; client_max_window_bits=10"),
        ("; server_max_window_bits=10", {}, (10, 15, True, True), "; server_max_window_bits=10"),
        (
            "; client_max_window_bits",
            {"window_bits": 12},
            (12, 12, True, True),
            "; server_max_window_bits=12; client_max_window_bits=12",
        ),
        ("", {"window_bits": 12}, (12, 15, True, True), "; server_max_window_bits=12"),
        (
            "; server_no_context_takeover",
            {},
            (15, 15, False, True),
            "; server_no_context_takeover",
        ),
        (
            "; Client_No_Context_Takeover",
            {},
            (15, 15, True, False),
            "; client_no_context_takeover",
        ),
        (
            "",
            {"context_takeover": False},
            (15, 15, False, False),
            "; server_no_context_takeover; client_no_context_takeover",
        ),
        ('; server_max_window_bits="10"', {}, (10, 15, True, True), "; server_max_window_bits=10"),
    ],
)
def test_an_offer_that_is_accepted(
    offer: str, own: dict[str, Any], agreed: tuple[Any, ...], text: str
) -> None:
    found = deflate.accept_offer([f"permessage-deflate{offer}"], PerMessageDeflate(**own))
    assert found == (deflate.Agreed(*agreed), f"permessage-deflate{text}")


@pytest.mark.parametrize(
    "offer",
    [
        "; server_max_window_bits",
        "; server_max_window_bits=8",  # zlib cannot
        "; server_max_window_bits=16",
        "; client_max_window_bits=7",
        "; client_max_window_bits=010",
        "; server_no_context_takeover=1",
        "; unknown",
        "; client_no_context_takeover; client_no_context_takeover",
    ],
)
def test_an_offer_that_is_not(offer: str) -> None:
    extension = f"permessage-deflate{offer}"
    assert deflate.accept_offer([extension], PerMessageDeflate()) is None
    # The next offer counts.
    found = deflate.accept_offer([extension, "x", "Permessage-Deflate"], PerMessageDeflate())
    assert found is not None
    agreed, response = ask(
        header({"Sec-WebSocket-Extensions": extension}), compression=PerMessageDeflate()
    )
    assert agreed.compression is None
    assert b"Extensions" not in response


@pytest.mark.parametrize(
    ("answer", "own"),
    [
        (["x"], {}),
        (["permessage-deflate", "permessage-deflate"], {}),
        (["permessage-deflate; unknown"], {}),
        (["permessage-deflate; client_max_window_bits"], {}),
        (["permessage-deflate; client_max_window_bits=8"], {}),
        (["permessage-deflate; server_max_window_bits=13"], {"window_bits": 12}),
        (["permessage-deflate"], {"window_bits": 12}),
        (["permessage-deflate"], {"context_takeover": False}),
    ],
)
def test_an_answer_that_was_not_offered(answer: list[str], own: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the server"):
        deflate.read_response(answer, PerMessageDeflate(**own))


def test_a_server_need_not_compress() -> None:
    assert deflate.read_response([], PerMessageDeflate()) is None


MESSAGES = st.lists(st.binary(max_size=300).map(lambda data: data * 3), max_size=8)


@given(MESSAGES, st.booleans(), st.integers(9, 15), st.integers(0, 9))
def test_messages_go_both_ways(
    messages: list[bytes], takeover: bool, bits: int, level: int
) -> None:
    own = PerMessageDeflate(level=level, window_bits=bits, context_takeover=takeover)
    agreed = deflate.Agreed(bits, bits, takeover, takeover)
    at_server = deflate.coders(agreed, own, server=True, max_message=900)
    at_client = deflate.coders(agreed, own, server=False, max_message=900)
    for (inflater, _), (_, deflater) in ((at_server, at_client), (at_client, at_server)):
        for message in messages:
            assert inflater.message(deflater.compress(message), is_text=False) == message


@given(MESSAGES, st.booleans(), st.booleans())
def test_a_peer_understands_them(messages: list[bytes], mine: bool, theirs: bool) -> None:
    agreed = deflate.Agreed(12, 11, mine, theirs)
    inflater, deflater = deflate.coders(
        agreed, PerMessageDeflate(), server=True, max_message=1 << 20
    )
    peer = PeersDeflate(not mine, not theirs, 12, 11)
    for message in messages:
        packed = Frame(Opcode.BINARY, deflater.compress(message), rsv1=True)
        assert peer.decode(packed).data == message
        sent = peer.encode(Frame(Opcode.BINARY, message))
        assert inflater.message(bytes(sent.data), is_text=False) == message


def test_a_bomb_is_not_unpacked() -> None:
    agreed = deflate.Agreed(15, 15, True, True)
    inflater, _ = deflate.coders(agreed, PerMessageDeflate(), server=True, max_message=1000)
    _, deflater = deflate.coders(agreed, PerMessageDeflate(), server=False, max_message=1000)
    packed = deflater.compress(bytes(1000))
    assert inflater.message(packed, is_text=False) == bytes(1000)
    with pytest.raises(deflate.Unacceptable) as caught:
        inflater.message(deflater.compress(bytes(1001)), is_text=False)
    assert caught.value.code == 1009


def test_what_is_not_compressed() -> None:
    agreed = deflate.Agreed(15, 15, True, True)
    inflater, _ = deflate.coders(agreed, PerMessageDeflate(), server=True, max_message=1000)
    with pytest.raises(deflate.Unacceptable) as caught:
        inflater.message(b"\xff\xff\xff", is_text=False)
    assert caught.value.code == 1002


def test_a_block_that_says_it_is_the_last() -> None:
    agreed = deflate.Agreed(15, 15, True, True)
    inflater, _ = deflate.coders(agreed, PerMessageDeflate(), server=True, max_message=1000)
    state = zlib.compressobj(6, zlib.DEFLATED, -15)
    packed = state.compress(b"message") + state.flush() + b"\x00"  # RFC 7692, 7.2.3.4
    assert inflater.message(packed, is_text=False) == b"message"
    assert inflater.message(packed, is_text=False) == b"message"


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"max_message": 0}, ValueError, "max_message must be from 1"),
        ({"max_message": 1.5}, TypeError, "max_message must be an integer"),
        ({"max_fragments": 0}, ValueError, "max_fragments"),
        ({"handshake_time": 0}, ValueError, "handshake_time must be more than 0"),
        ({"close_time": "1"}, TypeError, "close_time must be a number"),
        ({"max_header": 255}, ValueError, "max_header must be from 256"),
        ({"subprotocols": "chat"}, TypeError, "subprotocols must be several names"),
        ({"subprotocols": [1]}, TypeError, "subprotocols must be strings"),
        ({"subprotocols": ["a b"]}, ValueError, "'a b' is no token"),
        ({"subprotocols": ["a", "a"]}, ValueError, "must differ"),
        ({"origins": "https://a"}, TypeError, "origins must be several origins"),
        ({"origins": [1]}, TypeError, "origins must be strings or None"),
        ({"compression": True}, TypeError, "compression"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        WebSocketOptions(**options)


@pytest.mark.parametrize("name", ["level", "window_bits", "threshold"])
def test_bad_options_of_compression(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be from"):
        PerMessageDeflate(**{name: -1})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="context_takeover must be True or False"):
        PerMessageDeflate(context_takeover=1)  # type: ignore[arg-type]
