"""Sends an e-mail, but only encrypted: ``python -m mozsocket.examples.mail HOST PORT SENDER RECIPIENT… < message``.

It uses ``stream()``, as a dialogue reads better as a sequence. The stream continues after ``upgradeToSecure()``.
"""

from __future__ import annotations

import ssl
import sys

import anyio
from anyio.streams.buffered import BufferedByteStream

from mozsocket import TCPSocket


class SMTPError(Exception):
    """The server has refused a command."""


async def send_mail(
    host: str, port: int, sender: str, recipients: list[str], message: bytes, context: ssl.SSLContext | None = None
) -> None:
    """Send a message; if TLS is not possible, fail without sending it.

    :raises SMTPError: if the server refuses it
    """
    async with TCPSocket(host, port, connect_timeout=30) as socket:
        replies = BufferedByteStream(socket.stream())

        async def command(line: str | None, expected: int) -> None:
            if line is not None:
                await socket.stream().send(line.encode() + b"\r\n")
            reply = await replies.receive_until(b"\r\n", 1000)
            while reply[3:4] == b"-":
                reply = await replies.receive_until(b"\r\n", 1000)
            if reply[:3] != b"%d" % expected:
                raise SMTPError(f"{line}: {reply.decode('utf-8', 'replace')}")

        await command(None, 220)
        await command("EHLO localhost", 250)
        await command("STARTTLS", 220)
        socket.upgradeToSecure(ssl_context=context, leftover=replies.buffer)
        replies = BufferedByteStream(socket.stream())
        await socket.secured()
        await command("EHLO localhost", 250)
        await command(f"MAIL FROM:<{sender}>", 250)
        for recipient in recipients:
            await command(f"RCPT TO:<{recipient}>", 250)
        await command("DATA", 354)
        lines = message.splitlines()
        await socket.stream().send(b"".join((b"." if line[:1] == b"." else b"") + line + b"\r\n" for line in lines))
        await command(".", 250)
        await command("QUIT", 221)


def main(host: str, port: str, sender: str, *recipients: str) -> None:
    anyio.run(send_mail, host, int(port), sender, list(recipients), sys.stdin.buffer.read())


if __name__ == "__main__":  # mail.example.com 25 me@example.com you@example.org < message
    main(*sys.argv[1:])
