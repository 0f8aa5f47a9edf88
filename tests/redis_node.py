"""A node in a process of its own, for tests: ``python tests/redis_node.py URL``. It prints its
port, serves until SIGTERM, and then says goodbye to each connection.

A client sends lines. ``room KEY`` makes it a member, and ``say TEXT`` broadcasts ``said TEXT``;
``append TEXT`` is answered by ``kept TEXT`` when the log has it; ``follow`` by ``logged TEXT`` for
each message of the log; ``watch`` by ``gap REASON`` and ``resume REASON``.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import suppress

import trio

from trio_wknet import Conn, drain_on_signal, open_engine
from trio_wknet.contrib.redis import Cluster, Gap, open_cluster

GONE = (trio.BrokenResourceError, trio.ClosedResourceError)  # a client that went as it liked


class Out:
    """Sends one thing after another, to a client that may have gone."""

    def __init__(self, conn: Conn) -> None:
        self._conn = conn
        self._lock = trio.Lock()

    async def send(self, data: bytes) -> None:
        async with self._lock:
            with suppress(*GONE):
                await self._conn.send_all(data)


class Server:
    def __init__(self) -> None:
        self.watchers: list[Conn] = []
        self.ending = trio.Event()
        self.cluster: Cluster

    def tell(self, what: str, gap: Gap) -> None:
        for conn in self.watchers:
            with suppress(*GONE):
                conn.send_nowait(f"{what} {gap.reason}\n".encode())

    async def handle(self, conn: Conn) -> None:
        out = Out(conn)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.part, out, nursery.cancel_scope)
            key = ""
            async for line in lines(conn):
                verb, _, rest = line.partition(" ")
                if verb == "room":
                    key = rest
                    self.cluster.group(key).add(conn)
                    await self.cluster.group(key).wait_subscribed()
                    await out.send(b"joined\n")
                elif verb == "say":
                    self.cluster.group(key).broadcast_nowait(f"said {rest}\n".encode())
                elif verb == "append":
                    await self.cluster.log("log", max_length=None).append(rest)
                    await out.send(f"kept {rest}\n".encode())
                elif verb == "follow":
                    nursery.start_soon(self.follow, out)
                elif verb == "watch":
                    self.watchers.append(conn)
                    await out.send(b"watching\n")
            nursery.cancel_scope.cancel()

    async def part(self, out: Out, scope: trio.CancelScope) -> None:
        """The line that is being worked on is the last."""
        await self.ending.wait()
        await out.send(b"bye\n")
        scope.cancel()

    async def follow(self, out: Out) -> None:
        async for _, message in self.cluster.log("log").follow():
            await out.send(b"logged %b\n" % message)


async def lines(conn: Conn) -> AsyncIterator[str]:
    rest = b""
    with suppress(*GONE):
        while data := await conn.receive_some():
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                yield line.decode()


async def main(url: str) -> None:
    server = Server()
    async with (
        open_engine(1) as engine,
        open_cluster(
            url,
            engine,
            on_gap=lambda _, gap: server.tell("gap", gap),
            on_resume=lambda _, gap: server.tell("resume", gap),
            response_timeout=30,
            max_backoff=0.2,
        ) as server.cluster,
        await engine.listen("tcp://127.0.0.1:0") as listener,
        drain_on_signal(listener) as shutdown,
        trio.open_nursery() as nursery,
    ):
        print(listener.address[1], flush=True)
        nursery.start_soon(listener.serve, server.handle)
        await shutdown.wait()
        server.ending.set()


trio.run(main, sys.argv[1])
