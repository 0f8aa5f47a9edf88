"""Bad arguments and addresses: the error names what is wrong, and nothing stays open."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import trio
from helpers import SMALL, two_conns

import trio_wknet
from trio_wknet import ConnOptions, Engine, Limits, open_engine, open_wknet_listener

ADDRESSES: list[tuple[Any, type[Exception], str]] = [
    ("http://127.0.0.1:80", ValueError, "http://127.0.0.1:80"),
    ("127.0.0.1:80", ValueError, "127.0.0.1:80"),
    ("tcp:127.0.0.1:80", ValueError, "tcp:127.0.0.1:80"),
    ("", ValueError, "''"),
    ("tcp://127.0.0.1", ValueError, "no port"),
    ("tcp://127.0.0.1:", ValueError, "no port"),
    ("tcp://127.0.0.1:http", ValueError, "http"),
    ("tcp://127.0.0.1:65536", ValueError, "65536"),
    ("tcp://127.0.0.1:-1", ValueError, "-1"),
    ("tcp://[::1:80", ValueError, "[::1:80"),
    ("tcp://user@127.0.0.1:80", ValueError, "user@127.0.0.1"),
    ("tcp://127.0.0.1:80/path", ValueError, "/path"),
    ("unix://relative", ValueError, "absolute"),
    ("unix://", ValueError, "absolute"),
    ("tcp://127.0.0.1:80?", ValueError, "more than a host and a port"),
    ("tcp://127.0.0.1:80#", ValueError, "more than a host and a port"),
    ("tcp://127.0.0.1\n:80", ValueError, "more than a host and a port"),
    ("unix://@", ValueError, "abstract name"),
    ("unix:///a\0b", ValueError, "null"),
    ("unix://@a\0b", ValueError, "null"),
    ("unix:///\ud800", ValueError, "is not a path"),
    (-1, ValueError, "-1"),
    (65536, ValueError, "65536"),
    (None, TypeError, "None"),
    (True, TypeError, "True"),
    (1.5, TypeError, "1.5"),
    (b"tcp://127.0.0.1:80", TypeError, "b'tcp://127.0.0.1:80'"),
    (("127.0.0.1", 80), TypeError, "127.0.0.1"),
    ("tcp://nowhere.invalid:80", OSError, "tcp://nowhere.invalid:80"),
    ("unix:///nowhere/at/all", OSError, "unix:///nowhere/at/all"),
    ("unix:///" + "x" * 107, ValueError, "takes 108 bytes"),
    ("unix://@" + "\u00e9" * 54, ValueError, "takes 109 bytes"),
]


@pytest.mark.parametrize(("address", "error", "says"), ADDRESSES)
async def test_addresses_to_listen_on(
    nothing_left: None, address: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=re.escape(says)):
        async with open_wknet_listener(address, reactors=1):
            raise AssertionError("it was opened")


@pytest.mark.parametrize(("address", "error", "says"), ADDRESSES)
async def test_addresses_to_connect_to(
    nothing_left: None, address: Any, error: type[Exception], says: str
) -> None:
    async with open_engine(0) as engine:
        with pytest.raises(error) as raised:
            await engine.connect(address)
        if error is not OSError:
            assert says in str(raised.value)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:0", "tcp://:80", 80])
async def test_nobody_to_connect_to(engine: Engine, address: Any) -> None:
    with pytest.raises(ValueError, match=r"address must name a host and a port"):
        await engine.connect(address)


async def test_an_address_in_use(engine: Engine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match=re.escape(f"{address}: Address already in use")):
            await engine.listen(address)


async def test_an_address_of_somebody_else(engine: Engine) -> None:
    with pytest.raises(OSError, match=re.escape("tcp://192.0.2.1:80: Cannot assign")):
        await engine.listen("tcp://192.0.2.1:80")


async def test_a_second_address_that_fails_closes_the_first(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def several(host: Any, port: Any, **_: Any) -> list[Any]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))
            for host in ("127.0.0.1", "192.0.2.1")
        ]

    monkeypatch.setattr(trio.socket, "getaddrinfo", several)
    with pytest.raises(OSError, match=r"several\.test"):
        await engine.listen("tcp://several.test:0")


async def test_a_path_that_is_not_a_socket(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=re.escape(str(path))):
            await engine.listen(f"unix://{path}")
        with pytest.raises(OSError):  # noqa: PT011
            await engine.connect(f"unix://{path}")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("reactors", "error"),
    [(-1, ValueError), (1025, ValueError), ("1", TypeError), (1.0, TypeError), (True, TypeError)],
)
async def test_reactors(nothing_left: None, reactors: Any, error: type[Exception]) -> None:
    for open_one in (
        lambda: open_engine(reactors),
        lambda: open_wknet_listener("tcp://127.0.0.1:0", reactors=reactors),
    ):
        with pytest.raises(error, match=f"reactors must be .*{re.escape(repr(reactors))}"):
            async with open_one():
                raise AssertionError("it was opened")


@pytest.mark.parametrize(
    ("most", "error"),
    [
        (0, ValueError),
        (2**20 - 1, ValueError),
        (2**40 + 1, ValueError),
        ("1", TypeError),
        (1e7, TypeError),
        (True, TypeError),
    ],
)
async def test_max_buffered(nothing_left: None, most: Any, error: type[Exception]) -> None:
    expected = f"max_buffered must be .*{re.escape(repr(most))}"
    for open_one in (
        lambda: open_engine(max_buffered=most),
        lambda: open_wknet_listener("tcp://127.0.0.1:0", max_buffered=most),
    ):
        with pytest.raises(error, match=expected):
            async with open_one():
                raise AssertionError("it was opened")
    with pytest.raises(error, match=expected):
        trio_wknet.install(max_buffered=most)
    with pytest.raises(error, match=expected):
        trio_wknet.run(trio.sleep_forever, max_buffered=most)


async def test_a_budget_is_an_engines(engine: Engine) -> None:
    with pytest.raises(ValueError, match="max_buffered must be None if engine is given"):
        async with open_wknet_listener("tcp://127.0.0.1:0", engine=engine, max_buffered=2**20):
            raise AssertionError("it was opened")


async def test_balance(nothing_left: None) -> None:
    with pytest.raises(ValueError, match=r"balance must be .*'fair'"):
        async with open_engine(balance="fair"):  # type: ignore[arg-type]
            raise AssertionError("it was opened")


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"backlog": 0}, ValueError, "backlog must be at least 1, not 0"),
        ({"backlog": -5}, ValueError, "-5"),
        ({"backlog": "many"}, TypeError, "backlog must be .*'many'"),
        ({"reuse_port": 1}, TypeError, "reuse_port must be .*1"),
        ({"limits": None}, TypeError, "limits must be Limits, not None"),
        ({"options": SMALL.__class__}, TypeError, "options must be ConnOptions"),
    ],
)
async def test_arguments_of_listen(
    engine: Engine, arguments: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        await engine.listen("tcp://127.0.0.1:0", **arguments)


async def test_reuse_port_on_a_unix_socket(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reuse_port"):
        await engine.listen(f"unix://{tmp_path}/socket", reuse_port=True)


BYTES = ["inbound", "outbound"]


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [(name, value, ValueError) for name in BYTES for value in (0, -1, 2**30 + 1, 2**64)]
    + [(name, value, TypeError) for name in BYTES for value in (1.5, "1", None, True)]
    + [
        ("linger_bytes", -1, ValueError),
        ("linger_bytes", 2**30 + 1, ValueError),
        ("linger_time", -0.1, ValueError),
        ("linger_time", float("nan"), ValueError),
        ("linger_time", float("inf"), ValueError),
        ("linger_time", 86401, ValueError),
        ("linger_time", "1", TypeError),
        ("accept_queue", 0, ValueError),
        ("accept_queue", 65536, ValueError),
    ],
)
def test_limits(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"{name} must be .*not {re.escape(repr(value))}"):
        Limits(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("nodelay", 1, TypeError),
        ("keepalive", None, TypeError),
        ("receive_buffer", 0, ValueError),
        ("send_buffer", -1, ValueError),
        ("send_buffer", "1", TypeError),
        ("unix_mode", 0o1000, ValueError),
        ("unix_mode", -1, ValueError),
    ],
)
def test_conn_options(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"{name} must be .*not {re.escape(repr(value))}"):
        ConnOptions(**{name: value})


def test_options_are_by_keyword_and_frozen() -> None:
    kind: Any
    for kind in (Limits, ConnOptions):
        with pytest.raises(TypeError):
            kind(1)
    with pytest.raises(AttributeError):
        Limits().inbound = 5  # type: ignore[misc]


async def test_socket_options(engine: Engine) -> None:
    async with two_conns(engine) as (conn, _):
        with pytest.raises(TypeError, match="value must not be None"):
            conn.setsockopt(1, 2, None)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="value must be None if length is given"):
            conn.setsockopt(1, 2, 3, 4)  # type: ignore[call-overload]
        with pytest.raises(OSError, match="Protocol not available"):
            conn.getsockopt(socket.SOL_SOCKET, 9999)
