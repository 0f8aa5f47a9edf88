"""A session: one client's connection, by TCP or WebSocket, and what it may ask for.

It has no task. The reactor finds whole messages and calls `Session.take` with all that have come;
only what has to wait, for history or for a full queue, gets a task while it does, and what the
client sends behind it waits meanwhile: the reactor stops reading, and TCP holds the client back.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Iterable, Iterator
from contextlib import suppress
from hashlib import sha256
from typing import Any

import trio

from trio_wknet import ConnectionClosed, FrameChannel, WebSocket

from .hub import Hub
from .protocol import Misbehaved, Refused, decode, encode

ROOMS = 100  # that one client may be in
GONE = (ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError)


class Session:
    def __init__(self, hub: Hub, member: FrameChannel | WebSocket) -> None:
        self.hub = hub
        self.member: Any = member
        self.name = ""  # until it has logged in
        self.rooms: set[str] = set()
        self.over = False  # nothing is obeyed any more

    # --- what has come ---------------------------------------------------------------

    def take(self, messages: Iterable[str | bytes]) -> Awaitable[None] | None:
        """Obey in order. What is returned has to be waited for before it can go on."""
        todo = iter(messages)
        for data in todo:
            if waiting := self.obey(data):
                return self.go_on(waiting, todo)
        return None

    async def go_on(self, waiting: Awaitable[None], todo: Iterator[str | bytes]) -> None:
        with suppress(*GONE):
            await waiting
            for data in todo:
                if further := self.obey(data):
                    await further

    def obey(self, data: str | bytes) -> Awaitable[None] | None:
        try:
            return None if self.over else self.carry_out(decode(data))
        except Misbehaved as exc:
            self.part(str(exc))
        except Refused as exc:
            self.send(encode(type="error", why=str(exc)))
        return None

    def carry_out(self, message: dict[str, Any]) -> Awaitable[None] | None:
        match message:
            case {"type": "login", "name": name, "token": token}:
                return self.log_in(name, token, message.get("after"))
            case _ if not self.name:
                raise Misbehaved("log in first")
            case {"type": "say", "room": room, "text": _} if room in self.rooms:
                said = self.signed(message, type="said", room=room)
                return self.hub.post(said, f"room:{room}")
            case {"type": "tell", "to": to, "text": _}:
                said = self.signed(message, type="told", to=to)
                return self.hub.post(said, *{f"user:{self.name}", f"user:{to}"})
            case {"type": "ping"}:
                self.send(encode(type="pong"))
            case {"type": "join", "room": room} if len(self.rooms | {room}) <= ROOMS:
                return self.join(room, message.get("after"))
            case {"type": "leave", "room": room} if room in self.rooms:
                self.leave(room)
                self.send(encode(type="left", room=room))
            case {"type": "say" | "leave", "room": room} if room not in self.rooms:
                raise Refused(f"you are not in {room}")
            case _:
                raise Refused("that is unknown, incomplete or too much")
        return None

    async def log_in(self, name: str, token: str, after: str | None) -> None:
        """A service that knows its users would ask for the token there."""
        store, kept = self.hub.store, sha256(token.encode()).hexdigest()
        if self.name not in ("", name) or await store.once(f"name:{name}", kept) != kept:
            self.part("this name is taken")
            return
        self.name = name
        # Joined first: what comes in between is in both, and nothing is in neither.
        store.join(f"user:{name}", self.member)
        private = await store.since(f"user:{name}", after)
        await self.send_all(*private, encode(type="welcome"))

    async def join(self, room: str, after: str | None) -> None:
        if room not in self.rooms:
            self.rooms.add(room)
            self.hub.enter(room, self.name, self.member)
        said = await self.hub.store.since(f"room:{room}", after)
        others = await self.hub.store.others(room)  # those here are told of in a moment
        await self.send_all(*said, *others, encode(type="joined", room=room))

    def leave(self, room: str) -> None:
        self.rooms.remove(room)
        self.hub.leave(room, self.name, self.member)

    def signed(self, message: dict[str, Any], **more: str) -> str:
        """What it says, encoded once for everybody."""
        said = {"from": self.name, "text": message["text"], "at": round(time.time(), 3)}
        return encode(**more, **said, ref=message.get("ref"))

    # --- what goes out -----------------------------------------------------------------

    def send(self, text: str) -> None:
        """Send an answer; who asks and does not read is closed."""
        with suppress(*GONE):
            try:
                self.member.send_nowait(self.formed(text))
            except trio.WouldBlock:
                self.member.conn.abort()

    async def send_all(self, *texts: str) -> None:
        """Send them in one go; waits for a client that is behind."""
        await self.member.send_many([*map(self.formed, texts)])

    def formed(self, text: str) -> str | bytes:
        return text if isinstance(self.member, WebSocket) else text.encode()

    def part(self, why: str) -> None:
        """Close the connection, behind all that was sent."""
        self.over = True
        self.send(encode(type="bye", why=why))
        if isinstance(self.member, WebSocket):
            self.member.close_nowait(1000, why)
        else:
            self.member.conn.close_nowait()

    def end(self) -> None:
        """The connection is closed; it has left its groups by itself."""
        for room in [*self.rooms]:
            self.leave(room)
