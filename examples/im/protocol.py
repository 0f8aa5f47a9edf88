"""What clients and the service say to each other: JSON objects, each with a type.

By TCP each is a frame, behind its length in four bytes. By WebSocket each is a text.

A client says first who it is. It has more than one connection, if it likes:

    {"type": "login", "token": T, "after": ID}   answer: private messages, and then welcome
    {"type": "join", "room": R, "after": ID}     answer: the room's messages, and then joined
    {"type": "leave", "room": R}                 answer: left
    {"type": "say", "room": R, "text": ..., "ref": ...}        to a room that it has joined
    {"type": "tell", "to": NAME, "text": ..., "ref": ...}      to one, who may be away
    {"type": "ping"}                             answer: pong; at least every 30 seconds, by TCP

The service sends:

    {"type": "welcome", "name": NAME, "token": T}              a fresh token
    {"type": "joined", "room": R, "who": [NAME], "count": N}   of N, some who are there
    {"id": ID, "type": "said", "room": R, "from": NAME, "text": ..., "at": SECONDS, "ref": ...}
    {"id": ID, "type": "told", "from": NAME, "to": NAME, "text": ..., "at": SECONDS, "ref": ...}
    {"type": "presence", "room": R, "came": [NAME], "left": [NAME]}
    {"type": "gap"}                              messages were missing: log in and join again
    {"type": "error", "why": ...}
    {"type": "bye", "why": ...}                  and closes; connect again

``after`` is the last id that the client has: it gets what came since. Who says something gets
it, too, with its ``ref``: then it is kept, and was sent to all. A message may come twice, live
and in an answer; it has the same id. Ids grow within a room, and within a user's private messages.
"""

from __future__ import annotations

import json
import re
from typing import Any

from trio_wknet import LengthPrefixed

MOST = 65_536  # bytes of a message
NAMES = 200  # in one message
TEXT = 2000  # characters of what is said
FRAMING = LengthPrefixed(4, max_frame=MOST)
NAME = re.compile(r"[\w-]{1,32}")  # of a user, or of a room
ID = re.compile(r"[0-9]{1,18}(-[0-9]{1,18})?")


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
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        raise Misbehaved("that is not JSON") from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise Misbehaved("that is not an object with a type")
    return message


def name_in(message: dict[str, Any], field: str) -> str:
    name = message.get(field)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise Refused(f"{field} must be 1 to 32 letters, digits, _ or -")
    return name


def text_in(message: dict[str, Any]) -> str:
    text = message.get("text")
    if not isinstance(text, str) or not 0 < len(text) <= TEXT or not _is_unicode(text):
        raise Refused(f"text must be 1 to {TEXT} characters")
    return text


def ref_in(message: dict[str, Any]) -> str | int | None:
    ref = message.get("ref")
    if isinstance(ref, str) and len(ref) <= 64 and _is_unicode(ref):
        return ref
    if ref is None or (isinstance(ref, int) and abs(ref) < 2**53):
        return ref
    raise Refused("ref must be a number or at most 64 characters")


def after_in(message: dict[str, Any]) -> str | None:
    after = message.get("after")
    if after is not None and not (isinstance(after, str) and ID.fullmatch(after)):
        raise Refused("after must be an id")
    return after


def _is_unicode(text: str) -> bool:
    """JSON can hold halves of surrogate pairs, which UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
