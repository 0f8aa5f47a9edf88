"""Where a benchmark ran: the facts without which its figures mean nothing."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import attrs

PACKAGES = ("trio", "uvloop", "anyio", "gevent", "trio-websocket", "websockets", "picows")


@attrs.frozen
class Machine:
    """A machine, and what runs on it."""

    when: str
    processor: str
    cores: tuple[int, ...]
    """Those that this process may use."""
    siblings: str
    """Which of the machine's cores share a physical one with the first of these."""
    kernel: str
    python: str
    versions: dict[str, str]
    commit: str
    load_average: float
    """Over the last minute, at the start: what else was running."""

    @classmethod
    def here(cls) -> Machine:
        cores = tuple(sorted(os.sched_getaffinity(0)))
        topology = f"/sys/devices/system/cpu/cpu{cores[0]}/topology/thread_siblings_list"
        return cls(
            when=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            processor=_processor(),
            cores=cores,
            siblings=_first_line(topology),
            kernel=platform.release(),
            python=platform.python_version(),
            versions={name: _version(name) for name in PACKAGES},
            commit=_commit(),
            load_average=os.getloadavg()[0],
        )

    def save(self, path: Path, results: object, **more: object) -> None:
        """Write what was measured here to a file, as JSON."""
        everything = {"machine": attrs.asdict(self), **more, "results": results}
        path.write_text(json.dumps(everything, indent=1) + "\n")

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return (
            f"{self.processor}, cores {', '.join(map(str, self.cores))}, Linux {self.kernel}, "
            f"Python {self.python}, {versions}, commit {self.commit}, load average "
            f"{self.load_average:.2f}"
        )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return "unknown"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, check=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
