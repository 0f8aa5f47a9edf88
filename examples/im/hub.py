"""The hub: who is in which room, and a message's way from one client to all others.

What is said goes into a queue. One task takes all that is there, has it kept in one transaction,
and then broadcasts each message: so what anybody has seen is kept, and a slow disk makes batches
larger. When the queue is full, who says something waits, and is not read from meanwhile. Who came
and who left is told a few times a second, in one message for all of a room.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Awaitable
from contextlib import suppress

import trio

from .protocol import NAMES, encode, with_id
from .store import Member, Store

QUEUE = 10_000  # messages that wait to be kept
BATCH = 1000
TICK = 0.2  # seconds between two words about who is in a room


class Hub:
    def __init__(self, store: Store, secret: bytes) -> None:
        self.store = store
        self.secret = secret
        self._queue, self._queued = trio.open_memory_channel[tuple[tuple[str, ...], str]](QUEUE)
        self._here: defaultdict[str, Counter[str]] = defaultdict(Counter)  # connections, by name
        self._told: defaultdict[str, set[str]] = defaultdict(set)  # who is known to be here
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

    async def who(self, room: str) -> list[str]:
        others = await self.store.others(room)
        return sorted(others | set(+self._here[room]))

    async def keep_telling(self) -> None:
        while True:
            await trio.sleep(TICK)
            await self.tell_changes()

    async def tell_changes(self) -> None:
        while self._changed:
            await self._tell(self._changed.pop())

    async def _tell(self, room: str) -> None:
        """What has changed since the last time: who reconnects in between has not left."""
        here, told = set(+self._here[room]), self._told[room]
        came, left = sorted(here - told)[:NAMES], sorted(told - here)[:NAMES]
        told.difference_update(left)
        told.update(came)
        if told != here:
            self._changed.add(room)  # there is more to tell than fits a message
        elif not here:
            del self._here[room], self._told[room]
        if came or left:
            await self.store.note(room, came, left)
            said = encode(type="presence", room=room, came=came, left=left)
            await self.store.broadcast(f"room:{room}", said)
