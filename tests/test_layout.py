"""The package's levels: which file may know of which."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "trio_wknet"
NATIVE = PACKAGE / "_native"

# What the files of a wing may cimport, beside their own wing's.
MAY_CIMPORT = {
    "base": set(),
    "reactor": {"base"},
    "load": {"base"},
    "public": {"base", "reactor", "trio"},
    "trio": {"base", "reactor"},
    "testing": {"base", "reactor", "trio"},
}

CIMPORT = re.compile(r"^\s*from\s+(\.+)([\w.]*)\s+cimport\b", re.MULTILINE)


def native_files() -> list[Path]:
    return sorted([*NATIVE.rglob("*.pyx"), *NATIVE.rglob("*.pxd")])


def wing_of(module: str) -> str:
    return module.partition(".")[0]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(NATIVE).with_suffix("").parts)


def cimported(path: Path) -> set[str]:
    """The modules of ours that a file cimports, as ``wing.name``."""
    package = module_of(path).split(".")[:-1]
    found = set()
    for dots, name in CIMPORT.findall(path.read_text()):
        base = package[: len(package) - len(dots) + 1]
        found.add(".".join([*base, name]))
    return found


@pytest.mark.parametrize("path", native_files(), ids=module_of)
def test_no_wing_reaches_over_the_fence(path: Path) -> None:
    wing = wing_of(module_of(path))
    reached = {wing_of(name) for name in cimported(path)} - {wing}
    assert reached <= MAY_CIMPORT[wing]


@pytest.mark.parametrize("path", native_files(), ids=module_of)
def test_cimports_are_relative(path: Path) -> None:
    assert not re.search(r"^\s*(from|cimport) trio_wknet\b.*\bcimport\b", path.read_text(), re.M)


@pytest.mark.parametrize(
    "path", [path for path in native_files() if path.parent.name == "reactor"], ids=module_of
)
def test_the_reactors_wing_knows_nothing_of_python(path: Path) -> None:
    """No function that could need the GIL, no class, and no import of Python's."""
    code = re.sub(r'""".*?"""', "", path.read_text(), flags=re.DOTALL)
    heads = re.findall(r"^c?p?def\b[^\n(]*\((?:[^()]|\([^()]*\))*\)[^\n]*:", code, re.MULTILINE)
    heads += re.findall(r"^cdef [^\n=]*\((?:[^()]|\([^()]*\))*\)[^\n:]*$", code, re.MULTILINE)
    assert [head for head in heads if not re.search(r"\bnogil\b", head)] == []
    assert not re.search(r"^\s*(def|class|cdef class|import)\b", code, re.MULTILINE)


# Ways to memory beside base/memory.pyx.
ALLOCATORS = re.compile(
    r"\b(malloc|calloc|realloc|reallocarray|free|aligned_alloc|posix_memalign|v?asprintf|strn?dup"
    r"|mmap|mremap|munmap|pipe2?|PyMem_\w+|PyObject_(Malloc|Calloc|Realloc|Free))\s*\("
    r"|\blibcpp\b|\bcpython\.mem\b"
)


def allocators_in(text: str) -> list[str]:
    """Calls in a Cython file, its C included, or in a header."""
    code = re.sub(r"/\*.*?\*/|#[^\n]*", "", text, flags=re.DOTALL)
    return [found.group() for found in ALLOCATORS.finditer(code)]


def test_allocators_are_found() -> None:
    assert allocators_in("a = <int *>malloc(4)  # malloc(5)") == ["malloc("]
    assert allocators_in("memory_free(FOR_NAMES, a)\npool_free(b)\nsay(pool.free[1])") == []


@pytest.mark.parametrize("path", [*native_files(), *sorted(NATIVE.rglob("*.h"))], ids=str)
def test_native_memory_has_one_door(path: Path) -> None:
    """So a test can have any request refused. Tests' own faces need not be."""
    if module_of(path) not in ("base.memory", "base.linux", "testing"):
        assert allocators_in(path.read_text()) == []


def cycle_in(graph: dict[str, set[str]]) -> list[str]:
    """Modules that need each other, or nothing."""
    done: set[str] = set()

    def visit(node: str, path: tuple[str, ...]) -> Iterator[list[str]]:
        if node in path:
            yield [*path[path.index(node) :], node]
        elif node not in done:
            for other in sorted(graph.get(node, ())):
                yield from visit(other, (*path, node))
            done.add(node)

    return next((found for node in sorted(graph) for found in visit(node, ())), [])


def test_a_cycle_is_found() -> None:
    assert cycle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_native_modules_have_levels() -> None:
    graph: dict[str, set[str]] = {}
    for path in native_files():
        graph.setdefault(module_of(path), set()).update(cimported(path) - {module_of(path)})
    assert len(graph) > 30
    assert cycle_in(graph) == []


def imported(path: Path) -> set[str]:
    """What a module of the package imports of it when it is imported itself."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trio_wknet"):
            found.add(node.module or "")
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


def test_python_modules_have_levels() -> None:
    paths = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
    }
    graph = {name: imported(path) & set(paths) for name, path in paths.items()}
    assert sum(map(len, graph.values())) > 50
    assert cycle_in(graph) == []
