"""A chat server for netcat: ``python examples/chat.py [port]``.

A client says its name first; every further line goes to all the others.
"""

from __future__ import annotations

import sys
from functools import partial

import trio
from ctrl_c import run_until_ctrl_c

from trio_wknet import (
    Conn,
    Delimited,
    FrameChannel,
    FrameTooLong,
    Group,
    IncompleteRead,
    Limits,
    open_engine,
)

LINE = 1024  # bytes that a line may have, with its author's name
NAME = 32
SILENCE = 600  # seconds that a member may say nothing
FRAMING = Delimited(b"\n", max_frame=LINE)
LIMITS = Limits(inbound=16 * LINE, outbound=256 * LINE)


def tell(member: FrameChannel, line: bytes) -> None:
    """Send a line to one member, without waiting."""
    try:
        member.send_nowait(line)
    except trio.WouldBlock:
        member.conn.abort()  # has not read the last 256 lines
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # its own handler learns of it, too


async def converse(members: Group, member: FrameChannel) -> None:
    tell(member, b"* your name?")
    name = member.conn.context = (await member.receive()).rstrip(b"\r")[:NAME]
    members.add(member)
    await members.broadcast(b"* %s is here" % name, exclude=[member], when_slow="close")
    async for line in member:
        said = b"%s: %s" % (name, line.rstrip(b"\r"))
        await members.broadcast(said, exclude=[member], when_slow="close")


async def chat(members: Group, conn: Conn) -> None:
    member = conn.framed(FRAMING)
    try:
        with conn.idle_scope(read=SILENCE) as silence:
            await converse(members, member)
        if silence.cancelled_caught:
            tell(member, b"* nothing heard for too long")
    except (FrameTooLong, ValueError):  # from the member; for the others
        tell(member, b"* that line is too long")
    except (trio.EndOfChannel, IncompleteRead, trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # left, or was closed because it was slow
    finally:
        members.discard(member)
        if conn.context:
            await members.broadcast(b"* %s has left" % conn.context, when_slow="close")


async def main(port: int = 5101) -> None:
    async with open_engine() as engine:
        listener = await engine.listen(f"tcp://127.0.0.1:{port}", limits=LIMITS)
        print("listening on", listener.address, flush=True)
        await listener.serve(partial(chat, engine.group()))


if __name__ == "__main__":
    run_until_ctrl_c(main, *map(int, sys.argv[1:]))
