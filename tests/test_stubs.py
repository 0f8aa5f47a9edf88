"""The compiled modules have the names, signatures and docstrings that their
stubs and the documentation promise."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import trio_wknet
from trio_wknet import Conn, Listener, RingBuffer, Timer, TimingWheel

HERE = Path(__file__).parent
NATIVE = Path(trio_wknet.__file__).parent / "_native"
STUBS = sorted(
    ".".join(path.relative_to(NATIVE).with_suffix("").parts) for path in NATIVE.rglob("*.pyi")
)


def test_stubtest() -> None:
    pytest.importorskip("mypy.stubtest")
    result = subprocess.run(
        [
            *(sys.executable, "-m", "mypy.stubtest", "trio_wknet._native", "--concise"),
            *("--allowlist", str(HERE / "stubtest-allowlist.txt")),
            "--ignore-disjoint-bases",
            "--ignore-unused-allowlist",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", STUBS)
def test_every_stub_has_its_module(name: str) -> None:
    module = importlib.import_module(f"trio_wknet._native.{name}")
    assert module.__file__ is not None
    assert module.__file__.endswith(".so")


def public_methods(kind: type) -> list[Any]:
    return [
        pytest.param(getattr(kind, name), id=f"{kind.__name__}.{name}")
        for name in dir(kind)
        if not name.startswith("_") and inspect.isroutine(getattr(kind, name))
    ]


@pytest.mark.parametrize(
    "method",
    [
        method
        for kind in (Conn, Listener, RingBuffer, Timer, TimingWheel)
        for method in public_methods(kind)
    ],
)
def test_public_methods_are_documented(method: Any) -> None:
    assert method.__doc__
    inspect.signature(method)


@pytest.mark.parametrize(
    "method",
    [
        Conn.receive_some,
        Conn.receive_into,
        Conn.receive_exactly,
        Conn.receive_until,
        Conn.send_all,
        Conn.flush,
        Conn.wait_send_all_might_not_block,
        Listener.accept,
    ],
)
def test_async_methods_of_the_core_say_that_they_are_checkpoints(method: Any) -> None:
    assert "checkpoint" in " ".join(method.__doc__.split())
    assert "Raises" in method.__doc__
