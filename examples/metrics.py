"""An echo server that Prometheus can watch: ``python examples/metrics.py [port [port]]``. At
the second port is ``/metrics``.
"""

import sys

import trio
from ctrl_c import run_until_ctrl_c
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from trio_wknet import Conn, DelimiterNotFound, IncompleteRead, open_engine
from trio_wknet.contrib.prometheus import WknetCollector

MOST = 16384  # bytes of a request
PATIENCE = 10  # seconds for a scrape


class Metrics:
    """Answers HTTP requests, one for each connection."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

    async def answer(self, conn: Conn) -> None:
        with trio.move_on_after(PATIENCE):
            try:
                request = await conn.receive_until(b"\r\n\r\n", MOST)
                await conn.send_all(self.response(request.decode("latin-1")))
            except (DelimiterNotFound, IncompleteRead, trio.BrokenResourceError):
                pass  # no request, or a scraper that is gone

    def response(self, request: str) -> bytes:
        first, *lines = request.splitlines()
        fields = (line.partition(":") for line in lines)
        accept = [value for name, _, value in fields if name.lower() == "accept"]
        if first.split()[:2] != ["GET", "/metrics"]:
            return b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        encode, kind = choose_encoder(",".join(accept))
        body = encode(self.registry)
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n"
        return head.encode() + b"connection: close\r\n\r\n" + body


async def echo(conn: Conn) -> None:
    try:
        async for data in conn:
            await conn.send_all(data)
    except trio.BrokenResourceError:
        pass  # the client is gone


async def main(port: int = 5100, metrics_port: int = 9100) -> None:
    async with open_engine() as engine, trio.open_nursery() as nursery:
        registry = CollectorRegistry()
        registry.register(WknetCollector(engine))
        listener = await engine.listen(f"tcp://127.0.0.1:{port}")
        scraped = await engine.listen(f"tcp://127.0.0.1:{metrics_port}")
        nursery.start_soon(listener.serve, echo)
        nursery.start_soon(scraped.serve, Metrics(registry).answer)
        print("listening on", listener.address, flush=True)
        print("metrics on", scraped.address, flush=True)


if __name__ == "__main__":
    run_until_ctrl_c(main, *map(int, sys.argv[1:]))
