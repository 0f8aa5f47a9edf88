"""A TLS echo server: ``python examples/tls_echo.py certificate.pem key.pem [port]``.

With a certificate for trying it out::

    python -m pip install trustme && python -m trustme
    python examples/tls_echo.py server.pem server.key
    openssl s_client -quiet -CAfile client.pem -connect localhost:5100
"""

import ssl
import sys
from contextlib import suppress
from functools import partial

import trio
from ctrl_c import run_until_ctrl_c

import trio_wknet


async def echo(stream: trio.SSLStream[trio.SocketStream]) -> None:
    with suppress(trio.BrokenResourceError):  # the peer reset it, or does not speak TLS
        async for data in stream:
            await stream.send_all(data)
        await stream.aclose()  # says goodbye; left open, it would be cut off


async def main(certificate: str, key: str, port: int = 5100) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    async with trio.open_nursery() as nursery:
        serve = partial(trio_wknet.serve_ssl_over_tcp, echo, port, context)
        listeners = await nursery.start(serve)
        address = listeners[0].transport_listener.socket.getsockname()
        print("listening on", address, flush=True)


if __name__ == "__main__":
    run_until_ctrl_c(main, *sys.argv[1:3], *map(int, sys.argv[3:]))
