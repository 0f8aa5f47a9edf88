"""What type checkers say of programs that use the package: nothing of one that is right
(`typed/uses.py`), and something on just those lines that are wrong (`typed/misuses.py`)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import trio_wknet

HERE = Path(__file__).parent
USES, MISUSES = HERE / "typed" / "uses.py", HERE / "typed" / "misuses.py"
ERROR = re.compile(r"(\w+\.py):(\d+)(?::\d+)?(?: -|:) error")
CACHE = HERE.parent / ".mypy_cache" / "users"
PACKAGES = str(Path(trio_wknet.__file__).parents[1])  # where the package is


def complaints(*command: str, folder: Path) -> set[tuple[str, int]]:
    """The files and lines that a type checker finds errors in. It runs in a folder of its
    own, where it sees neither our configuration nor our sources."""
    for path in (USES, MISUSES):
        shutil.copy(path, folder)
    env = {**os.environ, "MYPYPATH": PACKAGES, "PYTHONPATH": PACKAGES}
    result = subprocess.run(
        [*command, USES.name, MISUSES.name],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=env,
    )
    assert result.returncode in (0, 1), result.stdout + result.stderr
    print(result.stdout, result.stderr)
    return {(file, int(line)) for file, line in ERROR.findall(result.stdout)}


def wrong_lines() -> set[tuple[str, int]]:
    lines = enumerate(MISUSES.read_text().splitlines(), 1)
    return {(MISUSES.name, number) for number, line in lines if line.endswith("# wrong")}


def test_mypy(tmp_path: Path) -> None:
    options = ("--strict", "--warn-unreachable", "--cache-dir", str(CACHE))
    command = (sys.executable, "-m", "mypy", *options)
    assert complaints(*command, folder=tmp_path) == wrong_lines()


@pytest.mark.skipif(shutil.which("pyright") is None, reason="pyright is not installed")
def test_pyright(tmp_path: Path) -> None:
    """As a program: its package on PyPI fetches more when it first runs."""
    command = ("pyright", "--pythonpath", sys.executable)
    assert complaints(*command, folder=tmp_path) == wrong_lines()
