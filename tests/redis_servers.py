"""Redis servers for tests: each on a free port, in a folder of its own, and without anything kept
unless a test says so. ``REDIS_SERVER`` in the environment names another one than that on the PATH:
``REDIS_SERVER=/opt/valkey/bin/valkey-server pytest tests/test_contrib_redis*.py``."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import trio
from coredis.connection import TCPLocation
from coredis.exceptions import RedisError

from trio_wknet.contrib.redis._connection import ask

HOST = "127.0.0.1"
EXECUTABLE = os.environ.get("REDIS_SERVER") or shutil.which("redis-server")


def free_port() -> int:
    """Below those that the kernel gives to others: while a server is away, nobody gets its port.
    The bus of a Redis Cluster has the port that is 10000 more."""
    while True:
        port = random.randrange(12_000, 22_000)
        with suppress(OSError):
            socket.create_server((HOST, port)).close()
            socket.create_server((HOST, port + 10_000)).close()
            return port


class RedisServer:
    """One that can be killed, stopped and started again, on the same port, in the same folder."""

    def __init__(self, *options: str, folder: Path, file: Path | None = None) -> None:
        self.port = free_port()
        self.location = TCPLocation(HOST, self.port)
        self.url = f"redis://{HOST}:{self.port}"
        self.socket = folder / "socket"
        self._folder = folder
        self._options = options
        assert EXECUTABLE is not None
        self._command = [EXECUTABLE, *([] if file is None else [str(file), "--sentinel"])]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [*self._command, "--port", str(self.port), "--bind", HOST, "--save", ""]
        if "--sentinel" not in command:
            command += ["--unixsocket", str(self.socket)]
        self._process = subprocess.Popen(
            [*command, "--dir", str(self._folder), *self._options], stdout=subprocess.DEVNULL
        )

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """It answers no more, and has not gone."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def ask(self, *command: bytes | str | int, **settings: Any) -> Any:
        """What it answers, once it does."""
        failure: Exception | None = None
        with trio.move_on_after(20):  # only a broken test reaches it
            while True:
                try:
                    return await ask(self.location, settings, *command)
                except (RedisError, OSError) as exc:
                    failure = exc
                await trio.sleep(0.01)
        raise AssertionError(f"{command!r} was not answered") from failure

    async def ready(self) -> None:
        with trio.fail_after(20):
            await self.ask(b"PING")

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()


@contextmanager
def redis_server(*options: str) -> Iterator[RedisServer]:
    with (
        tempfile.TemporaryDirectory() as folder,
        RedisServer(*options, folder=Path(folder)) as server,
    ):
        yield server


@contextmanager
def sentinel_for(primary: RedisServer) -> Iterator[RedisServer]:
    """One that watches a primary as ``service``, and decides alone."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "sentinel.conf")
        file.write_text(
            f"sentinel monitor service {HOST} {primary.port} 1\n"
            "sentinel down-after-milliseconds service 60000\n"
        )
        # A server that is given a file takes it first.
        with RedisServer(file=file, folder=Path(folder)) as sentinel:
            yield sentinel


@contextmanager
def cluster_servers(count: int = 3) -> Iterator[list[RedisServer]]:
    """Servers of a Redis Cluster that do not know each other yet."""
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000")
    more = ("--cluster-require-full-coverage", "no")
    with ExitStack() as stack:
        yield [stack.enter_context(redis_server(*options, *more)) for _ in range(count)]


def has_tls() -> bool:
    """Whether the server was built with it: then it misses a certificate."""
    assert EXECUTABLE is not None
    command = [EXECUTABLE, "--port", "0", "--tls-port", "1", "--save", ""]
    return b"tls-cert-file" in subprocess.run(command, stdout=subprocess.PIPE).stdout


async def make_cluster(servers: list[RedisServer]) -> None:
    """Give each server a part of the slots, and introduce them."""
    share = 16384 // len(servers) + 1
    for number, server in enumerate(servers):
        await server.ready()
        last = min((number + 1) * share, 16384) - 1
        await server.ask(b"CLUSTER ADDSLOTS", *range(number * share, last + 1))
        await server.ask(b"CLUSTER SET-CONFIG-EPOCH", number + 1)
    for server in servers[1:]:
        await servers[0].ask(b"CLUSTER MEET", HOST, server.port)
    for server in servers:
        await agreed(server, b"CLUSTER INFO", lambda info: b"cluster_state:ok" in info)
        await agreed(server, b"CLUSTER SLOTS", lambda slots: len(slots) == len(servers))


async def agreed(
    server: RedisServer, question: bytes, condition: Callable[[Any], object], *more: str
) -> None:
    """Ask until the answer is as it is to be."""
    with trio.fail_after(20):
        while not condition(await server.ask(question, *more)):  # noqa: ASYNC110
            await trio.sleep(0.005)


class ScriptedBroker:
    """Answers as a test says, and notes what it was asked. An answer that ends with `CUT` is its
    last on that connection."""

    CUT = b"<cut>"
    HELLO = (
        b"%4\r\n$7\r\nversion\r\n$5\r\n7.0.0\r\n$5\r\nproto\r\n:3\r\n"
        b"$2\r\nid\r\n:1\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n"
    )

    def __init__(self, answer: Callable[[list[bytes]], bytes], *, hello: bool = False) -> None:
        self.asked: list[list[bytes]] = []
        self.connection: object = None  # that of the command which is answered
        self.refuses = False
        self.refused = 0
        self._answer = answer
        self._hello = hello  # whether it is asked for the answer to that, too
        self._streams: list[trio.SocketStream] = []
        self.url = ""

    def cut(self, *connections: Any) -> None:
        """Have connections lost, by a reset: by default all."""
        for stream in connections or self._streams:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stream.socket.close()

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        listeners = await trio.open_tcp_listeners(0, host=HOST)
        self.url = f"redis://{HOST}:{listeners[0].socket.getsockname()[1]}"
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, self._handle, listeners)
            task_status.started()

    async def _handle(self, stream: trio.SocketStream) -> None:
        if self.refuses:
            self.refused += 1
            await stream.aclose()
            return
        self._streams.append(stream)
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._serve_one(stream)
        self._streams.remove(stream)

    async def _serve_one(self, stream: trio.SocketStream) -> None:
        rest = b""
        async with stream:
            async for data in stream:
                rest += data
                while (found := self._command_in(rest)) is not None:
                    command, rest = found
                    self.asked.append(command)
                    self.connection = stream
                    usual = command[0] == b"HELLO" and not self._hello
                    answer = self.HELLO if usual else self._answer(command)
                    await stream.send_all(answer.removesuffix(self.CUT))
                    if answer.endswith(self.CUT):
                        return

    @staticmethod
    def _command_in(data: bytes) -> tuple[list[bytes], bytes] | None:
        """The first command, and what follows it."""
        head, complete, rest = data.partition(b"\r\n")
        if not complete:
            return None
        words: list[bytes] = []
        for _ in range(int(head[1:])):
            head, complete, rest = rest.partition(b"\r\n")
            if not complete or len(rest) < int(head[1:]) + 2:
                return None
            size = int(head[1:])
            words.append(rest[:size])
            rest = rest[size + 2 :]
        return words, rest
