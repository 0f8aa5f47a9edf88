"""The clients of a crowd: processes that hold connections (`crowd_client.py`)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from harness.worker import Worker

MAX_EACH = 16_000
"""Connections that one client holds: within its descriptors, and its ports."""
LISTENING = "0A"


class Clients:
    """As many client processes as are needed, all asked at once."""

    def __init__(self, workers: list[Worker], port: int) -> None:
        self._workers = workers
        self._port = port

    def connect(self, count: int, timeout: float) -> float:
        """Open `count` more connections, and wait until the servers have accepted them all.
        Returns the seconds it took."""
        began, number = time.monotonic(), len(self._workers)
        for index, worker in enumerate(self._workers):
            worker.ask("connect", count * (index + 1) // number - count * index // number)
        self._answers(timeout)
        while waiting := unaccepted(self._port):
            if time.monotonic() > began + timeout:
                raise TimeoutError(f"{waiting} connections wait to be accepted")
            time.sleep(0.005)
        return time.monotonic() - began

    def ask(self, *question: object, timeout: float) -> list[Any]:
        """Ask all the same, and wait for all their answers."""
        for worker in self._workers:
            worker.ask(*question)
        return self._answers(timeout)

    def _answers(self, timeout: float) -> list[Any]:
        until = time.monotonic() + timeout
        return [worker.answer(max(0.0, until - time.monotonic())) for worker in self._workers]


@contextmanager
def clients(port: int, connections: int) -> Iterator[Clients]:
    """Clients for that many connections to a port, each from an address of its own."""
    number = -(-connections // MAX_EACH)
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                Worker("harness/crowd_client.py", str(port), f"127.0.1.{index + 1}")
            )
            for index in range(number)
        ]
        yield Clients(workers, port)


def unaccepted(port: int) -> int:
    """Connections that wait in the kernel for the servers of a port."""
    waiting = 0
    with Path("/proc/net/tcp").open() as lines:
        next(lines)
        for line in lines:  # those that listen come first
            _, local, _, state, queues, *_ = line.split()
            if state != LISTENING:
                break
            if int(local.partition(":")[2], 16) == port:
                waiting += int(queues.partition(":")[2], 16)
    return waiting
