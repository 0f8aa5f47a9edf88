"""The servers that are compared, each by its name: ``python servers.py NAME``.

Every server listens on a loopback port, says which one, and echoes until the client
closes. It answers questions (`worker.py`), all but the one in C, and ends when its standard
input does. Those in this module echo bytes, those of `frame_servers.py` and
`websocket_servers.py` messages. Each receives and sends in its library's own plain way, up
to 64 KiB at a time, and leaves the socket's options as the library sets them: TCP_NODELAY
is on in all of them but gevent's.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import resource
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import frame_servers, websocket_servers
from harness.answers import say
from harness.compiled import compiled, compiler
from harness.serving import (
    BACKLOG,
    HOST,
    Serve,
    answer_until_stdin_ends,
    asyncio_protocol,
    asyncio_streams,
    note,
    serve_handler,
    trio_streams,
    wknet,
)

if TYPE_CHECKING:  # a peer's server imports nothing of this library
    from trio_wknet._load.protocol import Protocol

RECEIVE = 65536
IDLE = 300.0  # seconds without bytes that a connection may have, where that is bounded


# --- Trio and this library: the same handlers on both transports ---------------


async def echo(stream: Any) -> None:
    try:
        while data := await stream.receive_some():
            await stream.send_all(data)
    except Exception:
        pass  # the load generator leaves in the middle of a message


async def echo_with_deadline(stream: Any) -> None:
    """How a Trio program bounds the silence of its peers."""
    import trio

    try:
        with trio.CancelScope() as scope:
            while True:
                scope.deadline = trio.current_time() + IDLE
                if not (data := await stream.receive_some()):
                    return
                await stream.send_all(data)
    except Exception:
        pass


async def echo_nowait(stream: Any) -> None:
    try:
        while data := await stream.receive_some():
            stream.send_nowait(data)
    except Exception:
        pass


def echo_event(conn: Any) -> None:
    conn.send_nowait(conn.receive_nowait())


async def serve_events(listener: Any) -> None:
    await listener.serve_events(echo_event, on_error=note)


# --- asyncio and uvloop -----------------------------------------------------------


async def asyncio_echo(reader: Any, writer: Any) -> None:
    try:
        while data := await reader.read(RECEIVE):
            writer.write(data)
            await writer.drain()
    except Exception:
        pass
    writer.close()


def echo_protocol() -> Any:
    import asyncio

    class Echo(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(data)

    return Echo


# --- anyio --------------------------------------------------------------------------


async def anyio_echo(stream: Any) -> None:
    try:
        async with stream:
            async for data in stream:
                await stream.send(data)
    except Exception:
        pass


def anyio_streams(backend: str) -> Serve:
    def run(options: argparse.Namespace) -> None:
        import anyio

        async def main() -> None:
            listener = await anyio.create_tcp_listener(
                local_host=HOST, local_port=options.port, backlog=BACKLOG
            )
            say(listener.extra(anyio.abc.SocketAttribute.local_port))
            async with anyio.create_task_group() as group:
                group.start_soon(listener.serve, anyio_echo)
                await anyio.to_thread.run_sync(answer_until_stdin_ends)
                group.cancel_scope.cancel()

        anyio.run(main, backend=backend)

    return run


# --- gevent -------------------------------------------------------------------------


def gevent_echo(sock: Any, address: object) -> None:
    try:
        while data := sock.recv(RECEIVE):
            sock.sendall(data)
    except OSError:
        pass


def gevent_server(options: argparse.Namespace) -> None:
    import gevent
    from gevent.server import StreamServer

    # A bare greenlet for each connection, the cheapest that it has.
    address, spawn = (HOST, options.port), gevent.spawn_raw
    server = StreamServer(address, gevent_echo, backlog=BACKLOG, spawn=spawn)
    server.start()
    say(server.server_port)
    gevent.get_hub().threadpool.apply(answer_until_stdin_ends)


# --- C --------------------------------------------------------------------------------


def plain_c(options: argparse.Namespace) -> None:
    """Become the program, which keeps this process's core and limits."""
    program = compiled(Path(__file__).with_name("echo.c"))
    os.execv(program, [str(program), str(options.port)])


HANDLER = partial(serve_handler, echo)
HANDLER_NOWAIT = partial(serve_handler, echo_nowait)

SERVERS: dict[str, Serve] = {
    "trio": trio_streams(echo),
    "trio-deadline": trio_streams(echo_with_deadline),
    "wknet-threaded": wknet(1, HANDLER),
    "wknet-inloop": wknet(0, HANDLER),
    "wknet-threaded-idle": wknet(1, HANDLER, idle=True),
    "wknet-inloop-idle": wknet(0, HANDLER, idle=True),
    "wknet-threaded-nowait": wknet(1, HANDLER_NOWAIT),
    "wknet-inloop-nowait": wknet(0, HANDLER_NOWAIT),
    "wknet-threaded-events": wknet(1, serve_events),
    "wknet-inloop-events": wknet(0, serve_events),
    "wknet-threaded-events-idle": wknet(1, serve_events, idle=True),
    "wknet-inloop-events-idle": wknet(0, serve_events, idle=True),
    "asyncio-streams": asyncio_streams(asyncio_echo, False),
    "uvloop-streams": asyncio_streams(asyncio_echo, True),
    "asyncio-protocol": asyncio_protocol(echo_protocol, False),
    "uvloop-protocol": asyncio_protocol(echo_protocol, True),
    "anyio-trio": anyio_streams("trio"),
    "anyio-asyncio": anyio_streams("asyncio"),
    "gevent": gevent_server,
    "c-epoll": plain_c,
    **frame_servers.SERVERS,
    **websocket_servers.SERVERS,
}

PACKAGES = {
    "anyio": "anyio",
    "gevent": "gevent",
    "uvloop": "uvloop",
    "websockets": "websockets",
    "picows": "picows",
    "trio-websocket": "trio_websocket",
}
"""What names of servers contain, and the package that these need."""


def protocol(server: str) -> Protocol:
    """What messages it needs."""
    if server in frame_servers.SERVERS:
        return "length-prefixed"
    return "websocket" if server in websocket_servers.SERVERS else "raw"


def missing(server: str) -> str | None:
    """What a server needs that this machine does not have, if there is anything."""
    if server == "c-epoll":
        return None if compiler() else "a C compiler"
    needed = (package for part, package in PACKAGES.items() if part in server)
    lacking = [package for package in needed if importlib.util.find_spec(package) is None]
    return " and ".join(lacking) or None


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Echo on a loopback port.")
    parser.add_argument("server", choices=list(SERVERS))
    parser.add_argument("--core", type=int, help="run on this core only")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--idle-timeout", type=float, default=IDLE, help="seconds")
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    SERVERS[options.server](options)


if __name__ == "__main__":
    main()
