"""A message from one node to another, through Redis: ``python benchmarks/experiment.py cluster``.

A client sends messages of 64 B to a node, which broadcasts each in a group; a member of it, in the
client's process, gets them. ``alone`` is a group of an engine, ``here`` one of a cluster with the
member on the same node, ``across`` with the member on another one. ``redis`` is Redis itself: the
time from PUBLISH to the message at a subscriber, of the client library that nodes use, with nothing
else in its process. Latency is of one message at a time; CPU is what the nodes' processes take for
each of many. Needs redis-server, and coredis; the server is on this machine, so no network is
in it.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
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
WAYS = ("alone", "here", "across", "redis")
WINDOW = 200  # messages that may be on their way, where CPU is measured
WARM_UP = 200


@attrs.frozen
class Round:
    p50: float
    """Seconds."""
    p99: float
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


def connect(port: int, role: bytes) -> socket.socket:
    sock = socket.create_connection((HOST, port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(role)
    if role == b"m" and sock.recv(1) != b"k":
        raise OSError("the node has closed the connection")
    return sock


def receive(sock: socket.socket, size: int) -> None:
    while size:
        data = sock.recv(min(size, 65536))
        if not data:
            raise OSError("the node has closed the connection")
        size -= len(data)


def one_at_a_time(sender: socket.socket, member: socket.socket, count: int) -> list[float]:
    message, took = bytes(SIZE), []
    for _ in range(count + WARM_UP):
        began = time.perf_counter()
        sender.sendall(message)
        receive(member, SIZE)
        took.append(time.perf_counter() - began)
    return took[WARM_UP:]


def many(sender: socket.socket, member: socket.socket, count: int) -> None:
    for _ in range(count // WINDOW):
        for _ in range(WINDOW):
            sender.sendall(bytes(SIZE))
        receive(member, WINDOW * SIZE)


async def redis_itself(url: str, count: int) -> list[float]:
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
        subscriber.send_command(b"SUBSCRIBE", b"itself")
        await arrived.wait()
        for _ in range(count + WARM_UP):
            arrived = trio.Event()
            began = time.perf_counter()
            request = publisher.create_request(b"PUBLISH", b"itself", bytes(SIZE))
            await arrived.wait()
            took.append(time.perf_counter() - began)
            await request
        nursery.cancel_scope.cancel()
    return took[WARM_UP:]


# --- measuring --------------------------------------------------------------------------


@contextmanager
def redis_server() -> Iterator[str]:
    if shutil.which("redis-server") is None:
        sys.exit("cluster: redis-server is not installed")
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = ["redis-server", "--port", str(port), "--bind", HOST, "--save", ""]
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
    if way == "redis":
        import trio

        took = trio.run(redis_itself, url, count)
        return Round(median(took), quantiles(took, n=100)[98], 0.0)
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(
                Worker(SCRIPT, "--node", "" if way == "alone" else url, "--reactors", str(reactors))
            )
            for _ in range(2 if way == "across" else 1)
        ]
        ports = [node.answer() for node in nodes]
        member = stack.enter_context(connect(ports[-1], b"m"))
        sender = stack.enter_context(connect(ports[0], b"s"))
        took = one_at_a_time(sender, member, count)
        before = cpu_of(nodes)
        many(sender, member, 10 * count)
        cpu = (cpu_of(nodes) - before) / (10 * count)
        return Round(median(took), quantiles(took, n=100)[98], cpu)


def cpu_of(nodes: list[Worker]) -> float:
    for node in nodes:
        node.ask("cpu")
    return float(sum(node.answer() for node in nodes))


def table(found: dict[str, list[Round]]) -> Table:
    """Medians of rounds. What a message across takes more than one within the node is beside
    what Redis itself takes."""
    shown = Table("", "p50, µs", "p99, µs", "µs of CPU each")
    rows = {
        way: [median(getattr(one, name) for one in rounds) * 1e6 for name in ("p50", "p99", "cpu")]
        for way, rounds in found.items()
    }
    for way, (p50, p99, cpu) in rows.items():
        shown.add_row(way, f"{p50:.0f}", f"{p99:.0f}", f"{cpu:.1f}" if cpu else "")
    if {"across", "here", "redis"} <= rows.keys():
        added = [there - here for there, here in zip(rows["across"], rows["here"], strict=True)]
        shown.add_row("added by crossing", *(f"{it:.0f}" for it in added[:2]), f"{added[2]:.1f}")
        ratios = [it / itself for it, itself in zip(added[:2], rows["redis"], strict=False)]
        shown.add_row("times redis itself", *(f"{it:.2f}" for it in ratios), "")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a message from node to node.")
    parser.add_argument("--rounds", type=int, default=5)
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
