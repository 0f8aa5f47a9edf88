"""A message from one node to another, through Redis: ``python benchmarks/experiment.py cluster``.

A client sends messages of 64 B to a node, which broadcasts each in a group; a member of it, in the
client's process, gets them. ``alone`` is a group of an engine, ``here`` one of a cluster with the
member on the same node, ``across`` with the member on another one. ``redis`` is Redis itself: the
time from PUBLISH to the message at a subscriber, on blocking sockets; ``coredis`` is the same with
the client library that nodes use, on Trio, with nothing else in its process. Latency is from when
a message is sent, of one at a time, and at several rates; CPU is what the nodes' processes take for
each of many. The server is on this machine, so no network is in it.

Needs coredis, and redis-server on the PATH, or where ``REDIS_SERVER`` in the environment says. For
a machine that has none, carry its libraries along::

    mkdir redis && cp $(which redis-server) redis/
    ldd redis/redis-server | awk '/=> \\// {print $3}' | xargs cp -t redis/
    printf '#!/bin/sh\\nexec env LD_LIBRARY_PATH=%s %s/redis-server "$@"\\n' \\
        /there/redis /there/redis > redis/run && chmod +x redis/run
    REDIS_SERVER=/there/redis/run python benchmarks/experiment.py cluster
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import attrs
from rich.console import Console
from rich.table import Table

from harness.answers import answer_all, say
from harness.machine import Machine
from harness.rounds import take_turns
from harness.worker import Worker

HOST = "127.0.0.1"
SCRIPT = "experiments/cluster.py"
SIZE = 64
NODES = {"alone": 1, "here": 1, "across": 2}
WAYS = (*NODES, "redis", "coredis")
ONE = "one at a time"
RATES = (200, 1000, 5000)  # messages a second
SECONDS = 1.5  # at each
WINDOW = 200  # messages that may be on their way, where CPU is measured
WARM_UP = 200
CHANNEL = b"itself"


@attrs.frozen
class Round:
    latency: dict[str, tuple[float, float]]
    """Median and 99th percentile in seconds, one message at a time, and by messages a second."""
    cpu: float
    """Seconds of all nodes' processes for each message."""


# --- a node -----------------------------------------------------------------------------


async def be_node(url: str, reactors: int) -> None:
    """Broadcast what senders send. The first byte of a connection says what it is: a member, or
    a sender."""
    from trio_wknet import open_engine

    async with open_engine(reactors) as engine:
        if not url:
            await serve(engine, engine.group())
            return
        from trio_wknet.contrib.redis import open_cluster

        async with open_cluster(url, engine) as cluster:
            await serve(engine, cluster.group("room"))


async def serve(engine: Any, group: Any) -> None:
    import trio

    async def handle(conn: Any) -> None:
        if await conn.receive_exactly(1) == b"m":
            group.add(conn)
            if hasattr(group, "wait_subscribed"):
                await group.wait_subscribed()
            await conn.send_all(b"k")
            await trio.sleep_forever()
        while True:
            group.broadcast_nowait(await conn.receive_exactly(SIZE))

    async def serve_one(conn: Any) -> None:
        from trio_wknet import IncompleteRead

        with suppress(trio.BrokenResourceError, IncompleteRead):  # the client is done
            await handle(conn)

    async with await engine.listen(f"tcp://{HOST}:0") as listener, trio.open_nursery() as nursery:
        say(listener.address[1])
        nursery.start_soon(listener.serve, serve_one)
        await trio.to_thread.run_sync(answer_all, sys.stdin, {"cpu": time.process_time})
        nursery.cancel_scope.cancel()


# --- the client -------------------------------------------------------------------------


@attrs.frozen
class Route:
    """Where messages go in, and come out: between bytes that are always the same."""

    sender: socket.socket
    member: socket.socket
    before: bytes = b""
    after: bytes = b""
    head: int = 0
    tail: int = 0
    has_answers: bool = False

    def send(self) -> None:
        """A message that says when it was sent."""
        message = struct.pack("d", time.perf_counter()).ljust(SIZE)
        self.sender.sendall(self.before + message + self.after)
        if self.has_answers:
            with suppress(BlockingIOError):
                self.sender.recv(65536, socket.MSG_DONTWAIT)

    def receive(self, count: int) -> list[float]:
        """How long messages took."""
        size, took, rest = self.head + SIZE + self.tail, [], b""
        while len(took) < count:
            data = self.member.recv(65536)
            if not data:
                raise OSError("the node has closed the connection")
            now, rest = time.perf_counter(), rest + data
            whole = len(rest) // size * size
            for at in range(self.head, whole, size):
                took.append(now - struct.unpack_from("d", rest, at)[0])
            rest = rest[whole:]
        return took

    def one_at_a_time(self, count: int) -> list[float]:
        took = []
        for _ in range(count + WARM_UP):
            self.send()
            took += self.receive(1)
        return took[WARM_UP:]

    def at_a_rate(self, rate: int) -> list[float]:
        def send_all() -> None:
            began = time.perf_counter()
            for number in range(count):
                early = began + number / rate - time.perf_counter()
                if early > 0:
                    time.sleep(early)
                self.send()

        count = int(rate * SECONDS)
        sending = threading.Thread(target=send_all, daemon=True)
        sending.start()
        took = self.receive(count)
        sending.join()
        return took

    def many(self, count: int) -> None:
        for _ in range(count // WINDOW):
            for _ in range(WINDOW):
                self.send()
            self.receive(WINDOW)


def connect(port: int, hello: bytes, answer: bytes = b"") -> socket.socket:
    sock = socket.create_connection((HOST, port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(hello)
    while answer:
        found = sock.recv(len(answer))
        if not found or not answer.startswith(found):
            raise OSError(f"{answer!r} was to come, and not {found!r}")
        answer = answer[len(found) :]
    return sock


def command(*words: bytes) -> bytes:
    """As it is sent to Redis."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(it), it) for it in words)


@contextmanager
def through_nodes(ports: list[int]) -> Iterator[Route]:
    with connect(ports[-1], b"m", b"k") as member, connect(ports[0], b"s") as sender:
        yield Route(sender, member)


@contextmanager
def through_redis(port: int) -> Iterator[Route]:
    confirmed = b"*3\r\n$9\r\nsubscribe\r\n$6\r\n%b\r\n:1\r\n" % CHANNEL
    head = len(command(b"message", CHANNEL, bytes(SIZE))) - SIZE - 2
    publish = command(b"PUBLISH", CHANNEL, bytes(SIZE))
    with (
        connect(port, command(b"SUBSCRIBE", CHANNEL), confirmed) as member,
        connect(port, b"") as sender,
    ):
        before = publish[: -SIZE - 2]
        yield Route(sender, member, before, b"\r\n", head, 2, has_answers=True)


async def through_coredis(url: str, count: int) -> list[float]:
    """Publish on one connection, and wait for it on another."""
    import trio

    from trio_wknet.contrib.redis._address import parse
    from trio_wknet.contrib.redis._connection import hold, make_connection

    address = parse(url, None)
    (location,) = address.locations
    arrived = trio.Event()

    def on_push(push: list[Any]) -> None:
        arrived.set()

    took = []
    async with trio.open_nursery() as nursery:
        subscriber = make_connection(location, address.settings, on_push)
        publisher = make_connection(location, address.settings)
        for connection in (subscriber, publisher):
            await nursery.start(hold, connection, lambda exc: None)
        subscriber.send_command(b"SUBSCRIBE", CHANNEL)
        await arrived.wait()
        for _ in range(count + WARM_UP):
            arrived = trio.Event()
            began = time.perf_counter()
            request = publisher.create_request(b"PUBLISH", CHANNEL, bytes(SIZE))
            await arrived.wait()
            took.append(time.perf_counter() - began)
            await request
        nursery.cancel_scope.cancel()
    return took[WARM_UP:]


# --- measuring --------------------------------------------------------------------------


@contextmanager
def redis_server() -> Iterator[str]:
    executable = os.environ.get("REDIS_SERVER") or shutil.which("redis-server")
    if executable is None:
        sys.exit("cluster: redis-server is not on the PATH, and REDIS_SERVER names none")
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [executable, "--port", str(port), "--bind", HOST, "--save", ""]
        process = subprocess.Popen([*command, "--dir", folder], stdout=subprocess.DEVNULL)
        try:
            for _ in range(500):
                try:
                    socket.create_connection((HOST, port)).close()
                    break
                except ConnectionRefusedError:
                    time.sleep(0.01)
            yield f"redis://{HOST}:{port}"
        finally:
            process.kill()
            process.wait()


def measure(way: str, url: str, reactors: int, count: int) -> Round:
    if way == "coredis":
        import trio

        return Round({ONE: percentiles(trio.run(through_coredis, url, count))}, 0.0)
    if way == "redis":
        with through_redis(int(url.rpartition(":")[2])) as route:
            return Round(latencies(route, count), 0.0)
    with ExitStack() as stack:
        its_url = "" if way == "alone" else url
        worker = partial(Worker, SCRIPT, "--node", its_url, "--reactors", str(reactors))
        nodes = [stack.enter_context(worker()) for _ in range(NODES[way])]
        route = stack.enter_context(through_nodes([node.answer() for node in nodes]))
        found = latencies(route, count)
        before = cpu_of(nodes)
        route.many(10 * count)
        return Round(found, (cpu_of(nodes) - before) / (10 * count))


def latencies(route: Route, count: int) -> dict[str, tuple[float, float]]:
    found = {ONE: percentiles(route.one_at_a_time(count))}
    return found | {f"{rate}/s": percentiles(route.at_a_rate(rate)) for rate in RATES}


def percentiles(took: list[float]) -> tuple[float, float]:
    return median(took), quantiles(took, n=100)[98]


def cpu_of(nodes: list[Worker]) -> float:
    for node in nodes:
        node.ask("cpu")
    return float(sum(node.answer() for node in nodes))


def table(found: dict[str, list[Round]]) -> Table:
    """Medians of rounds. What a message across takes more than one within the node is beside
    what Redis itself takes."""
    shown = Table("µs", "", *found, "added", "times redis")
    for load in (ONE, *(f"{rate}/s" for rate in RATES)):
        cells = {way: typical(rounds, load) for way, rounds in found.items()}
        for number, name in enumerate(("p50", "p99")):
            row = {way: found[number] * 1e6 for way, found in cells.items() if found}
            shown.add_row("" if number else load, name, *in_figures(row, tuple(found)))
    cpu = {way: median(it.cpu for it in rounds) * 1e6 for way, rounds in found.items()}
    shown.add_row("CPU", "", *(f"{it:.1f}" if it else "" for it in cpu.values()))
    return shown


def in_figures(row: dict[str, float], ways: tuple[str, ...]) -> Iterator[str]:
    yield from (f"{row[way]:.0f}" if way in row else "" for way in ways)
    if "across" in row and "here" in row:
        added = row["across"] - row["here"]
        yield f"{added:.0f}"
        if "redis" in row:
            yield f"{added / row['redis']:.2f}"


def typical(rounds: list[Round], load: str) -> tuple[float, ...]:
    each = [it.latency[load] for it in rounds if load in it.latency]
    return tuple(map(median, zip(*each, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a message from node to node.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--messages", type=int, default=2000, help="one at a time in a round")
    parser.add_argument("--reactors", type=int, default=1, help="of each node; by default 1")
    parser.add_argument("--way", action="append", choices=WAYS, help="by default all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE")
    parser.add_argument("--node", metavar="URL", help="be a node instead")
    options = parser.parse_args()
    if options.node is not None:
        import trio

        trio.run(be_node, options.node, options.reactors)
    else:
        report(options)


def report(options: argparse.Namespace) -> None:
    console, machine = Console(), Machine.here()
    console.print(str(machine), highlight=False)
    with redis_server() as url, console.status("") as status:
        one = partial(measure, url=url, reactors=options.reactors, count=options.messages)
        found = take_turns(tuple(options.way or WAYS), options.rounds, one, status.update)
    console.print(table(found), highlight=False)
    if options.json:
        everything = {way: list(map(attrs.asdict, each)) for way, each in found.items()}
        machine.save(options.json, everything)


if __name__ == "__main__":
    main()
