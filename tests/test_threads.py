"""Use from another thread: every public call is refused there, and disturbs nobody.

What there is to call is enumerated. Whatever is added to a class must be added here."""

from __future__ import annotations

import gc
import io
import socket
import ssl
import threading
import warnings
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from helpers import ManualClock, plain_pair, read, until
from tls_helpers import two_tls

import trio_wknet
from trio_wknet import (
    Broadcast,
    Conn,
    Delimited,
    Engine,
    FixedLength,
    FrameChannel,
    Group,
    Groups,
    Limits,
    Listener,
    Timer,
    TimingWheel,
    TLSFrameChannel,
    TLSListener,
    TLSStream,
    Trace,
    WebSocket,
    WebSocketListener,
)
from trio_wknet._native.trio.connections import Connections
from trio_wknet._sockets.facade import _INSTEAD, SocketFacade, _Handle, make_handle

LOCAL = "tcp://127.0.0.1:0"

NODELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY)

LINES = Delimited(b"\n", max_frame=100)

# How each is called. None: a name that may be read anywhere, or does nothing by itself.
CONN: dict[str, Callable[[Any], Any] | None] = {
    "abort": lambda conn: conn.abort(),
    "aclose": lambda conn: conn.aclose(),
    "cancel_on_disconnect": lambda conn: conn.cancel_on_disconnect().__enter__(),
    "close_nowait": lambda conn: conn.close_nowait(),
    "close_reason": None,
    "context": lambda conn: setattr(conn, "context", 1),
    "detach": lambda conn: conn.detach(),
    "discard": lambda conn: conn.discard(0),
    "engine": None,
    "flush": lambda conn: conn.flush(),
    "framed": lambda conn: conn.framed(LINES),
    "getsockopt": lambda conn: conn.getsockopt(*NODELAY),
    "id": None,
    "idle_point": lambda conn: conn.idle_point().__enter__(),
    "idle_scope": lambda conn: conn.idle_scope(1),
    "idle_timeout": lambda conn: setattr(conn, "idle_timeout", 1),
    "local_address": None,
    "peek": lambda conn: conn.peek(),
    "proxy_header": None,
    "rate": lambda conn: conn.rate(read=1),
    "receive_exactly": lambda conn: conn.receive_exactly(1),
    "receive_exactly_nowait": lambda conn: conn.receive_exactly_nowait(1),
    "receive_into": lambda conn: conn.receive_into(bytearray(1)),
    "receive_nowait": lambda conn: conn.receive_nowait(),
    "receive_some": lambda conn: conn.receive_some(),
    "receive_until": lambda conn: conn.receive_until(b"x"),
    "receive_until_nowait": lambda conn: conn.receive_until_nowait(b"x"),
    "remote_address": None,
    "send_all": lambda conn: conn.send_all(b"stray"),
    "send_eof": lambda conn: conn.send_eof(),
    "send_file": lambda conn: conn.send_file(io.BytesIO(b"stray")),
    "send_nowait": lambda conn: conn.send_nowait(b"stray"),
    "send_vectored": lambda conn: conn.send_vectored([b"stray"]),
    "setsockopt": lambda conn: conn.setsockopt(*NODELAY, 1),
    "socket": None,
    "start_tls": lambda conn: conn.start_tls(ssl.create_default_context()),
    "statistics": lambda conn: conn.statistics(),
    "wait_closed": lambda conn: conn.wait_closed(),
    "wait_send_all_might_not_block": lambda conn: conn.wait_send_all_might_not_block(),
    "__aenter__": None,
    "__aexit__": lambda conn: conn.__aexit__(None, None, None),
    "__aiter__": None,
    "__anext__": lambda conn: conn.__anext__(),
}
CHANNEL: dict[str, Callable[[Any], Any] | None] = {
    "aclose": lambda channel: channel.aclose(),
    "conn": None,
    "framing": None,
    "idle_point": lambda channel: channel.idle_point().__enter__(),
    "receive": lambda channel: channel.receive(),
    "receive_many": lambda channel: channel.receive_many(),
    "receive_many_nowait": lambda channel: channel.receive_many_nowait(),
    "receive_nowait": lambda channel: channel.receive_nowait(),
    "send": lambda channel: channel.send(b"stray"),
    "send_many": lambda channel: channel.send_many([b"stray"]),
    "send_many_nowait": lambda channel: channel.send_many_nowait([b"stray"]),
    "send_nowait": lambda channel: channel.send_nowait(b"stray"),
    "statistics": lambda channel: channel.statistics(),
    "unframe": lambda channel: channel.unframe(),
    "__aenter__": None,
    "__aexit__": lambda channel: channel.__aexit__(None, None, None),
    "__aiter__": None,
    "__anext__": lambda channel: channel.__anext__(),
}
TLS_CHANNEL = {**CHANNEL, "stream": None}
del TLS_CHANNEL["conn"]
TLS_STREAM: dict[str, Callable[[Any], Any] | None] = {
    "abort": lambda stream: stream.abort(),
    "aclose": lambda stream: stream.aclose(),
    "cancel_on_disconnect": lambda stream: stream.cancel_on_disconnect().__enter__(),
    "close_reason": None,
    "idle_point": lambda stream: stream.idle_point().__enter__(),
    "do_handshake": lambda stream: stream.do_handshake(),
    "flush": lambda stream: stream.flush(),
    "framed": lambda stream: stream.framed(LINES),
    "idle_scope": lambda stream: stream.idle_scope(1),
    "idle_timeout": lambda stream: setattr(stream, "idle_timeout", 1),
    "local_address": None,
    "rate": lambda stream: stream.rate(read=1),
    "receive_exactly": lambda stream: stream.receive_exactly(1),
    "receive_exactly_nowait": lambda stream: stream.receive_exactly_nowait(1),
    "receive_into": lambda stream: stream.receive_into(bytearray(1)),
    "receive_nowait": lambda stream: stream.receive_nowait(),
    "receive_some": lambda stream: stream.receive_some(),
    "receive_until": lambda stream: stream.receive_until(b"x"),
    "receive_until_nowait": lambda stream: stream.receive_until_nowait(b"x"),
    "remote_address": None,
    "send_all": lambda stream: stream.send_all(b"stray"),
    "send_file": lambda stream: stream.send_file(io.BytesIO(b"stray")),
    "send_nowait": lambda stream: stream.send_nowait(b"stray"),
    "send_vectored": lambda stream: stream.send_vectored([b"stray"]),
    "statistics": lambda stream: stream.statistics(),
    "transport_stream": None,
    "unwrap": lambda stream: stream.unwrap(),
    "wait_closed": lambda stream: stream.wait_closed(),
    "wait_send_all_might_not_block": lambda stream: stream.wait_send_all_might_not_block(),
    "__aenter__": None,
    "__aexit__": lambda stream: stream.__aexit__(None, None, None),
    "__aiter__": None,
    "__anext__": lambda stream: stream.__anext__(),
}
WEBSOCKET: dict[str, Callable[[Any], Any] | None] = {
    "accept": None,  # these three belong to the class
    "aclose": lambda websocket: websocket.aclose(),
    "close_code": None,
    "close_nowait": lambda websocket: websocket.close_nowait(),
    "close_reason": None,
    "conn": None,
    "connect": None,
    "idle_point": lambda websocket: websocket.idle_point().__enter__(),
    "ping": lambda websocket: websocket.ping(),
    "receive": lambda websocket: websocket.receive(),
    "receive_many": lambda websocket: websocket.receive_many(),
    "receive_many_nowait": lambda websocket: websocket.receive_many_nowait(),
    "receive_nowait": lambda websocket: websocket.receive_nowait(),
    "remote_address": None,
    "request": None,
    "send": lambda websocket: websocket.send("stray"),
    "send_many": lambda websocket: websocket.send_many(["stray"]),
    "send_many_nowait": lambda websocket: websocket.send_many_nowait(["stray"]),
    "send_nowait": lambda websocket: websocket.send_nowait("stray"),
    "statistics": lambda websocket: websocket.statistics(),
    "subprotocol": None,
    "upgrade": None,
    "__aenter__": None,
    "__aexit__": lambda websocket: websocket.__aexit__(None, None, None),
    "__aiter__": None,
    "__anext__": lambda websocket: websocket.__anext__(),
}
TLS_LISTENER: dict[str, Callable[[Any], Any] | None] = {
    "accept": lambda listener: listener.accept(),
    "aclose": lambda listener: listener.aclose(),
    "address": None,
    "addresses": None,
    "engine": None,
    "drain": lambda listener: listener.drain(),
    "serve": lambda listener: listener.serve(TLSStream.aclose),
    "statistics": lambda listener: listener.statistics(),
    "transport_listener": None,
    "__aenter__": None,
    "__aexit__": lambda listener: listener.__aexit__(None, None, None),
}
WEBSOCKET_LISTENER: dict[str, Callable[[Any], Any] | None] = {
    "aclose": lambda listener: listener.aclose(),
    "address": None,
    "addresses": None,
    "engine": None,
    "drain": lambda listener: listener.drain(),
    "serve": lambda listener: listener.serve(WebSocket.aclose),
    "serve_messages": lambda listener: listener.serve_messages(print),
    "statistics": lambda listener: listener.statistics(),
    "__aenter__": None,
    "__aexit__": lambda listener: listener.__aexit__(None, None, None),
}
LISTENER: dict[str, Callable[[Any], Any] | None] = {
    "accept": lambda listener: listener.accept(),
    "aclose": lambda listener: listener.aclose(),
    "address": None,
    "addresses": None,
    "admission": None,
    "backlog": None,
    "drain": lambda listener: listener.drain(),
    "engine": None,
    "idle_timeout": None,
    "limits": None,
    "options": None,
    "proxy_protocol": None,
    "reuse_port": None,
    "serve": lambda listener: listener.serve(Conn.aclose),
    "serve_events": lambda listener: listener.serve_events(Conn.receive_nowait),
    "serve_frames": lambda listener: listener.serve_frames(FixedLength(1), print),
    "setsockopt": lambda listener: listener.setsockopt(*NODELAY, 1),
    "socket": None,
    "statistics": lambda listener: listener.statistics(),
    "__aenter__": None,
    "__aexit__": lambda listener: listener.__aexit__(None, None, None),
}
ENGINE: dict[str, Callable[[Any], Any] | None] = {
    "adopt": lambda engine: engine.adopt(None),
    "connect": lambda engine: engine.connect("tcp://127.0.0.1:1"),
    "connections": None,
    "group": lambda engine: engine.group(),
    "groups": None,
    "listen": lambda engine: engine.listen(LOCAL),
    "listeners": lambda engine: engine.listeners,
    "measure": lambda engine: engine.measure(),
    "reactors": None,
    "statistics": lambda engine: engine.statistics(),
    "tasks": lambda engine: engine.tasks(),
}
members: list[Any] = []
GROUP: dict[str, Callable[[Any], Any] | None] = {
    "add": lambda group: group.add(members[0]),
    "broadcast": lambda group: group.broadcast(b"stray"),
    "broadcast_nowait": lambda group: group.broadcast_nowait(b"stray"),
    "discard": lambda group: group.discard(members[0]),
    "pending": None,
    "__contains__": lambda group: members[0] in group,
    "__iter__": lambda group: next(iter(group)),
    "__len__": None,
}
GROUPS: dict[str, Callable[[Any], Any] | None] = {
    "get": None,  # what a dict of the application's could do
    "items": None,
    "join": lambda groups: groups.join("another", members[0]),
    "keys": None,
    "leave": lambda groups: groups.leave("room", members[0]),
    "values": None,
    "__contains__": None,
    "__getitem__": None,
    "__iter__": None,
    "__len__": None,
}
BROADCAST: dict[str, Callable[[Any], Any] | None] = {
    "wait": None,  # refused while it is in progress
}
CONNECTIONS: dict[str, Callable[[Any], Any] | None] = {
    "get": lambda connections: connections.get(1),
    "items": lambda connections: connections.items(),
    "keys": lambda connections: connections.keys(),
    "values": lambda connections: connections.values(),
    "__contains__": lambda connections: 1 in connections,
    "__getitem__": lambda connections: connections[1],
    "__iter__": lambda connections: iter(connections),
    "__len__": lambda connections: len(connections),
}
SOCKET: dict[str, Callable[[Any], Any] | None] = {
    "close": lambda sock: sock.close(),
    "family": None,
    "fileno": None,
    "get_inheritable": lambda sock: sock.get_inheritable(),
    "getpeername": lambda sock: sock.getpeername(),
    "getsockname": lambda sock: sock.getsockname(),
    "getsockopt": lambda sock: sock.getsockopt(*NODELAY),
    "is_readable": lambda sock: sock.is_readable(),
    "proto": None,
    "set_inheritable": lambda sock: sock.set_inheritable(True),
    "setsockopt": lambda sock: sock.setsockopt(*NODELAY, 1),
    "type": None,
}
WHEEL: dict[str, Callable[[Any], Any] | None] = {
    "call_later": lambda wheel: wheel.call_later(1, print),
    "move_on_after": lambda wheel: wheel.move_on_after(1).__enter__(),
    "statistics": lambda wheel: wheel.statistics(),
    "turn": lambda wheel: wheel.turn(),
}
TIMER: dict[str, Callable[[Any], Any] | None] = {
    "cancel": lambda timer: timer.cancel(),
    "reset": lambda timer: timer.reset(),
}
# What a trace has of Trio's instruments Trio calls. It may be read, and saved, anywhere.
TRACE: dict[str, Callable[[Any], Any] | None] = {
    "save": None,
    "to_json": None,
    "__enter__": lambda trace: trace.__enter__(),
    "__exit__": lambda trace: trace.__exit__(None, None, None),
}
PROTOCOLS = {"__aenter__", "__aexit__", "__aiter__", "__anext__", "__enter__", "__exit__",
             "__getitem__", "__setitem__", "__delitem__", "__iter__", "__len__",
             "__contains__", "__call__", "__await__"}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        (Conn, CONN), (FrameChannel, CHANNEL), (Listener, LISTENER), (Engine, ENGINE),
        (Connections, CONNECTIONS), (Group, GROUP), (Groups, GROUPS), (Broadcast, BROADCAST),
        (WebSocket, WEBSOCKET),
        (WebSocketListener, WEBSOCKET_LISTENER), (TLSListener, TLS_LISTENER),
        (TLSStream, TLS_STREAM), (TLSFrameChannel, TLS_CHANNEL),
        (SocketFacade, SOCKET), (TimingWheel, WHEEL), (Timer, TIMER), (Trace, TRACE),
    ],
    ids=lambda it: getattr(it, "__name__", ""),
)  # fmt: skip
def test_all_is_known(kind: type, known: dict[str, Any]) -> None:
    inherited = {
        SocketFacade: set(dir(trio.socket.SocketType)),  # which raise TypeError
        Trace: set(dir(trio.abc.Instrument)),
    }.get(kind, set())
    own = set(kind.__dict__)
    there = {
        name
        for name in dir(kind)
        if (not name.startswith("_") or name in PROTOCOLS)
        and (name in own or name not in inherited)
    }
    if kind is SocketFacade:
        there -= set(_INSTEAD)  # which raise wherever they are called
    if kind is Trace:
        there -= inherited | {"before_task_step", "after_task_step", "task_exited"}
    assert there - {"abstract_methods"} == set(known)


# Which classes an application is given, and which of them belong to no thread.
OF_NO_THREAD = {
    "Admission",
    "BroadcastIncomplete", "BroadcastResult",
    "ConnOptions", "ConnStatistics", "ConnTask", "Delimited", "DelimiterNotFound",
    "EngineStatistics",
    "FixedLength", "FrameStatistics", "FrameTooLong", "Histogram", "IncompleteRead",
    "LengthPrefixed",
    "MalformedFrame", "Rates", "RelayBroken", "RelayResult", "VarintPrefixed", "ConnectionClosed",
    "HandshakeError",
    "HandshakeRejected", "Idle", "PerMessageDeflate", "Request", "Response", "WebSocketOptions",
    "WebSocketStatistics",
    "Limits", "ListenerStatistics", "ProxyHeader", "ReactorStatistics", "RingBuffer",
    "WheelStatistics",
    "Shutdown",  # its own methods are Trio's
    "Stall", "Traffic",
    "StreamWebSocket",  # all Trio's, like the stream that it is over
}  # fmt: skip


def test_all_classes_are_known() -> None:
    classes = {name for name in trio_wknet.__all__ if isinstance(getattr(trio_wknet, name), type)}
    assert classes - OF_NO_THREAD == {
        "Broadcast", "Conn", "Engine", "FrameChannel", "Group", "Groups", "Listener",
        "TLSFrameChannel", "TLSListener", "TLSStream", "Timer", "TimingWheel", "Trace", "WebSocket",
        "WebSocketListener",
    }  # fmt: skip


# --- trying all of it ------------------------------------------------------------------


def in_thread(fn: Callable[[], None]) -> None:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            fn()
        except BaseException as exc:
            failures.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def refused(call: Callable[[], Any]) -> None:
    """Outside of any run."""
    with pytest.raises(RuntimeError, match=r"trio\.from_thread"):
        result = call()
        if hasattr(result, "send"):
            result.send(None)


async def refused_in_a_run(call: Callable[[], Any]) -> None:
    with pytest.raises(RuntimeError, match=r"trio\.from_thread"):
        result = call()
        if hasattr(result, "send"):
            await result


async def refuses(thing: Any, calls: dict[str, Callable[[Any], Any] | None]) -> None:
    """In a thread of no run, and in one of another run."""
    uses = [partial(call, thing) for call in calls.values() if call is not None]

    async def elsewhere() -> None:
        for use in uses:
            await refused_in_a_run(use)
            with trio.CancelScope() as scope:  # Cancelled would say that it had begun
                scope.cancel()
                await refused_in_a_run(use)

    def both() -> None:
        for use in uses:
            refused(use)
        trio.run(elsewhere)

    await trio.to_thread.run_sync(partial(in_thread, both))


async def parked() -> None:
    await trio.testing.wait_all_tasks_blocked(0.01)


async def test_a_conn(pair: tuple[Conn, Conn]) -> None:
    """While tasks receive, send, and wait for the end."""
    conn, peer = pair
    log: list[str] = []

    async def receive() -> None:
        assert await conn.receive_exactly(2) == b"ok"
        log.append("received")

    async def send() -> None:
        await conn.send_all(bytes(1 << 24))
        log.append("sent")

    async def wait() -> None:
        with conn.cancel_on_disconnect():
            await conn.wait_closed()
        log.append("ended")

    async with trio.open_nursery() as nursery:
        for fn in (receive, send, wait):
            nursery.start_soon(fn)
        await parked()
        await refuses(conn, CONN)
        await refuses(conn.socket, SOCKET)
        assert log == []
        assert conn.close_reason is None
        assert conn.context is None
        assert conn.idle_timeout is None
        await peer.send_all(b"ok")
        await read(peer, 1 << 24)
        await peer.send_eof()
    assert sorted(log) == ["ended", "received", "sent"]


async def test_a_frame_channel(pair: tuple[Conn, Conn]) -> None:
    conn, peer = pair
    channel = conn.framed(LINES)
    await refuses(channel, CHANNEL)
    await peer.send_all(b"ok\n")
    assert await channel.receive() == b"ok"
    assert channel.statistics().frames_sent == 0


async def test_a_tls_stream(engine: Engine) -> None:
    async with two_tls(engine) as (stream, peer):
        await refuses(stream, TLS_STREAM)
        channel = stream.framed(LINES)
        await refuses(channel, TLS_CHANNEL)
        await peer.send_all(b"ok\n")
        assert await channel.receive() == b"ok"
        assert stream.close_reason is None


async def test_a_websocket(pair: tuple[Conn, Conn]) -> None:
    conn, peer = pair
    websocket = WebSocket._over(conn, "server")
    await refuses(websocket, WEBSOCKET)
    await peer.send_all(b"\x81\x82\0\0\0\0ok")
    assert await websocket.receive() == "ok"
    assert websocket.statistics().messages_sent == 0


async def test_a_group(engine: Engine, pair: tuple[Conn, Conn]) -> None:
    conn, peer = pair
    members[:] = [conn]
    groups = engine.groups
    group = groups.join("room", conn)
    await refuses(group, GROUP)
    await refuses(groups, GROUPS)
    assert list(group) == [conn]
    assert list(groups) == ["room"]
    await group.broadcast_nowait(b"ok").wait()
    assert await peer.receive_exactly(2) == b"ok"


async def test_a_websocket_listener(engine: Engine) -> None:
    async with await engine.listen(LOCAL) as listener:
        await refuses(WebSocketListener(listener), WEBSOCKET_LISTENER)


async def test_a_tls_listener(engine: Engine) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    async with await engine.listen("tls://127.0.0.1:0", tls=context) as listener:
        await refuses(listener, TLS_LISTENER)


async def test_what_may_be_read(pair: tuple[Conn, Conn]) -> None:
    conn, _ = pair

    def look() -> None:
        assert conn.close_reason is None
        assert conn.id == number
        assert conn.context == "hello"
        assert conn.idle_timeout is None
        assert conn.proxy_header is None
        assert (conn.local_address, conn.remote_address) == addresses
        assert conn.socket.fileno() > 0
        assert str(number) in repr(conn)

    number = conn.id
    addresses = conn.local_address, conn.remote_address
    conn.context = "hello"
    in_thread(look)


async def test_a_conn_that_is_closed(pair: tuple[Conn, Conn]) -> None:
    """There is nothing to disturb."""
    conn, _ = pair
    conn.abort()

    def close() -> None:
        conn.abort()
        conn.close_nowait()
        conn.socket.close()
        trio.run(conn.aclose)
        trio.run(conn.wait_closed)
        assert conn.statistics().bytes_sent == 0

    in_thread(close)
    assert conn.close_reason == "aborted"


async def test_one_that_is_served_by_callbacks(engine: Engine) -> None:
    conns: list[Conn] = []
    listener = await engine.listen(LOCAL)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            partial(listener.serve_events, lambda conn: conn.send_nowait(conn.receive_nowait()),
                    on_connect=conns.append)
        )  # fmt: skip
        peer = await engine.connect(f"tcp://127.0.0.1:{listener.address[1]}")
        await until(lambda: conns)
        await refuses(conns[0], CONN)
        await refuses(listener, LISTENER)
        await peer.send_all(b"ok")
        assert await read(peer, 2) == b"ok"
        peer.abort()
        nursery.cancel_scope.cancel()


async def test_a_listener(engine: Engine) -> None:
    """While a task accepts, and while one serves."""
    listener = await engine.listen(LOCAL)
    accepted: list[Conn] = []

    async def accept() -> None:
        accepted.append(await listener.accept())

    uses: list[Callable[[], Awaitable[None]]]
    uses = [accept, partial(listener.serve, Conn.receive_some)]
    for n, fn in enumerate(uses):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fn)
            await parked()
            await refuses(listener, LISTENER)
            await refuses(listener.socket, {**SOCKET, "getpeername": None})
            assert "closed" not in repr(listener)
            async with await engine.connect(f"tcp://127.0.0.1:{listener.address[1]}"):
                await until(lambda: listener.statistics().accepted > n)  # noqa: B023
            nursery.cancel_scope.cancel()
        for conn in accepted:
            await conn.aclose()
    assert len(accepted) == 1


async def test_an_engine(engine: Engine) -> None:
    await refuses(engine, ENGINE)
    await refuses(engine.connections, CONNECTIONS)
    assert "Engine" in repr(engine)


async def test_handles(engine: Engine) -> None:
    """What a socket has become that `install` moved here."""
    ours, theirs = plain_pair()
    plain = socket.socket(ours.family, ours.type, ours.proto, fileno=ours.fileno())
    conn = engine.adopt(ours)
    assert isinstance(conn, Conn)
    plain.detach()
    make_handle(plain, conn.socket)
    assert isinstance(plain, _Handle)
    with theirs:
        # A flag of the descriptor's is read and set without giving the GIL up.
        calls = {
            **SOCKET,
            "get_inheritable": None,
            "set_inheritable": None,
            "is_readable": None,
            "__exit__": lambda sock: sock.__exit__(),
        }
        await refuses(plain, calls)
        theirs.send(b"ok")
        assert await conn.receive_some() == b"ok"
        plain.close()
        assert conn.close_reason == "closed"


@pytest.mark.parametrize("by_hand", [False, True])
async def test_a_wheel(by_hand: bool) -> None:
    wheel = TimingWheel(clock=ManualClock()) if by_hand else TimingWheel()
    timer = wheel.call_later(1000, print)
    uses = [
        *(partial(call, wheel) for call in WHEEL.values() if call is not None),
        *(partial(call, timer) for call in TIMER.values() if call is not None),
    ]

    def elsewhere() -> None:
        for use in uses:
            with pytest.raises(RuntimeError, match=r"another thread|turned by its Trio run"):
                use()

    await trio.to_thread.run_sync(elsewhere)
    assert wheel.statistics().pending == 1
    timer.cancel()


async def test_a_wheel_says_what_to_do() -> None:
    wheel = TimingWheel()
    wheel.call_later(1000, print)
    with pytest.raises(RuntimeError, match=r"trio\.from_thread"):
        await trio.to_thread.run_sync(partial(wheel.call_later, 1, print))


async def test_a_trace() -> None:
    with Trace() as trace:
        await refuses(trace, TRACE)
        in_thread(trace.to_json)  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="this run is traced already"):
            Trace().__enter__()
    with trace:  # the end was in order
        pass


async def test_anyios(pair: tuple[Conn, Conn], engine: Engine) -> None:
    anyios = pytest.importorskip("trio_wknet.contrib.anyio")
    conn, peer = pair
    listener = await engine.listen(LOCAL)
    stream, accepting = anyios.SocketStream(conn), anyios.SocketListener(listener)
    await refuses(
        stream,
        {
            "aclose": lambda it: it.aclose(),
            "receive": lambda it: it.receive(),
            "send": lambda it: it.send(b"stray"),
            "send_eof": lambda it: it.send_eof(),
            "raw_socket": lambda it: it._raw_socket.close(),
            "another": lambda it: anyios.SocketStream(it._conn),
        },
    )
    await refuses(
        accepting,
        {
            "accept": lambda it: it.accept(),
            "aclose": lambda it: it.aclose(),
            "raw_socket": lambda it: it._raw_socket.close(),
        },
    )
    await peer.send_all(b"ok")
    assert await stream.receive() == b"ok"
    await accepting.aclose()


# --- operations that wander --------------------------------------------------------------


async def test_one_made_here_and_awaited_there(pair: tuple[Conn, Conn], engine: Engine) -> None:
    conn, _ = pair
    listener = await engine.listen(LOCAL)
    operations: list[Awaitable[Any]] = [
        conn.receive_some(), conn.send_all(b"stray"), conn.flush(), listener.accept(),
    ]  # fmt: skip

    async def there() -> None:
        for operation in operations:
            with pytest.raises(RuntimeError, match=r"trio\.from_thread"):
                await operation

    in_thread(partial(trio.run, there))
    await listener.aclose()


async def test_one_that_a_task_awaits_already(pair: tuple[Conn, Conn]) -> None:
    conn, peer = pair
    operation = conn.receive_some()
    got: list[bytes] = []

    async def receive() -> None:
        got.append(await operation)

    async def there() -> None:
        with pytest.raises(RuntimeError, match="awaited already"):
            await operation

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await parked()
        await trio.to_thread.run_sync(partial(trio.run, there))
        await peer.send_all(b"ok")
    assert got == [b"ok"]


# --- finalizers --------------------------------------------------------------------------


class Held:
    """In a cycle with what it holds: only the collector lets go of it."""

    def __init__(self, it: Any) -> None:
        self.it, self.itself = it, self


async def test_finalizers_in_another_thread(engine: Engine, kind: str) -> None:
    """They let go. The other thread's run is none of theirs."""
    ours, theirs = plain_pair(kind)
    conn: Any = Held(engine.adopt(ours))
    listener: Any = Held(await engine.listen(LOCAL, limits=Limits(accept_queue=2)))
    address = listener.it.address
    waiting = socket.create_connection(address)
    await until(partial(_has_waiting, listener.it))
    gc.disable()
    try:
        del conn, listener

        async def collect() -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                gc.collect()
            await parked()

        await trio.to_thread.run_sync(partial(trio.run, collect))
    finally:
        gc.enable()
    for sock in (theirs, waiting):
        with sock:
            sock.setblocking(True)
            assert await trio.to_thread.run_sync(partial(_end, sock)) == b""
    await until(lambda: engine.statistics().connections == 0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def _has_waiting(listener: Listener) -> bool:
    return listener.statistics().waiting > 0


def _end(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1)
    except ConnectionResetError:
        return b""
