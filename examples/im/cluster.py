"""The store for several nodes: groups and logs that they share through Redis, and who is on which
node. Redis may go away: nobody is disconnected, what is said waits until it can be kept, and who
may have missed something is told so, and reads it from the log.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio
from coredis import PureToken, Redis
from coredis.exceptions import RedisError

from trio_wknet import Engine
from trio_wknet.contrib.redis import BrokerError, BrokerUnavailable, Cluster, Gap, open_cluster

from .protocol import Refused, encode, with_id
from .store import KEPT, SHOWN, Member

LIFE = 45.0  # seconds after which a node that is silent is not believed any more
REFRESH = LIFE / 3
UNREACHABLE = (RedisError, OSError, EOFError, trio.TooSlowError)

log = logging.getLogger("im")


class ClusterStore:
    def __init__(self, cluster: Cluster, redis: Any) -> None:
        self._cluster = cluster
        self._redis = redis
        self._node = secrets.token_hex(4)
        self._here: defaultdict[str, set[str]] = defaultdict(set)

    async def secret(self) -> bytes:
        await self._redis.set("im:secret", secrets.token_hex(), condition=PureToken.NX)
        return str(await self._redis.get("im:secret")).encode()

    async def claim(self, name: str) -> bool:
        return bool(await self._redis.sadd("im:names", [name]))

    # --- messages ----------------------------------------------------------------

    async def append(self, messages: Sequence[tuple[str, str]]) -> list[str]:
        """In order within a key; keys do not wait for each other."""
        ids = [""] * len(messages)
        places: defaultdict[str, list[int]] = defaultdict(list)
        for place, (key, _) in enumerate(messages):
            places[key].append(place)

        async def append_to(key: str) -> None:
            for place in places[key]:
                ids[place] = await self._append(key, messages[place][1])

        async with trio.open_nursery() as nursery:
            for key in places:
                nursery.start_soon(append_to, key)
        return ids

    async def _append(self, key: str, message: str) -> str:
        while True:
            try:
                return await self._cluster.log(key, max_length=KEPT).append(message)
            except BrokerUnavailable as exc:  # it has tried for some seconds
                log.warning("what is said waits for Redis: %s", exc)

    async def since(self, key: str, after: str | None) -> list[str]:
        try:
            with trio.fail_after(REFRESH):
                await self._cluster.group(key).wait_subscribed()  # then nothing falls in between
                last = await self._cluster.log(key).read_last(SHOWN)
        except (BrokerError, trio.TooSlowError):
            raise Refused("what was said before cannot be read now") from None
        return [with_id(id, text.decode()) for id, text in last if _number(id) > _number(after)]

    def join(self, key: str, member: Member) -> None:
        self._cluster.group(key).add(member)

    def leave(self, key: str, member: Member) -> None:
        self._cluster.group(key).discard(member)

    async def broadcast(self, key: str, text: str) -> None:
        await self._cluster.group(key).broadcast(text, when_slow="close")

    # --- presence ------------------------------------------------------------------

    async def note(self, room: str, came: Iterable[str], left: Iterable[str]) -> None:
        self._here[room].update(came)
        self._here[room].difference_update(left)
        with suppress(*UNREACHABLE):
            await self._believe(room, came)
            if gone := [f"{self._node}/{name}" for name in left]:
                await self._redis.zrem(f"im:who:{room}", gone)

    async def others(self, room: str) -> set[str]:
        with suppress(*UNREACHABLE):
            all_ = await self._redis.zrangebyscore(f"im:who:{room}", time.time(), math.inf)
            there = [str(each).split("/") for each in all_]
            return {name for node, name in there if node != self._node}
        return set()

    async def _believe(self, room: str, names: Iterable[str]) -> None:
        until = time.time() + LIFE
        if alive := {f"{self._node}/{name}": until for name in names}:
            await self._redis.zadd(f"im:who:{room}", alive)

    async def refresh(self) -> None:
        """Say again who is here, and say of those of dead nodes that they have left."""
        while True:
            await trio.sleep(REFRESH)
            for room, names in [*self._here.items()]:
                with suppress(*UNREACHABLE):
                    await self._believe(room, names)
                    await self._bury(room)

    async def _bury(self, room: str) -> None:
        key = f"im:who:{room}"
        for dead in await self._redis.zrangebyscore(key, -math.inf, time.time()):
            name = str(dead).partition("/")[2]
            if not await self._redis.zrem(key, [dead]):
                continue  # another node was first
            if name not in await self.others(room) | self._here[room]:
                said = encode(type="presence", room=room, came=[], left=[name])
                await self.broadcast(f"room:{room}", said)


def _number(id: str | None) -> tuple[int, ...]:
    return tuple(map(int, (id or "0").split("-")))


@asynccontextmanager
async def open_shared(url: str, engine: Engine) -> AsyncIterator[ClusterStore]:
    def resumed(key: str | None, gap: Gap) -> None:
        """Messages get through again: who is here reads what was missed."""
        log.warning("messages were missing: %s", gap.detail)
        for conn in engine.connections.values():
            if session := conn.context:
                session.send(encode(type="gap"))

    async with (
        Redis.from_url(url, decode_responses=True) as redis,
        open_cluster(url, engine, on_resume=resumed, prefix="im:") as cluster,
        trio.open_nursery() as nursery,
    ):
        store = ClusterStore(cluster, redis)
        nursery.start_soon(store.refresh)
        yield store
        nursery.cancel_scope.cancel()
