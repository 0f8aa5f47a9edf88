"""Receiving: every form of it, its bounds, its errors, and that no byte is lost."""

from __future__ import annotations

import mmap
import socket
from typing import Any

import pytest
import trio
import trio.lowlevel
from helpers import conn_and_peer, content, fill, plain_pair, read, read_all, send, until
from trio.testing import wait_all_tasks_blocked

from trio_wknet import Conn, ConnOptions, DelimiterNotFound, Engine, IncompleteRead, Limits

Peer = tuple[Conn, Any]


async def buffered(conn: Conn, size: int) -> None:
    await until(lambda: conn.statistics().buffered_inbound >= size, f"{size} bytes inbound")


# -- receive_some, receive_nowait, receive_into ---------------------------------


async def test_receive_some_takes_what_is_there_up_to_max_bytes(peer: Peer) -> None:
    conn, sock = peer
    await send(sock, b"abcdef")
    await buffered(conn, 6)
    assert await conn.receive_some(2) == b"ab"
    assert await conn.receive_some(max_bytes=2) == b"cd"
    assert await conn.receive_some() == b"ef"
    sock.close()
    assert await conn.receive_some() == b""
    assert await conn.receive_some() == b""


async def test_receive_nowait(peer: Peer) -> None:
    conn, sock = peer
    with pytest.raises(trio.WouldBlock):
        conn.receive_nowait()
    await send(sock, b"abc")
    await buffered(conn, 3)
    assert conn.receive_nowait(1) == b"a"
    assert conn.receive_nowait() == b"bc"
    with pytest.raises(trio.WouldBlock):
        conn.receive_nowait()
    sock.close()
    await conn.wait_closed()
    assert conn.receive_nowait() == b""


async def test_receive_into_fills_what_fits_and_leaves_the_rest(peer: Peer) -> None:
    conn, sock = peer
    buffer = bytearray(b"......")
    await send(sock, b"abcde")
    await buffered(conn, 5)
    assert await conn.receive_into(memoryview(buffer)[1:4]) == 3
    assert buffer == b".abc.."
    assert await conn.receive_into(buffer) == 2
    assert buffer == b"debc.."
    sock.close()
    assert await conn.receive_into(buffer) == 0
    assert buffer == b"debc.."


async def test_receive_into_lets_the_buffer_go(peer: Peer) -> None:
    conn, sock = peer
    buffer = bytearray(4)
    with trio.CancelScope() as scope:
        scope.cancel()
        await conn.receive_into(buffer)
    buffer.append(0)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.receive_into, buffer)
            await wait_all_tasks_blocked()
            with pytest.raises(BufferError):
                buffer.append(0)
            scope.cancel()
    buffer.append(0)
    await send(sock, b"a")
    assert await conn.receive_into(buffer) == 1
    buffer.append(0)


# -- receive_exactly -------------------------------------------------------------


async def test_receive_exactly_waits_for_all_of_it(peer: Peer) -> None:
    conn, sock = peer
    data = content("exactly", 300_000)
    got = []

    async def receive() -> None:
        got.extend([await conn.receive_exactly(n) for n in (1, 2, 99_997, 200_000)])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        for at in range(0, len(data), 7919):
            await send(sock, data[at : at + 7919])
    assert list(map(len, got)) == [1, 2, 99_997, 200_000]
    assert b"".join(got) == data


async def test_receive_exactly_more_than_the_inbound_mark(engine: Engine, kind: str) -> None:
    """A mark below what is asked for must not keep the reactor from reading it."""
    data = content("mark", 500_000)
    async with conn_and_peer(engine, kind, limits=Limits(inbound=1000)) as (conn, sock):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, sock, data + data)
            assert await conn.receive_exactly(500_000) == data
            assert await conn.receive_exactly(500_000) == data


async def test_a_receive_that_takes_several_turns_of_its_reactor(engine: Engine) -> None:
    """In-loop a reactor turns when Trio does. Here it has more to read than a turn's
    budget, nothing new arrives that would wake Trio, and the receiver needs it all."""
    limits, options = Limits(inbound=1 << 20), ConnOptions(send_buffer=1 << 20)
    # Trio's scheduler tosses a coin for whether it matters.
    for _ in range(10):
        async with conn_and_peer(engine, "unix", limits=limits, options=options) as (conn, sock):
            sent = 0
            while (in_ring := conn.statistics().buffered_inbound) < limits.inbound:
                sent += fill(sock._sock)
                await trio.lowlevel.checkpoint()
            sent += fill(sock._sock)
            assert sent - in_ring > 65_536 + 262_144
            # Parks, though the reactor may read on at once.
            await conn.receive_exactly(in_ring + 1)
            await conn.receive_exactly(sent - in_ring - 1)


async def test_bytes_that_come_with_descriptors(engine: Engine) -> None:
    """What was sent along with descriptors (SCM_RIGHTS) is received by itself, however
    much is there: a receive that comes back short has not emptied a unix socket. Its
    descriptors are closed, as for any receiver that has no place for them."""
    ours, theirs = plain_pair("unix")
    pieces = [content(n, 100 + n) for n in range(20)]
    with theirs, socket.socket() as passed:
        for n, piece in enumerate(pieces):
            socket.send_fds(theirs, [piece], [passed.fileno()] if n % 3 else [])
        # All that lies there makes one edge.
        conn = engine.adopt(ours)
        assert isinstance(conn, Conn)
        for n, piece in enumerate(pieces):
            data = await conn.receive_exactly(len(piece))
            assert data == piece, n
        for n, piece in enumerate(pieces):
            socket.send_fds(theirs, [piece], [passed.fileno()] * (n % 3))
        theirs.shutdown(socket.SHUT_WR)
        assert await read_all(conn) == b"".join(pieces)
        await conn.aclose()


async def test_receive_exactly_at_the_end_loses_nothing(peer: Peer) -> None:
    conn, sock = peer
    await send(sock, b"abc")
    sock.close()
    for _ in range(2):
        with pytest.raises(IncompleteRead) as raised:
            await conn.receive_exactly(4)
        assert (raised.value.expected, raised.value.buffered) == (4, 3)
    assert await conn.receive_exactly(3) == b"abc"
    with pytest.raises(IncompleteRead):
        await conn.receive_exactly(1)


# -- receive_until ---------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [b"\n", b"\r\n", b"aab", b"\r\n\r\n--end--"])
async def test_receive_until_with_the_delimiter_split_anywhere(
    peer: Peer, delimiter: bytes
) -> None:
    conn, sock = peer
    for cut in range(len(delimiter) + 1):
        await send(sock, b"aa" + delimiter[:cut])
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                assert await conn.receive_until(delimiter) == expected  # noqa: B023

            before, _, rest = (b"aa" + delimiter + b"next").partition(delimiter)
            expected = before
            nursery.start_soon(receive)
            await buffered(conn, 0)
            await send(sock, delimiter[cut:] + b"next")
        assert await conn.receive_exactly(len(rest)) == rest


async def test_receive_until_over_the_wrap_of_the_ring(engine: Engine) -> None:
    """Frames of every length at every position of a ring that never empties."""
    async with conn_and_peer(engine, limits=Limits(inbound=2048)) as (conn, sock):
        frames = [content(n, n % 700).replace(b"\r\n", b"..") for n in range(600)]
        wire = b"".join(frame + b"\r\n" for frame in frames)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, sock, wire)
            for frame in frames:
                assert await conn.receive_until(b"\r\n", max_bytes=700) == frame


async def test_receive_until_bounds_and_loses_nothing(peer: Peer) -> None:
    conn, sock = peer
    await send(sock, b"12345\n67890-")
    await buffered(conn, 12)
    for most in (1, 4):
        with pytest.raises(DelimiterNotFound) as raised:
            await conn.receive_until(b"\n", most)
        assert (raised.value.delimiter, raised.value.max_bytes) == (b"\n", most)
    assert await conn.receive_until(b"\n", 5) == b"12345"
    with pytest.raises(DelimiterNotFound):
        await conn.receive_until(b"\n", max_bytes=5)
    assert await conn.receive_until(b"-", 5) == b"67890"


async def test_receive_until_waits_while_the_bound_is_not_reached(peer: Peer) -> None:
    conn, sock = peer
    async with trio.open_nursery() as nursery:

        async def receive() -> None:
            assert await conn.receive_until(b"ab", 3) == b"xya"

        nursery.start_soon(receive)
        for byte in (b"x", b"y", b"a", b"a", b"b"):
            await send(sock, byte)
            await until(lambda: conn.statistics().bytes_received, "a byte")


async def test_receive_until_a_long_delimiter(peer: Peer) -> None:
    conn, sock = peer
    delimiter = content("delimiter", 65536)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, sock, b"head" + delimiter + b"tail")
        assert await conn.receive_until(delimiter) == b"head"
    await buffered(conn, 4)
    assert conn.receive_nowait() == b"tail"


async def test_receive_until_at_the_end_loses_nothing(peer: Peer) -> None:
    conn, sock = peer
    await send(sock, b"abc\r")
    sock.close()
    with pytest.raises(IncompleteRead) as raised:
        await conn.receive_until(b"\r\n")
    assert (raised.value.expected, raised.value.buffered) == (None, 4)
    assert await read_all(conn) == b"abc\r"


async def test_receive_until_beyond_the_inbound_mark(engine: Engine) -> None:
    line = content("line", 100_000).replace(b"\n", b".")
    async with conn_and_peer(engine, limits=Limits(inbound=1000)) as (conn, sock):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, sock, line + b"\n")
            assert await conn.receive_until(b"\n", max_bytes=len(line)) == line


# -- bounds, turns, cancelling ----------------------------------------------------


async def test_the_peer_is_held_back_at_the_inbound_mark(engine: Engine, kind: str) -> None:
    async with conn_and_peer(engine, kind, limits=Limits(inbound=50_000)) as (conn, sock):
        data = content("held back", 3_000_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, sock, data)
            await buffered(conn, 50_000)
            assert conn.statistics().buffered_inbound <= 50_000 + 65_536
            assert await read(conn, len(data)) == data
            assert conn.statistics().buffered_inbound == 0


async def test_one_receiver_at_a_time(peer: Peer) -> None:
    conn, sock = peer
    async with trio.open_nursery() as nursery:
        nursery.start_soon(conn.receive_exactly, 3)
        await wait_all_tasks_blocked()
        for call in (
            lambda: conn.receive_some(),
            lambda: conn.receive_into(bytearray(1)),
            lambda: conn.receive_exactly(1),
            lambda: conn.receive_until(b"\n"),
            lambda: conn.detach(),
        ):
            with pytest.raises(trio.BusyResourceError):
                await call()
        with pytest.raises(trio.BusyResourceError):
            conn.receive_nowait()
        await send(sock, b"abc")


@pytest.mark.parametrize("waits", [False, True])
async def test_no_receiver_is_forgotten_where_several_disregard_that(
    peer: Peer, waits: bool
) -> None:
    """A wakes; before it runs, B takes the bytes, and waits again or not. Then one of
    the two must be told, and neither may sleep through what comes next."""
    conn, sock = peer
    overtaken = 0
    for _ in range(30):
        first: list[bytes | None] = []
        second: list[bytes] = []

        async def park() -> None:
            try:
                first.append(await conn.receive_some())  # noqa: B023
            except trio.BusyResourceError:
                first.append(None)  # noqa: B023

        async def overtake() -> None:
            # Runs in every turn, and so in the one in which the other wakes: before
            # it or after it, as Trio's scheduler tosses its coin.
            while not first:  # noqa: B023
                try:
                    second.append(conn.receive_nowait())  # noqa: B023
                except (trio.WouldBlock, trio.BusyResourceError):
                    await trio.lowlevel.checkpoint()
                else:
                    if waits:
                        second.append(await conn.receive_some())  # noqa: B023
                    return

        async with trio.open_nursery() as nursery:
            nursery.start_soon(park)
            await wait_all_tasks_blocked()
            nursery.start_soon(overtake)
            await send(sock, b"1")
            await until(lambda: first or second)  # noqa: B023
            if second:
                overtaken += 1
                await send(sock, b"2")
        if not second:
            assert first == [b"1"]
        else:
            assert (first, second) == (([None], [b"1", b"2"]) if waits else ([b"2"], [b"1"]))
    assert 0 < overtaken < 30, "it was never so, or always"


async def test_cancelled_at_any_moment_no_byte_is_lost(peer: Peer, long: bool) -> None:
    conn, sock = peer
    data = content("cancel", 20_000_000 if long else 400_000)
    got = bytearray()
    buffer = bytearray(997)

    async def trickle() -> None:
        for at in range(0, len(data), 1009):
            await send(sock, data[at : at + 1009])
            if at % 5 == 0:
                await trio.lowlevel.checkpoint()
        sock.shutdown(1)

    async def cancel(scope: trio.CancelScope) -> None:
        scope.cancel()

    async def one_receive(form: int) -> bool:
        if form == 0:
            got.extend(more := await conn.receive_some(1500))
            return bool(more)
        if form == 1:
            n = await conn.receive_into(buffer)
            got.extend(buffer[:n])
            return n > 0
        if form == 2:
            got.extend(await conn.receive_exactly(700))
        else:
            got.extend(await conn.receive_until(b"\0", 500) + b"\0")
        return True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trickle)
        turn, more = 0, True
        while more:
            turn += 1
            with trio.CancelScope() as scope:
                if turn % 3 == 0:
                    scope.cancel()
                elif turn % 3 == 1:
                    nursery.start_soon(cancel, scope)
                try:
                    more = await one_receive(turn % 4)
                except (IncompleteRead, DelimiterNotFound):
                    got.extend(more_bytes := await conn.receive_some(100))
                    more = bool(more_bytes)
    assert got == data


# -- arguments --------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, -(2**40)])
async def test_counts_below_one(peer: Peer, value: int) -> None:
    conn, _ = peer
    with pytest.raises(ValueError, match=rf"max_bytes.*{value}"):
        await conn.receive_some(value)
    with pytest.raises(ValueError, match=rf"max_bytes.*{value}"):
        conn.receive_nowait(value)
    with pytest.raises(ValueError, match=rf"max_bytes.*{value}"):
        await conn.receive_until(b"\n", value)
    with pytest.raises(ValueError, match=rf"n must.*{value}"):
        await conn.receive_exactly(value)


@pytest.mark.parametrize("value", [1.5, "1", b"1"])
async def test_counts_of_the_wrong_type(peer: Peer, value: Any) -> None:
    conn, _ = peer
    with pytest.raises(TypeError, match="max_bytes"):
        await conn.receive_some(value)
    with pytest.raises(TypeError, match="max_bytes"):
        conn.receive_nowait(value)
    with pytest.raises(TypeError, match="max_bytes"):
        await conn.receive_until(b"\n", value)
    with pytest.raises(TypeError, match="n must"):
        await conn.receive_exactly(value)


async def test_counts_beyond_any_memory(peer: Peer) -> None:
    conn, sock = peer
    for value in (2**30 + 1, 2**62, 2**70):
        with pytest.raises(ValueError, match=str(value)):
            await conn.receive_exactly(value)
    await send(sock, b"abc\n")
    await buffered(conn, 4)
    assert await conn.receive_some(2**70) == b"abc\n"


async def test_other_arguments(peer: Peer) -> None:
    conn, _ = peer
    with pytest.raises(TypeError):
        await conn.receive_exactly(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"delimiter .* not 0"):
        await conn.receive_until(b"")
    with pytest.raises(ValueError, match=r"delimiter .* 65536 bytes, not 65537"):
        await conn.receive_until(bytes(65537))
    # Beyond what a native number holds; pages that nobody touches are no memory.
    with mmap.mmap(-1, (1 << 32) + 1) as huge, memoryview(huge) as view:
        with pytest.raises(ValueError, match=r"delimiter .* not 4294967297"):
            await conn.receive_until(view)
    with pytest.raises(TypeError, match="delimiter"):
        await conn.receive_until("\n")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="buffer"):
        await conn.receive_into(bytearray())
    buffers: list[Any] = [b"abc", "abc", 3]
    for buffer in buffers:
        with pytest.raises((TypeError, BufferError)):
            await conn.receive_into(buffer)
