"""Event mode with WebSockets: handshakes without a task, lists of whole messages, and how a
WebSocket ends."""

from __future__ import annotations

import gc
import socket
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from event_servers import STYLES, caller, styled
from helpers import DEFAULT, content, dialled, read, read_all, send, tcp_address, until
from trio.testing import MockClock, wait_all_tasks_blocked
from websocket_model import BINARY, CLOSE, CONTINUATION, KEY, PING, PONG, TEXT, close_payload
from websocket_model import frame as any_frame

from trio_wknet import (
    Conn,
    ConnectionClosed,
    Engine,
    Limits,
    PerMessageDeflate,
    Request,
    Response,
    WebSocket,
    WebSocketListener,
    WebSocketOptions,
    open_engine,
    open_websocket,
    open_wknet_listener,
)

UPGRADE = (
    b"GET /room HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
ANSWER = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
PLAIN = WebSocketOptions()
frame = partial(any_frame, key=KEY)
Message = str | bytes


def goodbye(code: int, reason: str = "") -> bytes:
    return frame(CLOSE, close_payload(code, reason))


def echo(websocket: WebSocket, messages: list[Message]) -> None:
    websocket.send_many_nowait(messages)


class Log:
    """Callbacks that write down what comes, and check the contract."""

    def __init__(self, style: str = "plain", *, answer: bool = False) -> None:
        self.answer = answer
        self.lists: list[list[Message]] = []
        self.errors: list[Exception] = []
        self.ends: list[tuple[int, str]] = []
        self.on_connect = styled(self._connect, style)
        self.on_messages = styled(self._messages, style)
        self.on_close = styled(self._close, style)

    def _connect(self, websocket: WebSocket) -> None:
        assert isinstance(websocket, WebSocket)
        assert websocket.request.path == "/room"
        assert websocket.conn.context is None
        websocket.conn.context = 0  # messages

    def _messages(self, websocket: WebSocket, messages: list[Message]) -> None:
        assert type(messages) is list
        assert messages
        assert websocket.request.path == "/room"
        websocket.conn.context += len(messages)
        self.lists.append(messages)
        if self.answer:
            websocket.send_many_nowait(messages)

    def on_error(self, websocket: WebSocket, exc: Exception) -> None:
        assert isinstance(websocket, WebSocket)
        self.errors.append(exc)

    def _close(self, websocket: WebSocket, code: int, reason: str) -> None:
        assert (code, reason) == (websocket.close_code, websocket.close_reason)
        assert websocket.conn.id is None
        assert websocket.request.path == "/room"
        assert websocket.statistics().messages_received == websocket.conn.context
        self.ends.append((code, reason))

    @property
    def callbacks(self) -> dict[str, Any]:
        return {
            "on_connect": self.on_connect,
            "on_close": self.on_close,
            "on_error": self.on_error,
        }

    @property
    def messages(self) -> list[Message]:
        return [message for messages in self.lists for message in messages]


@asynccontextmanager
async def serving(
    engine: Engine,
    on_messages: Any,
    *,
    options: WebSocketOptions = PLAIN,
    limits: Limits = DEFAULT,
    **callbacks: Any,
) -> AsyncIterator[WebSocketListener]:
    """A listener under `serve_messages`, which is cancelled at the end."""
    async with open_wknet_listener(
        "ws://127.0.0.1:0", engine=engine, websocket=options, limits=limits
    ) as opened:
        listener: Any = opened
        async with trio.open_nursery() as nursery:
            started = await nursery.start(
                partial(listener.serve_messages, on_messages, **callbacks)
            )
            assert started is listener
            yield listener
            nursery.cancel_scope.cancel()


async def shake(peer: Any, behind: bytes = b"") -> None:
    await send(peer, UPGRADE + behind)
    assert await read(peer, len(ANSWER)) == ANSWER


# --- delivery -----------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
async def test_lists_of_whole_messages(engine: Engine, style: str) -> None:
    log = Log(style, answer=True)
    many: list[Message] = [content(n, n % 90) for n in range(500)]
    sent: list[Message] = ["one", b"two", "", b"", "drei: ß", *many, b"x" * 200_000]
    async with serving(engine, log.on_messages, **log.callbacks) as listener:
        host, port = tcp_address(listener.listener)
        async with open_websocket(f"ws://{host}:{port}/room", engine=engine) as websocket:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(websocket.send_many, sent)
                got: list[Message] = []
                while len(got) < len(sent):
                    got += await websocket.receive_many()
        await until(lambda: listener.statistics().handlers == 0)
    assert got == log.messages == sent
    assert log.ends == [(1000, "")]
    assert log.errors == []
    assert len(log.lists) < 100


async def test_a_handshake_byte_by_byte_with_messages_behind(engine: Engine) -> None:
    """It has no task, and nothing is called before it is done; what is pipelined is not lost."""
    log = Log(answer=True)
    behind = frame(TEXT, b"first") + frame(PING, b"?") + frame(BINARY, b"second")
    async with serving(engine, log.on_messages, **log.callbacks) as listener:
        with caller(listener.listener) as slow, caller(listener.listener) as quick:
            await shake(quick, behind)
            assert await read(quick, 18) in {
                b"\x8a\x01?\x81\x05first\x82\x06second",
                b"\x81\x05first\x8a\x01?\x82\x06second",
                b"\x81\x05first\x82\x06second\x8a\x01?",
            }
            assert log.messages == ["first", b"second"]
            tasks = trio.lowlevel.current_statistics().tasks_living
            for byte in UPGRADE + frame(TEXT, b"slow"):
                await send(slow, bytes([byte]))
                await trio.lowlevel.checkpoint()
            assert await read(slow, len(ANSWER) + 6) == ANSWER + b"\x81\x04slow"
            assert trio.lowlevel.current_statistics().tasks_living == tasks


async def test_nothing_is_called_for_a_part(engine: Engine) -> None:
    log = Log()
    async with serving(engine, log.on_messages, **log.callbacks) as listener:
        with caller(listener.listener) as peer:
            await shake(peer)
            await wait_all_tasks_blocked()
            wakes = engine.statistics().wakes
            parts = frame(TEXT, b"be", fin=False) + frame(PING, b"!") + frame(PONG, b"!")
            for byte in parts + frame(CONTINUATION, b"gin")[:-1]:
                await send(peer, bytes([byte]))
                await trio.lowlevel.checkpoint()
            assert await read(peer, 3) == b"\x8a\x01!"
            assert log.lists == []
            assert engine.statistics().wakes - wakes < 20
            await send(peer, frame(CONTINUATION, b"gin")[-1:])
            await until(lambda: log.lists == [["begin"]])


async def test_a_slow_callback_holds_the_peer_back(engine: Engine) -> None:
    go = trio.Event()
    lists: list[list[Message]] = []
    sent = [content(n, 1000) for n in range(1000)]

    async def on_messages(websocket: WebSocket, messages: list[Message]) -> None:
        lists.append(messages)
        await go.wait()

    limits = Limits(inbound=20_000)
    async with serving(engine, on_messages, limits=limits) as listener:
        with caller(listener.listener) as peer:
            await shake(peer)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, peer, b"".join(frame(BINARY, it) for it in sent))
                await until(lambda: lists)
                await wait_all_tasks_blocked()
                assert len(lists) == 1
                go.set()
            await until(lambda: sum(map(len, lists)) == len(sent))
    assert [message for messages in lists for message in messages] == sent


async def test_a_receive_in_a_callback(engine: Engine) -> None:
    log: list[Any] = []

    async def on_messages(websocket: WebSocket, messages: list[Message]) -> None:
        log.append(messages)
        for receive in (websocket.receive_nowait, websocket.receive_many_nowait):
            with pytest.raises(trio.WouldBlock):
                receive()
        if messages == ["begin"]:
            websocket.send_nowait("go on")
            log.append(await websocket.receive())
            with trio.move_on_after(0):
                await websocket.receive()
        if messages == ["last"]:
            await until(lambda: websocket.close_code)
            with pytest.raises(trio.WouldBlock):
                websocket.receive_nowait()

    async with serving(engine, on_messages) as listener:
        with caller(listener.listener) as peer:
            await shake(peer, frame(TEXT, b"begin"))
            assert await read(peer, 7) == b"\x81\x05go on"
            await send(peer, frame(TEXT, b"by hand"))
            await until(lambda: len(log) == 2)
            await send(peer, frame(TEXT, b"last") + goodbye(1000))
            assert await read_all(peer) == b"\x88\x02\x03\xe8"
    assert log == [["begin"], "by hand", ["last"]]


async def test_a_task_may_not_wait_for_what_the_server_takes(engine: Engine) -> None:
    kept: list[WebSocket] = []
    log = Log()
    async with serving(engine, log.on_messages, on_connect=kept.append) as listener:
        with caller(listener.listener) as peer:
            await shake(peer)
            await until(lambda: kept)
            (websocket,) = kept
            for receive in (websocket.receive, websocket.receive_many, websocket.__anext__):
                with pytest.raises(trio.BusyResourceError, match="serve_messages receives"):
                    await receive()
            with pytest.raises(trio.WouldBlock):
                websocket.receive_nowait()
            await websocket.send("from a task")
            assert await read(peer, 13) == b"\x81\x0bfrom a task"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(websocket.ping, b"1")
                assert await read(peer, 3) == b"\x89\x011"
                await send(peer, frame(PONG, b"1"))


# --- handshakes ---------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
async def test_requests_are_answered_by_the_application(engine: Engine, style: str) -> None:
    """A large answer, too, which is sent by a task; and no callback hears of them."""
    page = content(1, 200_000)

    def on_request(request: Request) -> Response | None:
        return {"/page": Response(200, page), "/no": Response(403)}.get(request.path)

    async def later(request: Request) -> Response | None:
        await trio.lowlevel.checkpoint()
        return on_request(request)

    log = Log(answer=True)
    asked = on_request if style == "plain" else later
    async with serving(
        engine, log.on_messages, on_request=asked, limits=Limits(outbound=10_000), **log.callbacks
    ) as listener:
        for target, expected in (
            (b"/page", b"200 OK"),
            (b"/no", b"403 Forbidden"),
            (b"/else", b"426 Upgrade Required"),
        ):
            with caller(listener.listener) as peer:
                await send(peer, b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n")
                answer = await read_all(peer)
                assert answer.startswith(b"HTTP/1.1 " + expected)
                if target == b"/page":
                    assert answer.endswith(b"\r\n\r\n" + page)
        with caller(listener.listener) as peer:
            await shake(peer, frame(TEXT, b"hello"))
            assert await read(peer, 7) == b"\x81\x05hello"
        await until(lambda: log.ends == [(1006, "")])
        await until(lambda: listener.statistics().handlers == 0)
    assert log.messages == ["hello"]


@pytest.mark.parametrize(
    ("wire", "status"),
    [
        (b"\x16\x03\x01\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 400, b"431"),
        (UPGRADE.replace(b"dGhl", b"dGh"), b"400"),
        (UPGRADE.replace(b"13\r\n", b"8\r\n"), b"426"),
    ],
)
async def test_garbage_is_refused(engine: Engine, wire: bytes, status: bytes) -> None:
    log = Log(answer=True)
    options = WebSocketOptions(max_header=256)
    async with serving(engine, log.on_messages, options=options, **log.callbacks) as listener:
        with caller(listener.listener) as peer:
            await send(peer, wire)
            assert (await read_all(peer)).startswith(b"HTTP/1.1 " + status)
        with caller(listener.listener) as peer:
            await send(peer, wire[:5])  # and goes
        with caller(listener.listener) as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        with caller(listener.listener) as peer:
            await shake(peer, frame(TEXT, b"hello"))
            assert await read(peer, 7) == b"\x81\x05hello"
        await until(lambda: listener.statistics().handlers == 0)
    assert len(log.ends) == 1


async def test_late_handshakes_are_ended_by_one_task(autojump_clock: MockClock) -> None:
    log = Log(answer=True)
    options = WebSocketOptions(handshake_time=5)
    async with (
        open_engine(0) as engine,
        serving(engine, log.on_messages, options=options, **log.callbacks) as listener,
    ):
        with caller(listener.listener) as kept, dialled(listener.listener, 5):
            await shake(kept)
            await until(lambda: listener.statistics().handlers == 6)
            with caller(listener.listener) as trickling:
                tasks = trio.lowlevel.current_statistics().tasks_living
                with trio.fail_after(9):
                    for byte in UPGRADE[:-1]:
                        try:
                            await send(trickling, bytes([byte]))
                        except OSError:
                            break
                        assert trio.lowlevel.current_statistics().tasks_living <= tasks
                        await trio.sleep(0.1)
                    else:
                        pytest.fail("it may trickle for ever")
            await until(lambda: listener.statistics().handlers == 1)
            await send(kept, frame(TEXT, b"hello"))
            assert await read(kept, 7) == b"\x81\x05hello"
    assert len(log.ends) == 1


async def test_what_on_request_raises_ends_serving(engine: Engine) -> None:
    log = Log()

    def on_request(request: Request) -> Response | None:
        raise KeyError(request.path)

    async def later(request: Request) -> Response | None:
        return on_request(request)

    for asked in (on_request, later):
        with pytest.RaisesGroup(pytest.RaisesGroup(KeyError)):
            async with serving(
                engine, log.on_messages, on_request=asked, **log.callbacks
            ) as listener:
                with caller(listener.listener) as peer:
                    await send(peer, UPGRADE)
                    await trio.sleep_forever()
    assert log.errors == []
    assert log.ends == []


# --- ends ---------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    ("wire", "code", "answer"),
    [
        (goodbye(1000, "done"), 1000, b"\x88\x02\x03\xe8"),
        (frame(CLOSE), 1005, b"\x88\x00"),
        (goodbye(4000, "x"), 4000, b"\x88\x02\x0f\xa0"),
        (frame(3), 1002, None),
        (frame(TEXT, b"\xff"), 1007, None),
        (frame(BINARY, length=1_000_000), 1009, None),
    ],
)
async def test_what_the_peer_does_ends_its_connection_alone(
    engine: Engine, style: str, wire: bytes, code: int, answer: bytes | None
) -> None:
    log = Log(style)
    options = WebSocketOptions(max_message=1000)
    callbacks = log.callbacks
    if style == "mixed":
        del callbacks["on_error"]
    async with serving(engine, log.on_messages, options=options, **callbacks) as listener:
        with caller(listener.listener) as peer, caller(listener.listener) as other:
            await shake(peer, frame(TEXT, b"before") + wire + frame(TEXT, b"behind"))
            rest = await read_all(peer)
            assert rest == answer if answer else rest[2:4] == code.to_bytes(2, "big")
            await until(lambda: log.ends)
            await shake(other, frame(TEXT, b"goes on"))
            await until(lambda: len(log.lists) == 2)
            seen = log.errors.copy()
    assert log.messages == ["before", "goes on"]
    assert log.ends[0][0] == code
    errors = [] if code in (1000, 1005) or style == "mixed" else [code]
    assert [exc.code for exc in seen if isinstance(exc, ConnectionClosed)] == errors


@pytest.mark.parametrize("style", STYLES)
async def test_a_connection_that_is_lost(engine: Engine, style: str) -> None:
    log = Log(style)
    async with serving(engine, log.on_messages, **log.callbacks) as listener:
        with caller(listener.listener) as peer:
            await shake(peer, frame(TEXT, b"before"))
            await until(lambda: log.lists)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        with caller(listener.listener) as peer:
            await shake(peer, frame(TEXT, b"before") + frame(TEXT, b"?")[:-1])
            await until(lambda: len(log.lists) == 2)
        await until(lambda: len(log.ends) == 2)
    assert log.ends == [(1006, "")] * 2
    assert [type(exc) for exc in log.errors] == [type(log.errors[0])] * 2
    assert isinstance(log.errors[0].__cause__, OSError)


@pytest.mark.parametrize("style", STYLES)
async def test_a_callback_may_close(engine: Engine, style: str) -> None:
    log = Log(style)

    def on_messages(websocket: WebSocket, messages: list[Message]) -> None:
        websocket.send_nowait("bye")
        websocket.close_nowait(4001, "enough")
        with pytest.raises(ConnectionClosed):
            websocket.send_nowait("behind")

    async with serving(engine, styled(on_messages, style), on_close=log.on_close) as listener:
        with caller(listener.listener) as peer:
            # What it has not taken counts as received by nobody.
            await shake(peer)
            (conn,) = engine.connections.values()
            conn.context = 1
            await send(peer, frame(TEXT, b"x"))
            assert await read_all(peer) == b"\x81\x03bye\x88\x08\x0f\xa1enough"
            await until(lambda: log.ends == [(4001, "enough")])


@pytest.mark.parametrize("style", STYLES)
async def test_a_send_to_a_peer_that_closes_ends_no_serving(engine: Engine, style: str) -> None:
    log = Log(style, answer=True)
    async with serving(
        engine, log.on_messages, on_connect=log.on_connect, on_close=log.on_close
    ) as listener:
        for _ in range(2):
            with caller(listener.listener) as peer:
                await shake(peer, frame(TEXT, b"x") + goodbye(1001))
                assert (await read_all(peer))[-4:] == b"\x88\x02\x03\xe9"
        await until(lambda: len(log.ends) == 2)
    assert log.ends == [(1001, "")] * 2


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("handled", [True, False])
async def test_a_callback_that_raises(engine: Engine, style: str, handled: bool) -> None:
    log = Log()

    def on_messages(websocket: WebSocket, messages: list[Message]) -> None:
        raise KeyError(messages[0])

    callbacks: Any = {"on_error": log.on_error} if handled else {}

    async def play() -> None:
        async with serving(engine, styled(on_messages, style), **callbacks) as listener:
            with caller(listener.listener) as peer:
                await shake(peer, frame(TEXT, b"x"))
                assert await read_all(peer) == b"\x88\x02\x03\xf3"  # 1011
                if not handled:
                    await trio.sleep_forever()
                assert isinstance(log.errors[0], KeyError)

    if handled:
        await play()
        return
    with pytest.RaisesGroup(pytest.RaisesGroup(KeyError)):
        await play()


async def test_the_end_of_serving_says_goodbye(engine: Engine) -> None:
    log = Log()
    async with serving(engine, log.on_messages, **log.callbacks) as listener:
        with caller(listener.listener) as peer, caller(listener.listener) as early:
            await shake(peer)
            await send(early, UPGRADE[:-2])
            await until(lambda: listener.statistics().handlers == 2)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listener.drain)
                await wait_all_tasks_blocked()
                await send(early, UPGRADE[-2:])
                assert await read(early, len(ANSWER)) == ANSWER
                early.close()
                await send(peer, goodbye(1000))
                assert await read_all(peer) == b"\x88\x02\x03\xe8"
    assert sorted(log.ends) == [(1000, ""), (1006, "")]
    log = Log()
    async with serving(engine, log.on_messages, **log.callbacks) as listener:
        peer = trio.socket.socket()
        await peer.connect(listener.address)
        await shake(peer)
    with peer:
        assert await read_all(peer) == b"\x88\x02\x03\xe9"  # 1001
    assert log.ends == [(1001, "")]


async def test_an_idle_timeout_says_goodbye(engine: Engine) -> None:
    log = Log()

    def on_connect(websocket: WebSocket) -> None:
        log.on_connect(websocket)
        websocket.conn.idle_timeout = 0.02

    async with serving(
        engine, log.on_messages, on_connect=on_connect, on_close=log.on_close
    ) as listener:
        with caller(listener.listener) as peer:
            await shake(peer)
            assert await read_all(peer) == b"\x88\x02\x03\xe9"
            await until(lambda: log.ends == [(1001, "")])


# --- objects ------------------------------------------------------------------------------


def objects() -> int:
    return sum(type(it) in (Conn, WebSocket) for it in gc.get_objects())


@pytest.mark.parametrize("style", STYLES)
async def test_a_quiet_one_has_no_object_and_no_task(engine: Engine, style: str) -> None:
    gc.collect()
    already = objects()
    async with serving(engine, styled(echo, style)) as listener:
        with dialled(listener.listener, 30) as socks:
            peers = [trio.socket.from_stdlib_socket(sock.dup()) for sock in socks]
            for peer in peers:
                await shake(peer)
            for _ in range(2):
                for peer in peers:
                    await send(peer, frame(TEXT, b"hello"))
                    assert await read(peer, 7) == b"\x81\x05hello"
            await wait_all_tasks_blocked()
            gc.collect()
            # But for a pair, and a Conn, kept for the next callbacks.
            assert objects() - already <= 3
            for peer in peers:
                peer.close()
        await until(lambda: listener.statistics().handlers == 0)
    gc.collect()
    assert objects() - already <= 0


async def test_a_plain_callback_makes_no_object(engine: Engine) -> None:
    """The same objects serve one connection after another, without what they knew."""
    ids: set[tuple[int, int]] = set()
    rooms: dict[Any, str] = {}

    def on_messages(websocket: WebSocket, messages: list[Message]) -> None:
        ids.add((id(websocket), id(websocket.conn)))
        assert websocket.request.target == f"/{messages[0]!s}"
        assert websocket.subprotocol is None
        assert websocket.close_code is None
        assert rooms.setdefault(websocket.conn.id, websocket.request.target)
        echo(websocket, messages)

    async with serving(engine, on_messages) as listener:
        with caller(listener.listener) as one, caller(listener.listener) as two:
            for name, peer in ((b"1", one), (b"2", two)):
                await send(peer, UPGRADE.replace(b"/room", b"/" + name))
                assert await read(peer, len(ANSWER)) == ANSWER
            for _ in range(5):
                for name, peer in ((b"1", one), (b"2", two)):
                    await send(peer, frame(TEXT, name))
                    assert await read(peer, 3) == b"\x81\x01" + name
    assert sorted(rooms.values()) == ["/1", "/2"]
    assert len(ids) == 1


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("keep", ["websocket", "conn", "weakly"])
async def test_what_is_kept_stays(engine: Engine, style: str, keep: str) -> None:
    keeps: dict[str, Any] = {
        "websocket": lambda websocket: websocket,
        "conn": lambda websocket: websocket.conn,
        "weakly": weakref.ref,
    }
    kept: dict[Message, Any] = {}
    closed: list[Any] = []

    def on_messages(websocket: WebSocket, messages: list[Message]) -> None:
        before = kept.get(messages[0])
        if before is not None and keep != "weakly":
            assert before is keeps[keep](websocket)
        if before is not None and keep == "weakly":
            assert before() is None
        kept[messages[0]] = keeps[keep](websocket)
        echo(websocket, messages)

    def on_close(websocket: WebSocket, code: int, reason: str) -> None:
        closed.append(keeps[keep](websocket))
        assert websocket.statistics().messages_received == 3

    async with serving(engine, styled(on_messages, style), on_close=on_close) as listener:
        with caller(listener.listener) as one, caller(listener.listener) as two:
            for peer in (one, two):
                await shake(peer)
            for _ in range(3):
                for name, peer in ((b"1", one), (b"2", two)):
                    await send(peer, frame(TEXT, name))
                    assert await read(peer, 3) == b"\x81\x01" + name
                    await wait_all_tasks_blocked()
                    gc.collect()
        await until(lambda: len(closed) == 2)
    if keep != "weakly":
        assert {id(it) for it in closed} == {id(it) for it in kept.values()}


async def test_pings_of_one_object_after_another(engine: Engine) -> None:
    """The numbers of pings are the connection's: no pong of before answers them."""
    times: list[float] = []

    async def on_messages(websocket: WebSocket, messages: list[Message]) -> None:
        times.append(await websocket.ping())

    async with serving(engine, on_messages) as listener:
        with caller(listener.listener) as peer:
            await shake(peer)
            payloads = set()
            for n in range(3):
                await send(peer, frame(TEXT, b"x"))
                payload = (await read(peer, 14))[2:]
                payloads.add(payload)
                await wait_all_tasks_blocked()
                assert len(times) == n
                await send(peer, frame(PONG, payload))
                await until(partial(lambda count: len(times) == count, n + 1))
    assert len(payloads) == 3


@pytest.mark.parametrize("misuse", [{"on_close": 1}, {"on_request": 2}, {"on_error": 3}])
async def test_arguments(engine: Engine, misuse: dict[str, Any]) -> None:
    async with open_wknet_listener("ws://127.0.0.1:0", engine=engine) as opened:
        listener: Any = opened
        with pytest.raises(TypeError, match=next(iter(misuse))):
            await listener.serve_messages(echo, **misuse)
        with pytest.raises(TypeError, match="on_messages"):
            await listener.serve_messages(None)


async def test_compression_is_the_connections(engine: Engine) -> None:
    options = WebSocketOptions(compression=PerMessageDeflate())
    async with serving(engine, echo, options=options) as listener:
        host, port = tcp_address(listener.listener)
        opening = partial(open_websocket, f"ws://{host}:{port}/", engine=engine, options=options)
        async with opening() as one, opening() as two:
            for n in range(5):
                for websocket in (one, two):
                    text = f"{n} of {id(websocket)}, and the same words again " * 5
                    await websocket.send(text)
                    assert await websocket.receive() == text
