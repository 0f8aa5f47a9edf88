"""The load generator in its closed loop: what it counts, what fails, how it is ended."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from load_servers import (
    agreement,
    echo,
    echo_messages,
    read,
    read_frame,
    read_head,
    read_message,
    serving,
    write_message,
)

from trio_wknet._load.options import LoadOptions
from trio_wknet._load.run import LoadProgress, prepare, run_load

# -- What is counted -----------------------------------------------------------


@pytest.mark.parametrize(
    ("connections", "depth", "size", "count"),
    [(1, 1, 1, 50), (4, 3, 10, 500), (3, 1, 600_000, 9), (2, 64, 7001, 200), (9, 1, 64, 5)],
)
def test_each_message_is_counted_once(connections: int, depth: int, size: int, count: int) -> None:
    with serving(echo) as server:
        result = server.load(
            connections=connections, depth=depth, size=size, count=count, verify=True
        )
    assert (result.ended, result.ok) == ("count", True)
    assert (result.started, result.answered, result.unfinished) == (count, count, 0)
    assert result.messages == result.latency.count == count
    assert result.opened == connections
    assert result.errors.total == 0


def test_the_server_gets_what_was_counted_and_no_more() -> None:
    got = []

    def counting(conn: socket.socket) -> None:
        while data := conn.recv(1 << 16):
            got.append(len(data))
            conn.sendall(data)

    with serving(counting) as server:
        result = server.load(connections=5, size=33, depth=4, count=321)
    assert sum(got) == 33 * result.answered == 33 * 321


def test_ipv6() -> None:
    with serving(echo, socket.AF_INET6, ("::1", 0)) as server:
        assert server.load(connections=2, count=20, verify=True).answered == 20


def test_an_abstract_name_and_a_percent_sign(tmp_path: Path) -> None:
    name = f"trio_wknet-{os.getpid()}%41"
    for address, url in (
        (f"\0{name}", f"unix://@{name}"),
        (f"{tmp_path}/{name}", f"unix://{tmp_path}/{name}"),
    ):
        with serving(echo, socket.AF_UNIX, address):
            assert run_load(LoadOptions(url, connections=2, count=20)).answered == 20


def test_a_unix_socket_whose_backlog_is_shorter_than_the_ramp(tmp_path: Path) -> None:
    with serving(echo, socket.AF_UNIX, str(tmp_path / "echo")) as server:
        server.listener.listen(1)
        result = server.load(connections=60, count=600, verify=True)
    assert (result.opened, result.answered, result.errors.total) == (60, 600, 0)


def test_a_name_with_several_addresses_finds_the_one_that_answers() -> None:
    with serving(echo) as server:
        options = LoadOptions("localhost", server.options().port, count=10, connections=1)
        assert run_load(options).answered == 10


def test_the_end_by_duration() -> None:
    with serving(echo) as server:
        result = server.load(connections=2, duration=0.05, warmup=0.05)
    assert (result.ended, result.unfinished, result.ok) == ("duration", 0, True)
    assert result.answered >= result.messages


# -- Messages of a protocol ----------------------------------------------------


@pytest.mark.parametrize(
    ("connections", "depth", "size", "count"),
    [(1, 1, 1, 50), (4, 16, 64, 500), (2, 3, 70_000, 12), (1, 2, 1 << 20, 6)],
)
def test_frames_are_frames(connections: int, depth: int, size: int, count: int) -> None:
    got: list[bytes] = []

    def frames(conn: socket.socket) -> None:
        while True:
            frame = read_frame(conn)
            got.append(frame)
            conn.sendall(frame)

    with serving(frames) as server:
        result = server.load(
            protocol="length-prefixed",
            connections=connections,
            depth=depth,
            size=size,
            count=count,
            verify=True,
        )
    assert (result.answered, result.errors.total) == (count, 0)
    assert result.megabytes_per_second * 1e6 == pytest.approx(result.messages_per_second * size)
    assert {len(frame) for frame in got} == {4 + size}
    assert len(got) == count


@pytest.mark.parametrize("protocol", ["websocket", "websocket-text"])
@pytest.mark.parametrize(
    ("depth", "size", "count"),
    [(1, 1, 20), (16, 64, 200), (2, 125, 9), (2, 126, 9), (1, 65_535, 4), (2, 65_536, 5)],
)
def test_websocket_messages(protocol: str, depth: int, size: int, count: int) -> None:
    got: list[tuple[int, bytes]] = []

    def messages(conn: socket.socket) -> None:
        conn.sendall(agreement(read_head(conn)))
        while True:
            got.append(read_message(conn))
            conn.sendall(write_message(*got[-1]))

    with serving(messages) as server:
        result = server.load(
            protocol=protocol, connections=2, depth=depth, size=size, count=count, verify=True
        )
    assert (result.answered, result.opened, result.errors.total) == (count, 2, 0)
    assert {len(data) for _, data in got} == {size}
    assert {opcode for opcode, _ in got} == {1 if protocol == "websocket-text" else 2}
    if protocol == "websocket-text" and size >= 64:
        text = "".join(data.decode() for _, data in got)
        assert {len(character.encode()) for character in text} == {1, 2, 3, 4}


def test_websocket_by_the_clock_and_with_a_connection_for_each_message() -> None:
    with serving(echo_messages) as server:
        rest: dict[str, Any] = {"protocol": "websocket", "connections": 3, "verify": True}
        paced = server.load(rate=1000.0, count=30, **rest)
        churn = server.load(churn=True, count=30, **rest)
    assert (paced.answered, paced.opened, paced.errors.total) == (30, 3, 0)
    assert (churn.answered, churn.opened, churn.errors.total) == (30, 30, 0)


def test_a_websocket_request_names_the_host(tmp_path: Path) -> None:
    heads: list[bytes] = []

    def noting(conn: socket.socket) -> None:
        heads.append(read_head(conn))
        conn.sendall(agreement(heads[-1]))
        conn.sendall(write_message(*read_message(conn)))
        conn.recv(1)

    more: dict[str, Any] = {"protocol": "websocket", "connections": 1, "count": 1}
    for family, address in (
        (socket.AF_INET, ("127.0.0.1", 0)),
        (socket.AF_INET6, ("::1", 0)),
        (socket.AF_UNIX, str(tmp_path / "echo")),
    ):
        with serving(noting, family, address) as server:
            assert server.load(**more).answered == 1
            port = server.options().port
        host = {socket.AF_INET: f"127.0.0.1:{port}", socket.AF_INET6: f"[::1]:{port}"}
        head = heads.pop()
        assert head.startswith(b"GET / HTTP/1.1\r\n")
        assert f"\r\nHost: {host.get(family, 'localhost')}\r\n".encode() in head


def test_an_answer_to_the_upgrade_in_pieces() -> None:
    def dribble(conn: socket.socket) -> None:
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in agreement(read_head(conn)):
            conn.sendall(bytes([byte]))
        while True:
            conn.sendall(write_message(*read_message(conn)))

    with serving(dribble) as server:
        result = server.load(protocol="websocket", connections=2, count=10, verify=True)
    assert (result.answered, result.errors.total) == (10, 0)


def _bad_request(request: bytes) -> bytes:
    return b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"


def _wrong_accept(request: bytes) -> bytes:
    return agreement(request.replace(b"Sec-WebSocket-Key: ", b"Sec-WebSocket-Key: x"))


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (_bad_request, "upgrade_refused"),
        (_wrong_accept, "upgrade_refused"),
        (lambda request: request, "upgrade_refused"),
        (lambda request: b"x" * 8192, "upgrade_refused"),
        (lambda request: agreement(request)[:-1], "eof"),
        (lambda request: b"", "eof"),
    ],
    ids=["400", "wrong accept", "echo", "no end", "truncated", "nothing"],
)
def test_an_upgrade_that_is_not_agreed_to(answer: Callable[[bytes], bytes], kind: str) -> None:
    def refuse(conn: socket.socket) -> None:
        conn.sendall(answer(read_head(conn)))

    with serving(refuse) as server:
        result = server.load(protocol="websocket", connections=3)
    assert (result.ended, result.opened, result.ok) == ("unreachable", 0, False)
    assert getattr(result.errors, kind) == result.errors.total == 3


def test_an_upgrade_without_an_answer_times_out() -> None:
    def silent(conn: socket.socket) -> None:
        while conn.recv(1 << 16):
            pass

    with serving(silent) as server:
        limits: tuple[dict[str, Any], ...] = ({"connect_timeout": 0.02}, {"ramp_timeout": 0.02})
        for limit in limits:
            result = server.load(protocol="websocket", connections=2, **limit)
            assert (result.ended, result.errors.timeout) == ("unreachable", 2)
            assert result.errors.total == 2


def test_bytes_behind_the_agreement_are_read_and_judged() -> None:
    """In the same packet: a frame that answers nothing is one too many."""

    def hasty(conn: socket.socket) -> None:
        conn.sendall(agreement(read_head(conn)) + write_message(2, bytes(64)))
        conn.recv(1)

    with serving(hasty) as server:
        result = server.load(protocol="websocket", connections=2)
    assert (result.opened, result.answered, result.errors.mismatch) == (2, 0, 2)


def test_a_message_from_behind_the_request_is_answered_once() -> None:
    """All that a connection sends at once comes back in one piece."""

    def late(conn: socket.socket) -> None:
        conn.sendall(agreement(read_head(conn)))
        answers = b"".join(write_message(*read_message(conn)) for _ in range(5))
        conn.sendall(answers)
        conn.recv(1)

    with serving(late) as server:
        result = server.load(protocol="websocket", connections=2, depth=5, count=10, verify=True)
    assert (result.answered, result.errors.total) == (10, 0)


# -- What goes wrong -----------------------------------------------------------


def test_wrong_content_is_found_by_verify_only() -> None:
    def corrupt(conn: socket.socket) -> None:
        for turn in range(5):
            data = read(conn, 16)
            conn.sendall(data if turn != 2 else bytes([data[0] ^ 1]) + data[1:])

    with serving(corrupt) as server:
        unseen = server.load(connections=1, size=16, count=5)
        seen = server.load(connections=1, size=16, count=5, verify=True)
    assert (unseen.answered, unseen.errors.mismatch, unseen.ok) == (5, 0, True)
    assert (seen.answered, seen.errors.mismatch, seen.ok) == (2, 1, False)
    assert seen.ended == "server_gone"


def test_another_connections_bytes_are_wrong_content() -> None:
    desk: list[bytes] = [b"", b""]
    both = threading.Barrier(2)

    def swap(conn: socket.socket) -> None:
        mine = both.wait()
        desk[mine] = read(conn, 64)
        both.wait()
        conn.sendall(desk[1 - mine])
        conn.recv(1)

    with serving(swap) as server:
        result = server.load(connections=2, size=64, count=2, verify=True)
    assert (result.answered, result.errors.mismatch) == (0, 2)


def _third_header_wrong(messages: list[bytes]) -> list[bytes]:
    return [*messages[:2], bytes([messages[2][0] ^ 1]) + messages[2][1:], *messages[3:]]


def _third_last_byte_wrong(messages: list[bytes]) -> list[bytes]:
    return [*messages[:2], messages[2][:-1] + bytes([messages[2][-1] ^ 1]), *messages[3:]]


def _swapped(messages: list[bytes]) -> list[bytes]:
    return [*messages[:2], messages[3], messages[2], *messages[4:]]


def _doubled(messages: list[bytes]) -> list[bytes]:
    return [*messages[:2], messages[1], *messages[3:]]


def _lost(messages: list[bytes]) -> list[bytes]:
    return [*messages[:2], *messages[3:]]


@pytest.mark.parametrize("protocol", ["length-prefixed", "websocket", "websocket-text"])
@pytest.mark.parametrize(
    "change", [_third_header_wrong, _third_last_byte_wrong, _swapped, _doubled, _lost]
)
def test_messages_that_are_not_the_echo(
    protocol: str, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    def five(conn: socket.socket) -> None:
        if protocol == "length-prefixed":
            messages = [read_frame(conn) for _ in range(5)]
        else:
            conn.sendall(agreement(read_head(conn)))
            messages = [write_message(*read_message(conn)) for _ in range(5)]
        # Two at first, so that they are judged before the wrong one comes.
        for part in (change(messages)[:2], change(messages)[2:]):
            conn.sendall(b"".join(part))
            ready.wait(10)
        conn.recv(1)

    rest: dict[str, Any] = {"protocol": protocol, "connections": 1, "depth": 5, "count": 5}
    for verify in (True, False) if change is not _lost else (True,):
        ready = threading.Event()

        def look(now: LoadProgress, ready: threading.Event = ready) -> None:
            if now.messages >= 2:
                ready.set()

        with serving(five) as server:
            result = server.load(verify=verify, on_progress=look, **rest)
        expected = (2, 1) if verify else (5, 0)
        assert (result.answered, result.errors.mismatch) == expected


def test_a_message_that_is_cut_short() -> None:
    def short(conn: socket.socket) -> None:
        conn.sendall(agreement(read_head(conn)))
        conn.sendall(write_message(*read_message(conn))[:-1])

    with serving(short) as server:
        result = server.load(protocol="websocket", connections=2, verify=True)
    assert (result.ended, result.answered, result.errors.eof) == ("server_gone", 0, 2)


@pytest.mark.parametrize("protocol", ["length-prefixed", "websocket"])
def test_another_connections_message(protocol: str) -> None:
    desk: list[bytes] = [b"", b""]
    both = threading.Barrier(2)

    def swap(conn: socket.socket) -> None:
        if protocol == "length-prefixed":
            message = read_frame(conn)
        else:
            conn.sendall(agreement(read_head(conn)))
            message = write_message(*read_message(conn))
        mine = both.wait()
        desk[mine] = message
        both.wait()
        conn.sendall(desk[1 - mine])
        conn.recv(1)

    with serving(swap) as server:
        result = server.load(protocol=protocol, connections=2, count=2, verify=True)
    assert (result.answered, result.errors.mismatch) == (0, 2)


def test_a_masked_echo_is_longer_than_what_may_come_back() -> None:
    """A server that sends WebSocket's frames back as they came is wrong without verify."""

    def mirror(conn: socket.socket) -> None:
        conn.sendall(agreement(read_head(conn)))
        echo(conn)

    with serving(mirror) as server:
        result = server.load(protocol="websocket", connections=1)
    assert (result.answered, result.errors.mismatch) == (0, 1)


def test_more_bytes_than_were_sent_are_wrong_without_verify() -> None:
    def twice(conn: socket.socket) -> None:
        conn.sendall(read(conn, 64) * 2)
        conn.recv(1)

    with serving(twice) as server:
        result = server.load(connections=1, count=10)
    assert (result.answered, result.errors.mismatch) == (0, 1)


def test_a_server_that_closes() -> None:
    def four(conn: socket.socket) -> None:
        for _ in range(4):
            conn.sendall(read(conn, 64))
        read(conn, 64)  # so that the close leaves nothing unread, which would reset

    with serving(four) as server:
        result = server.load(connections=3)
    assert (result.ended, result.ok) == ("server_gone", False)
    assert (result.answered, result.unfinished) == (12, 3)
    assert (result.errors.eof, result.errors.total) == (3, 3)


def test_a_server_that_resets() -> None:
    def reset(conn: socket.socket) -> None:
        read(conn, 64)
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with serving(reset) as server:
        result = server.load(connections=3)
    assert (result.ended, result.answered, result.errors.reset) == ("server_gone", 0, 3)


def test_the_other_connections_go_on_when_one_is_lost() -> None:
    first = threading.Lock()

    def one_bad(conn: socket.socket) -> None:
        if first.acquire(blocking=False):
            read(conn, 64)
        else:
            echo(conn)

    with serving(one_bad) as server:
        result = server.load(connections=4, count=100)
    assert (result.ended, result.answered, result.unfinished) == ("count", 99, 1)
    assert (result.errors.eof, result.ok) == (1, True)


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A port that stays ours and on which nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield unused.getsockname()[1]


@pytest.mark.parametrize("more", [{}, {"rate": 100.0}, {"churn": True}])
def test_a_refused_port(deaf_port: int, more: dict[str, Any]) -> None:
    result = run_load(LoadOptions("127.0.0.1", deaf_port, connections=7, **more))
    assert (result.ended, result.opened, result.ok) == ("unreachable", 0, False)
    assert result.errors.connect_refused == result.errors.total >= 7
    assert result.messages_per_second == 0


def test_a_missing_unix_socket_says_why(tmp_path: Path) -> None:
    result = run_load(LoadOptions(f"unix://{tmp_path}/none", connections=2))
    assert (result.ended, result.errors.connect_other) == ("unreachable", 2)
    assert result.connect_error == "No such file or directory"


def test_connects_that_get_no_answer_time_out() -> None:
    with socket.socket() as full, socket.socket() as filler:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        filler.connect(full.getsockname())
        host, port = full.getsockname()
        options = LoadOptions(host, port, connections=3, connect_timeout=0.05)
        result = run_load(options)
        ramp = run_load(LoadOptions(host, port, connections=3, connecting=1, ramp_timeout=0.05))
    assert (result.ended, result.errors.timeout, result.errors.total) == ("unreachable", 3, 3)
    assert (ramp.ended, ramp.errors.timeout, ramp.errors.total) == ("unreachable", 3, 3)


def test_a_silent_server_does_not_hang_the_run() -> None:
    def silent(conn: socket.socket) -> None:
        while conn.recv(1 << 16):
            pass

    with serving(silent) as server:
        result = server.load(connections=2, depth=3, duration=0.02, grace=0.02)
    assert (result.ended, result.ok) == ("duration", False)
    assert (result.started, result.answered, result.unfinished) == (6, 0, 6)


# -- Interruption --------------------------------------------------------------


def test_keyboard_interrupt_ends_the_run_and_comes_out() -> None:
    def interrupt(now: LoadProgress) -> None:
        if now.phase == "measure":
            signal.raise_signal(signal.SIGINT)

    with serving(echo) as server, pytest.raises(KeyboardInterrupt):
        server.load(connections=2, on_progress=interrupt)
    assert not [t for t in threading.enumerate() if t.name.startswith("trio-wknet-load")]


def test_stop_before_the_run() -> None:
    with serving(echo) as server:
        generator = prepare(server.options())
        generator.stop()
        assert generator.run()["ended"] == "stopped"


def test_stop_from_another_thread() -> None:
    def stopping(conn: socket.socket) -> None:
        for _ in range(100):
            conn.sendall(read(conn, 64))
        generator.stop()
        generator.stop()
        conn.recv(64)  # the message that has no answer
        conn.recv(1)

    with serving(stopping) as server:
        generator = prepare(server.options(connections=1))
        figures = generator.run()
    assert figures["ended"] == "stopped"
    assert figures["answered"] in (99, 100)  # the last answer may be left unread
    assert generator.snapshot()["phase"] == "done"


def test_latencies_are_not_to_be_read_during_the_run() -> None:
    def reading(conn: socket.socket) -> None:
        with pytest.raises(RuntimeError, match="when the run has ended"):
            print(generator.latency)
        echo(conn)

    with serving(reading) as server:
        generator = prepare(server.options(connections=1, count=1))
        assert generator.run()["answered"] == 1


def test_a_generator_runs_once() -> None:
    with serving(echo) as server:
        generator = prepare(server.options(count=1))
        assert generator.run()["answered"] == 1
        with pytest.raises(RuntimeError, match="only once"):
            generator.run()
        assert len(generator.latency) == 1


def test_progress_counts_up_to_the_result() -> None:
    seen: list[LoadProgress] = []
    with serving(echo) as server:
        result = server.load(connections=2, size=10, count=50, on_progress=seen.append)
    assert (seen[-1].phase, seen[-1].messages, seen[-1].bytes) == ("done", 50, 500)
    assert seen[-1].errors == result.errors
    assert sorted(now.messages for now in seen) == [now.messages for now in seen]
