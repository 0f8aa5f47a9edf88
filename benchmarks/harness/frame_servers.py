"""Servers that echo messages behind a length of four bytes.

In all of them a message is an object of its own before it is sent back, as an application
would have it, and the length is written anew. What is split by hand is split out of a
bytearray, from which what was used is deleted once for each receive.
"""

from __future__ import annotations

from functools import partial
from struct import Struct
from typing import Any

from harness.serving import (
    Serve,
    asyncio_protocol,
    asyncio_streams,
    note,
    serve_handler,
    trio_streams,
    wknet,
)

LENGTH = Struct(">I")
MAX_FRAME = 1 << 24


def split(buffer: bytearray) -> list[bytes]:
    """Take all whole messages out of a buffer."""
    frames = []
    start, held = 0, len(buffer)
    while held - start >= 4:
        end = start + 4 + LENGTH.unpack_from(buffer, start)[0]
        if end > held:
            break
        frames.append(bytes(buffer[start + 4 : end]))
        start = end
    if start:
        del buffer[:start]
    return frames


def joined(frames: list[bytes]) -> bytes:
    """Messages with their lengths."""
    return b"".join([part for frame in frames for part in (LENGTH.pack(len(frame)), frame)])


# --- Trio -----------------------------------------------------------------------------


async def trio_frames(stream: Any) -> None:
    buffer = bytearray()
    try:
        while data := await stream.receive_some():
            buffer += data
            if frames := split(buffer):
                await stream.send_all(joined(frames))
    except Exception:
        pass  # the load generator leaves in the middle of a message


# --- asyncio's streams and protocols ----------------------------------------------------


async def read_exactly(reader: Any, writer: Any) -> None:
    try:
        while True:
            (size,) = LENGTH.unpack(await reader.readexactly(4))
            frame = await reader.readexactly(size)
            writer.write(LENGTH.pack(len(frame)) + frame)
            await writer.drain()
    except Exception:
        pass
    writer.close()


def frames_protocol(lines: bool) -> Any:
    """A call of `write` for each message, or one of `writelines` for all."""
    import asyncio

    class Frames(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport
            self.buffer = bytearray()

        def data_received(self, data: bytes) -> None:
            self.buffer += data
            for frame in split(self.buffer):
                self.transport.write(LENGTH.pack(len(frame)) + frame)

    class Lines(Frames):
        def data_received(self, data: bytes) -> None:
            self.buffer += data
            if frames := split(self.buffer):
                self.transport.writelines([LENGTH.pack(len(f)) + f for f in frames])

    return Lines if lines else Frames


# --- this library -----------------------------------------------------------------------


def framing() -> Any:
    from trio_wknet import LengthPrefixed

    return LengthPrefixed(4, max_frame=MAX_FRAME)


def framed(conn: Any) -> Any:
    return conn.framed(framing())


async def frames(conn: Any) -> None:
    try:
        channel = framed(conn)
        async for frame in channel:
            await channel.send(frame)
    except Exception:
        pass


async def frames_nowait(conn: Any) -> None:
    try:
        channel = framed(conn)
        async for frame in channel:
            channel.send_nowait(frame)
    except Exception:
        pass


async def frames_many(conn: Any) -> None:
    try:
        channel = framed(conn)
        while True:
            await channel.send_many(await channel.receive_many())
    except Exception:
        pass


def frames_event(channel: Any, frames: list[bytes]) -> None:
    channel.send_many_nowait(frames)


async def serve_frames(listener: Any) -> None:
    await listener.serve_frames(framing(), frames_event, on_error=note)


FORMS = {
    "frames": partial(serve_handler, frames),
    "frames-nowait": partial(serve_handler, frames_nowait),
    "frames-many": partial(serve_handler, frames_many),
    "frames-events": serve_frames,
}

SERVERS: dict[str, Serve] = {
    "trio-frames": trio_streams(trio_frames),
    "uvloop-frames-readexactly": asyncio_streams(read_exactly, True),
    "uvloop-frames-protocol": asyncio_protocol(partial(frames_protocol, False), True),
    "uvloop-frames-writelines": asyncio_protocol(partial(frames_protocol, True), True),
    **{
        f"wknet-{where}-{name}": wknet(reactors, serve)
        for where, reactors in (("threaded", 1), ("inloop", 0))
        for name, serve in FORMS.items()
    },
}
