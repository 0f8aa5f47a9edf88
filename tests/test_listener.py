"""Listeners: what they listen on, accepting, serving, draining, and running out."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import stat
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel
from helpers import dialled, echo, few_descriptors, is_served, tcp_address, until
from trio.testing import open_stream_to_socket_listener, wait_all_tasks_blocked

from trio_wknet import Conn, ConnOptions, Engine, Limits, Listener

if sys.version_info < (3, 11):
    pass

LOCAL = "tcp://127.0.0.1:0"


async def is_served_again(engine: Engine) -> None:
    async with await engine.listen(LOCAL) as listener, trio.open_nursery() as nursery:
        nursery.start_soon(listener.serve, echo)
        await is_served(engine, listener)
        nursery.cancel_scope.cancel()


# -- what is listened on -----------------------------------------------------------------


async def test_port_0_takes_a_free_port(engine: Engine) -> None:
    async with await engine.listen(LOCAL) as one, await engine.listen(LOCAL) as other:
        assert one.address[1] != other.address[1]
        assert one.addresses == [one.address]
        assert one.socket.getsockname() == one.address
        with dialled(one, 1):
            conn = await one.accept()
            assert conn.local_address == one.address
            assert conn.remote_address[0] == "127.0.0.1"
            conn.abort()


@pytest.mark.parametrize("address", [0, "tcp://*:0", "tcp://:0"])
async def test_a_port_alone_is_all_interfaces(engine: Engine, address: str | int) -> None:
    async with await engine.listen(address) as listener:
        assert len({a[1] for a in listener.addresses}) == 1
        _, port = tcp_address(listener)
        hosts = [a[0] for a in listener.addresses]
        assert "0.0.0.0" in hosts
        for host in ["127.0.0.1"] + (["::1"] if "::" in hosts else []):
            with contextlib.ExitStack() as stack:
                stack.enter_context(socket.create_connection((host, port)))
                conn = await listener.accept()
                assert conn.remote_address[0] == host
                conn.abort()


async def test_ipv6(engine: Engine) -> None:
    try:
        listener = await engine.listen("tcp://[::1]:0")
    except OSError:
        pytest.skip("no IPv6 here")
    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(listener.serve, echo)
        assert listener.address[0] == "::1"
        await is_served(engine, listener)
        nursery.cancel_scope.cancel()


async def test_a_name_that_resolves_to_several_addresses(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def several(host: Any, port: Any, **_: Any) -> list[Any]:
        assert host == "several.test"
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{n}", port)) for n in (1, 2, 2)
        ]

    monkeypatch.setattr(trio.socket, "getaddrinfo", several)
    async with await engine.listen("tcp://several.test:0") as listener:
        assert [a[0] for a in listener.addresses] == ["127.0.0.1", "127.0.0.2"]
        for address in listener.addresses:
            assert isinstance(address, tuple)
            with socket.create_connection(address[:2]):
                conn = await listener.accept()
                assert conn.local_address == address
                conn.abort()


async def test_options_reach_accepted_connections(engine: Engine) -> None:
    options = ConnOptions(nodelay=True, keepalive=True, receive_buffer=20_000)
    async with await engine.listen(LOCAL, options=options, backlog=3) as listener:
        with dialled(listener, 1):
            conn = await listener.accept()
            assert conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
            assert conn.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) != 0
            assert conn.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 40_000
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
            assert conn.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
            conn.abort()
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
        with dialled(listener, 1):
            conn = await listener.accept()
            assert conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
            conn.abort()


async def test_reuse_port_gives_each_reactor_a_port(engine: Engine) -> None:
    async with await engine.listen(LOCAL, reuse_port=True) as one:
        async with await engine.listen(f"tcp://127.0.0.1:{one.address[1]}", reuse_port=True):
            pass
        with dialled(one, 40):
            conns = [await one.accept() for _ in range(40)]
            shares = [r.connections for r in engine.statistics().reactors]
            assert sum(shares) == 40
            assert all(shares), "the kernel spreads by hash"
            for conn in conns:
                conn.abort()


async def test_connections_are_spread_over_the_reactors(engine: Engine) -> None:
    async with await engine.listen(LOCAL) as listener:
        with dialled(listener, 10):
            conns = [await listener.accept() for _ in range(10)]
            shares = [r.connections for r in engine.statistics().reactors]
            assert shares == [10 // len(shares)] * len(shares)
            for conn in conns:
                conn.abort()


# -- unix socket files -------------------------------------------------------------------


async def test_a_socket_file_comes_and_goes(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    options = ConnOptions(unix_mode=0o620)
    async with await engine.listen(f"unix://{path}", options=options) as listener:
        assert stat.S_IMODE(path.stat().st_mode) == 0o620
        assert listener.address == str(path)
        with dialled(listener, 1):
            (await listener.accept()).abort()
    assert not path.exists()


async def test_a_stale_socket_file_is_replaced(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with await engine.listen(f"unix://{path}") as listener:
        with dialled(listener, 1):
            (await listener.accept()).abort()


async def test_another_file_is_left_alone(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(OSError, match=f"unix://{path}"):
        await engine.listen(f"unix://{path}")
    assert path.read_text() == "precious"


async def test_a_file_that_took_the_place_stays(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    one = await engine.listen(f"unix://{path}")
    async with await engine.listen(f"unix://{path}") as other:
        await one.aclose()
        assert path.exists()
        with dialled(other, 1):
            (await other.accept()).abort()
    assert not path.exists()


@pytest.mark.parametrize("form", ["accept", "serve", "events"])
async def test_a_drain_leaves_the_successors_file(
    engine: Engine, tmp_path: Path, form: str
) -> None:
    """The number of a file's inode is free for others once its socket is closed. So the
    file goes when the drain begins, not at its end; clients that are queued are served."""
    path = tmp_path / "socket"
    one = await engine.listen(f"unix://{path}")
    servers = {"accept": accept_and_echo, "serve": serve_echo, "events": serve_events_echo}
    with trio.fail_after(20), socket.socket(socket.AF_UNIX) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(servers[form], one)
            await wait_all_tasks_blocked()
            client.connect(str(path))
            nursery.start_soon(one.drain)
            await wait_all_tasks_blocked()
            assert not path.exists()
            async with await engine.listen(f"unix://{path}") as other:
                client.send(b"x")
                client.settimeout(10)
                assert await trio.to_thread.run_sync(client.recv, 10) == b"x"
                client.close()
                await until(lambda: not one._open)
                assert path.exists()
                with dialled(other, 1):
                    (await other.accept()).abort()
    assert not path.exists()


async def accept_and_echo(listener: Listener) -> None:
    with contextlib.suppress(trio.ClosedResourceError):
        while True:
            async with await listener.accept() as conn:
                await echo(conn)


async def serve_echo(listener: Listener) -> None:
    await listener.serve(echo)


async def serve_events_echo(listener: Listener) -> None:
    await listener.serve_events(lambda conn: conn.send_nowait(conn.receive_nowait()))


async def test_a_cancelled_drain_leaves_the_successors_file(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    one = await engine.listen(f"unix://{path}")
    async with trio.open_nursery() as nursery:
        await nursery.start(one.serve, echo)
        with dialled(one, 1):
            await until(lambda: one.statistics().handlers == 1)
            nursery.start_soon(one.drain)
            await until(lambda: not path.exists())
            other = await engine.listen(f"unix://{path}")
            nursery.cancel_scope.cancel()
    assert path.exists()
    await other.aclose()


async def test_a_file_goes_before_its_socket(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the listener ends: while the socket is open its inode is nobody else's."""
    open_then = []
    unlink = os.unlink

    def watched(path: Any) -> None:
        if str(path).startswith(str(tmp_path)):
            open_then.append(os.fspath(path) in Path("/proc/net/unix").read_text())
        unlink(path)

    for end in ("aclose", "drain", "_close_all", "serve"):
        listener = await engine.listen(f"unix://{tmp_path}/{end}")
        monkeypatch.setattr(os, "unlink", watched)
        if end == "serve":
            async with trio.open_nursery() as nursery:
                await nursery.start(listener.serve, echo)
                nursery.cancel_scope.cancel()
        elif end == "_close_all":
            listener._close_all()
        else:
            await getattr(listener, end)()
        monkeypatch.setattr(os, "unlink", unlink)
    assert open_then == [True] * 4
    assert os.listdir(tmp_path) == []


async def test_a_forked_child_leaves_the_parents_file(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with await engine.listen(f"unix://{path}") as listener:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks with threads
            child = os.fork()
        if child == 0:
            try:
                listener._close_all()
            finally:
                os._exit(0)
        os.waitpid(child, 0)  # noqa: ASYNC222
        assert path.exists()
        with dialled(listener, 1):
            (await listener.accept()).abort()


async def test_a_socket_file_ends_with_the_engine(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    listener = await engine.listen(f"unix://{path}")
    await engine._aclose()
    assert not path.exists()
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()


async def test_a_forgotten_listener_closes_and_says_so(engine: Engine, tmp_path: Path) -> None:
    """The engine must not go on to use it."""
    path = tmp_path / "socket"
    with pytest.warns(ResourceWarning, match="unclosed listener"):  # noqa: PT031
        await engine.listen(f"unix://{path}")
        gc.collect()
    assert not path.exists()
    await is_served_again(engine)


# -- adopt and connect -------------------------------------------------------------------


async def test_adopt_a_listening_socket(engine: Engine) -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    with socket.create_connection(sock.getsockname()) as early:
        listener = engine.adopt(sock)
        assert isinstance(listener, Listener)
        assert sock.fileno() == -1
        async with listener:
            conn = await listener.accept()
            assert conn.remote_address == early.getsockname()
            conn.abort()


async def test_adopt_refuses_and_leaves_alone(engine: Engine) -> None:
    with socket.socket() as neither, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        for sock in (neither, datagrams):
            with pytest.raises(ValueError, match="sock must"):
                engine.adopt(sock)
            assert sock.fileno() >= 0
            assert sock.getblocking()
    with pytest.raises(ValueError, match="sock must be open"):
        engine.adopt(neither)
    with pytest.raises(TypeError, match="sock must be"):
        engine.adopt(3)  # type: ignore[arg-type]


async def test_connect_to_nobody(engine: Engine, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    for address in (f"tcp://127.0.0.1:{port}", f"unix://{tmp_path}/none"):
        with pytest.raises(OSError):  # noqa: PT011
            await engine.connect(address)


async def test_trios_helper_connects(engine: Engine) -> None:
    async with await engine.listen(LOCAL) as listener:
        stream = await open_stream_to_socket_listener(listener)
        async with stream:
            (await listener.accept()).abort()


# -- accept ------------------------------------------------------------------------------


async def test_accept_one_after_the_other(engine: Engine) -> None:
    async with await engine.listen(LOCAL) as listener:
        with dialled(listener, 5) as socks:
            await until(lambda: listener.statistics().waiting == 5)
            conns = [await listener.accept() for _ in range(5)]
            assert [c.remote_address for c in conns] == [s.getsockname() for s in socks]
            assert len({c.id for c in conns}) == 5
            assert listener.statistics().accepted == 5
            assert listener.statistics().waiting == 0
            for conn in conns:
                conn.abort()


async def test_one_accepts_at_a_time_and_cancelling_loses_nothing(engine: Engine) -> None:
    async with await engine.listen(LOCAL) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.accept)
            await wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await listener.accept()
            nursery.cancel_scope.cancel()
        with dialled(listener, 20):
            accepted: list[Conn] = []
            for n in range(200):
                with trio.CancelScope() as scope:
                    if n % 2:
                        scope.cancel()
                    if len(accepted) == 20:
                        break
                    accepted.append(await listener.accept())
            assert len(accepted) == 20
            for conn in accepted:
                conn.abort()


async def test_closing_wakes_who_accepts_and_drops_what_waits(engine: Engine) -> None:
    listener = await engine.listen(LOCAL)
    async with trio.open_nursery() as nursery:

        async def accept() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await listener.accept()

        nursery.start_soon(accept)
        await wait_all_tasks_blocked()
        await listener.aclose()
    await listener.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()
    with pytest.raises(trio.ClosedResourceError):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    other = await engine.listen(LOCAL)
    with dialled(other, 3) as socks:
        await until(lambda: other.statistics().waiting == 3)
        await other.aclose()
        for sock in socks:
            sock.settimeout(10)
            assert sock.recv(1) == b""
    await until(lambda: engine.statistics().connections == 0)
    assert other.statistics().accepted == 3


async def test_the_accept_queue_is_bounded(engine: Engine) -> None:
    """At the bound the kernel keeps the rest; accepting goes on once half are taken."""
    async with await engine.listen(LOCAL, limits=Limits(accept_queue=4)) as listener:
        with dialled(listener, 20):
            await until(lambda: listener.statistics().waiting == 4)
            turns = sum(r.turns for r in engine.statistics().reactors)
            for _ in range(20):
                await trio.lowlevel.checkpoint()
            assert listener.statistics().accepted == 4
            assert sum(r.turns for r in engine.statistics().reactors) <= turns + 10
            for n in range(20):
                (await listener.accept()).abort()
                assert listener.statistics().waiting <= 4, n
            assert listener.statistics().accepted == 20


# -- out of descriptors ------------------------------------------------------------------


async def test_out_of_descriptors(engine: Engine) -> None:
    """Pitfall 7: gnet stops its engine, wknet spins and logs, libuv drops clients."""
    async with await engine.listen(LOCAL) as listener:
        clients = [socket.socket() for _ in range(6)]
        try:
            with few_descriptors(3):
                for client in clients:
                    client.connect(listener.address)
                conns = [await listener.accept() for _ in range(3)]
                await until(lambda: listener.statistics().starved)
                turns = sum(r.turns for r in engine.statistics().reactors)
                began = trio.current_time()
                with trio.move_on_after(0.3):
                    await listener.accept()
                    raise AssertionError("there was no descriptor for it")
                # It tries again every 50 ms, and that is all.
                most = 200 * (trio.current_time() - began)
                assert sum(r.turns for r in engine.statistics().reactors) - turns < most
                conns.pop().abort()
                conns.append(await listener.accept())
            while len(conns) < 5:
                conns.append(await listener.accept())
            await until(lambda: not listener.statistics().starved)
            # Nobody was dropped: each of the five that are left can talk.
            for n, conn in enumerate(conns):
                await conn.send_all(b"%d" % n)
            for conn in conns:
                conn.abort()
        finally:
            for client in clients:
                client.close()


# -- a socket shared with others ---------------------------------------------------------


async def test_a_listening_socket_that_is_shut_down(engine: Engine) -> None:
    """Whoever inherited it may do so. Accepting says so, and no thread spins."""
    sock = socket.create_server(("127.0.0.1", 0))
    with sock.dup() as shared:
        listener = engine.adopt(sock)
        assert isinstance(listener, Listener)
        shared.shutdown(socket.SHUT_RDWR)
    for _ in range(2):
        with pytest.raises(OSError, match="Invalid argument"):
            await listener.accept()
    turns = sum(r.turns for r in engine.statistics().reactors)
    await trio.sleep(0.05)
    assert sum(r.turns for r in engine.statistics().reactors) - turns < 20
    await listener.aclose()
