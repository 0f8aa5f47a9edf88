"""A server of static files by HTTP/1.1 (h11), with ranges, whose files the kernel sends:
``python examples/static.py [port [folder]]``.
"""

import re
import sys
from contextlib import suppress
from functools import partial
from mimetypes import guess_type
from pathlib import Path
from urllib.parse import unquote, urlsplit

import h11
import trio
from ctrl_c import run_until_ctrl_c

from trio_wknet import Conn, open_wknet_listener

IDLE = 60  # seconds in which no byte moves


def find(folder: Path, target: bytes) -> Path | None:
    """The file that is asked for, if it is below the folder, whatever links and dots say."""
    with suppress(OSError, ValueError, RuntimeError):  # there cannot be such a name
        found = (folder / unquote(urlsplit(target.decode()).path).lstrip("/")).resolve()
        if found.is_relative_to(folder) and found.is_file():
            return found
    return None


def part(wanted: bytes, size: int) -> tuple[int, int] | None:
    """Where to begin, and how many bytes: all of them, unless it is one range that is wanted.
    None if that has no byte in the file."""
    match = re.fullmatch(rb"bytes=(\d{1,18})-(\d{1,18})?|bytes=-(\d{1,18})", wanted)
    if match is None:
        return 0, size
    first, last, suffix = (None if group is None else int(group) for group in match.groups())
    start = max(size - (suffix or 0), 0) if first is None else first
    count = min(size, size if last is None else last + 1) - start
    return (start, count) if count > 0 else None


class Unseen:
    """Stands in h11 for a body that it does not see (its documentation, "sendfile")."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


class Peer:
    """A client, and where its conversation stands."""

    def __init__(self, conn: Conn, folder: Path) -> None:
        self.conn = conn
        self.folder = folder
        self.http = h11.Connection(h11.SERVER)

    async def begin(self, status: int, *headers: tuple[str, str], size: int = 0) -> None:
        all_headers = [("content-length", str(size)), *headers]
        response = self.http.send(h11.Response(status_code=status, headers=all_headers))
        await self.conn.send_all(response or b"")

    async def answer(self, request: h11.Request) -> None:
        found = await trio.to_thread.run_sync(find, self.folder, request.target)
        if request.method not in (b"GET", b"HEAD"):
            await self.begin(405, ("allow", "GET, HEAD"))
        elif found is None:
            await self.begin(404)
        else:
            await self.send_file(found, request)

    async def send_file(self, path: Path, request: h11.Request) -> None:
        try:
            opened = await trio.open_file(path, "rb")
        except OSError:  # it may not be read, or is gone
            await self.begin(404)
            return
        headers = dict(request.headers)
        ranged = request.method == b"GET" and b"if-range" not in headers  # we give no ETag
        async with opened as file:
            size = await file.seek(0, 2)
            where = part(headers.get(b"range", b"") if ranged else b"", size)
            if where is None:
                await self.begin(416, ("content-range", f"bytes */{size}"))
                return
            start, count = where
            kind = ("content-type", guess_type(path.name)[0] or "application/octet-stream")
            if count < size:
                span = ("content-range", f"bytes {start}-{start + count - 1}/{size}")
                await self.begin(206, kind, span, size=count)
            else:
                await self.begin(200, kind, ("accept-ranges", "bytes"), size=count)
            if request.method == b"GET":
                if await self.conn.send_file(file.wrapped, start, count) < count:
                    raise trio.BrokenResourceError("the file was truncated")
                self.http.send_with_data_passthrough(h11.Data(data=Unseen(count)))  # type: ignore[arg-type]

    async def converse(self) -> None:
        while True:
            while (event := self.http.next_event()) is h11.NEED_DATA:
                if self.http.they_are_waiting_for_100_continue:
                    go_on = h11.InformationalResponse(status_code=100, headers=[])
                    await self.conn.send_all(self.http.send(go_on) or b"")
                self.http.receive_data(await self.conn.receive_some())
            if isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.EndOfMessage):
                await self.answer(request)
                self.http.send(h11.EndOfMessage())
                if self.http.our_state is h11.MUST_CLOSE:
                    return
                self.http.start_next_cycle()
            elif not isinstance(event, h11.Data):
                return


async def handle(conn: Conn, folder: Path) -> None:
    with suppress(trio.BrokenResourceError, h11.RemoteProtocolError, OSError):  # or the disk's
        await Peer(conn, folder).converse()


async def main(folder: Path, port: int = 5107) -> None:
    async with open_wknet_listener(f"tcp://127.0.0.1:{port}", idle_timeout=IDLE) as listener:
        print("listening on", listener.address, flush=True)
        await listener.serve(partial(handle, folder=folder))


if __name__ == "__main__":
    here = Path(*sys.argv[2:3]).resolve()
    run_until_ctrl_c(main, here, *map(int, sys.argv[1:2]))
