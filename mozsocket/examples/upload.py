"""Sends README.md to port 8007: ``python -m mozsocket.examples.upload``.

The file is read as fast as the peer accepts it, so that little of it is in memory.
"""

from __future__ import annotations

import anyio

from mozsocket import TCPSocket


async def upload(host: str, port: int, path: str) -> None:
    async with await anyio.open_file(path, "rb") as file, TCPSocket(host, port) as socket:
        await socket.opened()
        while chunk := await file.read(65536):
            if not socket.send(chunk):
                await socket.drained()


if __name__ == "__main__":
    anyio.run(upload, "localhost", 8007, "README.md")
