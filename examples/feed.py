"""A price feed: ``python examples/feed.py [port [seconds]]``, and then ``nc 127.0.0.1 5109``.

A client says ``subscribe EUR`` or ``unsubscribe EUR``, on a line each. It gets the price as it
is, and then every change. One that does not read is closed.
"""

from __future__ import annotations

import random
import sys
from functools import partial

import trio
from ctrl_c import run_until_ctrl_c

from trio_wknet import ConnOptions, Delimited, Engine, FrameChannel, Limits, open_engine

FRAMING = Delimited(b"\n", max_frame=64)
LIMITS = Limits(inbound=4096, outbound=16_384)  # bytes: some thousand prices
OPTIONS = ConnOptions(send_buffer=16_384)  # old prices are of no use there, either

prices = {"EUR": 1.0, "GBP": 1.2, "JPY": 0.006, "CHF": 1.1}


def quote(symbol: str) -> bytes:
    return f"{symbol} {prices[symbol]:.6f}".encode()


def take(engine: Engine, channel: FrameChannel, frames: list[bytes]) -> None:  # on_frames
    try:
        channel.send_many_nowait([answer(engine, channel, frame) for frame in frames])
    except trio.WouldBlock:
        channel.conn.abort()  # asks, and does not read
    except trio.BrokenResourceError:
        pass  # it has gone


def answer(engine: Engine, channel: FrameChannel, frame: bytes) -> bytes:
    verb, _, symbol = frame.decode(errors="replace").strip().partition(" ")
    if symbol not in prices or verb not in ("subscribe", "unsubscribe"):
        return b"say: subscribe or unsubscribe, and one of " + " ".join(prices).encode()
    if verb == "unsubscribe":
        engine.groups.leave(symbol, channel)
        return f"{symbol} unsubscribed".encode()
    engine.groups.join(symbol, channel)
    return quote(symbol)  # every later price comes behind this one


def leave(channel: FrameChannel, reason: str) -> None:  # on_close: it has left its groups
    print(channel.conn.remote_address, "left:", reason, flush=True)


async def feed(engine: Engine, seconds: float) -> None:
    """Move a price from time to time, and send it to those who subscribed to it."""
    while True:
        symbol = random.choice(list(prices))
        prices[symbol] *= random.uniform(0.999, 1.001)
        if symbol in engine.groups:  # else it has no subscribers
            await engine.groups[symbol].broadcast(quote(symbol), when_slow="close")
        await trio.sleep(seconds)


async def main(port: str = "5109", seconds: str = "0.1") -> None:
    async with open_engine() as engine, trio.open_nursery() as nursery:
        address = f"tcp://127.0.0.1:{port}"
        listener = await engine.listen(address, limits=LIMITS, options=OPTIONS)
        print("listening on", listener.address, flush=True)
        nursery.start_soon(feed, engine, float(seconds))
        await listener.serve_frames(FRAMING, partial(take, engine), on_close=leave)


if __name__ == "__main__":
    run_until_ctrl_c(main, *sys.argv[1:])
