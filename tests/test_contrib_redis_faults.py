"""trio_wknet.contrib.redis with a broker that a test scripts: answers that are late, wrong, cut
off or missing, in every order that has to be right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from helpers import conn_and_peer

from trio_wknet import open_engine

pytest.importorskip("coredis")

from redis_nodes import LONG, node, soon, subscribed, until
from redis_servers import ScriptedBroker

from trio_wknet.contrib.redis import Gap, _cluster, _shard, open_cluster


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once, where a test has much go wrong."""
    monkeypatch.setattr(_shard, "FIRST_DELAY", 0.001)
    monkeypatch.setattr(_cluster, "RETRY", 0.001)


ENTRY = b"*1\r\n*2\r\n$3\r\n7-1\r\n*2\r\n$1\r\nm\r\n$5\r\nhello\r\n"
ANSWERS = {
    b"HELLO": ScriptedBroker.HELLO,
    b"PING": b"+PONG\r\n",
    b"PUBLISH": b":1\r\n",
    b"XADD": b"$3\r\n7-1\r\n",
    b"XREAD": b"%1\r\n$14\r\nwknet:log:room\r\n" + ENTRY,
    b"XREVRANGE": ENTRY,
}
GOOD = [("7-1", b"hello")]


def usual(command: list[bytes]) -> bytes:
    if command[0] == b"SUBSCRIBE":
        push = b">3\r\n$9\r\nsubscribe\r\n$%d\r\n%b\r\n:1\r\n"
        return b"".join(push % (len(it), it) for it in command[1:])
    return ANSWERS.get(command[0], b"+OK\r\n")


async def test_a_server_that_still_loads_is_tried_again(nursery: trio.Nursery) -> None:
    """It refuses PING, to which an error in place of a subscription would be the same."""
    pings = 0

    def answer(command: list[bytes]) -> bytes:
        nonlocal pings
        pings += command[0] == b"PING"
        return b"-LOADING it is\r\n" if command[0] == b"PING" and pings <= 2 else usual(command)

    scripted = ScriptedBroker(answer)
    await nursery.start(scripted.serve)
    async with node(scripted.url) as one:
        await one.member("room")
        await until(lambda: pings >= 3 and one.cluster.statistics().connected)
        assert one.cluster.statistics().subscriptions == 1
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("lost", ["PUBLISH", "SUBSCRIBE"])
@pytest.mark.usefixtures("hasty")
async def test_what_was_on_its_way_is_not_sent_again(nursery: trio.Nursery, lost: str) -> None:
    """Whichever of the two connections is lost."""
    connections: dict[bytes, object] = {}
    published: list[bytes] = []

    def answer(command: list[bytes]) -> bytes:
        connections[command[0]] = scripted.connection
        if command[0] == b"PUBLISH":
            published.append(command[2][-1:])
            return b"" if published == [b"1"] else usual(command)
        return usual(command)

    scripted = ScriptedBroker(answer)
    await nursery.start(scripted.serve)
    async with node(scripted.url) as one:
        await one.member("room")
        group = one.cluster.group("room")
        group.broadcast_nowait(b"1")
        await until(lambda: published == [b"1"])
        scripted.cut(connections[lost.encode()])
        await until(lambda: one.cluster.statistics().unconfirmed == 1, "what is not known")
        group.broadcast_nowait(b"2")
        await until(lambda: one.cluster.statistics().published == 1)
        assert published == [b"1", b"2"]
        await until(lambda: one.gaps == one.resumes == [(None, "disconnected")])
    nursery.cancel_scope.cancel()


async def test_what_waited_gives_other_nodes_time(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an outage: as long as the pause before the attempt that succeeded."""
    monkeypatch.setattr(_shard, "FIRST_DELAY", 0.1)
    at: dict[bytes, float] = {}

    def answer(command: list[bytes]) -> bytes:
        at[command[0]] = trio.current_time()
        return usual(command)

    scripted = ScriptedBroker(answer, hello=True)
    await nursery.start(scripted.serve)
    async with node(scripted.url) as one:
        one.cluster.group("room").broadcast_nowait(b"at once")
        await until(lambda: b"PUBLISH" in at)
        before = at[b"PUBLISH"]
        scripted.cut()
        await until(lambda: not one.cluster.statistics().connected)
        one.cluster.group("room").broadcast_nowait(b"later")
        await until(lambda: at[b"PUBLISH"] > before)
        assert at[b"PUBLISH"] - at[b"HELLO"] >= 0.09
    nursery.cancel_scope.cancel()


async def test_errors_among_subscriptions_belong_to_those(nursery: trio.Nursery) -> None:
    """Errors have no name. Whatever was not subscribed is tried by itself."""
    refused = {b"wknet:group:%d" % number for number in (1, 4, 5)}

    def answer(command: list[bytes]) -> bytes:
        if command[0] == b"SUBSCRIBE" and refused & set(command):
            return b"-NOPERM to access one of the channels\r\n"
        return usual(command)

    scripted = ScriptedBroker(answer)
    await nursery.start(scripted.serve)
    async with node(scripted.url) as one:
        conn, _ = await one.member()
        for number in range(8):
            one.cluster.group(str(number)).add(conn)
        await until(lambda: one.cluster.statistics().subscriptions == 5)
        await until(lambda: len(one.gaps) == 3)
        assert {key for key, _ in one.gaps} == {"1", "4", "5"}
    nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("hasty")
async def test_those_who_wait_outlast_attempts_that_fail(nursery: trio.Nursery) -> None:
    """Whoever waits for the broker since before an attempt to connect goes on after another."""
    scripted = ScriptedBroker(usual)
    await nursery.start(scripted.serve)
    async with node(scripted.url, max_backoff=0.01) as one, trio.open_nursery() as waiting:
        log, found = one.cluster.log("room"), []
        scripted.refuses = True
        scripted.cut()
        await until(lambda: not one.cluster.statistics().connected)

        async def wait(ask: Callable[[], Any], expected: object) -> None:
            assert await ask() == expected
            found.append(ask)

        asked = (
            *((log.read, GOOD), (lambda: log.read_last(1), GOOD)),
            *((lambda: log.append(b"hello"), "7-1"), (log.follow().__anext__, GOOD[0])),
        )
        for ask, expected in asked:
            waiting.start_soon(wait, ask, expected)
        await until(lambda: scripted.refused >= 5)
        scripted.refuses = False
        await until(lambda: len(found) == len(asked), "an answer for each that waits")
        assert one.gaps == one.resumes == [(None, "disconnected")]
    nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("hasty")
async def test_what_is_begun_while_a_session_ends(nursery: trio.Nursery) -> None:
    """A session takes some turns of Trio's loop to end. Commands come in each of them, and
    messages, of which each is published, or counted as lost."""
    scripted = ScriptedBroker(usual)
    await nursery.start(scripted.serve)
    async with node(scripted.url) as one, trio.open_nursery() as working:
        broadcasts = 0
        for outage in range(1, 11):
            scripted.cut()
            while len(one.gaps) < outage or not one.cluster.statistics().connected:
                working.start_soon(one.cluster.log("room").append, b"x")
                one.cluster.group("room").broadcast_nowait(b"x")
                broadcasts += 1
                await trio.sleep(0)
        await until(lambda: not working.child_tasks, "an answer for each")
        await until(lambda: one.cluster.statistics().queued == 0, "an end of what waits")

        def told() -> int:
            found = one.cluster.statistics()
            return found.published + found.unconfirmed + found.dropped

        await until(lambda: told() == broadcasts, "what became of each message")
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("asked", ["PING", "PUBLISH", "XADD", "XREAD", "XREVRANGE", "HELLO"])
@pytest.mark.usefixtures("hasty")
async def test_answers_that_go_wrong(nursery: trio.Nursery, asked: str) -> None:
    """Whatever comes in place of an answer costs the connection at most, and what was asked for
    is asked again, on another."""
    name = asked.encode()
    right = ANSWERS[name]
    wrong = [
        *(b"", right[:1], right[:-1], right[: len(right) // 2]),
        *(b"$x\r\n", b"?\r\n", b"-\xff\xfe\r\n", b"=5\r\nabc:x\r\n", b"*x\r\n"),
        *(b"-LOADING it is\r\n", b"-ERR max number of clients reached\r\n"),
    ]
    left: list[bytes] = []

    def answer(command: list[bytes]) -> bytes:
        if command[0] == name and left:
            return left.pop() + ScriptedBroker.CUT
        return usual(command)

    scripted = ScriptedBroker(answer, hello=name == b"HELLO")
    await nursery.start(scripted.serve)
    async with node(scripted.url, max_backoff=0.001) as one:
        log, group = one.cluster.log("room"), one.cluster.group("room")
        follower = log.follow()
        conn, _ = await one.member()
        for each in wrong:
            left.append(each)
            if asked == "HELLO":
                scripted.cut()
            with soon(f"what is right after {each!r}"):
                published = one.cluster.statistics().published
                group.discard(conn)
                group.add(conn)
                await group.wait_subscribed()
                assert await log.append(b"hello") == "7-1"
                assert await log.read_last(1) == GOOD
                assert await follower.__anext__() == GOOD[0]
                group.broadcast_nowait(b"x")
                while left or one.cluster.statistics().published == published:
                    group.broadcast_nowait(b"x")
                    await trio.sleep(0)
    nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("hasty")
async def test_a_follower_leaves_a_connection_that_hangs(nursery: trio.Nursery) -> None:
    hanging: list[object] = []  # the connection that never answers

    def answer(command: list[bytes]) -> bytes:
        if command[0] == b"XREAD" and not hanging:
            hanging.append(scripted.connection)
        return b"" if scripted.connection in hanging else usual(command)

    scripted = ScriptedBroker(answer)
    await nursery.start(scripted.serve)
    async with node(scripted.url, response_timeout=0.1) as one:
        with soon("a message for the follower"):
            assert await one.cluster.log("room").follow().__anext__() == GOOD[0]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("which", ["subscriber", "idle commander", "busy commander"])
@pytest.mark.usefixtures("hasty")
async def test_one_connection_that_hangs_is_noticed(nursery: trio.Nursery, which: str) -> None:
    """As where packets are lost, on that one alone: nothing says that it has ended."""
    connections: dict[bytes, object] = {}
    hanging: list[object] = []

    def answer(command: list[bytes]) -> bytes:
        connections[command[0]] = scripted.connection
        return b"" if scripted.connection in hanging else usual(command)

    scripted = ScriptedBroker(answer)
    await nursery.start(scripted.serve)
    async with node(scripted.url, response_timeout=0.1) as one:
        await one.member("room")
        one.cluster.group("room").broadcast_nowait(b"x")
        await until(lambda: b"PUBLISH" in connections, "the first message")
        before = len(one.gaps)  # where 0.1 s are too short for this machine
        hanging.append(connections[b"SUBSCRIBE" if which == "subscriber" else b"PUBLISH"])
        if which == "busy commander":
            one.cluster.group("room").broadcast_nowait(b"x")
        await until(lambda: len(one.gaps) > before, "a gap")
        await until(lambda: len(one.resumes) == len(one.gaps), "its end")
        assert set(one.gaps) == {(None, "disconnected")}
    nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("hasty")
async def test_a_broker_that_is_slow_makes_nothing_grow(nursery: trio.Nursery) -> None:
    """What waits is bounded also while nobody has noticed yet that nothing is answered."""
    silent = False
    scripted = ScriptedBroker(lambda command: b"" if silent else usual(command))
    await nursery.start(scripted.serve)
    async with node(scripted.url, max_queue=20_000) as one, trio.open_nursery() as appending:
        conn, _ = await one.member("room")
        silent = True
        log, answered = one.cluster.log("room"), []

        async def append() -> None:
            answered.append(await log.append(bytes(1000)))

        for _ in range(400):
            appending.start_soon(append)
        for number in range(3000):
            one.cluster.group("room").broadcast_nowait(bytes(100))
            group = one.cluster.group(f"room {number % 100}")
            (group.discard if conn in group else group.add)(conn)
            if number % 100 == 0:
                await trio.sleep(0)
        (shard,) = one.cluster._layout.shards
        assert shard.session is not None
        for connection in (shard.session.commander, shard.session.subscriber):
            waiting = connection._write_buffer_in.statistics().current_buffer_used
            assert max(waiting, len(connection._requests)) <= _shard.COMMANDS_AT_ONCE + 2
        found = one.cluster.statistics()
        assert found.queued_bytes <= 20_000
        assert len(shard._dirty) <= 101
        assert shard._batch is not None
        in_flight = len(shard._batch.messages)
        assert 0 < in_flight <= _shard.BATCH_COUNT
        assert found.queued + found.dropped + in_flight == 3000
        assert one.gaps == [(None, "dropped")]
        silent = False
        scripted.cut()
        await until(lambda: len(answered) == 400, "an answer for each that waits")
        await until(lambda: len(one.resumes) == 2)
        assert sorted(one.resumes) == [(None, "disconnected"), (None, "dropped")]
    nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("hasty")
async def test_a_gap_right_after_the_first_subscription(nursery: trio.Nursery) -> None:
    """From when a subscription is confirmed somebody may rely on it."""
    silent = False

    def answer(command: list[bytes]) -> bytes:
        return b"" if command[0] == b"PING" and silent else usual(command)

    scripted = ScriptedBroker(answer)
    await nursery.start(scripted.serve)
    # In which order the first turns come is Trio's affair, and it tosses a coin.
    for _ in range(6):
        async with node(scripted.url) as one:
            silent = True
            await one.member("room")
            scripted.cut()
            await until(lambda: one.gaps == [(None, "disconnected")])
            assert one.resumes == []
            silent = False
            await until(lambda: one.resumes == [(None, "disconnected")])
            assert one.cluster.statistics().reconnects == 1
    nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("hasty")
async def test_callbacks_may_use_the_cluster(nursery: trio.Nursery) -> None:
    scripted = ScriptedBroker(usual)
    await nursery.start(scripted.serve)
    async with open_engine(0) as engine, conn_and_peer(engine) as (conn, _):
        calls: list[str | None] = []

        def on_gap(key: str | None, gap: Gap) -> None:
            one.cluster.group("room").discard(conn)
            one.cluster.group("lost").add(conn)
            calls.append(key)

        def on_resume(key: str | None, gap: Gap) -> None:
            one.cluster.group("found").add(conn)
            calls.append(key)

        async with node(scripted.url, engine, on_gap=on_gap, on_resume=on_resume) as one:
            one.cluster.group("room").add(conn)
            await subscribed(one.cluster.group("room"))
            scripted.cut()
            await until(lambda: len(calls) == 2, "a call of each")
            await subscribed(one.cluster.group("lost"))
            await subscribed(one.cluster.group("found"))
            await until(lambda: one.cluster.statistics().subscriptions == 2)
    nursery.cancel_scope.cancel()


async def test_leaving_waits_for_nothing(nursery: trio.Nursery) -> None:
    """A follower is about to connect, and a subscription to be confirmed, by a broker that says
    nothing. Both learn that the cluster is closed."""
    silent = False
    scripted = ScriptedBroker(lambda command: b"" if silent else usual(command), hello=True)
    await nursery.start(scripted.serve)

    async def wait(ask: Callable[[], Any]) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await ask()

    async with (
        trio.open_nursery() as waiting,
        open_engine(0) as engine,
        conn_and_peer(engine) as (conn, _),
    ):
        with soon("the end"):
            async with open_cluster(scripted.url, engine, response_timeout=LONG) as cluster:
                silent = True
                group = cluster.group("room")
                group.add(conn)
                waiting.start_soon(wait, cluster.log("room").follow().__anext__)
                waiting.start_soon(wait, group.wait_subscribed)
                for asked, count in ((b"SUBSCRIBE", 1), (b"HELLO", 4)):
                    await until(
                        lambda: [it[0] for it in scripted.asked].count(asked) == count,  # noqa: B023
                        f"{asked!r}, {count} times",
                    )
        await until(lambda: not waiting.child_tasks, "what those learn who wait")
    nursery.cancel_scope.cancel()
