"""Every way in which TLS fails, provoked by a blocking peer, and what the program is told of it."""

from __future__ import annotations

import datetime
import functools
import ipaddress
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
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mozsocket import MozTCPSocket, TCPSocketError
from mozsocket._errors import _CERTIFICATE_NAMES, _REASONS, explain

from .certificates import AUTHORITY, certificate, client_context, server_context
from .peers import Accepting, Recorder, accept, blocking, connected, dial, port_of, read_all, secure

pytestmark = pytest.mark.anyio

NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)
NAMES = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])

Issuer = tuple[x509.Name, ec.EllipticCurvePrivateKey]


@functools.cache
def authority() -> Issuer:
    """The authority that the contexts trust, to issue with what trustme does not offer."""
    key = serialization.load_pem_private_key(AUTHORITY.private_key_pem.bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return x509.load_pem_x509_certificate(AUTHORITY.cert_pem.bytes()).subject, key


def issue(
    *extensions: x509.ExtensionType, since: datetime.datetime = NOW - DAY, until: datetime.datetime = NOW + DAY
) -> tuple[bytes, x509.Certificate]:
    """A key and a certificate for localhost, in PEM, and the certificate; signed by the authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    issuer, signer = authority()
    return _signed(key, issuer, signer, *extensions, since=since, until=until)


def self_signed() -> tuple[bytes, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    return _signed(key, _name("itself"), key, since=NOW - DAY, until=NOW + DAY, subject=_name("itself"))


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _signed(
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    signer: ec.EllipticCurvePrivateKey,
    *extensions: x509.ExtensionType,
    since: datetime.datetime,
    until: datetime.datetime,
    subject: x509.Name | None = None,
) -> tuple[bytes, x509.Certificate]:
    builder = x509.CertificateBuilder(
        issuer, subject or _name("localhost"), key.public_key(), x509.random_serial_number(), since, until
    )
    for extension in (NAMES, *extensions):
        builder = builder.add_extension(extension, critical=False)
    leaf = builder.sign(signer, hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + leaf.public_bytes(serialization.Encoding.PEM), leaf


def context_with(pem: bytes, path: Path, context: ssl.SSLContext) -> ssl.SSLContext:
    file = path / "leaf.pem"
    file.write_bytes(pem)
    context.load_cert_chain(file)
    return context


def weakly_signed(path: Path) -> bytes:
    """Signed with SHA-1, which only the command line still does."""
    (path / "ca.key").write_bytes(AUTHORITY.private_key_pem.bytes())
    (path / "ca.pem").write_bytes(AUTHORITY.cert_pem.bytes())
    (path / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    request = (
        "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -keyout key -out csr"
    )
    sign = "openssl x509 -req -sha1 -in csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out leaf"
    for command in (request, sign):
        subprocess.run(command.split(), cwd=path, check=True, capture_output=True)
    return (path / "key").read_bytes() + (path / "leaf").read_bytes()


def revoking(leaf: x509.Certificate, path: Path) -> Callable[[ssl.SSLContext], None]:
    """Give a context the list on which a certificate is revoked."""
    issuer, key = authority()
    revoked = x509.RevokedCertificateBuilder(leaf.serial_number, NOW - DAY).build()
    crl = x509.CertificateRevocationListBuilder(issuer, NOW - DAY, NOW + DAY, [], [revoked]).sign(key, hashes.SHA256())
    (path / "crl.pem").write_bytes(crl.public_bytes(serialization.Encoding.PEM))

    def apply(context: ssl.SSLContext) -> None:
        context.load_verify_locations(path / "crl.pem")
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF

    return apply


async def refused(
    context: ssl.SSLContext, theirs: ssl.SSLContext, listener: socket.socket, **options: Any
) -> tuple[Any, Exception]:
    """What a client is told whose handshake fails, and what the peer, which has to be told why."""
    async with MozTCPSocket() as tcp:
        tcp_socket = tcp.open("127.0.0.1", port_of(listener), useSecureTransport=True, ssl_context=context, **options)
        recorder = Recorder(tcp_socket)
        peer = await accept(listener)
        with pytest.raises(ssl.SSLError) as told, peer, await secure(peer, theirs, server_side=True) as secured:
            await blocking(read_all, secured)
        with pytest.raises(TCPSocketError) as raised:
            await tcp_socket.opened()
    assert recorder.types == ["error", "close"]
    event = recorder.events[0]
    assert raised.value.name == event.name
    assert isinstance(event.error.__cause__, ssl.SSLError)
    return event, told.value


CERTIFICATES = {
    "expired": (lambda: issue(until=NOW - DAY / 2), "SecurityExpiredCertificateError", 10, "EXPIRED"),
    "not yet valid": (lambda: issue(since=NOW + DAY / 2), "SecurityExpiredCertificateError", 9, "BAD_CERTIFICATE"),
    "self-signed": (self_signed, "SecurityUntrustedCertificateIssuerError", 18, "UNKNOWN_CA"),
    "for clients only": (
        lambda: issue(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])),
        "SecurityInadequateKeyUsageError",
        26,
        "UNSUPPORTED_CERTIFICATE",
    ),
}


@pytest.mark.parametrize(("make", "name", "code", "alert"), CERTIFICATES.values(), ids=CERTIFICATES.keys())
async def test_a_certificate_that_is_not_accepted(
    make: Callable[[], tuple[bytes, x509.Certificate]],
    name: str,
    code: int,
    alert: str,
    version: ssl.TLSVersion,
    listener: socket.socket,
    tmp_path: Path,
) -> None:
    pem, leaf = make()
    theirs = context_with(pem, tmp_path, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    event, told = await refused(client_context(version=version), theirs, listener)
    assert (event.name, event.message, event.errorCode) == (name, "SecurityCertificate", code)
    assert event.error.peer_certificates[0] == leaf.public_bytes(serialization.Encoding.DER)
    assert alert in str(told)


async def test_an_unknown_issuer(version: ssl.TLSVersion, listener: socket.socket) -> None:
    leaf = trustme.CA().issue_cert("localhost", "127.0.0.1")
    event, told = await refused(client_context(version=version), server_context(leaf), listener)
    assert (event.name, event.errorCode) == ("SecurityUntrustedCertificateIssuerError", 20)
    assert "UNKNOWN_CA" in str(told)


@pytest.mark.parametrize(("server_hostname", "code"), [("localhost", 62), ("127.0.0.1", 64)])
async def test_a_wrong_host(server_hostname: str, code: int, listener: socket.socket) -> None:
    theirs = server_context(certificate("other.example", "127.0.0.2"))
    event, _ = await refused(client_context(), theirs, listener, server_hostname=server_hostname)
    expected = ("SecurityCertificateDomainMismatchError", "SecurityCertificate", code)
    assert (event.name, event.message, event.errorCode) == expected


async def test_a_weak_signature(listener: socket.socket, tmp_path: Path) -> None:
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.set_ciphers("DEFAULT@SECLEVEL=0")
    event, _ = await refused(client_context(), context_with(weakly_signed(tmp_path), tmp_path, theirs), listener)
    name = "SecurityCertificateSignatureAlgorithmDisabledError"
    assert (event.name, event.message, event.errorCode) == (name, "SecurityCertificate", 68)


async def test_a_revoked_certificate(listener: socket.socket, tmp_path: Path) -> None:
    pem, leaf = issue()
    context = client_context()
    revoking(leaf, tmp_path)(context)
    theirs = context_with(pem, tmp_path, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    event, told = await refused(context, theirs, listener)
    name = "SecurityRevokedCertificateError"
    assert (event.name, event.message, event.errorCode) == (name, "SecurityCertificate", 23)
    assert "REVOKED" in str(told)


async def test_no_common_version(role: str, listener: socket.socket, caplog: pytest.LogCaptureFixture) -> None:
    old, new = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
    if role == "client":
        event, _ = await refused(client_context(version=old), server_context(version=new), listener)
        named = (event.name, event.message, event.errorCode)
        assert named == ("SecurityUnsupportedTLSVersionError", "SecurityProtocol", 1070)
    else:
        message = await log_of_a_failed_handshake(server_context(version=new), client_context(version=old), caplog)
        assert "SecurityUnsupportedTLSVersionError" in message


async def log_of_a_failed_handshake(
    context: ssl.SSLContext, theirs: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> str:
    """What a server says of a client that fails, and that it serves others as before."""
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1", useSecureTransport=True, ssl_context=context)
        accepting = Accepting(server)
        peer = await dial(server.localPort)
        with pytest.raises(ssl.SSLError), peer, await secure(peer, theirs) as secured:
            await blocking(read_all, secured)
        good = client_context(certificate("good"))
        with await secure(await dial(server.localPort), good) as honest:
            socket_, _ = await accepting.first()
            socket_.close()
            assert await blocking(read_all, honest) == b""
        server.close()
    assert len(accepting.sockets) == 1
    (record,) = caplog.records
    return record.getMessage()


async def test_a_client_without_a_certificate(
    role: str, version: ssl.TLSVersion, listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    """At the server, and at the client, which under TLS 1.3 learns of it when it is open."""
    demanding = server_context(version=version, ask_for_certificate=True)
    if role == "server":
        message = await log_of_a_failed_handshake(demanding, client_context(), caplog)
        assert "SecurityNoCertificateError: TLS failed: peer did not return a certificate" in message
        return
    async with MozTCPSocket() as tcp:
        tcp_socket = tcp.open("127.0.0.1", port_of(listener), useSecureTransport=True, ssl_context=client_context())
        recorder = Recorder(tcp_socket)
        peer = await accept(listener)
        with pytest.raises(ssl.SSLError), peer:
            await secure(peer, demanding, server_side=True)
        error = await recorder.until("error")
    if version is ssl.TLSVersion.TLSv1_3:
        assert (error.name, error.message, error.errorCode) == ("SecurityNoCertificateError", "SecurityProtocol", 1116)
        assert recorder.types == ["open", "error", "close"]
    else:
        assert (error.name, error.message, error.errorCode) == ("SecurityError", "SecurityProtocol", 1040)
        assert recorder.types == ["error", "close"]


async def test_a_client_whose_certificate_is_refused(
    version: ssl.TLSVersion, listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = trustme.CA().issue_cert("stranger")
    demanding = server_context(version=version, ask_for_certificate=True)
    message = await log_of_a_failed_handshake(demanding, client_context(stranger), caplog)
    assert "SecurityUntrustedCertificateIssuerError: the peer's certificate is not accepted" in message
    async with MozTCPSocket() as tcp:
        context = client_context(stranger)
        recorder = Recorder(tcp.open("127.0.0.1", port_of(listener), useSecureTransport=True, ssl_context=context))
        peer = await accept(listener)
        with pytest.raises(ssl.SSLError), peer:
            await secure(peer, demanding, server_side=True)
        error = await recorder.until("error")
    named = (error.name, error.message, error.errorCode)
    assert named == ("SecurityUntrustedCertificateIssuerError", "SecurityProtocol", 1048)
    assert error.error.peer_certificates == ()


async def test_a_servers_view_of_a_refused_certificate(version: ssl.TLSVersion, listener: socket.socket) -> None:
    stranger = trustme.CA().issue_cert("stranger")
    demanding = server_context(version=version, ask_for_certificate=True)
    async with MozTCPSocket() as tcp:
        socket_, recorder, peer = await connected(tcp, "server", listener, ssl_context=demanding)
        socket_.upgradeToSecure()
        with pytest.raises(ssl.SSLError), peer, await secure(peer, client_context(stranger)) as secured:
            await blocking(read_all, secured)
        error = await recorder.until("error")
    named = (error.name, error.message, error.errorCode)
    assert named == ("SecurityUntrustedCertificateIssuerError", "SecurityCertificate", 20)


@pytest.mark.parametrize("greeting", [b"220 mail.example ESMTP\r\n", b"GET / HTTP/1.0\r\n\r\n", bytes(100)])
async def test_a_peer_that_speaks_plaintext(
    role: str, greeting: bytes, listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    async with MozTCPSocket() as tcp:
        if role == "client":
            tcp_socket = tcp.open("127.0.0.1", port_of(listener), useSecureTransport=True)
            recorder = Recorder(tcp_socket)
            with await accept(listener) as peer:
                peer.sendall(greeting)
                error = await recorder.until("error")
                await blocking(read_all, peer)
            assert (error.name, error.message) == ("SecurityError", "SecurityProtocol")
            assert error.errorCode > 1
        else:
            server = tcp.listen(0, host="127.0.0.1", useSecureTransport=True, ssl_context=server_context())
            server.onconnect = lambda event: pytest.fail("connect, though there was no handshake")
            with await dial(server.localPort) as peer:
                peer.sendall(greeting)
                await blocking(read_all, peer)
            server.close()
    if role == "server":
        (record,) = caplog.records
        assert "SecurityError: TLS failed: " in record.getMessage()


async def test_no_cipher_in_common(listener: socket.socket) -> None:
    version = ssl.TLSVersion.TLSv1_2
    ours, theirs = client_context(version=version), server_context(version=version)
    ours.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    theirs.set_ciphers("ECDHE-ECDSA-AES256-GCM-SHA384")
    event, _ = await refused(ours, theirs, listener)
    assert (event.name, event.message, event.errorCode) == ("SecurityError", "SecurityProtocol", 1040)


def test_the_reasons_are_those_of_openssl() -> None:
    import _ssl

    known = getattr(_ssl, "err_codes_to_names", None)
    if known is None:
        pytest.skip("this Python does not tell the numbers of OpenSSL's reasons")
    numbers = {name: number for (library, number), name in known.items() if library == 20}
    assert {name: number for name, (number, _) in _REASONS.items()} == {name: numbers[name] for name in _REASONS}


def test_an_unlisted_reason_is_a_security_error() -> None:
    exc = ssl.SSLError(1, "[SSL: NEVER_HEARD_OF] never heard of (_ssl.c:1)")
    error = explain(exc)
    assert (error.name, error.message, error.errorCode) == ("SecurityError", "SecurityProtocol", 1)
    assert set(_CERTIFICATE_NAMES.values()) == {
        "SecurityExpiredCertificateError",
        "SecurityRevokedCertificateError",
        "SecurityUntrustedCertificateIssuerError",
        "SecurityInadequateKeyUsageError",
        "SecurityCertificateSignatureAlgorithmDisabledError",
        "SecurityCertificateDomainMismatchError",
        "SecurityBadCertificateError",
    }
