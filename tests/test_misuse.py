"""What is written by mistake: an error that names it and says what to write."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from helpers import conn_and_peer, dial, until

import trio_wknet
from trio_wknet import Conn, Engine, FixedLength, Listener, open_engine, open_wknet_listener

LOCAL = "tcp://127.0.0.1:0"


async def handler(conn: Conn) -> None: ...


def plain(conn: Conn) -> None: ...


async def with_yield(conn: Conn) -> Any:
    yield


# -- handlers ----------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [None, 5, "handler"])
async def test_what_is_no_function(engine: Engine, wrong: Any) -> None:
    async with await engine.listen(LOCAL) as listener:
        with pytest.raises(TypeError, match=f"^handler must be callable, not {wrong!r}$"):
            await listener.serve(wrong)
        with pytest.raises(TypeError, match=f"^on_data must be callable, not {wrong!r}$"):
            await listener.serve_events(wrong)
        with pytest.raises(TypeError, match=f"^on_frames must be callable, not {wrong!r}$"):
            await listener.serve_frames(FixedLength(1), wrong)
        assert listener.statistics().accepted == 0, "it was closed"


async def test_a_coroutine_in_place_of_its_function(engine: Engine) -> None:
    """Without a warning that it was never awaited."""
    conn: Any = None
    async with await engine.listen(LOCAL) as listener:
        for serve, name in ((listener.serve, "handler"), (listener.serve_events, "on_data")):
            says = f"^{name} must be a function, .*: write handler, not handler\\(\\)$"
            with pytest.raises(TypeError, match=says):
                await serve(handler(conn))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"^on_close must be a function"):
            await listener.serve_events(plain, on_close=handler(conn))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (plain, r"^handler must be an async function, with 'async def', but <function plain"),
        (lambda conn: 5, r"^handler must be an async function, .* it returned 5$"),
        (with_yield, r"^handler must not contain 'yield', as <function with_yield"),
    ],
)
@pytest.mark.parametrize("idle_timeout", [None, 60])
async def test_a_function_that_is_not_async(
    engine: Engine, wrong: Any, says: str, idle_timeout: float | None
) -> None:
    listener = await engine.listen(LOCAL, idle_timeout=idle_timeout)
    raised: list[BaseException] = []
    with dial(listener) as client:
        try:
            await listener.serve(wrong)
        except BaseException as exc:
            raised.append(exc)
        assert client.recv(1) == b""
    while hasattr(raised[-1], "exceptions"):
        (inner,) = raised[-1].exceptions
        raised.append(inner)
    assert type(raised[-1]) is TypeError
    assert re.search(says, str(raised[-1]))


async def test_whatever_gives_an_awaitable_is_a_handler(engine: Engine) -> None:
    class Awaitable:
        def __await__(self) -> Any:
            yield from trio.sleep(0).__await__()  # noqa: ASYNC105
            seen.append(self)

    seen: list[object] = []
    listener = await engine.listen(LOCAL)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.serve, lambda conn: Awaitable())
        with dial(listener):
            await until(lambda: seen)
        nursery.cancel_scope.cancel()


# -- async with --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opening", "name", "short"),
    [
        (lambda: open_engine(0), "open_engine", "engine"),
        (lambda: open_wknet_listener(LOCAL, reactors=0), "open_wknet_listener", "listener"),
    ],
)
async def test_what_is_for_async_with(
    nothing_left: None, opening: Callable[[], Any], name: str, short: str
) -> None:
    advice = re.escape(f"write 'async with {name}(...) as {short}:'")
    with pytest.raises(TypeError, match=f"{name} is not for 'with': {advice}"):
        with opening():
            raise AssertionError("it was entered")
    with pytest.raises(TypeError, match=f"{name} is not for 'await': {advice}"):
        await opening()
    with pytest.raises(AttributeError, match=rf"{name}\(\.\.\.\) has no 'serve' yet: {advice}"):
        await opening().serve(handler)
    async with opening() as opened:
        assert type(opened).__name__.lower() == short


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Conn, "a Conn cannot be constructed; Listener.accept, "),
        (Listener, "a Listener cannot be constructed; write 'async with open_wknet_listener"),
        (Engine, "an Engine cannot be constructed; write 'async with open_engine"),
    ],
)
def test_what_is_not_made(kind: Any, says: str) -> None:
    for arguments in ((), (LOCAL,), (2, "round_robin")):
        with pytest.raises(TypeError, match=re.escape(says)):
            kind(*arguments)
    with pytest.raises(TypeError, match=re.escape(says)):
        kind(reactors=2)


# -- addresses ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "write"),
    [
        (("localhost", 80), "tcp://localhost:80"),
        (("::1", 80, 0, 0), "tcp://[::1]:80"),
        ("localhost:80", "tcp://localhost:80"),
        ("[::1]:80", "tcp://[::1]:80"),
        ("tcp:localhost:80", "tcp://localhost:80"),
        ("/run/socket", "unix:///run/socket"),
        ("unix:/run/socket", "unix:///run/socket"),
        (Path("/run/socket"), "unix:///run/socket"),
    ],
)
async def test_an_address_that_is_meant_otherwise(engine: Engine, address: Any, write: str) -> None:
    for use in (engine.listen, engine.connect):
        with pytest.raises((TypeError, ValueError), match=re.escape(f": write '{write}'") + "$"):
            await use(address)


async def test_a_host_and_a_port(engine: Engine) -> None:
    says = "^address must be one argument, not 2: write 'tcp://localhost:80'; options must be"
    wrong: Any
    for wrong in (engine.listen, engine.connect):
        with pytest.raises(TypeError, match=says):
            await wrong("localhost", 80)
    wrong = open_wknet_listener
    with pytest.raises(TypeError, match=says):
        wrong("localhost", 80)


# -- what has no effect, and what is not there -------------------------------------


@pytest.mark.parametrize(
    "name",
    ["idle_timeout", "limits", "options", "backlog", "reuse_port", "proxy_protocol", "admission"],
)
async def test_what_is_given_when_a_listener_is_opened(engine: Engine, name: str) -> None:
    async with await engine.listen(LOCAL) as listener:
        with pytest.raises(AttributeError, match=f"^{name} is set when a listener is opened"):
            setattr(listener, name, 5)
        assert not hasattr(listener, name)


@pytest.mark.parametrize("seconds", [math.inf, 0, -1, math.nan])
async def test_no_timeout(engine: Engine, seconds: float) -> None:
    says = "^idle_timeout must be more than 0 seconds and finite, not .*; None means no timeout$"
    with pytest.raises(ValueError, match=says):
        await engine.listen(LOCAL, idle_timeout=seconds)
    async with conn_and_peer(engine) as (conn, _):
        with pytest.raises(ValueError, match=says):
            conn.idle_timeout = seconds


async def test_a_connections_socket_moves_no_bytes(engine: Engine) -> None:
    async with conn_and_peer(engine) as (conn, _):
        facade: Any = conn.socket
        for name, instead in (
            ("send", "Conn.send_all"),
            ("recv", "Conn.receive_some"),
            ("recv_into", "Conn.receive_into"),
            ("shutdown", "Conn.send_eof"),
            ("detach", "Conn.detach"),
        ):
            with pytest.raises(RuntimeError, match=rf"^socket\.{name}: .* use {instead}$"):
                await getattr(facade, name)(b"bytes")
        assert not facade.get_inheritable()
        facade.set_inheritable(True)
        assert facade.get_inheritable()
        offered = {name for name in vars(trio.socket.SocketType) if not name.startswith("_")}
        for name in offered - set(vars(type(facade))):
            assert name in ("did_shutdown_SHUT_WR", "share"), "it raises without a word"


def test_a_source_folder_that_is_not_compiled(tmp_path: Path) -> None:
    source = Path(trio_wknet.__file__).parent
    shutil.copytree(source, tmp_path / "trio_wknet", ignore=shutil.ignore_patterns("*.so"))
    result = subprocess.run(
        [sys.executable, "-c", "import trio_wknet"],
        cwd=tmp_path,
        env={"PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: trio_wknet is not compiled for this Python in {tmp_path}")
    assert "'python -m pip install -e .'" in last
