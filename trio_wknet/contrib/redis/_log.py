"""Messages that are kept, in a stream of Redis."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import trio

if TYPE_CHECKING:
    from trio_wknet.contrib.redis._cluster import Cluster

    if sys.version_info >= (3, 12):
        from collections.abc import Buffer
    else:
        from typing_extensions import Buffer

FIELD = b"m"
PAGE = 1000
FROM_START = "0"
ID = re.compile(r"\d{1,20}(-\d{1,20})?")


class Log:
    """Messages that the broker keeps in order, each with an id: at least once, where a group is
    at most once. `Cluster.log` gives one::

        log = cluster.log("room:7")
        last = await log.append(b"hello")
        for last, message in await log.read(after=last):
            ...
        async for last, message in log.follow(after=last):
            ...

    What was appended, acknowledged by an id, stays until ``max_length`` newer messages are there.
    It outlives the connections to the broker, and its restarts as far as the broker persists it
    (``appendonly yes``; with ``appendfsync everysec``, its default, a crash of the machine, not of
    the broker, may lose the last second). Replicas get it later than the acknowledgement: a
    failover may lose the last.

    A log is independent of the group with the same key: append to the one, broadcast in the
    other. The order in it is the same for all readers.
    """

    def __init__(self, *_: NoReturn, **__: NoReturn) -> None:
        raise TypeError("a Log cannot be constructed; Cluster.log gives one")

    _cluster: Cluster
    _key: str
    _name: bytes
    _max_length: int | None

    @classmethod
    def _of(cls, cluster: Cluster, key: str, name: bytes, max_length: int | None) -> Log:
        log = cls.__new__(cls)
        log._cluster = cluster
        log._key = key
        log._name = name
        log._max_length = max_length
        return log

    def __repr__(self) -> str:
        return f"<trio_wknet.contrib.redis.Log {self._key!r}>"

    @property
    def key(self) -> str:
        """What it is called on all nodes."""
        return self._key

    async def append(self, message: str | Buffer) -> str:
        """Append a message, and wait until the broker has it. A checkpoint.

        If the broker goes away, this tries again until the cluster's ``response_timeout`` is
        over. If the acknowledgement was lost, and not the message, it is there twice. If this is
        cancelled, or raises `BrokerUnavailable`, the message may be there or not.

        Args:
          message: bytes-like, or a `str`, which is kept in UTF-8.

        Returns:
          Its id. Ids grow, and are compared by their two numbers.

        Raises:
          BrokerUnavailable: the broker did not acknowledge it in time.
          BrokerRefused: it refused it.
          TypeError: ``message`` is neither.
          trio.ClosedResourceError: the cluster is closed, before or during the call.
        """
        data = message.encode() if isinstance(message, str) else bytes(memoryview(message))
        trim = () if self._max_length is None else ("MAXLEN", "~", self._max_length)
        answer = await self._cluster._call(self._name, b"XADD", self._name, *trim, "*", FIELD, data)
        return str(answer, "ascii")

    async def read(
        self, *, after: str = FROM_START, max_count: int = PAGE
    ) -> list[tuple[str, bytes]]:
        """Read messages, the oldest first. A checkpoint.

        If those that follow ``after`` were trimmed, it goes on with the oldest that is there.

        Args:
          after: the id of the last message that was read already. By default ``"0"``: from the
              start. It need not exist.
          max_count: how many at most, 1 or more; by default 1000.

        Returns:
          A list of pairs, the id and the message, which is empty if there are none.

        Raises:
          BrokerUnavailable, BrokerRefused, trio.ClosedResourceError: as `append` does.
          ValueError, TypeError: an argument is invalid.
        """
        _check_count(max_count)
        return await self._read(_checked(after), max_count)

    async def read_last(self, max_count: int) -> list[tuple[str, bytes]]:
        """Read the newest messages, the oldest of them first. A checkpoint.

        Args:
          max_count: how many at most, 1 or more.

        Returns:
          As `read`.

        Raises:
          BrokerUnavailable, BrokerRefused, trio.ClosedResourceError: as `append` does.
          ValueError, TypeError: ``max_count`` is invalid.
        """
        _check_count(max_count)
        answer = await self._cluster._call(
            self._name, b"XREVRANGE", self._name, "+", "-", "COUNT", max_count
        )
        return _messages(reversed(answer or []))

    def follow(self, *, after: str = FROM_START) -> Follower:
        """Iterate over all messages after one, and go on with those that are appended. Not a
        checkpoint; each step of the iteration is one.

        It goes on through outages of the broker, from the last id. While it waits for a message it
        has a connection to the broker of its own.

        Args:
          after: as `read` takes it; by default ``"0"``, from the start.

        Returns:
          A `Follower`, to be used in ``async for``.

        Raises:
          ValueError, TypeError: ``after`` is no id.
        """
        return Follower._of(self, _checked(after))

    async def _read(self, after: str, max_count: int) -> list[tuple[str, bytes]]:
        while True:
            answer = await self._cluster._call(
                self._name, b"XREAD", "COUNT", max_count, "STREAMS", self._name, after
            )
            entries = _entries(answer)
            if messages := _messages(entries):
                return messages
            if not entries:
                return []
            after = str(entries[-1][0], "ascii")  # all of them were somebody else's


class Follower:
    """An iteration over a log that does not end. `Log.follow` gives one.

    Attributes:
      last: the id of the last message that it gave, to go on from later.
    """

    last: str
    _log: Log
    _page: list[tuple[str, bytes]]

    def __init__(self, *_: NoReturn, **__: NoReturn) -> None:
        raise TypeError("a Follower cannot be constructed; Log.follow gives one")

    @classmethod
    def _of(cls, log: Log, after: str) -> Follower:
        follower = cls.__new__(cls)
        follower.last = after
        follower._log = log
        follower._page = []
        return follower

    def __aiter__(self) -> Follower:
        return self

    async def __anext__(self) -> tuple[str, bytes]:
        """Wait for the next message. A checkpoint. If it is cancelled, no message is lost.

        Returns:
          Its id, and the message.

        Raises:
          BrokerRefused: the broker refused to be read.
          trio.ClosedResourceError: the cluster is closed, before or during the call.
        """
        cluster = self._log._cluster
        after = self.last
        if self._page:
            await trio.lowlevel.checkpoint()
        while not self._page:
            entries = _entries(await cluster._wait_for_entries(self._log._name, after, PAGE))
            self._page = _messages(entries)[::-1]
            if entries:
                after = str(entries[-1][0], "ascii")
        self.last, message = self._page.pop()
        return self.last, message


def _checked(after: str) -> str:
    if not isinstance(after, str):
        raise TypeError(f"after must be a str, not {after!r}")
    if not ID.fullmatch(after):
        raise ValueError(f"after must be the id of a message, not {after!r}")
    return after


def _check_count(max_count: int) -> None:
    if isinstance(max_count, bool) or not isinstance(max_count, int):
        raise TypeError(f"max_count must be an integer, not {max_count!r}")
    if max_count < 1:
        raise ValueError(f"max_count must be 1 or more, not {max_count}")


def _entries(answer: Any) -> list[Any]:
    """Of the one stream that XREAD was asked about."""
    if not answer:
        return []
    (entries,) = answer.values()
    return list(entries)


def _messages(entries: Any) -> list[tuple[str, bytes]]:
    """Those that `Log.append` made."""
    return [
        (str(id_, "ascii"), fields[1])
        for id_, fields in entries
        if fields and len(fields) == 2 and fields[0] == FIELD
    ]
