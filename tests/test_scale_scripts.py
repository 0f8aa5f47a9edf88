"""The scripts that measure many connections, with a few; their figures are no matter here."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from benchmark_scripts import ROOT, measured, run, script
from helpers import PATIENCE

PAGE = ROOT / "docs" / "scale.md"
FIGURES = ROOT / "docs" / "_static" / "scale.json"
SERVER = "wknet-inloop-events-idle"


def test_a_crowd_of_several_servers_comes_and_goes(tmp_path: Path) -> None:
    arguments = ("--connections", 60, "--servers", 2, "--quiet", 0.1, "--idle-timeout", 3)
    course = measured("experiment.py", tmp_path, "crowd", *arguments)["course"]
    assert course["plan"]["server"] == SERVER
    assert course["connect_seconds"] > 0
    assert course["echo_seconds"] > 0
    assert course["closing"]["first"] >= 3
    assert course["resident_before"] > 0


def test_a_crowd_without_a_timeout_is_closed_by_its_clients(tmp_path: Path) -> None:
    arguments = ("--server", "trio", "--connections", 20, "--quiet", 0.1)
    assert measured("experiment.py", tmp_path, "crowd", *arguments)["course"]["closing"] is None


def test_figures_have_peers_and_verdicts(tmp_path: Path) -> None:
    found = measured("scale.py", tmp_path, "--quick", "--only", "collection")
    (row,) = found["rows"]
    assert list(row["medians"]) == [SERVER, "trio"]
    assert row["value"] == row["medians"][SERVER] / row["medians"]["trio"]
    assert row["met"] == (row["value"] <= row["at_most"])


def test_groups_are_measured(tmp_path: Path) -> None:
    rows = measured("scale.py", tmp_path, "--quick", "--only", "groups")["rows"]
    assert [row["name"] for row in rows] == ["group-20", "group-cpu-20"]
    assert all(figure > 0 for row in rows for figure in row["medians"].values())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--connections", 100_000_000), "is the limit (ulimit -Hn): take more servers"),
        (("--server", "trio", "--servers", 2), "trio shares no port, so not 2"),
        (
            ("--connections", 50, "--quiet", 0.5, "--idle-timeout", 0.1),
            "the server closed a connection that is still needed",
        ),
    ],
    ids=["descriptors", "port", "too-short-a-timeout"],
)
def test_what_cannot_be_is_said_in_a_line(arguments: tuple[object, ...], complaint: str) -> None:
    code, _, complained = run("experiment.py", "crowd", *arguments)
    assert code == 1
    assert complaint in complained
    assert complained.count("\n") == 1


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def connected(pid: int) -> bool:
    """Whether a process has begun to fill up with connections."""
    return len(os.listdir(f"/proc/{pid}/fd")) > 50


def test_ctrl_c_ends_every_process() -> None:
    with script(
        "experiment.py", "crowd", "--connections", 50, "--servers", 2, "--quiet", 600
    ) as process:
        until = time.monotonic() + PATIENCE
        while not any(map(connected, children(process.pid))) and time.monotonic() < until:
            time.sleep(0.01)
        started = children(process.pid)
        assert len(started) == 3
        process.send_signal(signal.SIGINT)
        _, complained = process.communicate(timeout=60)
    assert (process.returncode, complained) == (1, "crowd.py: interrupted\n")
    assert [pid for pid in started if Path(f"/proc/{pid}").exists()] == []


def test_a_million_in_small(tmp_path: Path) -> None:
    rows = measured("experiment.py", tmp_path, "million", "--connections", 20_000, "--busy", 1000)[
        "rows"
    ]
    figures = {(row["part"], row["work"]): row["figure"] for row in rows}
    assert {part for part, _ in figures} == {"slot_map", "wheel", "pool"}
    assert 448 <= figures["slot_map", "memory of a connection's slot"] < 512
    assert figures["wheel", "looks at each"] < 4


def test_the_page_has_the_figures_of_its_file(tmp_path: Path) -> None:
    page = tmp_path / "scale.md"
    shutil.copy(PAGE, page)
    assert run("scale_page.py", FIGURES, page) == (0, "", "")
    assert page.read_text() == PAGE.read_text()
