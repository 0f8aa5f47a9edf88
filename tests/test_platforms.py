"""What the package says where it cannot run."""

from __future__ import annotations

import subprocess
import sys

import pytest

IMPORT_IN_SUBINTERPRETER = """
from concurrent import interpreters
interpreter = interpreters.create()
try:
    interpreter.exec("import trio_wknet")
except interpreters.ExecutionFailed as exc:
    print(exc.excinfo.formatted)
interpreter.close()
import trio_wknet
print("imported by the main interpreter")
"""


@pytest.mark.skipif(sys.version_info < (3, 14), reason="concurrent.interpreters came with 3.14")
def test_a_subinterpreter_is_told_that_it_cannot_import() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", IMPORT_IN_SUBINTERPRETER], capture_output=True, text=True, check=True
    ).stdout
    assert "ImportError: module trio_wknet._native" in answer
    assert "does not support loading in subinterpreters" in answer
    assert answer.endswith("imported by the main interpreter\n")
