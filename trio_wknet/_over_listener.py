"""What listeners share that are over a `Listener`: what they accept is made of its
connections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import trio

if TYPE_CHECKING:
    from trio_wknet._engine import Engine
    from trio_wknet._listener import Listener
    from trio_wknet._sockets.address import SocketAddress
    from trio_wknet._statistics import ListenerStatistics


class OverListener(trio.abc.AsyncResource):
    """The listener's own end and facts are those of the one below."""

    listener: Any  # a Listener, or another one of these

    async def drain(self, *, grace: float | None = None) -> int:
        """Stop accepting, and wait until the accepted connections have been served, like
        `Listener.drain`. A checkpoint. Handshakes that are under way count as connections.

        Args:
          grace: seconds after which those that are left are cut off, from 0 to 86400; None, the
              default: it waits without bound.

        Returns:
          How many connections were cut off.

        Raises:
          TypeError, ValueError: if ``grace`` is invalid.
          RuntimeError: if called from a handler, which it would wait for; or from another
              thread.
        """
        cut: int = await self.listener.drain(grace=grace)
        return cut

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

    @property
    def engine(self) -> Engine:
        """The `Engine` that it belongs to."""
        engine: Engine = self.listener.engine
        return engine

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
