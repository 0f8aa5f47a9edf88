"""A group whose members are connected to several nodes."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, NoReturn, cast

import trio

from trio_wknet._group import Group

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trio_wknet._group import Broadcast, Member, WhenSlow
    from trio_wknet.contrib.redis._cluster import Cluster

    if sys.version_info >= (3, 12):
        from collections.abc import Buffer
    else:
        from typing_extensions import Buffer


class ClusterGroup(Group):
    """Connections that get the same messages, on whichever node of the cluster they are.
    `Cluster.group` gives one. It is a `trio_wknet.Group`, and differs from other groups in what
    follows.

    - A broadcast goes to the members here, as in any group, and through the broker to those on
      other nodes, at most once. It never waits for the broker: if too much waits to be
      published, the oldest of it is dropped (`open_cluster`).
    - ``len``, ``in`` and iteration are about the members here; and so are ``exclude``, the
      `trio_wknet.BroadcastResult` and ``pending``.
    - ``when_slow="close"`` is for slow members everywhere. With ``"error"`` they are skipped on
      other nodes, and only those here are reported.
    - Members of one node get the messages of another in the order in which they were broadcast
      there. But a node does not wait for its own messages to come back: members on different
      nodes may see the messages of different nodes in different orders.
    - There is one subscription for the group from its first member here until its last one
      leaves. A node without members may broadcast.

    Messages that are broadcast elsewhere reach a member once the broker has confirmed the
    subscription: see `wait_subscribed`.
    """

    __slots__ = ("_channel", "_cluster", "_key")

    _cluster: Cluster
    _channel: bytes
    _key: str

    @classmethod
    def _in(cls, cluster: Cluster, key: str, max_pending: int) -> ClusterGroup:
        channel = cluster._channel_of(key)
        on_empty = partial(cluster._on_empty, channel)
        group = cast("ClusterGroup", cls._of(cluster.engine, max_pending, on_empty))
        group._cluster = cluster
        group._channel = channel
        group._key = key
        return group

    def __init__(self, *_: NoReturn, **__: NoReturn) -> None:
        raise TypeError("a ClusterGroup cannot be constructed; Cluster.group gives one")

    def __repr__(self) -> str:
        return f"<trio_wknet.contrib.redis.ClusterGroup {self._key!r}, {len(self)} here>"

    @property
    def key(self) -> str:
        """What it is called on all nodes."""
        return self._key

    def add(self, member: Member) -> None:
        """Add a connection of this node. Not a checkpoint. Idempotent. The first one has the
        group subscribed.

        Args:
          member: as `trio_wknet.Group.add` takes it.

        Raises:
          TypeError, ValueError, trio.BusyResourceError: as there.
          trio.ClosedResourceError: as there, or the cluster is closed.
        """
        self._cluster._ensure_open()
        super().add(member)
        self._cluster._on_joined(self)

    async def wait_subscribed(self) -> None:
        """Wait until the broker has confirmed the subscription: messages that are broadcast
        elsewhere from now on get here. A checkpoint.

        In an outage this waits until it is over. A history that is read after it, and everything
        that arrives, overlap without a gap.

        Raises:
          BrokerRefused: the broker does not permit it.
          RuntimeError: the group has no members here.
          trio.ClosedResourceError: the cluster is closed, before or during the call.
        """
        await trio.lowlevel.checkpoint()
        await self._cluster._wait_confirmed(self._channel)

    def _broadcast(
        self, data: str | Buffer, exclude: Iterable[Member], when_slow: WhenSlow, *, fails: bool
    ) -> Broadcast:
        self._cluster._ensure_open()
        # First here: if nobody may get it, nobody elsewhere does.
        broadcast = super()._broadcast(data, exclude, when_slow, fails=fails)
        self._cluster._publish(self._channel, data, closes_slow=when_slow == "close")
        return broadcast

    def _deliver(self, data: str | Buffer, *, closes_slow: bool) -> None:
        """What was broadcast elsewhere."""
        super()._broadcast(data, (), "close" if closes_slow else "skip", fails=False)
