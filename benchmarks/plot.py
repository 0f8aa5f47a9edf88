"""The pictures of docs/benchmarks.md: ``python benchmarks/plot.py BENCHMARKS.json docs/_static``.

``BENCHMARKS.json`` comes from ``python benchmarks/run.py --json BENCHMARKS.json``. The
first of them is the README's, too. What was not measured is not drawn.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import attrs
import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.pages import Json
from harness.scenarios import BY_CONNECTIONS

# To be read on light pages and on dark ones: the background is the page's.
INK = "#7d8590"
mpl.rcParams.update({"font.size": 10, "text.color": INK})


@attrs.frozen
class Style:
    """How a server looks."""

    label: str
    color: str
    ours: bool = False


STYLES = {
    "c-epoll": Style("C, epoll and nothing else", "#9a8c98"),
    "wknet-threaded": Style("trio_wknet, 1 reactor thread", "#0b7285", ours=True),
    "wknet-inloop": Style("trio_wknet, in-loop", "#22b8cf", ours=True),
    "wknet-inloop-events-idle": Style("trio_wknet, event mode", "#22b8cf", ours=True),
    "uvloop-streams": Style("asyncio streams on uvloop", "#e8590c"),
    "uvloop-protocol": Style("uvloop Protocol", "#c92a2a"),
    "gevent": Style("gevent", "#74b816"),
    "asyncio-streams": Style("asyncio streams", "#f4a261"),
    "anyio-trio": Style("anyio on Trio", "#b197fc"),
    "trio": Style("Trio", "#d6336c"),
}

Picture = Callable[[Json], "Figure | None"]


def canvas(found: Json, title: str, xlabel: str) -> tuple[Figure, Axes]:
    """An empty picture, which says where and how often was measured."""
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel(xlabel, color=INK)
    axes.grid(axis="y", color="#7d8590", alpha=0.25)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(INK)
    axes.tick_params(length=0, colors=INK)
    machine, settings = found["machine"], found["settings"]
    versions = [f"{name} {version}" for name, version in machine["versions"].items()]
    rounds = settings["rounds"]
    note = f"{'A quick run. ' if settings['most_connections'] else ''}{machine['processor']}, "
    note += f"{rounds} round{'s' * (rounds > 1)} in turn, Python {machine['python']}, "
    figure.supxlabel(note + ", ".join(versions) + ".", fontsize=7.5, color=INK, x=0.01, ha="left")
    return figure, axes


def line(axes: Axes, name: str, xs: list[float], ys: list[float], marked: bool = True) -> None:
    """One server's line."""
    style = STYLES[name]
    axes.plot(
        xs,
        ys,
        label=style.label,
        color=style.color,
        marker=("o" if style.ours else "s") if marked else "",
        markersize=6 if style.ours else 4.5,
        linewidth=2.6 if style.ours else 1.6,
        zorder=3 if style.ours else 2,
    )


def legend(axes: Axes) -> None:
    outside = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
    axes.legend(frameon=False, labelcolor=INK, labelspacing=0.9, **outside)


def throughput(found: Json) -> Figure | None:
    """Messages a second by connections: medians, and the range of the rounds as a band."""
    names = {scenario.name for scenario in BY_CONNECTIONS}
    chosen = [result for result in found["results"] if result["scenario"]["name"] in names]
    # A quick run has bounded some of them to the same number.
    by_count = {result["scenario"]["connections"]: result["servers"] for result in chosen}
    if len(by_count) < 2:
        return None
    figure, axes = canvas(found, "Echo of 64 bytes, server on one core: messages/s", "connections")
    for name, style in STYLES.items():
        if all(name in servers for servers in by_count.values()):
            rounds = [servers[name] for servers in by_count.values()]
            places = [float(place) for place in range(len(rounds))]
            line(axes, name, places, [one["throughput"] for one in rounds])
            lowest, highest = ([one[edge] for one in rounds] for edge in ("lowest", "highest"))
            axes.fill_between(places, lowest, highest, color=style.color, alpha=0.13, linewidth=0)
    axes.set_xticks(range(len(by_count)), [f"{count:,}" for count in by_count])
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value / 1000:.0f} k")
    legend(axes)
    return figure


def latency(found: Json) -> Figure | None:
    """Which share of the messages took how long at most, in the open loop."""
    result = next((one for one in found["results"] if one["scenario"]["rate"]), None)
    if result is None:
        return None
    rate, share = result["scenario"]["rate"], result["scenario"]["of_trio"]
    title = f"Latency at {rate:,.0f} messages/s, {share:.0%} of Trio's maximum"
    figure, axes = canvas(found, title, "milliseconds, at most")
    for name in STYLES:
        if name in result["servers"]:
            percents, seconds = zip(*result["servers"][name]["cdf"], strict=True)
            shares = [1 / (1 - percent / 100) for percent in percents]
            line(axes, name, [1e3 * second for second in seconds], shares, marked=False)
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = [0, 50, 90, 99, 99.9, 99.99]
    axes.set_yticks([1 / (1 - tick / 100) for tick in ticks], [f"{tick:g} %" for tick in ticks])
    axes.yaxis.set_minor_locator(mpl.ticker.NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_ylabel("of the messages", color=INK)
    legend(axes)
    return figure


def memory(found: Json) -> Figure | None:
    """Resident sets by idle connections."""
    if found["memory"] is None:
        return None
    counts, servers = found["memory"]["counts"], found["memory"]["servers"]
    figure, axes = canvas(found, "The server's resident set, MiB", "idle connections")
    for name in STYLES:
        if name in servers:
            line(axes, name, counts, [size / (1 << 20) for size in servers[name]["resident"]])
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    legend(axes)
    return figure


PICTURES: dict[str, Picture] = {"throughput": throughput, "latency": latency, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw what run.py has found.")
    parser.add_argument("found", type=Path, help="what run.py --json wrote")
    parser.add_argument("folder", type=Path, help="where the pictures go: docs/_static")
    parser.add_argument("--only", action="append", choices=list(PICTURES), help="may be repeated")
    arguments = parser.parse_args()
    found = json.loads(arguments.found.read_text())
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        if arguments.only and name not in arguments.only:
            continue
        figure = draw(found)
        if figure is not None:
            figure.savefig(arguments.folder / f"{name}.png", dpi=160, transparent=True)


if __name__ == "__main__":
    main()
