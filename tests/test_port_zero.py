"""Port 0 on several addresses: one port that is free on all of them."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import trio
from helpers import dial

from trio_wknet import Engine
from trio_wknet._sockets import listening

# As resolvers give them, where there is IPv6.
FOUND: dict[str | None, list[tuple[int, Any]]] = {
    None: [(socket.AF_INET, ("0.0.0.0", 0)), (socket.AF_INET6, ("::", 0, 0, 0))],
    "localhost": [(socket.AF_INET6, ("::1", 0, 0, 0)), (socket.AF_INET, ("127.0.0.1", 0))],
    "several.test": [(socket.AF_INET, (f"127.0.0.{n}", 0)) for n in (1, 2, 3)],
    "wrong.test": [(socket.AF_INET, (host, 0)) for host in ("127.0.0.1", "192.0.2.1")],
}


async def resolve(host: Any, port: int, **_: object) -> list[Any]:
    return [(family, socket.SOCK_STREAM, 6, "", where) for family, where in FOUND[host]]


class Taken:
    """Somebody who takes the port that the first address gets, at the last one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        self.sockets = ExitStack()
        self.times = times
        self.count = 0
        self.last: Any = None
        self._bind = listening._bind_tcp
        monkeypatch.setattr(trio.socket, "getaddrinfo", resolve)
        monkeypatch.setattr(listening, "_bind_tcp", self.bind)

    def bind(self, sock: socket.socket, where: tuple[Any, ...], reuse_port: bool) -> None:
        self._bind(sock, where, reuse_port)
        if where[1] == 0 and self.count < self.times:
            self.count += 1
            family, last = self.last
            name = (last[0], sock.getsockname()[1])
            self.sockets.enter_context(socket.create_server(name, family=family))


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Taken]:
    taken = Taken(monkeypatch, request.param)
    with taken.sockets:
        yield taken


ADDRESSES: list[tuple[str | int, str | None]] = [
    (0, None),
    ("tcp://:0", None),
    ("tcp://*:0", None),
    ("tcp://localhost:0", "localhost"),
    ("tcp://several.test:0", "several.test"),
]


@pytest.mark.parametrize(("address", "host"), ADDRESSES)
@pytest.mark.parametrize("reuse_port", [False, True])
@pytest.mark.parametrize("taken", [3], indirect=True)
async def test_another_port_is_tried(
    engine: Engine, taken: Taken, address: str | int, host: str | None, reuse_port: bool
) -> None:
    taken.last = FOUND[host][-1]
    async with await engine.listen(address, reuse_port=reuse_port) as listener:
        assert taken.count == 3
        assert [a[0] for a in listener.addresses] == [where[0] for _, where in FOUND[host]]
        assert len({a[1] for a in listener.addresses}) == 1
        with dial(listener):
            (await listener.accept()).abort()


@pytest.mark.parametrize("taken", [10_000], indirect=True)
async def test_it_is_tried_for_so_long(engine: Engine, taken: Taken) -> None:
    """Nothing stays open: the fixture of the engine looks."""
    taken.last = FOUND["several.test"][-1]
    with pytest.raises(OSError, match=r"several\.test:0: Address already in use") as raised:
        await engine.listen("tcp://several.test:0")
    assert raised.value.errno == errno.EADDRINUSE
    assert taken.count == listening.PORT_TRIES
    taken.sockets.close()


@pytest.mark.parametrize("taken", [10_000], indirect=True)
async def test_another_error_is_not_tried_again(engine: Engine, taken: Taken) -> None:
    taken.last = (socket.AF_INET, ("127.0.0.3", 0))
    with pytest.raises(OSError, match=r"wrong\.test:0: Cannot assign"):
        await engine.listen("tcp://wrong.test:0")
    assert taken.count == 1
    taken.sockets.close()
