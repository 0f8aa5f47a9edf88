"""The hub: a message's way from one client to all others, and who is in which room.

What is said goes into a queue. One task takes all that is there, has it kept in one transaction,
and then broadcasts each message: so what anybody has seen is kept, and a slow disk makes batches
larger. When the queue is full, who says something waits, and is not read from meanwhile.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Awaitable
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from .protocol import NAMES, encode, with_id

if TYPE_CHECKING:
    from .cluster import ClusterStore
    from .store import LocalStore, Member

QUEUE = 10_000  # messages that wait to be kept
BATCH = 1000
TICK = 0.5  # seconds between two words about who is in a room
LIFE = float(os.environ.get("IM_PRESENCE", "30"))  # seconds that they are believed


class Hub:
    def __init__(self, store: LocalStore | ClusterStore) -> None:
        self.store = store
        self._queue, self._queued = trio.open_memory_channel[tuple[tuple[str, ...], str]](QUEUE)
        self._here: defaultdict[str, Counter[str]] = defaultdict(Counter)  # connections, by name
        self._changed: set[str] = set()

    # --- messages ----------------------------------------------------------------

    def post(self, message: str, *keys: str) -> Awaitable[None] | None:
        """Have a message kept behind each key, and sent to those who have joined it.

        Returns: what to wait for first, if the queue is full.
        """
        try:
            self._queue.send_nowait((keys, message))
        except trio.WouldBlock:
            return self._queue.send((keys, message))
        return None

    async def deliver(self) -> None:
        """Keep and broadcast what is posted, until there will be no more."""
        async for first in self._queued:
            posts = [first]
            with suppress(trio.WouldBlock, trio.EndOfChannel):
                while len(posts) < BATCH:
                    posts.append(self._queued.receive_nowait())
            messages = [(key, message) for keys, message in posts for key in keys]
            ids = await self.store.append(messages)
            for id, (key, message) in zip(ids, messages, strict=True):
                await self.store.broadcast(key, with_id(id, message))

    def no_more(self) -> None:
        self._queue.close()

    # --- presence ------------------------------------------------------------------

    def enter(self, room: str, name: str, member: Member) -> None:
        self.store.join(f"room:{room}", member)
        self._here[room][name] += 1
        self._changed.add(room)

    def leave(self, room: str, name: str, member: Member) -> None:
        self.store.leave(f"room:{room}", member)
        self._here[room][name] -= 1
        self._changed.add(room)

    async def keep_telling(self) -> None:
        """Soon about rooms where somebody has come or left, and in turn about all of them: what
        is not said again, as of a node that has died, is forgotten."""
        turns = max(1, int(LIFE / 3 / TICK))
        for turn in itertools.count():
            await trio.sleep(TICK)
            self._changed |= {room for room in self._here if (hash(room) + turn) % turns == 0}
            await self.tell_changes()

    async def tell_changes(self) -> None:
        parts = {room: self._who(room) for room in self._changed}
        self._changed.clear()
        await self.store.note(parts, LIFE)
        for room, said in parts.items():
            await self.store.broadcast(f"room:{room}", said)

    def _who(self, room: str) -> str:
        here = self._here[room] = +self._here[room]
        if not here:
            del self._here[room]
        said = {"who": sorted(here)[:NAMES], "count": len(here), "for": LIFE}
        return encode(type="presence", room=room, node=self.store.node, **said)
