"""Where an echo server's time and memory go: ``python benchmarks/profile_server.py``.

Writes a flame graph of its CPU, with native frames (py-spy), and a profile of its
allocations (memray). Each is of a fresh server under load from this process.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from harness.servers import SERVERS
from harness.worker import Worker, WorkerFailed
from trio_wknet._cli.text import complaint
from trio_wknet._load.options import LoadOptions
from trio_wknet._load.run import LoadProgress, run_load

INSTALL = "pip install 'trio-wknet[profile]'"
PATIENCE = 60.0  # seconds that py-spy may take beside sampling


class ProfileFailed(Exception):
    """A profile could not be made; the message says why."""


def load(options: argparse.Namespace, port: int, duration: float, count: int | None) -> LoadOptions:
    """The load on the server at a port."""
    return LoadOptions(
        "127.0.0.1",
        port,
        connections=options.connections,
        size=options.size,
        depth=options.depth,
        churn=options.churn,
        duration=duration,
        count=count,
    )


# --- CPU ----------------------------------------------------------------------------


class Sampled(Exception):
    """py-spy has ended, so the load may, too."""


def py_spy() -> str:
    beside = Path(sys.executable).with_name("py-spy")
    found = str(beside) if beside.is_file() else shutil.which("py-spy")
    if found is None:
        raise ProfileFailed(f"py-spy is missing: {INSTALL}")
    return found


def load_until_ended(load: LoadOptions, spy: subprocess.Popen[str]) -> None:
    """Keep the server busy for as long as it is looked at."""

    def look(now: LoadProgress) -> None:
        if now.errors.total:
            raise ProfileFailed(f"{now.errors.total} messages were not answered properly")
        if spy.poll() is not None:
            raise Sampled

    try:
        run_load(load, on_progress=look)
    except Sampled:
        return
    raise ProfileFailed("the load ended before py-spy did")


def profile_cpu(options: argparse.Namespace) -> list[Path]:
    """A flame graph, of nothing but the time under load."""
    path = options.output / f"{options.server}-cpu.svg"
    command = [py_spy(), "record", "--native", f"--output={path}", f"--rate={options.rate}"]
    with Worker("harness/servers.py", options.server) as server:
        port = server.answer()
        with subprocess.Popen(
            [*command, f"--duration={options.duration}", f"--pid={server.pid}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as spy:
            try:
                load_until_ended(load(options, port, options.duration + PATIENCE, None), spy)
                said = spy.communicate()[0]
            finally:
                spy.kill()  # nothing, if it has ended
    if spy.returncode:
        hint = "To look into a process takes root, or CAP_SYS_PTRACE."
        raise ProfileFailed(f"py-spy failed. {hint} It says:\n{said.strip()}")
    return [path]


# --- memory -------------------------------------------------------------------------


def memray(*arguments: str) -> str:
    """What a command of memray prints."""
    run = subprocess.run(
        [sys.executable, "-m", "memray", *arguments], capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise ProfileFailed(f"memray {arguments[0]} failed:\n{run.stderr.strip()}")
    return run.stdout


def profile_memory(options: argparse.Namespace) -> list[Path]:
    """What was allocated at the peak, and how much in all."""
    if importlib.util.find_spec("memray") is None:
        raise ProfileFailed(f"memray is missing: {INSTALL}")
    stem = str(options.output / f"{options.server}-memory")
    # Each object is recorded, with the frames that made it: hence so few messages.
    recorder = ("-m", "memray", "run", "--quiet", "--force", "--native")
    interpreter = (sys.executable, *recorder, "--trace-python-allocators", f"--output={stem}.bin")
    with Worker("harness/servers.py", options.server, interpreter=interpreter) as server:
        wanted = load(options, server.answer(), options.duration + PATIENCE, options.count)
        result = run_load(wanted)
    if not result.ok:
        raise ProfileFailed(f"the load was not answered properly: {complaint(result)}")
    memray("flamegraph", "--force", f"--output={stem}.html", f"{stem}.bin")
    Path(f"{stem}.txt").write_text(memray("stats", f"{stem}.bin"))
    return [Path(stem + kind) for kind in (".html", ".txt", ".bin")]


# --- the command --------------------------------------------------------------------

PROFILES = {"cpu": profile_cpu, "memory": profile_memory}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Profile an echo server under load.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--server", choices=list(SERVERS), default="wknet-threaded")
    parser.add_argument("--only", choices=list(PROFILES), help="make one profile, not both")
    parser.add_argument("--connections", type=int, default=100)
    parser.add_argument("--size", type=int, default=64, help="bytes of a message")
    parser.add_argument("--depth", type=int, default=1, help="messages in flight on each")
    parser.add_argument("--churn", action="store_true", help="a connection for every message")
    parser.add_argument("--duration", type=int, default=10, help="seconds of samples of the CPU")
    parser.add_argument("--rate", type=int, default=200, help="samples of the CPU a second")
    parser.add_argument("--count", type=int, default=20_000, help="messages of the memory profile")
    parser.add_argument("--output", type=Path, default="profiles", help="the folder")
    return parser.parse_args()


def main() -> None:
    options = parse()
    options.output.mkdir(parents=True, exist_ok=True)
    try:
        for name in [options.only] if options.only else PROFILES:
            for path in PROFILES[name](options):
                print(path, flush=True)
    except (ProfileFailed, WorkerFailed, ValueError, OSError) as exc:
        sys.exit(f"error: {exc}")


if __name__ == "__main__":
    main()
