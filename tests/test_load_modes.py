"""The load generator by the clock, and with a new connection for every message."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

from load_servers import echo, read, serving

from trio_wknet._load.run import LoadProgress

# -- Open loop -----------------------------------------------------------------


def test_open_loop_sends_the_schedule_and_no_more() -> None:
    with serving(echo) as server:
        result = server.load(connections=3, rate=1000.0, duration=0.1, warmup=0.05, verify=True)
    assert (result.ended, result.started, result.answered) == ("duration", 150, 150)
    assert result.latency.count == 100


def test_open_loop_with_a_count_ends_by_it() -> None:
    with serving(echo) as server:
        result = server.load(connections=3, rate=1000.0, count=20)
    assert (result.ended, result.started, result.answered) == ("count", 20, 20)


def test_a_stall_shows_from_the_schedule() -> None:
    """Message j of 50, 10 ms apart, has no answer before message 49 was sent."""

    def withhold(conn: socket.socket) -> None:
        conn.sendall(read(conn, 50 * 64))
        echo(conn)

    with serving(withhold) as server:
        result = server.load(connections=1, rate=100.0, duration=0.5)
    assert (result.answered, result.latency.count) == (50, 50)
    assert result.latency.max >= 0.49
    assert result.latency.p50 >= 0.24
    assert result.latency.mean >= 0.24


def test_what_waits_for_its_turn_is_counted_from_the_schedule_too() -> None:
    """Only one message is let out; the others wait for it on our side."""
    release = threading.Event()

    def gated(conn: socket.socket) -> None:
        first = read(conn, 64)
        release.wait()
        conn.sendall(first)
        echo(conn)

    def watch(now: LoadProgress) -> None:
        if now.phase == "drain":
            release.set()

    with serving(gated) as server:
        result = server.load(connections=1, rate=100.0, duration=0.5, depth=1, on_progress=watch)
    assert (result.started, result.answered, result.messages) == (50, 50, 0)
    assert result.latency.max >= 0.5
    assert result.latency.p50 >= 0.25


def test_messages_due_on_a_lost_connection_are_unfinished() -> None:
    first = threading.Lock()

    def one_bad(conn: socket.socket) -> None:
        if first.acquire(blocking=False):
            read(conn, 64)
        else:
            echo(conn)

    with serving(one_bad) as server:
        result = server.load(connections=2, rate=1000.0, duration=0.1)
    assert (result.started, result.answered, result.unfinished) == (100, 50, 50)
    # A server that closes with bytes unread resets.
    assert result.errors.eof + result.errors.reset == 1


# -- Churn ---------------------------------------------------------------------


def test_churn_connects_for_every_message() -> None:
    with serving(echo) as server:
        result = server.load(connections=5, size=100, churn=True, count=200, verify=True)
    assert (result.ended, result.answered, result.opened) == ("count", 200, 200)
    assert len(server.peers) == 200
    assert {peer[0] for peer in server.peers} == {f"127.0.0.{i}" for i in range(1, 65)}


def test_churn_without_several_sources(tmp_path: Path) -> None:
    with serving(echo) as server:
        assert server.load(connections=2, churn=True, count=10, sources=0).answered == 10
        assert {peer[0] for peer in server.peers} == {"127.0.0.1"}
    with serving(echo, socket.AF_UNIX, str(tmp_path / "echo")) as server:
        assert server.load(connections=2, churn=True, count=10).answered == 10


def test_churn_ends_when_nothing_succeeds_any_more() -> None:
    def rude(conn: socket.socket) -> None:
        read(conn, 64)

    with serving(rude) as server:
        result = server.load(connections=1, churn=True)
    assert (result.ended, result.answered, result.ok) == ("server_gone", 0, False)
    assert result.errors.eof == result.errors.total == 1 + 64
