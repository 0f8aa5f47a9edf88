"""Pages of the documentation that a script writes its figures into."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

END = "<!-- end -->\n"

Json = dict[str, Any]


def markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    """A table."""
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)] + [""]


def machine_text(machine: Json) -> str:
    """When and where something was measured."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"Measured {machine['when'][:10]}: {machine['processor']}, {len(machine['cores'])} cores, "
        f"Linux {machine['kernel']}, Python {machine['python']}, {versions}, commit "
        f"{machine['commit']}."
    )


def put_into(page: Path, script: str, text: str) -> None:
    """Replace the text between the page's comment of that script and the next end.

    A page without them is the end of the program.
    """
    begin = f"<!-- begin: {script} -->\n"
    before, found, rest = page.read_text().partition(begin)
    _, end, after = rest.partition(END)
    if not found or not end:
        sys.exit(f"{page} has no place for the figures: {begin.strip()} to {END.strip()}")
    page.write_text(before + begin + "\n" + text + END + after)


def run(script: str, source: str, page: str, make: Callable[[Json], str]) -> None:
    """Be the script that puts what another one found into a page."""
    parser = argparse.ArgumentParser(description=f"Put what {source} found into its page.")
    parser.add_argument("found", type=Path, help=f"what {source} --json wrote")
    parser.add_argument("page", type=Path, help=page)
    arguments = parser.parse_args()
    put_into(arguments.page, script, make(json.loads(arguments.found.read_text())))
