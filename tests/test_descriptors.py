"""The process's table of descriptors grows before it is full: see reactor/descriptors.pxd."""

from __future__ import annotations

import subprocess
import sys

import pytest

# In a process of its own, as a table never shrinks, and it is the process's.
SCRIPT = """
import fcntl, resource, socket, sys
from pathlib import Path
import trio, trio_wknet

def table():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("FDSize:")[2].split()[0])

async def main():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    assert table() < 1024
    async with trio_wknet.open_engine(int(sys.argv[1])) as engine:
        assert table() == 1024, table()
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))
        ours, theirs = socket.socketpair()
        low, high = engine.adopt(ours), socket.socket(
            fileno=fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, 600)
        )
        assert table() == 1024, table()
        async with low, engine.adopt(high) as conn:
            await low.send_all(b"x")
            assert await conn.receive_some() == b"x"
            with trio.fail_after(60):
                while table() < 4096:
                    await trio.sleep(0.001)

trio.run(main)
"""


@pytest.mark.parametrize("reactors", [0, 1, 2])
def test_it_grows_ahead(reactors: int) -> None:
    subprocess.run([sys.executable, "-c", SCRIPT, str(reactors)], check=True, timeout=120)
