"""trio_wknet.contrib.redis: groups and logs on several nodes, with real servers, which are killed,
stopped and moved. Where there is no redis-server it is left out."""

from __future__ import annotations

import random
import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import trio
from helpers import SMALL, conn_and_peer
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from trio_wknet import Engine, Limits, open_engine

pytest.importorskip("coredis")

import trustme
from redis_nodes import Node, Reader, node, read, soon, subscribed, until
from redis_servers import (
    EXECUTABLE,
    HOST,
    RedisServer,
    agreed,
    cluster_servers,
    free_port,
    has_tls,
    make_cluster,
    redis_server,
    sentinel_for,
)

if EXECUTABLE is None:
    pytest.skip("redis-server is not installed", allow_module_level=True)

from trio_wknet.contrib.redis import (
    BrokerError,
    BrokerRefused,
    BrokerUnavailable,
    Gap,
    _cluster,
    _layout,
    _shard,
    open_cluster,
)
from trio_wknet.contrib.redis._address import parse
from trio_wknet.contrib.redis._envelope import Envelopes, Malformed
from trio_wknet.contrib.redis._find import slot_of
from trio_wknet.contrib.redis._outbox import Outbox


@pytest.fixture(scope="module")
def shared() -> Iterator[RedisServer]:
    """A server for tests that leave it alone. Each uses other keys."""
    with redis_server() as server:
        yield server


@pytest.fixture
async def broker(shared: RedisServer) -> RedisServer:
    await shared.ready()
    return shared


# -- groups ----------------------------------------------------------------------------


async def test_everybody_gets_a_broadcast_once(engine: Engine, broker: RedisServer) -> None:
    async with node(broker.url, engine) as one, node(broker.url) as two:
        _, here = await one.member("once")
        _, there = await two.member("once")
        mine, yours = one.cluster.group("once"), two.cluster.group("once")
        assert (await mine.broadcast_nowait(b"\x00\xff1").wait()).sent == 1
        await yours.broadcast("zwei")
        for peer in (here, there):
            assert sorted((await read(peer, 7)).partition(b"\x00\xff1")) in (
                [b"", b"\x00\xff1", b"zwei"],
            )
        for each in (one, two):
            await until(lambda: each.cluster.statistics().echoes == 1)  # noqa: B023
        mine.broadcast_nowait(b"last")
        assert await read(here, 4) == await read(there, 4) == b"last"
        assert len(mine) == len(yours) == 1
        found = one.cluster.statistics()
        assert (found.delivered, found.malformed, found.gaps, found.connected) == (1, 0, 0, True)


async def test_exclude_is_about_members_here(broker: RedisServer) -> None:
    async with node(broker.url) as one, node(broker.url) as two:
        sender, here = await one.member("exclude")
        _, there = await two.member("exclude")
        one.cluster.group("exclude").broadcast_nowait(b"to others", exclude=[sender])
        one.cluster.group("exclude").broadcast_nowait(b"to all")
        assert await read(there, 15) == b"to othersto all"
        assert await read(here, 6) == b"to all"


async def test_what_cannot_be_broadcast_here_is_not_elsewhere(broker: RedisServer) -> None:
    async with node(broker.url) as one, node(broker.url) as two:
        _, there = await two.member("refused here")
        group = one.cluster.group("refused here")
        with pytest.raises(TypeError):
            group.broadcast_nowait(5)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="when_slow"):
            group.broadcast_nowait(b"x", when_slow="wait")  # type: ignore[arg-type]
        group.broadcast_nowait(b"y", when_slow="error")
        assert await read(there, 1) == b"y"


async def test_slow_members_on_another_node(broker: RedisServer) -> None:
    """They are skipped, or closed, as the node that broadcasts says."""
    limits = Limits(outbound=1000)
    async with (
        node(broker.url) as one,
        node(broker.url) as two,
        conn_and_peer(one.engine, "unix", limits=limits, options=SMALL) as (conn, _),
    ):
        _, quick = await one.member("slow")
        theirs, ours = two.cluster.group("slow"), one.cluster.group("slow")
        ours.add(conn)
        for when_slow in ("skip", "error"):
            for _ in range(20):
                theirs.broadcast_nowait(bytes(1000), when_slow=when_slow)
            await read(quick, 20_000)
            assert conn in ours
        theirs.broadcast_nowait(bytes(1000), when_slow="close")
        await until(lambda: conn not in ours, "the end of a slow member")
        assert len(ours) == 1


async def test_too_much_from_another_node_is_skipped(broker: RedisServer) -> None:
    async with node(broker.url) as one, node(broker.url) as two:
        conn, peer = await one.member()
        group = one.cluster.group("overflow", max_pending=1000)
        group.add(conn)
        await subscribed(group)
        for _ in range(20):
            two.cluster.group("overflow").broadcast_nowait(b"a" * 1000)
        found = one.cluster.statistics
        await until(lambda: found().delivered + found().overflowed == 20)
        assert found().overflowed > 0
        await read(peer, 1000 * found().delivered)
        two.cluster.group("overflow").broadcast_nowait(b"last")
        assert await read(peer, 4) == b"last"
        assert set(one.gaps) == set(one.resumes) == {("overflow", "overflow")}
        assert len(one.gaps) == len(one.resumes) == found().gaps


async def test_a_node_without_members_broadcasts(broker: RedisServer) -> None:
    async with node(broker.url) as one, node(broker.url) as two:
        _, there = await two.member("far")
        one.cluster.group("far").broadcast_nowait(b"hello")
        assert await read(there, 5) == b"hello"
        assert one.cluster.statistics().subscriptions == 0


async def test_prefixes_keep_nodes_apart(broker: RedisServer) -> None:
    async with node(broker.url, prefix="a:") as one, node(broker.url, prefix="b:") as two:
        _, there = await two.member("apart")
        one.cluster.group("apart").broadcast_nowait(b"lost")
        await until(lambda: one.cluster.statistics().published == 1)
        two.cluster.group("apart").broadcast_nowait(b"here")
        assert await read(there, 4) == b"here"


async def test_one_subscription_while_there_are_members(broker: RedisServer) -> None:
    async with node(broker.url) as one:
        group = one.cluster.group("subscribed")
        assert one.cluster.group("subscribed") is group
        with pytest.raises(RuntimeError, match="no members"):
            await group.wait_subscribed()
        a, _ = await one.member("subscribed")
        b, _ = await one.member("subscribed")
        assert await broker.ask(b"PUBSUB NUMSUB", group._channel) == [group._channel, 1]
        a.abort()
        assert await broker.ask(b"PUBSUB NUMSUB", group._channel) == [group._channel, 1]
        group.discard(b)
        await agreed(broker, b"PUBSUB CHANNELS", lambda them: group._channel not in them)
        assert one.cluster.statistics().subscriptions == 0


async def test_subscriptions_follow_members_that_come_and_go(
    broker: RedisServer, long: bool
) -> None:
    """Whatever happens while the broker is told, in the end it knows what is so."""
    rng = random.Random(4)
    async with node(broker.url, prefix="churn:") as one, node(broker.url, prefix="churn:") as two:
        conn, peer = await one.member()
        groups = [one.cluster.group(str(number)) for number in range(6)]
        for turn in range(20_000 if long else 300):
            group = rng.choice(groups)
            (group.add if rng.random() < 0.5 else group.discard)(conn)
            if rng.random() < 0.2:
                await trio.sleep(0)
            if turn % 10 == 0:
                group.add(conn)
                await subscribed(group)
                # What is published from now on arrives, and nothing is left of before.
                two.cluster.group(group.key).broadcast_nowait(b"%8d" % turn)
                assert await read(peer, 8) == b"%8d" % turn
        expected = {it._channel for it in groups if len(it)}
        assert 0 < len(expected) < 6
        pattern = "churn:*"
        await agreed(broker, b"PUBSUB CHANNELS", lambda them: set(them) == expected, pattern)
        assert one.cluster.statistics().subscriptions == len(expected)
        assert one.gaps == []


async def test_waiting_ends_with_the_last_member(broker: RedisServer) -> None:
    async with node(broker.url) as one, trio.open_nursery() as nursery:
        conn, _ = await one.member()
        broker.stop()
        try:
            group = one.cluster.group("waiting")
            group.add(conn)

            async def wait() -> None:
                with pytest.raises(RuntimeError, match="no members"):
                    await group.wait_subscribed()
                ended.set()

            ended = trio.Event()
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            conn.abort()
            with soon("the end of waiting"):
                await ended.wait()
        finally:
            broker.go_on()


async def test_what_is_not_ours_is_counted(
    broker: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with node(broker.url) as one, node(broker.url) as two:
        _, peer = await one.member("garbage")
        group = two.cluster.group("garbage")
        foreign = Envelopes()
        bad = [
            *(b"", b"w", b"hello", b"wk\x02" + bytes(20), b"wk\x01\x00short"),
            foreign.seal("x", closes_slow=False)[:-1] + b"\xff",
            b"wk\x01\x80" + bytes(8),
        ]
        for content in bad * 10:
            await broker.ask(b"PUBLISH", group._channel, content)
        group.broadcast_nowait(b"good")
        assert await read(peer, 4) == b"good"
        assert one.cluster.statistics().malformed == len(bad) * 10
        assert 0 < len(caplog.records) < len(bad) * 5


def test_envelopes() -> None:
    one, two = Envelopes(), Envelopes()
    for data in (b"", b"\x00\xff", "", "grüß", bytearray(b"x"), memoryview(b"yy")):
        for closes_slow in (False, True):
            sealed = one.seal(data, closes_slow=closes_slow)
            assert one.is_own(sealed)
            assert not two.is_own(sealed)
            message, closes = two.unseal(sealed)
            assert (message, closes) == (data, closes_slow)
            assert isinstance(message, str) == isinstance(data, str)
    with pytest.raises(Malformed):
        one.unseal(b"wk\x01\x01" + bytes(8) + b"\xff")


def test_the_oldest_are_dropped_from_a_full_outbox() -> None:
    outbox = Outbox(3 * Outbox.size_of((b"c", b"12345678")))
    assert [outbox.put((b"c", b"message%d" % number)) for number in range(5)] == [0, 0, 0, 1, 1]
    taken = outbox.take(2, 1000)
    assert taken == [(b"c", b"message2"), (b"c", b"message3")]
    assert outbox.put((b"c", b"message5")) == 0
    assert outbox.put_back(taken) == 1
    assert outbox.take(10, 10**6) == [(b"c", b"message%d" % number) for number in (3, 4, 5)]
    assert (len(outbox), outbox.size) == (0, 0)
    assert outbox.put((b"c", bytes(10_000))) == 0, "alone it is taken"
    assert outbox.put((b"c", b"next")) == 1


# -- commands of one's own ---------------------------------------------------------------


async def test_execute(broker: RedisServer) -> None:
    async with node(broker.url) as one:
        execute = one.cluster.execute
        assert await execute("HSET", "executed", "field", b"\xff", "number", 7) == 2
        assert await execute("HGETALL", "executed") == {b"field": b"\xff", b"number": b"7"}
        assert await broker.ask(b"HGET", "executed", "number") == b"7", "the key is as it is"
        assert await execute("GET", "missing") is None
        with pytest.raises(BrokerRefused, match="wrong kind of value"):
            await execute("GET", "executed")
        assert await execute("DEL", "executed") == 1
        for wrong in (7, b"GET", None):
            with pytest.raises(TypeError, match="command must be a str"):
                await execute(wrong, "key")  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="key must be a str"):
                await execute("GET", wrong)  # type: ignore[arg-type]
        for not_sent in (None, 1.5, True, ["x"]):
            with pytest.raises(TypeError, match="arguments must be"):
                await execute("SET", "key", not_sent)  # type: ignore[arg-type]
        for bad in ("subscribe", "Client Reply", "blpop", "", " "):
            with pytest.raises(ValueError, match="command must be"):
                await execute(bad, "key")
        with pytest.raises(ValueError, match="key must be text"):
            await execute("GET", "\udc80")
        with pytest.raises(ValueError, match="arguments must be text"):
            await execute("SET", "key", "\udc80")
        assert one.gaps == []
    with pytest.raises(trio.ClosedResourceError):
        await execute("GET", "missing")


async def test_execute_waits_for_the_broker_for_as_long_as_it_may(broker: RedisServer) -> None:
    async with node(broker.url, response_timeout=0.2) as one:
        broker.stop()
        try:
            with pytest.raises(BrokerUnavailable):
                await one.cluster.execute("GET", "missing")
        finally:
            broker.go_on()


# -- logs ------------------------------------------------------------------------------


async def test_a_log_is_read_from_any_id(broker: RedisServer) -> None:
    async with node(broker.url) as one, node(broker.url) as two:
        log, theirs = one.cluster.log("read"), two.cluster.log("read")
        assert await log.read() == await log.read_last(5) == []
        ids = [await log.append(b"\x00%d" % number) for number in range(10)]
        everything = [(it, b"\x00%d" % number) for number, it in enumerate(ids)]
        assert await theirs.read() == everything
        assert await theirs.read(after=ids[3]) == everything[4:]
        assert await theirs.read(after=ids[3], max_count=2) == everything[4:6]
        assert await theirs.read(after=ids[-1]) == []
        assert await theirs.read_last(3) == everything[-3:]
        await broker.ask(b"XADD", log._name, "*", "somebody", "else's")
        last = await theirs.append("text")
        assert await log.read(after=ids[-1], max_count=1) == [(last, b"text")]


async def test_a_log_is_trimmed(broker: RedisServer) -> None:
    async with node(broker.url) as one:
        log = one.cluster.log("trimmed", max_length=100)
        async with trio.open_nursery() as nursery:
            for _ in range(400):
                nursery.start_soon(log.append, b"x")
        assert 100 <= len(await log.read()) <= 250


async def test_following_goes_on_from_an_id(broker: RedisServer) -> None:
    async with node(broker.url) as one, node(broker.url) as two:
        log = one.cluster.log("followed")
        first = await log.append(b"0")
        follower = two.cluster.log("followed").follow(after=first)
        found = []

        async def follow() -> None:
            async for _, message in follower:
                found.append(message)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            for number in range(1, 20):
                await log.append(b"%d" % number)
                if number % 5 == 0:
                    await until(lambda: len(found) == number)  # noqa: B023
            await until(lambda: len(found) == 19)
            nursery.cancel_scope.cancel()
        # It was cancelled where it waited, and lost nothing.
        await log.append(b"20")
        assert await follower.__anext__() == (follower.last, b"20")
        assert found == [b"%d" % number for number in range(1, 20)]


STEPS = st.one_of(
    st.tuples(st.just("append"), st.binary(max_size=20)),
    st.tuples(st.sampled_from(["read", "follow", "trim"]), st.integers(0, 12)),
    st.tuples(st.sampled_from(["read_last"]), st.integers(1, 12)),
    st.tuples(st.sampled_from(["somebody else", "cut"]), st.none()),
)


@settings(max_examples=8, deadline=None, phases=(Phase.reuse, Phase.generate))
@given(steps=st.lists(STEPS, max_size=30))
def test_a_log_is_what_was_appended(shared: RedisServer, steps: list[tuple[str, Any]]) -> None:
    """Against a list: whatever is appended, read from any id, trimmed, and cut off."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_shard, "FIRST_DELAY", 0.001)
        patch.setattr(_cluster, "RETRY", 0.001)
        trio.run(play, shared, steps)


async def play(broker: RedisServer, steps: list[tuple[str, Any]]) -> None:
    await broker.ready()
    async with node(broker.url) as one:
        log = one.cluster.log(f"model {secrets.token_hex(8)}", max_length=None)
        ids, kept = ["0"], []  # all there ever were; the messages that are there
        follower = log.follow()
        for step, argument in steps:
            if step == "append":
                ids.append(await log.append(argument))
                kept.append((ids[-1], argument))
            elif step == "somebody else":
                ids.append(str(await broker.ask(b"XADD", log._name, "*", "a", "b"), "ascii"))
            elif step == "read":
                after = ids[argument % len(ids)]
                later = [it for it in kept if by_id(it) > by_id((after, b""))]
                assert await log.read(after=after) == later
                found = await log.read(after=after, max_count=3)
                assert found == later[: len(found)]
                assert bool(later) <= len(found) <= 3
            elif step == "read_last":
                found = await log.read_last(argument)
                assert found == kept[len(kept) - len(found) :]
            elif step == "follow":
                for pair in [it for it in kept if by_id(it) > by_id((follower.last, b""))]:
                    assert await follower.__anext__() == pair
            elif step == "trim":
                await broker.ask(b"XTRIM", log._name, "MAXLEN", argument)
                there = await broker.ask(b"XRANGE", log._name, "-", "+")
                alive = {str(it[0], "ascii") for it in there}
                kept = [it for it in kept if it[0] in alive]
                # What a follower has read already it gives all the same.
                follower = log.follow(after=follower.last)
            else:
                for kind in ("normal", "pubsub"):
                    await broker.ask(b"CLIENT KILL", "TYPE", kind, "SKIPME", "yes")
        assert await log.read() == kept


def by_id(pair: tuple[str, bytes]) -> list[int]:
    return [int(it) for it in f"{pair[0]}-0".split("-")[:2]]


# -- outages ---------------------------------------------------------------------------


@pytest.mark.parametrize("reactors", [0, 1], ids=["in-loop", "1-reactor"])
async def test_the_broker_is_killed_under_load(reactors: int) -> None:
    """Members are served by their own node, and nobody is disconnected. Between nodes nothing is
    out of order, or there twice."""
    with redis_server() as server:
        await server.ready()
        async with (
            open_engine(reactors) as engine,
            node(server.url, engine) as one,
            node(server.url) as two,
            trio.open_nursery() as nursery,
        ):
            readers = {}
            for each in (one, two):
                _, peer = await each.member("room")
                readers[each] = Reader()
                nursery.start_soon(readers[each].run, peer)
            sent = {one: 0, two: 0}

            async def load(each: Node, name: bytes) -> None:
                while True:
                    sent[each] += 1
                    each.cluster.group("room").broadcast_nowait(b"%b%d\n" % (name, sent[each]))
                    await trio.sleep(0.001)

            nursery.start_soon(load, one, b"one ")
            nursery.start_soon(load, two, b"two ")
            for outage in (1, 2):
                await until(lambda: len(readers[two].numbers(b"one ")) > 50 * outage)  # noqa: B023
                server.kill()
                for each in (one, two):
                    await until(lambda: len(each.gaps) == outage)  # noqa: B023
                before = sent[one]
                await until(lambda: len(readers[one].numbers(b"one ")) > before + 50)  # noqa: B023
                server.start()
                seen = len(readers[two].numbers(b"one "))
                await until(lambda: len(readers[two].numbers(b"one ")) > seen + 50)  # noqa: B023
                for each in (one, two):
                    await until(lambda: len(each.resumes) == outage)  # noqa: B023
            nursery.cancel_scope.cancel()
        for each, name, other in ((one, b"one ", b"two "), (two, b"two ", b"one ")):
            mine, theirs = readers[each].numbers(name), readers[each].numbers(other)
            assert mine == list(range(1, len(mine) + 1)), "its own node's are all there"
            assert theirs == sorted(set(theirs))
            assert not readers[each].ended
            assert each.gaps == each.resumes == [(None, "disconnected")] * 2
            assert each.cluster.statistics().reconnects == 2


async def test_a_log_loses_nothing_that_was_acknowledged() -> None:
    persistent = ("--appendonly", "yes", "--appendfsync", "always")
    with redis_server(*persistent) as server:
        await server.ready()
        async with node(server.url) as one, node(server.url) as two, trio.open_nursery() as nursery:
            acknowledged: list[tuple[str, bytes]] = []
            followed: list[tuple[str, bytes]] = []

            async def append(number: int) -> None:
                log = one.cluster.log("kept", max_length=None)
                for count in range(1_000_000):
                    message = b"%d %d" % (number, count)
                    acknowledged.append((await log.append(message), message))

            async def follow() -> None:
                async for pair in two.cluster.log("kept").follow():
                    followed.append(pair)

            nursery.start_soon(follow)
            for number in range(5):
                nursery.start_soon(append, number)
            for outage in (1, 2):
                seen = len(followed)
                await until(lambda: len(followed) > seen + 100)  # noqa: B023
                server.kill()
                for each in (one, two):
                    await until(lambda: len(each.gaps) == outage)  # noqa: B023
                server.start()
            seen = len(followed)
            await until(lambda: len(followed) > seen + 100)
            nursery.cancel_scope.cancel()
            kept: list[tuple[str, bytes]] = []
            while more := await one.cluster.log("kept").read(after=kept[-1][0] if kept else "0"):
                kept += more
            assert set(acknowledged) <= set(kept)
            assert followed == kept[: len(followed)]


async def test_a_broker_that_stops_answering() -> None:
    """It is given up, which is told, and what waits for it is bounded."""
    with redis_server() as server:
        await server.ready()
        # The nodes that are to notice do so soon. Where that fires too early, nothing here fails.
        async with (
            node(server.url, response_timeout=0.5, max_queue=20_000) as one,
            node(server.url, response_timeout=0.5) as two,
            trio.open_nursery() as nursery,
        ):
            here, there = Reader(), Reader()
            _, peer = await one.member("room")
            nursery.start_soon(here.run, peer)
            _, peer = await two.member("room")
            nursery.start_soon(there.run, peer)
            server.stop()
            try:
                group = one.cluster.group("room")
                await until(lambda: (None, "disconnected") in one.gaps)
                for number in range(1000):
                    group.broadcast_nowait(b"one %d\n" % number)
                await until(lambda: len(here.lines) == 1000, "members here are served")
                found = one.cluster.statistics()
                assert found.queued_bytes <= 20_000
                assert found.queued + found.dropped + found.unconfirmed >= 1000
                assert one.gaps.count((None, "dropped")) == 1
                with pytest.raises(BrokerUnavailable):
                    await one.cluster.log("room").append(b"x")
            finally:
                server.go_on()
            await until(lambda: (None, "dropped") in one.resumes)
            # What waited is published when the other node had time to come back. It need not have.
            await subscribed(two.cluster.group("room"))
            for number in range(1000, 10_000):
                group.broadcast_nowait(b"one %d\n" % number)
                await trio.sleep(0.001)
                if len(there.lines) > 0 and there.numbers(b"one ")[-1] >= 1000:
                    break
            else:
                raise AssertionError("nothing gets across any more")
            assert there.numbers(b"one ") == sorted(set(there.numbers(b"one ")))
            nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("nothing_left")
async def test_in_another_thread(broker: RedisServer) -> None:
    async with node(broker.url) as one:
        conn, _ = await one.member("thread")
        group, log = one.cluster.group("thread"), one.cluster.log("thread")
        for use in (
            *(lambda: one.cluster.group("x"), lambda: one.cluster.log("x")),
            *(lambda: group.add(conn), lambda: group.broadcast_nowait(b"x")),
            *(lambda: trio.run(log.append, b"x"), lambda: trio.run(group.wait_subscribed)),
        ):
            with pytest.raises(RuntimeError, match="thread"):
                await trio.to_thread.run_sync(use)


# -- opening, and the end --------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        *("http://localhost", "localhost", "redis://", "redis://localhost/name", "unix://"),
        *("redis://localhost:port", "redis+sentinel://localhost", "redis+sentinel://h/s/x"),
        "redis://h?ssl_x=1&db=one",
    ],
)
async def test_bad_urls(url: str) -> None:
    async with open_engine(0) as engine:
        with pytest.raises(ValueError, match="url"):
            async with open_cluster(url, engine):
                pass


def test_what_a_url_says() -> None:
    one = parse("redis://me:p%40ss@h1,h2:7001/3?client_name=x&decode_responses=1", None)
    assert [str(it) for it in one.locations] == ["h1:6379", "h2:7001"]
    assert {"username": "me", "password": "p@ss", "db": 3}.items() <= one.settings.items()
    assert one.settings["decode_responses"] is False
    two = parse("rediss+sentinel://me:pass@h1,[::1]:7/service/2?sentinel_password=sp", None)
    assert two.sentinels is not None
    assert [str(it) for it in two.sentinels.locations] == ["h1:26379", "::1:7"]
    assert two.sentinels.service == "service"
    assert two.sentinels.settings["password"] == "sp"
    assert "username" not in two.sentinels.settings
    assert {"username": "me", "password": "pass", "db": 2}.items() <= two.settings.items()
    assert two.settings["ssl_context"].check_hostname
    with pytest.raises(ValueError, match="rediss"):
        parse("redis://h", two.settings["ssl_context"])
    assert slot_of(b"123456789") == 0x31C3  # as Redis' specification says
    assert slot_of(b"a{user}b") == slot_of(b"{user}") == slot_of(b"user")
    assert slot_of(b"foo{}{bar}") != slot_of(b"bar")


async def test_bad_arguments(broker: RedisServer) -> None:
    async with open_engine(0) as engine:
        for name, value in (
            *(("max_queue", -1), ("response_timeout", 0), ("max_backoff", float("inf"))),
            *(("max_queue", 1.5), ("response_timeout", "1"), ("prefix", b"x")),
            *(("prefix", "\udc80"), ("max_queue", True), ("response_timeout", float("nan"))),
        ):
            with pytest.raises((ValueError, TypeError), match=name):
                async with open_cluster(broker.url, engine, **{name: value}):  # type: ignore[arg-type]
                    pass
        with pytest.raises(TypeError, match="engine"):
            async with open_cluster(broker.url, None):  # type: ignore[arg-type]
                pass
        async with open_cluster(broker.url, engine) as cluster:
            for use in (cluster.group, cluster.log):
                with pytest.raises(TypeError, match="key"):
                    use(b"x")  # type: ignore[arg-type]
                with pytest.raises(ValueError, match="key"):
                    use("\udc80")
            with pytest.raises(ValueError, match="max_length"):
                cluster.log("x", max_length=0)
            log = cluster.log("x")
            for after in ("", "x", "1-", "1-2-3", "$"):
                with pytest.raises(ValueError, match="after"):
                    log.follow(after=after)
            with pytest.raises(ValueError, match="max_count"):
                await log.read(max_count=0)


async def test_a_broker_that_is_not_there() -> None:
    async with open_engine(0) as engine:
        with pytest.raises(BrokerUnavailable, match="refused"):
            async with open_cluster(f"redis://{HOST}:{free_port()}", engine):
                pass


async def test_a_broker_that_refuses(caplog: pytest.LogCaptureFixture) -> None:
    with redis_server("--requirepass", "secret") as server:
        right = server.url.replace("//", "//:secret@")
        await server.ask(b"PING", password="secret")
        async with open_engine(0) as engine:
            for url in (server.url, server.url.replace("//", "//:wrong@"), f"{right}/99"):
                with pytest.raises(BrokerRefused) as caught:
                    async with open_cluster(url, engine):
                        pass
                assert "secret" not in str(caught.value)
        async with node(right) as one, node(right) as two:
            _, peer = await one.member("room")
            two.cluster.group("room").broadcast_nowait(b"in")
            assert await read(peer, 2) == b"in"
    assert not [it for it in caplog.records if it.name == "coredis" and it.levelname == "ERROR"]


async def test_a_subscription_that_is_refused(broker: RedisServer) -> None:
    rules = ("on", ">pw", "~*", "+@all", "resetchannels", "&wknet:group:open*")
    await broker.ask(b"ACL SETUSER", "limited", *rules)
    async with node(broker.url.replace("//", "//limited:pw@")) as one, node(broker.url) as two:
        conn, peer = await one.member()
        keys = ["open 1", "secret 1", "open 2", "secret 2"]
        for key in keys:
            one.cluster.group(key).add(conn)
        for key in keys:
            if key.startswith("open"):
                await subscribed(one.cluster.group(key))
                two.cluster.group(key).broadcast_nowait(b"x")
                assert await read(peer, 1) == b"x"
            else:
                with pytest.raises(BrokerRefused, match=r"No permissions|channel"):
                    await subscribed(one.cluster.group(key))
        assert sorted(one.gaps) == [("secret 1", "refused"), ("secret 2", "refused")]
        one.cluster.group("secret 1").broadcast_nowait(b"y")
        await until(lambda: one.cluster.statistics().dropped == 1)


async def test_a_unix_socket_and_databases(broker: RedisServer) -> None:
    """A log is in a database. Groups are in none of them."""
    unix = f"unix://{broker.socket}?db=3"
    async with node(unix) as one, node(f"{broker.url}/3") as two, node(broker.url) as other:
        _, peer = await one.member("by unix")
        for each in (two, other):
            each.cluster.group("by unix").broadcast_nowait(b"hello")
            assert await read(peer, 5) == b"hello"
        last = await one.cluster.log("in 3").append(b"x")
        assert await two.cluster.log("in 3").read() == [(last, b"x")]
        assert await one.cluster.log("in 3").follow().__anext__() == (last, b"x")
        assert await other.cluster.log("in 3").read() == []


async def test_what_a_user_must_be_permitted(broker: RedisServer) -> None:
    """As the documentation says; and what is missing is named where that can be."""
    rights = ("+ping", "+subscribe", "+unsubscribe", "+publish", "+xadd", "+xread", "+xrevrange")
    rules = ("reset", "on", ">p@ss", "~wknet:*", "resetchannels", "&wknet:*", "+select")
    await broker.ask(b"ACL SETUSER", "least", *rules, *rights)
    for url in (
        broker.url.replace("//", "//least:p%40ss@") + "/1",
        f"unix://least:p%40ss@{broker.socket}?db=1",
    ):
        async with node(url) as one, node(url) as two:
            _, peer = await one.member("least")
            two.cluster.group("least").broadcast_nowait(b"hello")
            assert await read(peer, 5) == b"hello"
            log = one.cluster.log("least")
            last = await log.append(b"x")
            assert (await log.read_last(1))[0] == (await log.read())[-1] == (last, b"x")
            await log.follow().__anext__()
    await broker.ask(b"ACL SETUSER", "least", "-xadd")
    async with node(url) as one:
        with pytest.raises(BrokerRefused, match=r"xadd|this command"):
            await one.cluster.log("least").append(b"x")
    await broker.ask(b"ACL SETUSER", "least", "-ping")
    details = []
    async with node(
        url, response_timeout=0.1, on_gap=lambda key, gap: details.append(gap.detail)
    ) as one:
        conn, _ = await one.member()
        one.cluster.group("least").add(conn)
        await until(lambda: details, "a gap")
        assert "ping" in details[0] or "this command" in details[0]


async def test_tls() -> None:
    if not has_tls():
        pytest.skip("redis-server is built without TLS")
    authority = trustme.CA()
    with redis_server() as plain:
        folder = plain._folder
        authority.cert_pem.write_to_path(folder / "ca.pem")
        certificate = authority.issue_cert("localhost")
        certificate.private_key_pem.write_to_path(folder / "key.pem")
        certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
        port = free_port()
        files = ("--tls-cert-file", f"{folder}/cert.pem", "--tls-key-file", f"{folder}/key.pem")
        with redis_server(
            "--tls-port", str(port), *files, "--tls-ca-cert-file", f"{folder}/ca.pem",
            "--tls-auth-clients", "no",
        ) as server:  # fmt: skip
            await server.ready()
            context = ssl_context(authority)
            url = f"rediss://localhost:{port}"
            async with node(url, ssl_context=context) as one, node(url, ssl_context=context) as two:
                _, peer = await one.member("room")
                two.cluster.group("room").broadcast_nowait(b"in")
                assert await read(peer, 2) == b"in"
            async with open_engine(0) as engine:
                for bad, trust in ((url, None), (f"rediss://127.0.0.1:{port}", context)):
                    with pytest.raises(BrokerUnavailable, match="certificate"):
                        async with open_cluster(bad, engine, ssl_context=trust):
                            pass


def ssl_context(authority: trustme.CA) -> Any:
    import ssl

    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_what_the_block_raises_is_in_no_group(broker: RedisServer) -> None:
    async with open_engine(0) as engine:
        with pytest.raises(ZeroDivisionError):
            async with open_cluster(broker.url, engine):
                raise ZeroDivisionError
        with trio.CancelScope() as scope:
            async with open_cluster(broker.url, engine):
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught


@pytest.mark.usefixtures("nothing_left")
async def test_opening_can_be_cancelled_at_each_step(broker: RedisServer) -> None:
    async with open_engine(0) as engine:
        for steps in range(200):
            opened = False
            with trio.CancelScope() as scope:

                async def cancel(scope: trio.CancelScope, steps: int) -> None:
                    for _ in range(steps):
                        await trio.sleep(0)
                    scope.cancel()

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(cancel, scope, steps)
                    async with open_cluster(broker.url, engine) as cluster:
                        opened = True
                        cluster.group("x").broadcast_nowait(b"x")
                    nursery.cancel_scope.cancel()
            if opened and not scope.cancelled_caught:
                break
        else:
            raise AssertionError("it never opened")


@pytest.mark.usefixtures("nothing_left")
async def test_opening_at_one_that_says_nothing() -> None:
    with socket.create_server((HOST, 0)) as listener:
        async with open_engine(0) as engine:
            url = f"redis://{HOST}:{listener.getsockname()[1]}"
            with pytest.raises(BrokerUnavailable, match=r"did not answer in 0\.05 seconds"):
                async with open_cluster(url, engine, response_timeout=0.05):
                    pass


async def test_after_the_end(broker: RedisServer) -> None:
    async with open_engine(0) as engine, conn_and_peer(engine) as (conn, peer):
        async with open_cluster(broker.url, engine) as cluster:
            group, log, other = cluster.group("end"), cluster.log("end"), cluster.group("other")
            group.add(conn)
            follower = log.follow()
            group.broadcast_nowait(b"last words")
        assert await read(peer, 10) == b"last words"
        assert cluster.statistics().published == 1, "what waits is published"
        for use in (
            *(lambda: cluster.group("x"), lambda: cluster.log("x")),
            *(lambda: other.add(conn), lambda: group.broadcast_nowait(b"x")),
        ):
            with pytest.raises(trio.ClosedResourceError):
                use()
        for wait in (
            *(group.wait_subscribed, log.read, follower.__anext__, lambda: group.broadcast(b"x")),
            *(lambda: log.append(b"x"), lambda: log.read_last(1)),
        ):
            with pytest.raises(trio.ClosedResourceError):
                await wait()
        assert len(group) == 1
        group.discard(conn)


async def test_those_who_wait_learn_that_it_is_closed(broker: RedisServer) -> None:
    ended = []

    async def wait(waiting: Any) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await waiting()
        ended.append(waiting)

    async with trio.open_nursery() as nursery, open_engine(0) as engine:
        async with open_cluster(broker.url, engine) as cluster:
            follower = cluster.log("nothing ever").follow()
            nursery.start_soon(wait, follower.__anext__)
            await agreed(broker, b"CLIENT LIST", lambda them: b"cmd=xread" in them)
        await until(lambda: len(ended) == 1)


async def test_callbacks_that_fail_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    def fail(key: str | None, gap: Gap) -> None:
        raise ZeroDivisionError

    with redis_server() as server:
        await server.ready()
        async with (
            open_engine(0) as engine,
            open_cluster(server.url, engine, on_gap=fail, max_backoff=0.1) as cluster,
        ):
            server.kill()
            await until(lambda: cluster.statistics().gaps == 1)
            server.start()
            await until(lambda: cluster.statistics().reconnects == 1)
    assert [it for it in caplog.records if it.exc_info and it.name == "trio_wknet.contrib.redis"]


def test_errors() -> None:
    assert issubclass(BrokerRefused, BrokerError)
    assert issubclass(BrokerUnavailable, BrokerError)


# -- a Redis Cluster -------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster_brokers() -> Iterator[list[RedisServer]]:
    with cluster_servers() as servers:
        trio.run(make_cluster, servers)
        yield servers


@pytest.mark.parametrize("form", ["sharded", "classic"])
async def test_a_redis_cluster(
    cluster_brokers: list[RedisServer], form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each channel is at the shard that has its slot, and only there; a shard that dies costs its
    own; a slot that moves takes its channels along. Before version 7 every server has all
    messages, and does not say that a slot has moved."""
    servers, prefix = cluster_brokers, f"{form}:"
    hello = await servers[0].ask(b"HELLO", 3)
    if form == "classic":
        monkeypatch.setattr(_layout, "SHARDED", _shard.CLASSIC)
    elif hello[b"version"] < b"7":
        pytest.skip("before version 7 there are no shards")
    channels = b"PUBSUB SHARDCHANNELS" if form == "sharded" else b"PUBSUB CHANNELS"
    keys = [f"room:{number}" for number in range(12)]

    def leave(key: str | None, gap: Gap) -> None:
        assert key is not None
        three.cluster.group(key).discard(leaving)

    def name(channel: bytes) -> str:
        return channel.decode().removeprefix(f"{prefix}group:")

    async with (
        node(servers[0].url, prefix=prefix) as one,
        node(servers[2].url, prefix=prefix) as two,
        node(servers[1].url, prefix=prefix, on_gap=leave) as three,
    ):
        _, peer = await one.member(*keys)
        leaving, _ = await three.member(*keys)
        shares = [set(await it.ask(channels, f"{prefix}*")) for it in servers]
        assert all(shares)
        assert sum(map(len, shares)) == len(keys)
        for key in keys:
            two.cluster.group(key).broadcast_nowait(key.encode().ljust(8))
            assert await read(peer, 8) == key.encode().ljust(8)
            last = await two.cluster.log(key).append(key)
            assert await one.cluster.log(key).read() == [(last, key.encode())]

        # One of the slots goes from the first server to the second, without what is in it.
        channel = min(shares[0])
        key, slot = name(channel), slot_of(f"{prefix}log:{name(channel)}".encode())
        slots = {slot_of(channel), slot}
        ids = [str(await it.ask(b"CLUSTER MYID"), "ascii") for it in servers]
        await servers[0].ask(b"FLUSHALL")
        for each in slots:
            for server in (servers[1], servers[0], servers[2]):
                await server.ask(b"CLUSTER SETSLOT", each, "NODE", ids[1])
        await one.cluster.log(key).append(b"finds out")
        await until(lambda: (key, "moved") in one.resumes)
        assert one.gaps == [(key, "moved")]
        two.cluster.group(key).broadcast_nowait(b"moved")
        assert await read(peer, 5) == b"moved"
        await until(lambda: not len(three.cluster.group(key)) or form == "classic")

        # The third dies, and comes back.
        lost = {name(it) for it in shares[2]}
        servers[2].kill()
        await until(lambda: len(one.gaps) == 1 + len(lost))
        assert set(one.gaps[1:]) == {(it, "disconnected") for it in lost}
        await until(
            lambda: all(not len(three.cluster.group(it)) for it in lost),
            "what on_gap does to other members",
        )
        two.cluster.group(key).broadcast_nowait(b"still")
        assert await read(peer, 5) == b"still"
        servers[2].start()
        await until(lambda: len(one.resumes) == 1 + len(lost))
        two.cluster.group(min(lost)).broadcast_nowait(b"back")
        assert await read(peer, 4) == b"back"


# -- Sentinel --------------------------------------------------------------------------


async def test_sentinel_names_another_primary(long: bool) -> None:
    if not long:
        pytest.skip("Sentinel takes its time for a failover: --long")
    with redis_server() as first, redis_server() as second, ExitStack() as stack:
        await first.ready()
        await second.ask(b"REPLICAOF", HOST, first.port)
        await agreed(second, b"INFO", lambda it: b"master_link_status:up" in it, "replication")
        sentinel = stack.enter_context(sentinel_for(first))
        await agreed(sentinel, b"SENTINEL REPLICAS", len, "service")
        url = f"redis+sentinel://{HOST}:1,{HOST}:{sentinel.port}/service"
        async with open_engine(0) as engine:
            with pytest.raises(BrokerRefused, match="is a Sentinel"):
                async with open_cluster(sentinel.url, engine):
                    pass
            with pytest.raises(BrokerUnavailable, match="does not watch 'other'"):
                async with open_cluster(url.replace("service", "other"), engine):
                    pass
        async with node(url) as one, node(url) as two:
            _, peer = await one.member("room")
            two.cluster.group("room").broadcast_nowait(b"1")
            assert await read(peer, 1) == b"1"
            first.kill()
            await agreed(sentinel, b"SENTINEL FAILOVER", lambda it: it == b"OK", "service")
            for each in (one, two):
                await until(lambda: each.resumes == [(None, "disconnected")])  # noqa: B023
            two.cluster.group("room").broadcast_nowait(b"2")
            assert await read(peer, 1) == b"2"
            assert await second.ask(b"PUBSUB CHANNELS") == [b"wknet:group:room"]
