"""A server and a client that use TLS from the start: ``python -m mozsocket.examples.tls server.pem authority.pem``."""

from __future__ import annotations

import ssl
import sys

import anyio

from mozsocket import MozTCPSocket, TCPServerSocketEvent


async def main(certificate: str, authorities: str | None = None) -> None:
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_context.load_cert_chain(certificate)  # a PEM file of the certificate and its key
    client_context = ssl.create_default_context(cafile=authorities)
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, useSecureTransport=True, ssl_context=server_context)
        server.onconnect = greet
        client = tcp.open("localhost", server.localPort, useSecureTransport=True, ssl_context=client_context)
        client.ondata = lambda event: print(event.data)
        client.onclose = lambda event: server.close()


def greet(event: TCPServerSocketEvent) -> None:
    event.socket.send(b"hello, in secret")
    event.socket.close()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
