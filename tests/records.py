"""Builds TLS records by hand, to send what no library sends: floods, forgeries, faults.

:mod:`ssl` does the handshake and logs the secrets. The keys are derived from them (RFC 8446, section 7; RFC 5246,
section 6.3), and from then on records are encrypted here. Like other peers, these are called from a worker thread.
"""

from __future__ import annotations

import hashlib
import hmac
import socket
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from .peers import blocking

__all__ = ("ALERT", "CHANGE_CIPHER_SPEC", "DATA", "HANDSHAKE", "RecordPeer", "alert", "plain", "recorded")

CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, DATA = 20, 21, 22, 23

# The cipher suites of TLS 1.3, with the lengths of their keys.
_SUITES: dict[str, tuple[str, int, Callable[[bytes], AESGCM | ChaCha20Poly1305]]] = {
    "TLS_AES_128_GCM_SHA256": ("sha256", 16, AESGCM),
    "TLS_AES_256_GCM_SHA384": ("sha384", 32, AESGCM),
    "TLS_CHACHA20_POLY1305_SHA256": ("sha256", 32, ChaCha20Poly1305),
}


def plain(kind: int, content: bytes) -> bytes:
    """A record in plaintext."""
    return bytes((kind, 3, 3)) + len(content).to_bytes(2, "big") + content


def alert(description: int, *, level: int = 2) -> bytes:
    """The content of an alert record (RFC 8446, section 6)."""
    return bytes((level, description))


def _expand_label(algorithm: str, secret: bytes, label: bytes, length: int) -> bytes:
    """HKDF-Expand-Label (RFC 8446, section 7.1), for outputs no longer than one hash."""
    label = b"tls13 " + label
    info = length.to_bytes(2, "big") + bytes((len(label),)) + label + b"\0"
    return hmac.digest(secret, info + b"\1", algorithm)[:length]


def _key_block(master: bytes, seed: bytes, length: int) -> bytes:
    """The PRF's output (RFC 5246, section 5), with SHA-256."""
    a = seed = b"key expansion" + seed
    block = b""
    while len(block) < length:
        a = hmac.digest(master, a, "sha256")
        block += hmac.digest(master, a + seed, "sha256")
    return block[:length]


class _Sealer13:
    """Encrypts the records of one side in TLS 1.3."""

    def __init__(self, suite: str, secret: bytes) -> None:
        self._algorithm, self._size, self._aead = _SUITES[suite]
        self._use(secret)

    def _use(self, secret: bytes) -> None:
        self._secret = secret
        self._cipher = self._aead(_expand_label(self._algorithm, secret, b"key", self._size))
        self._iv = int.from_bytes(_expand_label(self._algorithm, secret, b"iv", 12), "big")
        self._sequence = 0

    def seal(self, kind: int, content: bytes) -> bytes:
        nonce = (self._iv ^ self._sequence).to_bytes(12, "big")
        self._sequence += 1
        header = bytes((DATA, 3, 3)) + (len(content) + 17).to_bytes(2, "big")
        return header + self._cipher.encrypt(nonce, content + bytes((kind,)), header)

    def update(self) -> None:
        """Switch to the next secret, as after a KeyUpdate."""
        size = hashlib.new(self._algorithm).digest_size
        self._use(_expand_label(self._algorithm, self._secret, b"traffic upd", size))


class _Sealer12:
    """Encrypts the records of one side in TLS 1.2 with AES128-GCM-SHA256 (RFC 5288)."""

    def __init__(self, key: bytes, salt: bytes) -> None:
        self._cipher, self._salt = AESGCM(key), salt
        self._sequence = 1  # number 0 was the Finished message

    def seal(self, kind: int, content: bytes) -> bytes:
        explicit = self._sequence.to_bytes(8, "big")
        self._sequence += 1
        aad = explicit + plain(kind, content)[:5]
        return plain(kind, explicit + self._cipher.encrypt(self._salt + explicit, content, aad))


class RecordPeer:
    """The peer of our connection, after the handshake.

    :ivar sock: its blocking socket
    :ivar tls: its TLS object, used only to decrypt what arrives
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, server_side: bool) -> None:
        """Do the handshake. Blocks.

        :param context: its context; for TLS 1.2 it is limited to the cipher suite above, and a server's tickets are
            disabled
        """
        self.sock = sock
        self.ended = False  # whether close_notify has arrived
        self._sealer: Any
        if context.maximum_version is ssl.TLSVersion.TLSv1_2:
            context.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256")
        elif server_side:
            context.num_tickets = 0  # so that its first record is built here
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder, "secrets")
            context.keylog_filename = str(log)
            sent, received = self._shake_hands(context, server_side)
            secrets = dict(line.split()[::2] for line in log.read_text().splitlines() if line[0] != "#")
            context.keylog_filename = None  # type: ignore[assignment]  # which closes it
        role = "SERVER" if server_side else "CLIENT"
        if self.tls.version() == "TLSv1.3":
            suite = self.tls.cipher()
            assert suite is not None
            self._sealer = _Sealer13(suite[0], bytes.fromhex(secrets[f"{role}_TRAFFIC_SECRET_0"]))
        else:
            client, server = (received, sent) if server_side else (sent, received)
            master = bytes.fromhex(secrets["CLIENT_RANDOM"])
            block = _key_block(master, server[11:43] + client[11:43], 40)  # the random values of the first messages
            at = int(server_side)
            self._sealer = _Sealer12(block[16 * at :][:16], block[32 + 4 * at :][:4])

    def _shake_hands(self, context: ssl.SSLContext, server_side: bool) -> tuple[bytes, bytes]:
        """Do the handshake.

        :return: all bytes sent, and all bytes received
        """
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        name = None if server_side else "localhost"
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side, server_hostname=name)
        sent = received = b""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                done = False
            else:
                done = True
            made = self._outgoing.read()
            self.sock.sendall(made)
            sent += made
            if done:
                return sent, received
            part = self.sock.recv(65536)
            assert part, "the stream ended in the handshake"
            received += part
            self._incoming.write(part)

    def record(self, content: bytes, kind: int = DATA) -> bytes:
        """Encrypt the peer's next record."""
        sealed: bytes = self._sealer.seal(kind, content)
        return sealed

    def key_update(self, *, requested: bool = True) -> bytes:
        """A record with a TLS 1.3 KeyUpdate. The peer's keys change; ours must too if ``requested``."""
        sealed = self.record(bytes((24, 0, 0, 1, int(requested))), HANDSHAKE)
        self._sealer.update()
        return sealed

    def open(self, data: bytes) -> bytes:
        """Decrypt our records.

        :raises ssl.SSLError: if they contain an alert, or are not valid records
        """
        self._incoming.write(data)
        opened = bytearray()
        try:
            while not self.ended:
                part = self.tls.read(65536)
                opened += part
                self.ended = not part
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        return bytes(opened)

    def read_exactly(self, size: int) -> bytes:
        """Read ``size`` decrypted bytes. Blocks."""
        opened = bytearray()
        while len(opened) < size:
            data = self.sock.recv(65536)
            assert data, f"the stream ended after {len(opened)} of {size} bytes"
            opened += self.open(data)
        return bytes(opened)

    def read_all(self) -> bytes:
        """Read all decrypted bytes up to EOF. Blocks."""
        opened = bytearray()
        while data := self.sock.recv(65536):
            opened += self.open(data)
        return bytes(opened)


async def recorded(sock: socket.socket, context: ssl.SSLContext, *, server_side: bool) -> RecordPeer:
    """A peer with hand-made records, after its handshake in a worker thread."""
    return await blocking(lambda: RecordPeer(sock, context, server_side=server_side))
