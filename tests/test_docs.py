"""What the documentation names is there."""

from __future__ import annotations

import contextlib
import inspect
import operator
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

import trio_wknet
import trio_wknet.contrib.anyio
import trio_wknet.contrib.prometheus
import trio_wknet.contrib.pytest
import trio_wknet.contrib.redis
import trio_wknet.contrib.trio_websocket
from trio_wknet._usage_errors import GivenWhenOpened

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "docs" / "design").glob("*.md"),
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
]
API = (ROOT / "docs" / "api.rst").read_text()
REFERENCE = (ROOT / "docs" / "reference.md").read_text()
KINDS = [
    trio_wknet.Conn,
    trio_wknet.Engine,
    trio_wknet.FrameChannel,
    trio_wknet.Listener,
    trio_wknet.RingBuffer,
    trio_wknet.TLSFrameChannel,
    trio_wknet.TLSListener,
    trio_wknet.TLSStream,
    trio_wknet.Timer,
    trio_wknet.TimingWheel,
]


def public(kind: type) -> list[str]:
    """What of a class is ours and not private."""
    return [
        name
        for base in kind.__mro__
        if base.__module__.startswith("trio_wknet")
        for name in vars(base)
        if not name.startswith("_")
    ]


@pytest.mark.parametrize("name", trio_wknet.__all__)
def test_the_api_page_has_every_name(name: str) -> None:
    assert re.search(rf"^\.\. auto\w+:: {name}\b", API, re.MULTILINE)


@pytest.mark.parametrize("kind", KINDS)
def test_the_api_page_has_every_method(kind: Any) -> None:
    body = API.partition(f".. autoclass:: {kind.__name__}(")[2]
    body = body.partition(".. autoclass::")[0]
    found = set(
        re.findall(rf"auto(?:method|property|attribute):: (?:{kind.__name__}\.)?(\w+)", body)
    )
    assert found == set(public(kind)) - refused(kind)


def refused(kind: type) -> set[str]:
    """Attributes that are there to say where the setting belongs."""
    return {name for name, it in vars(kind).items() if isinstance(it, GivenWhenOpened)}


def listed() -> dict[str, str]:
    """The names that lines of the reference begin with, each with its arguments."""
    lines = re.findall(r"^ *- (`.*?`(?:(?:,| and) `.*?`)*)(?::| )", REFERENCE, re.MULTILINE)
    calls = [call for line in lines for call in re.findall(r"`([\w.]+)(?:\((.*?)\))?`", line)]
    assert len(calls) == len(dict(calls)), "a name is listed twice"
    return dict(calls)


def test_the_reference_lists_every_name_once() -> None:
    methods = {f"{kind.__name__}.{name}" for kind in KINDS for name in public(kind)}
    refusals = {f"{kind.__name__}.{name}" for kind in KINDS for name in refused(kind)}
    assert set(listed()) >= {*trio_wknet.__all__, *methods} - refusals


@pytest.mark.parametrize(("name", "arguments"), listed().items())
def test_the_reference_lists_arguments_that_are_there(name: str, arguments: str) -> None:
    contrib = trio_wknet.contrib
    others = (contrib.anyio, contrib.trio_websocket, contrib.pytest, contrib.prometheus)
    for module in (trio_wknet, *others, contrib.redis):
        with contextlib.suppress(AttributeError):
            function = operator.attrgetter(name)(module)
            break
    else:
        raise LookupError(name)
    if arguments:
        given = re.findall(r"(?:^|[ *])([a-z_]+)\b(?=[,=]|$)", arguments)
        assert given
        assert set(given) <= set(inspect.signature(function).parameters)


def test_tests_that_are_named_exist() -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    named = {name for page in PAGES for name in re.findall(r"`(test_\w+)`", page.read_text())}
    assert len(named) > 20
    assert [name for name in named if f"def {name}(" not in tests] == []


def test_files_that_are_named_exist() -> None:
    """Names of files stand in backquotes; those without a folder are the package's."""
    folders = [ROOT, ROOT / "trio_wknet", ROOT / "trio_wknet" / "_native"]
    named = {
        (page.name, name)
        for page in PAGES
        for name in re.findall(r"`([\w/]+\.(?:py|pyx|pxd|md|toml))`", page.read_text())
    }
    others = {"_io_epoll.py", "conftest.py"}  # trio's, and a reader's
    missing = [
        name
        for _, name in named
        if name not in others and not any((folder / name).is_file() for folder in folders)
    ]
    assert missing == []


def anchors(page: Path) -> set[str]:
    """What a link may lead to in a page, as GitHub and MyST name headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_in_the_pages_is_that_of_the_examples(page: Path) -> None:
    with_examples = runpy.run_path(str(ROOT / "docs" / "include_examples.py"))["with_examples"]
    assert page.read_text() == with_examples(page.read_text()), (
        "run python3 docs/include_examples.py"
    )


def test_pages_can_be_read_where_they_are() -> None:
    """Code that only Sphinx would fill in is an empty frame everywhere else."""
    only_sphinx = re.compile(r"literalinclude|eval-rst|\{py:|\{ref\}|\{doc\}")
    assert [page.name for page in PAGES if only_sphinx.search(page.read_text())] == []
    shown = {path for page in PAGES for path in re.findall(r"<!-- (\S+): ", page.read_text())}
    assert len(shown) > 8
