"""Every public docstring has one form: what it does, ``Args:`` for each parameter,
``Returns:``, ``Raises:``, and whether it is a checkpoint."""

from __future__ import annotations

import ast
import inspect
import re
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest
import trio

import trio_wknet
import trio_wknet.contrib.anyio
import trio_wknet.contrib.prometheus
import trio_wknet.contrib.redis
import trio_wknet.contrib.trio_websocket

PACKAGE = Path(trio_wknet.__file__).parent

# They have nothing to do with Trio, and so none of them is a checkpoint.
WITHOUT_TRIO = {trio_wknet.RingBuffer}
# They raise nothing, whatever they are given and wherever they are called.
NEVER_RAISE = {
    "CloseReason",
    "Cluster.statistics",
    "StreamWebSocket.statistics",
    "Trace.to_json",
    "WknetCollector.collect",
    "WknetCollector.describe",
}
SECTION = re.compile(r"^(Args|Returns|Raises|Attributes):$", re.MULTILINE)


def is_ours(kind: type) -> bool:
    return kind.__module__.startswith("trio_wknet")


def classes(module: ModuleType) -> list[type]:
    names = getattr(module, "__all__", list(vars(module)))
    found = [getattr(module, name) for name in names if not name.startswith("_")]
    return [it for it in found if isinstance(it, type) and is_ours(it)]


CLASSES = [
    *classes(trio_wknet),
    *(it for it in classes(trio_wknet.contrib.anyio) if it.__module__.endswith("contrib.anyio")),
    *classes(trio_wknet.contrib.trio_websocket),
    *classes(trio_wknet.contrib.prometheus),
    *classes(trio_wknet.contrib.redis),
]
EXCEPTIONS = [kind for kind in CLASSES if issubclass(kind, Exception)]
SETTINGS = [kind for kind in CLASSES if attrs.has(kind)]


def public_methods(kind: type) -> list[str]:
    found = {
        name
        for base in kind.__mro__
        if is_ours(base) and not attrs.has(base)
        for name, it in vars(base).items()
        if not name.startswith("_") and inspect.isroutine(it)
    }
    if issubclass(kind, trio.abc.Instrument):
        found -= set(vars(trio.abc.Instrument))  # called by Trio alone
    return sorted(found)


FUNCTIONS: list[Any] = [
    *(
        pytest.param(it, None, id=name)
        for name in trio_wknet.__all__
        if inspect.isroutine(it := getattr(trio_wknet, name))
    ),
    *(
        pytest.param(getattr(kind, name), kind, id=f"{kind.__name__}.{name}")
        for kind in CLASSES
        for name in public_methods(kind)
    ),
]


def declared() -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of the package by its qualified name: what is compiled has no
    annotations, but its stub has."""
    found: dict[str, ast.FunctionDef | ast.AsyncFunctionDef] = {}
    for path in [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.pyi")]:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                found[node.name] = node
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)):
                        found[f"{node.name}.{inner.name}"] = inner
    return found


DECLARED = declared()


def sections(documented: Any) -> dict[str, str]:
    """The text before any section, under "", and each section's, under its name."""
    first, *rest = SECTION.split(inspect.getdoc(documented) or "")
    return {"": first, **dict(zip(rest[::2], rest[1::2], strict=True))}


def entries(section: str) -> set[str]:
    """The names that a section explains."""
    heads = re.findall(r"^  (\w[\w., ]*): \S", section, re.MULTILINE)
    return {name.strip() for head in heads for name in head.split(",")}


def parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self"}


@pytest.mark.parametrize(("function", "kind"), FUNCTIONS)
def test_every_parameter_is_explained(function: Any, kind: type | None) -> None:
    assert entries(sections(function).get("Args", "")) == parameters(function)


@pytest.mark.parametrize(("function", "kind"), FUNCTIONS)
def test_what_is_returned_is_explained(function: Any, kind: type | None) -> None:
    declaration = DECLARED[function.__qualname__]
    returns = declaration.returns is not None and ast.unparse(declaration.returns)
    assert returns, "not annotated"
    assert ("Returns" in sections(function)) == (returns not in ("None", "NoReturn"))


@pytest.mark.parametrize(("function", "kind"), FUNCTIONS)
def test_what_is_raised_is_explained(function: Any, kind: type | None) -> None:
    raises = entries(sections(function).get("Raises", ""))
    assert bool(raises) == (function.__qualname__ not in NEVER_RAISE)


@pytest.mark.parametrize(("function", "kind"), FUNCTIONS)
def test_it_is_said_whether_it_is_a_checkpoint(function: Any, kind: type | None) -> None:
    said = " ".join(sections(function)[""].split()).lower()
    assert ("checkpoint" in said) == (kind not in WITHOUT_TRIO)
    if isinstance(DECLARED[function.__qualname__], ast.AsyncFunctionDef):
        opens_a_block = "async with" in said
        assert opens_a_block or re.search(r"(?<!not )\ba checkpoint\b", said)


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_is_explained(kind: type) -> None:
    assert sections(kind)[""].strip()
    declaration = DECLARED.get(f"{kind.__name__}.__init__")
    if kind in EXCEPTIONS or kind in SETTINGS or declaration is None:
        return  # an exception's attributes, and the fields of settings, are checked below
    takes = {it.arg for it in (*declaration.args.args, *declaration.args.kwonlyargs)} - {"self"}
    if takes:  # else others return such objects
        assert entries(sections(kind)["Args"]) == takes
        raises = entries(sections(kind).get("Raises", ""))
        assert bool(raises) == (kind.__name__ not in NEVER_RAISE)


@pytest.mark.parametrize("kind", EXCEPTIONS)
def test_an_exceptions_attributes_are_explained(kind: type) -> None:
    if "__init__" in vars(kind):
        assert entries(sections(kind)["Attributes"]) == parameters(kind)


@pytest.mark.parametrize("kind", SETTINGS)
def test_every_field_is_explained(kind: type) -> None:
    """A field's docstring is the string below it."""
    (body,) = (
        node.body
        for node in ast.parse(Path(inspect.getfile(kind)).read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == kind.__name__
    )
    explained = {
        field.target.id
        for field, below in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
    }
    assert explained == {field.name for field in attrs.fields(kind)}


def test_that_is_much() -> None:
    assert len(FUNCTIONS) > 60
    assert len(CLASSES) > 15
