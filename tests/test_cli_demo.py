"""`python -m trio_wknet demo`: both servers, the table, and that nothing is left over."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from trio_wknet._cli.demo.command import demo
from trio_wknet._cli.demo.process import ServerFailed, ServerProcess
from trio_wknet._cli.demo.view import inside_text, sparkline
from trio_wknet._load import cpu
from trio_wknet._load.cpu import CpuMeter, cpu_seconds
from trio_wknet._load.run import LoadErrors, LoadProgress

COMMAND = [sys.executable, "-m", "trio_wknet", "demo"]
SHORT = ["--duration", "0.2", "--connections", "5"]
# A bound that only a broken demo reaches.
PATIENCE = 60.0


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def server_pids(lines: str) -> list[int]:
    return [int(pid) for pid in re.findall(r": process (\d+), port", lines)]


@contextmanager
def long_demo() -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A demo that goes on for an hour, and the servers that it has started."""
    with subprocess.Popen(
        [*COMMAND, "--duration", "1000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stderr is not None
            lines = "".join(process.stderr.readline() for _ in range(3))
            pids = server_pids(lines)
            assert len(pids) == 2, lines
            yield process, pids
        finally:
            process.kill()


# -- The whole of it ---------------------------------------------------------------


def test_json_from_a_process_of_its_own() -> None:
    done = subprocess.run(
        [*COMMAND, *SHORT, "--json"], capture_output=True, check=True, text=True, timeout=PATIENCE
    )
    found = json.loads(done.stdout)
    for side in ("trio_wknet", "trio"):
        assert found[side]["messages_per_second"] > 0
        assert found[side]["cpu_per_message"] is None or found[side]["cpu_per_message"] > 0
        assert 0 < found[side]["p50"] <= found[side]["p99"]
        for one in found[side]["rounds"]:
            assert one["ok"]
            assert one["errors"] == dict.fromkeys(one["errors"], 0)
            assert one["opened"] == 5
    ours, theirs = (found[side]["messages_per_second"] for side in ("trio_wknet", "trio"))
    assert found["gain"]["messages_per_second"] == pytest.approx(ours / theirs)
    assert (found["measured"]["rounds"], found["measured"]["size"]) == (2, 64)
    pids = server_pids(done.stderr)
    assert len(pids) == 2
    assert not any(alive(pid) for pid in pids)


@pytest.mark.parametrize(("reactors", "says"), [("0", "in-loop"), ("2", "2 reactor threads")])
def test_the_table_and_the_lines(reactors: str, says: str) -> None:
    result = CliRunner().invoke(demo, [*SHORT, "--reactors", reactors])
    assert result.exit_code == 0
    for part in ("messages/s", "latency p99", "server CPU a message", says, " x "):
        assert part in result.stdout
    assert "5 TCP connections on loopback, 64 bytes" in result.stdout
    assert "not pinned" in result.stdout
    assert len(re.findall("round [12], .* messages/s, p50", result.stderr)) == 4


def test_the_live_view_is_for_terminals() -> None:
    runner = CliRunner(env={"FORCE_COLOR": "1", "COLUMNS": "120"})
    result = runner.invoke(demo, [*SHORT, "--json"])
    assert json.loads(result.stdout)["trio"]["rounds"]
    for part in ("5 handlers", "reactors:", "round 1:", "waiting"):
        assert part in result.stderr
    assert "process" not in result.stderr


# -- What can go wrong ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--connections", "0"], "connections must be from 1"),
        (["--size", "0"], "size must be from 1"),
        (["--duration", "0"], "duration must be from"),
        (["--reactors", "-1"], "-1 is not in the range"),
        (["--reactors", "many"], "'many' is not a valid integer"),
    ],
)
def test_bad_usage_is_exit_code_2(arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(demo, arguments)
    assert result.exit_code == 2
    assert says in result.stderr


def test_a_server_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    result = CliRunner().invoke(demo, SHORT)
    assert result.exit_code == 1
    assert result.stderr == "Error: the server ended with code 1\n"


def test_a_server_says_why_it_failed() -> None:
    with ServerProcess("wknet", -5) as server, pytest.raises(ServerFailed, match="not -5"):
        server.hello()


def test_a_server_that_is_silent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nexec cat\n")
    silent.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(silent))
    monkeypatch.setattr("trio_wknet._cli.demo.process.START_TIMEOUT", 0.1)
    result = CliRunner().invoke(demo, SHORT)
    assert result.exit_code == 1
    assert "the server said nothing for 0.1 s" in result.stderr


def test_a_server_that_dies_is_exit_code_1() -> None:
    with long_demo() as (process, pids):
        os.kill(pids[0], signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert stdout == ""
    assert "Error: trio_wknet" in stderr
    assert "the server ended with code -9" in stderr
    assert not any(alive(pid) for pid in pids)


def test_ctrl_c_ends_everything() -> None:
    with long_demo() as (process, pids):
        assert all(alive(pid) for pid in pids)
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert (stdout, stderr.split()) == ("", ["Aborted!"])
    assert not any(alive(pid) for pid in pids)


def test_servers_end_when_the_demo_is_killed() -> None:
    with long_demo() as (process, pids):
        process.kill()
        process.communicate(timeout=PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert not any(alive(pid) for pid in pids)


# -- The parts -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wknet", "trio"])
def test_a_server_answers_questions(name: str) -> None:
    with ServerProcess(name) as server:
        assert server.hello()["port"] > 0
        assert server.epitaph() == ""
        found = None
        while found is None:
            found = server.statistics()
        assert ("engine" in found) == (name == "wknet")


def test_questions_to_a_dead_server_are_not_errors() -> None:
    with ServerProcess("trio") as server:
        server.hello()
        os.kill(server.pid, signal.SIGKILL)
        assert server.epitaph() == "; the server ended with code -9"
        assert (server.statistics(), server.statistics()) == (None, None)


def test_bars_share_a_scale() -> None:
    assert sparkline(deque([0, 1, 4, 8]), 8) == " ▁▄█"
    assert sparkline(deque([0, 0]), 0) == "  "
    assert sparkline(deque(), 5) == ""


def test_statistics_are_shown_as_rates() -> None:
    def statistics(at: float, turns: int, events: int, wakes: int) -> dict[str, Any]:
        reactors = [{"turns": turns, "events": events}, {"turns": 0, "events": 0}]
        engine = {"wakes": wakes, "reactors": reactors}
        return {"at": at, "listener": {"handlers": 7}, "engine": engine}

    first, second = statistics(1.0, 100, 500, 3), statistics(3.0, 2100, 8500, 23)
    assert inside_text(first, None) == "7 handlers"
    assert inside_text(second, first) == (
        "7 handlers; reactors: 1,000 turns/s of 4.0 events, woke Trio 10/s"
    )
    assert "of 0.0 events" in inside_text(statistics(4.0, 2100, 8500, 23), second)
    assert inside_text({"handlers": 1200}, None) == "1,200 handlers"


def progress(phase: Any, messages: int) -> LoadProgress:
    return LoadProgress(phase, 0.0, 1, messages, 0, 0, LoadErrors())


def test_the_meter_sees_the_measured_window_only(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 11.0, 13.0])
    monkeypatch.setattr(cpu, "cpu_seconds", lambda pid: next(clock))
    meter = CpuMeter(1)
    assert meter.per_message is None
    for phase, messages in [("warmup", 5), ("measure", 10), ("measure", 20), ("measure", 40)]:
        meter.note(progress(phase, messages))
    meter.note(progress("drain", 1000))
    assert meter.per_message == pytest.approx(3.0 / 30)


def test_the_meter_survives_the_server() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    meter = CpuMeter(ended.pid)
    meter.note(progress("measure", 1))
    assert meter.per_message is None


def test_cpu_of_a_process() -> None:
    before = time.process_time()
    found = cpu_seconds(os.getpid())
    assert before <= found <= time.process_time()
