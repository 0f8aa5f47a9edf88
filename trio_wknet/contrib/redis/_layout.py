"""Which server has which channel: the one server, or the shards of a Redis Cluster, whose slots
move while everything goes on."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

import attrs
import trio

from trio_wknet.contrib.redis._connection import FAILURES, describe
from trio_wknet.contrib.redis._find import SLOTS, Finder, SlotRange, find_slots, slot_of
from trio_wknet.contrib.redis._outbox import Outbox
from trio_wknet.contrib.redis._shard import CLASSIC, SHARDED, Shard

if TYPE_CHECKING:
    from collections.abc import Iterable

    from coredis.connection import Location

    from trio_wknet.contrib.redis._address import Address
    from trio_wknet.contrib.redis._shard import Owner

logger = logging.getLogger("trio_wknet.contrib.redis")

PAUSE = 0.1  # seconds between two looks at which server has what
RETRY = 0.5  # the same, while a server is away
FULL = "too much waits for a server that has its slot"


@attrs.frozen(kw_only=True)
class Bounds:
    """What was said to `open_cluster`."""

    max_queue: int
    timeout: float
    max_backoff: float


class Layout(Protocol):
    known: trio.Event  # which shards there are

    @property
    def shards(self) -> Iterable[Shard]: ...
    @property
    def outboxes(self) -> Iterable[Outbox]: ...
    def shard_of(self, channel: bytes) -> Shard | None: ...
    async def run(self, nursery: trio.Nursery) -> None: ...
    def want(self, channel: bytes) -> None: ...
    def unwant(self, channel: bytes) -> None: ...
    def publish(self, message: tuple[bytes, bytes]) -> None: ...
    def publish_again(self, message: tuple[bytes, bytes]) -> None: ...
    def look_again(self) -> None: ...


class OneServer:
    """All is at one server, which Sentinel may replace."""

    def __init__(self, owner: Owner, address: Address, bounds: Bounds) -> None:
        self._owner = owner
        self._shard = Shard(
            owner,
            CLASSIC,
            Finder(address, bounds.timeout).find,
            address.settings,
            max_queue=bounds.max_queue,
            timeout=bounds.timeout,
            max_delay=bounds.max_backoff,
        )
        self.shards = [self._shard]
        self.outboxes = [self._shard.outbox]
        self.known = trio.Event()
        self.known.set()

    def shard_of(self, channel: bytes) -> Shard:
        return self._shard

    async def run(self, nursery: trio.Nursery) -> None:
        await self._shard.run()

    def want(self, channel: bytes) -> None:
        self._shard.want(channel)

    def unwant(self, channel: bytes) -> None:
        self._shard.unwant(channel)

    def publish(self, message: tuple[bytes, bytes]) -> None:
        self._shard.publish(message)

    def publish_again(self, message: tuple[bytes, bytes]) -> None:
        self._owner._on_dropped(1, "the server sent it elsewhere, and is not part of a cluster")

    def look_again(self) -> None:
        pass  # each session begins with that


class RedisCluster:
    """A channel is at the server that has its slot.

    `_routes` says for each wanted channel which shard was told of it. A look at the slots, which
    every failure that hints at a change asks for, moves channels to their new shards. A channel
    whose slot nobody has is with the last shard that had it, or nowhere, until somebody has.
    """

    def __init__(self, owner: Owner, address: Address, bounds: Bounds, *, sharded: bool) -> None:
        self._owner = owner
        self._address = address
        self._bounds = bounds
        # Without them, messages of one server go to all others. Channels are spread all the same.
        self._verbs = SHARDED if sharded else CLASSIC
        self._by_location: dict[Location, Shard] = {}
        self._slots: list[Shard | None] = [None] * SLOTS
        self._routes: dict[bytes, Shard | None] = {}
        self._homeless = Outbox(bounds.max_queue)
        self._stale = trio.Event()
        self.known = trio.Event()

    @property
    def shards(self) -> Iterable[Shard]:
        return self._by_location.values()

    @property
    def outboxes(self) -> Iterable[Outbox]:
        return [self._homeless, *(it.outbox for it in self.shards)]

    def shard_of(self, channel: bytes) -> Shard | None:
        return self._slots[slot_of(channel)]

    def want(self, channel: bytes) -> None:
        shard = self._routes[channel] = self.shard_of(channel)
        if shard is not None:
            shard.want(channel)

    def unwant(self, channel: bytes) -> None:
        shard = self._routes.pop(channel, None)
        if shard is not None:
            shard.unwant(channel)

    def publish(self, message: tuple[bytes, bytes]) -> None:
        shard = self.shard_of(message[0])
        if shard is None:
            self.publish_again(message)
        else:
            shard.publish(message)

    def publish_again(self, message: tuple[bytes, bytes]) -> None:
        """Once it is known where to: at once, it would be sent back just as fast."""
        if dropped := self._homeless.put(message):
            self._owner._on_dropped(dropped, FULL)
        self.look_again()

    def look_again(self) -> None:
        self._stale.set()

    async def run(self, nursery: trio.Nursery) -> None:
        """Look which server has what, whenever that may have changed."""
        self.look_again()
        while True:
            await self._stale.wait()
            self._stale = trio.Event()
            try:
                known = dict.fromkeys([*self._by_location, *self._address.locations])
                ranges = await find_slots(known, self._address.settings, self._bounds.timeout)
            except FAILURES as exc:
                logger.debug("no server says which has what: %s", describe(exc))
            else:
                self._arrange(nursery, ranges)
                self.known.set()
            self._send_homeless()
            away = None in self._slots or any(it.session is None for it in self.shards)
            await trio.sleep(RETRY if away else PAUSE)
            if away:
                self.look_again()

    def _arrange(self, nursery: trio.Nursery, ranges: list[SlotRange]) -> None:
        named = {it.location for it in ranges}
        for location in named - self._by_location.keys():
            shard = self._by_location[location] = self._make(location)
            nursery.start_soon(shard.run)
        gone = [self._by_location.pop(it) for it in self._by_location.keys() - named]
        for each in ranges:
            for slot in range(each.first, each.last + 1):
                self._slots[slot] = self._by_location[each.location]
        for shard in gone:
            shard.scope.cancel()
            shard.close()
        self._slots = [None if it in gone else it for it in self._slots]
        left = [message for shard in gone for message in shard.outbox.take_all()]
        if dropped := sum(map(self._homeless.put, left)):
            self._owner._on_dropped(dropped, FULL)
        for channel, old in list(self._routes.items()):
            # What on_gap was called for may have made members of others leave.
            if channel in self._routes:
                self._reroute(channel, old)

    def _reroute(self, channel: bytes, old: Shard | None) -> None:
        new = self.shard_of(channel)
        # The server that lost it need not have said so: it may be cut off, or older than 7.
        moved = old is not None and old is not new and channel in old.confirmed
        if old is not new and old is not None:
            old.unwant(channel)
        if new is not None and channel not in new.confirmed:
            new.want(channel)
        self._routes[channel] = new
        if moved:
            self._owner._on_moved([channel])

    def _send_homeless(self) -> None:
        for message in self._homeless.take_all():
            self.publish(message)

    def _make(self, location: Location) -> Shard:
        async def find() -> Location:
            await trio.lowlevel.checkpoint()
            return location

        return Shard(
            self._owner,
            self._verbs,
            find,
            self._address.settings,
            max_queue=self._bounds.max_queue,
            timeout=self._bounds.timeout,
            max_delay=self._bounds.max_backoff,
        )
