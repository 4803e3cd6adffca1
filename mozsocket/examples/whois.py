"""A WHOIS client (RFC 3912) for both asyncio and Trio."""

from __future__ import annotations

import anyio

from mozsocket import TCPSocket


async def whois(host: str, query: str, *, port: int = 43, timeout: float = 10) -> str:
    """Ask a WHOIS server.

    :param timeout: how long it may take, in seconds
    :raises TimeoutError: if the answer is not complete by then
    :raises OSError: if the connection fails
    :raises ValueError: if the query is not one line
    """
    if "\n" in query or "\r" in query:
        raise ValueError("the query must be one line")
    answer: list[bytes] = []
    with anyio.fail_after(timeout):
        async with TCPSocket(host, port) as socket:
            socket.ondata = lambda event: answer.append(event.data)
            await socket.opened()
            socket.send(query.encode() + b"\r\n")
            await socket.closed()
    return b"".join(answer).decode("utf-8", "replace")
