"""Files to peers: ``python benchmarks/experiment.py files``.

One of 100 MB to one peer, and one of 20 MB to 50. For each way of sending it: megabytes for a
second of the server's CPU, and in a second. The file is in the page cache. ``file`` is
`Conn.send_file`; ``chunks`` are reads of 256 KiB in worker threads, each followed by a send, over
this transport and over Trio's own; ``asyncio-sendfile`` is ``loop.sendfile`` on asyncio's own loop.
uvloop raises NotImplementedError there, so ``uvloop-chunks`` reads in worker threads, too. The
readers are another process, and discard in the kernel what they receive (MSG_TRUNC).
"""

from __future__ import annotations

import argparse
import socket
import sys
import threading
import time
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import NamedTemporaryFile
from typing import Any, BinaryIO

import attrs
from rich.console import Console
from rich.table import Table

from harness.answers import answer_all, say
from harness.machine import Machine
from harness.rounds import take_turns
from harness.worker import Worker

HOST = "127.0.0.1"
SCRIPT = "experiments/files.py"
CHUNK = 1 << 18
MB = 1_000_000
OURS, CHUNKS, PEER = "threaded-file", "threaded-chunks", "asyncio-sendfile"
WAYS = (OURS, "inloop-file", CHUNKS, "trio-chunks", PEER, "uvloop-chunks")


@attrs.frozen
class Work:
    peers: int
    size: int
    """Bytes of the file."""
    times: int
    """That each peer asks for it."""


@attrs.frozen
class Round:
    bytes: int
    cpu: float
    """Seconds of the server's process."""
    seconds: float


# --- the servers ------------------------------------------------------------------------


async def by_chunks(stream: Any, file: BinaryIO) -> None:
    import trio

    while data := await trio.to_thread.run_sync(file.read, CHUNK):
        await stream.send_all(data)


async def by_file(conn: Any, file: BinaryIO) -> None:
    await conn.send_file(file)


async def serve(transport: str, how: str, path: str) -> None:
    import trio

    import trio_wknet

    send = by_file if how == "file" else by_chunks

    async def handle(stream: Any) -> None:
        with open(path, "rb") as file:  # noqa: ASYNC230 - it is in the cache
            await stream.receive_some(1)
            await send(stream, file)

    async with trio.open_nursery() as nursery:
        if transport == "trio":
            (listener,) = await trio.open_tcp_listeners(0, host=HOST)
            say(listener.socket.getsockname()[1])
            nursery.start_soon(trio.serve_listeners, handle, [listener])
            await answer_until_the_end()
        else:
            reactors = 1 if transport == "threaded" else 0
            async with trio_wknet.open_wknet_listener(f"tcp://{HOST}:0", reactors=reactors) as ours:
                say(ours.address[1])
                nursery.start_soon(ours.serve, handle)
                await answer_until_the_end()
                nursery.cancel_scope.cancel()
        nursery.cancel_scope.cancel()


async def answer_until_the_end() -> None:
    import trio

    await trio.to_thread.run_sync(answer_all, sys.stdin, ANSWERS)


async def serve_asyncio(how: str, path: str) -> None:
    import asyncio

    loop = asyncio.get_running_loop()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with open(path, "rb") as file:  # noqa: ASYNC230 - it is in the cache
            await reader.readexactly(1)
            if how == "sendfile":
                await loop.sendfile(writer.transport, file)
            else:
                while data := await asyncio.to_thread(file.read, CHUNK):
                    writer.write(data)
                    await writer.drain()
        writer.close()

    async with await asyncio.start_server(handle, HOST, 0) as server:
        say(server.sockets[0].getsockname()[1])
        await asyncio.to_thread(answer_all, sys.stdin, ANSWERS)


ANSWERS = {"cpu": time.process_time}


def be_server(way: str, path: str) -> None:
    transport, _, how = way.partition("-")
    if transport == "uvloop":
        import uvloop

        uvloop.run(serve_asyncio(how, path))
    elif transport == "asyncio":
        import asyncio

        asyncio.run(serve_asyncio(how, path))
    else:
        import trio

        trio.run(serve, transport, how, path)


# --- the readers ------------------------------------------------------------------------


def read(port: int, size: int, times: int, short: list[int]) -> None:
    room = bytearray(1 << 20)
    for _ in range(times):
        got = 0
        with socket.create_connection((HOST, port)) as sock:
            sock.sendall(b"?")
            while n := sock.recv_into(room, 0, socket.MSG_TRUNC):
                got += n
        if got != size:
            short.append(got)


def read_all(port: int, peers: int, size: int, times: int) -> float:
    """Seconds until each peer has had the file so many times."""
    short: list[int] = []
    began = time.monotonic()
    threads = [threading.Thread(target=read, args=(port, size, times, short)) for _ in range(peers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if short:
        raise OSError(f"of {size} bytes {short} arrived")
    return time.monotonic() - began


def be_readers(port: int) -> None:
    say(port)
    answer_all(sys.stdin, {"read": partial(read_all, port)})


# --- measuring --------------------------------------------------------------------------


def measure(way: str, work: Work, path: str) -> Round:
    with (
        Worker(SCRIPT, "--serve", way, "--file", path) as server,
        Worker(SCRIPT, "--readers", str(server.answer())) as readers,
    ):
        readers.answer()
        readers.ask("read", 1, work.size, 1)  # code and memory are warm
        readers.answer()
        server.ask("cpu")
        before = server.answer()
        readers.ask("read", work.peers, work.size, work.times)
        seconds = readers.answer()
        server.ask("cpu")
        return Round(work.peers * work.size * work.times, server.answer() - before, seconds)


def table(title: str, found: dict[str, list[Round]]) -> Table:
    """Medians of rounds; and how many times as much for the CPU `OURS` sends."""
    shown = Table(title, "MB for a second of CPU", "MB/s", f"of it {OURS}")
    rows = {
        way: (
            median(one.bytes / one.cpu for one in rounds) / MB,
            median(one.bytes / one.seconds for one in rounds) / MB,
        )
        for way, rounds in found.items()
    }
    for way, (for_cpu, in_time) in rows.items():
        ratio = f"{rows[OURS][0] / for_cpu:.2f}" if OURS in rows else ""
        shown.add_row(way, f"{for_cpu:.0f}", f"{in_time:.0f}", ratio)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how files are sent.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=100, help="of the file for one peer")
    parser.add_argument("--way", action="append", choices=WAYS, help="by default all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE")
    parser.add_argument("--serve", help="be a server instead")
    parser.add_argument("--file", help="that it serves")
    parser.add_argument("--readers", type=int, metavar="PORT", help="be the readers instead")
    options = parser.parse_args()
    if options.serve:
        be_server(options.serve, options.file)
    elif options.readers:
        be_readers(options.readers)
    else:
        report(options)


def report(options: argparse.Namespace) -> None:
    console, machine = Console(), Machine.here()
    console.print(str(machine), highlight=False)
    everything: dict[str, Any] = {}
    size = options.megabytes * MB
    for title, work in {"1 peer": Work(1, size, 5), "50 peers": Work(50, size // 5, 1)}.items():
        with NamedTemporaryFile() as file, console.status("") as status:
            file.write(bytes(work.size))
            file.flush()
            one = partial(measure, work=work, path=file.name)
            found = take_turns(tuple(options.way or WAYS), options.rounds, one, status.update)
        console.print(table(title, found), highlight=False)
        everything[title] = {way: list(map(attrs.asdict, each)) for way, each in found.items()}
    if options.json:
        machine.save(options.json, everything)


if __name__ == "__main__":
    main()
