"""Fuzzing of everything that parses or maps input: it accepts the input, or raises its documented error."""

from __future__ import annotations

import errno
import pickle
import re
import socket as stdlib_socket
import ssl
import sys
from collections.abc import Iterator
from typing import Any

import anyio
import click
import hypothesis
import pytest
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

from mozsocket import MozTCPSocket, TCPServerSocket, TCPSocket, TCPSocketError, cli
from mozsocket._addresses import display, host_and_port
from mozsocket._errors import explain
from mozsocket._options import identity

from ..failures import SECURITY_NAMES

if sys.version_info < (3, 11):  # a dependency of AnyIO
    from exceptiongroup import ExceptionGroup

NAMES = SECURITY_NAMES | {
    "ConnectionRefusedError",
    "NetworkTimeoutError",
    "DomainNotFoundError",
    "NetworkInterruptError",
    "NetworkError",
    "SecurityError",
}

# Failures

CODES = st.one_of(st.sampled_from(list(errno.errorcode)), st.integers(-(2**31), 2**31), st.none(), st.text())
WORDS = st.one_of(st.text(), st.none(), st.integers())


def ssl_error(kind: type[ssl.SSLError], code: Any, text: Any, reason: Any, verify_code: Any) -> ssl.SSLError:
    error = kind(code, text)
    for name, value in (("reason", reason), ("library", "SSL"), ("verify_code", verify_code)):
        if value is not None:
            setattr(error, name, value)
    return error


REASONS = st.one_of(
    st.none(), st.text(), st.from_regex(re.compile(r"(SSLV3|TLSV1|TLSV13)_ALERT_[A-Z_]+"), fullmatch=True)
)
SSL_ERRORS = st.builds(
    ssl_error,
    st.sampled_from([ssl.SSLError, ssl.SSLCertVerificationError, ssl.SSLEOFError, ssl.SSLZeroReturnError]),
    st.integers(0, 2**31),
    st.text(),
    REASONS,
    st.one_of(st.none(), st.integers(0, 1000)),
)
LEAVES = st.one_of(
    st.builds(OSError, CODES, WORDS),
    st.builds(OSError, WORDS),
    st.builds(OSError),
    st.builds(stdlib_socket.gaierror, st.integers(-100, 100), st.text()),
    st.builds(stdlib_socket.herror, st.integers(), st.text()),
    st.builds(TimeoutError, WORDS),
    st.builds(UnicodeError, st.text()),
    SSL_ERRORS,
)
FAILURES = st.recursive(
    LEAVES, lambda inner: st.builds(ExceptionGroup, st.text(), st.lists(inner, min_size=1, max_size=4)), max_leaves=8
)


@given(FAILURES, st.text())
@example(OSError("words of a proxy library", ConnectionRefusedError(errno.ECONNREFUSED, "refused")), "")
@example(ssl.SSLCertVerificationError("of a program's own"), "")
@example(ssl.SSLCertVerificationError(), "")
def test_any_failure_has_a_name(failure: Any, peer: str) -> None:
    error = explain(failure, peer)
    assert isinstance(error, TCPSocketError)
    assert error.name in NAMES
    assert error.message in ("Network", "SecurityProtocol", "SecurityCertificate")
    assert type(error.errorCode) is int
    assert str(error)
    assert repr(error)
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (copy.name, copy.message, copy.errorCode, str(copy)) == (
        error.name,
        error.message,
        error.errorCode,
        str(error),
    )


# Addresses

HOSTS = st.one_of(
    st.text(),
    st.ip_addresses().map(str),
    st.from_regex(re.compile(r"[a-z0-9.:%\[\]\-]{1,30}"), fullmatch=True),
    st.text(alphabet="a\xdf.\uff45\u3002-_xn\u0301\u200d", max_size=70),
    st.integers(),
    st.none(),
    st.binary(),
)
PORTS = st.one_of(st.integers(-10, 70_000), st.floats(), st.text(max_size=5), st.booleans(), st.none())


@pytest.fixture(scope="module")
def no_resolver() -> Iterator[None]:
    """Resolve no names: numeric addresses are accepted, anything else is not found."""
    real = stdlib_socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:
        return real(host, port, family, type, proto, flags | stdlib_socket.AI_NUMERICHOST)

    stdlib_socket.getaddrinfo = getaddrinfo
    yield
    stdlib_socket.getaddrinfo = real


@given(HOSTS, PORTS)
def test_any_host_and_port_are_taken_or_refused(host: Any, port: Any) -> None:
    for make in (lambda: TCPSocket(host, port), lambda: TCPServerSocket(port, host=host)):
        try:
            made = make()
        except (TypeError, ValueError) as exc:
            refusal = str(exc)
        else:
            refusal = ""
            assert repr(made)
        assert re.match("(host|port) must be|$", refusal)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@given(hosts=st.lists(st.text(min_size=1).filter(lambda host: "\0" not in host), min_size=1, max_size=10))
def test_any_host_is_connected_to_or_fails_in_words(backend: str, no_resolver: None, hosts: list[str]) -> None:
    errors: list[Any] = []

    def on_open(event: Any) -> None:
        errors.append(None)
        event.target.close()

    async def main() -> None:
        with anyio.fail_after(60):
            async with MozTCPSocket() as tcp:
                for host in hosts:
                    socket = tcp.open(host, 9, connect_timeout=5)  # usually nothing answers there
                    socket.onerror = errors.append
                    socket.onopen = on_open

    anyio.run(main, backend=backend)
    assert len(errors) == len(hosts)
    assert {error.name for error in errors if error is not None} <= NAMES


@given(HOSTS)
def test_any_name_can_be_shown_and_checked(host: Any) -> None:
    if isinstance(host, str):
        assert display(host, 1) in (f"{host}:1", f"[{host}]:1")
        try:
            name = identity(host)
        except UnicodeError:
            pass
        else:
            assert name is None or name.isascii() or ":" in host


@given(
    st.one_of(
        st.tuples(HOSTS.filter(lambda host: isinstance(host, str)), st.integers()),
        st.tuples(HOSTS.filter(lambda host: isinstance(host, str)), st.integers(), st.integers(), st.integers()),
        st.text(),
        st.binary(),
    )
)
def test_any_address_of_the_system_is_a_host_and_a_port(address: Any) -> None:
    host, port = host_and_port(address)
    assert isinstance(host, str)
    assert isinstance(port, int)


# The command line

WORDS_OF_OURS = [
    *(
        "demo",
        "connect",
        "listen",
        "localhost",
        "127.0.0.1",
        "::1",
        "0",
        "7",
        "65535",
        "65536",
        "-1",
        "1e3",
        "nan",
        "inf",
    ),
    *("--tls", "--starttls", "smtp", "--cafile", "--insecure", "--server-hostname", "--connect-timeout", "--verbose"),
    *("--binary-type", "string", "--backend", "trio", "asyncio", "--host", "--echo", "--grace", "--keep-open", "-v"),
    *("--certfile", "--keyfile", "--help", "-h", "--version", "--", "-", "", __file__, "pyproject.toml", "/nowhere"),
]
ARGUMENTS = st.lists(st.one_of(st.sampled_from(WORDS_OF_OURS), st.text(max_size=10)), max_size=10)


@pytest.fixture(scope="module")
def no_event_loop() -> Iterator[None]:
    """Run no event loop: whatever a command would run is skipped."""
    real = anyio.run

    def run(*args: Any, **options: Any) -> int:
        return 0

    anyio.run = run  # type: ignore[assignment]
    yield
    anyio.run = real


@hypothesis.settings(max_examples=300)
@given(ARGUMENTS)
def test_any_command_line_runs_or_is_refused_in_words(no_event_loop: None, arguments: list[str]) -> None:
    result = CliRunner().invoke(cli.cli, arguments, prog_name="mozsocket")
    assert result.exception is None or isinstance(result.exception, (SystemExit, click.ClickException))
    assert result.exit_code in (0, 1, 2)
    if result.exit_code:
        assert re.search(r"(?m)^(Error|Usage|mozsocket: error): ", result.output)
    assert "Traceback" not in result.output
