"""A forked child that leaves: whatever it does on its way out, its parent loses nothing.

The child is one of a Trio run's thread, so its copy of Trio's loop goes on until every
task is cancelled, with what it shares with the parent: each descriptor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LEAVE = """
import os, signal, socket, sys, trio, trio_wknet
signal.alarm(20)    # in the child, too
reactors, how, kind = int(sys.argv[1]), sys.argv[2], sys.argv[3]

def fork():
    child = os.fork()
    if child == 0:
        if how == "exit":
            raise SystemExit(7)
        if how == "raise":
            raise LookupError("the child leaves")
        os._exit(7)
    # Not left by a signal, SIGALRM for one that hangs.
    assert os.WIFEXITED(os.waitpid(child, 0)[1])

def patient(sock):
    sock.settimeout(10)
    return sock

def make_pair():
    if kind == "unix":
        return socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        return listener.accept()[0], theirs

async def until(condition):
    while not condition():
        await trio.sleep(0.001)
"""

STREAMS = (
    LEAVE
    + """
async def main():
    got = []

    async def receive(conn, *args):
        got.append(await conn.receive_some(*args))

    async with trio_wknet.open_engine(reactors) as engine, trio.open_nursery() as nursery:
        address = "tcp://127.0.0.1:0" if kind == "tcp" else f"unix://{sys.argv[4]}/socket"
        listener = await engine.listen(address)
        nursery.start_soon(listener.serve, receive)

        in_ring, peer_of_ring = make_pair()
        in_ring = engine.adopt(in_ring)
        peer_of_ring.send(b"ring")
        await until(lambda: in_ring.statistics().buffered_inbound == 4)
        in_kernel, peer_of_kernel = make_pair()
        in_kernel = engine.adopt(in_kernel)
        waited, peer_of_waited = make_pair()
        waited = engine.adopt(waited)
        nursery.start_soon(receive, waited)
        full, peer_of_full = make_pair()
        full = engine.adopt(full)
        sent = 0
        while not full.statistics().buffered_outbound:
            full.send_nowait(bytes(65536))
            sent += 65536
        await trio.testing.wait_all_tasks_blocked(0.01)

        peer_of_kernel.send(b"kernel")      # it may be in the ring by now, or not
        peer_of_waited.send(b"waited")
        caller = socket.socket(socket.AF_INET if kind == "tcp" else socket.AF_UNIX)
        caller.connect(listener.address)
        caller.send(b"accepted")
        fork()

        assert await in_ring.receive_some() == b"ring"
        assert await in_kernel.receive_some() == b"kernel"
        await until(lambda: len(got) == 2)
        assert sorted(got) == [b"accepted", b"waited"]
        # What it had not sent goes out, and all goes on.
        for peer in (peer_of_full, peer_of_ring, peer_of_kernel):
            patient(peer)
        left = sent
        while left:
            left -= len(await trio.to_thread.run_sync(peer_of_full.recv, 1 << 20))
        for conn, peer in ((in_ring, peer_of_ring), (in_kernel, peer_of_kernel)):
            await conn.send_all(b"on")
            assert await trio.to_thread.run_sync(peer.recv, 10) == b"on"
            peer.send(b"and on")
            assert await conn.receive_some() == b"and on"
        with conn.idle_scope(0.05) as scope:
            await conn.receive_some()
        assert scope.cancelled_caught
        caller.close()      # or its connection would linger
        nursery.cancel_scope.cancel()

import trio.testing
trio.run(main)
print("nothing lost")
"""
)

EVENTS = (
    LEAVE
    + """
def on_data(conn):
    data = conn.receive_nowait()
    if data == b"fork":
        fork()
        forked.set()        # not in the child, whose peers are the parent's
    conn.send_nowait(data)

forked = trio.Event()

async def main():
    async with trio_wknet.open_wknet_listener("tcp://127.0.0.1:0", reactors=reactors) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve_events, on_data)
            peers = [patient(socket.create_connection(listener.address)) for _ in range(5)]
            await until(lambda: listener.statistics().handlers == 5)
            # All in one turn, so that the child has some left.
            for n, peer in enumerate(peers):
                peer.send(b"fork" if n == 2 else b"data")
            await forked.wait()
            for n, peer in enumerate(peers):
                data = await trio.to_thread.run_sync(peer.recv, 10)
                assert data == (b"fork" if n == 2 else b"data")
            nursery.cancel_scope.cancel()

trio.run(main)
print("nothing lost")
"""
)

# The child waits for nobody, not for a reactor either that it does not have.
WAITS = (
    LEAVE
    + """
async def main():
    async with trio_wknet.open_engine(reactors) as engine:
        listener = await engine.listen("tcp://127.0.0.1:0")
        a, b = make_pair()
        conn = engine.adopt(a)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.aclose)

            async def detach():
                sock, unread = await conn.detach()
                sock.close()

            nursery.start_soon(detach)
            await trio.sleep(0)
            fork()
        async with await engine.listen("tcp://127.0.0.1:0") as listener:
            fork()
        wheel = trio_wknet.TimingWheel()
        rung = trio.Event()
        wheel.call_later(0.001, rung.set)
        fork()
        await rung.wait()

trio.run(main)
print("nothing lost")
"""
)


@pytest.mark.parametrize(
    ("script", "how", "kind"),
    [
        pytest.param(STREAMS, "exit", "tcp", id="streams-exit"),
        pytest.param(STREAMS, "raise", "unix", id="streams-raise"),
        pytest.param(STREAMS, "_exit", "tcp", id="streams-_exit"),
        pytest.param(EVENTS, "exit", "tcp", id="events-exit"),
        pytest.param(EVENTS, "raise", "tcp", id="events-raise"),
        pytest.param(WAITS, "exit", "unix", id="waits-exit"),
    ],
)
def test_a_child_that_leaves(
    reactors: int, script: str, how: str, kind: str, tmp_path: Path
) -> None:
    """Python 3.12 warns of just this: of forking where threads are."""
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", script),
            *(str(reactors), how, kind, str(tmp_path)),
        ],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "nothing lost\n"), done.stderr
    # Only what it was to say: why it left.
    assert "TrioInternalError" not in done.stderr
    assert script == WAITS or "RuntimeError" not in done.stderr
    assert how != "_exit" or done.stderr == ""
