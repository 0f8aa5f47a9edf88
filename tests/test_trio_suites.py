"""Trio's own shipped suites pass over `trio_wknet.install`, in every form."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SUITES = [
    "test_highlevel_open_tcp_listeners",
    "test_highlevel_open_tcp_stream",
    "test_highlevel_open_unix_stream",
    "test_highlevel_serve_listeners",
    "test_highlevel_socket",
    "test_highlevel_ssl_helpers",
    "test_ssl",
    "test_testing",
]


def run_suites(
    suites: list[str], reactors: int, folder: Path, *plugins: str
) -> subprocess.CompletedProcess[str]:
    path = [str(HERE / "trio_suites"), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "replace_transport"]
        + [part for plugin in plugins for part in ("-p", plugin)]
        + ["-p", "trio._tests.pytest_plugin", "-p", "no:trio", "-p", "no:cacheprovider"]
        + ["--pyargs", *(f"trio._tests.{suite}" for suite in suites)],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "WKNET_REACTORS": str(reactors),
        },
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    return result


@pytest.mark.parametrize("reactors", [0, 1, 2])
def test_trio_suites_pass_on_our_transport(reactors: int, tmp_path: Path) -> None:
    """Nothing else is left out than the three tests that the plugin names, with reasons."""
    result = run_suites(SUITES, reactors, tmp_path)
    # Replaced classes that nobody used would pass, too.
    streams, _, with_tls, *_ = result.stdout.split("replaced by trio_wknet: ")[1].split()
    assert int(streams) >= 10
    assert int(with_tls) >= 10


@pytest.mark.parametrize("reactors", [0, 1, 2])
def test_trios_tls_suites_pass_on_our_tls(reactors: int, tmp_path: Path) -> None:
    suites = ["test_ssl", "test_highlevel_ssl_helpers"]
    result = run_suites(suites, reactors, tmp_path, "replace_tls")
    told = result.stdout.split("TLS by trio_wknet: ")[1].split()
    assert int(told[0]) >= 300
    assert int(told[2]) >= 30
