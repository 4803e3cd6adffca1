"""The demonstration: an echo server and a client, and checks of what happened between them."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from typing import Any

import anyio

from .. import MozTCPSocket, TCPServerSocketEvent, TCPSocket, TCPSocketEvent
from ._echo import echo_back
from ._loop import Failure
from ._trace import EVENT_TYPES, Trace, tls_of

__all__ = ("Contexts", "Demo", "conclusion")

DEMO_SIZE = 1 << 20
DEMO_LIMIT = 30
"""Seconds after which a run is cut short; the checks then fail."""

REQUEST, ANSWER = b"STARTTLS\n", b"READY\n"


def conclusion(claims: dict[str, dict[str, bool]]) -> str:
    """Sum up the checks in one line.

    :param claims: for each backend, the claims that were checked, and whether each is true
    :raises Failure: if a claim is not true
    """
    wrong = [f"{backend}: {claim}" for backend, found in claims.items() for claim in found if not found[claim]]
    if wrong:
        raise Failure("this did not hold: " + "; ".join(wrong))
    proved = dict.fromkeys(claim for found in claims.values() for claim in found)
    return f"Proved on {', '.join(claims)}: {'; '.join(proved)}."


@dataclass(frozen=True)
class Contexts:
    """The TLS contexts of both sides: a server with a fresh certificate, and a client that trusts no other."""

    server: ssl.SSLContext
    client: ssl.SSLContext

    @classmethod
    def make(cls) -> Contexts:
        """Make a certificate and the contexts.

        :raises Failure: if trustme, which makes it, is not installed
        """
        try:
            import trustme
        except ModuleNotFoundError as exc:
            raise Failure("the demonstration needs `pip install 'mozsocket[cli]'`") from exc
        authority = trustme.CA()
        contexts = cls(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        authority.issue_cert("localhost").configure_cert(contexts.server)
        authority.configure_trust(contexts.client)
        return contexts


class Demo:
    """One run of the server and the client.

    The two agree on TLS in plaintext. Then the client sends so much that ``send()`` returns False, and gets it all
    back. It suspends at the first data, and resumes when neither side can make progress any more.
    """

    def __init__(self, trace: Trace, contexts: Contexts) -> None:
        self._trace = trace
        self._contexts = contexts
        self._agreed: dict[str, bytes] = {"client": b"", "accepted": b""}  # the plaintext that each received
        self._versions: dict[str, str | None] = {"client": None, "accepted": None}
        self._certificate: Any = None  # the server's; empty unless it was verified
        self._sent = os.urandom(DEMO_SIZE)
        self._received = bytearray()
        self._send_results: list[bool] = []
        self._buffered_at_drain: list[int] = []
        self._begun: anyio.Event  # set when the client has suspended, or never will
        self._received_when_suspended = 0
        self._received_when_resumed: int | None = None
        self._events: dict[str, list[str]] = {"client": [], "accepted": []}

    async def run(self) -> None:
        self._begun = anyio.Event()
        with anyio.move_on_after(DEMO_LIMIT):
            async with MozTCPSocket() as tcp:
                server = tcp.listen(0, host="localhost")
                server.onconnect = self._on_connect
                self._trace.watch(server, "server")
                client = tcp.open("localhost", server.localPort)
                self._set_up(client)
                await self._begun.wait()
                if self._received:
                    await anyio.wait_all_tasks_blocked()
                    self._received_when_resumed = len(self._received)
                    self._trace.tell("client", "resume()")
                    client.resume()

    def _watch(self, socket: TCPSocket, name: str) -> None:
        self._trace.watch(socket, name)
        for type_ in EVENT_TYPES[TCPSocket]:
            socket.addEventListener(type_, lambda event: self._events[name].append(event.type))
        socket.addEventListener("secure", lambda event: self._on_secure(name, socket))

    def _on_connect(self, event: TCPServerSocketEvent) -> None:
        self._watch(event.socket, "accepted")
        event.socket.addEventListener("data", self._on_request)
        event.target.close()

    def _on_request(self, event: TCPSocketEvent) -> None:
        self._agreed["accepted"] += event.data
        if self._agreed["accepted"] == REQUEST:  # pragma: no branch  (so few bytes usually arrive together)
            socket = event.target
            socket.removeEventListener("data", self._on_request)
            socket.send(ANSWER)
            self._upgrade(socket, "accepted", self._contexts.server)
            echo_back(socket)

    def _upgrade(self, socket: TCPSocket, name: str, context: ssl.SSLContext) -> None:
        self._trace.tell(name, "upgradeToSecure()")
        socket.upgradeToSecure(ssl_context=context)

    def _on_secure(self, name: str, socket: TCPSocket) -> None:
        tls = tls_of(socket)
        assert tls is not None
        self._versions[name] = tls.version()
        self._certificate = self._certificate or tls.getpeercert()

    def _set_up(self, client: TCPSocket) -> None:
        self._watch(client, "client")
        client.addEventListener("open", lambda event: client.send(REQUEST))
        client.addEventListener("drain", lambda event: self._buffered_at_drain.append(client.bufferedAmount))
        client.addEventListener("data", self._on_answer)
        client.addEventListener("close", lambda event: self._begun.set())

    def _on_answer(self, event: TCPSocketEvent) -> None:
        self._agreed["client"] += event.data
        if self._agreed["client"] == ANSWER:  # pragma: no branch
            client = event.target
            client.removeEventListener("data", self._on_answer)
            client.addEventListener("data", self._on_data)
            self._upgrade(client, "client", self._contexts.client)
            result = client.send(self._sent)  # sent when the handshake is done
            self._send_results.append(result)
            self._trace.tell("client", "send()", f"{len(self._sent)} B: {result}")

    def _on_data(self, event: TCPSocketEvent) -> None:
        self._received += event.data
        if not self._begun.is_set():
            self._trace.tell("client", "suspend()")
            event.target.suspend()
            self._received_when_suspended = len(self._received)
            self._begun.set()
        if len(self._received) == len(self._sent):
            self._trace.tell("client", "close()")
            event.target.close()

    def claims(self) -> dict[str, bool]:
        """The claims about the run, and whether each is true."""
        versions = set(self._versions.values())
        [version] = versions if len(versions) == 1 else [None]
        return {
            f"the connection changed from plaintext to {version or 'TLS'} on both sides, the certificate checked": (
                self._agreed == {"client": ANSWER, "accepted": REQUEST}
                and version is not None
                and bool(self._certificate)
            ),
            f"{len(self._received)} bytes came back equal to those sent": self._received == self._sent,
            "send() returned False, and drain fired once all was handed over": (
                self._send_results == [False] and self._buffered_at_drain == [0]
            ),
            "no data arrived between suspend() and resume()": (
                self._received_when_resumed == self._received_when_suspended
            ),
            "close fired once, as the last event of each socket": all(
                types[-1:] == ["close"] and types.count("close") == 1 for types in self._events.values()
            ),
        }
