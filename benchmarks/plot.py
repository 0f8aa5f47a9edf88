"""The README's picture: ``python benchmarks/plot.py SWEEP.json docs/_static/throughput.png``.

``SWEEP.json`` comes from ``python benchmarks/run.py --sweep --json SWEEP.json``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import attrs
import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#333333"
# So that a picture of the same figures is the same file.
mpl.rcParams.update({"svg.hashsalt": "trio_wknet", "font.size": 10, "text.color": INK})


@attrs.frozen
class Style:
    """How a server looks."""

    label: str
    color: str
    ours: bool = False


STYLES = {
    "wknet-threaded": Style("trio_wknet, 1 reactor thread", "#0b7285", ours=True),
    "wknet-inloop": Style("trio_wknet, in-loop", "#22b8cf", ours=True),
    "uvloop-streams": Style("asyncio streams on uvloop", "#e8590c"),
    "asyncio-streams": Style("asyncio streams", "#f4a261"),
    "trio": Style("Trio", "#868e96"),
}


def draw(found: dict[str, Any]) -> Figure:
    """Messages a second by connections: medians, and the range of the rounds."""
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    axes = figure.add_subplot()
    results = found["results"]
    counts = [result["scenario"]["connections"] for result in results]
    for server, style in STYLES.items():
        draw_server(axes, style, [result["servers"][server] for result in results])
    axes.set_xticks(range(len(counts)), [f"{count:,}" for count in counts])
    axes.set_xlabel("connections")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value / 1000:.0f} k")
    axes.grid(axis="y", color="#e9ecef")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, colors=INK)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), labelspacing=0.9)
    label(figure, axes, found)
    return figure


def draw_server(axes: Axes, style: Style, rounds: list[dict[str, Any]]) -> None:
    """One server's line, and its rounds as a band around it."""
    places = range(len(rounds))
    lowest, highest = ([one[edge] for one in rounds] for edge in ("lowest", "highest"))
    axes.fill_between(places, lowest, highest, color=style.color, alpha=0.13, linewidth=0)
    axes.plot(
        places,
        [one["median"] for one in rounds],
        label=style.label,
        color=style.color,
        marker="o" if style.ours else "s",
        markersize=6 if style.ours else 4.5,
        linewidth=2.6 if style.ours else 1.6,
        zorder=3 if style.ours else 2,
    )


def label(figure: Figure, axes: Axes, found: dict[str, Any]) -> None:
    """What the picture shows, and where that was measured."""
    machine, rounds = found["machine"], found["settings"]["rounds"]
    axes.set_title(
        "Echo of 64-byte messages, server on one core: messages a second",
        loc="left",
        fontweight="bold",
    )
    note = (
        f"Medians of {rounds} rounds measured in turn, with their range. {machine['processor']}, "
        f"Python {machine['python']}, Trio {machine['versions']['trio']}, "
        f"uvloop {machine['versions']['uvloop']}."
    )
    figure.supxlabel(note, fontsize=7.5, color="#868e96", x=0.01, ha="left")


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw messages a second by connections.")
    parser.add_argument("sweep", type=Path, help="what run.py --sweep --json wrote")
    parser.add_argument("picture", type=Path, help="a file to write: .svg or .png")
    arguments = parser.parse_args()
    figure = draw(json.loads(arguments.sweep.read_text()))
    arguments.picture.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if arguments.picture.suffix == ".svg" else {}
    figure.savefig(arguments.picture, dpi=160, metadata=metadata)


if __name__ == "__main__":
    main()
