"""trio_wknet.contrib.pytest: fixtures for the tests of applications."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import trio_wknet

ROOT = Path(trio_wknet.__file__).parent.parent
PAGE = (Path(__file__).parent.parent / "docs" / "moving.md").read_text()


def run(folder: Path, **files: str) -> str:
    """What pytest says of these test modules."""
    for name, source in files.items():
        (folder / f"{name}.py").write_text(source)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"]
    command += ["-p", "pytest_trio.plugin", "-o", "trio_mode=true"]
    result = subprocess.run(
        [*command, "-c", os.devnull, "--rootdir", str(folder)]
        + [str(folder / f"{name}.py") for name in files if name.startswith("test")],
        cwd=folder,
        # Other plugins take longer to import than the tests to run.
        env={**os.environ, "PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return result.stdout + result.stderr


FIXTURES = """
import socket, threading
import pytest, trio, trio_wknet
from trio.testing import wait_all_tasks_blocked

@pytest.fixture(params=[0, 2])
def wknet_reactors(request):
    return request.param

def reactors():
    return [t for t in threading.enumerate() if "wknet-reactor" in t.name]

@pytest.fixture(autouse=True)
def no_threads_left():
    yield
    assert reactors() == []

async def test_engine(wknet_engine, wknet_reactors):
    assert wknet_engine.reactors == wknet_reactors == len(reactors())

async def test_pair(wknet_engine, wknet_pair):
    client, server = wknet_pair
    assert type(client) is type(server) is trio_wknet.Conn
    assert client.local_address == server.remote_address
    assert server.local_address == client.remote_address
    assert client.socket.family == socket.AF_INET
    await client.send_all(b"there")
    assert await server.receive_exactly(5) == b"there"
    await server.send_all(b"back")
    await server.send_eof()
    assert await client.receive_exactly(4) == b"back"
    assert await client.receive_some() == b""
    assert len(wknet_engine.connections) == 2

async def echo(conn):
    async for data in conn:
        await conn.send_all(data)

async def test_listener(wknet_listener, nursery):
    assert type(wknet_listener) is trio_wknet.Listener
    assert wknet_listener.address[0] == "127.0.0.1"
    nursery.start_soon(wknet_listener.serve, echo)
    stream = await trio.open_tcp_stream(*wknet_listener.address)
    async with stream:
        await stream.send_all(b"echo")
        assert await stream.receive_some() == b"echo"

async def test_what_is_left_open_is_closed_at_once(wknet_listener, wknet_pair, nursery):
    nursery.start_soon(wknet_listener.serve, lambda conn: trio.sleep_forever())
    stream = await trio.open_tcp_stream(*wknet_listener.address)
    await stream.send_all(b"unread")
    await wait_all_tasks_blocked()
    await stream.aclose()
    await wknet_pair[0].send_all(b"unread")
    await wknet_pair[0].aclose()
"""


MOCKED = """
import trio
from trio.testing import wait_all_tasks_blocked

async def test_virtual_time(autojump_clock, wknet_pair):
    client, server = wknet_pair
    began = trio.current_time()
    with trio.move_on_after(1000), server.idle_scope(500):
        await server.receive_some()
    assert 500 <= trio.current_time() - began < 501

async def test_all_that_is_under_way_is_seen(wknet_pair):
    client, server = wknet_pair
    await client.send_all(b"x")
    await wait_all_tasks_blocked()
    assert server.receive_nowait() == b"x"
"""


def test_fixtures(tmp_path: Path) -> None:
    """Ours, and the documentation's example."""
    section = PAGE.partition("## Tests")[2]
    conftest, tests = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    modules = {"test_fixtures": FIXTURES, "test_mocked": MOCKED, "test_documented": tests}
    output = run(tmp_path, conftest=conftest, **modules)
    assert "12 passed" in output, output


def test_what_the_page_says_is_enough(tmp_path: Path) -> None:
    """Followed to the letter, in a fresh folder."""
    section = PAGE.partition("## Tests")[2]
    (settings,) = re.findall(r"```toml\n(.*?)```", section, re.DOTALL)
    conftest, tests = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    for name, text in (
        ("pyproject.toml", settings),
        ("conftest.py", conftest),
        ("test_mine.py", tests),
    ):
        (tmp_path / name).write_text(text)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "2 passed" in result.stdout, result.stdout + result.stderr


def test_nobody_gets_them_unasked(tmp_path: Path) -> None:
    output = run(tmp_path, test_fixtures="async def test(wknet_pair): pass")
    assert "fixture 'wknet_pair' not found" in output
