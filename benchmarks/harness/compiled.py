"""Programs in C that are compiled when they are needed, and kept in the user's cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

FLAGS = ("-O2",)


def compiler() -> str | None:
    """The C compiler's path, if there is one."""
    return shutil.which("gcc") or shutil.which("cc")


def cache() -> Path:
    """Where what was compiled stays; the folder is made."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "trio_wknet"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def has_header(name: str) -> bool:
    """Whether the compiler finds a library's header."""
    command = [compiler() or "false", "-E", "-include", name, "-x", "c", os.devnull]
    return subprocess.run(command, capture_output=True).returncode == 0


def compiled(source: Path, *libraries: str) -> Path:
    """The program that a source file and libraries make. It is compiled once, as long as neither
    it nor the compiler's path and flags change.

    Raises `OSError` without a compiler, and `subprocess.CalledProcessError` if that fails.
    """
    command = compiler()
    if command is None:
        raise FileNotFoundError(f"no C compiler for {source.name}: neither gcc nor cc")
    linked = [f"-l{name}" for name in libraries]
    facts = (command, *FLAGS, *linked, source.read_text())
    digest = hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]
    program = cache() / f"{source.stem}-{digest}"
    if not program.exists():
        # By another name first: others may look for it, or make it, at the same time.
        with tempfile.TemporaryDirectory(dir=cache()) as folder:
            fresh = Path(folder) / program.name
            subprocess.run([command, *FLAGS, "-o", str(fresh), str(source), *linked], check=True)
            fresh.replace(program)
    return program
