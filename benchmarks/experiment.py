"""An experiment by its name: ``python benchmarks/experiment.py NAME [OPTIONS]``.

Without a name, or with ``--help``, it lists the names. `experiments/` has the scripts, one
question each; they measure with `harness/`, as `run.py` and `scale.py` do.
"""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "experiments"


def questions() -> dict[str, str]:
    """The experiments by name, each with its first words."""
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        text = path.read_text()
        if '__name__ == "__main__"' in text:
            said = ast.get_docstring(ast.parse(text)) or ""
            found[path.stem] = " ".join(said.partition("``")[0].split()).rstrip(":")
    return found


def main() -> None:
    found = questions()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in found:
        listed = "\n".join(f"  {name:12} {question}" for name, question in found.items())
        text = f"usage: experiment.py NAME [OPTIONS]\n\n{listed}"
        if name in ("-h", "--help"):
            print(text)
            return
        sys.exit(f"experiment.py: there is no experiment {name!r}\n{text}")
    sys.argv[:2] = [f"experiment.py {name}"]
    runpy.run_module(f"experiments.{name}", run_name="__main__")


if __name__ == "__main__":
    main()
