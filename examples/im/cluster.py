"""The store of several nodes: groups and logs that they share through Redis, and who is on which
node. Redis may go away: nobody is disconnected, what is said waits until it can be kept, and who
may have missed something is told so, and reads it from the log.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import trio

from trio_wknet import Engine
from trio_wknet.contrib.redis import BrokerError, Cluster, Gap, open_cluster

from .protocol import encode, with_id
from .store import KEPT, SHOWN, Member

log = logging.getLogger("im")


class ClusterStore:
    def __init__(self, cluster: Cluster) -> None:
        self.node = secrets.token_hex(4)
        self._cluster = cluster

    async def once(self, key: str, value: str) -> str:
        await self._patiently(self._cluster.execute, "SET", f"im:{key}", value, "NX")
        return str(await self._patiently(self._cluster.execute, "GET", f"im:{key}"), "utf-8")

    async def _patiently(self, ask: Callable[..., Awaitable[Any]], *arguments: str) -> Any:
        while True:
            try:
                return await ask(*arguments)
            except BrokerError as exc:  # it has tried for some seconds
                log.warning("Redis is waited for: %s", exc)
                await trio.sleep(1)

    # --- messages ----------------------------------------------------------------

    async def append(self, messages: Sequence[tuple[str, str]]) -> list[str]:
        """In order within a key; keys do not wait for each other."""
        ids = [""] * len(messages)

        async def keep(key: str) -> None:
            append = self._cluster.log(key, max_length=KEPT).append
            for place, (its, message) in enumerate(messages):
                if its == key:
                    ids[place] = await self._patiently(append, message)

        async with trio.open_nursery() as nursery:
            for key in {key for key, _ in messages}:
                nursery.start_soon(keep, key)
        return ids

    async def since(self, key: str, after: str | None) -> list[str]:
        with suppress(RuntimeError):  # who joined has left meanwhile
            await self._cluster.group(key).wait_subscribed()  # so that nothing falls in between
        kept = self._cluster.log(key)
        read = partial(kept.read_last, SHOWN)
        if after:
            read = partial(kept.read, after=after, max_count=2 * KEPT)
        return [with_id(id, text.decode()) for id, text in (await self._patiently(read))[-SHOWN:]]

    def join(self, key: str, member: Member) -> None:
        self._cluster.group(key).add(member)

    def leave(self, key: str, member: Member) -> None:
        self._cluster.group(key).discard(member)

    async def broadcast(self, key: str, text: str) -> None:
        await self._cluster.group(key).broadcast(text, when_slow="close")

    # --- presence ------------------------------------------------------------------

    async def note(self, parts: dict[str, str], life: float) -> None:
        async with trio.open_nursery() as nursery:
            for room, said in parts.items():
                if len(self._cluster.group(f"room:{room}")):
                    value = f"{time.time() + life} {said}"
                    nursery.start_soon(self._ask, "HSET", room, self.node, value)
                else:
                    nursery.start_soon(self._ask, "HDEL", room, self.node)

    async def others(self, room: str) -> list[str]:
        noted = [value.decode().partition(" ") for value in await self._ask("HVALS", room) or []]
        return [said for until, _, said in noted if time.time() < float(until)]

    async def _ask(self, command: str, room: str, *arguments: str) -> Any:
        with suppress(BrokerError):  # it is said again in a while
            return await self._cluster.execute(command, f"im:who:{room}", *arguments)


@asynccontextmanager
async def open_shared(url: str, engine: Engine) -> AsyncIterator[ClusterStore]:
    def resumed(key: str | None, gap: Gap) -> None:
        """Messages get through again: who is here reads what was missed."""
        log.warning("messages were missing: %s", gap.detail)
        for conn in engine.connections.values():
            if session := conn.context:
                session.send(encode(type="gap"))

    async with open_cluster(url, engine, on_resume=resumed, prefix="im:") as cluster:
        yield ClusterStore(cluster)
