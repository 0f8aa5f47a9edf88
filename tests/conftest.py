"""Fixtures and options of all tests.

``--long`` runs the randomised and repeated tests for as long as they are worth:
hundreds of rounds of Trio's stream checks, minutes of churn. Without it the suite
runs a few rounds of each. ``--browser`` runs the tests that take a browser.
"""

from __future__ import annotations

import gc
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any

import hypothesis
import pytest
import trio
from helpers import conn_and_peer, descriptors, installed, two_conns

from trio_wknet import Conn, Engine, open_engine


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the long form of stress tests")
    parser.addoption("--browser", action="store_true", help="run the tests in a browser, too")


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    """Whether this is a long run."""
    return bool(request.config.getoption("--long"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test's traceback keeps its sockets. Left to the collector, they would
    warn during another test, and fail that one too."""
    report = yield
    if report.failed:
        for it in gc.get_objects():
            if issubclass(type(it), socket.socket):
                it.close()
    return report


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Asserts that a test leaves no descriptor and no thread behind."""
    before, threads = descriptors(), set(threading.enumerate())

    def opened() -> dict[int, str]:
        return {fd: what for fd, what in descriptors().items() if before.get(fd) != what}

    yield
    if opened():
        gc.collect()  # what cycles keep is not leaked; a collection is slow
    assert opened() == {}
    # Trio's cache keeps idle worker threads (getaddrinfo) for ten seconds.
    left = [t for t in threading.enumerate() if t not in threads and "Trio" not in t.name]
    assert left == []


@pytest.fixture(params=[0, 1, 2], ids=["in-loop", "1-reactor", "2-reactors"])
def reactors(request: pytest.FixtureRequest) -> int:
    """How many reactor threads."""
    return int(request.param)


@pytest.fixture
def install(reactors: int) -> Iterator[int]:
    """What is written for Trio runs on so many reactors in this test."""
    with installed(reactors):
        yield reactors


@pytest.fixture(params=["tcp", "unix"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def _watch(seconds: float) -> None:
    await trio.sleep(seconds)
    raise AssertionError("the test hangs")


@pytest.fixture
async def engine(nothing_left: None, reactors: int, long: bool) -> AsyncIterator[Engine]:
    """An engine; a test that uses it ends after half a minute
    at the latest (a quarter of an hour in a long run)."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch, 900 if long else 30)
        async with open_engine(reactors) as opened:
            yield opened
        nursery.cancel_scope.cancel()


@pytest.fixture
async def peer(engine: Engine, kind: str) -> AsyncIterator[tuple[Conn, Any]]:
    """A connection, and a Trio socket as its peer."""
    async with conn_and_peer(engine, kind) as pair:
        yield pair


@pytest.fixture
async def pair(engine: Engine, kind: str) -> AsyncIterator[tuple[Conn, Conn]]:
    """Two connections, connected with each other."""
    async with two_conns(engine, kind) as conns:
        yield conns


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was reported to sys.unraisablehook."""
    caught: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", caught.append)
    return caught


@pytest.fixture(autouse=True, scope="module")
def _quick_collections() -> None:
    """What was imported, and pytest's reports of the tests so far, stay: to look for garbage
    among them makes the many collections of these tests slow."""
    gc.collect()
    gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    # Examples in the short form: each interpreter draws others. How long one takes
    # tells what else the machine does.
    hypothesis.settings.register_profile(
        "any load",
        max_examples=2000 if config.getoption("--long") else 50,
        deadline=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    hypothesis.settings.load_profile("any load")
    # A shell starts what it puts in the background with SIGINT ignored, which
    # children inherit; the tests of Ctrl-C need it as in the foreground.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
