"""`drain_on_signal`: the first signal drains, the second cancels."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from helpers import dialled, until
from tls_helpers import server_context
from trio.testing import wait_all_tasks_blocked

import trio_wknet
from trio_wknet import Conn, Engine, Shutdown, drain_on_signal, open_engine, open_wknet_listener

LOCAL = "tcp://127.0.0.1:0"
SIGNALS = [signal.SIGTERM, signal.SIGINT]


@pytest.fixture(params=SIGNALS, ids=["SIGTERM", "SIGINT"])
def how(request: pytest.FixtureRequest) -> signal.Signals:
    return signal.Signals(request.param)


@pytest.fixture(autouse=True)
def handlers_are_restored() -> Iterator[None]:
    before = [signal.getsignal(it) for it in SIGNALS]
    yield
    assert [signal.getsignal(it) for it in SIGNALS] == before


async def forever(_: Conn) -> None:
    await trio.sleep_forever()


async def between_requests(conn: Conn) -> None:
    with conn.idle_point():
        await trio.sleep_forever()


async def test_the_first_signal_drains(engine: Engine, how: signal.Signals) -> None:
    plain = await engine.listen(LOCAL)
    secure = await engine.listen("tls://127.0.0.1:0", tls=server_context())
    web = await engine.listen("ws://127.0.0.1:0")
    async with drain_on_signal(plain, secure, web) as shutdown, trio.open_nursery() as nursery:
        assert isinstance(shutdown, Shutdown)
        assert shutdown.signal is None
        listener: Any
        for listener in (plain, secure, web):
            nursery.start_soon(listener.serve, between_requests)
        with dialled(plain, 2) as socks:
            for sock in socks:
                sock.send(b"x")
            await until(lambda: plain.statistics().handlers == 2)
            await until(lambda: engine.statistics().connections == 2)
            signal.raise_signal(how)
            await shutdown.wait()
            assert shutdown.signal is how
            # They are served to their end: x has not been received.
            await wait_all_tasks_blocked()
            assert plain.statistics().handlers == 2
            for sock in socks:
                sock.close()
            nursery.cancel_scope.cancel()


async def test_a_grace(engine: Engine, how: signal.Signals) -> None:
    listener = await engine.listen(LOCAL)
    with dialled(listener, 2):
        async with drain_on_signal(listener, grace=0.001):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listener.serve, forever)
                await until(lambda: listener.statistics().handlers == 2)
                signal.raise_signal(how)
    assert await listener.drain() == 2


async def test_the_second_signal_cancels(engine: Engine, how: signal.Signals) -> None:
    listener = await engine.listen(LOCAL)
    order: list[str] = []

    async def handler(_: Conn) -> None:
        try:
            await trio.sleep_forever()
        finally:
            order.append("cancelled")
            with trio.CancelScope(shield=True):
                await until(lambda: signal.getsignal(how) is before)
                order.append("a third one would have its usual effect")

    before = signal.getsignal(how)
    with dialled(listener, 1):
        async with drain_on_signal(listener), trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, handler)
            await until(lambda: listener.statistics().handlers == 1)
            signal.raise_signal(how)
            await wait_all_tasks_blocked()
            signal.raise_signal(how)
        order.append("left")
    assert order == ["cancelled", "a third one would have its usual effect", "left"]


async def test_listeners_that_come_later(engine: Engine) -> None:
    first, second = [await engine.listen(LOCAL) for _ in range(2)]
    async with drain_on_signal() as shutdown:
        shutdown.add(first)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.serve, forever)
            await wait_all_tasks_blocked()
            signal.raise_signal(signal.SIGTERM)
        shutdown.add(second)
        await until(lambda: second.socket.fileno() == -1)
    with pytest.raises(RuntimeError):
        shutdown.add(first)


async def test_the_block_waits_for_its_drains(engine: Engine) -> None:
    listener = await engine.listen(LOCAL)
    async with trio.open_nursery() as nursery:
        with dialled(listener, 1) as socks:
            async with drain_on_signal(listener) as shutdown:
                nursery.start_soon(_serve_in, listener, nursery)
                await until(lambda: listener.statistics().handlers == 1)
                signal.raise_signal(signal.SIGTERM)
                await shutdown.wait()
                nursery.start_soon(_close_when_blocked, socks[0])
            assert listener.statistics().handlers == 0


async def _serve_in(listener: Any, nursery: trio.Nursery) -> None:
    async def handler(conn: Conn) -> None:
        await conn.receive_some()

    await listener.serve(handler, handler_nursery=nursery)


async def _close_when_blocked(sock: Any) -> None:
    await wait_all_tasks_blocked()
    sock.close()


async def test_exceptions_of_the_block() -> None:
    """As they are, without a group around them."""
    with pytest.raises(KeyError, match="mine") as raised:
        async with drain_on_signal():
            raise KeyError("mine")
    assert raised.value.__context__ is None
    with trio.CancelScope() as scope:
        async with drain_on_signal():
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_an_engine_that_is_closed_by_then() -> None:
    async with drain_on_signal() as shutdown:
        async with open_engine() as engine:
            for address, tls in ((LOCAL, None), ("wss://127.0.0.1:0", server_context())):
                shutdown.add(await engine.listen(address, tls=tls))
        signal.raise_signal(signal.SIGTERM)
        await shutdown.wait()


async def test_bad_arguments(engine: Engine) -> None:
    listener: Any = await engine.listen(LOCAL)
    bad: Any
    grace: Any
    for bad in (None, [listener], LOCAL, trio):
        with pytest.raises(TypeError, match="listeners must be listeners of trio_wknet"):
            async with drain_on_signal(bad):
                pass
    for grace in (True, "1", [1]):
        with pytest.raises(TypeError, match="grace must be a number of seconds"):
            async with drain_on_signal(listener, grace=grace):
                pass
    for grace in (-1, float("nan"), 86401):
        with pytest.raises(ValueError, match="grace must be from 0 to 86400 seconds"):
            async with drain_on_signal(listener, grace=grace):
                pass
    async with drain_on_signal() as shutdown:
        with pytest.raises(TypeError, match="listeners must be listeners of trio_wknet"):
            shutdown.add(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="async with drain_on_signal"):
        drain_on_signal().__enter__()  # type: ignore[attr-defined]
    await listener.aclose()


@pytest.mark.parametrize("run", [trio.run, trio_wknet.run])
def test_in_another_thread(run: Any) -> None:
    seen: list[str] = []

    async def main() -> None:
        with pytest.raises(RuntimeError, match="needs the main thread"):
            async with drain_on_signal():
                pass
        seen.append("refused")

    thread = threading.Thread(target=run, args=(main,))
    thread.start()
    thread.join()
    assert seen == ["refused"]


@pytest.mark.parametrize("run", [trio.run, trio_wknet.run])
def test_a_whole_program(run: Any) -> None:
    async def main() -> str:
        async with open_wknet_listener(LOCAL) as listener, drain_on_signal(listener):
            with dialled(listener, 1) as socks:
                socks[0].send(b"x")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(listener.serve, handler)
                    await until(lambda: listener.statistics().handlers == 1)
                    signal.raise_signal(signal.SIGINT)
        return "drained"

    async def handler(conn: Conn) -> None:
        await conn.receive_some()
        await between_requests(conn)

    assert run(main) == "drained"
