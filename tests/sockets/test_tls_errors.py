"""Every way in which TLS can fail, provoked by a blocking peer: the errors that the program gets, and the alerts that
the
peer gets.
"""

from __future__ import annotations

import datetime
import functools
import ipaddress
import random
import re
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mozsocket import MozTCPSocket, TCPSocketError, TCPSocketErrorEvent
from mozsocket.testing import EventRecorder

from ..certificates import AUTHORITY, certificate, client_context, server_context
from ..peers import (
    PEER_TIMEOUT,
    Accepting,
    accept,
    blocking,
    connected,
    dial,
    do_handshake,
    port_of,
    read_all,
    secure,
    securely_connected,
)
from ..processes import program
from ..records import ALERT, recorded

pytestmark = pytest.mark.anyio

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3

NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)
SUBJECT = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])

# Certificates that trustme cannot create. Each is given as PEM: a key, the certificate, and its chain.


@functools.cache
def authority() -> tuple[x509.Name, ec.EllipticCurvePrivateKey]:
    """The name and the key of the trusted authority."""
    key = serialization.load_pem_private_key(AUTHORITY.private_key_pem.bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return x509.load_pem_x509_certificate(AUTHORITY.cert_pem.bytes()).subject, key


def issue(
    *extensions: x509.ExtensionType,
    since: datetime.datetime = NOW - DAY,
    until: datetime.datetime = NOW + DAY,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
    by_itself: bool = False,
) -> bytes:
    """A certificate for localhost, signed by the authority unless stated otherwise."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    issuer, signer = (subject, key) if by_itself else authority()
    builder = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number(), since, until)
    for extension in (SUBJECT, *extensions):
        builder = builder.add_extension(extension, critical=False)
    leaf = builder.sign(signer, hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + leaf.public_bytes(serialization.Encoding.PEM)


@functools.cache
def expired() -> bytes:
    return issue(until=NOW - DAY / 2)


@functools.cache
def not_yet_valid() -> bytes:
    return issue(since=NOW + DAY / 2)


@functools.cache
def self_signed() -> bytes:
    return issue(by_itself=True)


@functools.cache
def unknown_issuer() -> bytes:
    """A certificate of an intermediate authority, which is presented too."""
    return pem_of(trustme.CA().create_child_ca().issue_cert("localhost", "127.0.0.1"))


@functools.cache
def unknown_root() -> bytes:
    """A certificate whose authority is presented, but not trusted."""
    stranger = trustme.CA()
    return pem_of(stranger.issue_cert("localhost", "127.0.0.1")) + stranger.cert_pem.bytes()


@functools.cache
def for_servers_only() -> bytes:
    return issue(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]))


@functools.cache
def for_clients_only() -> bytes:
    return issue(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]))


@functools.cache
def weak_key() -> bytes:
    return issue(key=rsa.generate_private_key(65537, 1024))  # noqa: S505


@functools.cache
def good() -> bytes:
    return issue()


def pem_of(leaf: trustme.LeafCert) -> bytes:
    return leaf.private_key_pem.bytes() + b"".join(blob.bytes() for blob in leaf.cert_chain_pems)


def shown(pem: bytes) -> tuple[bytes, ...]:
    """The presented certificates of a PEM file, in DER."""
    found = re.findall("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", pem.decode(), re.DOTALL)
    return tuple(map(ssl.PEM_cert_to_DER_cert, found))


def showing(pem: bytes, context: ssl.SSLContext, path: Path) -> ssl.SSLContext:
    """A context that presents the certificate, however weak it is."""
    file = path / "leaf.pem"
    file.write_bytes(pem)
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    context.load_cert_chain(file)
    return context


def bare_server() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


# Failing handshakes


async def failed(
    role: str,
    ours: ssl.SSLContext,
    theirs: ssl.SSLContext,
    listener: socket.socket,
    *,
    early: bool = False,
    **options: Any,
) -> tuple[TCPSocketError, ssl.SSLError]:
    """Fail a handshake. The error must be the same everywhere; it is returned, with the peer's error.

    A client uses TLS from the start. A server upgrades, as a connection that it does not accept has no events.

    :param early: whether the client is finished, and open, when it fails; this is so where the server checks the
        client's certificate last (TLS 1.3)
    """
    async with MozTCPSocket() as tcp:
        if role == "client":
            socket_ = tcp.open("127.0.0.1", port_of(listener), useSecureTransport=True, ssl_context=ours, **options)
            recorder = EventRecorder(socket_)
            peer = await accept(listener)
        else:
            socket_, recorder, peer = await connected(tcp, role, listener)
            socket_.upgradeToSecure(ssl_context=ours)
        # The peer gets an alert. A reset would not be an SSLError.
        with (
            pytest.raises(ssl.SSLError) as reports,
            peer,
            await secure(peer, theirs, server_side=role == "client") as tls,
        ):
            await blocking(read_all, tls)
        await recorder.first("close")
        if not early:
            with pytest.raises(TCPSocketError) as raised:
                await (socket_.opened() if role == "client" else socket_.secured())
        with pytest.raises(TCPSocketError) as raised:
            await socket_.closed()
    assert recorder.types == (["open"] if early else []) + ["error", "close"]
    event = recorder.of("error")[-1]
    error = event.error
    assert isinstance(event, TCPSocketErrorEvent)
    assert type(error) is TCPSocketError
    assert isinstance(error.__cause__, ssl.SSLError)
    assert (event.name, event.message, event.errorCode) == (error.name, error.message, error.errorCode)
    assert (raised.value.name, raised.value.errorCode) == (error.name, error.errorCode)
    return error, reports.value


def named(error: TCPSocketError) -> tuple[str, str, int]:
    return error.name, error.message, error.errorCode


# Faults in the peer's certificate, a server's or a client's: the error name, the code, and the alert that the peer
# gets.
REFUSED = {
    "expired": (expired, expired, "SecurityExpiredCertificateError", 10, "CERTIFICATE_EXPIRED"),
    "not yet valid": (not_yet_valid, not_yet_valid, "SecurityExpiredCertificateError", 9, "BAD_CERTIFICATE"),
    "self-signed": (self_signed, self_signed, "SecurityUntrustedCertificateIssuerError", 18, "UNKNOWN_CA"),
    "of an unknown root": (unknown_root, unknown_root, "SecurityUntrustedCertificateIssuerError", 19, "UNKNOWN_CA"),
    "of nobody": (unknown_issuer, unknown_issuer, "SecurityUntrustedCertificateIssuerError", 20, "UNKNOWN_CA"),
    "for something else": (
        for_clients_only,
        for_servers_only,
        "SecurityInadequateKeyUsageError",
        26,
        "UNSUPPORTED_CERTIFICATE",
    ),
    "of a weak key": (weak_key, weak_key, "SecurityCertificateSignatureAlgorithmDisabledError", 66, ""),
}


@pytest.mark.parametrize(("servers", "clients", "name", "code", "alert"), REFUSED.values(), ids=REFUSED.keys())
async def test_a_certificate_that_is_not_accepted(
    servers: Callable[[], bytes],
    clients: Callable[[], bytes],
    name: str,
    code: int,
    alert: str,
    role: str,
    version: ssl.TLSVersion,
    listener: socket.socket,
    tmp_path: Path,
) -> None:
    if role == "client":
        pem = servers()
        ours, theirs = client_context(version=version), showing(pem, bare_server(), tmp_path)
    else:
        pem = clients()
        ours = server_context(version=version, ask_for_certificate=True)
        theirs = showing(pem, client_context(), tmp_path)
    error, reports = await failed(role, ours, theirs, listener)
    assert named(error) == (name, "SecurityCertificate", code)
    assert error.detail.startswith("the peer's certificate is not accepted: ")
    assert alert in str(reports)
    # OpenSSL does not keep the certificate of a client that it refuses.
    assert error.peer_certificates == (shown(pem) if role == "client" else ())


async def test_a_weak_signature(listener: socket.socket, tmp_path: Path) -> None:
    pem = weakly_signed(tmp_path)
    error, _ = await failed("client", client_context(), showing(pem, bare_server(), tmp_path), listener)
    name = "SecurityCertificateSignatureAlgorithmDisabledError"
    assert named(error) == (name, "SecurityCertificate", 68)
    assert error.peer_certificates == shown(pem)


def weakly_signed(path: Path) -> bytes:
    """A certificate signed with SHA-1, which only OpenSSL's command line still creates."""
    (path / "ca.key").write_bytes(AUTHORITY.private_key_pem.bytes())
    (path / "ca.pem").write_bytes(AUTHORITY.cert_pem.bytes())
    (path / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    request = "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -keyout key -out csr"
    sign = "x509 -req -sha1 -in csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out leaf"
    for command in (request, sign):
        subprocess.run([program("openssl"), *command.split()], cwd=path, check=True, capture_output=True)
    return (path / "key").read_bytes() + (path / "leaf").read_bytes()


async def test_a_revoked_certificate(role: str, listener: socket.socket, tmp_path: Path) -> None:
    if role == "client":
        ours, theirs = client_context(), showing(good(), bare_server(), tmp_path)
    else:
        ours, theirs = server_context(ask_for_certificate=True), showing(good(), client_context(), tmp_path)
    (tmp_path / "crl.pem").write_bytes(revocation_list(shown(good())[0]))
    ours.load_verify_locations(tmp_path / "crl.pem")
    ours.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    error, reports = await failed(role, ours, theirs, listener)
    assert named(error) == ("SecurityRevokedCertificateError", "SecurityCertificate", 23)
    assert "CERTIFICATE_REVOKED" in str(reports)


def revocation_list(leaf: bytes) -> bytes:
    issuer, key = authority()
    serial = x509.load_der_x509_certificate(leaf).serial_number
    revoked = x509.RevokedCertificateBuilder(serial, NOW - DAY).build()
    crl = x509.CertificateRevocationListBuilder(issuer, NOW - DAY, NOW + DAY, [], [revoked])
    return crl.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(("server_hostname", "code"), [("localhost", 62), ("127.0.0.1", 64), (None, 64)])
async def test_a_certificate_for_another_host(
    server_hostname: str | None, code: int, version: ssl.TLSVersion, listener: socket.socket
) -> None:
    """By default it must be for the host that the socket connects to, here an address."""
    leaf = certificate("other.example", "127.0.0.2")
    theirs = server_context(leaf, version=version)
    error, _ = await failed("client", client_context(), theirs, listener, server_hostname=server_hostname)
    assert named(error) == ("SecurityCertificateDomainMismatchError", "SecurityCertificate", code)
    assert error.peer_certificates == shown(pem_of(leaf))


# Alerts about our certificate. The code minus 1000 is the number of the alert.
DISLIKED = {
    "expired": (expired, "SecurityExpiredCertificateError", 1045),
    "not yet valid": (not_yet_valid, "SecurityBadCertificateError", 1042),  # OpenSSL's alert for it
    "of nobody": (unknown_issuer, "SecurityUntrustedCertificateIssuerError", 1048),
    "for servers only": (for_servers_only, "SecurityUnsupportedCertificateTypeError", 1043),
}


@pytest.mark.parametrize(("make", "name", "code"), DISLIKED.values(), ids=DISLIKED.keys())
async def test_a_client_whose_certificate_is_refused(
    make: Callable[[], bytes],
    name: str,
    code: int,
    version: ssl.TLSVersion,
    listener: socket.socket,
    tmp_path: Path,
) -> None:
    ours = showing(make(), client_context(), tmp_path)
    theirs = server_context(version=version, ask_for_certificate=True)
    error, _ = await failed("client", ours, theirs, listener, early=version is TLS13)
    assert named(error) == (name, "SecurityProtocol", code)
    assert error.detail.startswith("the peer refused TLS: ")
    assert error.peer_certificates == ()


async def test_a_server_whose_certificate_is_refused(version: ssl.TLSVersion, listener: socket.socket) -> None:
    distrustful = client_context(trusting=False)
    error, _ = await failed("server", server_context(version=version), distrustful, listener)
    assert named(error) == ("SecurityUntrustedCertificateIssuerError", "SecurityProtocol", 1048)
    assert error.peer_certificates == ()


async def test_a_client_without_a_certificate(role: str, version: ssl.TLSVersion, listener: socket.socket) -> None:
    demanding = server_context(version=version, ask_for_certificate=True)
    if role == "server":
        error, reports = await failed(role, demanding, client_context(), listener)
        assert named(error) == ("SecurityNoCertificateError", "SecurityProtocol", 199)
        assert ("CERTIFICATE_REQUIRED" if version is TLS13 else "HANDSHAKE_FAILURE") in str(reports)
    elif version is TLS13:
        error, _ = await failed(role, client_context(), demanding, listener, early=True)
        assert named(error) == ("SecurityNoCertificateError", "SecurityProtocol", 1116)
    else:  # it has no alert for that
        error, _ = await failed(role, client_context(), demanding, listener)
        assert named(error) == ("SecurityError", "SecurityProtocol", 1040)


@pytest.mark.parametrize(("ours", "theirs"), [(TLS12, TLS13), (TLS13, TLS12)], ids=["newer peer", "older peer"])
async def test_no_version_in_common(
    ours: ssl.TLSVersion, theirs: ssl.TLSVersion, role: str, listener: socket.socket
) -> None:
    if role == "client":
        contexts = client_context(version=ours), server_context(version=theirs)
    else:
        contexts = server_context(version=ours), client_context(version=theirs)
    error, reports = await failed(role, *contexts, listener)
    code = 1070 if role == "client" else 258
    assert named(error) == ("SecurityUnsupportedTLSVersionError", "SecurityProtocol", code)
    assert ("UNSUPPORTED_PROTOCOL" if role == "client" else "ALERT_PROTOCOL_VERSION") in str(reports)


async def test_no_cipher_in_common(role: str, listener: socket.socket) -> None:
    client, server = client_context(version=TLS12), server_context(version=TLS12)
    client.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    server.set_ciphers("ECDHE-ECDSA-AES256-GCM-SHA384")
    error, _ = await failed(role, *((client, server) if role == "client" else (server, client)), listener)
    assert named(error) == ("SecurityError", "SecurityProtocol", 1040 if role == "client" else 193)


# Servers whose clients fail


@pytest.mark.parametrize("upgrading", [False, True], ids=["from the start", "upgrade"])
async def test_a_server_logs_a_failed_handshake_and_serves_others(
    upgrading: bool, version: ssl.TLSVersion, caplog: pytest.LogCaptureFixture
) -> None:
    """With TLS from the start there is no socket to report it on. A failed upgrade without a listener is logged too."""
    ours = server_context(version=version, ask_for_certificate=True)
    async with MozTCPSocket() as tcp:
        options: dict[str, Any] = {} if upgrading else {"useSecureTransport": True, "ssl_context": ours}
        server = tcp.listen(0, host="127.0.0.1", **options)
        accepted = []

        def on_connect(event: Any) -> None:
            accepted.append(event.socket)
            event.socket.upgradeToSecure(ssl_context=ours)
            event.socket.send(b"hello")

        server.onconnect = on_connect
        for stranger in (client_context(), client_context(trusting=False)):
            with pytest.raises(ssl.SSLError), await secure(await dial(server.localPort), stranger) as secured:
                await blocking(read_all, secured)
        with await secure(await dial(server.localPort), client_context(certificate("good"))) as honest:
            assert await blocking(honest.recv, 5) == b"hello"
            accepted[-1].close()
            assert await blocking(read_all, honest) == b""
        server.close()
    assert len(accepted) == (3 if upgrading else 1)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    first, second = (record.getMessage() for record in caplog.records)
    assert "SecurityNoCertificateError: TLS failed: peer did not return a certificate" in first
    assert "SecurityUntrustedCertificateIssuerError: the peer refused TLS: tlsv1 alert unknown ca" in second


# Peers that do not speak TLS, or not correctly. They always get EOF, never a reset.

HTTP, WRONG_VERSION, TOO_LONG, UNEXPECTED = 156, 267, 198, 244
RECORD_LAYER_FAILURE = 313  # OpenSSL 3.6's reason for any unreadable record
NOISE = {
    "SMTP": (b"220 mail.example ESMTP\r\n", {"client": WRONG_VERSION, "server": WRONG_VERSION}),
    "HTTP": (b"GET / HTTP/1.0\r\n\r\n", {"client": HTTP, "server": HTTP}),
    "zeros": (bytes(100), {"client": WRONG_VERSION, "server": WRONG_VERSION}),
    "a long record": (b"\x16\x03\x01\xff\xff" + bytes(500), {"client": TOO_LONG, "server": TOO_LONG}),
    "data too early": (b"\x17\x03\x03\x00\x05hello", {"client": UNEXPECTED, "server": UNEXPECTED}),
}


@pytest.mark.parametrize(("noise", "codes"), NOISE.values(), ids=NOISE.keys())
async def test_a_peer_that_does_not_speak_tls(
    noise: bytes, codes: dict[str, int], role: str, listener: socket.socket
) -> None:
    error, _ = await spoken_to(role, noise, listener)
    code = RECORD_LAYER_FAILURE if error.errorCode == RECORD_LAYER_FAILURE else codes[role]
    assert named(error) == ("SecurityError", "SecurityProtocol", code)
    assert ("does the peer speak TLS?" in error.detail) is (code not in (UNEXPECTED, RECORD_LAYER_FAILURE))


async def test_noise_of_any_kind_is_an_error(role: str, listener: socket.socket) -> None:
    for seed in range(5):  # none of these looks like the beginning of a record
        noise = random.Random(seed).randbytes(400)
        error, _ = await spoken_to(role, noise, listener)
        assert (error.name, error.message) == ("SecurityError", "SecurityProtocol")


async def spoken_to(role: str, noise: bytes, listener: socket.socket) -> tuple[TCPSocketError, bytes]:
    """The error that the program gets when a peer sends noise in the handshake, and all bytes sent to the peer."""
    async with MozTCPSocket() as tcp:
        if role == "client":
            context = client_context()
            socket_ = tcp.open("127.0.0.1", port_of(listener), useSecureTransport=True, ssl_context=context)
            recorder = EventRecorder(socket_)
            peer = await accept(listener)
        else:
            socket_, recorder, peer = await connected(tcp, role, listener)
            socket_.upgradeToSecure(ssl_context=server_context())
        with peer:
            peer.sendall(noise)
            seen = await blocking(read_all, peer)
        error = (await recorder.first("error")).error
        await recorder.first("close")
    assert recorder.types == ["error", "close"]
    return error, seen


def alert(description: int, *, level: int = 2) -> bytes:
    """A record with an alert (RFC 8446, section 6)."""
    return bytes((21, 3, 3, 0, 2, level, description))


# All alerts of RFC 8446, section 6, and of OpenSSL. Only clients receive them here: during the handshake a server has
# sent nothing yet that could be refused, and alerts from its client arrive later.
ALERTS = {
    "unexpected message": (10, "SecurityError"),
    "bad record mac": (20, "SecurityError"),
    "decryption failed": (21, "SecurityError"),
    "record overflow": (22, "SecurityError"),
    "decompression failure": (30, "SecurityError"),
    "handshake failure": (40, "SecurityError"),
    "no certificate": (41, "SecurityNoCertificateError"),
    "bad certificate": (42, "SecurityBadCertificateError"),
    "unsupported certificate": (43, "SecurityUnsupportedCertificateTypeError"),
    "certificate revoked": (44, "SecurityRevokedCertificateError"),
    "certificate expired": (45, "SecurityExpiredCertificateError"),
    "certificate unknown": (46, "SecurityBadCertificateError"),
    "illegal parameter": (47, "SecurityError"),
    "unknown ca": (48, "SecurityUntrustedCertificateIssuerError"),
    "access denied": (49, "SecurityError"),
    "decode error": (50, "SecurityError"),
    "decrypt error": (51, "SecurityError"),
    "export restriction": (60, "SecurityError"),
    "protocol version": (70, "SecurityUnsupportedTLSVersionError"),
    "insufficient security": (71, "SecurityError"),
    "internal error": (80, "SecurityError"),
    "inappropriate fallback": (86, "SecurityUnsupportedTLSVersionError"),
    "user canceled": (90, "SecurityError"),
    "no renegotiation": (100, "SecurityError"),
    "missing extension": (109, "SecurityError"),
    "unsupported extension": (110, "SecurityError"),
    "certificate unobtainable": (111, "SecurityNoCertificateError"),
    "unrecognized name": (112, "SecurityError"),
    "bad certificate status response": (113, "SecurityBadCertificateError"),
    "bad certificate hash value": (114, "SecurityBadCertificateError"),
    "unknown psk identity": (115, "SecurityError"),
    "certificate required": (116, "SecurityNoCertificateError"),
    "no application protocol": (120, "SecurityError"),
}


@pytest.mark.parametrize(("description", "name"), ALERTS.values(), ids=ALERTS.keys())
async def test_an_alert_in_the_handshake(description: int, name: str, listener: socket.socket) -> None:
    error, _ = await spoken_to("client", alert(description), listener)
    assert named(error) == (name, "SecurityProtocol", 1000 + description)
    assert type(error.errorCode) is int
    assert error.detail.startswith("the peer refused TLS: ")
    assert "_ssl.c" not in error.detail


@pytest.mark.parametrize(("description", "name"), ALERTS.values(), ids=ALERTS.keys())
async def test_an_alert_later(description: int, name: str, role: str, listener: socket.socket) -> None:
    """This is TLS 1.2 only: in TLS 1.3 the alert user_canceled is no failure until EOF."""
    ours, theirs = client_context(version=TLS12), server_context(version=TLS12)
    if role == "server":
        ours, theirs = server_context(version=TLS12), client_context(version=TLS12)
    async with MozTCPSocket() as tcp:
        socket_, recorder, sock = await connected(tcp, role, listener)
        with sock:
            socket_.upgradeToSecure(ssl_context=ours, server_hostname="localhost" if role == "client" else None)
            peer = await recorded(sock, theirs, server_side=role == "client")
            sock.sendall(peer.record(alert(description)[5:], ALERT))
            await blocking(read_all, sock)
        error = (await recorder.first("error")).error
        await recorder.first("close")
    assert named(error) == (name, "SecurityProtocol", 1000 + description)
    assert error.detail.startswith("the peer refused TLS: ")


async def test_an_alert_that_nobody_knows(listener: socket.socket) -> None:
    error, _ = await spoken_to("client", alert(222), listener)
    assert named(error) == ("SecurityError", "SecurityProtocol", 0)
    assert "_ssl.c" not in error.detail


async def test_a_peer_that_ends_tls_in_the_handshake(listener: socket.socket) -> None:
    """The peer sends close_notify: it refuses nothing, but the handshake cannot continue."""
    error, _ = await spoken_to("client", alert(0, level=1), listener)
    assert (error.name, error.message) == ("NetworkInterruptError", "Network")
    assert "_ssl.c" not in error.detail


async def test_a_peer_that_ends_in_the_handshake(role: str, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        if role == "client":
            context = client_context()
            recorder = EventRecorder(
                tcp.open("127.0.0.1", port_of(listener), useSecureTransport=True, ssl_context=context)
            )
            peer = await accept(listener)
        else:
            socket_, recorder, peer = await connected(tcp, role, listener)
            socket_.upgradeToSecure(ssl_context=server_context())
        with peer:
            peer.shutdown(socket.SHUT_WR)
            await recorder.first("close")
    error = recorder.events[0].error
    assert named(error) == ("NetworkInterruptError", "Network", 294)
    assert isinstance(error.__cause__, ssl.SSLEOFError)
    assert recorder.types == ["error", "close"]


async def test_a_client_that_ends_is_logged_without_a_connect(caplog: pytest.LogCaptureFixture) -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1", useSecureTransport=True, ssl_context=server_context())
        accepting = Accepting(server)
        with await dial(server.localPort) as peer:
            peer.shutdown(socket.SHUT_WR)
            assert await blocking(read_all, peer) == b""
        server.close()
    assert accepting.sockets == []
    (record,) = caplog.records
    assert "NetworkInterruptError: the peer ended the connection without close_notify" in record.getMessage()


# After the handshake


async def test_what_is_spoilt_on_its_way_to_us_is_refused(
    role: str, version: ssl.TLSVersion, listener: socket.socket
) -> None:
    async with MozTCPSocket() as tcp:
        socket_, recorder, peer = await securely_connected(tcp, role, listener, version)
        with peer:
            socket.socket.send(peer, b"\x17\x03\x03\x00\x40" + bytes(64))
            with pytest.raises(ssl.SSLError, match="ALERT_BAD_RECORD_MAC"):
                await blocking(read_all, peer)
        await recorder.first("close")
        with pytest.raises(
            TCPSocketError, match=r"TLS failed: (decryption failed or bad record mac|record layer failure)"
        ):
            await socket_.closed()
    code = recorder.of("error")[-1].error.errorCode
    assert named(recorder.of("error")[-1].error) == ("SecurityError", "SecurityProtocol", code)
    assert code in (281, RECORD_LAYER_FAILURE)
    assert recorder.types[-2:] == ["error", "close"]
    assert recorder.data == b""


async def test_what_is_spoilt_on_its_way_to_the_peer_is_refused(
    role: str, version: ssl.TLSVersion, listener: socket.socket
) -> None:
    """The peer's earlier data is delivered, and then its alert is an error."""
    context = server_context(version=version) if role == "client" else client_context(version=version)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    name = None if role == "client" else "localhost"
    theirs = context.wrap_bio(incoming, outgoing, server_side=role == "client", server_hostname=name)

    def spoil() -> None:
        peer.settimeout(PEER_TIMEOUT)
        theirs.write(b"before")
        data = peer.recv(65536)
        incoming.write(data[:-1] + bytes((data[-1] ^ 1,)))
        with pytest.raises(ssl.SSLError, match=r"BAD_RECORD_MAC|RECORD_LAYER_FAILURE"):
            theirs.read(65536)
        peer.sendall(outgoing.read())
        peer.shutdown(socket.SHUT_WR)

    async with MozTCPSocket() as tcp:
        socket_, recorder, peer = await connected(tcp, role, listener)
        with peer:
            socket_.upgradeToSecure(ssl_context=client_context() if role == "client" else server_context())
            await blocking(do_handshake, theirs, incoming, outgoing, peer)
            await socket_.secured()
            socket_.send(b"x" * 100)
            await blocking(spoil)
            error = (await recorder.first("error")).error
        await recorder.first("close")
    assert named(error) == ("SecurityError", "SecurityProtocol", 1020)
    assert error.detail == "the peer refused TLS: sslv3 alert bad record mac"
    assert recorder.data == b"before"
    assert recorder.types[-2:] == ["error", "close"]
