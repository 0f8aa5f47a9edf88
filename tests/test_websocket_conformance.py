"""RFC 6455, case by case: what a peer may send, what it must not, and what becomes of it.

Each case is a stream, and what is to come of it: the messages that are delivered, and the code
that the connection is closed with. They are played to both roles, in-loop, on a reactor
thread, and over a stream that is no `Conn`, by a peer that then reads, and judges strictly, all
that was sent in answer: an echo of each message, a pong to the last ping, and a close frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import pytest
import trio
from helpers import plain_pair, read_all
from websocket_model import (
    BINARY,
    CLOSE,
    CONTINUATION,
    KEY,
    PING,
    PONG,
    TEXT,
    close_payload,
    decode,
    frame,
)

from trio_wknet import Engine, StreamWebSocket, open_engine
from trio_wknet._errors import ConnectionClosed
from trio_wknet._websocket.channel import WebSocket

MAX_MESSAGE = 200_000
MAX_FRAGMENTS = 1000
AT_ONCE = 40  # cases that are played at the same time

Frame = tuple[Any, ...]  # opcode, payload and, in a dict, what is unusual


class Case(NamedTuple):
    name: str
    frames: list[Frame]
    messages: Sequence[bytes] = ()  # that are delivered
    code: int = 1000  # of our close frame; 1000 where nothing is wrong: the peer closes then
    chop: int = 0  # bytes that are sent at a time; 0: all


def f(opcode: int, payload: bytes = b"", **unusual: Any) -> Frame:
    return opcode, payload, unusual


HELLO = f(TEXT, b"hello")


# --- the cases ---------------------------------------------------------------------------------


def framing() -> Iterator[Case]:
    for size in (0, 1, 2, 124, 125, 126, 127, 128, 1000, 65_535, 65_536, 65_537, 131_072):
        for kind in (TEXT, BINARY):
            data = b"*" * size if kind == TEXT else bytes([0xFE]) * size
            for chop in (0, 1, 997) if size < 200 else (0, 997, 4096):
                yield Case(f"{kind} of {size}, by {chop}", [f(kind, data)], [data], chop=chop)
    yield Case("many", [f(BINARY, b"%d" % n) for n in range(500)], [b"%d" % n for n in range(500)])
    yield Case("many empty ones", [f(TEXT)] * 300, [b""] * 300, chop=7)


def lengths() -> Iterator[Case]:
    for n, form in ((0, 2), (1, 2), (125, 2), (0, 8), (125, 8), (126, 8), (65_535, 8)):
        for kind in (TEXT, BINARY, PING):
            if kind != PING or n <= 125:
                frames = [HELLO, f(kind, b"x" * n, form=form)]
                yield Case(f"{n} in the form of {form}, {kind}", frames, [b"hello"], 1002)
    for length in (1 << 63, (1 << 64) - 1):
        yield Case(f"length {length}", [f(BINARY, length=length)], [], 1002)
    for length in (MAX_MESSAGE + 1, 1 << 31, 1 << 32, (1 << 32) + 1, 1 << 62, (1 << 63) - 1):
        yield Case(f"length {length}", [HELLO, f(BINARY, length=length)], [b"hello"], 1009)


def pings() -> Iterator[Case]:
    for payload in (b"", b"hello", bytes([0, 255, 254, 253]), bytes([0xFE]) * 124, b"x" * 125):
        for chop in (0, 1):
            yield Case(f"ping {payload!r}, by {chop}", [f(PING, payload)], chop=chop)
            yield Case(
                f"pong {payload!r}, by {chop}", [f(PONG, payload), HELLO], [b"hello"], chop=chop
            )
    for opcode in (PING, PONG, CLOSE):
        for n in (126, 127, 65_536):
            yield Case(f"{opcode} of {n}", [HELLO, f(opcode, bytes(n))], [b"hello"], 1002)
        yield Case(f"{opcode} in fragments", [f(opcode, b"x", fin=False)], [], 1002)
        frames = [f(TEXT, b"a", fin=False), f(opcode, b"x", fin=False)]
        yield Case(f"{opcode} in fragments inside a message", frames, [], 1002)
    ten = [f(PING, b"payload-%d" % n) for n in range(10)]
    for chop in (0, 1, 11):
        yield Case(f"ten pings, by {chop}", ten, chop=chop)
        yield Case(
            f"pongs and pings, by {chop}", [f(PONG, b"no"), *ten, HELLO], [b"hello"], chop=chop
        )


def reserved() -> Iterator[Case]:
    for rsv in range(1, 8):
        for opcode in (TEXT, BINARY, PING, PONG, CLOSE):
            yield Case(
                f"bits {rsv} of {opcode}", [HELLO, f(opcode, b"ab", rsv=rsv)], [b"hello"], 1002
            )
        frames = [f(TEXT, b"a", fin=False), f(CONTINUATION, b"b", rsv=rsv)]
        yield Case(f"bits {rsv} of a continuation", frames, [], 1002)
        yield Case(f"bits {rsv}, byte by byte", [HELLO, f(TEXT, rsv=rsv)], [b"hello"], 1002, 1)


def opcodes() -> Iterator[Case]:
    for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
        yield Case(f"opcode {opcode}", [f(opcode)], [], 1002)
        yield Case(f"opcode {opcode} with a payload", [f(opcode, b"payload")], [], 1002)
        yield Case(
            f"opcode {opcode} behind a message", [HELLO, f(opcode, b"x"), HELLO], [b"hello"], 1002
        )
        frames = [f(TEXT, b"a", fin=False), f(opcode), f(CONTINUATION)]
        yield Case(f"opcode {opcode} inside a message", frames, [], 1002)


def fragments() -> Iterator[Case]:
    for kind in (TEXT, BINARY):
        for n in (2, 3, 10, 100):
            parts = [b"%d," % i for i in range(n)]
            first = [f(kind, parts[0], fin=False)]
            rest = [f(CONTINUATION, part, fin=False) for part in parts[1:-1]]
            last = [f(CONTINUATION, parts[-1])]
            between = []
            for i, part in enumerate(rest):
                between += [f(PING, b"%d" % i), part, f(PONG)]
            for chop in (0, 1, 3):
                whole = [b"".join(parts)]
                yield Case(f"{n} of {kind}, by {chop}", first + rest + last, whole, chop=chop)
                frames = [*first, *between, f(PING, b"q"), *last, HELLO]
                name = f"{n} of {kind} with pings, by {chop}"
                yield Case(name, frames, [*whole, b"hello"], chop=chop)
        empty = [f(kind, fin=False), f(CONTINUATION, fin=False), f(CONTINUATION)]
        yield Case(f"empty ones of {kind}", empty, [b""])
        middle = [f(kind, fin=False), f(CONTINUATION, b"middle", fin=False), f(CONTINUATION)]
        yield Case(f"empty, full, empty of {kind}", middle, [b"middle"])
    for fin in (True, False):
        yield Case(f"continuation of nothing, {fin}", [f(CONTINUATION, b"x", fin=fin)], [], 1002)
        frames = [HELLO, f(CONTINUATION, b"x", fin=fin), HELLO]
        yield Case(f"continuation behind a message, {fin}", frames, [b"hello"], 1002)
        frames = [f(TEXT, b"a", fin=False), f(CONTINUATION, b"b"), f(CONTINUATION, b"c", fin=fin)]
        yield Case(f"continuation behind the last, {fin}", frames, [b"ab"], 1002)
        for kind in (TEXT, BINARY):
            frames = [f(TEXT, b"a", fin=False), f(kind, b"b", fin=fin)]
            yield Case(f"{kind} in a message, {fin}", frames, [], 1002)
    large = [f(BINARY, bytes(40_000), fin=False), f(CONTINUATION, bytes(40_000), fin=False)]
    yield Case("large ones", [*large, f(CONTINUATION, b"!")], [bytes(80_000) + b"!"], chop=9999)


VALID = [
    "κόσμε",
    "Hello-µ@ßöäüàá-UTF-8!!",
    "\x00",
    "\x7f",
    "\x80",
    "\u07ff",
    "\u0800",
    "\ud7ff",
    "\ue000",
    "\ufffd",
    "\ufffe",
    "\uffff",
    "\U00010000",
    "\U0001f600\U0001f601",
    "\U0003ffff",
    "\U0010fffe",
    "\U0010ffff",
    "日本語" * 20,
    "aé€\U0001f600" * 30,
]
INVALID = [
    b"\x80",
    b"\xbf",
    b"\x80\xbf\x80",
    b"\xc0",
    b"\xc2",
    b"\xc3\x28",
    b"\xc0\x80",
    b"\xc1\xbf",
    b"\xe0\x80\x80",
    b"\xe0\x9f\xbf",
    b"\xe2\x28\xa1",
    b"\xe2\x82\x28",
    b"\xe2\x82",
    b"\xed\xa0\x80",
    b"\xed\xad\xbf",
    b"\xed\xb0\x80",
    b"\xed\xbf\xbf",
    b"\xed\xa0\x80\xed\xb0\x80",
    b"\xf0\x80\x80\x80",
    b"\xf0\x8f\xbf\xbf",
    b"\xf0\x28\x8c\xbc",
    b"\xf0\x90\x28\xbc",
    b"\xf0\x9f\x98",
    b"\xf4\x90\x80\x80",
    b"\xf5\x80\x80\x80",
    b"\xf8\x88\x80\x80\x80",
    b"\xfc\x84\x80\x80\x80\x80",
    b"\xfe",
    b"\xff",
    b"\xfe\xfe\xff\xff",
    "κόσμε".encode() + b"\xed\xa0\x80edited",
]


def in_fragments(data: bytes) -> list[Frame]:
    """Each byte in one of its own."""
    pieces = [data[i : i + 1] for i in range(len(data))]
    return [
        f(CONTINUATION if i else TEXT, piece, fin=i == len(pieces) - 1)
        for i, piece in enumerate(pieces)
    ]


def utf8() -> Iterator[Case]:
    for text in VALID:
        data = text.encode()
        yield Case(f"{text!r}", [f(TEXT, data)], [data])
        yield Case(f"{text!r}, byte by byte", [f(TEXT, data)], [data], chop=1)
        yield Case(f"{text!r}, in fragments", in_fragments(data), [data])
        around = b"a" * 17 + data + b"z" * 17
        yield Case(f"{text!r}, among ASCII", [f(TEXT, around)], [around])
    for data in INVALID:
        yield Case(f"{data!r}", [HELLO, f(TEXT, data)], [b"hello"], 1007)
        yield Case(f"{data!r}, in fragments", in_fragments(data), [], 1007)
        yield Case(f"{data!r}, byte by byte", [f(TEXT, data)], [], 1007, 1)
        yield Case(f"{data!r}, among ASCII", [f(TEXT, b"a" * 30 + data + b"b" * 9)], [], 1007)
        yield Case(f"{data!r}, binary", [f(BINARY, data)], [data])
    # It is known to be wrong before the message is whole: nothing comes behind it.
    frames = [f(TEXT, b"\xce\xba\xed\xa0", fin=False)]
    yield Case("fails fast", frames, [], 1007)


def closes() -> Iterator[Case]:
    for code in (1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 3999, 4000, 4999):
        yield Case(f"code {code}", [HELLO, f(CLOSE, close_payload(code))], [b"hello"], code)
        yield Case(f"code {code}, reason", [f(CLOSE, close_payload(code, "ü" * 61))], [], code, 1)
    for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535):
        yield Case(f"code {code}", [HELLO, f(CLOSE, close_payload(code, "no"))], [b"hello"], 1002)
    yield Case("empty", [HELLO, f(CLOSE)], [b"hello"], 1005)
    yield Case("one byte", [f(CLOSE, b"\x03")], [], 1002)
    yield Case("longest reason", [f(CLOSE, close_payload(1000, "r" * 123))], [], 1000)
    yield Case("too long", [f(CLOSE, close_payload(1000, "r" * 124))], [], 1002)
    for reason in (b"\xff", b"\xed\xa0\x80", b"\xe2\x82", b"ok\xc0\x80"):
        payload = close_payload(1000) + reason
        yield Case(f"reason {reason!r}", [HELLO, f(CLOSE, payload)], [b"hello"], 1007)
    for behind in (HELLO, f(PING, b"p"), f(CLOSE), f(3), f(TEXT, b"\xff"), f(TEXT, rsv=7)):
        for chop in (0, 1):
            frames = [HELLO, f(CLOSE, close_payload(4000)), behind, behind]
            yield Case(f"{behind} behind it, by {chop}", frames, [b"hello"], 4000, chop)
    frames = [f(TEXT, b"a", fin=False), f(CLOSE, close_payload(1001))]
    yield Case("inside a message", frames, [], 1001)


def limits() -> Iterator[Case]:
    most = b"x" * MAX_MESSAGE
    yield Case("as much as may be", [f(BINARY, most)], [most], chop=60_000)
    yield Case("a byte more", [HELLO, f(BINARY, most + b"x")], [b"hello"], 1009, 60_000)
    half = [f(BINARY, most[: MAX_MESSAGE // 2], fin=False)]
    rest = most[MAX_MESSAGE // 2 :]
    yield Case("as much in fragments", [*half, f(CONTINUATION, rest)], [most], chop=60_000)
    frames = [*half, f(CONTINUATION, rest, fin=False), f(CONTINUATION, b"x")]
    yield Case("a byte more in fragments", frames, [], 1009, 60_000)
    for n, code in ((MAX_FRAGMENTS, 1000), (MAX_FRAGMENTS + 1, 1009)):
        for part in (b"", b"y"):
            frames = [f(TEXT, part, fin=False)]
            frames += [f(CONTINUATION, part, fin=False)] * (n - 2)
            frames += [f(CONTINUATION, part)]
            name = f"{n} fragments of {part!r}"
            yield Case(name, frames, [part * n] if code == 1000 else [], code)


def masks() -> Iterator[Case]:
    for opcode in (TEXT, BINARY, PING, PONG, CLOSE):
        for payload in (b"", b"ab"):
            wrong = f(opcode, payload, wrong_mask=True)
            yield Case(f"{opcode} of {payload!r}", [HELLO, wrong], [b"hello"], 1002)
    frames = [f(TEXT, b"a", fin=False), f(CONTINUATION, b"b", wrong_mask=True)]
    yield Case("a continuation", frames, [], 1002)
    for key in (bytes(4), b"\xff" * 4, b"\x00\x00\x00\x01", b"\x80\x00\x00\x00"):
        data = bytes(range(256))
        yield Case(f"key {key!r}", [f(BINARY, data, key=key)], [data], chop=5)


GROUPS = [framing, lengths, pings, reserved, opcodes, fragments, utf8, closes, limits, masks]


# --- playing them ------------------------------------------------------------------------------


def wire(case: Case, role: str) -> bytes:
    stream = b""
    for opcode, payload, unusual in case.frames:
        options = dict(unusual)
        key = options.pop("key", KEY) if role == "server" else None
        options.pop("key", None)
        if options.pop("wrong_mask", False):
            key = None if role == "server" else KEY
        stream += frame(opcode, payload, key=key, **options)
    if case.code == 1000 and not any(opcode == CLOSE for opcode, *_ in case.frames):
        stream += frame(CLOSE, close_payload(1000), key=KEY if role == "server" else None)
    return stream


async def serve(ws: WebSocket | StreamWebSocket) -> ConnectionClosed:
    """Echo, and end as a program does."""
    try:
        while True:
            await ws.send_many(await ws.receive_many())
    except ConnectionClosed as closed:
        await ws.aclose()
        return closed


async def play(engine: Engine | None, role: Any, case: Case) -> str:
    """What was wrong; nothing, if all was right."""
    ours, theirs = plain_pair("unix")
    theirs.setblocking(False)
    peer = trio.socket.from_stdlib_socket(theirs)
    stream = wire(case, role)
    answer = b""
    closed = []

    async def write() -> None:
        step = case.chop or len(stream)
        try:
            for at in range(0, len(stream), step):
                piece = memoryview(stream)[at : at + step]
                while piece:
                    piece = piece[await peer.send(piece) :]
                if step < 100:
                    await trio.lowlevel.checkpoint()
            peer.shutdown(trio.socket.SHUT_WR)
        except OSError:  # it was closed before all was sent
            pass

    async def run() -> None:
        options: dict[str, Any] = {"max_message": MAX_MESSAGE, "max_fragments": MAX_FRAGMENTS}
        if engine is not None:
            conn: Any = engine.adopt(ours)
            closed.append(await serve(WebSocket._over(conn, role, **options)))
        else:
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
            closed.append(await serve(StreamWebSocket._over(stream, role, **options)))

    with peer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            nursery.start_soon(write)
            answer = await read_all(peer)
    return judged(case, role, stream, answer, closed[0])


def judged(case: Case, role: str, stream: bytes, answer: bytes, closed: ConnectionClosed) -> str:
    server = role == "server"
    options = {"max_message": MAX_MESSAGE, "max_fragments": MAX_FRAGMENTS}
    model = decode(stream, client=not server, **options)  # type: ignore[arg-type]
    said = decode(answer, client=server, max_message=MAX_MESSAGE)
    echoed = [data for _, _, data in said.messages]
    # An echo that comes too late for the close frame is not sent.
    if [data for _, _, data in model.messages] != list(case.messages):
        return "the model delivers other messages"
    if model.over is None or (model.over[1], closed.code) != (case.code, case.code):
        return f"closed with {closed.code}, and by the model {model.over}"
    if said.over != (1, case.code) or closed.by != ("peer" if model.over[0] == 1 else "local"):
        return f"said goodbye with {said.over}; {closed!r}"
    if echoed != list(case.messages[: len(echoed)]):
        return "echoed something else"
    order = [model.pings.index(pong) for pong in said.pongs]
    if order != sorted(set(order)) or said.pongs[-1:] != model.pings[-1:]:
        return f"answered {said.pongs}"
    return ""


@pytest.mark.parametrize("role", ["server", "client"])
@pytest.mark.parametrize("reactors", [0, 1, None], ids=["in-loop", "1-reactor", "stream"])
@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
async def test_cases(nothing_left: None, group: Any, reactors: int | None, role: str) -> None:
    wrong: dict[str, str] = {}
    limiter = trio.CapacityLimiter(AT_ONCE)

    async def one(engine: Engine | None, case: Case) -> None:
        async with limiter:
            with trio.move_on_after(20) as scope:
                if what := await play(engine, role, case):
                    wrong[case.name] = what
            if scope.cancelled_caught:
                wrong[case.name] = "it hangs"

    opening = nullcontext() if reactors is None else open_engine(reactors)
    async with opening as engine, trio.open_nursery() as nursery:
        for case in group():
            nursery.start_soon(one, engine, case)
    assert wrong == {}


def test_there_are_many() -> None:
    assert sum(1 for group in GROUPS for _ in group()) > 600
    for group in GROUPS:
        names = [case.name for case in group()]
        assert len(names) == len(set(names))
