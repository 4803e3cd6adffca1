"""The public exceptions, and the one place that gives an exception its error name.

The names are those of Gecko's ``TCPSocketErrorEvent``. A name says what happened. Its class, which MDN calls the
``message``, is ``"Network"`` for failures of the connection, ``"SecurityCertificate"`` if we did not accept the peer's
certificate, and ``"SecurityProtocol"`` for any other failure of TLS, also if the peer did not accept our certificate.
"""

from __future__ import annotations

import errno
import re
import socket
import ssl
import sys
from collections.abc import Iterator

if sys.version_info < (3, 11):  # AnyIO depends on the backport
    from exceptiongroup import BaseExceptionGroup

__all__ = ("ConnectionLostError", "InvalidStateError", "TCPSocketError", "explain", "tells_more")

_INTERRUPTED = frozenset(
    getattr(errno, name)
    for name in ("ECONNRESET", "ECONNABORTED", "EPIPE", "ESHUTDOWN", "ENETRESET", "ENOTCONN")
    if hasattr(errno, name)
)

# When several addresses fail, the failure that says most about the peer gives the name: an answer before a timeout, and
# a timeout before an error whose reason may lie on this machine, such as a missing IPv6 route.
_TELLING = (
    "ConnectionRefusedError",
    "NetworkInterruptError",
    "NetworkTimeoutError",
    "NetworkError",
    "DomainNotFoundError",
)

# Errors in verifying a certificate, by OpenSSL's number (openssl/x509_vfy.h).
_CERTIFICATE_NAMES = {
    **dict.fromkeys((9, 10), "SecurityExpiredCertificateError"),  # not yet valid; expired
    23: "SecurityRevokedCertificateError",
    # The issuer is unknown, the certificate is self-signed, or an issuer in the chain may not issue it.
    **dict.fromkeys(
        (2, 18, 19, 20, 21, 22, 24, 25, 27, 28, 29, 30, 31, 32, 79), "SecurityUntrustedCertificateIssuerError"
    ),
    26: "SecurityInadequateKeyUsageError",  # not for servers, or not for clients
    # Keys and signatures that are too weak for the context's security level.
    **dict.fromkeys((66, 67, 68, 76), "SecurityCertificateSignatureAlgorithmDisabledError"),
    **dict.fromkeys((62, 63, 64), "SecurityCertificateDomainMismatchError"),  # host name, e-mail address, IP address
    # It cannot be read, its signature is wrong, or it does not conform to RFC 5280.
    **dict.fromkeys((4, 6, 7, 13, 14, 77, 78, *range(80, 95)), "SecurityBadCertificateError"),
}

# Other errors of OpenSSL (openssl/sslerr.h), by the mnemonic of the reason: its number, and the name. A number above
# 1000 is an alert that the peer has sent (RFC 8446, section 6): if it is about a certificate, it is about ours.
_REASONS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": (199, "SecurityNoCertificateError"),
    "SSLV3_ALERT_NO_CERTIFICATE": (1041, "SecurityNoCertificateError"),
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": (1116, "SecurityNoCertificateError"),
    "SSLV3_ALERT_BAD_CERTIFICATE": (1042, "SecurityBadCertificateError"),
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": (1043, "SecurityUnsupportedCertificateTypeError"),
    "SSLV3_ALERT_CERTIFICATE_REVOKED": (1044, "SecurityRevokedCertificateError"),
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": (1045, "SecurityExpiredCertificateError"),
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": (1046, "SecurityBadCertificateError"),
    "TLSV1_ALERT_UNKNOWN_CA": (1048, "SecurityUntrustedCertificateIssuerError"),
    "TLSV1_CERTIFICATE_UNOBTAINABLE": (1111, "SecurityNoCertificateError"),
    "TLSV1_BAD_CERTIFICATE_STATUS_RESPONSE": (1113, "SecurityBadCertificateError"),
    "TLSV1_BAD_CERTIFICATE_HASH_VALUE": (1114, "SecurityBadCertificateError"),
    "NO_PROTOCOLS_AVAILABLE": (191, "SecurityUnsupportedTLSVersionError"),
    "UNSUPPORTED_PROTOCOL": (258, "SecurityUnsupportedTLSVersionError"),
    "WRONG_SSL_VERSION": (266, "SecurityUnsupportedTLSVersionError"),
    "VERSION_TOO_LOW": (396, "SecurityUnsupportedTLSVersionError"),
    "TLSV1_ALERT_PROTOCOL_VERSION": (1070, "SecurityUnsupportedTLSVersionError"),
    "TLSV1_ALERT_INAPPROPRIATE_FALLBACK": (1086, "SecurityUnsupportedTLSVersionError"),
    "UNEXPECTED_EOF_WHILE_READING": (294, "NetworkInterruptError"),
}

# Errors without a name of their own: all other alerts, and everything else that a peer's records can cause.
_OTHERS = """
    APP_DATA_IN_HANDSHAKE:100 NO_SUITABLE_KEY_SHARE:101 BAD_DH_VALUE:102 BAD_CHANGE_CIPHER_SPEC:103
    INCONSISTENT_EXTMS:104 BAD_HELLO_REQUEST:105 BAD_DECOMPRESSION:107 BAD_KEY_SHARE:108 BAD_EXTENSION:110
    BAD_DIGEST_LENGTH:111 MISSING_SIGALGS_EXTENSION:112 BAD_PSK_IDENTITY:114 BAD_PACKET_LENGTH:115
    BAD_PROTOCOL_VERSION_NUMBER:116 NO_SUITABLE_SIGNATURE_ALGORITHM:118 BAD_RSA_ENCRYPT:119
    INVALID_KEY_UPDATE_TYPE:120 BAD_KEY_UPDATE:122 BAD_SIGNATURE:123 BLOCK_CIPHER_PAD_IS_WRONG:129
    CA_DN_LENGTH_MISMATCH:131 TOO_MANY_KEY_UPDATES:132 CCS_RECEIVED_EARLY:133 CERT_LENGTH_MISMATCH:135
    CIPHER_CODE_WRONG_LENGTH:137 COMPRESSED_LENGTH_TOO_LONG:140 DATA_BETWEEN_CCS_AND_FINISHED:145
    DATA_LENGTH_TOO_LONG:146 DECRYPTION_FAILED:147 DIGEST_CHECK_FAILED:149 ENCRYPTED_LENGTH_TOO_LONG:150
    ERROR_IN_RECEIVED_CIPHER_LIST:151 EXCESSIVE_MESSAGE_SIZE:152 EXTRA_DATA_IN_MESSAGE:153
    GOT_A_FIN_BEFORE_A_CCS:154 HTTPS_PROXY_REQUEST:155 HTTP_REQUEST:156 TLS_INVALID_ECPOINTFORMAT_LIST:157
    LENGTH_MISMATCH:159 LENGTH_TOO_SHORT:160 ILLEGAL_POINT_COMPRESSION:162 EXT_LENGTH_MISMATCH:163
    TOO_MUCH_EARLY_DATA:164 VERSION_TOO_HIGH:166 NO_CERTIFICATES_RETURNED:176 UNEXPECTED_END_OF_EARLY_DATA:178
    NOT_ON_RECORD_BOUNDARY:182 NO_CIPHERS_SPECIFIED:183 NO_CIPHER_MATCH:185 BAD_CIPHER:186
    NO_COMPRESSION_SPECIFIED:187 NO_SHARED_CIPHER:193 OLD_SESSION_CIPHER_NOT_RETURNED:197 PACKET_LENGTH_TOO_LONG:198
    INVALID_ALERT:205 MISSING_SUPPORTED_GROUPS_EXTENSION:209 RECORD_LENGTH_MISMATCH:213 NO_CHANGE_FOLLOWING_HRR:214
    REQUIRED_CIPHER_MISSING:215 UNSOLICITED_EXTENSION:217 CIPHERSUITE_DIGEST_HAS_CHANGED:218 BAD_PSK:219
    SIGNATURE_FOR_NON_SIGNING_CERTIFICATE:220 CLIENTHELLO_TLSEXT:226 PARSE_TLSEXT:227
    SSL3_EXT_INVALID_MAX_FRAGMENT_LENGTH:232 BAD_EARLY_DATA:233 NO_APPLICATION_PROTOCOL:235 BAD_PACKET:240
    UNEXPECTED_MESSAGE:244 UNEXPECTED_RECORD:245 UNKNOWN_ALERT_TYPE:246 UNKNOWN_CERTIFICATE_TYPE:247
    UNKNOWN_CIPHER_RETURNED:248 UNKNOWN_KEY_EXCHANGE_TYPE:250 UNKNOWN_PROTOCOL:252 BINDER_DOES_NOT_VERIFY:253
    UNKNOWN_SSL_VERSION:254 UNSUPPORTED_COMPRESSION_ALGORITHM:257 INVALID_CCS_MESSAGE:260 WRONG_CIPHER_RETURNED:261
    UNEXPECTED_CCS_MESSAGE:262 BAD_HRR_VERSION:263 WRONG_SIGNATURE_LENGTH:264 WRONG_SIGNATURE_SIZE:265
    WRONG_VERSION_NUMBER:267 BAD_LENGTH:271 SERVERHELLO_TLSEXT:275 POST_HANDSHAKE_AUTH_ENCODING_ERR:278
    EXTENSION_NOT_RECEIVED:279 DECRYPTION_FAILED_OR_BAD_RECORD_MAC:281 MISSING_PARAMETERS:290
    APPLICATION_DATA_AFTER_CLOSE_NOTIFY:291 BAD_LEGACY_VERSION:292 MIXED_HANDSHAKE_AND_NON_HANDSHAKE_DATA:293
    NO_SUITABLE_GROUPS:295 RECORD_TOO_SMALL:298 SSL3_SESSION_ID_TOO_LONG:300 BAD_ECPOINT:306
    MISSING_PSK_KEX_MODES_EXTENSION:310 RECORD_LAYER_FAILURE:313 UNABLE_TO_FIND_ECDH_PARAMETERS:314
    UNSUPPORTED_ELLIPTIC_CURVE:315 SSL3_EXT_INVALID_SERVERNAME:319 SSL3_EXT_INVALID_SERVERNAME_TYPE:320
    INVALID_STATUS_RESPONSE:328 BAD_HANDSHAKE_LENGTH:332 LEGACY_SIGALG_DISALLOWED_OR_UNSUPPORTED:333
    RENEGOTIATE_EXT_TOO_LONG:335 RENEGOTIATION_ENCODING_ERR:336 RENEGOTIATION_MISMATCH:337
    UNSAFE_LEGACY_RENEGOTIATION_DISABLED:338 NO_RENEGOTIATION:339 INVALID_COMPRESSION_ALGORITHM:341
    SCSV_RECEIVED_WHEN_RENEGOTIATING:345 SIGNATURE_ALGORITHMS_ERROR:360 WRONG_SIGNATURE_TYPE:370
    INAPPROPRIATE_FALLBACK:373 NO_SHARED_SIGNATURE_ALGORITHMS:376 WRONG_CURVE:378 WRONG_CERTIFICATE_TYPE:383
    DH_KEY_TOO_SMALL:394 FRAGMENTED_CLIENT_HELLO:401 LENGTH_TOO_LONG:404 SSL_SESSION_ID_TOO_LONG:408
    TOO_MANY_WARN_ALERTS:409 NO_SHARED_GROUPS:410 BAD_RECORD_TYPE:443 INVALID_SESSION_ID:999
    SSLV3_ALERT_UNEXPECTED_MESSAGE:1010 SSLV3_ALERT_BAD_RECORD_MAC:1020 TLSV1_ALERT_DECRYPTION_FAILED:1021
    TLSV1_ALERT_RECORD_OVERFLOW:1022 SSLV3_ALERT_DECOMPRESSION_FAILURE:1030 SSLV3_ALERT_HANDSHAKE_FAILURE:1040
    SSLV3_ALERT_ILLEGAL_PARAMETER:1047 TLSV1_ALERT_ACCESS_DENIED:1049 TLSV1_ALERT_DECODE_ERROR:1050
    TLSV1_ALERT_DECRYPT_ERROR:1051 TLSV1_ALERT_EXPORT_RESTRICTION:1060 TLSV1_ALERT_INSUFFICIENT_SECURITY:1071
    TLSV1_ALERT_INTERNAL_ERROR:1080 TLSV1_ALERT_USER_CANCELLED:1090 TLSV1_ALERT_NO_RENEGOTIATION:1100
    TLSV13_ALERT_MISSING_EXTENSION:1109 TLSV1_UNSUPPORTED_EXTENSION:1110 TLSV1_UNRECOGNIZED_NAME:1112
    TLSV1_ALERT_UNKNOWN_PSK_IDENTITY:1115 TLSV1_ALERT_NO_APPLICATION_PROTOCOL:1120
"""
_REASONS |= {reason: (int(number), "SecurityError") for reason, number in re.findall(r"(\w+):(\d+)", _OTHERS)}

_MAYBE_PLAINTEXT = frozenset({"HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "WRONG_VERSION_NUMBER"})


class InvalidStateError(RuntimeError):
    """A method was called in a ready state that does not allow it (W3C: ``InvalidStateError``)."""


class ConnectionLostError(InvalidStateError):
    """A method was called that needs the connection, but the connection was lost, or the peer has ended it; the program
    has not closed it. The ``__cause__`` is the :class:`TCPSocketError`, if the connection was lost.
    """


class TCPSocketError(OSError):
    """A connection failed or was lost. It has the attributes of MDN's ``error`` event, and more.

    :ivar name: what happened, such as ``"ConnectionRefusedError"`` (Gecko's names)
    :ivar message: the class of the error: ``"Network"``, ``"SecurityProtocol"`` or ``"SecurityCertificate"``
    :ivar errorCode: for ``"Network"`` the ``errno``, or the resolver's code if the name was not found; for
        ``"SecurityCertificate"`` the number of OpenSSL's verification error, for ``"SecurityProtocol"`` that of
        OpenSSL's reason; 0 if there is none
    :ivar detail: the failure in words
    :ivar peer: the peer's host and port, as ``"localhost:25"``; empty if there is none
    :ivar peer_certificates: for ``"SecurityCertificate"`` the certificates that the peer has sent, each in DER: first
        its own, then those of its issuers. Empty for other errors, and if a server has refused a client's certificate,
        as OpenSSL then keeps none

    Its ``__cause__`` is the original exception; if several addresses were tried, the group of all exceptions.

    The names, by their class:

    ``"Network"``
        ConnectionRefusedError, DomainNotFoundError, NetworkTimeoutError, NetworkInterruptError (it was cut off),
        NetworkError
    ``"SecurityCertificate"`` (the peer's is not accepted)
        SecurityExpiredCertificateError, SecurityRevokedCertificateError, SecurityUntrustedCertificateIssuerError,
        SecurityInadequateKeyUsageError, SecurityCertificateSignatureAlgorithmDisabledError,
        SecurityCertificateDomainMismatchError, SecurityBadCertificateError, SecurityError
    ``"SecurityProtocol"`` (anything else that TLS fails for, as when the peer does not accept our certificate)
        SecurityNoCertificateError, SecurityUnsupportedTLSVersionError, SecurityUnsupportedCertificateTypeError, and
        those above
    """

    def __init__(
        self,
        name: str,
        message: str,
        errorCode: int,
        detail: str,
        peer: str = "",
        peer_certificates: tuple[bytes, ...] = (),
    ) -> None:
        super().__init__(errorCode, detail)
        self.name = name
        self.message = message
        self.errorCode = errorCode
        self.detail = detail
        self.peer = peer
        self.peer_certificates = peer_certificates

    def __reduce__(self) -> tuple[type[TCPSocketError], tuple[str, str, int, str, str, tuple[bytes, ...]]]:
        return type(self), (
            self.name,
            self.message,
            self.errorCode,
            self.detail,
            self.peer,
            self.peer_certificates,
        )

    def __str__(self) -> str:
        text = f"{self.name}: {self.detail}" + (f" ({self.peer})" if self.peer else "")
        return text.encode("ascii", "backslashreplace").decode("ascii")  # any terminal, and any log, can show it

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"

    def again(self) -> TCPSocketError:
        """A copy, to be raised: one exception raised in several tasks would collect the tracebacks of all of them."""
        class_, arguments = self.__reduce__()
        copy = class_(*arguments)
        copy.__cause__ = self.__cause__
        return copy


def explain(exc: BaseException, peer: str = "", certificates: tuple[bytes, ...] = ()) -> TCPSocketError:
    """The error that is reported to the program, with ``exc`` as its cause.

    :param exc: an :exc:`OSError`, a :exc:`UnicodeError` (a host name that IDNA forbids), or a group of them
    :param peer: the peer's host and port
    :param certificates: the certificates that the peer has sent, in case the error is about them
    """
    telling = min(_leaves(exc), key=_rank)
    name, code = _name_and_code(telling)
    shown = certificates if isinstance(telling, ssl.SSLCertVerificationError) else ()
    error = TCPSocketError(name, _class(name, telling), code, _detail(telling), peer, shown)
    error.__cause__ = exc
    _let_go(exc)
    return error


def _let_go(exc: BaseException | None) -> None:
    """Remove the tracebacks of an exception, and of its causes and its group. Their frames refer to the connection, and
    the connection keeps the failure: such a circle would wait for the garbage collector.
    """
    if exc is not None and exc.__traceback__ is not None:
        exc.__traceback__ = None
        for behind in (exc.__cause__, exc.__context__, *getattr(exc, "exceptions", ())):
            _let_go(behind)


def tells_more(exc: BaseException, error: TCPSocketError) -> bool:
    """Whether an exception says more about why a connection was lost than the error found before. So does a TLS alert
    that the peer has sent before its reset, as it is read after the reset was noticed.

    :param exc: the exception
    :param error: the error that would be reported otherwise
    """
    return error.__cause__ is not None and min(map(_rank, _leaves(exc))) < min(map(_rank, _leaves(error.__cause__)))


def _leaves(exc: BaseException) -> Iterator[BaseException]:
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            yield from _leaves(inner)
    else:
        yield exc


def _rank(exc: BaseException) -> int:
    name, _ = _name_and_code(exc)
    return _TELLING.index(name) if name in _TELLING else -1


def _class(name: str, exc: BaseException) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return "SecurityCertificate"
    return "SecurityProtocol" if name.startswith("Security") else "Network"


def _name_and_code(exc: BaseException) -> tuple[str, int]:
    if isinstance(exc, ssl.SSLCertVerificationError):
        code = getattr(exc, "verify_code", 0)  # set by ssl; missing if the program has made the exception
        return _CERTIFICATE_NAMES.get(code, "SecurityError"), code
    if isinstance(exc, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return _REASONS["UNEXPECTED_EOF_WHILE_READING"][::-1]
    if isinstance(exc, ssl.SSLError):
        code, name = _REASONS.get(_reason(exc)) or (_number(exc), "SecurityError")
        return name, code
    if isinstance(exc, (socket.gaierror, UnicodeError)):
        return "DomainNotFoundError", _errno(exc) or socket.EAI_NONAME
    return _network_name(exc), _errno(exc)


def _reason(exc: ssl.SSLError) -> str:
    """The mnemonic of OpenSSL's reason; empty if the exception is Python's own.

    For reasons newer than this Python's table it is made from OpenSSL's message, which differs only in case and spaces.
    """
    if reason := getattr(exc, "reason", None):
        return str(reason)
    words = re.fullmatch(r"\[.*\] (.*) \(_ssl\.c:\d+\)", exc.strerror or "")
    return words[1].upper().replace(" ", "_") if words else ""


def _number(exc: ssl.SSLError) -> int:
    """The number of OpenSSL's reason, if the exception gives a number in place of words; else 0. ``errno`` does not
    help: it is the same for all reasons.
    """
    number = re.search(r"\breason\((\d+)\)", f"{getattr(exc, 'reason', None)} {exc.strerror}", re.IGNORECASE)
    return int(number[1]) if number else 0


def _network_name(exc: BaseException) -> str:
    if isinstance(exc, ConnectionRefusedError):
        return "ConnectionRefusedError"
    if isinstance(exc, TimeoutError):
        return "NetworkTimeoutError"
    if isinstance(exc, OSError) and exc.errno in _INTERRUPTED:
        return "NetworkInterruptError"
    return "NetworkError"


def _errno(exc: BaseException) -> int:
    if isinstance(exc, OSError) and isinstance(exc.errno, int):  # some libraries put a message there
        return exc.errno
    return errno.ETIMEDOUT if isinstance(exc, TimeoutError) else 0


def _detail(exc: BaseException) -> str:
    if isinstance(exc, ssl.SSLError):
        return _security_detail(exc)
    strerror = exc.strerror if isinstance(exc, OSError) else None
    return str(strerror or exc) or type(exc).__name__


def _security_detail(exc: ssl.SSLError) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"the peer's certificate is not accepted: {getattr(exc, 'verify_message', exc)}"
    if isinstance(exc, ssl.SSLZeroReturnError):
        return "the peer ended TLS in the handshake"
    if isinstance(exc, ssl.SSLEOFError):
        return "the peer ended the connection without close_notify"
    reason = _reason(exc)
    words = reason.lower().replace("_", " ") or exc.strerror or type(exc).__name__
    if reason in _MAYBE_PLAINTEXT:
        return f"TLS failed: {words} (does the peer speak TLS?)"
    if _REASONS.get(reason, (0,))[0] > 1000 or "_ALERT_" in reason:
        return f"the peer refused TLS: {words}"
    return f"TLS failed: {words}"
