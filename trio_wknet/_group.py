"""Groups: one message to many connections, sent by the reactors.

Members, and the jobs that reactors are given, are in the native base (`group.pyx`); here is what
need not be fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args

import attrs
import trio

from trio_wknet._errors import BroadcastIncomplete
from trio_wknet._native.trio.group import Broadcasting, Members
from trio_wknet._native.trio.latch import Latch
from trio_wknet._tls_conn import TLSConn

if TYPE_CHECKING:
    import sys
    from collections.abc import Callable, Hashable, Iterable, Iterator
    from typing import TypeAlias

    from trio_wknet._conn import Conn
    from trio_wknet._engine import Engine
    from trio_wknet._frame_channel import FrameChannel
    from trio_wknet._websocket.channel import WebSocket

    if sys.version_info >= (3, 12):
        from collections.abc import Buffer
    else:
        from typing_extensions import Buffer

    Member: TypeAlias = "Conn | FrameChannel | WebSocket"

WhenSlow = Literal["skip", "close", "error"]
MAX_PENDING = 16 * 1024 * 1024


@attrs.frozen(kw_only=True)
class BroadcastResult:
    """What became of a broadcast: how many members there were of each kind."""

    sent: int
    """The kernel took the message at once."""
    queued: int
    """It was queued behind what is unsent for them, and will be sent."""
    skipped: int
    """They were slow: with it, more than ``limits.outbound`` bytes would have been unsent.
    Nothing of it was sent to them."""
    closed: int
    """They had ended, or their connection broke; or they were slow, and were closed for it
    (``when_slow="close"``)."""


class Broadcast(Broadcasting):
    """A broadcast in progress. `Group.broadcast_nowait` returns one. It goes on whether
    anybody waits or not."""

    def __init__(self, *_: NoReturn, **__: NoReturn) -> None:
        raise TypeError("a Broadcast cannot be constructed; Group.broadcast_nowait returns one")

    _engine: Engine
    _done: Latch
    _fails: bool

    @classmethod
    def _of(cls, engine: Engine, *, fails: bool) -> Broadcast:
        broadcast = cls.__new__(cls)
        broadcast._engine = engine
        broadcast._done = Latch(engine._core)
        broadcast._fails = fails
        return broadcast

    async def wait(self) -> BroadcastResult:
        """Wait until the message was given to the kernel, or queued, for each member. A
        checkpoint. Cancelling it does not cancel the sending.

        Returns:
          A `BroadcastResult`.

        Raises:
          BroadcastIncomplete: some members were slow, and the broadcast was begun with
              ``when_slow="error"``. The others have it.
          RuntimeError: it is in progress, and this was called in another thread, or in a
              forked child.
        """
        if not self._is_done():
            self._engine._core.ensure_usable()
        await self._done.wait()
        sent, queued, skipped, closed = self._counts()
        result = BroadcastResult(sent=sent, queued=queued, skipped=skipped, closed=closed)
        if self._fails and skipped:
            raise BroadcastIncomplete(result)
        return result


class Group(Members):
    """Connections that get the same messages. `Engine.group` makes one.

    Members are `Conn`, `FrameChannel` and `WebSocket` objects of one engine, which get a
    message as bytes, as a frame, and as a WebSocket's message. A connection is a member at
    most once, leaves by itself when it is closed, and may be in any number of groups.
    Joining, leaving and ``in`` take constant time, and a group keeps no object alive: in
    event mode a member without an object costs about 100 bytes.

    ``len(group)``, ``member in group``, and iteration, over the `Conn` objects of those who
    were members when it began and still are.

    Its methods raise `RuntimeError` in another thread than the engine's, in a forked child, and
    once the engine is closed.
    """

    __slots__ = ("__weakref__", "_engine", "_turn", "_waiter")

    def __init__(self, *_: NoReturn, **__: NoReturn) -> None:
        raise TypeError("a Group cannot be constructed; Engine.group makes one")

    @classmethod
    def _of(
        cls, engine: Engine, max_pending: int, on_empty: Callable[[], object] | None = None
    ) -> Group:
        if isinstance(max_pending, bool) or not isinstance(max_pending, int):
            raise TypeError(f"max_pending must be an integer, not {max_pending!r}")
        if max_pending < 0:
            raise ValueError(f"max_pending must be 0 or more, not {max_pending}")
        group = cls.__new__(cls)
        group._engine = engine
        group._turn = trio.StrictFIFOLock()
        group._waiter = None
        group._begin(engine._core, max_pending, group._made_room, on_empty)
        return group

    _engine: Engine
    _turn: trio.StrictFIFOLock
    _waiter: Latch | None

    def __repr__(self) -> str:
        return f"<trio_wknet.Group of {len(self)}>"

    # --- members -------------------------------------------------------------

    def add(self, member: Member) -> None:
        """Add a connection. Not a checkpoint. Idempotent; added again as another kind of
        member, it gets messages in that form from then on.

        Args:
          member: a `Conn`, which gets the bytes as they are; a `FrameChannel`, which gets a
              frame, until it is unframed; or a `WebSocket`, which gets a message,
              uncompressed.

        Raises:
          TypeError: it is none of these.
          ValueError: it belongs to another engine.
          trio.BusyResourceError: it is under a `TLSStream` (`Conn.start_tls`): reactors do not
              encrypt.
          trio.ClosedResourceError: it was closed here.
        """
        if isinstance(member, TLSConn):
            raise trio.BusyResourceError(
                "member must be a connection without TLS: its bytes are those of its TLSStream"
            )
        self._join(member)

    def discard(self, member: Member) -> None:
        """Remove a connection, if it is a member. Not a checkpoint. Broadcasts that were begun
        before still go to it.

        Args:
          member: any object of the connection, whichever was added.

        Raises:
          TypeError: it is none of the kinds that `add` takes.
        """
        self._leave(member)

    def __contains__(self, member: object) -> bool:
        try:
            return self._has(member)  # type: ignore[arg-type]
        except TypeError:
            return False

    def __bool__(self) -> bool:
        return True  # a group that nobody is in yet is one

    def __iter__(self) -> Iterator[Conn]:
        connections = self._engine.connections
        for handle in self._handles():
            conn = connections.get(handle)
            if conn is not None and self._has(conn):
                yield conn

    # --- broadcasts ----------------------------------------------------------

    def broadcast_nowait(
        self, data: str | Buffer, *, exclude: Iterable[Member] = (), when_slow: WhenSlow = "skip"
    ) -> Broadcast:
        """Send a message to all members. Not a checkpoint.

        It is written once for each form that members need, and given to the reactors, which
        send it, without the GIL. What a kernel does not take at once is queued for that
        member, within its ``limits.outbound``. What is sent to a member later, by whatever
        method, goes behind it, and so does closing it by `Conn.aclose`.

        Args:
          data: contiguous and bytes-like, or a `str`: a WebSocket gets a `str` as text, and
              bytes as binary; others get a `str` in UTF-8. It may be changed once this has
              returned.
          exclude: members that do not get it; others in it are ignored. Default: none.
          when_slow: what happens to a member for which more than its ``limits.outbound``
              bytes would be unsent. ``"skip"``, the default: it does not get this message.
              ``"close"``: it is closed with a reset, and ``close_reason`` ``"slow"``.
              ``"error"``: it does not get it, and `Broadcast.wait` raises
              `BroadcastIncomplete`.

        Returns:
          The `Broadcast`, to wait for.

        Raises:
          trio.WouldBlock: broadcasts of this group that are in progress hold more than
              ``max_pending`` bytes with this one, or a task waits in `broadcast` for that.
              Nobody gets it.
          ValueError: members cannot get it in their framing (too long for it, for example);
              or ``when_slow`` is none of these. Nobody gets it.
          TypeError: ``data`` is neither, or ``exclude`` holds something else.
        """
        fails = _fails(when_slow)
        if self._turn.locked():
            raise trio.WouldBlock
        return self._broadcast(data, exclude, when_slow, fails=fails)

    async def broadcast(
        self, data: str | Buffer, *, exclude: Iterable[Member] = (), when_slow: WhenSlow = "skip"
    ) -> Broadcast:
        """Send like `broadcast_nowait`, once there is room for the message. A checkpoint.
        Callers get their turns in order. If it is cancelled, nobody gets the message.

        Args:
          data: as there. It must not change until this returns.
          exclude: as there; default: none.
          when_slow: as there; default ``"skip"``.

        Returns:
          The `Broadcast`, to wait for.

        Raises:
          ValueError, TypeError: as there.
        """
        self._engine._core.ensure_usable()
        fails = _fails(when_slow)
        excluded = tuple(exclude)
        async with self._turn:
            while True:
                try:
                    return self._broadcast(data, excluded, when_slow, fails=fails)
                except trio.WouldBlock:
                    self._waiter = Latch(self._engine._core)
                    await self._waiter.wait()

    def _broadcast(
        self, data: str | Buffer, exclude: Iterable[Member], when_slow: WhenSlow, *, fails: bool
    ) -> Broadcast:
        broadcast = Broadcast._of(self._engine, fails=fails)
        self._start(broadcast, data, exclude, when_slow == "close", broadcast._done.set)
        return broadcast

    def _made_room(self) -> None:
        if self._waiter is not None:
            self._waiter.set()


def _fails(when_slow: str) -> bool:
    if when_slow not in get_args(WhenSlow):
        raise ValueError(f"when_slow must be 'skip', 'close' or 'error', not {when_slow!r}")
    return when_slow == "error"


class Groups(Mapping[Any, Group]):
    """An engine's groups by key, each of which exists while it has members: topics, rooms,
    symbols. `Engine.groups` is one.

    A dict of your own would have to be told when the last member of a group has closed its
    connection. Here joining makes the group, and the last one who leaves ends it::

        engine.groups.join("room 7", ws)
        if "room 7" in engine.groups:
            engine.groups["room 7"].broadcast_nowait("hello")

    A key without members raises `KeyError`. A `Group` that was kept beyond the departure of its
    last member is not in the mapping any more.
    """

    def __init__(self, *_: NoReturn, **__: NoReturn) -> None:
        raise TypeError("Groups cannot be constructed; it is Engine.groups")

    @classmethod
    def _of(cls, engine: Engine) -> Groups:
        groups = cls.__new__(cls)
        groups._engine = engine
        groups._groups = {}
        return groups

    _engine: Engine
    _groups: dict[Any, Group]

    def join(self, key: Hashable, member: Member) -> Group:
        """Add a connection to the group with this key, which is made if there is none. Not a
        checkpoint.

        Args:
          key: any hashable object.
          member: as `Group.add` takes it.

        Returns:
          The group.

        Raises:
          TypeError, ValueError, trio.ClosedResourceError: as `Group.add` does. Then no group
              was made.
        """
        group = self._groups.get(key)
        if group is None:
            group = Group._of(self._engine, MAX_PENDING, partial(self._ended, key))
            group.add(member)
            self._groups[key] = group
        else:
            group.add(member)
        return group

    def _ended(self, key: Hashable) -> None:
        # One that was kept beyond its end, and joined again, may end a second time.
        group = self._groups.get(key)
        if group is not None and len(group) == 0:
            del self._groups[key]

    def leave(self, key: Hashable, member: Member) -> None:
        """Remove a connection from the group with this key, if it is a member of it. Not a
        checkpoint.

        Args:
          key: any hashable object.
          member: as `Group.discard` takes it.

        Raises:
          TypeError: ``member`` is none of the kinds of members.
        """
        group = self._groups.get(key)
        if group is not None:
            group.discard(member)

    def __getitem__(self, key: Hashable) -> Group:
        return self._groups[key]

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._groups))

    def __repr__(self) -> str:
        return f"<trio_wknet.Groups {list(self._groups)!r}>"
