"""The echo server of ``listen --echo``."""

from __future__ import annotations

import itertools

import anyio

from .. import Event, TCPServerSocket, TCPServerSocketEvent, TCPSocket, TCPSocketEvent
from ._loop import complain, note
from ._trace import Trace, peer_of

__all__ = ("EchoService", "echo_back")


class EchoService:
    """Sends back what is received, on any number of connections, until :meth:`stop` is called.

    :param grace: seconds in which connections may then end by themselves
    """

    def __init__(self, trace: Trace, grace: float) -> None:
        self._trace = trace
        self._grace = grace
        self._numbers = itertools.count(1)
        self._server: TCPServerSocket[bytes | str] | None = None
        self._connections: set[TCPSocket[bytes | str]] = set()
        self._change: anyio.Event | None = None

    async def serve(self, server: TCPServerSocket[bytes | str]) -> None:
        """Serve until the server and its connections have closed."""
        self._server = server
        server.onconnect = self._on_connect
        await server.closed()
        with anyio.move_on_after(self._grace):
            while self._connections:
                self._change = anyio.Event()
                await self._change.wait()
        for connection in tuple(self._connections):
            connection.closeImmediately()

    def stop(self) -> bool:
        """Accept no more connections; :meth:`serve` then returns when all have ended, or after the grace time.

        :return: False if the server has not started, so that there is nothing to stop
        """
        if self._server is None:
            return False
        self._server.close()
        if self._connections and self._grace:
            count = len(self._connections)
            note(f"connections still open: {count}; they are closed in {self._grace:g} s, or now by another Ctrl-C")
        return True

    def _on_connect(self, event: TCPServerSocketEvent[bytes | str]) -> None:
        connection = event.socket
        self._connections.add(connection)
        connection.addEventListener("close", self._on_close)
        echo_back(connection)
        self._trace.watch(connection, f"accepted {next(self._numbers)}")

    def _on_close(self, event: Event[TCPSocket[bytes | str]]) -> None:
        self._connections.discard(event.target)
        if self._change is not None:
            self._change.set()


def echo_back(socket: TCPSocket[bytes | str]) -> None:
    """Have a socket send back what it receives, and receive no faster than the peer reads."""

    def on_data(event: TCPSocketEvent[bytes | str]) -> None:
        if not socket.send(event.data):
            socket.suspend()  # until drain

    socket.ondata = on_data
    socket.ondrain = lambda event: socket.resume()
    socket.onerror = lambda event: complain(f"connection with {peer_of(socket)}: {event.error.detail}")
