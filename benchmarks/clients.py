"""Many client connections in a separate process, so that only the server is measured."""

from __future__ import annotations

import selectors
import socket
import subprocess
import sys
import time

import anyio.to_thread
from typing_extensions import Self

__all__ = ("Clients", "allow_many_descriptors")

MESSAGE = b"x" * 64


def allow_many_descriptors() -> None:
    """Raise this process's limit of open descriptors to the maximum, on systems with such a limit."""
    try:
        import resource
    except ImportError:  # Windows
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Clients:
    """Controls the process of the clients from the process that measures.

    :param port: the port that the clients connect to
    """

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Self:
        command = [sys.executable, "-m", __name__, str(self._port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.communicate()

    async def open(self, count: int) -> None:
        """Open ``count`` more connections. The server has accepted them all when this returns."""
        await self._tell(f"open {count}")
        await self._tell("echo_last")

    async def echo_one(self) -> float:
        """Echo one message on one connection, and return the seconds it took."""
        return float(await self._tell("echo_one"))

    async def drive(self, rounds: int) -> float:
        """Echo ``rounds`` messages on each connection, all concurrently, and return the seconds it took."""
        return float(await self._tell(f"drive {rounds}"))

    async def visit(self, count: int, repeats: int) -> None:
        """Open ``count`` connections at once, echo a message on each, and close them; ``repeats`` times."""
        await self._tell(f"visit {count} {repeats}")

    async def _tell(self, order: str) -> str:
        def tell() -> str:
            assert self._process.stdin and self._process.stdout
            print(order, file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline().strip()
            if not answer:
                raise RuntimeError(f"the clients failed at {order!r}")
            return answer

        return await anyio.to_thread.run_sync(tell)


class Connections:
    """The connections, within the process of the clients."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open: list[socket.socket] = []

    def open(self, count: str) -> None:
        for _ in range(int(count)):
            sock = socket.create_connection(("127.0.0.1", self._port), 20)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open.append(sock)

    def echo_last(self) -> None:
        """Wait until all connections are accepted: servers accept in order, so an echo on the last one proves it."""
        _echo(self._open[-1])

    def echo_one(self) -> float:
        begun = time.perf_counter()
        _echo(self._open[len(self._open) // 2])
        return time.perf_counter() - begun

    def drive(self, rounds: str) -> float:
        left = dict.fromkeys(self._open, int(rounds))
        with selectors.DefaultSelector() as selector:
            for sock in left:
                sock.settimeout(
                    None
                )  # with a timeout, each call would poll for the readiness that the selector has reported already
                selector.register(sock, selectors.EVENT_READ, sock)
            begun = time.perf_counter()
            for sock in left:
                sock.sendall(MESSAGE)
            while left:
                for (_, _, _, sock), _ in selector.select():
                    _check(sock)
                    if left[sock] > 1:
                        left[sock] -= 1
                        sock.sendall(MESSAGE)
                    else:
                        del left[sock]
            return time.perf_counter() - begun

    def visit(self, count: str, repeats: str) -> None:
        for _ in range(int(repeats)):
            self.open(count)
            for sock in self._open:
                sock.sendall(MESSAGE)
            for sock in self._open:
                _check(sock)
            for sock in self._open:
                sock.shutdown(socket.SHUT_WR)
            for sock in self._open:
                if sock.recv(1):
                    raise ValueError("more than the echo")
                sock.close()
            self._open.clear()


def _echo(sock: socket.socket) -> None:
    sock.sendall(MESSAGE)
    _check(sock)


def _check(sock: socket.socket) -> None:
    if sock.recv(len(MESSAGE), socket.MSG_WAITALL) != MESSAGE:
        raise ValueError("the echo is not what was sent")


def main() -> None:
    allow_many_descriptors()
    connections = Connections(int(sys.argv[1]))
    for line in sys.stdin:
        order, *arguments = line.split()
        print(getattr(connections, order)(*arguments) or "done", flush=True)


if __name__ == "__main__":
    main()
