"""Frames, split in any way, against a plain model of every framing."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from frame_models import pieces, split, streams
from helpers import conn_and_peer, read_all, send
from hypothesis import given
from hypothesis import strategies as st

from trio_wknet import (
    FrameChannel,
    FrameTooLong,
    IncompleteRead,
    Limits,
    MalformedFrame,
    open_engine,
)

# How the receiver goes about it, over and over.
WAYS = ["one", "many", "two", "nowait", "many_nowait", "cancelled", "impatient", "reframed"]
OVER = (trio.EndOfChannel, IncompleteRead, FrameTooLong, MalformedFrame)


class Receiver:
    """Receives frames in several ways, until none is left."""

    def __init__(self, channel: FrameChannel) -> None:
        self.channel = channel
        self.frames: list[bytes] = []

    async def step(self, way: str) -> None:
        channel = self.channel
        if way == "one":
            self.frames.append(await channel.receive())
        elif way == "many":
            self.add(await channel.receive_many())
        elif way == "two":
            frames = await channel.receive_many(2)
            assert len(frames) <= 2
            self.add(frames)
        elif way == "cancelled":
            with trio.CancelScope() as scope:
                scope.cancel()
                self.frames.append(await channel.receive())
        elif way == "impatient":
            await self.give_up()
        elif way == "reframed":
            self.channel = channel.unframe().framed(channel.framing)
        else:
            await trio.lowlevel.checkpoint()
            self.receive_nowait(way)

    def receive_nowait(self, way: str) -> None:
        try:
            if way == "nowait":
                self.frames.append(self.channel.receive_nowait())
            else:
                self.add(self.channel.receive_many_nowait())
        except trio.WouldBlock:
            pass

    def add(self, frames: list[bytes]) -> None:
        assert frames
        self.frames += frames

    async def give_up(self) -> None:
        """Be cancelled at any time."""

        async def receive() -> None:
            self.add(await self.channel.receive_many())

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                for _ in range(3):
                    await trio.lowlevel.checkpoint()
                scope.cancel()

    async def run(self, ways: list[str]) -> type[BaseException]:
        while True:
            for way in [*ways, "one"]:
                try:
                    await self.step(way)
                except BaseException as exception:
                    error = _only(exception)
                    if not isinstance(error, OVER):
                        raise
                    return type(error)


def _only(exception: BaseException) -> BaseException:
    """What a nursery raises is in a group."""
    while inner := getattr(exception, "exceptions", None):
        exception = inner[0]
    return exception


async def check(
    reactors: int, kind: str, inbound: int, framing: Any, sent: list[bytes], ways: list[str]
) -> None:
    frames, rest, end = split(framing, b"".join(sent))
    limits = Limits(inbound=inbound)
    async with (
        open_engine(reactors) as engine,
        conn_and_peer(engine, kind, limits=limits) as (conn, peer),
    ):
        receiver = Receiver(conn.framed(framing))

        async def run() -> None:
            assert await receiver.run(ways) is end
            assert receiver.frames == frames
            if end is not trio.EndOfChannel:
                receiver.channel.unframe()
                assert await read_all(conn) == rest

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                for piece in sent:
                    await send(peer, piece)
                    await trio.lowlevel.checkpoint()
                peer.close()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("reactors", [0, 1])
@given(
    stream=streams(),
    inbound=st.sampled_from([1, 3, 16, 600, 65_536, 65_536]),
    ways=st.lists(st.sampled_from(WAYS), max_size=4),
    data=st.data(),
)
def test_any_split_of_any_frames(
    reactors: int, kind: str, stream: Any, inbound: int, ways: list[str], data: Any
) -> None:
    framing, content = stream
    if inbound < 600:
        content = content[:3000]  # each piece so small takes its turns
    sent = data.draw(pieces(content))
    trio.run(check, reactors, kind, inbound, framing, sent, ways)
