"""The scripts of benchmarks/, as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import trio_wknet

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"


def script(name: str, *arguments: object) -> subprocess.Popen[str]:
    found = str(Path(trio_wknet.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [found, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, str(BENCHMARKS / name), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(name: str, *arguments: object) -> tuple[int, str, str]:
    with script(name, *arguments) as process:
        try:
            said, complained = process.communicate(timeout=120)
        finally:
            process.kill()
    return process.returncode, said, complained


def measured(name: str, folder: Path, *arguments: object) -> Any:
    """What a script measured."""
    path = folder / "found.json"
    code, _, complained = run(name, *arguments, "--json", path)
    assert (code, complained) == (0, "")
    return json.loads(path.read_text())
