"""What listeners share that are over a `Listener`: what they accept is made of its
connections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import trio

if TYPE_CHECKING:
    from trio_wknet._listener import Listener
    from trio_wknet._sockets.address import SocketAddress
    from trio_wknet._statistics import ListenerStatistics


class OverListener(trio.abc.AsyncResource):
    """The listener's own end and facts are those of the one below."""

    listener: Any  # a Listener, or another one of these

    async def drain(self) -> None:
        """Stop accepting, and wait until the accepted connections have been served, like
        `Listener.drain`. A checkpoint.

        Raises:
          RuntimeError: if called from a handler, which it would wait for; or from another
              thread.
        """
        await self.listener.drain()

    async def aclose(self) -> None:
        """Stop listening, like `Listener.aclose`. A checkpoint.

        Raises:
          RuntimeError: if called from another thread.
        """
        await self.listener.aclose()

    @property
    def address(self) -> SocketAddress:
        """The first address, as `Listener.address`."""
        address: SocketAddress = self.listener.address
        return address

    @property
    def addresses(self) -> list[SocketAddress]:
        """All addresses that it is bound to, each once."""
        addresses: list[SocketAddress] = self.listener.addresses
        return addresses

    def statistics(self) -> ListenerStatistics:
        """Return a snapshot of the listener's counters. Not a checkpoint.

        Returns:
          A `ListenerStatistics`.

        Raises:
          RuntimeError: if called from another thread.
        """
        statistics: ListenerStatistics = self.listener.statistics()
        return statistics


@attrs.frozen
class Started:
    """A task status that is started with the listener that was asked to serve, not the one
    below."""

    outer: trio.TaskStatus[Any]
    listener: OverListener

    def started(self, value: Listener | OverListener | None = None) -> None:
        self.outer.started(self.listener)
