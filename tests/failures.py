"""Exceptions for handlers and bodies that raise, and checks of where they end up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import pytest

MUCH = bytes(8 << 20)  # more than the kernel buffers between two sockets of this machine


E = TypeVar("E", bound=BaseException)


@contextmanager
def leaves(error: type[E], match: str | None = None) -> Iterator[pytest.ExceptionInfo[E]]:
    """Check that an exception leaves a whole program; used like ``pytest.raises``."""
    with pytest.raises(error, match=match) as caught:
        yield caught


class BodyError(Exception):
    pass


class HandlerError(Exception):
    pass


def raising(error: Exception) -> Callable[[Any], None]:
    def handler(event: Any) -> None:
        raise error

    return handler


def raising_later(error: Exception) -> Callable[[Any], Awaitable[None]]:
    async def handler(event: Any) -> None:
        await anyio.lowlevel.checkpoint()
        raise error

    return handler


both_kinds = pytest.mark.parametrize("make_handler", [raising, raising_later])


SECURITY_NAMES = {
    "SecurityExpiredCertificateError",
    "SecurityRevokedCertificateError",
    "SecurityUntrustedCertificateIssuerError",
    "SecurityInadequateKeyUsageError",
    "SecurityCertificateSignatureAlgorithmDisabledError",
    "SecurityNoCertificateError",
    "SecurityBadCertificateError",
    "SecurityUnsupportedCertificateTypeError",
    "SecurityUnsupportedTLSVersionError",
    "SecurityCertificateDomainMismatchError",
    "SecurityError",
}
