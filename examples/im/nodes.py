"""Several nodes on one machine: Redis, if it is not running, and workers that share the ports.

SIGHUP replaces the workers one by one, as by those of a new version: the next one listens before
the last one is asked to end. SIGTERM and Ctrl-C end them all.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import trio


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@contextmanager
def redis_server() -> Iterator[str]:
    """One of our own, that forgets everything; its URL."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None:
        sys.exit("neither redis-server nor valkey-server is installed; or name one with --redis")
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    # In a session of its own, Ctrl-C is for us: it ends when all workers have.
    with subprocess.Popen(
        [found, *options], stdout=subprocess.DEVNULL, start_new_session=True
    ) as it:
        try:
            wait_for(port)
            yield f"redis://127.0.0.1:{port}"
        finally:
            it.terminate()


def wait_for(port: int, patience: float = 10) -> None:
    """Until something listens there."""
    until = time.monotonic() + patience
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
        else:
            return


@asynccontextmanager
async def reserved(host: str, *ports: int) -> AsyncIterator[list[int]]:
    """Ports that workers can share; who asks for 0 gets one that is free."""
    socks = []
    for port in ports:
        socks.append(sock := socket.socket())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))  # and does not listen: no client is given to it
    try:
        yield [sock.getsockname()[1] for sock in socks]
    finally:
        for sock in socks:
            sock.close()


async def start(place: int, arguments: Sequence[str]) -> trio.Process:
    """A worker that listens."""
    worker = await trio.lowlevel.open_process(
        [sys.executable, "-m", __package__ or "im", *arguments],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    said = b""
    assert worker.stdout is not None
    async for data in worker.stdout:
        said += data
        if said.count(b"\n") == 2:  # where it listens, and the page
            print(f"node {place + 1} is process {worker.pid}", flush=True)
            return worker
    sys.exit("a node does not start")


async def end(worker: trio.Process) -> None:
    worker.terminate()
    await worker.wait()


async def run_nodes(count: int, arguments: Sequence[str]) -> None:
    """Until a signal comes that ends them."""
    with trio.open_signal_receiver(signal.SIGHUP, signal.SIGTERM, signal.SIGINT) as signals:
        workers = [await start(place, arguments) for place in range(count)]
        async for received in signals:
            if received != signal.SIGHUP:
                break
            for place, old in enumerate(workers):
                workers[place] = await start(place, arguments)
                await end(old)
    async with trio.open_nursery() as nursery:
        for worker in workers:
            nursery.start_soon(end, worker)
