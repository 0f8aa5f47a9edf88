"""The layout of a page, as a reader sees it. reactor/page.pxd is where it is written down."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

MAGIC = 0x544E574F54504F54
VERSION = 1
BEAT_AT, ASKED_AT, ANSWERED_AT, TEXT_SIZE_AT, CLOSED_AT = 48, 56, 64, 72, 80
HEADER = struct.Struct("=6Q40x64s")
LOOP_AT = 512
LOOP = struct.Struct("=13Q106Q")
TEXT_AT, TEXT_SIZE = 4096, 65536
SECTIONS_AT, SECTION = TEXT_AT + TEXT_SIZE, 8192
REACTOR = struct.Struct("=13Q24x")
PORT = struct.Struct("=3Q40s")
MAX_PORTS = 16
CONN = struct.Struct("=11Q40s")
MAX_ROWS = 48
PORTS_AT = REACTOR.size
ROWS_AT = PORTS_AT + MAX_PORTS * PORT.size

_STATES = ("new", "open", "closing", "lingering", "detached", "closed")
_PAUSED, _ENDED = 256, 512
RANKINGS = ("busiest", "largest", "slowest")


class Header(NamedTuple):
    magic: int
    version: int
    size: int
    pid: int
    reactors: int
    opened: int
    name: str


class LoopRow(NamedTuple):
    """Times in ns, here and below."""

    sequence: int
    written_at: int
    asleep: int
    running_since: int
    posted_at: int
    busy: int
    batches: int
    completions: int
    lag: int
    longest_lag: int
    total_lag: int
    wakes: int
    unwatched: int
    lags: tuple[int, ...]


class PortRow(NamedTuple):
    listener: int
    accepted: int
    waiting: int
    address: str


class ConnRow(NamedTuple):
    id: int
    received: int
    sent: int
    inbound: int
    outbound: int
    opened: int
    moved_at: int
    moved: int
    moved_in: int
    state: str
    ranks: frozenset[str]
    address: str


class ReactorRow(NamedTuple):
    sequence: int
    written_at: int
    connections: int
    turns: int
    events: int
    busy: int
    pool_kept: int
    pool_in_use: int
    passed_at: int
    inbound: int
    outbound: int
    ports: tuple[PortRow, ...]
    conns: tuple[ConnRow, ...]


def parse_header(data: bytes) -> Header:
    *words, name = HEADER.unpack_from(data)
    return Header._make((*words, name.rstrip(b"\0").decode(errors="replace")))


def parse_loop(data: bytes) -> LoopRow:
    words = LOOP.unpack_from(data)
    return LoopRow._make((*words[:13], words[13:]))


def parse_reactor(data: bytes) -> ReactorRow:
    *words, ports, rows = REACTOR.unpack_from(data)
    listening = tuple(_port(data, PORTS_AT + i * PORT.size) for i in range(min(ports, MAX_PORTS)))
    conns = tuple(_conn(data, ROWS_AT + i * CONN.size) for i in range(min(rows, MAX_ROWS)))
    return ReactorRow._make((*words, listening, conns))


def _port(data: bytes, at: int) -> PortRow:
    *words, name = PORT.unpack_from(data, at)
    return PortRow._make((*words, address_text(name)))


def _conn(data: bytes, at: int) -> ConnRow:
    *words, state, ranks, name = CONN.unpack_from(data, at)
    listed = frozenset(what for i, what in enumerate(RANKINGS) if ranks >> i & 1)
    return ConnRow._make((*words, _state_text(state), listed, address_text(name)))


def _state_text(state: int) -> str:
    number = state & 255
    text = _STATES[number] if number < len(_STATES) else "?"
    if text == "open" and state & _PAUSED:
        return "paused"
    return "half-closed" if text == "open" and state & _ENDED else text


def address_text(name: bytes) -> str:
    """What getpeername or getsockname gave: a byte with its size, and the name."""
    size = min(name[0], len(name) - 1)
    raw = name[1 : 1 + size]
    family = int.from_bytes(raw[:2], "little" if struct.pack("=H", 1)[0] else "big")
    if family == socket.AF_INET and size >= 8:
        return f"{socket.inet_ntoa(raw[4:8])}:{int.from_bytes(raw[2:4], 'big')}"
    if family == socket.AF_INET6 and size >= 24:
        host = socket.inet_ntop(socket.AF_INET6, raw[8:24])
        return f"[{host}]:{int.from_bytes(raw[2:4], 'big')}"
    if family == socket.AF_UNIX:
        path = raw[2:]
        shown = path[:1].replace(b"\0", b"@") + path[1:].partition(b"\0")[0]
        return "unix:" + "".join(
            c if c.isprintable() else "?" for c in shown.decode(errors="replace")
        )
    return "-"
