"""Receives that know how much they want and do not wait: as their async forms, but for
that; and in event mode, where what is not there yet calls back."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from event_servers import (
    STYLES,
    Journal,
    address_of,
    caller,
    recorded,
    served,
    styled,
    turns_pass,
)
from helpers import conn_and_peer, content, read_all, send, until
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

import trio_wknet
from trio_wknet import Conn, DelimiterNotFound, Engine, IncompleteRead, Limits
from trio_wknet._native.testing import searches_kept

Peer = tuple[Conn, Any]


async def buffered(conn: Conn, size: int) -> None:
    await until(lambda: conn.statistics().buffered_inbound >= size, f"{size} bytes inbound")


# -- by themselves ---------------------------------------------------------------------


async def test_exactly_as_many_as_asked_for(peer: Peer) -> None:
    conn, sock = peer
    with pytest.raises(trio.WouldBlock):
        conn.receive_exactly_nowait(1)
    await send(sock, b"abcdef")
    await buffered(conn, 6)
    assert conn.receive_exactly_nowait(2) == b"ab"
    with pytest.raises(trio.WouldBlock):
        conn.receive_exactly_nowait(5)
    assert conn.statistics().buffered_inbound == 4
    assert conn.receive_exactly_nowait(n=4) == b"cdef"
    await send(sock, b"gh")
    await buffered(conn, 2)
    sock.close()
    await conn.wait_closed()
    with pytest.raises(IncompleteRead, match="before 3 bytes; 2 bytes"):
        conn.receive_exactly_nowait(3)
    assert conn.receive_exactly_nowait(2) == b"gh"
    with pytest.raises(IncompleteRead):
        conn.receive_exactly_nowait(1)


async def test_until_the_delimiter(peer: Peer) -> None:
    conn, sock = peer
    with pytest.raises(trio.WouldBlock):
        conn.receive_until_nowait(b"\r\n")
    await send(sock, b"one\r\ntwo\r")
    await buffered(conn, 9)
    assert conn.receive_until_nowait(b"\r\n") == b"one"
    for _ in range(2):
        with pytest.raises(trio.WouldBlock):
            conn.receive_until_nowait(b"\r\n")
    await send(sock, b"\n\r\nlast")
    await buffered(conn, 11)
    assert conn.receive_until_nowait(bytearray(b"\r\n")) == b"two"
    assert conn.receive_until_nowait(memoryview(b"\r\n")) == b""
    with pytest.raises(DelimiterNotFound):
        conn.receive_until_nowait(b"\r\n", max_bytes=2)
    sock.close()
    await conn.wait_closed()
    with pytest.raises(IncompleteRead):
        conn.receive_until_nowait(b"\r\n")
    assert conn.receive_nowait() == b"last"


async def test_another_delimiter_is_searched_for_from_the_start(peer: Peer) -> None:
    conn, sock = peer
    await send(sock, b"a;b,c")
    await buffered(conn, 5)
    with pytest.raises(trio.WouldBlock):
        conn.receive_until_nowait(b"\n")
    assert conn.receive_until_nowait(b",") == b"a;b"
    with pytest.raises(trio.WouldBlock):
        conn.receive_until_nowait(b"\n")
    await send(sock, b"ccc")
    await buffered(conn, 4)
    with pytest.raises(trio.WouldBlock):
        conn.receive_until_nowait(b"\n")
    assert conn.receive_nowait(3) == b"ccc"
    await send(sock, b"\nd\n")
    await buffered(conn, 4)
    assert conn.receive_until_nowait(b"\n") == b"c"
    assert conn.receive_until_nowait(b"\n") == b"d"


async def test_what_was_searched_is_not_searched_again(engine: Engine) -> None:
    """Were it searched from the start each time, that would be 300 GB."""
    size = 1 << 23
    async with conn_and_peer(engine) as (conn, sock):

        def there() -> bool:
            with suppress(trio.WouldBlock):
                return bool(conn.receive_until_nowait(b"\n", size))
            return conn.statistics().buffered_inbound >= size

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, sock, bytes(size))
            await until(there)
        for _ in range(400):
            for _ in range(100):
                there()
            await trio.lowlevel.checkpoint()
        await send(sock, b"\n")
        await buffered(conn, size + 1)
        assert len(conn.receive_until_nowait(b"\n", size)) == size


@pytest.mark.parametrize("form", ["exactly", "until"])
async def test_the_bound_is_lifted_for_what_is_asked_for(
    engine: Engine, kind: str, form: str
) -> None:
    data = content(form, 500_000).replace(b"\n", b" ")
    async with conn_and_peer(engine, kind, limits=Limits(inbound=1000)) as (conn, sock):

        def ask() -> bytes | None:
            with suppress(trio.WouldBlock):
                if form == "exactly":
                    return conn.receive_exactly_nowait(len(data))
                return conn.receive_until_nowait(b"\n", len(data))
            return None

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, sock, data + b"\n")
            await until(lambda: conn.statistics().buffered_inbound == 1000)
            got: list[bytes] = []
            await until(lambda: got.append(piece) if (piece := ask()) else got)
        assert got == [data]


async def test_a_task_that_receives_goes_first(peer: Peer) -> None:
    conn, _ = peer
    async with trio.open_nursery() as nursery:
        nursery.start_soon(conn.receive_some)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            conn.receive_exactly_nowait(1)
        with pytest.raises(trio.BusyResourceError):
            conn.receive_until_nowait(b"\n")
        nursery.cancel_scope.cancel()


async def test_a_wish_is_no_hindrance_to_others(peer: Peer) -> None:
    """What was asked for in vain is forgotten with the next receive, of any form."""
    conn, sock = peer
    for n in range(1, 4):
        with pytest.raises(trio.WouldBlock):
            conn.receive_exactly_nowait(1000)
        await send(sock, b"abc")
        assert await conn.receive_exactly(3) == b"abc"
        with pytest.raises(trio.WouldBlock):
            conn.receive_until_nowait(b"\n")
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(conn.receive_exactly, n)
                await wait_all_tasks_blocked()
                scope.cancel()
        await send(sock, b"line\n")
        assert await conn.receive_some(2) in (b"l", b"li")
        assert (await conn.receive_until(b"\n")).endswith(b"ne")


async def test_errors(peer: Peer) -> None:
    conn, sock = peer
    await send(sock, b"rest")
    await buffered(conn, 4)
    sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    conn.send_nowait(b"unread")
    sock.close()
    await conn.wait_closed()
    with suppress(IncompleteRead), pytest.raises(trio.BrokenResourceError):
        conn.receive_exactly_nowait(5)
    with suppress(IncompleteRead), pytest.raises(trio.BrokenResourceError):
        conn.receive_until_nowait(b"\n")
    assert conn.receive_exactly_nowait(4) == b"rest"
    conn.abort()
    with pytest.raises(trio.ClosedResourceError):
        conn.receive_exactly_nowait(1)
    with pytest.raises(trio.ClosedResourceError):
        conn.receive_until_nowait(b"\n")


async def test_arguments(peer: Peer) -> None:
    conn, _ = peer
    bad: list[Any] = [None, "1", 1.5]
    for value in bad:
        with pytest.raises(TypeError, match="n must be an integer"):
            conn.receive_exactly_nowait(value)
    for count in (0, -1, 2**30 + 1, 2**70):
        with pytest.raises(ValueError, match=rf"n must .*{count}"):
            conn.receive_exactly_nowait(count)
        if count < 1:
            with pytest.raises(ValueError, match=rf"max_bytes must .*{count}"):
                conn.receive_until_nowait(b"\n", count)
    with pytest.raises(TypeError, match="max_bytes must be an integer"):
        conn.receive_until_nowait(b"\n", "1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="delimiter must be bytes"):
        conn.receive_until_nowait("\n")  # type: ignore[arg-type]
    for delimiter in (b"", bytes(65537)):
        with pytest.raises(ValueError, match=f"delimiter .* not {len(delimiter)}"):
            conn.receive_until_nowait(delimiter)


# -- in event mode ---------------------------------------------------------------------


def frames(conn: Conn) -> bytes:
    """Takes all messages that are there: a byte that says how long, and so many."""
    visit, taken = conn.context, b""
    try:
        while True:
            if visit.notes is None:
                visit.notes = conn.receive_exactly_nowait(1)[0]
            message = conn.receive_exactly_nowait(visit.notes) if visit.notes else b""
            taken += bytes([len(message)]) + message
            visit.notes = None
    except trio.WouldBlock:
        return taken


def lines(conn: Conn) -> bytes:
    taken = b""
    with suppress(trio.WouldBlock):
        while True:
            taken += conn.receive_until_nowait(b"\r\n") + b"\r\n"
    return taken


@pytest.mark.parametrize("style", STYLES)
async def test_messages_in_event_mode(
    engine: Engine, kind: str, style: str, tmp_path: Path
) -> None:
    parts = [content(n, n) for n in range(0, 256, 5)]
    data = b"".join(bytes([len(part)]) + part for part in parts)
    journal = Journal(frames, style)
    async with recorded(engine, journal, address_of(kind, tmp_path)) as listener:
        with caller(listener) as peer:
            for at in range(0, len(data), 7):
                await send(peer, data[at : at + 7])
            await until(lambda: journal.visits and journal.visits[0].received == data)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("inbound", [100, 100_000])
async def test_lines_in_event_mode(
    engine: Engine, kind: str, style: str, inbound: int, tmp_path: Path
) -> None:
    data = b"".join(content(n, n % 99).hex().encode()[: n % 99] + b"\r\n" for n in range(500))
    journal = Journal(lines, style)
    limits = Limits(inbound=inbound)
    address = address_of(kind, tmp_path)
    async with recorded(engine, journal, address, limits=limits) as listener:
        with caller(listener) as peer:
            for at, end in pairwise([0, 1, 2, 50, 51, 52, 53, *range(60, len(data), 977), None]):
                await send(peer, data[at:end])
            await until(lambda: journal.visits and journal.visits[0].received == data)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("inbound", [20, 65536])
async def test_called_again_when_all_is_there(
    engine: Engine, kind: str, style: str, inbound: int, tmp_path: Path
) -> None:
    """Not for each byte, nor without any; also where it is more than the bound."""
    journal = Journal(lambda conn: conn.receive_exactly_nowait(50), style)
    asked: list[int] = []

    def on_data(conn: Conn) -> None:
        asked.append(conn.statistics().buffered_inbound)
        with suppress(trio.WouldBlock):
            conn.receive_exactly_nowait(50)

    address = address_of(kind, tmp_path)
    async with served(
        engine, styled(on_data, style), address=address, limits=Limits(inbound=inbound)
    ) as listener:
        with caller(listener) as peer:
            for n in range(1, 3):
                await peer.send(b"x")
                await until(lambda: len(asked) == 2 * n - 1)  # noqa: B023
                for _ in range(5):
                    await peer.send(b"1234")
                    await turns_pass(engine)
                assert len(asked) == 2 * n - 1
                await peer.send(bytes(29))
                await until(lambda: len(asked) == 2 * n)  # noqa: B023
                await turns_pass(engine)
    assert asked == [1, 50] * 2
    assert journal.visits == []


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("form", ["exactly", "until"])
@pytest.mark.parametrize("together", [False, True])
async def test_the_end_inside_a_message(
    engine: Engine, style: str, form: str, together: bool
) -> None:
    """Whether the end comes with the last bytes or after them, the callback is told."""
    errors: list[Exception] = []
    asked: list[int] = []

    def on_data(conn: Conn) -> None:
        asked.append(conn.statistics().buffered_inbound)
        with suppress(trio.WouldBlock):
            if form == "exactly":
                conn.receive_exactly_nowait(10)
            else:
                conn.receive_until_nowait(b"\n")

    async with served(
        engine, styled(on_data, style), on_error=lambda _, error: errors.append(error)
    ) as listener:
        with caller(listener) as peer:
            await peer.send(b"begun")
            if not together:
                await until(lambda: asked)
                await turns_pass(engine)
            peer.shutdown(trio.socket.SHUT_WR)
            assert await read_all(peer) == b""
            assert [type(error) for error in errors] == [IncompleteRead]
            assert set(asked) == {5}
            assert len(asked) <= 2


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("use", [frames, lines])
@pytest.mark.parametrize("reset", [False, True])
async def test_the_end_between_messages(
    engine: Engine, style: str, use: Any, together: bool, reset: bool
) -> None:
    """Is no error, whether the callback sees it or not."""
    data = b"\0" * 5 if use is frames else b"\r\n" * 5
    journal = Journal(use, style)
    async with recorded(engine, journal) as listener:
        with caller(listener) as peer:
            await peer.send(data)
            if reset:
                peer.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1" + bytes(7))
            if reset or not together:
                await until(lambda: journal.visits and journal.visits[0].received)
                await turns_pass(engine)
            if not reset:
                peer.shutdown(trio.socket.SHUT_WR)
                await until(lambda: journal.ends == ["eof"])
        if reset:
            await until(lambda: journal.ends == ["reset"])
    assert journal.visits[0].received == data


async def test_a_reset_while_a_callback_runs(engine: Engine) -> None:
    """What the callback asks for behind the last message is not there, and that is all."""
    reasons: list[str] = []

    async def on_data(conn: Conn) -> None:
        assert conn.receive_until_nowait(b"\n") == b"line"
        await conn.wait_closed()
        for _ in range(2):
            with pytest.raises(trio.WouldBlock):
                conn.receive_exactly_nowait(1)
            with pytest.raises(trio.WouldBlock):
                conn.receive_until_nowait(b"\n")

    async with served(
        engine, on_data, on_close=lambda _, reason: reasons.append(reason)
    ) as listener:
        with caller(listener) as peer:
            await peer.send(b"line\n")
            await turns_pass(engine)
            peer.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1" + bytes(7))
        await until(lambda: reasons == ["reset"])


@pytest.mark.parametrize("style", STYLES)
async def test_who_is_content_with_less_waits_for_any_byte(engine: Engine, style: str) -> None:
    """A callback that takes what there is after all is called for the next byte."""
    calls: list[bytes] = []

    def on_data(conn: Conn) -> None:
        try:
            conn.receive_exactly_nowait(100)
        except trio.WouldBlock:
            calls.append(conn.receive_nowait())

    async with served(engine, styled(on_data, style)) as listener:
        with caller(listener) as peer:
            for n in range(1, 5):
                await peer.send(b"!")
                await until(lambda: len(calls) == n)  # noqa: B023
                await turns_pass(engine)
    assert calls == [b"!"] * 4


async def test_a_callback_that_waits_in_vain_is_not_called_for_nothing(engine: Engine) -> None:
    """Asked, then waited for some time, and left: no news until more comes."""
    calls: list[int] = []

    async def on_data(conn: Conn) -> None:
        calls.append(conn.statistics().buffered_inbound)
        with suppress(trio.WouldBlock):
            conn.receive_exactly_nowait(100)
            return
        with trio.move_on_after(0.01):
            await conn.receive_exactly(100)

    async with served(engine, on_data) as listener:
        with caller(listener) as peer:
            await peer.send(b"1")
            await until(lambda: calls == [1])
            with trio.move_on_after(0.1):
                await trio.sleep_forever()
            await turns_pass(engine)
            assert calls == [1]
            await peer.send(b"2")
            await until(lambda: calls == [1, 2])


async def test_a_task_that_asks_between_callbacks_changes_nothing(engine: Engine) -> None:
    conns: list[Conn] = []
    calls: list[int] = []

    def on_data(conn: Conn) -> None:
        calls.append(conn.statistics().buffered_inbound)

    async with served(engine, on_data, on_connect=conns.append) as listener:
        with caller(listener) as peer:
            await peer.send(b"1")
            await until(lambda: len(calls) == 1)
            for n in range(2, 5):
                with pytest.raises(trio.WouldBlock):
                    conns[0].receive_until_nowait(b"\n")
                with pytest.raises(trio.WouldBlock):
                    conns[0].receive_exactly_nowait(100)
                await peer.send(b"1")
                await until(lambda: len(calls) == n)  # noqa: B023
            assert conns[0].receive_exactly_nowait(4) == b"1111"
    assert calls == [1, 2, 3, 4]


@pytest.mark.parametrize("style", ["plain", "async"])
async def test_nothing_is_kept_of_closed_connections(engine: Engine, style: str) -> None:
    """A search that goes on is noted with its connection, and goes with it."""

    def on_data(conn: Conn) -> None:
        with suppress(trio.WouldBlock):
            conn.receive_until_nowait(b"\n")

    async with served(engine, styled(on_data, style), on_error=lambda *_: None) as listener:
        for ends in (b"", b"\n"):
            with caller(listener) as peer:
                await peer.send(b"begun")
                await until(lambda: searches_kept(engine._core) == 1)
                await peer.send(ends or b"more")
                await until(lambda: searches_kept(engine._core) == (0 if ends else 1))  # noqa: B023
            await until(lambda: searches_kept(engine._core) == 0)


@given(
    st.lists(st.integers(0, 40), max_size=12),
    st.lists(st.integers(1, 60), min_size=1),
    st.sampled_from([0, 1]),
)
def test_any_split_of_any_messages(sizes: list[int], cuts: list[int], reactors: int) -> None:
    data = b"".join(bytes([size]) + content(size, size) for size in sizes)
    journal = Journal(frames, "plain")

    async def main() -> None:
        with trio.fail_after(20):
            async with trio_wknet.open_engine(reactors) as engine:
                limits = Limits(inbound=16)
                async with recorded(engine, journal, limits=limits) as listener:
                    with caller(listener) as peer:
                        at = turn = 0
                        while at < len(data):
                            piece = cuts[turn % len(cuts)]
                            await send(peer, data[at : at + piece])
                            at += piece
                            turn += 1
                        peer.shutdown(trio.socket.SHUT_WR)
                        await until(lambda: journal.ends)

    trio.run(main)
    assert journal.visits[0].received == data
    assert journal.ends == ["eof"]
