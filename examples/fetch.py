"""Fetches pages with httpx, all at once: ``python examples/fetch.py url ...``."""

import sys

import httpx
import trio

import trio_wknet


async def fetch(client: httpx.AsyncClient, url: str) -> None:
    try:
        response = await client.get(url)
    except httpx.HTTPError as exc:
        print(url, type(exc).__name__, flush=True)
    else:
        print(url, response.status_code, len(response.content), flush=True)


async def main(*urls: str) -> None:
    async with httpx.AsyncClient() as client, trio.open_nursery() as nursery:
        for url in urls:
            nursery.start_soon(fetch, client, url)


if __name__ == "__main__":
    trio_wknet.run(main, *sys.argv[1:])  # instead of trio.run
