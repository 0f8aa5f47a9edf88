"""`Listener.drain` with a grace, and idle points, however a listener is served."""

from __future__ import annotations

import ssl
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing
from helpers import dialled, read, read_all, two_conns, until, url
from tls_helpers import CA, NAME, client_context, server_context
from trio.testing import wait_all_tasks_blocked

from trio_wknet import (
    Conn,
    ConnectionClosed,
    Delimited,
    Engine,
    LengthPrefixed,
    Limits,
    StreamWebSocket,
    TLSStream,
    open_engine,
    open_websocket,
)

LINES = Delimited(b"\n", max_frame=100)
LOCAL = "tcp://127.0.0.1:0"
FORMS = [
    *("serve", "nursery", "timeout", "loop", "serve_listeners", "ssl"),
    *("framed", "tls", "framed-tls", "ws", "wss"),
]
BY_CALLBACKS = ["events", "frames", "messages"]
ENDS = (trio.BrokenResourceError, trio.ClosedResourceError, ConnectionClosed)
Handler = Callable[[Any], Awaitable[object]]


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def wss_context() -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    CERTIFICATE.configure_cert(made)
    return made


CERTIFICATE = CA.issue_cert("127.0.0.1")


async def listen(engine: Engine, form: str) -> Any:
    if form in ("tls", "framed-tls"):
        return await engine.listen("tls://127.0.0.1:0", tls=server_context())
    if form == "wss":
        return await engine.listen("wss://127.0.0.1:0", tls=wss_context())
    if form in ("ws", "messages"):
        return await engine.listen("ws://127.0.0.1:0")
    return await engine.listen(LOCAL, idle_timeout=60 if form == "timeout" else None)


def only(exc: Any) -> BaseException:
    while isinstance(getattr(exc, "exceptions", None), tuple):
        (exc,) = exc.exceptions
    assert isinstance(exc, BaseException)
    return exc


async def serve(form: str, listener: Any, handler: Handler, nursery: trio.Nursery) -> None:
    """Until the listener has been drained."""
    if form in ("framed", "framed-tls"):
        await listener.serve(lambda conn: handler(conn.framed(LINES)))
    elif form == "nursery":
        await listener.serve(handler, handler_nursery=nursery)
    elif form in ("loop", "serve_listeners", "ssl"):
        served: Any = trio.SSLListener(listener, server_context()) if form == "ssl" else listener
        with pytest.raises(Exception) as raised:  # noqa: PT011
            if form == "loop":
                async with trio.open_nursery() as handlers:
                    while True:
                        handlers.start_soon(handler, await served.accept())
            else:
                await trio.serve_listeners(handler, [served])
        assert isinstance(only(raised.value), trio.ClosedResourceError)
    else:
        await listener.serve(handler)


@asynccontextmanager
async def client(engine: Engine, form: str, listener: Any) -> AsyncIterator[Any]:
    host, port = listener.address[:2]
    if form in ("ws", "messages"):
        async with open_websocket(f"ws://{host}:{port}", engine=engine) as websocket:
            yield websocket
    elif form == "wss":
        address = f"wss://{host}:{port}"
        async with open_websocket(address, tls=client_context(), engine=engine) as websocket:
            yield websocket
    elif form in ("tls", "framed-tls", "ssl"):
        context = client_context()
        stream = await engine.connect(f"tls://{host}:{port}", tls=context, server_hostname=NAME)
        async with stream:
            yield stream if form != "framed-tls" else stream.framed(LINES)
            await trio.aclose_forcefully(stream)
    else:
        async with await engine.connect(f"tcp://{host}:{port}") as conn:
            yield conn.framed(LINES) if form in ("framed", "frames") else conn


@asynccontextmanager
async def clients(engine: Engine, form: str, listener: Any, count: int) -> AsyncIterator[list[Any]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(client(engine, form, listener)) for _ in range(count)
        ]


async def take(end: Any, size: int = 1) -> bytes:
    """A message, or so many bytes."""
    if hasattr(end, "receive_some"):
        return await read(end, size)
    message: bytes = await end.receive()
    return message


async def give(end: Any, data: bytes) -> None:
    await (end.send_all(data) if hasattr(end, "send_all") else end.send(data))


async def forever(_: Any) -> bytes:
    await trio.sleep_forever()
    return b"never"


async def ask(end: Any) -> None:
    await give(end, b"?")
    assert await take(end) == b"!"


async def is_over(end: Any) -> None:
    """The other end is gone, whatever is said about it."""
    with suppress(EOFError, trio.EndOfChannel, *ENDS):
        await take(end)
        raise AssertionError("something came")


def idle_point(end: Any) -> Any:
    """Trio's own SSLStream has none."""
    return (end if hasattr(end, "idle_point") else end.transport_stream).idle_point()


# -- the end of the grace ------------------------------------------------------------------


@pytest.mark.parametrize("grace", [0, 0.01])
async def test_what_is_left_is_cut_off(engine: Engine, form: str, grace: float) -> None:
    seen: list[type[BaseException]] = []

    async def handler(end: Any) -> None:
        try:
            assert await take(end) == b"?"
            await give(end, b"!")
            await take(end)
        except BaseException as exc:
            seen.append(type(exc))
            raise

    listener = await listen(engine, form)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, form, listener, handler, nursery)
        async with clients(engine, form, listener, 2) as ends:
            for end in ends:
                await ask(end)
            assert await listener.drain(grace=grace) == 2
            assert seen == [trio.Cancelled] * 2
            for end in ends:
                await is_over(end)
    # It has served: neither it nor the nursery around it was cancelled.
    assert not nursery.cancel_scope.cancel_called
    assert await listener.drain() == 2, "it stays known"


async def answer_twice(end: Any) -> None:
    for _ in range(2):
        assert await take(end) == b"?"
        await give(end, b"!")
    await end.aclose()


async def test_who_finishes_in_time_is_not_cut_off(engine: Engine, form: str) -> None:
    listener = await listen(engine, form)
    cut: list[int] = []

    async def drain(grace: float | None) -> None:
        cut.append(await listener.drain(grace=grace))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, form, listener, answer_twice, nursery)
        async with client(engine, form, listener) as end:
            await ask(end)
            nursery.start_soon(drain, 60)
            nursery.start_soon(drain, None)
            await wait_all_tasks_blocked()
            await ask(end)
            await is_over(end)
    assert cut == [0, 0]


@pytest.mark.parametrize("style", ["plain", "async", "running"])
@pytest.mark.parametrize("form", BY_CALLBACKS)
async def test_callbacks_are_cut_off(engine: Engine, form: str, style: str) -> None:
    told: list[str] = []
    asked = 0

    async def answer(end: Any, frames: list[bytes]) -> None:
        nonlocal asked
        await give(end, b"!" * len(frames))
        asked += 1
        if style == "running":
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                told.append("cancelled")
                raise

    def on_close(end: Any, *_: Any) -> Any:
        told.append("closed")
        return forever(end) if style == "async" else None

    async def on_data(conn: Conn) -> None:
        await answer(conn, [conn.receive_nowait()])

    listener = await listen(engine, form)
    served = trio.Event()

    async def server() -> None:
        if form == "events":
            await listener.serve_events(on_data, on_close=on_close)
        elif form == "frames":
            await listener.serve_frames(LINES, answer, on_close=on_close)
        else:
            await listener.serve_messages(answer, on_close=on_close)
        served.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(server)
        async with clients(engine, form, listener, 3) as ends:
            for end in ends:
                await ask(end)
            await until(lambda: asked == 3)
            async with trio.open_nursery() as drains:
                drains.start_soon(listener.drain)
                await wait_all_tasks_blocked()
                assert told == [], "quiet ones are not closed"
                assert await listener.drain(grace=0.001) == 3
            assert sorted(told) == ["cancelled"] * 3 * (style == "running") + ["closed"] * 3
            for end in ends:
                await is_over(end)
    assert served.is_set()


async def test_the_shorter_grace_counts(engine: Engine) -> None:
    listener = await engine.listen(LOCAL)
    cut: list[int] = []

    async def drain(grace: float) -> None:
        cut.append(await listener.drain(grace=grace))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.serve, forever)
        with dialled(listener, 1):
            await until(lambda: listener.statistics().handlers == 1)
            nursery.start_soon(drain, 3600)
            await wait_all_tasks_blocked()
            await drain(0)
    assert cut == [1, 1]


async def test_a_cancelled_drain_takes_its_grace_along(engine: Engine, form: str) -> None:
    listener = await listen(engine, form)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, form, listener, answer_twice, nursery)
        async with client(engine, form, listener) as end:
            await ask(end)
            with trio.CancelScope() as scope:
                scope.cancel()
                await listener.drain(grace=0)
            assert scope.cancelled_caught
            await wait_all_tasks_blocked()
            await ask(end)
            await is_over(end)


async def test_shielded_cleanup_is_waited_for(engine: Engine) -> None:
    listener = await engine.listen(LOCAL)
    ended = False

    async def handler(conn: Conn) -> None:
        nonlocal ended
        try:
            await conn.receive_some()
        finally:
            with trio.CancelScope(shield=True):
                await conn.send_all(b"bye")
                await wait_all_tasks_blocked()
                ended = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.serve, handler)
        conn = await engine.connect(url(listener))
        await until(lambda: listener.statistics().handlers == 1)
        assert await listener.drain(grace=0) == 1
        assert ended
        assert await read_all(conn) == b"bye"
        await conn.aclose()


async def test_what_a_handler_raises_when_it_is_cut_off(engine: Engine) -> None:
    listener = await engine.listen(LOCAL)

    async def handler(conn: Conn) -> None:
        try:
            await conn.receive_some()
        finally:
            raise KeyError("handler")

    with dialled(listener, 1), pytest.raises(Exception) as raised:  # noqa: PT011
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, handler)
            await until(lambda: listener.statistics().handlers == 1)
            await listener.drain(grace=0)
    assert isinstance(only(raised.value), KeyError)


async def test_a_handler_that_has_not_begun(engine: Engine) -> None:
    """It was started in the caller's nursery, and the cut comes before its first step."""
    listener = await engine.listen(LOCAL)
    begun: list[Conn] = []

    class Slow:
        def __init__(self, nursery: trio.Nursery) -> None:
            self.nursery = nursery

        def start_soon(self, function: Any, *args: Any, name: Any = None) -> None:
            async def run() -> None:
                await go.wait()
                await function(*args)

            self.nursery.start_soon(run, name=name)

    async def handler(conn: Conn) -> None:
        begun.append(conn)
        await trio.sleep_forever()

    go = trio.Event()
    async with trio.open_nursery() as nursery:
        slow: Any = Slow(nursery)
        nursery.start_soon(lambda: listener.serve(handler, handler_nursery=slow))
        with dialled(listener, 1):
            await until(lambda: listener.statistics().handlers == 1)
            async with trio.open_nursery() as drains:
                drains.start_soon(lambda: listener.drain(grace=0))
                await wait_all_tasks_blocked()
                go.set()
    assert [conn.close_reason for conn in begun] == ["closed"]


@pytest.mark.parametrize("form", ["tls", "wss", "ws"])
async def test_handshakes_are_cut_off(engine: Engine, form: str) -> None:
    listener = await listen(engine, form)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.serve, forever)
        with dialled(listener, 2):
            await until(lambda: listener.statistics().accepted == 2)
            await wait_all_tasks_blocked()
            assert await listener.drain(grace=0.001) == 2


@pytest.mark.parametrize("grace", [True, "1", b"1", [1]])
async def test_a_grace_that_is_no_number(engine: Engine, grace: Any) -> None:
    for form in ("serve", "tls", "ws"):
        async with await listen(engine, form) as listener:
            with pytest.raises(TypeError, match="grace must be a number of seconds"):
                await listener.drain(grace=grace)
            assert listener.statistics().waiting == 0, "it still listens"
            with dialled(listener, 1):
                pass


@pytest.mark.parametrize("grace", [-1, float("nan"), float("inf"), 86401])
async def test_a_grace_out_of_range(engine: Engine, grace: float) -> None:
    async with await engine.listen(LOCAL) as listener:
        with pytest.raises(ValueError, match="grace must be from 0 to 86400 seconds"):
            await listener.drain(grace=grace)


@pytest.mark.parametrize("closed", [True, False])
async def test_connections_from_before(engine: Engine, closed: bool) -> None:
    """What `accept` returned is waited for also where that is not what ends."""
    listener = await engine.listen(LOCAL)
    async with trio.open_nursery() as nursery:
        with dialled(listener, 1):
            conn = await listener.accept()
            if closed:
                await listener.aclose()
            else:
                nursery.start_soon(listener.serve, forever)
            await wait_all_tasks_blocked()
            async with trio.open_nursery() as drains:
                drains.start_soon(listener.drain)
                await wait_all_tasks_blocked()
                assert drains.child_tasks
                await conn.aclose()


# -- idle points ---------------------------------------------------------------------------


async def answer_all(end: Any) -> None:
    """Until the server is drained; then say goodbye."""
    async with end:
        while True:
            with idle_point(end) as scope:
                request = await take(end)
            if scope.cancelled_caught:
                await give(end, b".")
                return
            assert request == b"?"
            await give(end, b"!")


async def test_a_drain_ends_the_wait_for_a_request(engine: Engine, form: str) -> None:
    listener = await listen(engine, form)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, form, listener, answer_all, nursery)
        async with clients(engine, form, listener, 2) as ends:
            for end in ends:
                await ask(end)
            async with trio.open_nursery() as drains:
                drains.start_soon(listener.drain)
                for end in ends:
                    assert await take(end) == b"."
                    drains.start_soon(end.aclose)


async def test_a_point_that_is_entered_later(engine: Engine, form: str) -> None:
    order: list[str] = []
    go = trio.Event()

    async def handler(end: Any) -> None:
        async with end:
            await take(end)
            await give(end, b"!")
            await go.wait()
            with idle_point(end) as scope:
                order.append("entered")
                await trio.lowlevel.checkpoint()
                order.append("went on")
            assert scope.cancelled_caught

    listener = await listen(engine, form)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, form, listener, handler, nursery)
        async with client(engine, form, listener) as end:
            await ask(end)
            nursery.start_soon(listener.drain)
            await wait_all_tasks_blocked()
            go.set()
            await is_over(end)
    assert order == ["entered"]


@asynccontextmanager
async def in_a_point(
    engine: Engine, wait: Callable[[Conn], Awaitable[bytes]]
) -> AsyncIterator[tuple[Any, Any, Conn, list[bytes]]]:
    """A listener, its only client, the connection that is in its point, and what that got. At
    the end, the client has left, or the point has ended."""
    got: list[bytes] = []
    conns: list[Conn] = []

    async def handler(conn: Conn) -> None:
        conns.append(conn)
        got.append(await a_line(conn))
        while True:
            with conn.idle_point() as scope:
                got.append(await wait(conn))
            if scope.cancelled_caught:
                return

    async with await engine.listen(LOCAL) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, handler)
            async with await engine.connect(url(listener)) as end:
                await end.send_all(b"first\n")
                await until(lambda: got == [b"first"])
                await wait_all_tasks_blocked()
                yield listener, end, conns[0], got
                await read_all(end)


def a_line(conn: Conn) -> Awaitable[bytes]:
    return conn.receive_until(b"\n")


async def test_a_request_that_has_begun_is_received(engine: Engine) -> None:
    async with in_a_point(engine, a_line) as (listener, end, conn, got), trio.open_nursery() as it:
        await end.send_all(b"sec")
        await until(lambda: conn.statistics().buffered_inbound == 3)
        it.start_soon(listener.drain)
        await wait_all_tasks_blocked()
        assert conn.close_reason is None
        await end.send_all(b"ond\n")
        assert await end.receive_some() == b""
        assert got == [b"first", b"second"]


async def test_a_large_frame_that_has_begun_is_received(engine: Engine) -> None:
    limits = Limits(inbound=4096)
    framing = LengthPrefixed(4, max_frame=4 << 20)
    got: list[bytes] = []
    channels: list[Any] = []

    async def handler(conn: Conn) -> None:
        channel = conn.framed(framing)
        channels.append(channel)
        while True:
            with channel.idle_point() as scope:
                got.append(await channel.receive())
            if scope.cancelled_caught:
                return

    frame = bytes(3 << 20)
    async with await engine.listen(LOCAL, limits=limits) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, handler)
            async with await engine.connect(url(listener)) as end:
                await end.send_all(len(frame).to_bytes(4, "big") + frame[:4092])
                conn = await _of(channels)
                # All of that has left the ring.
                await until(lambda: conn.statistics().bytes_received == 4096)
                await until(lambda: conn.statistics().buffered_inbound == 0)
                nursery.start_soon(listener.drain)
                await wait_all_tasks_blocked()
                await end.send_all(frame[4092:])
                assert await end.receive_some() == b""
    assert got == [frame]


async def _of(channels: list[Any]) -> Conn:
    await until(lambda: channels)
    conn: Conn = channels[0].conn
    return conn


async def test_what_has_come_is_answered(engine: Engine) -> None:
    """Several requests at once."""
    async with in_a_point(engine, a_line) as (listener, end, conn, got), trio.open_nursery() as it:
        before = conn.statistics().bytes_received
        end.send_nowait(b"second\nthird\n")
        # Without a checkpoint: the handler cannot run, but the reactor can.
        while engine.reactors and conn.statistics().bytes_received < before + 13:
            pass
        if engine.reactors == 0:
            await until(lambda: len(got) == 3)
        it.start_soon(listener.drain)
        assert await end.receive_some() == b""
        assert got == [b"first", b"second", b"third"]


async def test_a_new_connection_has_a_second(autojump_clock: trio.testing.MockClock) -> None:
    got: list[bytes] = []
    ended: list[float] = []

    async def handler(conn: Conn) -> None:
        while True:
            with conn.idle_point() as scope:
                got.append(await a_line(conn))
            if scope.cancelled_caught:
                ended.append(trio.current_time())
                return

    async with open_engine() as engine, await engine.listen(LOCAL) as listener:
        async with trio.open_nursery() as nursery:
            begin = trio.current_time()
            nursery.start_soon(listener.serve, handler)
            ends = [await engine.connect(url(listener)) for _ in range(3)]
            await until(lambda: listener.statistics().handlers == 3)
            nursery.start_soon(listener.drain)
            await trio.sleep(0.5)
            assert ended == []
            await ends[0].send_all(b"begun\n")
            await ends[1].send_all(b"beg")
            for end in ends:
                await read_all(end)
                await end.aclose()
    assert got == [b"begun"]
    first, *others = [at - begin for at in ended]
    assert 0.5 <= first < 0.9, "after its request"
    assert all(1 <= at < 1.5 for at in others), "also one whose request is not whole by then"


async def test_a_wait_of_any_kind(engine: Engine) -> None:
    """What is waited for need not be the connection's."""

    async with in_a_point(engine, forever) as (listener, _, _, _), trio.open_nursery() as it:
        it.start_soon(listener.drain)


async def test_without_a_listener(engine: Engine) -> None:
    async with two_conns(engine) as (client, server):
        # `two_conns` has closed the listener, which is no drain.
        for conn in (client, server, client.framed(LINES)):
            with conn.idle_point() as scope:
                await trio.lowlevel.checkpoint()
            assert not scope.cancel_called


async def test_over_a_stream_of_trios(engine: Engine) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    for stream in (
        TLSStream(ours, server_context(), server_side=True),
        StreamWebSocket._over(theirs, "server"),
    ):
        with stream.idle_point() as scope:
            await trio.lowlevel.checkpoint()
        assert not scope.cancel_called


async def test_points_nest(engine: Engine) -> None:
    caught: list[bool] = []

    async def wait(conn: Conn) -> bytes:
        try:
            with conn.idle_point() as inner, conn.idle_point():
                await trio.sleep_forever()
        finally:
            caught.append(inner.cancelled_caught)
        return b"not cancelled"

    async with in_a_point(engine, wait) as (listener, _, _, _), trio.open_nursery() as it:
        it.start_soon(listener.drain)
    assert caught == [False], "the outer one catches it"


async def test_several_tasks(engine: Engine) -> None:
    async def half(conn: Conn, forever: Callable[[], Awaitable[object]]) -> None:
        with conn.idle_point() as scope:
            await forever()
        assert scope.cancelled_caught

    async def wait(conn: Conn) -> bytes:
        async with trio.open_nursery() as halves:
            halves.start_soon(half, conn, conn.receive_some)
            halves.start_soon(half, conn, trio.sleep_forever)
        return await a_line(conn)

    async with in_a_point(engine, wait) as (listener, _, _, _), trio.open_nursery() as it:
        it.start_soon(listener.drain)


async def test_what_follows_a_point_is_not_cancelled(engine: Engine) -> None:
    go = trio.Event()

    async def pass_through(conn: Conn) -> None:
        with conn.idle_point() as point:
            await trio.lowlevel.checkpoint()
        with trio.CancelScope() as outer:
            outer.cancel()
            with conn.idle_point() as inner:
                await trio.lowlevel.checkpoint()
        assert outer.cancelled_caught
        assert not inner.cancelled_caught
        with pytest.raises(KeyError), conn.idle_point():
            raise KeyError
        left.append(weakref.ref(point))

    left: list[Any] = []

    async def handler(conn: Conn) -> None:
        await a_line(conn)
        await pass_through(conn)
        await conn.send_all(b"x")
        await go.wait()
        await conn.send_all(b"x")

    listener = await engine.listen(LOCAL)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.serve, handler)
        async with await engine.connect(url(listener)) as end:
            await end.send_all(b"first\n")
            assert await read(end, 1) == b"x"
            assert left[0]() is None, "nothing holds a scope that was left"
            nursery.start_soon(listener.drain)
            await wait_all_tasks_blocked()
            go.set()
            assert await read_all(end) == b"x"


async def test_a_point_is_entered_once(engine: Engine) -> None:
    async with two_conns(engine) as (_, server):
        point = server.idle_point()
        with point:
            pass
        with pytest.raises(RuntimeError, match="entered once"):
            point.__enter__()


async def test_a_point_of_a_closed_connection(engine: Engine) -> None:
    async with two_conns(engine) as (_, server):
        with server.idle_point() as scope:
            await server.aclose()
            with pytest.raises(trio.ClosedResourceError):
                await server.receive_some()
        assert not scope.cancel_called
        with pytest.raises(trio.ClosedResourceError), server.idle_point():
            await server.receive_some()


async def test_a_connection_that_closes_in_its_point(engine: Engine) -> None:
    """By another task; what the point waits for is something else."""

    async def handler(conn: Conn) -> None:
        await a_line(conn)
        with conn.idle_point() as scope:
            await conn.aclose()
            await trio.sleep_forever()
        assert scope.cancelled_caught

    listener = await engine.listen(LOCAL)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.serve, handler)
        async with await engine.connect(url(listener)) as end:
            await end.send_all(b"first\n")
            await read_all(end)
            await wait_all_tasks_blocked()
            await listener.drain()


async def test_a_point_in_a_callback(engine: Engine) -> None:
    order: list[str] = []

    async def on_data(conn: Conn) -> None:
        conn.receive_nowait()
        with conn.idle_point() as scope:
            order.append("waits")
            await conn.receive_some()
        assert scope.cancelled_caught
        order.append("cancelled")
        await conn.aclose()

    listener = await engine.listen(LOCAL)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.serve_events, on_data)
        async with await engine.connect(url(listener)) as end:
            await end.send_all(b"first\n")
            await until(lambda: order)
            await listener.drain()
    assert order == ["waits", "cancelled"]


async def test_requests_and_a_drain_race(engine: Engine) -> None:
    """Every request that was received is answered, and none is received by half."""
    for turns in range(30):
        await race(engine, turns % 10)


async def race(engine: Engine, turns: int) -> None:
    received: list[bytes] = []
    answers = 1

    async def handler(conn: Conn) -> None:
        while True:
            with conn.idle_point() as scope:
                received.append(await a_line(conn))
            if scope.cancelled_caught:
                return
            await conn.send_all(b"!")

    async def drain() -> None:
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        await listener.drain()

    listener = await engine.listen(LOCAL)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.serve, handler)
        async with await engine.connect(url(listener)) as end:
            await end.send_all(b"0\n")
            await read(end, 1)
            nursery.start_soon(drain)
            with suppress(trio.BrokenResourceError):
                for i in range(1, 20):
                    await end.send_all(b"%d\n" % i)
                    if not await end.receive_some(1):
                        break
                    answers += 1
    assert received == [b"%d" % i for i in range(answers)]
