"""What clients and the service say to each other: JSON objects, each with a type.

By TCP each is a frame, behind its length in four bytes. By WebSocket each is a text.

A client says first who it is. It has more than one connection, if it likes. The token is a secret
of its own: a name belongs to the first who came with it.

    {"type": "login", "name": NAME, "token": T, "after": ID}   private messages, and then welcome
    {"type": "join", "room": R, "after": ID}                   the room's messages, and then joined
    {"type": "leave", "room": R}                               left
    {"type": "say", "room": R, "text": ..., "ref": ...}        to a room that it has joined
    {"type": "tell", "to": NAME, "text": ..., "ref": ...}      to one, who may be away
    {"type": "ping"}                                           pong; by TCP every 30 seconds

The service sends:

    {"type": "welcome"}, {"type": "joined", "room": R}, {"type": "left", "room": R}
    {"type": "presence", "room": R, "node": NODE, "who": [NAME], "count": N, "for": SECONDS}
    {"id": ID, "type": "said", "room": R, "from": NAME, "text": ..., "at": SECONDS, "ref": ...}
    {"id": ID, "type": "told", "from": NAME, "to": NAME, "text": ..., "at": SECONDS, "ref": ...}
    {"type": "gap"}                             messages were missing: log in and join again
    {"type": "error", "why": ...}
    {"type": "bye", "why": ...}                 and closes; connect again

``after`` is the last id that the client has: it gets what came since. Who says something gets
it, too, with its ``ref``: then it is kept, and was sent to all. A message may come twice, live
and in an answer; it has the same id. Ids grow within a room, and within a user's private messages.
Presence is all who are in a room by that node, some of them by name, until it says something else,
or nothing for some seconds.
"""

from __future__ import annotations

import json
import re
from typing import Any

from trio_wknet import LengthPrefixed

MOST = 65_536  # bytes of a message
NAMES = 100  # in one message
FRAMING = LengthPrefixed(4, max_frame=MOST)
NAME = re.compile(r"[\w-]{1,32}")
UNICODE = r"[^\ud800-\udfff]"  # JSON can hold halves of surrogate pairs, which UTF-8 cannot
FIELDS = {
    "name": NAME,
    "token": re.compile("[!-~]{16,200}"),
    "room": NAME,
    "to": NAME,
    "after": re.compile("[0-9]{1,18}(-[0-9]{1,18})?"),
    "text": re.compile(UNICODE + "{1,2000}"),
    "ref": re.compile(UNICODE + "{0,64}"),
}


class Refused(Exception):
    """Something that a client may not have. It is told why."""


class Misbehaved(Refused):
    """What no proper client sends. It is told why, and its connection is closed."""


def encode(**message: Any) -> str:
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"))


def with_id(id: str, message: str) -> str:
    """An encoded message, with the id that it got afterwards."""
    return f'{{"id":"{id}",{message[1:]}'


def decode(data: str | bytes) -> dict[str, Any]:
    """A client's message, whose fields are as they have to be, as far as they are there."""
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        raise Misbehaved("that is not JSON") from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise Misbehaved("that is not an object with a type")
    for field in FIELDS.keys() & message.keys():
        value = message[field]
        if value is None:
            del message[field]
        elif not isinstance(value, str) or not FIELDS[field].fullmatch(value):
            raise Refused(f"{field} has to match {FIELDS[field].pattern}")
    return message
