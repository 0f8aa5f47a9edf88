"""What tests of several nodes share: nodes with members, and waiting that fails soon."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import helpers
import trio
from helpers import conn_and_peer

from trio_wknet import Conn, Engine, open_engine
from trio_wknet.contrib.redis import Cluster, ClusterGroup, open_cluster

LONG = 30.0  # seconds: a timeout that is not to fire
PATIENCE = 10.0  # seconds; only a broken library reaches it


@contextmanager
def soon(what: str) -> Iterator[None]:
    """Fail where a broken library would have a test wait for ever."""
    with trio.move_on_after(PATIENCE) as scope:
        yield
    if scope.cancelled_caught:
        raise AssertionError(f"{what} did not come about")


async def until(condition: Callable[[], object], what: str = "the condition") -> None:
    with soon(what):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.001)


async def read(peer: Any, size: int) -> bytes:
    with soon(f"{size} bytes for a member"):
        return await helpers.read(peer, size)
    raise AssertionError


async def subscribed(group: ClusterGroup) -> None:
    with soon(f"the subscription of {group.key!r}"):
        await group.wait_subscribed()


class Node:
    """A cluster's node with members, each of which reads what it gets."""

    def __init__(self, cluster: Cluster, engine: Engine, stack: AsyncExitStack) -> None:
        self.cluster = cluster
        self.engine = engine
        self.gaps: list[tuple[str | None, str]] = []
        self.resumes: list[tuple[str | None, str]] = []
        self._stack = stack

    async def member(self, *keys: str) -> tuple[Conn, Any]:
        conn, peer = await self._stack.enter_async_context(conn_and_peer(self.engine, "unix"))
        for key in keys:
            self.cluster.group(key).add(conn)
            await subscribed(self.cluster.group(key))
        return conn, peer


@asynccontextmanager
async def node(url: str, engine: Engine | None = None, **options: Any) -> AsyncIterator[Node]:
    gaps: list[tuple[str | None, str]] = []
    resumes: list[tuple[str | None, str]] = []
    options.setdefault("response_timeout", LONG)
    options.setdefault("max_backoff", 0.2)
    options.setdefault("on_gap", lambda key, gap: gaps.append((key, gap.reason)))
    options.setdefault("on_resume", lambda key, gap: resumes.append((key, gap.reason)))
    async with AsyncExitStack() as stack:
        stack.enter_context(trio.fail_after(60))  # what waits below fails sooner
        if engine is None:
            engine = await stack.enter_async_context(open_engine(0))
        cluster = await stack.enter_async_context(open_cluster(url, engine, **options))
        made = Node(cluster, engine, stack)
        made.gaps, made.resumes = gaps, resumes
        yield made


class Reader:
    """Collects a peer's messages, which are numbers, in lines."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.ended = False

    async def run(self, peer: Any) -> None:
        rest = b""
        while data := await peer.recv(65536):
            *lines, rest = (rest + data).split(b"\n")
            self.lines += lines
        self.ended = True

    def numbers(self, sender: bytes) -> list[int]:
        return [int(it[len(sender) :]) for it in self.lines if it.startswith(sender)]
