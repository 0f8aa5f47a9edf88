"""A chat server for netcat: ``python examples/chat.py [port]``.

A client says its name first; every further line goes to all the others.
"""

from __future__ import annotations

import sys

import trio
from ctrl_c import run_until_ctrl_c

from trio_wknet import (
    Conn,
    Delimited,
    FrameChannel,
    FrameTooLong,
    IncompleteRead,
    Limits,
    open_wknet_listener,
)

LINE = 1024  # bytes that a line may have, with its author's name
NAME = 32
SILENCE = 600  # seconds that a member may say nothing
FRAMING = Delimited(b"\n", max_frame=LINE)
LIMITS = Limits(inbound=16 * LINE, outbound=256 * LINE)

members: dict[FrameChannel, bytes] = {}


def tell(member: FrameChannel, line: bytes) -> None:
    """Send a line to one member, without waiting."""
    try:
        member.send_nowait(line)
    except trio.WouldBlock:
        member.conn.abort()  # has not read the last 256 lines
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # its own handler learns of it, too


def tell_others(member: FrameChannel, line: bytes) -> None:
    for other in list(members):
        if other is not member:
            tell(other, line)


async def converse(member: FrameChannel) -> None:
    tell(member, b"* your name?")
    name = members[member] = (await member.receive()).rstrip(b"\r")[:NAME]
    tell_others(member, b"* %s is here" % name)
    async for line in member:
        tell_others(member, b"%s: %s" % (name, line.rstrip(b"\r")))


async def chat(conn: Conn) -> None:
    member = conn.framed(FRAMING)
    try:
        with conn.idle_scope(read=SILENCE) as silence:
            await converse(member)
        if silence.cancelled_caught:
            tell(member, b"* nothing heard for too long")
    except (FrameTooLong, ValueError):  # from the member; for the others
        tell(member, b"* that line is too long")
    except (trio.EndOfChannel, IncompleteRead, trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # left, or was aborted above
    finally:
        name = members.pop(member, b"")
        if name:
            tell_others(member, b"* %s has left" % name)


async def main(port: int = 5101) -> None:
    async with open_wknet_listener(f"tcp://127.0.0.1:{port}", limits=LIMITS) as listener:
        print("listening on", listener.address, flush=True)
        await listener.serve(chat)


if __name__ == "__main__":
    run_until_ctrl_c(main, *map(int, sys.argv[1:]))
