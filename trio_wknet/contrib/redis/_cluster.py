"""A node of a cluster: its groups and logs, and what it hears from the broker."""

from __future__ import annotations

import logging
import math
import ssl
import sys
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakValueDictionary

import attrs
import trio
from coredis.exceptions import RedisError, ResponseError

from trio_wknet._engine import Engine
from trio_wknet._group import MAX_PENDING
from trio_wknet._native.trio.failure_log import FailureLog
from trio_wknet._usage_errors import for_async_with
from trio_wknet.contrib.redis._address import Address, parse
from trio_wknet.contrib.redis._connection import FAILURES, ask, describe
from trio_wknet.contrib.redis._envelope import Envelopes
from trio_wknet.contrib.redis._errors import BrokerError, BrokerRefused, BrokerUnavailable
from trio_wknet.contrib.redis._find import Finder
from trio_wknet.contrib.redis._gaps import Gaps, OnGap
from trio_wknet.contrib.redis._group import ClusterGroup
from trio_wknet.contrib.redis._layout import Bounds, Layout, OneServer, RedisCluster
from trio_wknet.contrib.redis._log import Log
from trio_wknet.contrib.redis._readers import Readers
from trio_wknet.contrib.redis._shard import Down, Shard, passes

if TYPE_CHECKING:
    if sys.version_info >= (3, 12):
        from collections.abc import Buffer
    else:
        from typing_extensions import Buffer

logger = logging.getLogger("trio_wknet.contrib.redis")

MAX_QUEUE = 8 * 1024 * 1024
MAX_LENGTH = 10_000
# What they change, or wait for, is everybody's: all commands share a connection.
NOT_TO_EXECUTE = frozenset(
    [
        *("SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE"),
        *("CLIENT", "HELLO", "AUTH", "SELECT", "RESET", "QUIT", "MONITOR", "SYNC", "PSYNC"),
        *("MULTI", "EXEC", "DISCARD", "WATCH", "UNWATCH", "ASKING", "READONLY", "READWRITE"),
        *("BLPOP", "BRPOP", "BRPOPLPUSH", "BLMOVE", "BLMPOP", "BZPOPMIN", "BZPOPMAX", "BZMPOP"),
        *("WAIT", "WAITAOF"),
    ]
)
RETRY = 0.05  # seconds, before a command that may succeed later is tried again


@attrs.frozen(kw_only=True)
class ClusterStatistics:
    """What a node of a cluster has done. `Cluster.statistics` returns it."""

    published: int
    """Messages that the broker took from here."""
    delivered: int
    """Messages from other nodes that were given to members here."""
    echoes: int
    """Messages of our own that came back, and were ignored."""
    queued: int
    """Messages that wait to be published."""
    queued_bytes: int
    """The memory that they take."""
    dropped: int
    """Messages that were not published: the oldest of a queue that was full, what the broker
    refused, and what was left when the cluster was closed."""
    unconfirmed: int
    """Messages that were on their way to the broker when a connection was lost: published, or
    not."""
    overflowed: int
    """Messages from other nodes that members here did not get, because broadcasts in progress
    held ``max_pending`` bytes."""
    malformed: int
    """Messages in our channels that are not ours, or that members cannot get in their framing."""
    gaps: int
    """Gaps that ``on_gap`` was told of."""
    reconnects: int
    """Outages that are over, of each server."""
    subscriptions: int
    """Groups that the broker has confirmed the subscription of."""
    connected: bool
    """Whether all servers of the broker are connected."""


@attrs.define
class _Counts:
    published: int = 0
    delivered: int = 0
    echoes: int = 0
    dropped: int = 0
    unconfirmed: int = 0
    overflowed: int = 0
    malformed: int = 0
    reconnects: int = 0


class Cluster:
    """This node among those that share a broker. `open_cluster` gives it.

    Its methods belong to the thread of its engine.
    """

    def __init__(self, *_: NoReturn, **__: NoReturn) -> None:
        raise TypeError("a Cluster cannot be constructed; open_cluster gives one")

    _address: Address
    _bounds: Bounds
    _closed: bool
    _counts: _Counts
    _engine: Engine
    _envelopes: Envelopes
    _gaps: Gaps
    _groups: WeakValueDictionary[str, ClusterGroup]
    _joined: dict[bytes, ClusterGroup]  # those with members
    _layout: Layout
    _log: FailureLog
    _prefix: str
    _readers: Readers
    _refused: dict[bytes, BrokerRefused]
    _single: bool
    _waiters: dict[bytes, trio.Event]

    @classmethod
    def _of(
        cls, engine: Engine, address: Address, bounds: Bounds, gaps: Gaps, prefix: str
    ) -> Cluster:
        cluster = cls.__new__(cls)
        cluster._engine = engine
        cluster._address = address
        cluster._bounds = bounds
        cluster._gaps = gaps
        cluster._prefix = prefix
        cluster._closed = False
        cluster._counts = _Counts()
        cluster._envelopes = Envelopes()
        cluster._groups = WeakValueDictionary()
        cluster._joined = {}
        cluster._log = FailureLog(logger, "%d more messages were malformed", logging.WARNING)
        cluster._refused = {}
        cluster._waiters = {}
        return cluster

    def __repr__(self) -> str:
        return f"<trio_wknet.contrib.redis.Cluster, {len(self._joined)} groups with members here>"

    @property
    def engine(self) -> Engine:
        """The engine whose connections are members here."""
        return self._engine

    def group(self, key: str, *, max_pending: int = MAX_PENDING) -> ClusterGroup:
        """The group with this key, which all nodes share. Not a checkpoint. It needs no closing.

        Args:
          key: any text.
          max_pending: as `trio_wknet.Engine.group` takes it, for what goes to members here; by
              default 16 MiB. It counts when the group is made: as long as it has members, or is
              referred to, it is the same object.

        Returns:
          A `ClusterGroup`.

        Raises:
          TypeError, ValueError: an argument is invalid.
          trio.ClosedResourceError: the cluster is closed.
          RuntimeError: the engine is closed, or belongs to another thread.
        """
        self._ensure_open()
        _ensure_key(key)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = ClusterGroup._in(self, key, max_pending)
        return group

    def log(self, key: str, *, max_length: int | None = MAX_LENGTH) -> Log:
        """The log with this key, which all nodes share. Not a checkpoint. It needs no closing.

        Args:
          key: any text.
          max_length: how many messages are kept at least, 1 or more: the broker trims older ones,
              some dozens at a time, when one is appended here. By default 10 000. None keeps all.

        Returns:
          A `Log`.

        Raises:
          TypeError, ValueError: an argument is invalid.
          trio.ClosedResourceError: the cluster is closed.
        """
        self._ensure_open()
        _ensure_key(key)
        if max_length is not None:
            _ensure_integer("max_length", max_length, 1)
        return Log._of(self, key, f"{self._prefix}log:{key}".encode(), max_length)

    async def execute(self, command: str, key: str, *arguments: bytes | str | int) -> Any:
        """Have the broker carry out a command of your own about one key, on the connections that
        are there anyway. A checkpoint.

        If the broker goes away, this tries again until the cluster's ``response_timeout`` is over:
        the command may be carried out more than once. One that waits, such as ``BLPOP`` or
        ``XREAD`` with ``BLOCK``, has everything else wait, too.

        Args:
          command: such as ``"HSET"``.
          key: its first argument; in a Redis Cluster the server that has it is asked. It is taken
              as it is: ``prefix`` is not put before it.
          arguments: those that follow it.

        Returns:
          What RESP3 makes of the answer, `bytes`, `int`, `float`, `bool`, None, or a `list`, `dict`
          or `set` of them.

        Raises:
          BrokerUnavailable: the broker did not answer in time.
          BrokerRefused: it refused the command.
          TypeError: ``command`` or ``key`` is not a `str`, or an argument is something else.
          ValueError: ``command`` is about the connection, such as ``SUBSCRIBE``, or waits, such as
            ``BLPOP``; or there is text that UTF-8 cannot encode.
          trio.ClosedResourceError: the cluster is closed, before or during the call.
        """
        self._ensure_open()
        if not isinstance(command, str):
            raise TypeError(f"command must be a str, not {command!r}")
        if not command.strip() or command.split()[0].upper() in NOT_TO_EXECUTE:
            raise ValueError(f"command must be one about a key, not {command!r}")
        _ensure_key(key)
        words = [_encoded("arguments", it) for it in (command, *arguments)]
        return await self._call(key.encode(), words[0], key, *words[1:])

    def statistics(self) -> ClusterStatistics:
        """What this node has done so far, and does. Not a checkpoint.

        Returns:
          `ClusterStatistics`.
        """
        shards = list(self._layout.shards)
        return ClusterStatistics(
            **attrs.asdict(self._counts),
            queued=sum(map(len, self._layout.outboxes)),
            queued_bytes=sum(it.size for it in self._layout.outboxes),
            gaps=self._gaps.count,
            subscriptions=sum(len(it.confirmed) for it in shards),
            connected=bool(shards) and all(it.session is not None for it in shards),
        )

    def _ensure_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the cluster is closed")
        self._engine._core.ensure_usable()

    # --- members -----------------------------------------------------------------

    def _channel_of(self, key: str) -> bytes:
        return f"{self._prefix}group:{key}".encode()

    def _on_joined(self, group: ClusterGroup) -> None:
        if group._channel not in self._joined:
            self._joined[group._channel] = group
            self._layout.want(group._channel)

    def _on_empty(self, channel: bytes) -> None:
        """The last member left: a connection was closed, for example. Called from where nothing
        may be raised."""
        group = self._joined.get(channel)
        if group is not None and len(group) == 0:
            del self._joined[channel]
            self._refused.pop(channel, None)
            self._gaps.forget(group._key)
            self._layout.unwant(channel)
            self._wake(channel)

    async def _wait_confirmed(self, channel: bytes) -> None:
        while True:
            self._ensure_open()
            if channel not in self._joined:
                raise RuntimeError("the group has no members here, so it is not subscribed")
            if channel in self._refused:
                raise self._refused[channel]
            shard = self._layout.shard_of(channel)
            if shard is not None and channel in shard.confirmed:
                return
            await self._waiters.setdefault(channel, trio.Event()).wait()

    def _wake(self, channel: bytes) -> None:
        event = self._waiters.pop(channel, None)
        if event is not None:
            event.set()

    # --- messages ----------------------------------------------------------------

    def _publish(self, channel: bytes, data: str | Buffer, *, closes_slow: bool) -> None:
        self._layout.publish((channel, self._envelopes.seal(data, closes_slow=closes_slow)))

    def _on_message(self, channel: bytes, envelope: bytes) -> None:
        group = self._joined.get(channel)
        if self._envelopes.is_own(envelope):
            self._counts.echoes += 1
        elif group is not None:
            data, closes_slow = self._envelopes.unseal(envelope)
            try:
                group._deliver(data, closes_slow=closes_slow)
            except trio.WouldBlock:
                self._counts.overflowed += 1
                self._gaps.begin(group._key, "overflow", "broadcasts hold max_pending bytes")
            else:
                self._counts.delivered += 1
                self._gaps.end(group._key, "overflow")

    def _on_malformed(self, failure: Exception) -> None:
        self._counts.malformed += 1
        before = self._log.take_line(logging.WARNING)
        if before >= 0:
            self._log.write(logging.WARNING, before, "a message of the broker: %s", failure)

    def _on_published(self, count: int) -> None:
        self._counts.published += count
        if count and not any(self._layout.outboxes):
            self._gaps.end(None, "dropped")

    def _on_dropped(self, count: int, why: str) -> None:
        self._counts.dropped += count
        self._gaps.begin(None, "dropped", why)

    def _on_unconfirmed(self, count: int) -> None:
        self._counts.unconfirmed += count

    def _publish_again(self, message: tuple[bytes, bytes]) -> None:
        self._layout.publish_again(message)

    # --- servers -----------------------------------------------------------------

    def _on_up(self, shard: Shard) -> None:
        """It is connected, and everything is subscribed that is wanted there."""
        if shard.was_before:
            self._counts.reconnects += 1
            logger.info("the broker is back")
        if self._single:
            self._gaps.end(None, "disconnected")

    def _on_down(self, shard: Shard, failure: BaseException) -> None:
        detail = describe(failure)
        if shard.was_of_use and self._single:
            self._gaps.begin(None, "disconnected", detail)
        elif shard.was_of_use:
            # What is called here may make members leave.
            for channel in list(shard.wanted):
                if channel in self._joined:
                    self._gaps.begin(self._joined[channel]._key, "disconnected", detail)
        self._layout.look_again()
        for channel in shard.wanted & self._refused.keys():
            del self._refused[channel]

    def _on_confirmed(self, channel: bytes) -> None:
        group = self._joined.get(channel)
        if group is not None:
            self._gaps.end(group._key, "disconnected", "moved", "refused")
        self._wake(channel)

    def _on_moved(self, channels: Iterable[bytes]) -> None:
        for channel in channels:
            if channel in self._joined:
                key = self._joined[channel]._key
                self._gaps.begin(key, "moved", "its slot went to another server")
        self._layout.look_again()

    def _on_refused(self, channel: bytes, failure: BrokerRefused) -> None:
        group = self._joined.get(channel)
        if group is not None:
            self._refused[channel] = failure
            self._gaps.begin(group._key, "refused", str(failure))
        self._wake(channel)

    # --- commands ----------------------------------------------------------------

    async def _call(self, key: bytes, name: bytes, *arguments: bytes | str | int) -> Any:
        """Have a command carried out by the server that has a key, again if it was not certainly.

        Raises:
          BrokerUnavailable: not in time.
          BrokerRefused: that is the answer.
          trio.ClosedResourceError: the cluster is closed.
        """
        failure: BaseException | None = None
        with trio.move_on_after(self._bounds.timeout):
            while True:
                try:
                    return await (await self._shard_for(key)).call(name, *arguments)
                except (*FAILURES, Down) as exc:
                    failure = self._consider(exc)
                await trio.sleep(RETRY)
        self._ensure_open()
        detail = f": {describe(failure)}" if failure is not None else ""
        raise BrokerUnavailable(f"no answer in {self._bounds.timeout} seconds{detail}")

    async def _wait_for_entries(self, key: bytes, after: str, max_count: int) -> Any:
        """The entries of a stream after an id. Waits until there are some."""
        block = max(1, int(self._bounds.timeout * 1000))
        arguments = ("COUNT", max_count, "BLOCK", block, "STREAMS", key, after)
        while True:
            shard = await self._shard_for(key)
            try:
                assert shard.session is not None
                location = shard.session.location
                if entries := await self._readers.ask(location, b"XREAD", *arguments):
                    return entries
            except FAILURES as exc:
                self._consider(exc)
                await trio.sleep(RETRY)

    async def _shard_for(self, key: bytes) -> Shard:
        """The one that has a key, with a session."""
        while True:
            self._ensure_open()
            shard = self._layout.shard_of(key)
            if shard is not None and shard.session is not None:
                return shard
            if shard is not None:
                await shard.wait_up()
            else:
                await trio.sleep(RETRY)

    def _consider(self, failure: BaseException) -> BaseException:
        """Whether to try again."""
        self._ensure_open()
        if isinstance(failure, RedisError) and not passes(failure):
            raise BrokerRefused(str(failure)) from None
        self._layout.look_again()
        return failure

    # --- begin and end -----------------------------------------------------------

    async def _look(self) -> Layout:
        """Find out what kind of broker there is."""
        finder = Finder(self._address, self._bounds.timeout)
        failure: BaseException = Down()
        for location in self._address.locations or [None]:
            try:
                with trio.fail_after(self._bounds.timeout):
                    found = location or await finder.find()
                    hello = await ask(found, self._address.settings, b"HELLO", 3)
                return self._layout_for(hello)
            except FAILURES as exc:
                failure = exc
                if isinstance(exc, ResponseError) and not passes(exc):
                    break
        raise _in_words(failure, self._bounds.timeout)

    def _layout_for(self, hello: dict[bytes, Any]) -> Layout:
        mode, version = hello[b"mode"], hello[b"version"]
        if mode == b"sentinel":
            raise BrokerRefused("it is a Sentinel: url must begin with redis+sentinel://")
        self._single = mode != b"cluster"
        if not self._single:
            sharded = int(version.split(b".")[0]) >= 7
            return RedisCluster(self, self._address, self._bounds, sharded=sharded)
        if len(self._address.locations) > 1:
            raise BrokerRefused("it is no Redis Cluster: url must have one host")
        return OneServer(self, self._address, self._bounds)

    async def _start(self, nursery: trio.Nursery) -> None:
        self._readers = Readers(nursery, self._address.settings, self._bounds.timeout)
        nursery.start_soon(self._layout.run, nursery)
        with trio.move_on_after(self._bounds.timeout):
            await self._layout.known.wait()
            for shard in list(self._layout.shards):
                await shard.tried.wait()
        await trio.lowlevel.checkpoint_if_cancelled()  # or there may be no session because of that
        # Some servers of a Redis Cluster may be away: what is there is served.
        failures = [it.failure for it in self._layout.shards if it.session is None]
        if len(failures) == len(list(self._layout.shards)):
            failure = next((it for it in failures if it is not None), trio.TooSlowError())
            raise _in_words(failure, self._bounds.timeout)

    async def _finish(self) -> None:
        """Publish what waits, if that can be done."""
        with trio.move_on_after(self._bounds.timeout):
            for shard in list(self._layout.shards):
                await shard.drain()

    def _close(self) -> None:
        self._closed = True
        self._readers.close()
        for outbox in self._layout.outboxes:
            self._counts.dropped += len(outbox.take_all())
        for shard in self._layout.shards:
            shard.close()
        for channel in list(self._waiters):
            self._wake(channel)
        self._log.write_rest()


def _in_words(failure: BaseException, timeout: float) -> BrokerError:
    kind = BrokerUnavailable
    if isinstance(failure, trio.TooSlowError):
        return BrokerUnavailable(f"the broker did not answer in {timeout} seconds")
    if isinstance(failure, ResponseError) and not passes(failure):
        error: BrokerError = BrokerRefused(describe(failure))
    else:
        error = kind(describe(failure))
    error.__cause__ = failure
    return error


def _ensure_key(key: str) -> None:
    if not isinstance(key, str):
        raise TypeError(f"key must be a str, not {key!r}")
    _encoded("key", key)


def _encoded(name: str, value: bytes | str | int) -> bytes:
    """What cannot be encoded would cost the connection, where coredis does it."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return b"%d" % value
    if not isinstance(value, str):
        raise TypeError(f"{name} must be bytes, str or int, not {value!r}")
    try:
        return value.encode()
    except UnicodeEncodeError as exc:
        raise ValueError(f"{name} must be text that UTF-8 can encode, not {value!r}") from exc


def _ensure_integer(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be {least} or more, not {value}")


def _ensure_seconds(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be more than 0, and finite, not {value}")


@for_async_with
async def open_cluster(
    url: str,
    engine: Engine,
    *,
    on_gap: OnGap | None = None,
    on_resume: OnGap | None = None,
    prefix: str = "wknet:",
    max_queue: int = MAX_QUEUE,
    response_timeout: float = 5.0,
    max_backoff: float = 5.0,
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncIterator[Cluster]:
    """Join the nodes that share a broker, for the duration of an ``async with`` block. Entering
    and leaving are checkpoints.

    What runs in the background ends with the block. Leaving it publishes what waits for that, for
    at most ``response_timeout`` seconds, if the broker is connected. If the broker goes away in
    between, the block goes on: members here are served, and connecting is tried again, after
    pauses that grow up to ``max_backoff``.

    Args:
      url: ``redis://user:password@host:6379/0``, with TLS ``rediss://``, or
          ``unix:///path?db=0``. A server of a Redis Cluster is enough; several are
          ``redis://host,host:7001``. Sentinels are ``redis+sentinel://host,host:26379/service/0``,
          with the server's user and password, and their own in the query, as
          ``?sentinel_password=``.
      engine: whose connections are members here.
      on_gap: called with a key and a `Gap` when messages may be missing: the key of one group, or
          None for all of them. Once for each outage. A plain function, which is to return soon;
          what it raises is logged. Default: nobody is told.
      on_resume: called likewise when the gap has ended: messages get through again. Then what was
          missed can be read from a `Log` without missing anything. Default: nobody is told.
      prefix: what the names of channels and streams at the broker begin with; by default
          ``"wknet:"``. Nodes with another one are apart.
      max_queue: bytes that may wait to be published, for each server of the broker. If one more
          message would be too much, the oldest are dropped. By default 8 MiB.
      response_timeout: seconds after which a broker that does not answer is given up, and after
          which one that is silent is asked; by default 5. Also the longest that methods of `Log`
          try.
      max_backoff: the longest pause, in seconds, before the next attempt to connect; by default 5.
      ssl_context: for ``rediss://``. By default the system's authorities are trusted, and the
          name is checked.

    Returns:
      An async context manager, whose value is the `Cluster`.

    Raises:
      TypeError, ValueError: an argument is invalid.
      BrokerUnavailable: the broker cannot be reached.
      BrokerRefused: it refuses the user, the password or the database, or is a Sentinel.
      RuntimeError: the engine is closed, or belongs to another thread.
    """
    if not isinstance(engine, Engine):
        raise TypeError(f"engine must be an Engine, not {engine!r}")
    if not isinstance(prefix, str):
        raise TypeError(f"prefix must be a str, not {prefix!r}")
    _encoded("prefix", prefix)
    _ensure_integer("max_queue", max_queue, 0)
    _ensure_seconds("response_timeout", response_timeout)
    _ensure_seconds("max_backoff", max_backoff)
    address = parse(url, ssl_context)
    engine._core.ensure_usable()
    bounds = Bounds(max_queue=max_queue, timeout=response_timeout, max_backoff=max_backoff)
    cluster = Cluster._of(engine, address, bounds, Gaps(on_gap, on_resume), prefix)
    cluster._layout = await cluster._look()
    # What the block raises leaves it as it is, and not in a group with what the nursery has: its
    # tasks raise nothing but what is a fault of ours.
    raised: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                await cluster._start(nursery)
                yield cluster
                await cluster._finish()
            except trio.Cancelled:
                raise
            except BaseException as exc:
                raised = exc
            finally:
                cluster._close()
                nursery.cancel_scope.cancel()
    finally:
        if raised is not None:
            raise raised
