"""What a byte costs that comes alone: ``python benchmarks/experiment.py segments``.

A peer sends frames of 64 KiB in segments of one byte, at a fixed pace, so that each is a
read of its own for the reactor. The server's CPU for a byte, in all its threads, is compared:

- *frames*: `FrameChannel.receive`; the framing looks for the frame's end;
- *exactly*: `Conn.receive_exactly` of as many bytes; nothing looks at them;
- *some*: `Conn.receive_some`; the task is woken for each byte.

Framing that looked at a byte again each time another one comes would cost thousands of
times more. Servers take turns, each in a fresh process and on a core of its own.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.answers import answer_all, say
from harness.machine import Machine
from harness.measure import running_on
from harness.rounds import take_turns
from harness.worker import Worker
from trio_wknet._load.cpu import cpu_seconds

HOST = "127.0.0.1"
SIZE = 65536
HEADER = SIZE.to_bytes(4, "big")
WARM_UP = 2000  # bytes of a frame that are not counted
WANTED = 1.1  # times the CPU of receiving as many bytes
PATIENCE = 60.0
WAYS = ("frames", "exactly", "some")
REACTORS = {"inloop": 0, "threaded": 1}


# --- the server ---------------------------------------------------------------------


async def receive_all(conn: Any, way: str) -> None:
    """One frame after another, until the peer leaves. A byte says that one has come."""
    from trio_wknet import LengthPrefixed

    if way == "frames":
        channel = conn.framed(LengthPrefixed(4, max_frame=SIZE))
        async for _ in channel:
            channel.conn.send_nowait(b".")
        return
    missing = 4 + SIZE
    while True:
        if way == "exactly":
            await conn.receive_exactly(4 + SIZE)
        else:
            while missing:
                if not (data := await conn.receive_some(missing)):
                    return
                missing -= len(data)
            missing = 4 + SIZE
        conn.send_nowait(b".")


async def serve(way: str, reactors: int) -> None:
    """Until standard input ends."""
    import trio

    from trio_wknet import open_wknet_listener

    async def handle(conn: Any) -> None:
        with suppress(Exception):  # the peer leaves between two frames
            await receive_all(conn, way)

    address = f"tcp://{HOST}:0"
    async with (
        open_wknet_listener(address, reactors=reactors) as listener,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(listener.serve, handle)
        say(listener.address[1])
        await trio.to_thread.run_sync(answer_all, sys.stdin, {})
        nursery.cancel_scope.cancel()


# --- the peer -----------------------------------------------------------------------


def send_slowly(sock: socket.socket, data: bytes, pace: float) -> None:
    """A segment for each byte, none before its time."""
    due = time.perf_counter()
    for i in range(len(data)):
        while time.perf_counter() < due:
            pass
        sock.send(data[i : i + 1])
        due += pace


def measure(name: str, pace: float) -> float:
    """Seconds of the server's CPU for a byte."""
    cores = sorted(os.sched_getaffinity(0))
    where, way = name.split("-")
    arguments = ("--serve", way, f"--reactors={REACTORS[where]}", f"--core={cores[0]}")
    with Worker("experiments/segments.py", *arguments) as server:
        address = (HOST, server.answer())
        with running_on({cores[-1]}), socket.create_connection(address, PATIENCE) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            frame = HEADER + bytes(SIZE)
            send_slowly(sock, frame[:WARM_UP], pace)
            before = cpu_seconds(server.pid)
            send_slowly(sock, frame[WARM_UP:], pace)
            if sock.recv(1) != b".":
                raise ConnectionError(f"{name} did not receive the frame")
            return (cpu_seconds(server.pid) - before) / (len(frame) - WARM_UP)


def table(found: dict[str, list[float]]) -> Table:
    shown = Table("server", "CPU for a byte", "to exactly", title="Segments of one byte")
    for name, rounds in found.items():
        peer = median(found[f"{name.partition('-')[0]}-exactly"])
        cost = median(rounds)
        shown.add_row(name, f"{cost * 1e6:.2f} µs", f"{cost / peer:.2f}")
    return shown


def compare(rounds: int, pace: float, report: Callable[[str], object]) -> dict[str, list[float]]:
    names = tuple(f"{where}-{way}" for where in REACTORS for way in WAYS)
    return take_turns(names, rounds, lambda name: measure(name, pace), report)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what single bytes cost a server.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pace", type=float, default=25.0, help="microseconds between bytes")
    parser.add_argument("--serve", choices=WAYS, help="be a server instead")
    parser.add_argument("--reactors", type=int, default=0, help="of --serve")
    parser.add_argument("--core", type=int, default=0, help="of --serve")
    arguments = parser.parse_args()
    if arguments.serve:
        import trio

        os.sched_setaffinity(0, {arguments.core})
        trio.run(serve, arguments.serve, arguments.reactors)
        return
    console = Console()
    console.print(str(Machine.here()), highlight=False)
    with console.status("") as status:
        found = compare(arguments.rounds, arguments.pace / 1e6, status.update)
    console.print(table(found), f"wanted: frames at most {WANTED} to exactly", highlight=False)


if __name__ == "__main__":
    main()
