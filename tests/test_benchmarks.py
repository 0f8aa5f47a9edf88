"""The benchmark: every server echoes, every scenario loads, and ratios are what they say.
Figures are no matter here."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import trio
from benchmark_scripts import BENCHMARKS, ROOT, measured, run

import trio_wknet
from trio_wknet._load.options import LoadOptions
from trio_wknet._load.protocol import Protocol
from trio_wknet._load.run import Latency, LoadErrors, LoadResult, run_load
from trio_wknet._native.load.histogram import Histogram

PAGE = ROOT / "docs" / "benchmarks.md"
FIGURES = ROOT / "docs" / "_static" / "benchmarks.json"
MODULES = (
    "experiments.floor",
    "experiments.segments",
    "harness.compiled",
    "harness.legend",
    "harness.measure",
    "harness.result",
    "harness.rounds",
    "harness.scenarios",
    "harness.servers",
    "harness.slow_consumer",
)


def load_modules() -> SimpleNamespace:
    """The scripts' own modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        modules = {name.rpartition(".")[2]: importlib.import_module(name) for name in MODULES}
        return SimpleNamespace(**modules)


bench = load_modules()
SERVERS = list(bench.servers.SERVERS)
SCENARIOS = {scenario.name: scenario for scenario in bench.scenarios.SCENARIOS}
DOES_NOT_WAIT = ("-nowait", "-events", "-events-idle")
FORMS: dict[str, tuple[Protocol, ...]] = {
    "raw": ("raw",),
    "length-prefixed": ("length-prefixed",),
    "websocket": ("websocket", "websocket-text"),
}
TINY = bench.measure.Settings(rounds=1, duration=0.02, warmup=0.0, most_connections=20)


# -- Scripts -------------------------------------------------------------------


def test_what_measures_uses_no_experiment() -> None:
    imports = re.compile(r"^\s*(?:from|import) experiments\b", re.MULTILINE)
    sources = {path.name: path.read_text() for path in (BENCHMARKS / "harness").glob("*.py")}
    assert len(sources) > 10
    assert [name for name, text in sources.items() if imports.search(text)] == []


def test_experiments_are_listed() -> None:
    code, said, complained = run("experiment.py")
    assert (code, complained) == (0, "")
    assert "  floor        What an echo on Trio cannot cost less than\n" in said
    assert "scale_rows" not in said  # is no script


def test_an_experiment_that_is_not_there() -> None:
    code, _, complained = run("experiment.py", "nothing")
    assert code == 1
    assert complained.startswith("experiment.py: there is no experiment 'nothing'\n")


# -- Servers and scenarios -----------------------------------------------------


@pytest.fixture(scope="module")
def running() -> Iterator[dict[str, Any]]:
    """All servers that can run here, started side by side."""
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        found = str(Path(trio_wknet.__file__).parent.parent)
        path = os.pathsep.join(filter(None, [found, os.environ.get("PYTHONPATH")]))
        patch.setenv("PYTHONPATH", path)
        names = [name for name in SERVERS if bench.servers.missing(name) is None]
        servers = {name: stack.enter_context(bench.measure.Server(name)) for name in names}
        yield servers
        for server in servers.values():
            server.end()
    assert {name: server.state for name, server in servers.items()} == dict.fromkeys(
        names, "the process ended with code 0"
    )


@pytest.mark.parametrize("name", SERVERS)
def test_every_server_echoes(name: str, running: dict[str, Any]) -> None:
    if name not in running:
        pytest.skip(f"{bench.servers.missing(name)} is missing")
    # More than the kernel's buffers take, so that servers send in parts; where sending does
    # not wait, all that can be on its way is within its bound.
    large = 20_000 if name.endswith(DOES_NOT_WAIT) else 1_000_000
    for protocol in FORMS[bench.servers.protocol(name)]:
        for size, depth, count in ((64, 1, 30), (large, 2, 4)):
            options = LoadOptions(
                "127.0.0.1",
                running[name].port,
                protocol=protocol,
                connections=3,
                size=size,
                depth=depth,
                count=count,
                duration=60.0,
                verify=True,
            )
            result = run_load(options)
            assert (result.ended, result.answered) == ("count", count)
            assert result.errors == LoadErrors()


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_loads(name: str, running: dict[str, Any]) -> None:
    scenario = SCENARIOS[name].within(TINY.most_connections)
    if scenario.of_trio is not None:
        scenario = attrs.evolve(scenario, rate=1000.0)
    before = os.sched_getaffinity(0)
    server = next((name for name in scenario.servers if name in running), None)
    if server is None:
        pytest.skip(f"none of {', '.join(scenario.servers)} can run here")
    one = bench.measure.measure(scenario, running[server], TINY)
    assert one.result.ok
    assert one.result.errors == LoadErrors()
    assert one.result.options.size == scenario.size
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=list(SCENARIOS))
def test_a_scenario_wants_what_it_measures(scenario: Any) -> None:
    assert set(scenario.servers) <= set(SERVERS)
    assert all(set(wanted.ours) <= set(scenario.ours) for wanted in scenario.wanted)
    assert not {wanted.peer for wanted in scenario.wanted} & set(scenario.ours)
    # A server of bytes echoes frames as well.
    needed = {bench.servers.protocol(name) for name in scenario.servers} - {"raw"}
    assert all(scenario.protocol.startswith(protocol) for protocol in needed)


def test_every_server_is_explained() -> None:
    assert set(bench.legend.SERVERS) == set(SERVERS)


def test_names_of_scenarios_are_different() -> None:
    assert len(SCENARIOS) == len(bench.scenarios.SCENARIOS)


def test_only_servers_of_the_scenario_are_chosen() -> None:
    scenario = SCENARIOS["idle-deadline"]
    assert bench.rounds.able(scenario) == scenario.servers
    assert bench.rounds.able(scenario, ["c-epoll", "trio-deadline"]) == ("trio-deadline",)
    assert bench.rounds.able(scenario, ["trio"]) == ()


def test_each_round_begins_with_another_server() -> None:
    orders = [bench.rounds.in_turn(("a", "b", "c"), number) for number in range(4)]
    assert orders == [("a", "b", "c"), ("b", "c", "a"), ("c", "a", "b"), ("a", "b", "c")]


def test_a_slow_consumer_sends_what_is_taken_and_is_not_hurt_by_the_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with bench.slow_consumer.slow_consumer(listener.getsockname()[1]):
            conn, _ = listener.accept()
            with conn:
                got = 0
                while got < 1_000_000:  # none of it is answered
                    got += len(conn.recv(1 << 16))


# -- The program in C ----------------------------------------------------------


@pytest.mark.skipif(bench.compiled.compiler() is None, reason="a C compiler is missing")
def test_a_program_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "three.c"
    source.write_text("int main(void) { return 3; }")
    program = bench.compiled.compiled(source)
    assert os.waitstatus_to_exitcode(os.system(str(program))) == 3
    made = program.stat().st_mtime_ns
    assert bench.compiled.compiled(source) == program
    assert program.stat().st_mtime_ns == made
    source.write_text("int main(void) { return 4; }")
    assert bench.compiled.compiled(source) != program
    assert len(list(program.parent.iterdir())) == 2


def test_without_a_compiler_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bench.servers.missing("c-epoll") == "a C compiler"
    with pytest.raises(FileNotFoundError, match=r"no C compiler for echo\.c"):
        bench.compiled.compiled(BENCHMARKS / "echo.c")


def test_a_peer_that_is_not_installed_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_none(name: str) -> None: ...

    monkeypatch.setattr(importlib.util, "find_spec", find_none)
    assert bench.servers.missing("gevent") == "gevent"
    assert bench.servers.missing("anyio-trio") == "anyio"
    assert bench.servers.missing("uvloop-streams") == "uvloop"
    assert bench.servers.missing("picows-uvloop") == "uvloop and picows"
    assert bench.servers.missing("trio-websocket") == "trio_websocket"
    assert bench.servers.missing("trio") is None
    assert bench.servers.missing("wknet-inloop") is None


# -- Ratios, of made-up numbers ------------------------------------------------


def round_of(throughput: int, p99: float = 1.0, cpu: float | None = None, size: int = 64) -> Any:
    """A round in which so many messages came back in two seconds."""
    result = LoadResult(
        options=LoadOptions("127.0.0.1", 1, size=size),
        ended="duration",
        opened=100,
        started=2 * throughput,
        answered=2 * throughput,
        unfinished=0,
        messages=2 * throughput,
        seconds=2.0,
        errors=LoadErrors(),
        connect_error=None,
        latency=Latency(count=1, mean=0.0, p50=0.0, p90=0.0, p99=p99, p999=2 * p99, max=0.0),
    )
    return bench.measure.Measured(result, cpu, None if cpu is None else cpu / 4, Histogram())


def result_of(
    rounds: dict[str, list[Any]], *wanted: tuple[Any, ...], ours: str = "ab", **more: Any
) -> Any:
    """Of our servers `ours`, one letter each; `wanted` are peer, ratio, and what else."""
    wants = tuple(
        bench.scenarios.Wanted(peer, ratio, **(options[0] if options else {}))
        for peer, ratio, *options in wanted
    )
    scenario = bench.scenarios.Scenario(
        name="made-up", what="made up", ours=tuple(ours), wanted=wants, **more
    )
    return bench.result.Result(scenario, rounds)


def test_a_ratio_is_of_medians_and_has_the_range_of_the_rounds() -> None:
    rounds = {
        "a": [round_of(n) for n in (100, 300, 200)],
        "b": [round_of(n) for n in (10, 10, 1000)],
        "trio": [round_of(n) for n in (100, 100, 50)],
    }
    (verdict,) = result_of(rounds, ("trio", 2.0)).verdicts()
    assert (verdict.ours, verdict.ratio) == ("a", 2.0)  # b is better once, but not mostly
    assert (verdict.lowest, verdict.highest) == (1.0, 4.0)
    assert verdict.met
    assert verdict.bound == "at least 2"


@pytest.mark.parametrize(("of", "met"), [("throughput", False), ("p99", True), ("cpu", True)])
def test_what_should_be_small_is_met_from_below(of: str, met: bool) -> None:
    rounds = {
        "a": [round_of(55, p99=0.5, cpu=0.5)],
        "b": [round_of(50, p99=0.6, cpu=0.6)],
        "trio": [round_of(100, p99=1.0, cpu=1.0)],
    }
    (verdict,) = result_of(rounds, ("trio", 0.56, {"of": of})).verdicts()
    assert verdict.ours == "a"
    assert verdict.ratio == pytest.approx(0.55 if of == "throughput" else 0.5)
    assert verdict.met is met
    assert verdict.bound == ("at least 0.56" if of == "throughput" else "at most 0.56")


@pytest.mark.parametrize(("of", "wanted"), [("throughput", 0.5), ("cpu", 2.0)])
def test_exactly_what_was_wanted_is_met(of: str, wanted: float) -> None:
    rounds = {"a": [round_of(1, cpu=2.0)], "trio": [round_of(2, cpu=1.0)]}
    (verdict,) = result_of(rounds, ("trio", wanted, {"of": of})).verdicts()
    assert verdict.met


def test_one_of_ours_may_be_meant() -> None:
    rounds = {"a": [round_of(10)], "b": [round_of(30)], "trio": [round_of(10)]}
    result = result_of(rounds, ("trio", 2.0, {"ours": ("a",)}), ("trio", 2.0))
    assert [(v.ours, v.ratio, v.met) for v in result.verdicts()] == [
        ("a", 1.0, False),
        ("b", 3.0, True),
    ]


def test_what_cannot_be_told_is_no_verdict() -> None:
    rounds = {"a": [round_of(10)], "trio": [round_of(10, cpu=1.0)], "none": [round_of(0)]}
    wanted = (("gevent", 1.0), ("trio", 1.0, {"of": "cpu"}), ("none", 1.0))
    result = result_of(rounds, *wanted)
    assert result.verdicts() == []
    assert [one.peer for one in result.unmeasured()] == ["gevent", "trio", "none"]


def test_cpu_is_compared_in_rounds_that_could_tell() -> None:
    rounds = {
        "a": [round_of(1, cpu=2.0), round_of(1), round_of(1, cpu=4.0)],
        "trio": [round_of(1, cpu=2.0), round_of(1, cpu=9.0), round_of(1)],
    }
    (verdict,) = result_of(rounds, ("trio", 1.0, {"of": "cpu"})).verdicts()
    assert verdict.ratio == pytest.approx(3.0 / 5.5)
    assert (verdict.lowest, verdict.highest) == (1.0, 1.0)
    assert verdict.cpu_ratio == pytest.approx(5.5 / 3.0)


def test_a_figure_may_be_wanted_instead_of_a_ratio_to_a_peer() -> None:
    rounds = {"a": [round_of(n, cpu=1.0) for n in (900, 1100, 1200)]}
    result = result_of(rounds, ("1,000 messages/s", 1.0, {"figure": 1000.0}), ours="a")
    (verdict,) = result.verdicts()
    assert (verdict.ratio, verdict.lowest, verdict.highest) == (1.1, 0.9, 1.2)
    assert (verdict.peer, verdict.met, verdict.cpu_ratio) == ("1,000 messages/s", True, None)
    assert result.scenario.servers == ("a",)


def test_large_messages_count_as_bytes() -> None:
    result = result_of({"a": [round_of(10, size=1_000_000)]}, ours="a", size=1_000_000)
    assert result.scenario.unit == "MB/s"
    assert result.median("a") == 10.0


def test_how_busy_server_and_load_were_follows_from_cpu() -> None:
    one = round_of(1000, cpu=0.0008)
    assert one.busy == pytest.approx(0.8)
    assert one.load_busy == pytest.approx(0.2)
    assert round_of(1000).busy is None


def test_the_best_of_ours_stands_beside_trio_in_every_cell() -> None:
    slow = result_of({"a": [round_of(8)], "b": [round_of(9)], "trio": [round_of(10)]})
    fast = result_of({"a": [round_of(8)], "b": [round_of(30)], "trio": [round_of(10)]})
    without = result_of({"a": [round_of(8)]})
    by_the_clock = result_of({"a": [round_of(8)], "trio": [round_of(10)]}, rate=9.0)
    beside = bench.result.Beside.of([slow, fast, without, by_the_clock])
    assert beside.to_json() == {"cells": 2, "lowest": 0.9, "slower": ["made-up"]}
    assert beside.slower()[0].ours == "b"
    nothing = bench.result.Beside.of([without])
    assert nothing.to_json() == {"cells": 0, "lowest": None, "slower": []}


def test_latencies_of_all_rounds_are_put_together() -> None:
    rounds = [round_of(1), round_of(1)]
    for one, ms in zip(rounds, (1, 3), strict=True):
        one.latency.record(ms * 1_000_000)
    found = result_of({"a": rounds}, rate=9.0).to_json()["servers"]["a"]
    cdf = dict(found["cdf"])
    assert cdf[50] == pytest.approx(0.001, rel=0.01)
    assert cdf[99.99] == pytest.approx(0.003, rel=0.01)
    assert result_of({"a": rounds}).to_json()["servers"]["a"]["cdf"] is None


def test_a_load_that_was_not_answered_properly_is_a_failure() -> None:
    good = round_of(1)
    reset = attrs.evolve(good.result, errors=LoadErrors(reset=2))
    bad = attrs.evolve(good, result=reset)
    result = result_of({"a": [good, bad]})
    assert result.failures() == ["made-up, a, round 2: connections failed: 2 reset"]


def test_percentiles_without_all_messages_are_a_failure_in_the_open_loop() -> None:
    closed = attrs.evolve(round_of(1).result, unfinished=3)
    by_the_clock = attrs.evolve(closed, options=LoadOptions("127.0.0.1", 1, rate=9.0))
    rounds = [attrs.evolve(round_of(1), result=result) for result in (closed, by_the_clock)]
    (failure,) = result_of({"a": rounds}).failures()
    assert failure.startswith("made-up, a, round 2: 3 messages were not answered")


# -- From the command to the page ----------------------------------------------


def test_a_quick_run_becomes_a_page(tmp_path: Path) -> None:
    arguments = ["--quick", "--only", "half-load", "--only", "echo-1", "--only", "memory"]
    arguments += ["--server", "trio", "--server", "wknet-threaded"]
    found = measured("run.py", tmp_path, *arguments)
    assert found["settings"]["rounds"] == 1
    echo, half = found["results"]
    assert list(half["servers"]) == ["wknet-threaded", "trio"]
    assert half["scenario"]["rate"] >= 1
    # On a busy machine a moment may be too short to tell.
    assert [one["of"] for one in half["verdicts"] + half["unmeasured"]] == ["p99"]
    assert half["beside_own"] is None
    assert len(echo["servers"]["trio"]["rounds"]["throughput"]) == 1
    assert list(found["memory"]["servers"]) == ["trio", "wknet-threaded"]
    assert found["memory"]["counts"] == [0, 200]
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- begin: benchmarks/bench_page.py -->\nold<!-- end -->\nafter\n")
    assert run("bench_page.py", tmp_path / "found.json", page) == (0, "", "")
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("<!-- end -->\nafter\n")
    assert "**This was a quick run, with at most 200 connections" in text
    assert "| `trio` | Trio's own sockets" in text
    assert "**Missed** means that" in text
    assert "### half-load: stream echo by the clock, 64 B, 100 connections, at 50%" in text
    assert "old" not in text


def test_a_page_without_a_place_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no place\n")
    code, _, complained = run("bench_page.py", FIGURES, page)
    assert code == 1
    assert "has no place for the figures" in complained
    assert page.read_text() == "no place\n"


def test_the_page_has_the_figures_of_its_file_of_benchmarks(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    shutil.copy(PAGE, page)
    assert run("bench_page.py", FIGURES, page) == (0, "", "")
    assert page.read_text() == PAGE.read_text()


@pytest.mark.skipif(not importlib.util.find_spec("matplotlib"), reason="matplotlib is missing")
def test_the_pictures_are_drawn(tmp_path: Path) -> None:
    assert run("plot.py", FIGURES, tmp_path) == (0, "", "")
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert drawn == ["latency.png", "memory.png", "throughput.png"]


# -- What is measured apart ----------------------------------------------------


def test_the_floor_is_trios_scheduler_and_the_system_calls() -> None:
    costs = bench.floor.Costs(6e-6, {"c-epoll": 2e-6, "trio": 32e-6})
    assert costs.floor == pytest.approx(8e-6)
    floor, trios = ([*column.cells] for column in bench.floor.table("", costs).columns[1:])
    assert floor == ["6.00 µs", "2.00 µs", "8.00 µs", "32.00 µs"]
    assert trios == ["0.75", "0.25", "1.00", "4.00"]


def test_the_schedulers_steps_are_taken() -> None:
    """One for each task and turn."""
    steps = 0

    class Steps(trio.abc.Instrument):
        def after_task_step(self, task: trio.lowlevel.Task) -> None:
            nonlocal steps
            steps += task.name.endswith("<locals>.task")

    assert trio.run(bench.floor.one_step, 10, instruments=[Steps()]) > 0
    # And one to begin with, and one to be cancelled.
    assert steps == bench.floor.TASKS * (10 + 2)


def test_the_floor_of_messages_that_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """They share the scheduler's steps; and the server in C is among the others."""
    floor = bench.floor

    async def one_step() -> float:
        return 8e-6

    def run_scenario(scenario: Any, names: Any, *_: object) -> SimpleNamespace:
        assert set(names) <= set(scenario.servers)
        return SimpleNamespace(
            rounds={name: [SimpleNamespace(cpu=1e-6), SimpleNamespace(cpu=None)] for name in names}
        )

    monkeypatch.setattr(floor, "one_step", one_step)
    monkeypatch.setattr(floor, "run_scenario", run_scenario)
    found = {}
    for name in floor.STEPS:
        scenario = floor.with_system_calls(SCENARIOS[name])
        costs = floor.measure(scenario, TINY, lambda _: None)
        assert costs.servers[floor.SYSTEM_CALLS] == 1e-6
        found[name] = costs.scheduler
    assert found == pytest.approx({"echo-100": 16e-6, "echo-nowait": 8e-6, "depth-16": 1e-6})


def test_single_bytes_are_received_as_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    found = str(Path(trio_wknet.__file__).parent.parent)
    monkeypatch.setenv("PYTHONPATH", found)
    assert bench.segments.measure("threaded-frames", pace=0.0) > 0
    shown = bench.segments.table({"inloop-frames": [2e-6], "inloop-exactly": [1e-6, 3e-6]})
    assert [*shown.columns[2].cells] == ["1.00", "1.00"]


def test_compression_is_measured_beside_its_peer(tmp_path: Path) -> None:
    arguments = ("--rounds", 1, "--duration", 0.05, "--connections", 3)
    found = measured("experiment.py", tmp_path, "deflate", *arguments)["results"]
    assert {"wknet-inloop", "wknet-threaded"} <= set(found)
    for (one,) in found.values():
        assert one["per_second"] > 0
        assert one["cpu"] > 0


def test_relays_are_measured(tmp_path: Path) -> None:
    ways = ("--way", "threaded-relay", "--way", "threaded-pumps")
    found = measured("experiment.py", tmp_path, "relay", "--rounds", 1, "--seconds", 0.05, *ways)
    assert list(found["results"]) == ["bulk", "ping-pong"]
    for rounds in found["results"].values():
        assert len(rounds) == 2
        for (one,) in rounds.values():
            assert one["rate"] > 0
            assert one["cpu"] > 0


def test_files_are_measured(tmp_path: Path) -> None:
    ways = ("--way", "threaded-file", "--way", "asyncio-sendfile", "--way", "trio-chunks")
    found = measured("experiment.py", tmp_path, "files", "--rounds", 1, "--megabytes", 1, *ways)
    assert list(found["results"]) == ["1 peer", "50 peers"]
    for rounds, size in zip(found["results"].values(), (5_000_000, 10_000_000), strict=True):
        assert len(rounds) == 3
        for (one,) in rounds.values():
            assert one["bytes"] == size
            assert one["cpu"] > 0


@pytest.mark.parametrize("websocket", [False, True])
def test_broadcasts_are_measured(tmp_path: Path, websocket: bool) -> None:
    arguments = ["--rounds", 1, "--times", 1, "--members", 3, "--way", "threaded-group"]
    arguments += ["--websocket"] if websocket else ["--way", "threaded-loop"]
    found = measured("experiment.py", tmp_path, "broadcast", *arguments)["results"]
    assert len(found) == (1 if websocket else 2)
    for (one,) in found.values():
        assert one["stall"] >= 0
        assert one["last"] > 0


def test_silent_members_are_measured(tmp_path: Path) -> None:
    arguments = ("--members", 3, "--broadcasts", 200, "--outbound", 20_000)
    found = measured("experiment.py", tmp_path, "silent_members", *arguments)["results"]
    assert list(found) == ["threaded", "inloop"]
    for one in found.values():
        assert (one["silent"], one["complete"]) == (1, 2)
        assert one["buffered"] <= one["bound"] == 20_000


def test_what_watching_costs_is_measured(tmp_path: Path) -> None:
    arguments = ("--rounds", 1, "--duration", 0.2, "--connections", 3, "--reactors", 1)
    found = measured("experiment.py", tmp_path, "sight", *arguments)["results"]
    assert [one["way"] for one in found] == ["measure", "top", "scrape", "stalls"]
    for one in found:
        assert one["rate"] > 0


@pytest.mark.skipif(
    not bench.compiled.has_header("openssl/ssl.h"), reason="a C compiler or libssl-dev is missing"
)
def test_tls_is_measured(tmp_path: Path) -> None:
    rows = ["echo-64", "idle"]
    chosen = [word for row in rows for word in ("--only", row)] + ["--server", "wknet-threaded"]
    arguments = ("--rounds", 1, "--duration", 0.1, "--connections", 5, "--idle", 20)
    found = measured("experiment.py", tmp_path, "tls", *chosen, *arguments)["results"]
    assert list(found) == rows
    for row, servers in found.items():
        (one,) = servers["wknet-threaded"]
        assert (one["per_second"] > 0) is (row == "echo-64")
        assert one["cost"] >= 0


def test_quiet_websockets_are_measured(tmp_path: Path) -> None:
    name = "wknet-threaded-events"
    arguments = ("--connections", 5, "--interval", 0.1, "--seconds", 0.3, "--only", name)
    course = measured("experiment.py", tmp_path, "idle_websockets", *arguments)["results"][name]
    assert course["pings"] > 0
    assert course["counted_pings"] > 0
    assert course["cpu"] > 0
