"""The figures of docs/scale.md: ``python benchmarks/scale_page.py SCALE.json docs/scale.md``.

``SCALE.json`` comes from ``python benchmarks/scale.py --json SCALE.json``. The text between
the page's two comments is replaced.
"""

from __future__ import annotations

from harness.legend import SERVERS, legend
from harness.pages import Json, machine_text, markdown, run
from trio_wknet._cli.text import time_text

SCRIPT = "benchmarks/scale_page.py"
MEGABYTE = 1e6
MILLION = 1_000_000
WANTED = (
    "*Wanted* is a target for the figure beside it: "
    "ours, or ours divided by the first of the others. **Missed** means that the median was on "
    "the wrong side of it in this run, and nothing else; a row without a target is for "
    "comparison."
)


def figure_text(value: float, unit: str) -> str:
    """A figure in its unit."""
    if unit == "s":
        return time_text(value)
    return f"{value:,.0f} {unit}"


def wanted_text(row: Json) -> str:
    unit = "" if row["peer"] else f" {row['unit']}"
    if row["at_most"] is not None:
        return f"at most {row['at_most']:,g}{unit}"
    return "" if row["at_least"] is None else f"at least {row['at_least']:,g}"


def row_cells(row: Json, line: str) -> tuple[str, str, str, str]:
    """Ours, others, the figure that counts, and what was wanted."""
    texts = {server: figure_text(figure, row["unit"]) for server, figure in row["medians"].items()}
    ours, first = row["ours"], texts.pop(row["ours"])
    value = f"{row['value']:.3g}" if row["peer"] else first
    if {ours, row["peer"]} <= row["cpu"].keys():
        value += f"; by CPU {row['cpu'][row['peer']] / row['cpu'][ours]:.3g}"
    return (
        f"{ours}: {first}",
        line.join(f"{server}: {text}" for server, text in texts.items()),
        value,
        wanted_text(row),
    )


def machine_lines(found: Json) -> list[str]:
    machine, size = found["machine"], found["size"]
    return [
        f"{machine_text(machine)} Medians of {size['settings']['rounds']} rounds, each in fresh "
        f"processes, ours and the others in turn. The load average at the start was "
        f"{machine['load_average']:.1f}: what else ran then took its share of the figures that "
        "are times.",
        "",
    ]


def rows_lines(found: Json) -> list[str]:
    """Every row, and whether it is what was wanted."""
    met = {None: "", True: "met", False: "**missed**"}
    rows = [[row["what"], *row_cells(row, "; "), met[row["met"]]] for row in found["rows"]]
    return [WANTED, "", *markdown(["what", "ours", "others", "figure", "wanted", ""], rows)]


def legend_lines(found: Json) -> list[str]:
    """What the servers' names stand for, of all that were measured."""
    rows = [name for row in found["rows"] for name in row["medians"]]
    crowds = [crowd["plan"]["server"] for crowd in found["crowds"]]
    # A row may say more behind the name: "trio, 15,000 idle".
    names = [name.partition(",")[0] for name in (*rows, *crowds)]
    return ["### Servers", "", *legend(name for name in names if name in SERVERS)]


def timers_lines(found: Json) -> list[str]:
    """What a timer costs, and what many of them cost a reactor."""
    million, size = found["million"], found["million"]["connections"]
    rows = [[work, by, f"{ns:,.0f} ns"] for work, by, ns in found["timers"]]
    return [
        *markdown(["work", "by", "CPU, from Python"], rows),
        f"{size:,} idle timeouts of five minutes in one wheel, simulated while each connection "
        f"has bytes every half a minute: {million['cpu_percent']:.2f} % of a core, "
        f"{million['ns_a_visit']:.0f} ns for each look at a connection, of which it takes "
        f"{million['visits']:.2f} in a timeout; the longest turn took "
        f"{million['worst_turn_ms']:.2f} ms. A timer has {million['bytes_each']:.1f} bytes, "
        "8 of which are its time. A connection has no need of those: its time follows from "
        "when its last byte moved.",
        "",
    ]


def core_lines(found: Json) -> list[str]:
    rows = [
        [one["case"]["work"], one["case"]["by"], f"{one['ns']:,.0f} ns", without_calls(one)]
        for one in found["core"]
    ]
    return markdown(["work", "by", "from Python", "without the calls"], rows)


def without_calls(one: Json) -> str:
    return f"{one['without_calls']:,.0f} ns"


def crowds_lines(found: Json) -> list[str]:
    """A column for each crowd, a line for each fact."""
    crowds = found["crowds"]
    head = ["", *(crowd["title"] for crowd in crowds)]
    facts = [dict(crowd["lines"]) for crowd in crowds]
    names = list(dict.fromkeys(name for lines in facts for name in lines))
    return markdown(head, [[name, *(lines.get(name, "") for lines in facts)] for name in names])


def kernel_lines(found: Json) -> list[str]:
    """Which objects of the kernel a connection is made of, in the largest crowd."""
    crowd = max(found["crowds"], key=lambda one: one["plan"]["connections"])
    connections = crowd["plan"]["connections"]
    each = {name: size / connections for name, size in crowd["kernel"]["caches"].items()}
    shown = sorted((item for item in each.items() if item[1] >= 32), key=lambda item: -item[1])
    return markdown(
        ["object", f"bytes a connection, both ends, {connections:,} open"],
        [[f"`{name}`", f"{size:,.0f}"] for name, size in shown],
    )


def row_of(found: Json, name: str) -> Json:
    return next(row for row in found["rows"] if row["name"] == name)


def claim_rows(found: Json) -> list[list[str]]:
    """What wknet claims, what is measured here, and what follows for its size."""
    crowd = max(found["crowds"], key=lambda one: one["plan"]["connections"])
    connections, size = crowd["plan"]["connections"], found["size"]
    memory, pause = row_of(found, "memory-events"), row_of(found, "collection")
    each, base = memory["medians"], crowd["resident_before"]
    added = crowd["resident_served"]
    kernel = crowd["kernel"]["slab"] + crowd["kernel"]["buffers"]
    less = 1 - memory["value"] / each["trio"]
    tail = row_of(found, "tail-wknet-inloop-events-idle")
    echo = [row_of(found, name) for name in ("events-inloop", "events-threaded")]
    best = max(row["medians"][row["ours"]] for row in echo)
    doubled = max(row["medians"][row["ours"]] / row["medians"]["trio"] for row in echo)
    trio_tail = row_of(found, "tail-trio")
    times = tail["medians"][tail["ours"]] / trio_tail["medians"][trio_tail["ours"]]
    million = base + added / connections * MILLION
    timers, wheel = found["million"], found["timers"][0][2]
    timers_size = timers["connections"] * timers["bytes_each"] / MEGABYTE
    lookup = next(one for one in found["core"] if one["case"]["work"].endswith("100,000"))
    pool = next(one for one in found["core"] if one["case"]["by"] == "BlockPool")
    return [
        [
            "1 million timers in under 10 MB; one set in 200 ns, with 48 B",
            f"{timers['connections']:,} in {timers_size:.0f} MB, their times included; one set "
            f"and cancelled from Python in {wheel:,.0f} ns",
            "",
        ],
        [
            "a connection found in 50 ns among 1 million, without allocating",
            f"{lookup['without_calls']:,.0f} ns among 100,000, by its handle, without Python's "
            "call",
            "",
        ],
        [
            "a buffer taken from its pool and given back in 20 ns, 0 B",
            f"{pool['without_calls']:,.0f} ns, through the face that tests use, without "
            "Python's calls",
            "",
        ],
        [
            "500 MB at 100 000 connections",
            f"{connections:,} connections: {(base + added) / MEGABYTE:,.0f} MB resident, of "
            f"which {base / MEGABYTE:,.0f} MB are the {crowd['plan']['servers']} interpreters "
            "before the first connection",
            "",
        ],
        [
            "1 million connections, under 1 GB",
            "",
            f"{million / MEGABYTE:,.0f} MB, if each went on costing the same; the kernel's "
            f"{kernel / connections * MILLION / 1e9:,.1f} GB for both ends are not in it",
        ],
        [
            "80 % less memory than with one thread of control for each connection",
            f"{less:.0%} less than with a task of Trio's for each ({size['memory']:,} open)",
            "",
        ],
        [
            "collector pauses 90 % shorter, under 5 ms",
            f"a full collection with {size['collected']:,} open: "
            f"{time_text(pause['medians'][pause['ours']])}, {1 - pause['value']:.0%} less "
            "than Trio's",
            "the same at any number: a quiet connection has no object to be looked at",
        ],
        [
            "p99 under 5 ms",
            f"{time_text(tail['medians'][tail['ours']])} with {size['idle']:,} idle ones "
            f"beside, at {size['rate']:,.0f} messages/s",
            "",
        ],
        [
            "80 % less latency than with one thread of control for each connection",
            f"p99 of the same: {times:.2g} times Trio's with as many idle ones beside",
            "",
        ],
        [
            "twice the throughput of that",
            f"{doubled:.2f} times the messages/s of Trio with a task for each of 100 connections, "
            "event mode, on one core",
            "",
        ],
        [
            "1 million messages/s on 16 cores",
            f"{best:,.0f} messages/s, the server on one core, the load on another",
            "nothing: Python callbacks of one process share one GIL, so more cores help by more "
            "processes, which two cores cannot show",
        ],
        [
            "CPU under 50 %",
            f"{crowd['quiet_cpu']:.2%} of a core with all {connections:,} quiet",
            "",
        ],
    ]


def page(found: Json) -> str:
    """All of it."""
    lines = [
        *machine_lines(found),
        *legend_lines(found),
        "### Figures",
        "",
        *rows_lines(found),
        "### Crowds",
        "",
        *crowds_lines(found),
        "### The kernel's memory",
        "",
        *kernel_lines(found),
        "### The core's parts",
        "",
        *core_lines(found),
        "### Timers",
        "",
        *timers_lines(found),
        "### Beside the claims of WuKongIM's wknet",
        "",
        *markdown(["claimed", "measured here", "extrapolated"], claim_rows(found)),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    run(SCRIPT, "scale.py", "docs/scale.md", page)
