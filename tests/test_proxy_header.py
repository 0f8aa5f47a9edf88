"""PROXY headers: what they say, what is refused, and how much of a stream they are."""

from __future__ import annotations

import socket
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from proxy_headers import LINE, SIGNATURE, SOURCE, inet, tlv, version_2

from trio_wknet import ProxyHeader
from trio_wknet._proxy.header import MAX_HEADER, crc32c, header_size, parse_header

V4 = ("192.0.2.1", 1), ("198.51.100.255", 65535)
V6 = ("2001:db8::1", 65535, 0, 0), ("::ffff:10.0.0.1", 0, 0, 0)


def read(stream: bytes) -> tuple[ProxyHeader, bytes]:
    """The header, and what stands behind it."""
    size = header_size(stream)
    assert size <= len(stream), "it wants more"
    return parse_header(stream[:size]), stream[size:]


def read_in_pieces(stream: bytes) -> tuple[ProxyHeader, bytes]:
    """The same, from a reader that never has more than it was told to wait for."""
    have = 0
    while (size := header_size(stream[:have])) > have:
        assert size <= len(stream), "it wants more"
        have = size
    return parse_header(stream[:size]), stream[size:]


def checked(header: bytes) -> bytes:
    """With a checksum, as the specification says how to make one."""
    blank = version_2(header[16:] + tlv(3, bytes(4)), kind=header[13])
    return blank[:-4] + crc32c(blank).to_bytes(4, "big")


# -- what they say ---------------------------------------------------------------------


def test_the_line_of_the_specification() -> None:
    header, rest = read(LINE + b"GET / HTTP/1.1\r\n")
    assert header == ProxyHeader(version=1, source=SOURCE, destination=("192.168.0.11", 443))
    assert rest == b"GET / HTTP/1.1\r\n"


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        b"PROXY TCP6 " + b" ".join([b":".join([b"ffff"] * 8)] * 2) + b" 65535 65535\r\n",
    ],
)
def test_the_longest_lines(line: bytes) -> None:
    header, _ = read(line)
    assert isinstance(header.source, tuple)
    assert header.source == header.destination
    assert header.source[:2] == (line.split()[2].decode(), 65535)


def test_ipv6_looks_as_the_kernel_would_show_it() -> None:
    header, _ = read(b"PROXY TCP6 2001:DB8:0:0:0:0:0:1 ::FFFF:10.0.0.1 65535 0\r\n")
    assert (header.source, header.destination) == V6


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN ffff:ffff and \xff \n anything\r\n",
        b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n",
    ],
)
def test_unknown(line: bytes) -> None:
    assert read(line + b"rest") == (ProxyHeader(version=1, source=None, destination=None), b"rest")


@pytest.mark.parametrize(("source", "destination"), [V4, V6])
def test_version_2(source: Any, destination: Any) -> None:
    values = tlv(1, b"h2") + tlv(2, b"example.org") + tlv(4, b"") + tlv(2, b"again")
    header, rest = read(inet(source, destination, values) + b"rest")
    assert header == ProxyHeader(
        version=2,
        source=source,
        destination=destination,
        tlvs=((1, b"h2"), (2, b"example.org"), (4, b""), (2, b"again")),
    )
    assert rest == b"rest"


def test_unix_addresses_look_as_the_kernel_would_show_them() -> None:
    def field(name: bytes) -> bytes:
        return name.ljust(108, b"\0")

    for source, shown in [
        (b"/run/client", "/run/client"),
        (b"/run/client\0rubbish", "/run/client"),
        (b"x" * 108, "x" * 108),
        (b"\0abstract", b"\0abstract"),
        (b"", ""),
    ]:
        header, _ = read(version_2(field(source) + field(b"/run/server"), kind=0x31))
        assert (header.source, header.destination) == (shown, "/run/server")


@pytest.mark.parametrize(
    "header",
    [
        version_2(command=0x20, kind=0x00),
        version_2(b"whatever stands here", command=0x20, kind=0xFF),
        version_2(b"whatever stands here", kind=0x00),
        version_2(bytes(12), kind=0x12),
        version_2(bytes(12), kind=0x10),
        version_2(bytes(12), kind=0x01),
        version_2(bytes(36), kind=0x22),
        version_2(bytes(216), kind=0x32),
    ],
)
def test_what_keeps_the_real_addresses(header: bytes) -> None:
    expected = ProxyHeader(version=2, source=None, destination=None)
    assert read(header + b"rest") == (expected, b"rest")


def test_checksums() -> None:
    # RFC 3720, B.4
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(bytes(range(32))) == 0x46DD794E
    good = checked(inet(*V4, tlv(2, b"example.org")))
    assert read(good)[0].tlvs[0] == (2, b"example.org")
    for n in [*range(16, 28), *range(len(good) - 4, len(good))]:
        bad = good[:n] + bytes([good[n] ^ 1]) + good[n + 1 :]
        with pytest.raises(ValueError, match="checksum"):
            read(bad)
    with pytest.raises(ValueError, match="checksum"):
        read(inet(*V4, tlv(3, b"")))


# -- what is refused -------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\n\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324  443\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443 \r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 65536\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 0443\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 -1\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 4_4\r\n",
        b"PROXY TCP4 192.168.0.01 192.168.0.11 56324 443\r\n",
        b"PROXY TCP4 192.168.0.256 192.168.0.11 56324 443\r\n",
        b"PROXY TCP4 192.168.1 192.168.0.11 56324 443\r\n",
        b"PROXY TCP4 192.168.0.1\0 192.168.0.11 56324 443\r\n",
        b"PROXY TCP4 192.168.0.\xb2 192.168.0.11 56324 443\r\n",
        b"PROXY TCP4 ::1 ::1 56324 443\r\n",
        b"PROXY TCP6 192.168.0.1 192.168.0.11 56324 443\r\n",
        b"PROXY TCP6 fe80::1%lo ::1 56324 443\r\n",
        b"PROXY TCP6 ::1:: ::1 56324 443\r\n",
        b"PROXY UDP4 192.168.0.1 192.168.0.11 56324 443\r\n",
        b"PROXY  TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
        b"PROXY UNKNOWNX\r\n",
        b"PROXY UNKNOWN\n".ljust(107, b"\n"),
        b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443".ljust(107, b" "),
        b"proxy TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"\r\n\r\nGET / HTTP/1.1\r\n",
        version_2(bytes(12), command=0x11),
        version_2(bytes(12), command=0x31),
        version_2(bytes(12), command=0x22),
        version_2(bytes(12), kind=0x41),
        version_2(bytes(12), kind=0x13),
        version_2(bytes(11), kind=0x11),
        version_2(bytes(35), kind=0x21),
        version_2(bytes(215), kind=0x31),
        version_2(bytes(12) + b"\x01", kind=0x11),
        version_2(bytes(12) + b"\x01\x00", kind=0x11),
        version_2(bytes(12) + b"\x01\x00\x01", kind=0x11),
        version_2(size=MAX_HEADER - 15),
        version_2(size=0xFFFF),
    ],
)
def test_what_is_malformed(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read(line)
    with pytest.raises(ValueError, match=r"\w"):
        read_in_pieces(line)


def test_the_longest_header() -> None:
    room = MAX_HEADER - 16 - 12 - 3
    header, rest = read(inet(*V4, tlv(4, bytes(room))) + b"rest")
    assert (header.tlvs, rest) == (((4, bytes(room)),), b"rest")


@pytest.mark.parametrize("begin", [b"G", b"\r\n\r\n\x01", b"PROXX", SIGNATURE[:-1] + b"!"])
def test_what_cannot_become_one_is_known_at_once(begin: bytes) -> None:
    with pytest.raises(ValueError, match="does not begin"):
        header_size(begin)


# -- any bytes -------------------------------------------------------------------------


ports = st.integers(0, 65535)


def shown(host: str, port: int) -> tuple[Any, ...]:
    """As the system writes it, which Python does not always."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    written = socket.inet_ntop(family, socket.inet_pton(family, host))
    return (written, port) if family == socket.AF_INET else (written, port, 0, 0)


@st.composite
def headers(draw: st.DrawFn) -> tuple[bytes, Any, Any]:
    """A valid header, and the addresses in it."""
    v6 = draw(st.booleans())
    (host, port), (other_host, other_port) = [
        (str(draw(st.ip_addresses(v=6 if v6 else 4))), draw(ports)) for _ in range(2)
    ]
    source, destination = shown(host, port), shown(other_host, other_port)
    if draw(st.booleans()):
        line = f"PROXY TCP{6 if v6 else 4} {host} {other_host} {port} {other_port}\r\n"
        return line.encode(), source, destination
    values = b"".join(
        tlv(kind, value)
        for kind, value in draw(st.lists(st.tuples(st.integers(4, 255), st.binary(max_size=40))))
    )
    header = inet(source, destination, values)
    return checked(header) if draw(st.booleans()) else header, source, destination


@hypothesis.given(headers(), st.binary())
def test_headers_are_found_and_nothing_behind_them_is_taken(header: Any, data: bytes) -> None:
    text, source, destination = header
    for reading in (read, read_in_pieces):
        found, rest = reading(text + data)
        assert (found.source, found.destination, rest) == (source, destination, data)


@hypothesis.given(headers(), st.data())
def test_a_part_of_a_header_waits_for_no_more_than_the_rest(header: Any, data: Any) -> None:
    text, _, _ = header
    part = data.draw(st.integers(0, len(text) - 1))
    assert part < header_size(text[:part]) <= len(text)


@hypothesis.given(
    st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=200).map(lambda data: b"PROXY " + data),
        st.binary(max_size=100).map(lambda data: b"PROXY TCP4 " + data + b"\r\n"),
        st.tuples(st.binary(max_size=2), st.binary(max_size=300)).map(
            lambda drawn: SIGNATURE + drawn[0] + len(drawn[1]).to_bytes(2, "big") + drawn[1]
        ),
        st.tuples(st.integers(0, 255), st.binary(max_size=300)).map(
            lambda drawn: version_2(drawn[1], kind=drawn[0])
        ),
    )
)
def test_any_bytes_are_a_header_or_not(data: bytes) -> None:
    """And nothing else happens."""
    have = 0
    try:
        while (size := header_size(data[:have])) > have:
            assert size <= MAX_HEADER
            if size > len(data):
                return
            have = size
        assert parse_header(data[:have]).version in (1, 2)
    except ValueError as exc:
        assert str(exc)
