"""Other programs that the tests talk to. In CI they must be installed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn

import anyio
import pytest

from .peers import PEER_TIMEOUT, blocking


def program(name: str) -> str:
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")  # servers' folders
    return path or unavailable(f"{name} is not installed")


def unavailable(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


class OpenSSL:
    """A process of OpenSSL's s_server or s_client. It prints its state and what it receives, and sends its input.

    :ivar output: everything it has printed
    """

    def __init__(self, messages: Path, command: str, *arguments: str | Path) -> None:
        """Start the process.

        :param messages: the file in which it logs the TLS messages of both directions
        """
        self.output = bytearray()
        self._messages = messages
        self._process = subprocess.Popen(
            [program("openssl"), command, *arguments, "-msg", "-msgfile", messages],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        while part := os.read(self._process.stdout.fileno(), 1 << 20):
            with self._more:
                self.output += part
                self._more.notify()

    async def until(self, pattern: bytes) -> bytes:
        """Wait until the output contains a match of a pattern. The match may be up to 1000 bytes long.

        :return: the pattern's group
        """
        begin = 0

        def find() -> re.Match[bytes] | None:
            nonlocal begin
            found = re.compile(pattern).search(self.output, begin)
            begin = max(0, len(self.output) - 1000)
            return found

        def wait() -> re.Match[bytes] | None:
            with self._more:
                return self._more.wait_for(find, PEER_TIMEOUT)

        found = await blocking(wait)
        assert found, bytes(self.output[-1000:])
        return found[1]

    async def until_message(self, message: str, count: int) -> None:
        """Wait until the log has ``count`` messages such as ``"<<< TLS 1.3, Handshake [length 0005], KeyUpdate"``."""
        with anyio.fail_after(PEER_TIMEOUT):
            while self._messages.read_text().count(message) < count:  # noqa: ASYNC110  (another process writes it)
                await anyio.sleep(0.02)

    async def port(self) -> int:
        """Wait until s_server listens, and return its port."""
        return int(await self.until(rb"ACCEPT 127\.0\.0\.1:(\d+)\n"))

    async def send(self, data: bytes) -> None:
        """Send data. A block that it reads must not begin with a command letter such as Q, R or K."""
        assert self._process.stdin is not None
        await blocking(self._process.stdin.write, data)
        await blocking(self._process.stdin.flush)

    @asynccontextmanager
    async def halted(self, order: str) -> AsyncIterator[None]:
        """Stop the process within the block; afterwards it executes the command before it receives anything more."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
            await self.send(order.encode() + b"\n")
        finally:
            self._process.send_signal(signal.SIGCONT)

    async def wait(self) -> None:
        """Wait until the process has ended and all its output was read."""
        await blocking(self._process.wait, PEER_TIMEOUT)
        await blocking(self._reader.join, PEER_TIMEOUT)

    def __enter__(self) -> OpenSSL:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._reader.join()
        self._process.communicate()


def s_server(files: Path, *arguments: str) -> OpenSSL:
    """An s_server for one connection, with the certificate from the folder."""
    where = ["-accept", "127.0.0.1:0", "-naccept", "1"]
    return OpenSSL(files / "messages", "s_server", *where, "-cert", files / "server.pem", *arguments)


def s_client(files: Path, port: int, *arguments: str) -> OpenSSL:
    """An s_client that trusts the authority from the folder."""
    where = ["-connect", f"127.0.0.1:{port}", "-verify_return_error"]
    return OpenSSL(files / "messages", "s_client", *where, "-CAfile", files / "ca.pem", *arguments)
