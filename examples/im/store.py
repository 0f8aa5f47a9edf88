"""What the service remembers, and how a message reaches members: `Store`. Here in its form for
one process: messages and names in SQLite, which works in a thread, so that nobody waits for the
disk but who asked.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, closing
from typing import Protocol

import trio

from trio_wknet import Engine, FrameChannel, WebSocket

from .protocol import with_id

KEPT = 1000  # messages of a room
SHOWN = 50  # of them that a client gets at most when it joins

# Either may be in a group: each member gets a text in its form, framed once for all.
Member = FrameChannel | WebSocket


class Store(Protocol):
    """Keys are of rooms ("room:lobby") and of users' private messages ("user:ann")."""

    async def secret(self) -> bytes:
        """What tokens are signed with, always the same."""

    async def claim(self, name: str) -> bool:
        """Give a name away, once."""

    async def append(self, messages: Sequence[tuple[str, str]]) -> list[str]:
        """Keep messages, each behind a key, and return their ids."""

    async def since(self, key: str, after: str | None) -> list[str]:
        """The last messages behind that id, with their ids."""

    def join(self, key: str, member: Member) -> None: ...

    def leave(self, key: str, member: Member) -> None: ...

    async def broadcast(self, key: str, text: str) -> None:
        """Send a text to all members. Who is too slow for it is closed."""

    async def note(self, room: str, came: Iterable[str], left: Iterable[str]) -> None:
        """Who has come to this node's part of a room, or left it."""

    async def others(self, room: str) -> set[str]:
        """Who is in a room on other nodes."""


class Database:
    """The half of a `Store` that remembers."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self._turn = trio.CapacityLimiter(1)  # one thread at a time
        self._grown: dict[str, int] = {}

    async def append(self, messages: Sequence[tuple[str, str]]) -> list[str]:
        return await trio.to_thread.run_sync(self._append, messages, limiter=self._turn)

    async def since(self, key: str, after: str | None) -> list[str]:
        return await trio.to_thread.run_sync(self._since, key, after, limiter=self._turn)

    async def claim(self, name: str) -> bool:
        return await trio.to_thread.run_sync(self._claim, name, limiter=self._turn)

    async def secret(self) -> bytes:
        return await trio.to_thread.run_sync(self._secret, limiter=self._turn)

    def _append(self, messages: Sequence[tuple[str, str]]) -> list[str]:
        ids = []
        with self._db:  # one transaction for all of them
            for message in messages:
                cursor = self._db.execute("INSERT INTO messages(key, body) VALUES (?, ?)", message)
                ids.append(str(cursor.lastrowid))
                self._trim(message[0])
        return ids

    def _trim(self, key: str) -> None:
        """From time to time, remove what is older than what is kept."""
        grown = self._grown[key] = self._grown.get(key, 0) + 1
        if grown < KEPT / 10:
            return
        del self._grown[key]
        oldest = "SELECT id FROM messages WHERE key = ? ORDER BY id DESC LIMIT 1 OFFSET ?"
        self._db.execute(
            f"DELETE FROM messages WHERE key = ? AND id <= ({oldest})", (key, key, KEPT)
        )

    def _since(self, key: str, after: str | None) -> list[str]:
        rows = self._db.execute(
            "SELECT id, body FROM messages WHERE key = ? AND id > ? ORDER BY id DESC LIMIT ?",
            (key, int((after or "0").partition("-")[0]), SHOWN),
        )
        return [with_id(str(id), body) for id, body in rows][::-1]

    def _claim(self, name: str) -> bool:
        with self._db:
            claimed = self._db.execute("INSERT OR IGNORE INTO names VALUES (?)", (name,))
        return claimed.rowcount == 1

    def _secret(self) -> bytes:
        with self._db:
            self._db.execute("INSERT OR IGNORE INTO secret VALUES (1, ?)", (secrets.token_bytes(),))
        (found,) = self._db.execute("SELECT value FROM secret").fetchone()
        return bytes(found)


class LocalStore(Database):
    """A `Store` for one process: it is alone, so members here are all that there are."""

    def __init__(self, connection: sqlite3.Connection, engine: Engine) -> None:
        super().__init__(connection)
        self._groups = engine.groups

    def join(self, key: str, member: Member) -> None:
        self._groups.join(key, member)

    def leave(self, key: str, member: Member) -> None:
        self._groups.leave(key, member)

    async def broadcast(self, key: str, text: str) -> None:
        if group := self._groups.get(key):  # else nobody is there
            await group.broadcast(text, when_slow="close")

    async def note(self, room: str, came: Iterable[str], left: Iterable[str]) -> None:
        await trio.lowlevel.checkpoint()

    async def others(self, room: str) -> set[str]:
        await trio.lowlevel.checkpoint()
        return set()


@asynccontextmanager
async def open_local(path: str, engine: Engine) -> AsyncIterator[LocalStore]:
    """Two processes may have the same file open, as while a new version takes over."""
    with closing(sqlite3.connect(path, timeout=10, check_same_thread=False)) as connection:
        connection.executescript(
            """PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;
            CREATE TABLE IF NOT EXISTS messages(
                id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL, body TEXT NOT NULL);
            CREATE INDEX IF NOT EXISTS by_key ON messages(key, id);
            CREATE TABLE IF NOT EXISTS names(name TEXT PRIMARY KEY) WITHOUT ROWID;
            CREATE TABLE IF NOT EXISTS secret(one INTEGER PRIMARY KEY, value BLOB NOT NULL);"""
        )
        yield LocalStore(connection, engine)
