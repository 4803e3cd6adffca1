"""Logs the life of a connection at the level DEBUG: that it was accepted, opened, secured and closed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from anyio.streams.tls import TLSAttribute

from . import _log

__all__ = ("Journal",)


class Subject(Protocol):
    """A connection, as far as the journal needs to know it."""

    @property
    def public_object(self) -> object: ...
    @property
    def log_fields(self) -> dict[str, object]: ...
    @property
    def attributes(self) -> dict[Any, Callable[[], Any]]: ...
    @property
    def why_closed(self) -> str: ...
    @property
    def bytes_received(self) -> int: ...
    @property
    def bytes_sent(self) -> int: ...


class Journal:
    """The journal of one connection, which begins when that is accepted or begins to connect."""

    __slots__ = ("_begun_at",)

    @classmethod
    def if_wanted(cls) -> Journal | None:
        """A journal, if the logger is enabled for DEBUG; else None."""
        return cls() if _log.is_debugging() else None

    def __init__(self) -> None:
        self._begun_at = time.monotonic()

    def accepted(self, subject: Subject, server: object) -> None:
        self._record(subject, "accepted", f"was accepted by {server!r}")

    def opened(self, subject: Subject) -> None:
        self._record(subject, "opened", "is open")

    def secured(self, subject: Subject) -> None:
        attributes = subject.attributes
        version, cipher = (attributes[each]() for each in (TLSAttribute.tls_version, TLSAttribute.cipher))
        self._record(subject, "secured", f"is encrypted: {version}, {cipher[0]}", tls_version=version, cipher=cipher[0])

    def closed(self, subject: Subject) -> None:
        received, sent, seconds = subject.bytes_received, subject.bytes_sent, time.monotonic() - self._begun_at
        self._record(
            subject,
            "closed",
            f"after {seconds:.3f} s, {received} bytes received and {sent} sent: {subject.why_closed}",
            why=subject.why_closed,
            bytes_received=received,
            bytes_sent=sent,
            seconds=seconds,
        )

    def _record(self, subject: Subject, event: str, words: str, **fields: object) -> None:
        _log.debug("%r %s", subject.public_object, words, fields={**subject.log_fields, "event": event, **fields})
