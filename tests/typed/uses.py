"""A program that uses all of the package as users do. It is for type checkers, which find
nothing to complain of (`test_types.py`); nobody runs it."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator

import trio
from typing_extensions import assert_type

import trio_wknet
from trio_wknet import (
    Conn,
    ConnOptions,
    ConnStatistics,
    Delimited,
    DelimiterNotFound,
    Engine,
    FixedLength,
    FrameChannel,
    FrameStatistics,
    IncompleteRead,
    LengthPrefixed,
    Limits,
    Listener,
    ProxyHeader,
    RingBuffer,
    Timer,
    TimingWheel,
    Trace,
    VarintPrefixed,
    open_engine,
    open_tcp_stream,
    open_unix_socket,
    open_wknet_listener,
    serve_tcp,
    systemd_sockets,
)

# --- handlers, in every way to write one ----------------------------------------


async def of_conn(conn: Conn) -> None:
    async for data in conn:
        assert_type(data, bytes)
        await conn.send_all(data)


async def of_socket_stream(stream: trio.SocketStream) -> None:
    if isinstance(stream, Conn):
        assert_type(stream, Conn)
        assert_type(await stream.receive_until(b"\n", 100), bytes)
        stream.send_nowait(b"hello")
    else:
        assert_type(stream, trio.SocketStream)
    await stream.send_all(b"there")


async def of_frames(conn: Conn) -> None:
    framing = LengthPrefixed(4, "little", offset=2, adjustment=-6, strip=0, max_frame=1000)
    channel = conn.framed(framing)
    assert_type(channel, FrameChannel)
    async for frame in channel:
        assert_type(frame, bytes)
        await channel.send(frame)
    assert_type(await channel.receive(), bytes)
    assert_type(await channel.receive_many(10), list[bytes])
    assert_type(channel.receive_many_nowait(), list[bytes])
    assert_type(channel.statistics(), FrameStatistics)
    assert_type(channel.unframe(), Conn)
    as_trios: trio.abc.Channel[bytes] = conn.framed(Delimited(b"\n", keep=True, max_frame=80))
    async with as_trios, conn.framed(FixedLength(5)), conn.framed(VarintPrefixed(100)):
        pass


async def of_half_closeable(stream: trio.abc.HalfCloseableStream) -> None:
    await stream.send_eof()


async def of_stream(stream: trio.abc.Stream) -> int:
    await stream.send_all(await stream.receive_some())
    return 1


class Server:
    async def handle(self, conn: Conn) -> None:
        await conn.send_all(b"bye")


async def with_more(name: str, conn: Conn) -> None:
    conn.context = name


async def serve_with_each(listener: Listener) -> None:
    await listener.serve(of_conn)
    await listener.serve(of_socket_stream)
    await listener.serve(of_half_closeable)
    await listener.serve(of_stream)
    await listener.serve(Server().handle)
    await listener.serve(functools.partial(with_more, "name"))
    await serve_tcp(of_conn, 0)
    await serve_tcp(of_socket_stream, 0, host="localhost", backlog=5)
    await serve_tcp(of_stream, 0)
    async with trio.open_nursery() as nursery:
        await nursery.start(listener.serve, of_conn)
        await nursery.start(functools.partial(serve_tcp, of_conn, 0))
        nursery.start_soon(listener.serve, of_socket_stream)
        nursery.start_soon(trio.serve_listeners, of_socket_stream, [listener])
    await trio.serve_listeners(of_conn, [listener])


# --- Trio's functions --------------------------------------------------------------


async def of_tls(stream: trio.SSLStream[trio.SocketStream]) -> None:
    conn = stream.transport_stream
    assert isinstance(conn, Conn)
    assert_type(conn.close_reason, "str | None")


async def serving_tls(context: ssl.SSLContext, nursery: trio.Nursery) -> None:
    nursery.start_soon(trio_wknet.serve_ssl_over_tcp, of_tls, 443, context)
    await trio_wknet.serve_ssl_over_tcp(trio_wknet.TLSStream.aclose, 443, context)


async def through_trios_functions(context: ssl.SSLContext) -> None:
    stream = await open_tcp_stream("localhost", 80)
    await stream.send_all(b"hello")
    assert_type(await stream.receive_exactly(5), bytes)
    trios: trio.SocketStream = await open_unix_socket("/run/socket")
    assert isinstance(trios, Conn)
    trios.abort()

    listeners: list[trio.SocketListener] = await trio_wknet.open_tcp_listeners(0)
    (listener,) = listeners
    assert isinstance(listener, Listener)
    assert_type(listener, Listener)
    await listener.drain()

    over_tls = await trio_wknet.open_ssl_over_tcp_stream("localhost", 443, ssl_context=context)
    await of_tls(over_tls)
    assert_type(over_tls, trio_wknet.TLSStream)
    secure: list[
        trio.SSLListener[trio.SocketStream]
    ] = await trio_wknet.open_ssl_over_tcp_listeners(443, context)
    assert isinstance(secure[0], trio_wknet.TLSListener)
    assert_type(await secure[0].accept(), trio_wknet.TLSStream)
    assert_type(secure[0].transport_listener, Listener)
    await secure[0].serve(of_tls)
    await trio.serve_listeners(of_tls, secure)


def either_transport(trios: bool) -> None:
    serve = trio.serve_tcp if trios else trio_wknet.serve_tcp
    trio.run(functools.partial(serve, of_socket_stream, 0))


# --- engines and listeners -----------------------------------------------------------


@contextlib.asynccontextmanager
async def opened() -> AsyncIterator[tuple[Engine, Listener]]:
    networks = ["10.0.0.0/8", ipaddress.ip_address("::1")]
    async with (
        open_engine(2, balance="round_robin") as engine,
        open_wknet_listener(
            "tcp://localhost:0",
            engine=engine,
            backlog=100,
            idle_timeout=60,
            proxy_protocol=networks,
            limits=Limits(inbound=65536, linger_time=2.5),
            options=ConnOptions(keepalive=True),
        ) as listener,
    ):
        yield engine, listener


async def use_engine(engine: Engine) -> None:
    listener = await engine.listen("unix:///run/socket", options=ConnOptions(unix_mode=0o660))
    conn = await engine.connect("tcp://localhost:80")
    assert_type(conn, Conn)
    assert_type(await listener.accept(), Conn)
    for _, sock in systemd_sockets():
        adopted = engine.adopt(sock)
        if isinstance(adopted, Listener):
            await adopted.aclose()
        else:
            assert_type(adopted, Conn)
    for number, known in engine.connections.items():
        assert_type(number, int)
        known.send_nowait(b"bye")
    assert_type(engine.statistics().reactors[0].turns, int)
    assert_type(engine.reactors, int)


async def use_addresses(listener: Listener, conn: Conn) -> None:
    for address in (listener.address, *listener.addresses, conn.local_address, conn.remote_address):
        if isinstance(address, tuple):
            host, port, *_ = address
            assert_type(host, str)
            await open_tcp_stream(host, port)
            assert_type(address[:2], tuple[str, int])
        elif isinstance(address, str):
            await open_unix_socket(address)
        else:
            assert_type(address, bytes)
    name_client(conn.proxy_header)


def name_client(header: ProxyHeader | None) -> None:
    if header is not None and isinstance(header.source, tuple):
        assert_type(header.source[0], str)


# --- connections ---------------------------------------------------------------------


async def use_conn(conn: Conn) -> None:
    buffer = bytearray(100)
    assert_type(await conn.receive_some(), bytes)
    assert_type(conn.receive_nowait(100), bytes)
    assert_type(await conn.receive_into(buffer), int)
    try:
        await conn.receive_exactly(4)
        await conn.receive_until(b"\r\n", max_bytes=100)
    except IncompleteRead as exc:
        assert_type(exc.buffered, int)
    except DelimiterNotFound as exc:
        assert_type(exc.delimiter, bytes)
    with contextlib.suppress(trio.WouldBlock):
        conn.send_nowait(memoryview(buffer))
    await conn.flush()
    await conn.wait_send_all_might_not_block()
    with conn.idle_scope(5) as scope, conn.cancel_on_disconnect():
        assert_type(scope, trio.CancelScope)
    with conn.idle_scope(read=5, write=1.5):
        await conn.wait_closed()
    conn.idle_timeout = None
    assert_type(conn.rate(read=1_000_000, write=None), trio_wknet.Rates)
    assert_type(conn.rate().read, int | None)
    conn.context = {"name": "anything"}
    conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    assert_type(conn.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF), int)
    assert_type(conn.socket.fileno(), int)
    assert_type(conn.id, "int | None")
    assert_type(conn.statistics(), ConnStatistics)
    await conn.send_eof()
    sock, unread = await conn.detach()
    assert_type(sock, socket.socket)
    assert_type(unread, bytes)
    await trio.aclose_forcefully(conn)
    async with conn:
        conn.close_nowait()


# --- event mode ------------------------------------------------------------------------


def on_connect(conn: Conn) -> None:
    conn.context = []


def on_data(conn: Conn) -> None:
    conn.context.append(conn.receive_nowait())


async def converse(conn: Conn) -> None:
    await conn.send_all(await conn.receive_some())


def on_close(conn: Conn, reason: str) -> None:
    print(conn, reason)


def on_error(conn: Conn, exc: Exception) -> None:
    print(conn, exc)


async def serve_events(listener: Listener) -> None:
    await listener.serve_events(on_data)
    await listener.serve_events(
        converse, on_connect=on_connect, on_close=on_close, on_error=on_error
    )


def on_frames(channel: FrameChannel, frames: list[bytes]) -> None:
    channel.send_many_nowait(frames)


async def answer(channel: FrameChannel, frames: list[bytes]) -> None:
    await channel.send_many(frames)


async def serve_frames(listener: Listener) -> None:
    framing = LengthPrefixed(4, max_frame=1000)
    await listener.serve_frames(framing, on_frames)
    await listener.serve_frames(
        framing,
        answer,
        on_connect=lambda channel: channel.send_nowait(b"hello"),
        on_close=lambda channel, reason: print(channel.conn, reason),
        on_error=lambda channel, exc: print(channel.conn, exc),
    )


# --- what comes with it -----------------------------------------------------------------


def use_the_rest() -> None:
    ring = RingBuffer(100)
    assert_type(ring.write(b"bytes"), int)
    with ring.peek() as view:
        assert_type(bytes(view), bytes)
    assert_type(ring.read(), bytes)

    wheel = TimingWheel()
    timer = wheel.call_later(5, print, "late")
    assert_type(timer, Timer)
    timer.reset(6)
    with wheel.move_on_after(1) as scope:
        assert_type(scope, trio.CancelScope)
    with Trace(limit=100) as trace:
        trace.save("trace.json")


async def returns_a_number() -> int:
    return 1


trio_wknet.install(reactors=1)
trio_wknet.uninstall()
assert_type(trio_wknet.run(returns_a_number, reactors=2), int)
