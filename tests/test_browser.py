"""Pages in a browser: one that is served by hypercorn and talks to trio-websocket, on reactors,
and those of the example's chat."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Any

import hypercorn.trio
import pytest
import trio
import trustme
from hypercorn.config import Config
from trio_websocket import ConnectionClosed, WebSocketRequest, serve_websocket

import trio_wknet
from trio_wknet import WebSocket, WebSocketOptions, open_websocket

pytestmark = pytest.mark.usefixtures("nothing_left", "install")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ROOT = Path(__file__).parent.parent
CHAT = ROOT / "examples" / "websocket_chat.py"
LARGE = WebSocketOptions(max_message=1 << 24)
HOST = "127.0.0.1"
SLOW = 60  # seconds: a browser takes its time to start

# It says how it went as it closes its WebSocket.
PAGE = """<!doctype html><meta charset="utf-8"><title>a test</title><script>
function bytes(size) { return Uint8Array.from({length: size}, (_, i) => i * i); }
function same(a, b) { return a.length == b.length && a.every((byte, i) => byte == b[i]); }

async function fetches() {
    const sent = bytes(300000);
    const request = () => fetch("/echo", {method: "POST", body: sent});
    for (const response of await Promise.all([request(), request(), request()]))
        if (!same(new Uint8Array(await response.arrayBuffer()), sent)) throw "fetch";
    return performance.getEntriesByType("navigation")[0].nextHopProtocol;
}

async function talk(socket) {
    const next = () => new Promise(resolve => socket.onmessage = e => resolve(e.data));
    for (const sent of ["text \\u2603", "", "x".repeat(100000)]) {
        socket.send(sent);
        if (await next() !== sent) throw "text of " + sent.length;
    }
    for (const size of [1, 126, 65536, 300000]) {
        socket.send(bytes(size));
        if (!same(new Uint8Array(await next()), bytes(size))) throw "bytes of " + size;
    }
}

const socket = new WebSocket("URL");
socket.binaryType = "arraybuffer";
socket.onopen = async () => {
    let verdict;
    try { await talk(socket); verdict = "passed over " + await fetches(); }
    catch (problem) { verdict = "failed: " + problem; }
    socket.close(4000, verdict);
};
</script>"""


@pytest.fixture
def browser(request: pytest.FixtureRequest) -> str:
    """Where Chromium is."""
    if not request.config.getoption("--browser"):
        pytest.skip("only with --browser")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert found, f"one of these is to be installed: {', '.join(BROWSERS)}"
    return found


def files_of(certificate: trustme.LeafCert, folder: Path) -> dict[str, str]:
    names = {"certfile": str(folder / "server.pem"), "keyfile": str(folder / "server.key")}
    certificate.cert_chain_pems[0].write_to_path(names["certfile"])
    certificate.private_key_pem.write_to_path(names["keyfile"])
    return names


class Site:
    """A page, and what it said in the end."""

    def __init__(self) -> None:
        self.page = b""
        self.verdict, self.verdicts = trio.open_memory_channel[Any](10)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for _ in ("startup", "shutdown"):
                await send({"type": (await receive())["type"] + ".complete"})
            return
        headers = [(b"content-type", b"text/html")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        more = scope["path"] == "/echo"
        body = b"" if more else self.page
        while more:
            event = await receive()
            body += event["body"]
            more = event["more_body"]
        await send({"type": "http.response.body", "body": body})

    async def echo(self, request: WebSocketRequest) -> None:
        websocket = await request.accept()
        try:
            while True:
                await websocket.send_message(await websocket.get_message())
        except ConnectionClosed as exc:
            await self.verdict.send(exc.reason and exc.reason.reason)


def command(browser: str, folder: Path, *options: str) -> list[str]:
    """Without a window, and with a profile of its own."""
    usual = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    usual += ["--no-first-run", "--ignore-certificate-errors", f"--user-data-dir={folder}"]
    return [browser, *usual, *options]


async def browse(browser: str, url: str, folder: Path) -> None:
    """Have the page open until cancelled."""
    arguments = command(browser, folder, url)
    await trio.run_process(arguments, capture_stdout=True, capture_stderr=True)


@pytest.mark.parametrize(("scheme", "protocol"), [("ws", "http/1.1"), ("wss", "h2")])
async def test_a_page(browser: str, scheme: str, protocol: str, tmp_path: Path) -> None:
    site = Site()
    certificate = trustme.CA().issue_cert(HOST)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    secure = scheme == "wss"
    files: Any = files_of(certificate, tmp_path) if secure else {}
    config = Config.from_mapping(bind=f"{HOST}:0", errorlog=None, **files)
    with trio.fail_after(SLOW):
        async with trio.open_nursery() as nursery:
            serve = partial(hypercorn.trio.serve, site.app, config)
            (bind,) = await nursery.start(partial(serve, shutdown_trigger=trio.sleep_forever))
            listen = partial(serve_websocket, site.echo, HOST, 0, context if secure else None)
            server = await nursery.start(listen)
            site.page = PAGE.replace("URL", f"{scheme}://{HOST}:{server.port}/").encode()
            nursery.start_soon(browse, browser, bind, tmp_path / "profile")
            assert await site.verdicts.receive() == f"passed over {protocol}"
            nursery.cancel_scope.cancel()


# --- the example's chat -------------------------------------------------------------------


@asynccontextmanager
async def process(arguments: list[str], **pipes: Any) -> AsyncIterator[trio.Process]:
    running = await trio.lowlevel.open_process(arguments, **pipes)
    try:
        yield running
    finally:
        running.terminate()
        with trio.CancelScope(shield=True):
            await running.wait()


async def url_in(stream: Any, before: str) -> str:
    """What a process names behind some words."""
    said = b""
    async for data in stream:
        said += data
        _, found, rest = str(said, "utf-8").partition(before)
        if found and "\n" in rest:
            return rest.partition("\n")[0].strip()
    raise AssertionError(f"it ended without a word of {before!r}: {said!r}")


class Browser:
    """Chromium, by its DevTools protocol."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._asked = 0

    async def ask(self, method: str, session: str | None = None, **params: Any) -> Any:
        self._asked += 1
        question = {"id": self._asked, "method": method, "params": params}
        if session is not None:
            question["sessionId"] = session
        await self._socket.send(json.dumps(question))
        async for message in self._socket:
            answer = json.loads(message)
            if answer.get("id") == self._asked:
                return answer["result"]
        raise AssertionError("the browser has gone")

    async def open(self, url: str) -> Page:
        target = await self.ask("Target.createTarget", url=url)
        attached = await self.ask("Target.attachToTarget", **target, flatten=True)
        return Page(self, attached["sessionId"])


class Page:
    """The chat, as a user has it."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    async def run(self, script: str) -> Any:
        options = {"returnByValue": True, "awaitPromise": True, "replMode": True}
        ran = await self._browser.ask(
            "Runtime.evaluate", self._session, expression=script, **options
        )
        assert "exceptionDetails" not in ran, ran
        return ran["result"].get("value")

    async def is_ready(self) -> bool:
        loaded = "document.readyState == 'complete' && typeof socket == 'object'"
        return bool(await self.run(f"{loaded} && socket.readyState == 1"))

    async def ask(self, method: str, **params: Any) -> Any:
        return await self._browser.ask(method, self._session, **params)

    async def brings(self, condition: str) -> None:
        """Wait until that is so in the page."""
        with trio.move_on_after(SLOW / 2):
            while not await self.run(f"!!({condition})"):  # noqa: ASYNC110
                await trio.sleep(0.01)
            return
        shown = await self.run("document.body.innerText")
        raise AssertionError(f"not so: {condition}, and it shows {shown!r}")

    async def talk(self, text: str) -> None:
        script = f"$('#write textarea').value = {json.dumps(text)}; $('#write').requestSubmit()"
        await self.run(script)

    async def picture(self, path: Path) -> None:
        await self.run("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")
        shot = await self.ask("Page.captureScreenshot", format="png")
        await trio.Path(path).write_bytes(base64.b64decode(shot["data"]))

    async def say(self, text: str) -> None:
        await self.run(f"line.value = {json.dumps(text)}; document.forms[0].requestSubmit()")

    async def lines(self) -> list[str]:
        """The last one is the page's first."""
        script = "Array.from(document.querySelectorAll('#lines p'), p => p.textContent).reverse()"
        return list(await self.run(script))

    async def shows(self, *lines: str) -> None:
        with trio.move_on_after(SLOW / 4):
            while await self.lines() != [*lines]:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert await self.lines() == [*lines]


async def joined(browser: Browser, url: str, name: str) -> Page:
    page = await browser.open(url)
    with trio.fail_after(SLOW / 4):
        while not await page.is_ready():  # noqa: ASYNC110
            await trio.sleep(0.01)
    await page.say(name)
    return page


async def test_two_pages_chat(browser: str, tmp_path: Path) -> None:
    arguments = command(browser, tmp_path / "profile", "--remote-debugging-port=0", "about:blank")
    with trio.fail_after(SLOW):
        async with (
            process([sys.executable, str(CHAT), "0"], stdout=subprocess.PIPE) as server,
            process(arguments, stderr=subprocess.PIPE) as chromium,
        ):
            url = await url_in(server.stdout, "the page is ")
            tools = await url_in(chromium.stderr, "DevTools listening on ")
            async with open_websocket(tools) as socket:
                tabs = Browser(socket)
                ann = await joined(tabs, url, "ann")
                await ann.shows("* ann is here")
                bob = await joined(tabs, url, "bob")
                await bob.say("<b>höre</b> \N{SNOWMAN}")
                said = ("* bob is here", "bob: <b>höre</b> \N{SNOWMAN}")
                await ann.shows("* ann is here", *said)
                await bob.shows(*said)
                await ann.say("x" * 5000)  # more than the server takes
                await ann.shows("* ann is here", *said, "closed: message is too big")
                await bob.shows(*said, "* ann has left")
                assert await bob.run("line.placeholder") == "say something"


# --- the instant-messaging service ----------------------------------------------------------

PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
DESK = {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False}
SAID = {
    "ann": [
        "Has anybody looked at the new reactors yet?",
        "One thread for 10 000 members \N{SNOWMAN}",
    ],
    "bob": [
        "Yes. The page, the bot and I are in the same group, so it is framed once for all of us."
    ],
}
TEXTS = "Array.from(document.querySelectorAll('#lines .said p'), p => p.textContent)"


async def asked(tabs: Browser, url: str, name: str, size: dict[str, Any]) -> Page:
    """A page in a profile of its own, whose user has said a name."""
    profile = await tabs.ask("Target.createBrowserContext")
    target = await tabs.ask("Target.createTarget", url="about:blank", **profile)
    attached = await tabs.ask("Target.attachToTarget", **target, flatten=True)
    page = Page(tabs, attached["sessionId"])
    await page.ask("Emulation.setDeviceMetricsOverride", **size)
    await page.ask("Page.navigate", url=url)
    await page.brings(
        "document.readyState == 'complete' && !document.querySelector('#door').hidden"
    )
    await page.run(f"$('#name').value = {json.dumps(name)}; $('#door form').requestSubmit()")
    return page


async def entered(tabs: Browser, url: str, name: str, size: dict[str, Any]) -> Page:
    page = await asked(tabs, url, name, size)
    await page.brings("$('#state')?.classList.contains('on')")
    await page.brings("peopleIn(talk('#lobby')).includes(me)")
    return page


async def test_two_pages_talk_through_the_service(browser: str, tmp_path: Path) -> None:
    """Through two nodes, where Redis is. What the pages look like is left in a folder that
    IM_SCREENSHOTS names."""
    two = shutil.which("redis-server") and importlib.util.find_spec("coredis")
    served = [sys.executable, "-m", "examples.im", "--no-browser", "--port=0", "--web-port=0"]
    served += [f"--history={tmp_path / 'im.db'}", *["--nodes=2"] * bool(two)]
    places = [str(Path(trio_wknet.__file__).parent.parent), str(ROOT), os.environ.get("PYTHONPATH")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
    pictures = Path(os.environ.get("IM_SCREENSHOTS", tmp_path))
    options = ["--remote-debugging-port=0", "about:blank"]
    with trio.fail_after(SLOW * 2):
        async with (
            process(served, stdout=subprocess.PIPE, env=env, cwd=ROOT / "examples") as server,
            process(command(browser, tmp_path / "profile", *options), stderr=PIPE) as chromium,
        ):
            url = await url_in(server.stdout, "the page is ")
            tools = await url_in(chromium.stderr, "DevTools listening on ")
            async with open_websocket(tools, options=LARGE) as socket:
                tabs = Browser(socket)
                ann = await entered(tabs, url, "ann", PHONE)
                bob = await entered(tabs, url, "bob", DESK)
                pages = {"ann": ann, "bob": bob}
                for name, texts in SAID.items():
                    for text in texts:
                        await pages[name].talk(text)
                        for page in pages.values():
                            await page.brings(f"{TEXTS}.includes({json.dumps(text)})")
                await ann.run("open('@bob')")
                await ann.talk("<b>only</b> for you")
                await bob.brings("talks.get('@ann')?.lines.at(-1).text == '<b>only</b> for you'")
                await bob.brings("document.querySelector('#talks em')?.textContent == '1'")
                await ann.run("open('#lobby')")
                await bob.talk("And what I said before is there when you come back.")
                await ann.brings(f"{TEXTS}.length == 4")
                await bob.picture(pictures / "im-desk.png")
                await ann.picture(pictures / "im-phone.png")
                other = await asked(tabs, url, "ann", DESK)
                await other.brings("$('#door output').textContent == 'this name is taken'")
                assert await other.run("$('#app').hidden")
                await ann.run("$('#back').click()")
                await ann.picture(pictures / "im-phone-list.png")
