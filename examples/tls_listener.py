"""A TLS echo server: ``python examples/tls_listener.py certificate.pem key.pem [port]``.

Like `tls_echo.py`, which shows Trio's functions, but with a listener of the transport's: the
handshake is done before the handler runs, and one that fails ends nothing else.
"""

import ssl
import sys
from contextlib import suppress

import trio
from ctrl_c import run_until_ctrl_c

from trio_wknet import TLSStream, open_wknet_listener


async def echo(stream: TLSStream) -> None:
    with suppress(trio.BrokenResourceError):  # the peer reset it, or ended without a goodbye
        async for data in stream:
            await stream.send_all(data)


async def main(certificate: str, key: str, port: str = "5101") -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    async with open_wknet_listener(f"tls://127.0.0.1:{port}", tls=context) as listener:
        print("listening on", listener.address, flush=True)
        await listener.serve(echo)


if __name__ == "__main__":
    run_until_ctrl_c(main, *sys.argv[1:])
