"""Connections for commands that wait at the server: each has one for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from trio_wknet.contrib.redis._connection import hold, make_connection

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

    async def ask(self, location: Location, name: bytes, *arguments: bytes | str | int) -> Any:
        """Have a command carried out that waits for at most `timeout` seconds at the server.

        Raises:
          FAILURES: it had no answer, or a bad one.
        """
        connection = await self._open(location)
        answered = False
        try:
            answer = await connection.create_request(
                name, *arguments, timeout=2 * self._timeout, raise_exceptions=False
            )
            answered = True
        finally:
            # Without an answer, the next command on it would get that of this one.
            if answered and connection.usable and len(self._idle) < IDLE:
                self._idle.append(connection)
            else:
                connection.invalidate()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def _open(self, location: Location) -> BaseConnection:
        self._idle = [it for it in self._idle if it.usable]
        for index, connection in enumerate(self._idle):
            if connection.location == location:
                return self._idle.pop(index)
        connection = make_connection(location, self._settings)
        with trio.fail_after(self._timeout):
            await self._nursery.start(hold, connection, lambda exc: None)
        return connection
