"""The files that docs/deployment.md shows: the programs that read them accept them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import trustme

FOLDER = Path(__file__).parent.parent / "docs" / "deployment"
PAGE = FOLDER.parent / "deployment.md"


def test_every_file_is_shown() -> None:
    shown = re.findall(r"<!-- docs/deployment/(\S+) -->", PAGE.read_text())
    assert sorted(shown) == sorted(path.name for path in FOLDER.iterdir())


def settings() -> list[tuple[str, str]]:
    lines = (FOLDER / "sysctl.conf").read_text().splitlines()
    pairs = (re.fullmatch(r"([\w.]+) = (.+)", line.removeprefix("# ")) for line in lines)
    return [(found[1], found[2]) for found in pairs if found]


@pytest.mark.parametrize(("name", "value"), settings())
def test_kernel_settings(name: str, value: str) -> None:
    """They exist, and have as many values."""
    path = Path("/proc/sys", *name.split("."))
    if not path.exists():
        # What belongs to a module, or to another network namespace, is not here.
        assert name.startswith(("net.netfilter.", "net.core.", "net.ipv4."))
        pytest.skip(f"{name} is not to be seen here")
    assert len(path.read_text().split()) == len(value.split())


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd")
def test_units(tmp_path: Path) -> None:
    python = shutil.which("true")
    for path in FOLDER.glob("server*.*"):
        text = path.read_text().replace("/srv/server/venv/bin/python", str(python))
        text = text.replace("WorkingDirectory=/srv/server", f"WorkingDirectory={tmp_path}")
        (tmp_path / path.name).write_text(text)
    for name in ("server@1.service", "server@2.service", "server.service"):
        (tmp_path / name).write_text((tmp_path / "server@.service").read_text())
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "./server.target", "./server.socket"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    # Of others' units on this machine it may complain.
    assert not [line for line in done.stderr.splitlines() if "server" in line]


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="there is no haproxy")
def test_haproxys_configuration(tmp_path: Path) -> None:
    certificate = trustme.CA().issue_cert("example.org")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    text = (FOLDER / "haproxy.cfg").read_text()
    text = text.replace("/etc/haproxy", str(tmp_path)).replace("/run/haproxy", str(tmp_path))
    (tmp_path / "haproxy.cfg").write_text(text)
    command = ["haproxy", "-c", "-f", str(tmp_path / "haproxy.cfg")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
