"""trio_wknet.contrib.redis on nodes that are processes of their own, under load: the broker is
killed and started again, a node is drained, a node is killed. Nobody on another node is
disconnected, gaps are told, and a log loses nothing that was acknowledged."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Sized
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from helpers import send

pytest.importorskip("coredis")

from redis_nodes import until
from redis_servers import EXECUTABLE, HOST, RedisServer, redis_server

if EXECUTABLE is None:
    pytest.skip("redis-server is not installed", allow_module_level=True)

NAMES = ("one", "two")
SCRIPT = Path(__file__).with_name("redis_node.py")


class NodeProcess:
    def __init__(self, url: str) -> None:
        command = [sys.executable, str(SCRIPT), url]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self.port = 0

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def wait_started(self) -> None:
        assert self._process.stdout is not None
        self.port = self.port or int(self._process.stdout.readline())

    def drain(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    async def ended(self) -> int:
        await until(lambda: not self.runs, "the end of the process")
        return self._process.returncode

    def kill(self) -> None:
        with self._process:
            self._process.kill()


class Client:
    """A connection to a node, and what came."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self.said: dict[str, list[int]] = {"one": [], "two": []}  # by whom
        self.others: dict[str, dict[str, None]] = {}  # what follows each other word, in order
        self.ended = False
        self._sock = sock
        self._rest = b""

    def had(self, word: str) -> dict[str, None]:
        return self.others.setdefault(word, {})

    def _on_line(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "said":
            sender, _, number = rest.partition(" ")
            self.said[sender].append(int(number))
        else:
            self.had(word)[rest] = None

    async def send(self, line: str) -> None:
        with suppress(OSError):  # the node may have gone
            await send(self._sock, line.encode() + b"\n")

    async def ask(self, line: str, answer: str) -> None:
        await self.send(line)
        await until(lambda: answer in self.others, f"the answer to {line!r}")

    async def run(self) -> None:
        with self._sock:
            try:
                while data := await self._sock.recv(65536):
                    *whole, self._rest = (self._rest + data).split(b"\n")
                    for line in whole:
                        self._on_line(line.decode())
            except ConnectionResetError:
                pass
        self.ended = True


class Load:
    """Of a node: a member that says numbers, one that appends some, one that follows the log, and
    one that watches for gaps."""

    def __init__(self, name: str, node: NodeProcess, nursery: trio.Nursery) -> None:
        self.name = name
        self._node = node
        self._nursery = nursery
        self._scope = trio.CancelScope()
        self.appended = 0

    @property
    def all(self) -> tuple[Client, ...]:
        return self.member, self.appender, self.follower, self.watcher

    @property
    def gaps(self) -> tuple[list[str], list[str]]:
        return list(self.watcher.had("gap")), list(self.watcher.had("resume"))

    async def connect(self) -> Client:
        sock = trio.socket.socket()
        await sock.connect((HOST, self._node.port))
        client = Client(sock)
        self._nursery.start_soon(client.run)
        return client

    async def start(self, key: str) -> None:
        self.member, self.appender = await self.connect(), await self.connect()
        self.follower, self.watcher = await self.connect(), await self.connect()
        await self.member.ask(f"room {key}", "joined")
        await self.watcher.ask("watch", "watching")
        await self.follower.send("follow")
        self._nursery.start_soon(self._say)
        self._nursery.start_soon(self._append, key)

    def stop(self) -> None:
        self._scope.cancel()

    async def _say(self) -> None:
        with self._scope:
            number = 0
            while not self.member.ended:
                number += 1
                await self.member.send(f"say {self.name} {number}")
                await trio.sleep(0.001)

    async def _append(self, key: str) -> None:
        while not (self._scope.cancel_called or self.appender.ended):
            self.appended += 1
            message = f"{key} {self.appended} {self.name}"
            await self.appender.send(f"append {message}")
            while message not in self.appender.had("kept") and not self.appender.ended:  # noqa: ASYNC110
                await trio.sleep(0.001)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server("--appendonly", "yes", "--appendfsync", "always") as opened:
        yield opened


@pytest.fixture(scope="module")
def processes() -> Iterator[list[NodeProcess]]:
    """Those that run. A test that ends one has the next begin another."""
    opened: list[NodeProcess] = []
    yield opened
    for each in opened:
        each.kill()


@pytest.fixture
async def nodes(server: RedisServer, processes: list[NodeProcess]) -> list[NodeProcess]:
    await server.ready()
    for each in [it for it in processes if not it.runs]:
        each.kill()
        processes.remove(each)
    while len(processes) < 2:
        processes.append(NodeProcess(server.url))
    for each in processes:
        await trio.to_thread.run_sync(each.wait_started)
    return processes


@pytest.fixture
async def loads(
    request: pytest.FixtureRequest, nodes: list[NodeProcess], nursery: trio.Nursery
) -> list[Load]:
    """One for each node, in a room of this test's."""
    one, two = [Load(name, it, nursery) for name, it in zip(NAMES, nodes, strict=True)]
    for each in (one, two):
        await each.start(request.node.name)
    for each, other in ((one, two), (two, one)):
        await more(each.member.said[other.name], 20, "messages across")
    return [one, two]


async def more(things: Sized, count: int, what: str) -> None:
    """Wait until there are so many more."""
    before = len(things)
    await until(lambda: len(things) >= before + count, what)


async def nothing_is_lost(loads: list[Load]) -> None:
    """What the log has acknowledged gets to all that follow it, and what a member said to all on
    its node."""
    for each in loads:
        each.stop()
    kept = {it for load in loads for it in load.appender.had("kept")}
    for each in loads:
        if not each.follower.ended:
            await until(lambda: kept <= each.follower.had("logged").keys(), "what was kept")  # noqa: B023
        assert is_whole(each.member.said[each.name])


def is_whole(numbers: list[int]) -> bool:
    return numbers == list(range(1, len(numbers) + 1))


async def test_the_broker_is_killed(server: RedisServer, loads: list[Load]) -> None:
    one, two = loads
    server.kill()
    for each in loads:
        await until(lambda: each.gaps == (["disconnected"], []), "a gap")  # noqa: B023
        await more(each.member.said[each.name], 50, "messages of their own node")
    server.start()
    for each, other in ((one, two), (two, one)):
        await until(lambda: each.gaps == (["disconnected"], ["disconnected"]), "its end")  # noqa: B023
        await more(each.member.said[other.name], 50, "messages across")
        await more(each.appender.had("kept"), 10, "appends")
        heard = each.member.said[other.name]
        assert heard == sorted(set(heard))
        assert not any(it.ended for it in each.all)
    await nothing_is_lost(loads)


async def test_a_node_is_drained(nodes: list[NodeProcess], loads: list[Load]) -> None:
    """Its clients are told, and everything that they said gets to the others."""
    one, two = loads
    nodes[1].drain()
    assert await nodes[1].ended() == 0
    await until(lambda: all(it.ended and "bye" in it.others for it in two.all), "the goodbyes")
    said = two.member.said["two"]
    await until(lambda: one.member.said["two"][-1] == said[-1], "the last words")
    await the_other_goes_on(loads)


async def test_a_node_is_killed(nodes: list[NodeProcess], loads: list[Load]) -> None:
    nodes[1].kill()
    await until(lambda: all(it.ended for it in loads[1].all), "the end of its connections")
    await the_other_goes_on(loads)


async def the_other_goes_on(loads: list[Load]) -> None:
    one, _ = loads
    await more(one.member.said["one"], 50, "messages of its own")
    await more(one.appender.had("kept"), 10, "appends")
    await nothing_is_lost(loads)
    assert is_whole(one.member.said["two"])
    assert one.gaps == ([], [])
    assert not any(it.ended for it in one.all)
