"""One server of the broker, and what is done there: subscribing, publishing, and commands.

A shard has two connections. On one it subscribes, and hears; on the other it publishes, and asks.
They are apart because a refused SUBSCRIBE is answered by an error out of turn, which on a shared
connection would be taken for the answer to something else; and because a server cuts off a
subscriber that it has too much for, which shall not cost what is being published.

They live and die together: a session is both, and an outage is the time between two sessions.
Everything here runs in Trio's thread, and what is not awaited cannot be interrupted.
"""

from __future__ import annotations

import logging
import random
from contextlib import aclosing
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, cast

import attrs
import trio
from coredis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    ReadOnlyError,
    RedisError,
    TryAgainError,
    UnblockedError,
)

from trio_wknet.contrib.redis._connection import (
    FAILURES,
    describe,
    hold,
    is_answer,
    make_connection,
    request,
)
from trio_wknet.contrib.redis._errors import BrokerRefused
from trio_wknet.contrib.redis._outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from coredis.connection import BaseConnection, Location

    from trio_wknet.contrib.redis._connection import Settings

logger = logging.getLogger("trio_wknet.contrib.redis")

KEYS_AT_ONCE = 1000  # in one command, and between two looks at who joined and left
BATCH_COUNT, BATCH_BYTES = 2048, 1024 * 1024  # published at once
COMMANDS_AT_ONCE = 256
FULL = "too much waits for the broker"
FIRST_DELAY = 0.05  # seconds, before the first attempt to connect again

# Another server has the key now, or will have it.
ELSEWHERE = (AskError, ReadOnlyError, ClusterDownError, TryAgainError)
# The server is there, but not yet, or not any more, of use.
NOT_NOW = (*ELSEWHERE, BusyLoadingError, UnblockedError)
MASTER_AWAY = ("MASTERDOWN", "NOREPLICAS")


def passes(failure: BaseException) -> bool:
    """Whether a command that failed so may succeed later."""
    return (
        not is_answer(failure)
        or isinstance(failure, NOT_NOW)
        or str(failure).startswith(MASTER_AWAY)
    )


class Owner(Protocol):
    """The cluster, as its shards see it."""

    def _on_message(self, channel: bytes, envelope: bytes) -> None: ...
    def _on_malformed(self, failure: Exception) -> None: ...
    def _on_up(self, shard: Shard) -> None: ...
    def _on_down(self, shard: Shard, failure: BaseException) -> None: ...
    def _on_confirmed(self, channel: bytes) -> None: ...
    def _on_moved(self, channels: Iterable[bytes]) -> None: ...
    def _on_refused(self, channel: bytes, failure: BrokerRefused) -> None: ...
    def _on_published(self, count: int) -> None: ...
    def _on_dropped(self, count: int, why: str) -> None: ...
    def _on_unconfirmed(self, count: int) -> None: ...
    def _publish_again(self, message: tuple[bytes, bytes]) -> None: ...


@attrs.frozen(kw_only=True)
class Verbs:
    """The names of the commands: for channels that every server of a Redis Cluster carries, or for
    those that one shard of it has for itself."""

    subscribe: bytes
    unsubscribe: bytes
    publish: bytes
    together: bool
    """One command may name several channels. Sharded, those of a command must be in one slot."""


CLASSIC = Verbs(
    subscribe=b"SUBSCRIBE", unsubscribe=b"UNSUBSCRIBE", publish=b"PUBLISH", together=True
)
SHARDED = Verbs(
    subscribe=b"SSUBSCRIBE", unsubscribe=b"SUNSUBSCRIBE", publish=b"SPUBLISH", together=False
)


@attrs.define(eq=False)
class _Publish:
    """A command as `BaseConnection.create_request_batch` reads it. coredis' own class would look
    up what a command of this name is, for each message."""

    name: bytes
    serialized_arguments: tuple[bytes, bytes]
    decode: bool = False


@attrs.frozen(eq=False)
class _Batch:
    messages: list[tuple[bytes, bytes]]
    answers: Awaitable[list[Any]]


@attrs.define(eq=False)
class _Command:
    name: bytes
    arguments: tuple[bytes | str | int, ...]
    answer: Any = None
    failure: BaseException | None = None
    done: trio.Event = attrs.field(factory=trio.Event)


@attrs.define(eq=False)
class _Session:
    """Both connections, from when both were made until one of them is lost."""

    nursery: trio.Nursery
    location: Location
    subscriber: BaseConnection
    commander: BaseConnection


class Down(Exception):
    """There is no session, or it ended. Whether the server did what was asked is not known."""


class Shard:
    def __init__(
        self,
        owner: Owner,
        verbs: Verbs,
        find: Callable[[], Awaitable[Location]],
        settings: Settings,
        *,
        max_queue: int,
        timeout: float,
        max_delay: float,
    ) -> None:
        self._owner = owner
        self._verbs = verbs
        self._find = find
        self._settings = settings
        self._timeout = timeout
        self._max_delay = max_delay
        self.outbox = Outbox(max_queue)
        self.scope = trio.CancelScope()
        self.session: _Session | None = None
        self.failure: BaseException | None = None
        self.tried = trio.Event()  # an attempt to connect succeeded, or failed
        # Channels: those that are to be subscribed; those that the server was told of, in this
        # session; those that it said it has subscribed. `_dirty` has those in whose case wanted
        # and asked may differ: one entry for each, however often members join and leave.
        self.wanted: set[bytes] = set()
        self._asked: set[bytes] = set()
        self.confirmed: set[bytes] = set()
        self._dirty: set[bytes] = set()
        self._leaving: set[bytes] = set()
        self._changed = trio.Event()
        self._free: BaseConnection | None = None  # has no batch, and can be given one
        self._batch: _Batch | None = None  # is on its way
        self._begun = trio.Event()
        self._room = trio.lowlevel.ParkingLot()
        self._commands = trio.Semaphore(COMMANDS_AT_ONCE)
        self._up_changed = trio.Event()
        self._ending: BaseException | None = None
        # Somebody may rely on it: everything was subscribed once, or a group is.
        self.was_of_use = False
        self.was_before = False  # before this session

    # --- subscriptions -----------------------------------------------------------

    def want(self, channel: bytes) -> None:
        """Have it subscribed. Not a checkpoint, and never fails."""
        self.wanted.add(channel)
        self._touch(channel)

    def unwant(self, channel: bytes) -> None:
        """Have it unsubscribed. Not a checkpoint, and never fails."""
        self.wanted.discard(channel)
        self._touch(channel)

    def _touch(self, channel: bytes) -> None:
        self._dirty.add(channel)
        self._changed.set()

    async def _keep_subscribed(self, connection: BaseConnection) -> None:
        """Make what the server has what is wanted, for as long as the session lasts."""
        while True:
            # First of all: what changes from here on, also where on_resume is called, sets it.
            self._changed = trio.Event()
            while self._dirty:
                some = list(islice(self._dirty, KEYS_AT_ONCE))
                self._dirty.difference_update(some)
                await self._subscribe(connection, some)
            if self.failure is not None:
                self.failure = None
                self.was_of_use = True
                self._owner._on_up(self)
            with trio.move_on_after(self._timeout) as idle:
                await self._changed.wait()
            if idle.cancelled_caught:
                await self._answers(connection)

    async def _subscribe(self, connection: BaseConnection, channels: list[bytes]) -> None:
        """One round: at most one command for each channel. The next begins when the server has
        answered this one, so what it has is never other than `_asked` says, and a push that says
        "subscribed" is of the last time that it was asked for.

        A channel may be joined and left any number of times during a round: it is looked at
        again in the next, and then only the outcome counts."""
        leaving = [it for it in channels if it in self._asked and it not in self.wanted]
        joining = [it for it in channels if it in self.wanted and it not in self._asked]
        # Before it is sent: from here on it may lapse, so nobody may rely on it.
        self._asked.difference_update(leaving)
        self.confirmed.difference_update(leaving)
        self._leaving.update(leaving)
        self._asked.update(joining)
        self._send(connection, self._verbs.unsubscribe, leaving)
        self._send(connection, self._verbs.subscribe, joining)
        failures = await self._answers(connection)
        self._leaving.clear()
        if failures:
            await self._cope(connection, failures, joining)

    def _send(self, connection: BaseConnection, verb: bytes, channels: list[bytes]) -> None:
        if channels and self._verbs.together:
            connection.send_command(verb, *channels)
        else:
            for channel in channels:
                connection.send_command(verb, channel)

    async def _answers(self, connection: BaseConnection) -> list[BaseException]:
        """Wait until the server has answered everything that it was sent, and return the errors.
        What it subscribed it has pushed by then.

        An error is the answer to nothing that coredis knows of. So the first one takes the place
        of the answer to PING, and what follows it, that answer too, is what coredis calls
        streamed."""
        try:
            await request(connection, b"PING", seconds=self._timeout, disconnect=True)
        except BusyLoadingError:
            raise  # a server that loads what it kept refuses PING itself, and nothing follows
        except RedisError as exc:
            failures: list[BaseException] = [exc]
        else:
            return []
        with trio.move_on_after(self._timeout) as waiting:
            async with aclosing(connection.streamed_messages) as rest:
                async for answer in rest:
                    if not isinstance(answer, BaseException):
                        break
                    failures.append(answer)
        if waiting.cancelled_caught:
            raise failures[-1]  # it was the answer to PING: there is no permission for it
        return failures

    async def _cope(
        self, connection: BaseConnection, failures: list[BaseException], joining: list[bytes]
    ) -> None:
        """Some were not subscribed."""
        refused = [it for it in joining if it not in self.confirmed]
        self._asked.difference_update(refused)
        if all(isinstance(it, ELSEWHERE) for it in failures):
            self._owner._on_moved(refused)
        elif any(passes(it) for it in failures):
            raise failures[0]
        elif len(refused) > 1:
            for channel in refused:
                await self._subscribe(connection, [channel])
        else:
            # Not again before the next session: whatever was missing is given to a user by hand.
            for channel in refused:
                self._asked.add(channel)
                self._owner._on_refused(channel, BrokerRefused(str(failures[0])))

    def _on_push(self, push: list[Any]) -> None:
        """Called while coredis parses: nothing may be raised here."""
        try:
            kind, channel, content = push
            if kind in (b"message", b"smessage"):
                self._owner._on_message(channel, content)
            elif kind in (b"subscribe", b"ssubscribe"):
                self.confirmed.add(channel)
                self.was_of_use = True
                self._owner._on_confirmed(channel)
            elif kind == b"sunsubscribe" and channel not in self._leaving:
                # Its slot went to another server.
                self._asked.discard(channel)
                self.confirmed.discard(channel)
                if channel in self.wanted:
                    self._owner._on_moved([channel])
        except Exception as exc:
            self._owner._on_malformed(exc)

    # --- publishing ----------------------------------------------------------------

    def publish(self, message: tuple[bytes, bytes]) -> None:
        """Have it published. Not a checkpoint, and never fails."""
        if dropped := self.outbox.put(message):
            self._owner._on_dropped(dropped, FULL)
        if self._free is not None:
            self._begin_batch(self._free)

    async def _publish_all(self, settling: float, session: _Session) -> None:
        """Publish what is there, and what comes, in order.

        After an outage the other nodes, which pause as long as we do between attempts, are still
        about to connect and to subscribe, and what is published before that is lost to them: so
        they are given as long as the last pause.

        One batch at a time: what comes while the server has one goes with the next. So many
        messages cost little each; and one by itself goes at once, from where it is broadcast,
        without a turn of Trio's loop for this task."""
        connection = session.commander
        await trio.sleep(settling)
        try:
            while True:
                self._begun = trio.Event()
                if self.outbox:
                    # Under load what comes in one more turn goes along: fewer batches, of more.
                    await trio.lowlevel.checkpoint()
                    self._begin_batch(connection)
                else:
                    self._free = connection
                with trio.move_on_after(self._timeout):
                    await self._begun.wait()
                if self._batch is None:
                    # Nobody else finds out that this connection hangs, and the other does not.
                    await request(connection, b"PING", seconds=self._timeout, disconnect=True)
                else:
                    await self._wait_for_batch(self._batch)
        finally:
            self._free = None
            if self._batch is not None:
                self._end_batch(self._batch, [])  # some may have been published

    def _begin_batch(self, connection: BaseConnection) -> None:
        self._free = None
        messages = self.outbox.take(BATCH_COUNT, BATCH_BYTES)
        commands = [_Publish(self._verbs.publish, it) for it in messages]
        try:
            answers = connection.create_request_batch(cast("Any", commands), timeout=self._timeout)
        except FAILURES as exc:
            # It was lost, and nothing was sent.
            if dropped := self.outbox.put_back(messages):
                self._owner._on_dropped(dropped, FULL)
            self._end(exc)
        else:
            self._batch = _Batch(messages, answers)
            self._begun.set()

    async def _wait_for_batch(self, batch: _Batch) -> None:
        answers = await batch.answers
        self._end_batch(batch, answers)
        for it in answers:
            if isinstance(it, BaseException) and not is_answer(it):
                raise ConnectionResetError(describe(it)) from it

    def _end_batch(self, batch: _Batch, answers: list[Any]) -> None:
        self._batch = None
        self._room.unpark_all()
        self._count(answers or [Down()] * len(batch.messages), batch.messages)

    def _count(self, answers: list[Any], messages: list[tuple[bytes, bytes]]) -> None:
        published = unconfirmed = 0
        for answer, message in zip(answers, messages, strict=True):
            if not isinstance(answer, BaseException):
                published += 1
            elif isinstance(answer, ELSEWHERE):
                self._owner._publish_again(message)  # it was not
            elif not is_answer(answer):
                unconfirmed += 1
            else:
                self._owner._on_dropped(1, str(answer))
        self._owner._on_published(published)
        self._owner._on_unconfirmed(unconfirmed)

    async def drain(self) -> None:
        """Wait until everything is published, or the session has ended."""
        while self.session is not None and (self.outbox or self._batch is not None):
            await self._room.park()

    # --- commands --------------------------------------------------------------------

    async def call(self, name: bytes, *arguments: bytes | str | int) -> Any:
        """Have a command carried out. Waits for its turn, and for the answer. If this is
        cancelled, it may be carried out all the same.

        Raises:
          Down: there is no session, or it ended before the answer.
          RedisError: it is the answer.
        """
        command = _Command(name, arguments)
        # Held until the answer, not until the caller leaves: what waits in coredis is bounded.
        await self._commands.acquire()
        if self.session is None:
            self._commands.release()
            raise Down
        self.session.nursery.start_soon(self._call, self.session.commander, command)
        await command.done.wait()
        if command.failure is not None:
            raise command.failure
        return command.answer

    async def _call(self, connection: BaseConnection, command: _Command) -> None:
        command.failure = Down()  # if this is cancelled
        try:
            command.answer = await request(
                connection, command.name, *command.arguments, seconds=self._timeout
            )
            command.failure = None
        except RedisError as exc:
            command.failure = exc
        except OSError as exc:
            self._end(exc)
        finally:
            command.done.set()
            self._commands.release()

    # --- sessions --------------------------------------------------------------------

    async def wait_up(self) -> None:
        """Wait until there is a session, or will never be one."""
        if self.session is None:
            await self._up_changed.wait()

    async def run(self) -> None:
        """One session after another."""
        with self.scope:
            delay = FIRST_DELAY
            while True:
                lasted = await self._session(settling=delay)
                delay = FIRST_DELAY if lasted else min(2 * delay, self._max_delay)
                # Spread: all nodes lose a broker in the same moment.
                await trio.sleep(delay * random.uniform(0.5, 1))

    async def _session(self, *, settling: float) -> bool:
        """Connect, and work until a connection is lost. Return whether everything was
        subscribed before."""
        self._ending = None
        session: _Session | None = None
        try:
            async with trio.open_nursery() as nursery:
                session = await self._open(nursery)
                if session is not None:
                    self._begin(session, settling)
                    await self._wait_for_the_end()
        finally:
            lasted = session is not None and self.failure is None
            self._close()
            self.tried.set()
        return lasted

    async def _wait_for_the_end(self) -> None:
        """As long as this waits, `call` can start a task in the session's nursery: a nursery is
        closed when its block and all its tasks have ended, which is before the task that has it
        goes on. Others may run in between, and shall find no session then."""
        try:
            await trio.sleep_forever()
        finally:
            self.session = None

    async def _open(self, nursery: trio.Nursery) -> _Session | None:
        self._session_scope = nursery.cancel_scope
        try:
            with trio.fail_after(self._timeout):
                location = await self._find()
                subscriber = make_connection(location, self._settings, self._on_push)
                await nursery.start(hold, subscriber, self._end)
                commander = make_connection(location, self._settings)
                await nursery.start(hold, commander, self._end)
        except FAILURES as exc:
            if isinstance(exc, trio.TooSlowError):
                exc = TimeoutError(f"the broker did not answer in {self._timeout} seconds")
            self._end(exc)
            return None
        return _Session(nursery, location, subscriber, commander)

    def _begin(self, session: _Session, settling: float) -> None:
        self.was_before = self.was_of_use
        if not self.was_before:
            settling = 0
        self._dirty = set(self.wanted)
        self.failure = self.failure or Down()
        self.session = session
        self._up_changed.set()
        self.tried.set()
        session.nursery.start_soon(self._guard, self._keep_subscribed, session.subscriber)
        session.nursery.start_soon(self._guard, partial(self._publish_all, settling), session)

    async def _guard(self, work: Callable[[Any], Awaitable[None]], given: Any) -> None:
        """A failure of the broker ends the session, and any other is a fault of ours."""
        try:
            await work(given)
        except FAILURES as exc:
            self._end(exc)

    def _end(self, failure: BaseException) -> None:
        """End the session. The first reason counts."""
        if self._ending is None:
            self._ending = failure
            self.session = self._free = None
            self._session_scope.cancel()

    def _close(self) -> None:
        # After an attempt that failed it is what those wait for who came before it, still.
        if self._up_changed.is_set():
            self._up_changed = trio.Event()
        self._room.unpark_all()
        self._asked.clear()
        self.confirmed.clear()
        self._leaving.clear()
        if self._ending is not None:
            self.failure = self._ending
            self._owner._on_down(self, self._ending)

    def close(self) -> None:
        """Wake those who wait for a session: there will be none."""
        self._up_changed.set()
