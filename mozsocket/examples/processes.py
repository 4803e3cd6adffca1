"""A server of several processes that share one port: ``python -m mozsocket.examples.processes 8007``.

Linux distributes the connections among them. Add ``--behind-proxy`` behind a load balancer that sends PROXY headers.
"""

from __future__ import annotations

import multiprocessing
import os
import sys

import anyio

from mozsocket import MozTCPSocket, TCPServerSocketEvent


def greet(event: TCPServerSocketEvent) -> None:
    event.socket.send(b"hello %s, from process %d\n" % (event.socket.host.encode(), os.getpid()))
    event.socket.close()


async def serve(port: int, behind_proxy: bool) -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(port, reuse_port=True, proxy_protocol=behind_proxy)
        server.onconnect = greet


def run(port: int, behind_proxy: bool) -> None:
    anyio.run(serve, port, behind_proxy)


def main(port: int, behind_proxy: bool) -> None:
    for _ in range(os.cpu_count() or 1):
        multiprocessing.get_context("spawn").Process(target=run, args=(port, behind_proxy)).start()


if __name__ == "__main__":
    main(int(sys.argv[1]), "--behind-proxy" in sys.argv)
