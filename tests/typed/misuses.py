"""What type checkers are to find: something on each line that says so, and on no other."""

from __future__ import annotations

import trio

from trio_wknet import (
    Conn,
    ConnOptions,
    Engine,
    FixedLength,
    Limits,
    Listener,
    open_tcp_stream,
    serve_tcp,
)


async def of_socket_stream(stream: trio.SocketStream) -> None:
    if isinstance(stream, Conn):
        await stream.receive_until("\n")  # wrong
    stream.send_nowait(b"hello")  # wrong
    assert isinstance(stream, Conn)
    stream.no_such_method()  # wrong


async def of_nothing() -> None: ...


def plain(conn: Conn) -> None: ...


async def of_bytes(data: bytes) -> None: ...


async def main(engine: Engine, listener: Listener, conn: Conn) -> None:
    await listener.serve(None)  # wrong
    await listener.serve(of_nothing)  # wrong
    await listener.serve(of_nothing())  # wrong
    await listener.serve(plain)  # wrong
    await listener.serve(of_bytes)  # wrong
    await listener.serve_events(of_bytes)  # wrong
    await listener.serve_frames(FixedLength(1), plain)  # wrong
    await serve_tcp(plain, 0)  # wrong
    await engine.connect("localhost", 80)  # wrong
    await engine.connect(("localhost", 80))  # wrong
    await engine.listen("tcp://localhost:80", limits=ConnOptions())  # wrong
    (await open_tcp_stream("localhost", 80)).no_such_method()  # wrong
    async for data in conn:
        data.no_such_method()  # wrong
    listener.address.no_such_method()  # wrong
    await conn.send_all("text")  # wrong
    Conn(5)  # wrong
    Listener("tcp://localhost:80")  # wrong
    Limits(65536)  # wrong
    Limits(inbound="65536")  # wrong
