"""A session: one client's connection, by TCP or WebSocket, and what it may ask for.

It has no task. The reactor finds whole messages and calls `Session.take` with all that have come;
only what has to wait, for history or for a full queue, gets a task while it does, and what the
client sends behind it waits meanwhile: the reactor stops reading, and TCP holds the client back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import trio

from trio_wknet import (
    ConnectionClosed,
    FrameChannel,
    FrameTooLong,
    IncompleteRead,
    MalformedFrame,
    WebSocket,
)

from . import tokens
from .hub import Hub
from .protocol import NAMES, Misbehaved, Refused, after_in, decode, encode, name_in, ref_in, text_in
from .store import Member

ROOMS = 100  # that one client may be in
GONE = (ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError)
PEERS_FAULT = (*GONE, FrameTooLong, IncompleteRead, MalformedFrame)

log = logging.getLogger("im")


class Session:
    def __init__(self, hub: Hub, member: Member) -> None:
        self.hub = hub
        self.member = member
        self.name = ""  # until it has logged in
        self.rooms: set[str] = set()
        self.over = False  # nothing is obeyed any more

    # --- callbacks -----------------------------------------------------------------

    def take(self, messages: Iterable[str | bytes]) -> Awaitable[None] | None:
        """Obey in order. What is returned has to be waited for before it can go on."""
        todo = iter(messages)
        for data in todo:
            if waiting := self.obey(data):
                return self.go_on(waiting, todo)
        return None

    async def go_on(self, waiting: Awaitable[None], todo: Iterator[str | bytes]) -> None:
        with suppress(*GONE):
            await self.answered(waiting)
            for data in todo:
                if next_one := self.obey(data):
                    await self.answered(next_one)

    def end(self) -> None:
        """The connection is closed; it has left its groups by itself."""
        for room in self.rooms:
            self.hub.leave(room, self.name, self.member)
        self.rooms.clear()

    # --- commands --------------------------------------------------------------------

    def obey(self, data: str | bytes) -> Awaitable[None] | None:
        if self.over:
            return None
        try:
            message = decode(data)
            command = COMMANDS.get(message["type"])
            if command is None:
                raise Refused(f"there is no {message['type'][:20]!r}")
            if not self.name and command is not Session.log_in:
                raise Misbehaved("log in first")
            return command(self, message)
        except Refused as refused:
            self.refuse(refused)
            return None

    async def answered(self, waiting: Awaitable[None]) -> None:
        try:
            await waiting
        except Refused as refused:
            self.refuse(refused)

    def refuse(self, refused: Refused) -> None:
        if isinstance(refused, Misbehaved):
            self.say_goodbye(str(refused))
        else:
            self.send(encode(type="error", why=str(refused)))

    def log_in(self, message: dict[str, Any]) -> Awaitable[None]:
        name = tokens.name_of(self.hub.secret, message.get("token"))
        if self.name not in ("", name):
            raise Refused("you are logged in as another")
        return self.welcome(name, after_in(message))

    async def welcome(self, name: str, after: str | None) -> None:
        self.name = name
        # Joined first: what comes in between is in both, and nothing is in neither.
        self.hub.store.join(f"user:{name}", self.member)
        private = await self.hub.store.since(f"user:{name}", after)
        token = tokens.issue(self.hub.secret, name)
        await self.send_all(*private, encode(type="welcome", name=name, token=token))

    def join(self, message: dict[str, Any]) -> Awaitable[None]:
        room = name_in(message, "room")
        if len(self.rooms) >= ROOMS and room not in self.rooms:
            raise Refused(f"you are in {ROOMS} rooms")
        return self.joined(room, after_in(message))

    async def joined(self, room: str, after: str | None) -> None:
        if room not in self.rooms:
            self.hub.enter(room, self.name, self.member)
            self.rooms.add(room)
        messages = await self.hub.store.since(f"room:{room}", after)
        who = await self.hub.who(room)
        there = encode(type="joined", room=room, who=who[:NAMES], count=len(who))
        await self.send_all(*messages, there)

    def leave(self, message: dict[str, Any]) -> None:
        room = self.room_in(message)
        self.rooms.remove(room)
        self.hub.leave(room, self.name, self.member)
        self.send(encode(type="left", room=room))

    def say(self, message: dict[str, Any]) -> Awaitable[None] | None:
        room = self.room_in(message)
        said = self.signed(message, type="said", room=room)
        return self.hub.post(said, f"room:{room}")

    def tell(self, message: dict[str, Any]) -> Awaitable[None] | None:
        to = name_in(message, "to")
        said = self.signed(message, type="told", to=to)
        return self.hub.post(said, *{f"user:{self.name}", f"user:{to}"})

    def pong(self, message: dict[str, Any]) -> None:
        self.send(encode(type="pong"))

    def room_in(self, message: dict[str, Any]) -> str:
        room = name_in(message, "room")
        if room not in self.rooms:
            raise Refused(f"you are not in {room}")
        return room

    def signed(self, message: dict[str, Any], **more: str) -> str:
        """What it says, encoded once for everybody."""
        ref, text = ref_in(message), text_in(message)
        return encode(**more, **{"from": self.name}, text=text, at=round(time.time(), 3), ref=ref)

    # --- sending ---------------------------------------------------------------------

    def send(self, text: str) -> None:
        """Send an answer; who asks and does not read is closed."""
        with suppress(*GONE):
            try:
                if isinstance(self.member, WebSocket):
                    self.member.send_nowait(text)
                else:
                    self.member.send_nowait(text.encode())
            except trio.WouldBlock:
                self.member.conn.abort()

    async def send_all(self, *texts: str) -> None:
        """Send them in one go; waits for a client that is behind."""
        if isinstance(self.member, WebSocket):
            await self.member.send_many(texts)
        else:
            await self.member.send_many([text.encode() for text in texts])

    def say_goodbye(self, why: str) -> None:
        """Close the connection, behind all that was sent."""
        self.over = True
        self.send(encode(type="bye", why=why))
        if isinstance(self.member, WebSocket):
            self.member.close_nowait(1000, why)
        else:
            self.member.conn.close_nowait()


COMMANDS: dict[str, Callable[[Session, dict[str, Any]], Awaitable[None] | None]] = {
    "login": Session.log_in,
    "join": Session.join,
    "leave": Session.leave,
    "say": Session.say,
    "tell": Session.tell,
    "ping": Session.pong,
}


def complain(member: FrameChannel | WebSocket, exc: Exception) -> None:
    """What a peer does wrong ends its connection. So does a fault of ours, which is logged."""
    if not isinstance(exc, PEERS_FAULT):
        log.error("a client's connection is closed", exc_info=exc)
