"""Compressed WebSocket messages beside the websockets library on uvloop:
``python benchmarks/experiment.py deflate``.

Each server echoes JSON of about 1 KiB with permessage-deflate, windows of 12 bits, which is
what websockets chooses; ours also with zlib's level 6, which is what it chooses, too. Servers
are measured in turn, round by round, each time in a fresh process, the server on a core of its
own and the load on another. The load sends messages that were compressed beforehand, and only
counts what comes back. Needs websockets and uvloop.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import socket
import zlib
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import attrs
from rich.console import Console
from rich.table import Table

from harness import python_load
from harness.answers import say
from harness.machine import Machine
from harness.python_load import PythonLoad, Round
from harness.rounds import take_turns
from harness.servers import missing
from harness.serving import run_asyncio, serve_asyncio, trio_until_stdin_ends

HOST = "127.0.0.1"
WANTED = 1.5  # times the messages a second of websockets
BITS = 12
PEER = "websockets-uvloop"
OURS = {
    "wknet-inloop": (0, {}),
    "wknet-inloop-level-6": (0, {"level": 6}),
    "wknet-threaded": (1, {}),
    "wknet-threaded-level-6": (1, {"level": 6}),
}
SERVERS = (PEER, *OURS)
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=12; "
    b"client_max_window_bits=12\r\n\r\n"
)


# --- the servers --------------------------------------------------------------------


def serve_ours(reactors: int, settings: dict[str, int]) -> None:
    import trio

    from trio_wknet import PerMessageDeflate, WebSocketOptions, open_wknet_listener

    async def echo(websocket: Any) -> None:
        with suppress(Exception):
            async for message in websocket:
                await websocket.send(message)

    async def main() -> None:
        options = WebSocketOptions(compression=PerMessageDeflate(window_bits=BITS, **settings))
        async with open_wknet_listener(
            f"ws://{HOST}:0", reactors=reactors, websocket=options
        ) as listener:
            say(listener.address[1])
            await trio_until_stdin_ends(partial(listener.serve, echo))

    trio.run(main)


def serve_websockets() -> None:
    async def echo(websocket: Any) -> None:
        with suppress(Exception):
            async for message in websocket:
                await websocket.send(message)

    async def main() -> None:
        from websockets.asyncio.server import serve

        async with serve(echo, HOST, 0, ping_interval=None) as listening:
            await serve_asyncio(listening)

    run_asyncio(main, use_uvloop=True)


# --- the load -----------------------------------------------------------------------


def message() -> bytes:
    """A frame of a client: JSON as an application might send it, compressed."""
    values = random.Random(0)
    rows = [
        {"id": n, "name": f"sensor-{values.randrange(100)}", "value": values.random()}
        for n in range(17)
    ]
    state = zlib.compressobj(6, zlib.DEFLATED, -BITS)
    data = state.compress(json.dumps(rows).encode()) + state.flush(zlib.Z_SYNC_FLUSH)
    data = data.removesuffix(b"\x00\x00\xff\xff")
    return b"\xc1\xfe" + len(data).to_bytes(2, "big") + bytes(4) + data  # a key of zeros


class Load(PythonLoad):
    """Connections, each with a message in flight."""

    def __init__(self, connections: int, port: int, stack: ExitStack) -> None:
        super().__init__(stack)
        self._message = message()
        self._socks: dict[int, socket.socket] = {}
        self._unread: dict[int, bytes] = {}
        for _ in range(connections):
            sock = stack.enter_context(socket.create_connection((HOST, port), timeout=60))
            sock.sendall(UPGRADE)
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += sock.recv(4096)
            if b"permessage-deflate" not in answer:
                raise RuntimeError("the server does not compress")
            self._poll.register(sock, select.EPOLLIN)
            self._socks[sock.fileno()] = sock
            self._unread[sock.fileno()] = b""
            sock.sendall(self._message)

    def _receive(self, fd: int) -> None:
        data = self._unread[fd] + self._socks[fd].recv(1 << 14)
        size = 2 + data[1] if data[1] < 126 else 4 + int.from_bytes(data[2:4], "big")
        if not data or data[0] != 0xC1:
            raise RuntimeError("this is not a compressed text")
        if len(data) < size:
            self._unread[fd] = data
            return
        self._unread[fd] = data[size:]
        self._answered += 1
        self._socks[fd].sendall(self._message)


def measure(name: str, duration: float, connections: int) -> Round:
    connect = partial(Load, connections)
    return python_load.measure("experiments/deflate.py", name, duration / 4, duration, connect)


def table(found: dict[str, list[Round]]) -> Table:
    """Medians of rounds."""
    shown = Table("server", "messages/s", "CPU/message", "load's cores", "ratio", "by CPU")
    rows = {
        name: [median(column) for column in zip(*map(attrs.astuple, rounds), strict=True)]
        for name, rounds in found.items()
    }
    for name, (rate, cpu, busy) in rows.items():
        ratios = ["", ""]
        if PEER in rows:
            ratios = [f"{rate / rows[PEER][0]:.2f}", f"{rows[PEER][1] / cpu:.2f}"]
        shown.add_row(name, f"{rate:,.0f}", f"{cpu * 1e6:.1f} µs", f"{busy:.2f}", *ratios)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure compressed WebSocket messages.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--duration", type=float, default=2.0, help="seconds of one round")
    parser.add_argument("--connections", type=int, default=100)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE")
    parser.add_argument("--serve", choices=SERVERS, help="be a server instead")
    parser.add_argument("--core", type=int, default=0, help="of --serve")
    options = parser.parse_args()
    if options.serve:
        os.sched_setaffinity(0, {options.core})
        if options.serve == PEER:
            serve_websockets()
        else:
            serve_ours(*OURS[options.serve])
        return
    one = partial(measure, duration=options.duration, connections=options.connections)
    console, machine = Console(), Machine.here()
    console.print(str(machine), highlight=False)
    with console.status("") as status:
        names = tuple(name for name in SERVERS if name != PEER or missing(PEER) is None)
        found = take_turns(names, options.rounds, one, status.update)
    console.print(table(found), f"wanted: {WANTED} of one of ours", highlight=False)
    if options.json:
        rounds = {name: list(map(attrs.asdict, rounds)) for name, rounds in found.items()}
        machine.save(options.json, rounds)


if __name__ == "__main__":
    main()
