"""Members who read nothing: ``python benchmarks/experiment.py silent_members``.

One member of a group in a hundred does not read. What its silence costs the server, by how much
the process's memory has grown beside the sum of the silent members' `Limits.outbound`; and
whether the others get everything. The members are sockets of another process, which compares every
byte. Broadcasts go out in bursts, and the next one once the others have all of the last one, so
that none of them is slow.
"""

from __future__ import annotations

import argparse
import select
import socket
import sys
from pathlib import Path

import attrs
from rich.console import Console
from rich.table import Table

from harness.answers import answer_all, say
from harness.machine import Machine
from harness.memory import Footprint
from harness.worker import Worker
from trio_wknet._load.target import reserve_descriptors

HOST = "127.0.0.1"
SCRIPT = "experiments/silent_members.py"
FORMS = ("threaded", "inloop")
EVERY = 100  # members, one of which is silent
KERNEL = 16384  # bytes: buffers of the system's, which are to be full soon
WARMING = 8  # broadcasts that come first and are not counted: memory is taken


def message(number: int, size: int) -> bytes:
    return b"%0*d" % (size, number)


@attrs.frozen
class Found:
    """What became of the broadcasts with one form of the engine. Sizes are in bytes."""

    form: str
    members: int
    silent: int
    broadcasts: int
    skipped: int
    """Messages that members did not get."""
    grown: int
    """The server process's own memory."""
    buffered: int
    """What is queued for the members at the end."""
    most: int
    """For one of them."""
    bound: int
    """The sum of the silent members' ``limits.outbound``."""
    complete: int
    """Members that got every byte."""


# --- the server ------------------------------------------------------------------------


def serve(form: str, count: int, size: int, outbound: int) -> None:
    """Broadcast when the parent says so."""
    import trio

    from trio_wknet import Conn, ConnOptions, Limits, open_engine

    reserve_descriptors(count)

    async def main() -> None:
        full, number = trio.Event(), 0
        async with (
            open_engine(1 if form == "threaded" else 0) as engine,
            await engine.listen(
                f"tcp://{HOST}:0",
                limits=Limits(outbound=outbound),
                options=ConnOptions(send_buffer=KERNEL),
            ) as listener,
        ):
            group = engine.group()

            async def handler(conn: Conn) -> None:
                group.add(conn)
                if len(group) == count:
                    full.set()
                await conn.wait_closed()

            async def broadcast(times: int) -> int:
                nonlocal number
                skipped = 0
                for _ in range(times):
                    done = await group.broadcast_nowait(message(number, size)).wait()
                    skipped += done.skipped
                    number += 1
                return skipped

            async def buffered() -> tuple[int, int]:
                sizes = [conn.statistics().buffered_outbound for conn in group]
                return sum(sizes), max(sizes)

            answers = {
                "broadcast": lambda times: trio.from_thread.run(broadcast, times),
                "buffered": lambda: trio.from_thread.run(buffered),
            }
            say(listener.address[1])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listener.serve, handler)
                await full.wait()
                await trio.to_thread.run_sync(answer_all, sys.stdin, answers)
                nursery.cancel_scope.cancel()

    trio.run(main)


# --- the members ------------------------------------------------------------------------


def read(port: int, count: int, size: int) -> None:
    """Be all members: the first of each hundred reads nothing."""
    reserve_descriptors(count)
    silent, readers = [], {}
    poll = select.epoll()
    for index in range(count):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL)
        sock.connect((HOST, port))
        if index % EVERY == 0:
            silent.append(sock)
        else:
            poll.register(sock, select.EPOLLIN)
            readers[sock.fileno()] = sock
    at, wrong = dict.fromkeys(readers, 0), set()
    stream = bytearray()

    def wait(times: int) -> int:
        """Until all have so many messages more; how many members have got them right so far."""
        first = len(stream) // size
        stream.extend(b"".join(message(first + number, size) for number in range(times)))
        missing = len(readers)
        while missing:
            ready = poll.poll(30.0)
            if not ready:
                raise TimeoutError(f"{missing} members miss messages after 30 s")
            for fd, _ in ready:
                data = readers[fd].recv(65536)
                if not data:
                    raise ConnectionError("the server has closed a member")
                if data != stream[at[fd] : at[fd] + len(data)]:
                    wrong.add(fd)
                at[fd] += len(data)
                missing -= at[fd] == len(stream)
        return len(readers) - len(wrong)

    say(len(silent))
    answer_all(sys.stdin, {"wait": wait})


# --- measuring --------------------------------------------------------------------------


def measure(form: str, count: int, broadcasts: int, size: int, outbound: int) -> Found:
    common = (f"--members={count}", f"--size={size}", f"--outbound={outbound}")
    with Worker(SCRIPT, "--serve", form, *common) as server:
        port = server.answer()
        with Worker(SCRIPT, "--read", str(port), *common) as members:
            silent = members.answer()
            burst = max(1, outbound // 2 // size)
            skipped = complete = left = 0

            def send(times: int) -> None:
                nonlocal skipped, complete
                server.ask("broadcast", times)
                members.ask("wait", times)
                skipped += server.answer(60.0)
                complete = members.answer(60.0)

            send(WARMING)
            before = Footprint.of(server.pid)
            left = broadcasts
            while left:
                send(min(left, burst))
                left -= min(left, burst)
            grown = Footprint.of(server.pid).private - before.private
            server.ask("buffered")
            buffered, most = server.answer()
    return Found(
        form=form,
        members=count,
        silent=silent,
        broadcasts=broadcasts,
        skipped=skipped,
        grown=grown,
        buffered=buffered,
        most=most,
        bound=silent * outbound,
        complete=complete,
    )


def table(found: list[Found]) -> Table:
    shown = Table("", *(one.form for one in found))
    lines = {
        "members, of which silent": lambda one: f"{one.members:,}, {one.silent:,}",
        "broadcasts": lambda one: f"{one.broadcasts:,}",
        "sum of the silent ones' limits": lambda one: f"{one.bound:,} B",
        "queued for them": lambda one: f"{one.buffered:,} B",
        "the server's memory grew by": lambda one: f"{one.grown:,} B",
        "to the limits": lambda one: f"{one.grown / one.bound:.2f}",
        "messages that they did not get": lambda one: f"{one.skipped:,}",
        "others that got every byte": lambda one: f"{one.complete:,}",
    }
    for name, text in lines.items():
        shown.add_row(name, *map(text, found))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what members cost who do not read.")
    parser.add_argument("--members", type=int, default=1000)
    parser.add_argument("--broadcasts", type=int, default=1000)
    parser.add_argument("--size", type=int, default=1024, help="bytes")
    parser.add_argument("--outbound", type=int, default=262_144, help="bytes, of each member")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE")
    parser.add_argument("--serve", metavar="FORM", help="be the server instead")
    parser.add_argument("--read", type=int, metavar="PORT", help="be the members instead")
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.members, options.size, options.outbound)
        return
    if options.read:
        read(options.read, options.members, options.size)
        return
    console, machine = Console(), Machine.here()
    console.print(str(machine), highlight=False)
    with console.status("") as status:
        found = []
        for form in FORMS:
            status.update(form)
            found.append(
                measure(form, options.members, options.broadcasts, options.size, options.outbound)
            )
    console.print(table(found), highlight=False)
    if options.json:
        machine.save(options.json, {one.form: attrs.asdict(one) for one in found})


if __name__ == "__main__":
    main()
