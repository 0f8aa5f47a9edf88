"""A page in a browser: served by hypercorn, and talking to trio-websocket, on reactors."""

from __future__ import annotations

import shutil
import ssl
from functools import partial
from pathlib import Path
from typing import Any

import hypercorn.trio
import pytest
import trio
import trustme
from hypercorn.config import Config
from trio_websocket import ConnectionClosed, WebSocketRequest, serve_websocket

pytestmark = pytest.mark.usefixtures("nothing_left", "install")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
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


async def browse(browser: str, url: str, folder: Path) -> None:
    """Have the page open until cancelled."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    options += ["--no-first-run", "--ignore-certificate-errors", f"--user-data-dir={folder}"]
    await trio.run_process([browser, *options, url], capture_stdout=True, capture_stderr=True)


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
