"""Prints what a mail server offers after STARTTLS: ``python -m mozsocket.examples.starttls mail.example.com 25``.

The connection begins in plaintext. Once both sides have agreed, ``upgradeToSecure()`` starts TLS on it.
"""

from __future__ import annotations

import ssl
import sys

import anyio

from mozsocket import MozTCPSocket, TCPSocketEvent


async def main(host: str, port: int, context: ssl.SSLContext | None = None) -> None:
    async with MozTCPSocket() as tcp:
        socket = tcp.open(host, port)
        commands = [b"EHLO localhost\r\n", b"STARTTLS\r\n"]
        reply = bytearray()

        def ondata(event: TCPSocketEvent) -> None:
            reply.extend(event.data)
            lines = reply.splitlines()
            if not reply.endswith(b"\r\n") or lines[-1].startswith(b"-", 3):
                return  # the reply is incomplete
            reply.clear()
            if socket.readyState == "open" and commands and lines[-1].startswith(b"2"):
                socket.send(commands.pop(0))
            elif lines[-1].startswith(b"220") and not socket.ssl:
                socket.upgradeToSecure(ssl_context=context)
                socket.send(b"EHLO localhost\r\n")  # sent encrypted, or not at all
            else:
                print(*(line.decode() for line in lines), sep="\n")
                socket.close()

        socket.ondata = ondata
        socket.onsecure = lambda event: print("secure")


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], int(sys.argv[2]))  # mail.example.com 25
