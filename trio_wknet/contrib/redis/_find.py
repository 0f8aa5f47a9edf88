"""Where a broker's servers are: one that a URL names, the one that Sentinel calls the primary, or
those that have the slots of a Redis Cluster."""

from __future__ import annotations

import random
from binascii import crc_hqx
from typing import TYPE_CHECKING, Any

import attrs
import trio
from coredis.connection import TCPLocation

from trio_wknet.contrib.redis._connection import FAILURES, ask

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from coredis.connection import Location

    from trio_wknet.contrib.redis._address import Address, Sentinels
    from trio_wknet.contrib.redis._connection import Settings

SLOTS = 16384


def slot_of(key: bytes) -> int:
    """Which of a Redis Cluster's slots a key, or a sharded channel, is in. What is between braces
    alone counts, if there is something."""
    opening = key.find(b"{")
    if opening >= 0:
        closing = key.find(b"}", opening + 1)
        if closing > opening + 1:
            key = key[opening + 1 : closing]
    return crc_hqx(key, 0) % SLOTS


async def ask_any(
    locations: Iterable[Location], settings: Settings, seconds: float, *command: bytes | str
) -> Any:
    """The first answer that one gives, each of them in its part of the time.

    Raises:
      FAILURES: none gave one; the last one's.
    """
    them = list(locations)
    failure: BaseException = ConnectionRefusedError("no server is known")
    for location in them:
        try:
            with trio.fail_after(seconds / len(them)):
                return await ask(location, settings, *command)
        except FAILURES as exc:
            failure = exc
    raise failure


class Finder:
    """Finds the server of a broker that has one."""

    def __init__(self, address: Address, timeout: float) -> None:
        self._address = address
        self._timeout = timeout

    async def find(self) -> Location:
        """Where it is now.

        Raises:
          FAILURES: nobody says.
        """
        if self._address.sentinels is not None:
            return await self._ask_sentinels(self._address.sentinels)
        await trio.lowlevel.checkpoint()
        return self._address.locations[0]

    async def _ask_sentinels(self, sentinels: Sentinels) -> Location:
        them = random.sample(sentinels.locations, len(sentinels.locations))
        command = (b"SENTINEL GET-MASTER-ADDR-BY-NAME", sentinels.service)
        answer = await ask_any(them, sentinels.settings, self._timeout, *command)
        if answer is None:
            raise ConnectionRefusedError(f"Sentinel does not watch {sentinels.service!r}")
        host, port = answer
        primary = TCPLocation(host.decode(), int(port))
        # For some seconds after a failover there are sentinels that do not know of it; and the
        # server that was replaced would take what is published, for nobody.
        role = await ask(primary, self._address.settings, b"ROLE")
        if role[0] != b"master":
            raise ConnectionRefusedError(f"{primary} is not the primary any more")
        return primary


@attrs.frozen
class SlotRange:
    first: int
    last: int
    location: Location


def read_slots(answer: Any, asked: Location) -> Iterator[SlotRange]:
    """What CLUSTER SLOTS answers. A server that does not know its own name leaves it out."""
    for first, last, (host, port, *_), *_replicas in answer:
        name = host.decode() if host else getattr(asked, "host", "")
        yield SlotRange(first, last, TCPLocation(name, port))


async def find_slots(
    locations: Iterable[Location], settings: Settings, seconds: float
) -> list[SlotRange]:
    """Which server has which slots, as one of them says.

    Raises:
      FAILURES: none says anything.
    """
    them = list(locations)
    failure: BaseException = ConnectionRefusedError("no server is known")
    for location in random.sample(them, len(them)):
        try:
            with trio.fail_after(seconds / len(them)):
                answer = await ask(location, settings, b"CLUSTER SLOTS")
            if ranges := list(read_slots(answer, location)):
                return ranges
        except FAILURES as exc:
            failure = exc
    raise failure
