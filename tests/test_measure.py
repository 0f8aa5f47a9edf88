"""What an engine measures: how late Trio's loop is, and how much it and the reactors work."""

from __future__ import annotations

import math
import os
import random
import time
from contextlib import nullcontext
from typing import Any

import pytest
import trio
import trio.testing
from helpers import conn_and_peer, until, url

from trio_wknet import Conn, Engine, EngineStatistics, Histogram, Trace
from trio_wknet._native.testing import bucket_of_size, bucket_of_time, has_posted

PAUSE = 0.02


async def echo(conn: Conn, peer: Any, times: int = 3) -> None:
    """Have a task woken for what it waits for."""
    for _ in range(times):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, conn)
            await trio.testing.wait_all_tasks_blocked()
            await peer.send(b"ping")


async def receive(conn: Conn) -> None:
    assert await conn.receive_some() == b"ping"


def results(found: EngineStatistics) -> tuple[Any, ...]:
    """All that is measured."""
    return (
        *(found.measured_time, found.loop_busy_time, found.loop_lag, found.wake_latency),
        *(found.batches, found.completions, found.batch_sizes),
        *(reactor.busy_time for reactor in found.reactors),
    )


async def test_nothing_is_measured_until_it_is_wanted(engine: Engine) -> None:
    before = results(engine.statistics())
    async with conn_and_peer(engine) as (conn, peer):
        await echo(conn, peer)
    after = engine.statistics()
    assert results(after) == before
    assert after.wake_latency.count == after.batches == after.measured_time == 0


@pytest.mark.parametrize("traced", [False, True])
async def test_batches_and_times(engine: Engine, traced: bool) -> None:
    engine.measure()
    async with conn_and_peer(engine) as (conn, peer):
        for _ in range(5):
            with Trace() if traced else nullcontext():
                await echo(conn, peer)
    found = engine.statistics()
    assert found.batches >= 3
    assert found.batch_sizes.count == found.batches
    assert found.batch_sizes.total == found.completions >= found.batches
    assert 1 <= found.batch_sizes.maximum <= found.completions
    # With threads, a batch that is posted while another is taken may not be timed.
    assert 1 <= found.wake_latency.count <= found.batches
    assert found.loop_lag <= found.wake_latency.maximum <= found.wake_latency.total
    # No time is counted twice: what waits is timed from the first of it, and only once.
    assert found.wake_latency.total <= found.measured_time
    assert 0 < found.loop_busy_time <= found.measured_time
    if engine.reactors == 0:
        assert found.wake_latency.count == found.batches
        assert 0 < found.reactors[0].busy_time <= found.loop_busy_time


async def test_reactors_are_busy_for_a_part_of_the_time(engine: Engine) -> None:
    engine.measure()
    async with conn_and_peer(engine) as (conn, peer):
        await echo(conn, peer)
        # A turn is counted when it is done, which may be after what it brought about.
        await until(lambda: sum(r.busy_time for r in engine.statistics().reactors) > 0)
    for reactor in (found := engine.statistics()).reactors:
        assert reactor.busy_time <= found.measured_time


async def test_switching_off_keeps_the_results(engine: Engine) -> None:
    engine.measure()
    async with conn_and_peer(engine) as (conn, peer):
        await echo(conn, peer)
        engine.measure(False)
        await echo(conn, peer)  # a turn that began before may be counted in the meantime
        before = results(engine.statistics())
        await echo(conn, peer)
        assert results(engine.statistics()) == before
        engine.measure()
        await echo(conn, peer)
    after = engine.statistics()
    assert after.batches > before[4]
    assert after.measured_time > before[0]
    assert after.loop_busy_time <= after.measured_time


async def test_a_loop_that_was_kept_busy_shows_as_lag(engine: Engine) -> None:
    engine.measure()
    async with conn_and_peer(engine) as (conn, peer):
        for _ in range(50):
            # In-loop, bytes that were noticed right after the tasks ran; in a thread that is
            # stopped just then it looks as if the loop had waited for them.
            if engine.statistics().wake_latency.maximum >= PAUSE:
                break
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive, conn)
                await trio.testing.wait_all_tasks_blocked()
                os.write(peer.fileno(), b"ping")  # without a checkpoint
                until_posted(engine)
                time.sleep(PAUSE)  # noqa: ASYNC251
    found = engine.statistics()
    assert PAUSE <= found.wake_latency.maximum <= found.measured_time
    assert found.wake_latency.percentile(100) == found.wake_latency.maximum
    assert found.loop_busy_time >= PAUSE


def until_posted(engine: Engine) -> None:
    """Block Trio's thread until the reactor has something for it."""
    for _ in range(20_000):
        if has_posted(engine._core):
            return
        time.sleep(0.001)
    raise AssertionError("nothing was posted")


async def test_callbacks_count_as_work_of_the_loop(engine: Engine, nursery: trio.Nursery) -> None:
    engine.measure()
    listener = await engine.listen("tcp://127.0.0.1:0")

    def on_data(conn: Conn) -> None:
        time.sleep(PAUSE)
        conn.send_nowait(conn.receive_nowait())

    await nursery.start(listener.serve_events, on_data)
    client = await engine.connect(url(listener))
    await client.send_all(b"ping")
    assert await client.receive_some() == b"ping"
    assert engine.statistics().loop_busy_time >= PAUSE
    await client.aclose()
    await listener.drain()


@pytest.mark.parametrize("value", [1, None, "yes"])
async def test_only_true_or_false(engine: Engine, value: Any) -> None:
    with pytest.raises(TypeError, match="enabled"):
        engine.measure(value)


async def test_ranges_are_those_of_the_native_buckets(engine: Engine) -> None:
    found = engine.statistics()
    chance = random.Random(1)
    times = [0, 1, 1023, 1024, 2**36 - 1, 2**36, 2**60, *(2**n for n in range(10, 40))]
    for ns in times + [chance.getrandbits(chance.randrange(1, 50)) for _ in range(500)]:
        check_range(found.wake_latency.bounds, bucket_of_time(ns), ns / 1e9)
    for size in [0, 1, 2, 3, 4, 5, 2**15, 2**15 + 1, 2**40, *range(500)]:
        check_range(found.batch_sizes.bounds, bucket_of_size(size), size)


def check_range(bounds: tuple[float, ...], bucket: int, value: float) -> None:
    assert value <= bounds[bucket]
    assert bucket == 0 or value >= bounds[bucket - 1]
    assert bounds[-1] == math.inf
    assert list(bounds) == sorted(set(bounds))


def test_percentiles() -> None:
    some = Histogram(bounds=(1.0, 2.0, 4.0, math.inf), counts=(1, 0, 2, 1), total=20, maximum=9)
    assert some.count == 4
    assert [some.percentile(p) for p in (0, 25, 26, 75, 76, 100)] == [1, 1, 4, 4, 9, 9]
    none = Histogram(bounds=(1.0, math.inf), counts=(0, 0), total=0, maximum=0)
    assert none.percentile(50) == 0
    for percent in (-1, 101, math.nan):
        with pytest.raises(ValueError, match="percent"):
            some.percentile(percent)
