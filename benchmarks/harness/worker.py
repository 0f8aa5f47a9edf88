"""A script of the benchmarks in a process of its own, which answers questions."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

BENCHMARKS = Path(__file__).parent.parent
START_TIMEOUT = 60.0
END_TIMEOUT = 60.0

Self = TypeVar("Self", bound="Worker")


class WorkerFailed(Exception):
    """A worker has ended, or does not answer; the message says which one."""


class Worker:
    """A process, from start to end: a context manager.

    Questions and answers are lines of JSON; `answers.py` is the script's end of that. The
    process ends when its standard input does, so it does not outlive this one. It is in
    a session of its own: Ctrl-C in a terminal reaches only this process, which ends it.
    ``script`` is a path below benchmarks/, where it also finds the modules that it imports.
    ``interpreter`` is the command that runs scripts.
    """

    def __init__(
        self, script: str, *arguments: str, interpreter: Sequence[str] = (sys.executable,)
    ) -> None:
        self._name = " ".join((script, *arguments))
        path = os.pathsep.join(filter(None, [str(BENCHMARKS), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [*interpreter, str(BENCHMARKS / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        self._unread = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def state(self) -> str:
        """Whether it runs, in words."""
        code = self._process.poll()
        return "the process is running" if code is None else f"the process ended with code {code}"

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._process:
            try:
                self.end()
                if kind is None:
                    self._process.wait(END_TIMEOUT)
            finally:
                self._process.kill()  # nothing, if it has ended

    def end(self) -> None:
        """Have it end, without waiting for that."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def ask(self, *question: object) -> None:
        """Put a question, without waiting for the answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
        except BrokenPipeError:
            raise WorkerFailed(f"{self._name} has ended") from None

    def answer(self, timeout: float = START_TIMEOUT) -> Any:
        """The next answer, waited for up to `timeout` seconds."""
        assert self._process.stdout is not None
        until = time.monotonic() + timeout
        while b"\n" not in self._unread:
            left = max(0.0, until - time.monotonic())
            if not select.select([self._process.stdout], [], [], left)[0]:
                raise WorkerFailed(f"{self._name} did not answer within {timeout:g} s")
            more = self._process.stdout.read(1 << 16)
            if not more:
                code = self._process.wait(END_TIMEOUT)
                raise WorkerFailed(f"{self._name} ended with code {code}")
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(f"{self._name}: {answer['error']}")
        return answer["answer"]
