"""A failure without an error handler is raised by the block: ``python -m mozsocket.examples.errors``."""

from __future__ import annotations

import sys

import anyio

from mozsocket import MozTCPSocket

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup  # the backport, a dependency of AnyIO


async def main(port: int) -> None:
    async with MozTCPSocket() as tcp:
        tcp.open("localhost", port)  # no onerror, and nothing awaits it


def run() -> None:
    try:
        anyio.run(main, 1)
    except ExceptionGroup as group:  # or, from Python 3.11 on, except* TCPSocketError
        for error in group.exceptions:
            print(error)


if __name__ == "__main__":
    run()
