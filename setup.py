"""The native modules: every ``trio_wknet/_native/**/*.pyx`` becomes an extension module of the
same name. All other metadata is in pyproject.toml.

Cython follows cimports and headers by itself, so a new file needs no registration, and a
changed one rebuilds all that depend on it. With ``-g`` in CFLAGS the modules keep their debug
information, which makes them five times as large; a level of optimisation there is kept.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sysconfig
from pathlib import Path
from typing import Any

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

JOBS = len(os.sched_getaffinity(0))
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
}


def native_modules() -> list[Extension]:
    flags = shlex.split(os.environ.get("CFLAGS", ""))
    keep_debug = "-g" in flags
    level = next((flag for flag in reversed(flags) if flag.startswith("-O")), "-O2")
    return [
        Extension(
            ".".join(path.with_suffix("").parts),
            [str(path)],
            include_dirs=["trio_wknet/_native"],
            extra_compile_args=[level, "-Wall"],
            extra_link_args=[] if keep_debug else ["-Wl,--strip-debug"],
        )
        for path in sorted(Path("trio_wknet/_native").rglob("*.pyx"))
    ]


def require_compiler() -> None:
    """Say in one sentence what is missing, before a compiler says it in a hundred lines."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    headers = Path(sysconfig.get_path("include"), "Python.h")
    if shutil.which(compiler) is None or not headers.is_file():
        raise SystemExit(
            f"trio-wknet is compiled when it is installed, which needs a C compiler ({compiler}) "
            f"and Python's headers ({headers}); on Debian: apt-get install gcc python3-dev"
        )


class BuildNative(build_ext):
    """Translates and compiles on all cores."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel: Any = self.parallel or JOBS

    def build_extensions(self) -> None:
        require_compiler()
        translated = cythonize(
            self.extensions, nthreads=JOBS, compiler_directives=DIRECTIVES, quiet=True
        )
        # In place: setuptools has noted things on its own objects.
        for extension, result in zip(self.extensions, translated, strict=True):
            extension.sources = result.sources
            extension.depends = result.depends
        super().build_extensions()


setup(ext_modules=native_modules(), cmdclass={"build_ext": BuildNative})
