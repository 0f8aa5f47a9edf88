"""The figures of docs/benchmarks.md: ``python benchmarks/bench_page.py BENCHMARKS.json
docs/benchmarks.md``.

``BENCHMARKS.json`` comes from ``python benchmarks/run.py --json BENCHMARKS.json``. The text
between the page's two comments is replaced.
"""

from __future__ import annotations

from harness.legend import TARGETS, legend
from harness.pages import Json, machine_text, markdown, run
from harness.result import cells

SCRIPT = "benchmarks/bench_page.py"
OF = {"throughput": "throughput", "p99": "p99", "cpu": "server's CPU for each"}
ENOUGH = 7
"""Rounds."""
FULL = 0.9
"""Of a core: a load generator that is busier than this may be what limits the throughput."""


def machine_lines(found: Json) -> list[str]:
    machine, settings = found["machine"], found["settings"]
    rounds, minutes = settings["rounds"], found["seconds"] / 60
    lines = [
        f"{machine_text(machine)} Medians of {rounds} round{'s' * (rounds > 1)} of "
        f"{settings['duration']:g} s, each after {settings['warmup']:g} s that are not counted, "
        f"in fresh processes, all servers of a cell in turn; {minutes:.0f} minutes for all. The "
        f"load average at the start was {machine['load_average']:.1f}.",
        "",
    ]
    if settings["rounds"] < ENOUGH or settings["most_connections"] is not None:
        lines += [quick_text(settings), ""]
    return lines


def quick_text(settings: Json) -> str:
    most = settings["most_connections"]
    bound = "" if most is None else f", with at most {most:,} connections"
    return (
        f"**This was a quick run{bound}: it shows that everything works. Its figures say "
        "little, and whether they reach the targets does not matter.**"
    )


def wanted_lines(found: Json) -> list[str]:
    """Every ratio that is aimed at, and whether it is reached."""
    verdicts = [verdict for result in found["results"] for verdict in result["verdicts"]]
    rows = [
        [
            verdict["title"],
            OF[verdict["of"]],
            verdict["ours"],
            verdict["peer"],
            f"{verdict['ratio']:.2f}",
            f"{verdict['lowest']:.2f} to {verdict['highest']:.2f}",
            verdict["bound"],
            "met" if verdict["met"] else "**missed**",
            "" if verdict["cpu_ratio"] is None else f"{verdict['cpu_ratio']:.2f}",
        ]
        for verdict in verdicts
    ]
    head = ["work", "of", "ours", "against", "ratio", "rounds", "target", "", "by CPU"]
    return [TARGETS, "", *markdown(head, rows), *unmeasured_lines(found)]


def unmeasured_lines(found: Json) -> list[str]:
    missing = [
        f"{OF[wanted['of']]} of {result['scenario']['name']} against {wanted['peer']}"
        for result in found["results"]
        for wanted in result["unmeasured"]
    ]
    return [f"Not measured: {', '.join(missing)}.", ""] if missing else []


def beside_lines(found: Json) -> list[str]:
    """The best of ours beside Trio's own transport, in every cell that has both."""
    beside = found["beside_own"]
    own = [result["beside_own"] for result in found["results"] if result["beside_own"]]
    rows = [
        [
            verdict["title"],
            verdict["ours"],
            f"{verdict['ratio']:.2f}",
            f"{verdict['lowest']:.2f} to {verdict['highest']:.2f}",
            "" if verdict["met"] else "**slower**",
        ]
        for verdict in own
    ]
    slower = len(beside["slower"])
    text = (
        f"In {slower or 'none'} of the {beside['cells']} cells that have both, the best of our "
        "forms is slower than Trio's own transport."
    )
    return [text, "", *markdown(["work", "ours", "times Trio's", "rounds", ""], rows)]


def cell_lines(result: Json) -> list[str]:
    """Every server of one cell."""
    scenario = result["scenario"]
    heads = ["server", scenario["unit"], "lowest", "highest", "p50", "p99", "p99.9"]
    heads += ["server's CPU, µs", "cores, server", "cores, load"]
    rows = [[name, *server_cells(server)] for name, server in result["servers"].items()]
    rate = [f"The load is {scenario['rate']:,.0f} messages/s.", ""] if scenario["rate"] else []
    pinned = ["Server and load have a core each.", ""] if scenario["pinned"] else []
    heading = f"### {scenario['name']}: {scenario['title']}"
    return [heading, "", *pinned, *rate, *markdown(heads, rows)]


def server_cells(server: Json) -> list[str]:
    """A server's medians; the load's cores in bold where they were full."""
    *others, load = cells(server)
    return [*others, f"**{load}**" if (server["load_busy"] or 0) >= FULL else load]


def legend_lines(found: Json) -> list[str]:
    """What the servers' names stand for, of all that were measured."""
    servers = [name for result in found["results"] for name in result["servers"]]
    if found["memory"] is not None:
        servers += found["memory"]["servers"]
    text = (
        "A *cell* below is one kind of work, for one number of connections; all its servers do "
        "the same. They are called:"
    )
    return ["### Servers", "", text, "", *legend(servers)]


def memory_lines(found: Json) -> list[str]:
    memory = found["memory"]
    heads = ["", *(f"{count:,} idle, MiB" for count in memory["counts"]), "bytes for each"]
    rows = [
        [
            server["form"],
            *(f"{size / (1 << 20):.1f}" for size in server["resident"]),
            f"{server['each']:,.0f}",
        ]
        for server in memory["servers"].values()
    ]
    return ["### Memory", "", *markdown(heads, rows)]


def timers_lines(found: Json) -> list[str]:
    rows = [[work, by, f"{ns:,.0f} ns"] for work, by, ns in found["timers"]]
    return ["### Timers", "", *markdown(["work", "by", "CPU, from Python"], rows)]


def page(found: Json) -> str:
    """All of it, as far as it was measured."""
    lines = [
        *machine_lines(found),
        *legend_lines(found),
        "### Beside Trio's own transport",
        "",
        *beside_lines(found),
        *(line for result in found["results"] for line in cell_lines(result)),
    ]
    if found["memory"] is not None:
        lines += memory_lines(found)
    if found["timers"]:
        lines += timers_lines(found)
    lines += ["### Targets", "", *wanted_lines(found)]
    return "\n".join(lines)


if __name__ == "__main__":
    run(SCRIPT, "run.py", "docs/benchmarks.md", page)
