"""What the service remembers, and how a message reaches members, in one process: SQLite, which
works in a thread so that nobody waits for the disk but who asked, and the engine's groups.

Keys are of rooms ("room:lobby") and of users' private messages ("user:ann").
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from functools import partial

import trio

from trio_wknet import Engine, FrameChannel, WebSocket

from .protocol import with_id

KEPT = 1000  # messages of a room
SHOWN = 50  # of them that a client gets at most when it joins
TABLES = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS facts(key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS messages(key TEXT, id INTEGER, body TEXT, PRIMARY KEY(key, id))
    WITHOUT ROWID;
"""
APPEND = """
INSERT INTO messages SELECT ?1, coalesce(max(id), 0) + 1, ?2 FROM messages WHERE key = ?1
    RETURNING id
"""

# Either may be in a group: each member gets a text in its form, framed once for all.
Member = FrameChannel | WebSocket


class LocalStore:
    node = ""

    def __init__(self, engine: Engine, database: sqlite3.Connection) -> None:
        self.join, self.leave = engine.groups.join, engine.groups.leave
        self._groups = engine.groups
        self._db = database
        self._in_thread = partial(trio.to_thread.run_sync, limiter=trio.CapacityLimiter(1))

    async def once(self, key: str, value: str) -> str:
        """Set a value unless there is one, and return the one that is there."""
        return await self._in_thread(self._once, key, value)

    def _once(self, key: str, value: str) -> str:
        with self._db:
            self._db.execute("INSERT OR IGNORE INTO facts VALUES (?, ?)", (key, value))
        found = self._db.execute("SELECT value FROM facts WHERE key = ?", (key,))
        return str(found.fetchone()[0])

    async def append(self, messages: Sequence[tuple[str, str]]) -> list[str]:
        """Keep messages, each behind a key, and return their ids."""
        return await self._in_thread(self._append, messages)

    def _append(self, messages: Sequence[tuple[str, str]]) -> list[str]:
        ids = []
        with self._db:  # one transaction for all of them
            for key, message in messages:
                ((id,),) = self._db.execute(APPEND, (key, message)).fetchall()
                self._db.execute("DELETE FROM messages WHERE key = ? AND id <= ?", (key, id - KEPT))
                ids.append(str(id))
        return ids

    async def since(self, key: str, after: str | None) -> list[str]:
        """The last messages behind that id, with their ids."""
        return await self._in_thread(self._since, key, int((after or "0").partition("-")[0]))

    def _since(self, key: str, after: int) -> list[str]:
        rows = self._db.execute(
            "SELECT id, body FROM messages WHERE key = ? AND id > ? ORDER BY id DESC LIMIT ?",
            (key, after, SHOWN),
        )
        return [with_id(str(id), body) for id, body in rows][::-1]

    async def broadcast(self, key: str, text: str) -> None:
        """Send a text to all members. Who is too slow for it is closed."""
        if group := self._groups.get(key):  # else nobody is there
            await group.broadcast(text, when_slow="close")

    async def note(self, parts: dict[str, str], life: float) -> None:
        """What other nodes are to say, for some seconds, of who is in rooms by this one."""

    async def others(self, room: str) -> list[str]:
        """What other nodes have noted of a room."""
        return []


@asynccontextmanager
async def open_local(path: str, engine: Engine) -> AsyncIterator[LocalStore]:
    """Two processes may have the same file open, as while a new version takes over."""
    with closing(sqlite3.connect(path, timeout=10, check_same_thread=False)) as database:
        database.executescript(TABLES)
        yield LocalStore(engine, database)
