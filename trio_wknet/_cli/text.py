"""Results of the load generator as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from trio_wknet._load.run import LoadErrors, LoadResult


def time_text(seconds: float) -> str:
    """A time in the unit that suits it."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.2f} ms"
    return f"{seconds * 1e6:.0f} µs"


def failures(errors: LoadErrors) -> list[tuple[str, int]]:
    """The kinds of error that occurred, with their counts."""
    counts = attrs.asdict(errors)
    return [(kind.replace("_", " "), number) for kind, number in counts.items() if number]


def complaint(result: LoadResult) -> str:
    """One line on what went wrong in a failed run."""
    found = ", ".join(f"{number} {name}" for name, number in failures(result.errors))
    if result.connect_error:
        found += f" ({result.connect_error})"
    if result.ended == "unreachable":
        return f"the server could not be reached: {found}"
    if result.ended == "server_gone":
        return f"the server was gone before the end: {found}"
    if result.errors.mismatch:
        return f"what came back was not what was sent: {found}"
    if result.answered == 0:
        return f"no message was answered: {found or 'the server was silent'}"
    return f"connections failed: {found}"
