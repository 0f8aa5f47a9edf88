"""Connections for commands that wait at the server: each has one for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio
from coredis.exceptions import RedisError

from trio_wknet.contrib.redis._connection import hold, make_connection, request

if TYPE_CHECKING:
    from coredis.connection import BaseConnection, Location

    from trio_wknet.contrib.redis._connection import Settings

IDLE = 8  # kept for the next


class Readers:
    def __init__(self, nursery: trio.Nursery, settings: Settings, timeout: float) -> None:
        self._nursery = nursery
        self._settings = settings
        self._timeout = timeout
        self._idle: list[BaseConnection] = []
        self._opening: set[trio.CancelScope] = set()

    def close(self) -> None:
        """Give up what is being opened: it would keep the nursery open, too."""
        for scope in self._opening:
            scope.cancel()

    async def ask(self, location: Location, name: bytes, *arguments: bytes | str | int) -> Any:
        """Have a command carried out that waits for at most `timeout` seconds at the server.

        Raises:
          FAILURES: it had no answer, or a bad one.
        """
        connection = await self._open(location)
        answered = False
        try:
            answer = await request(connection, name, *arguments, seconds=2 * self._timeout)
            answered = True
        except RedisError:
            answered = True
            raise
        finally:
            # Without an answer it may hang, and the next command on it would, too.
            if answered and connection.usable and len(self._idle) < IDLE:
                self._idle.append(connection)
            else:
                connection.invalidate()
        return answer

    async def _open(self, location: Location) -> BaseConnection:
        self._idle = [it for it in self._idle if it.usable]
        for index, connection in enumerate(self._idle):
            if connection.location == location:
                return self._idle.pop(index)
        connection = make_connection(location, self._settings)
        with trio.fail_after(self._timeout) as scope:
            self._opening.add(scope)
            try:
                await self._nursery.start(hold, connection, lambda exc: None)
            finally:
                self._opening.remove(scope)
        return connection
