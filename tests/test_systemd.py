"""Sockets that systemd passes, or whoever does as it does."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import trio_wknet

# Becomes a process that was activated with so many descriptors, from 3 on.
ACTIVATE = """
import json, os, sys
given, environment = json.loads(sys.argv[1])
for target, fd in enumerate(given, 3):
    os.dup2(fd, 100 + target, inheritable=False)
for target in range(3, 3 + len(given)):
    os.dup2(100 + target, target)
environment = {name: value.format(pid=os.getpid()) for name, value in environment.items()}
os.execve(sys.executable, [sys.executable, "-X", "dev", *sys.argv[2:]],
          {**os.environ, **environment})
"""

# Says what it got, and what a child of it gets.
REPORT = """
import json, os, subprocess, sys
import trio_wknet
try:
    found = trio_wknet.systemd_sockets()
except (ValueError, OSError) as exc:
    sys.exit(f"{type(exc).__name__}: {exc}")
child = subprocess.run(
    [sys.executable, "-c", "import os; print(sorted(os.listdir('/proc/self/fd')))"],
    stdout=subprocess.PIPE, text=True, close_fds=False).stdout
print(json.dumps({
    "found": [(name, sock.fileno(), sock.family, sock.type) for name, sock in found],
    "again": trio_wknet.systemd_sockets(),
    "environment": [name for name in os.environ if name.startswith("LISTEN_")],
    "child": child,
}))
for _, sock in found:
    sock.close()
"""


# Closes what libraries hold open behind two sockets (libffi does so, of itself), and says
# what it got.
REPORT_A_GAP = f"import os, trio_wknet\nos.closerange(5, 20)\n{REPORT}"


def run(command: list[str], fds: list[int]) -> subprocess.CompletedProcess[str]:
    path = str(Path(trio_wknet.__file__).parent.parent)
    return subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": path},
        pass_fds=fds,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def activated(
    fds: list[int], program: str = REPORT, **environment: str
) -> subprocess.CompletedProcess[str]:
    given = json.dumps([fds, environment])
    return run([sys.executable, "-c", ACTIVATE, given, "-c", program], fds)


def report(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert result.stderr == ""
    assert result.returncode == 0
    return dict(json.loads(result.stdout))


@contextmanager
def sockets(tmp_path: Path) -> Iterator[list[int]]:
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "socket"))
        unix.listen()
        yield [tcp.fileno(), unix.fileno()]


def test_sockets_and_their_names(tmp_path: Path) -> None:
    with sockets(tmp_path) as fds:
        names = "http.socket:control"
        said = report(activated(fds, LISTEN_PID="{pid}", LISTEN_FDS="2", LISTEN_FDNAMES=names))
    assert said["found"] == [
        ["http.socket", 3, socket.AF_INET, socket.SOCK_STREAM],
        ["control", 4, socket.AF_UNIX, socket.SOCK_STREAM],
    ]
    assert said["again"] == []
    assert said["environment"] == []
    assert "'4'" not in said["child"], "it inherits none"


def test_sockets_without_names(tmp_path: Path) -> None:
    with sockets(tmp_path) as fds:
        said = report(activated(fds, LISTEN_PID="{pid}", LISTEN_FDS="2"))
    assert [name for name, *_ in said["found"]] == ["unknown", "unknown"]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"LISTEN_FDS": "2"},
        {"LISTEN_PID": "1", "LISTEN_FDS": "2"},
        {"LISTEN_PID": "{pid}", "LISTEN_FDS": "0"},
    ],
)
def test_nothing_for_this_process(tmp_path: Path, environment: dict[str, str]) -> None:
    with sockets(tmp_path) as fds:
        assert report(activated(fds, **environment))["found"] == []


@pytest.mark.parametrize("values", [("me", "2"), ("{pid}", "-1"), ("{pid}", "two"), ("", "1")])
def test_variables_without_sense(tmp_path: Path, values: tuple[str, str]) -> None:
    with sockets(tmp_path) as fds:
        result = activated(fds, LISTEN_PID=values[0], LISTEN_FDS=values[1])
    assert result.stderr.startswith("ValueError: LISTEN_PID and LISTEN_FDS must be numbers, not")


def test_descriptors_that_are_no_sockets(tmp_path: Path) -> None:
    with sockets(tmp_path) as fds, (tmp_path / "file").open("w") as file:
        files = activated([*fds, file.fileno()], LISTEN_PID="{pid}", LISTEN_FDS="3")
        closed = activated(fds, REPORT_A_GAP, LISTEN_PID="{pid}", LISTEN_FDS="9")
    assert files.stderr.startswith("OSError: [Errno 88] descriptor 5, passed by LISTEN_FDS, is no")
    assert closed.stderr.startswith("OSError: [Errno 9] descriptor ")


def test_systemds_own_tool() -> None:
    tool = shutil.which("systemd-socket-activate")
    if tool is None:
        pytest.skip("systemd-socket-activate is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = str(Path(trio_wknet.__file__).parent.parent)
    with subprocess.Popen(
        [
            tool,
            "-E",
            "PYTHONPATH",
            "-l",
            f"127.0.0.1:{port}",
            "--fdname=web",
            sys.executable,
            "-c",
            REPORT,
        ],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("Listening on")
        with socket.create_connection(("127.0.0.1", port)):
            output, _ = process.communicate(timeout=30)
    (found,) = json.loads(output)["found"]
    assert found == ["web", 3, socket.AF_INET, socket.SOCK_STREAM]
