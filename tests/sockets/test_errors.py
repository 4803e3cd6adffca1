"""The exceptions, and the error name to which each Python exception is mapped."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import socket
import ssl
import sys
import traceback
from itertools import permutations
from typing import Any

import anyio
import pytest

from mozsocket import InvalidStateError, TCPSocketError
from mozsocket._errors import _CERTIFICATE_NAMES, _REASONS, explain

from ..failures import SECURITY_NAMES

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup, ExceptionGroup


def os_error(code: int) -> OSError:
    """An error as the operating system's calls raise it: of the subclass that belongs to the code."""
    return OSError(code, os.strerror(code))


REFUSED = os_error(errno.ECONNREFUSED)
RESET = os_error(errno.ECONNRESET)
TIMED_OUT = os_error(errno.ETIMEDOUT)
UNREACHABLE = os_error(errno.ENETUNREACH)
NOT_FOUND = socket.gaierror(socket.EAI_NONAME, "Name or service not known")


# The exception classes


def test_where_they_belong_among_exceptions() -> None:
    assert issubclass(TCPSocketError, OSError)
    assert TCPSocketError.__mro__[1] is OSError
    assert issubclass(InvalidStateError, RuntimeError)
    assert not issubclass(InvalidStateError, OSError)
    assert str(InvalidStateError("send() on a closed socket")) == "send() on a closed socket"


def test_an_error_of_a_code_with_a_class_of_its_own_stays_a_tcp_socket_error() -> None:
    error = TCPSocketError("ConnectionRefusedError", "Network", errno.ECONNREFUSED, "Connection refused")
    assert type(error) is TCPSocketError


def test_an_error_carries_what_the_event_carries_and_what_an_os_error_does() -> None:
    error = TCPSocketError("NetworkInterruptError", "Network", errno.ECONNRESET, "it was reset")
    assert error.name == "NetworkInterruptError"
    assert error.message == "Network"
    assert error.errorCode == errno.ECONNRESET
    assert error.detail == "it was reset"
    assert error.errno == errno.ECONNRESET
    assert error.strerror == "it was reset"
    assert error.__cause__ is None


def test_str_and_repr() -> None:
    error = TCPSocketError("ConnectionRefusedError", "Network", 111, "Connection refused")
    assert str(error) == "ConnectionRefusedError: Connection refused"
    assert repr(error) == "<TCPSocketError ConnectionRefusedError: Connection refused>"
    assert traceback.format_exception_only(type(error), error) == [
        "mozsocket._errors.TCPSocketError: ConnectionRefusedError: Connection refused\n"
    ]


def test_the_peer_is_shown() -> None:
    error = explain(ConnectionRefusedError(111, "Connection refused"), "localhost:25")
    assert error.peer == "localhost:25"
    assert str(error) == "ConnectionRefusedError: Connection refused (localhost:25)"
    assert str(error.again()) == str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301


def fields(error: TCPSocketError) -> tuple[Any, ...]:
    return type(error), error.name, error.message, error.errorCode, error.detail, error.args, str(error)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling(protocol: int) -> None:
    error = explain(RESET)
    loaded = pickle.loads(pickle.dumps(error, protocol))  # noqa: S301
    assert fields(loaded) == fields(error)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copying(copied: Any) -> None:
    error = explain(RESET)
    other = copied(error)
    assert other is not error
    assert fields(other) == fields(error)


class OwnError(TCPSocketError):
    """A program's subclass of the error."""


def test_a_subclass_is_pickled_copied_and_repeated_as_itself() -> None:
    error = OwnError("NetworkError", "Network", 0, "odd")
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), error.again()):  # noqa: S301
        assert fields(other) == fields(error)


def test_again_is_a_fresh_copy_of_the_same_cause() -> None:
    error = explain(REFUSED)
    try:
        raise error
    except TCPSocketError:
        again = error.again()
    assert again is not error
    assert fields(again) == fields(error)
    assert again.__cause__ is REFUSED
    assert error.__traceback__ is not None
    assert again.__traceback__ is None


# Mapping of exceptions


@pytest.mark.parametrize(
    ("exc", "name", "code"),
    [
        (REFUSED, "ConnectionRefusedError", errno.ECONNREFUSED),
        (TIMED_OUT, "NetworkTimeoutError", errno.ETIMEDOUT),
        (TimeoutError(), "NetworkTimeoutError", errno.ETIMEDOUT),
        (TimeoutError("not within 3 seconds"), "NetworkTimeoutError", errno.ETIMEDOUT),
        (NOT_FOUND, "DomainNotFoundError", socket.EAI_NONAME),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "DomainNotFoundError", socket.EAI_AGAIN),
        (UnicodeError("label too long"), "DomainNotFoundError", socket.EAI_NONAME),
        (UnicodeEncodeError("idna", "x", 0, 1, "label too long"), "DomainNotFoundError", socket.EAI_NONAME),
        (RESET, "NetworkInterruptError", errno.ECONNRESET),
        (os_error(errno.EPIPE), "NetworkInterruptError", errno.EPIPE),
        (os_error(errno.ECONNABORTED), "NetworkInterruptError", errno.ECONNABORTED),
        (os_error(errno.ENETRESET), "NetworkInterruptError", errno.ENETRESET),
        (os_error(errno.ENOTCONN), "NetworkInterruptError", errno.ENOTCONN),
        (os_error(errno.ESHUTDOWN), "NetworkInterruptError", errno.ESHUTDOWN),
        (UNREACHABLE, "NetworkError", errno.ENETUNREACH),
        (os_error(errno.EHOSTUNREACH), "NetworkError", errno.EHOSTUNREACH),
        (os_error(errno.EADDRNOTAVAIL), "NetworkError", errno.EADDRNOTAVAIL),
        (PermissionError(errno.EACCES, "no"), "NetworkError", errno.EACCES),
        (OSError("without a code"), "NetworkError", 0),
        (OSError(), "NetworkError", 0),
    ],
    ids=repr,
)
def test_the_name_and_the_code_of_a_failure(exc: Exception, name: str, code: int) -> None:
    error = explain(exc)
    assert type(error) is TCPSocketError
    assert (error.name, error.message, error.errorCode) == (name, "Network", code)
    assert type(error.errorCode) is int
    assert error.__cause__ is exc


@pytest.mark.parametrize(
    ("exc", "detail"),
    [
        (OSError(errno.ECONNREFUSED, "Connection refused"), "Connection refused"),
        (NOT_FOUND, "Name or service not known"),
        (TimeoutError(errno.ETIMEDOUT, "not connected within 3 seconds"), "not connected within 3 seconds"),
        (OSError("in words only"), "in words only"),
        (UnicodeError("Label too long"), "Label too long"),
        (OSError(), "OSError"),
        (TimeoutError(), "TimeoutError"),
        (UnicodeError(), "UnicodeError"),
    ],
    ids=repr,
)
def test_the_failure_in_words(exc: Exception, detail: str) -> None:
    error = explain(exc)
    assert error.detail == detail
    assert str(error) == f"{error.name}: {detail}"


# From the most informative to the least.
TELLING = [REFUSED, RESET, TIMED_OUT, UNREACHABLE, NOT_FOUND]


@pytest.mark.parametrize("telling", range(len(TELLING)))
def test_the_most_telling_failure_of_a_group_is_named(telling: int) -> None:
    for failures in permutations(TELLING[telling:]):
        group = ExceptionGroup("none of them", failures)
        error = explain(group)
        alone = explain(TELLING[telling])
        assert fields(error) == fields(alone)
        assert error.__cause__ is group


def test_of_equally_telling_failures_the_first_is_named() -> None:
    group = ExceptionGroup("", [os_error(errno.EHOSTUNREACH), UNREACHABLE])
    assert explain(group).errorCode == errno.EHOSTUNREACH


def test_a_group_of_one() -> None:
    assert explain(ExceptionGroup("", [NOT_FOUND])).name == "DomainNotFoundError"


def test_groups_in_groups() -> None:
    deep = ExceptionGroup("", [UNREACHABLE, ExceptionGroup("", [NOT_FOUND, ExceptionGroup("", [REFUSED])])])
    group = BaseExceptionGroup("", [TIMED_OUT, deep])
    error = explain(group)
    assert error.name == "ConnectionRefusedError"
    assert error.errorCode == errno.ECONNREFUSED
    assert error.__cause__ is group


@pytest.mark.anyio
async def test_a_timeout_of_anyio_is_a_timeout() -> None:
    with pytest.raises(TimeoutError) as raised:
        with anyio.fail_after(0):
            await anyio.sleep_forever()
    assert explain(raised.value).name == "NetworkTimeoutError"


# Errors of TLS

SHOWN = (b"the peer's certificate", b"that of its issuer")


def tls_error(reason: str | None, words: str = "words") -> ssl.SSLError:
    """An error as :mod:`ssl` makes it of what OpenSSL reports."""
    label = "SSL" if reason is None else f"SSL: {reason}"
    exc = ssl.SSLError(1, f"[{label}] {words} (_ssl.c:1000)")
    exc.reason = reason  # type: ignore[assignment]  # it may be None, whatever typeshed says
    exc.library = "SSL"
    return exc


def certificate_error(code: int, words: str = "certificate has expired") -> ssl.SSLCertVerificationError:
    exc = ssl.SSLCertVerificationError(
        1, f"[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: {words} (_ssl.c:1000)"
    )
    exc.reason, exc.library = "CERTIFICATE_VERIFY_FAILED", "SSL"
    exc.verify_code, exc.verify_message = code, words
    return exc


@pytest.mark.parametrize(
    ("exc", "name", "message", "code", "detail"),
    [
        (
            certificate_error(10),
            "SecurityExpiredCertificateError",
            "SecurityCertificate",
            10,
            "the peer's certificate is not accepted: certificate has expired",
        ),
        (
            certificate_error(62, "Hostname mismatch, certificate is not valid for 'localhost'."),
            "SecurityCertificateDomainMismatchError",
            "SecurityCertificate",
            62,
            "the peer's certificate is not accepted: Hostname mismatch, certificate is not valid for 'localhost'.",
        ),
        (
            certificate_error(50, "application verification failure"),
            "SecurityError",
            "SecurityCertificate",
            50,
            "the peer's certificate is not accepted: application verification failure",
        ),
        (
            tls_error("NO_SHARED_CIPHER"),
            "SecurityError",
            "SecurityProtocol",
            193,
            "TLS failed: no shared cipher",
        ),
        (
            tls_error("WRONG_VERSION_NUMBER"),
            "SecurityError",
            "SecurityProtocol",
            267,
            "TLS failed: wrong version number (does the peer speak TLS?)",
        ),
        (
            tls_error("TLSV1_ALERT_UNKNOWN_CA"),
            "SecurityUntrustedCertificateIssuerError",
            "SecurityProtocol",
            1048,
            "the peer refused TLS: tlsv1 alert unknown ca",
        ),
        (
            tls_error("TLSV1_UNRECOGNIZED_NAME"),
            "SecurityError",
            "SecurityProtocol",
            1112,
            "the peer refused TLS: tlsv1 unrecognized name",
        ),
        (
            tls_error("TLSV1_ALERT_USER_CANCELLED"),
            "SecurityError",
            "SecurityProtocol",
            1090,
            "the peer refused TLS: tlsv1 alert user cancelled",
        ),
        (
            tls_error("TLSV1_ALERT_OF_ANOTHER_DAY"),  # not in the table
            "SecurityError",
            "SecurityProtocol",
            0,
            "the peer refused TLS: tlsv1 alert of another day",
        ),
        (
            tls_error("INVALID_ALERT"),
            "SecurityError",
            "SecurityProtocol",
            205,
            "TLS failed: invalid alert",
        ),
        (
            ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "made here"),  # it has no reason
            "NetworkInterruptError",
            "Network",
            294,
            "the peer ended the connection without close_notify",
        ),
        (
            tls_error("UNEXPECTED_EOF_WHILE_READING"),
            "NetworkInterruptError",
            "Network",
            294,
            "TLS failed: unexpected eof while reading",
        ),
    ],
    ids=repr,
)
def test_a_failure_of_tls(exc: ssl.SSLError, name: str, message: str, code: int, detail: str) -> None:
    error = explain(exc, "localhost:25", SHOWN)
    assert (error.name, error.message, error.errorCode, error.detail) == (name, message, code, detail)
    assert type(error.errorCode) is int
    assert str(error) == f"{name}: {detail} (localhost:25)"
    assert error.peer_certificates == (SHOWN if message == "SecurityCertificate" else ())
    assert error.__cause__ is exc


@pytest.mark.parametrize(
    "exc",
    [ssl.SSLError(ssl.SSL_ERROR_SSL, "made in Python"), ssl.SSLError(), tls_error(None, "unknown error")],
    ids=repr,
)
def test_a_failure_of_tls_that_openssl_says_nothing_of(exc: ssl.SSLError) -> None:
    error = explain(exc)
    assert (error.name, error.message) == ("SecurityError", "SecurityProtocol")
    assert error.errorCode == 0
    assert error.detail.startswith("TLS failed: ")


def test_a_peer_that_ends_tls_where_it_must_not_interrupts() -> None:
    exc = ssl.SSLZeroReturnError(ssl.SSL_ERROR_ZERO_RETURN, "TLS/SSL connection has been closed (EOF) (_ssl.c:1000)")
    error = explain(exc)
    assert (error.name, error.message) == ("NetworkInterruptError", "Network")
    assert "_ssl.c" not in error.detail


def test_an_alert_that_this_python_has_no_name_for() -> None:
    error = explain(tls_error(None, "tlsv1 alert no application protocol"))
    assert (error.name, error.message, error.errorCode) == ("SecurityError", "SecurityProtocol", 1120)
    assert error.detail == "the peer refused TLS: tlsv1 alert no application protocol"


@pytest.mark.parametrize("exc", [tls_error(None, "reason(1121)"), tls_error("REASON(1121)", "reason(1121)")], ids=repr)
def test_a_reason_of_which_only_the_number_is_known(exc: ssl.SSLError) -> None:
    error = explain(exc)
    assert (error.name, error.message, error.errorCode) == ("SecurityError", "SecurityProtocol", 1121)
    assert type(error.errorCode) is int


def test_a_failure_of_tls_says_more_than_one_of_the_network() -> None:
    for exc in (certificate_error(10), tls_error("NO_SHARED_CIPHER")):
        assert explain(ExceptionGroup("", [REFUSED, exc])).detail == explain(exc).detail


@pytest.mark.parametrize("copied", [copy.copy, lambda error: pickle.loads(pickle.dumps(error)), TCPSocketError.again])  # noqa: S301
def test_a_copy_has_the_certificates_too(copied: Any) -> None:
    error = explain(certificate_error(10), "localhost:25", SHOWN)
    other = copied(error)
    assert fields(other) == fields(error)
    assert other.peer == "localhost:25"
    assert other.peer_certificates == SHOWN


def test_every_name_is_one_of_the_documented_ones() -> None:
    names = {*_CERTIFICATE_NAMES.values(), *(name for _, name in _REASONS.values())}
    assert names == SECURITY_NAMES | {"NetworkInterruptError"}


def test_alerts_are_numbered_as_openssl_does() -> None:
    """An alert's code is 1000 plus its number in RFC 8446; all other reasons of OpenSSL are lower."""
    for reason, (number, _) in _REASONS.items():
        is_alert = reason.startswith(("SSLV3_ALERT", "TLSV1_", "TLSV13_"))
        assert (1000 <= number < 1256) is is_alert, reason


def test_the_numbers_of_reasons_are_those_of_openssl() -> None:
    import _ssl

    mnemonics = getattr(_ssl, "err_codes_to_names", None)
    if mnemonics is None:
        pytest.skip("this Python does not list them")
    library = next(number for (number, _), reason in mnemonics.items() if reason == "NO_SHARED_CIPHER")
    known = {reason: number for (of, number), reason in mnemonics.items() if of == library}
    found = {reason: number for reason, (number, _) in _REASONS.items() if reason in known}
    assert found == {reason: known[reason] for reason in found}
    assert len(_REASONS) - len(found) <= 5  # reasons newer than the table of this Python
