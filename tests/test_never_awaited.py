"""Operations that nobody awaits: a forgotten ``await`` warns, Ctrl-C ahead of it does not.

CPython looks for signals after a call into C, so a handler may raise between a method's
call and the ``await`` of what it gave. A tracing function is called there, too."""

from __future__ import annotations

import dis
import gc
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import pytest
import trio

from trio_wknet import Conn, Engine, Listener

CALLS: dict[str, Callable[[Conn, Listener], Any]] = {
    "receive_some": lambda conn, _: conn.receive_some(),
    "receive_into": lambda conn, _: conn.receive_into(bytearray(1)),
    "receive_exactly": lambda conn, _: conn.receive_exactly(1),
    "receive_until": lambda conn, _: conn.receive_until(b"x"),
    "send_all": lambda conn, _: conn.send_all(b"x"),
    "flush": lambda conn, _: conn.flush(),
    "wait_send_all_might_not_block": lambda conn, _: conn.wait_send_all_might_not_block(),
    "accept": lambda _, listener: listener.accept(),
}


@pytest.fixture
async def listener(engine: Engine) -> Listener:
    return await engine.listen("tcp://127.0.0.1:0")


async def call(conn: Conn, listener: Listener, method: Callable[[Conn, Listener], Any]) -> None:
    await method(conn, listener)


@contextmanager
def raise_before_await(exception: BaseException) -> Iterator[None]:
    """Raise it in `call` between the call and its await."""

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code is not call.__code__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_code.co_code[frame.f_lasti] == GET_AWAITABLE:
            raise exception
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


GET_AWAITABLE = dis.opmap["GET_AWAITABLE"]


@pytest.mark.skipif(
    sys.version_info[:2] == (3, 12),
    reason="in 3.12 what a tracer of opcodes raises upsets other frames: a task ends twice",
)
@pytest.mark.parametrize("method", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit])
async def test_a_signal_before_the_await(
    pair: tuple[Conn, Conn],
    listener: Listener,
    method: Callable[[Conn, Listener], Any],
    exception: type[BaseException],
) -> None:
    """Warnings are errors here, and what a finalizer raises is one too."""
    conn, _ = pair
    coroutine = call(conn, listener, method)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with raise_before_await(exception()), pytest.raises(exception):
            coroutine.send(None)
    assert [str(warning.message) for warning in caught] == []


@pytest.mark.parametrize("method", CALLS.values(), ids=CALLS)
async def test_a_forgotten_await(
    pair: tuple[Conn, Conn], listener: Listener, method: Callable[[Conn, Listener], Any]
) -> None:
    conn, _ = pair
    with pytest.warns(RuntimeWarning, match="never awaited"):
        method(conn, listener)


async def test_one_that_another_exception_leaves(pair: tuple[Conn, Conn]) -> None:
    conn, _ = pair

    def forget() -> None:
        operation = conn.send_all(b"x")
        raise LookupError(repr(operation))

    with pytest.warns(RuntimeWarning, match="never awaited"), suppress(LookupError):
        forget()


async def test_one_in_a_cycle(pair: tuple[Conn, Conn]) -> None:
    conn, _ = pair
    cycle: list[Any] = [conn.receive_some()]
    cycle.append(cycle)
    del cycle
    with pytest.warns(RuntimeWarning, match="never awaited"):
        gc.collect()


async def test_one_that_was_closed(pair: tuple[Conn, Conn]) -> None:
    conn, _ = pair
    conn.receive_some().close()
    with trio.move_on_after(0):
        await conn.receive_some()
