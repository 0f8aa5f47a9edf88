"""An HTTP/1.1 server by h11, that answers with what it is sent:
``python examples/http_server.py [port]``.
"""

import sys
from contextlib import suppress

import h11
import trio
from ctrl_c import run_until_ctrl_c

from trio_wknet import Conn, open_wknet_listener

MOST = 1 << 20  # bytes of a request's body
IDLE = 60  # seconds between bytes


class Peer:
    """A client, and where its conversation stands."""

    def __init__(self, conn: Conn) -> None:
        self.conn = conn
        self.http = h11.Connection(h11.SERVER)
        self.method = b""

    async def receive(self) -> object:
        while (event := self.http.next_event()) is h11.NEED_DATA:
            if self.http.they_are_waiting_for_100_continue:
                await self.send(h11.InformationalResponse(status_code=100, headers=[]))
            self.http.receive_data(await self.conn.receive_some())
        return event

    async def receive_body(self) -> bytes:
        body = bytearray()
        while isinstance(event := await self.receive(), h11.Data):
            body += event.data
            if len(body) > MOST:
                raise h11.RemoteProtocolError("that is too much", error_status_hint=413)
        return bytes(body)

    async def send(self, *events: h11.Event) -> None:
        await self.conn.send_all(b"".join(self.http.send(event) or b"" for event in events))

    async def respond(self, status: int, body: bytes, *more: tuple[str, str]) -> None:
        headers = [("content-type", "text/plain"), ("content-length", str(len(body))), *more]
        data = h11.Data(data=b"" if self.method == b"HEAD" else body)
        await self.send(h11.Response(status_code=status, headers=headers), data, h11.EndOfMessage())


async def converse(peer: Peer) -> None:
    while isinstance(request := await peer.receive(), h11.Request):
        peer.method = request.method
        if peer.method not in (b"GET", b"HEAD", b"POST", b"PUT"):
            raise h11.RemoteProtocolError("there is no such method", error_status_hint=405)
        body = await peer.receive_body()
        await peer.respond(200, body or b"you asked for " + request.target + b"\n")
        if peer.http.our_state is h11.MUST_CLOSE:
            return
        peer.http.start_next_cycle()


async def handle(conn: Conn) -> None:
    peer = Peer(conn)
    with suppress(trio.BrokenResourceError):  # the peer reset the connection
        try:
            await converse(peer)
        except h11.RemoteProtocolError as exc:
            if peer.http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                reason = f"{exc}\n".encode()
                await peer.respond(exc.error_status_hint, reason, ("connection", "close"))


async def main(port: int = 5100) -> None:
    async with open_wknet_listener(f"tcp://127.0.0.1:{port}", idle_timeout=IDLE) as listener:
        print("listening on", listener.address, flush=True)
        await listener.serve(handle)


if __name__ == "__main__":
    run_until_ctrl_c(main, *map(int, sys.argv[1:]))
