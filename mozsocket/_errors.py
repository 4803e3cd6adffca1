"""The public exceptions, and the one place that turns an exception into an error name.

The names are those of Gecko's ``TCPSocketErrorEvent``. A name says what happened; its class, which MDN calls the
``message``, says to which layer: ``"Network"`` here, the security classes with TLS.
"""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Iterator

if sys.version_info < (3, 11):  # AnyIO depends on the backport
    from exceptiongroup import BaseExceptionGroup

__all__ = ("InvalidStateError", "TCPSocketError", "explain")

_INTERRUPTED = frozenset(
    getattr(errno, name)
    for name in ("ECONNRESET", "ECONNABORTED", "EPIPE", "ESHUTDOWN", "ENETRESET", "ENOTCONN")
    if hasattr(errno, name)
)

# When several addresses fail, the one whose failure says most about the peer is named: an answer before a silence,
# a silence before trouble that may lie on this machine (no IPv6 route, say).
_TELLING = (
    "ConnectionRefusedError",
    "NetworkInterruptError",
    "NetworkTimeoutError",
    "NetworkError",
    "DomainNotFoundError",
)


class InvalidStateError(RuntimeError):
    """A method was called in a ready state that does not allow it (W3C: ``InvalidStateError``)."""


class TCPSocketError(OSError):
    """A connection failed or was lost. Carries what MDN's ``error`` event carries.

    :ivar name: what happened, such as ``"ConnectionRefusedError"`` (Gecko's names)
    :ivar message: the class of the error: ``"Network"``, ``"SecurityProtocol"`` or ``"SecurityCertificate"``
    :ivar errorCode: the ``errno`` (of a name that was not found, the resolver's code); 0 where there is none
    :ivar detail: the failure in words
    :ivar peer: the host and port that it happened with, as ``"localhost:25"``; empty if there is none

    Its ``__cause__`` is the exception it was made from; where several addresses were tried, the group of all.
    """

    def __init__(self, name: str, message: str, errorCode: int, detail: str, peer: str = "") -> None:
        super().__init__(errorCode, detail)
        self.name = name
        self.message = message
        self.errorCode = errorCode
        self.detail = detail
        self.peer = peer

    def __reduce__(self) -> tuple[type[TCPSocketError], tuple[str, str, int, str, str]]:
        return type(self), (self.name, self.message, self.errorCode, self.detail, self.peer)

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}" + (f" ({self.peer})" if self.peer else "")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"

    def again(self) -> TCPSocketError:
        """A fresh copy: an exception raised in several tasks would gather the tracebacks of all of them."""
        copy = type(self)(self.name, self.message, self.errorCode, self.detail, self.peer)
        copy.__cause__ = self.__cause__
        return copy


def explain(exc: BaseException, peer: str = "") -> TCPSocketError:
    """The error that the program is told of, with ``exc`` as its cause.

    :param exc: an :exc:`OSError`, a :exc:`UnicodeError` (a host name that IDNA forbids), or a group of them
    :param peer: the host and port that it happened with
    """
    telling = min(_leaves(exc), key=lambda leaf: _TELLING.index(_name(leaf)))
    error = TCPSocketError(_name(telling), "Network", _code(telling), _detail(telling), peer)
    error.__cause__ = exc
    return error


def _leaves(exc: BaseException) -> Iterator[BaseException]:
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            yield from _leaves(inner)
    else:
        yield exc


def _name(exc: BaseException) -> str:
    if isinstance(exc, (socket.gaierror, UnicodeError)):
        return "DomainNotFoundError"
    if isinstance(exc, ConnectionRefusedError):
        return "ConnectionRefusedError"
    if isinstance(exc, TimeoutError):
        return "NetworkTimeoutError"
    if isinstance(exc, OSError) and exc.errno in _INTERRUPTED:
        return "NetworkInterruptError"
    return "NetworkError"


def _code(exc: BaseException) -> int:
    if isinstance(exc, OSError) and exc.errno is not None:
        return exc.errno
    if isinstance(exc, UnicodeError):
        return socket.EAI_NONAME
    return errno.ETIMEDOUT if isinstance(exc, TimeoutError) else 0


def _detail(exc: BaseException) -> str:
    strerror = exc.strerror if isinstance(exc, OSError) else None
    return strerror or str(exc) or type(exc).__name__
