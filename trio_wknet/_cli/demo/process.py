"""A server of the demo as the demo sees it: a process that answers questions."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from contextlib import suppress
from typing import IO, Any

START_TIMEOUT = 20.0
END_TIMEOUT = 5.0
DYING_TIMEOUT = 1.0


class ServerFailed(Exception):
    """A server did not start, or is gone; the message says why."""


class ServerProcess:
    """One server, from start to end: a context manager.

    It is in a session of its own, so Ctrl-C in a terminal reaches only the demo, which
    then ends its servers.
    """

    def __init__(self, name: str, reactors: int | None = None) -> None:
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        arguments = [name, "" if reactors is None else str(reactors)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "trio_wknet._cli.demo.server", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._questions = self._process.stdin.fileno()
        self._answers = self._process.stdout.fileno()
        self._unread = b""
        self._asked = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        with self._log, self._process:
            try:
                assert self._process.stdin is not None
                self._process.stdin.close()
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(END_TIMEOUT)
            finally:
                self._process.kill()  # nothing, if it has ended

    def hello(self) -> dict[str, Any]:
        """What the server says first. Raises `ServerFailed` if it does not."""
        while not (lines := self._read(START_TIMEOUT)):
            pass
        return lines[-1]

    def statistics(self) -> dict[str, Any] | None:
        """Return the answer to the last question, if it has come, and ask the next.

        It never waits, so a server that is busy, or dead, does not hold up the view.
        """
        try:
            lines = self._read(0.0) if self._asked else []
            if lines or not self._asked:
                os.write(self._questions, b"\n")
                self._asked = True
        except (ServerFailed, BrokenPipeError):
            return None  # the load's result will say
        return lines[-1] if lines else None

    def _read(self, timeout: float) -> list[dict[str, Any]]:
        """The whole lines that are there, waiting for some bytes if there are none."""
        ready, _, _ = select.select([self._answers], [], [], timeout)
        if not ready:
            if timeout:
                raise ServerFailed(f"the server said nothing for {timeout:g} s")
            return []
        data = os.read(self._answers, 1 << 16)
        if not data:
            raise ServerFailed(self.last_words())
        *lines, self._unread = (self._unread + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def epitaph(self) -> str:
        """The last words of a server that has died, to append to a message."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(DYING_TIMEOUT)  # its sockets close before it has ended
            return f"; {self.last_words()}"
        return ""

    def last_words(self) -> str:
        """How the server ended, and the last line that it wrote to stderr."""
        try:
            code = self._process.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:
            return "the server closed its output"
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        said = [line.strip(" |") for line in lines if line.strip(" |+-")]
        return f"the server ended with code {code}" + (f": {said[-1]}" if said else "")
