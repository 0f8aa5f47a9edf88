"""Several nodes on one machine: Redis, if none is named, and workers that share the ports.

What dies is started again. SIGHUP replaces the workers one by one, as by those of a new version:
the next one listens before the last one is asked to end. SIGTERM and Ctrl-C end them all.
"""

from __future__ import annotations

import shutil
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from subprocess import PIPE

import trio

from trio_wknet import drain_on_signal

PAUSE, LONGEST = 0.1, 10.0  # seconds before what has died is started again; they double
HEALTHY = 30  # seconds after which the next pause is the first again
PATIENCE = 20  # seconds to end in: a worker sends its clients away, and keeps what they said
MARK = b"the page is"  # what a worker says last


def reserve(host: str, port: int) -> socket.socket:
    """A port for workers to share; 0 takes a free one. As it does not listen, it gets nobody."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((host, port))
    return sock


def redis_server(folder: Path) -> tuple[str, list[str]]:
    """The URL of one of our own that keeps what it is told in a folder, and its command."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None:
        sys.exit("neither redis-server nor valkey-server is installed; or name one with --redis")
    folder.mkdir(exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    options = f"--port {port} --bind 127.0.0.1 --appendonly yes --appendfsync always --dir {folder}"
    return f"redis://127.0.0.1:{port}", [found, *options.split(" ", 9)]


async def keep_running(
    name: str, command: list[str], mark: bytes, *, task_status: trio.TaskStatus[trio.CancelScope]
) -> None:
    """Run a program, again and again, until the scope is cancelled that this is started with.
    It has started when its output has the mark."""
    pause = PAUSE
    with trio.CancelScope() as scope:
        while True:
            began = trio.current_time()
            async with trio.open_nursery() as nursery:
                # In a session of its own: Ctrl-C is for us.
                options = {"check": False, "stdout": PIPE, "start_new_session": True}
                run = partial(trio.run_process, command, deliver_cancel=end, **options)
                process: trio.Process = await nursery.start(run)
                assert process.stdout is not None
                async with process.stdout as output:
                    async for data in output:
                        if mark in data:
                            print(f"{name} is process {process.pid}", flush=True)
                            task_status.started(scope)
                            task_status = trio.TASK_STATUS_IGNORED
            pause = PAUSE if trio.current_time() > began + HEALTHY else pause
            print(f"{name} has ended: {process.returncode}; again in {pause} s", flush=True)
            await trio.sleep(pause)
            pause = min(2 * pause, LONGEST)


async def end(process: trio.Process) -> None:
    process.terminate()
    await trio.sleep(PATIENCE)
    process.kill()


async def run_nodes(
    count: int,
    redis: str | None,
    folder: Path,
    node: list[str],
    ready: Callable[[], Awaitable[None]],
) -> None:
    """Until a signal comes that ends them.

    Args:
      redis: its URL; None: start one, whose folder is the next argument.
      node: the command of a worker, without that URL.
      ready: called when all are there.
    """
    url, command = (redis, None) if redis else redis_server(folder)
    node = [*node, f"--redis={url}"]
    places: dict[int, trio.CancelScope] = {}

    async def renew(others: trio.Nursery, nursery: trio.Nursery) -> None:
        with trio.open_signal_receiver(signal.SIGHUP) as renewals:
            if command:
                await others.start(keep_running, "Redis", command, b"Ready to accept")
            print("Redis is", url, flush=True)
            while True:
                for place in range(count):
                    name, before = f"node {place + 1}", places.get(place)
                    places[place] = await nursery.start(keep_running, name, node, MARK)
                    if before:
                        before.cancel()
                    elif place == count - 1:
                        await ready()
                await anext(renewals)

    async with trio.open_nursery() as others:
        async with drain_on_signal() as shutdown, trio.open_nursery() as nursery:
            nursery.start_soon(renew, others, nursery)
            await shutdown.wait()
            nursery.cancel_scope.cancel()
        others.cancel_scope.cancel()  # when all workers have ended
