"""Put the code of the examples, and files of settings, into the pages that show them.

A page is read as it stands in the repository, too, so the code is in the page, below a
comment that says whose it is::

    <!-- examples/chat.py: hear, converse -->

The names are functions, classes, variables or methods (``Class.method``) of that file. A file of
docs/deployment/ is shown whole, and has no names. ``python3 docs/include_examples.py``
writes the code behind each such comment anew; `tests/test_docs.py` fails where a page differs.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "design").glob("*.md")),
]

INCLUDED = re.compile(
    r"<!-- (?P<path>examples/[\w/]+\.py): (?P<names>[\w., ]+) -->\n(```python\n.*?\n```\n)?",
    re.DOTALL,
)

WHOLE = re.compile(
    r"<!-- (?P<path>docs/deployment/[\w@.]+) -->\n(```ini\n.*?\n```\n)?",
    re.DOTALL,
)


def names_of(node: ast.stmt) -> list[str]:
    """What a statement at the top of a file defines."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []


def definitions(tree: ast.Module) -> list[tuple[list[str], ast.stmt]]:
    """Names, and what they are of: statements at the top, and methods ("Class.method")."""
    found: list[tuple[list[str], ast.stmt]] = []
    for node in tree.body:
        found.append((names_of(node), node))
        if isinstance(node, ast.ClassDef):
            found += [([f"{node.name}.{n}" for n in names_of(it)], it) for it in node.body]
    return found


def first_line(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def code_of(path: str, names: list[str]) -> str:
    """The source of these definitions, in the order of the file."""
    source = (ROOT / path).read_text()
    lines = source.splitlines()
    defined = definitions(ast.parse(source))
    chosen = [node for its_names, node in defined if set(its_names) & set(names)]
    missing = set(names) - {name for its_names, _ in defined for name in its_names}
    if missing:
        raise LookupError(f"{path} does not define {', '.join(sorted(missing))}")
    pieces: list[str] = []
    for node in chosen:
        if pieces:
            are_variables = isinstance(node, (ast.Assign, ast.AnnAssign))
            pieces.append("\n" if are_variables else "\n\n\n")
        pieces.append(dedent("\n".join(lines[first_line(node) - 1 : node.end_lineno])))
    return "".join(pieces)


def with_examples(text: str) -> str:
    """A page with the code that belongs into it."""

    def block(found: re.Match[str]) -> str:
        path = found["path"]
        comment = found[0].partition("\n")[0]
        code = code_of(path, [name.strip() for name in found["names"].split(",")])
        return f"{comment}\n```python\n# {path}\n{code}\n```\n"

    def whole(found: re.Match[str]) -> str:
        comment = found[0].partition("\n")[0]
        return f"{comment}\n```ini\n{(ROOT / found['path']).read_text()}```\n"

    return WHOLE.sub(whole, INCLUDED.sub(block, text))


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(with_examples(page.read_text()))
