"""What the public objects have in common as Python objects."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import NoReturn, SupportsIndex

__all__ = ("Referable", "Strict", "Unique", "next_number")

next_number: Callable[[], int] = count(1).__next__
"""The number of a socket or a server in this process, by which the log tells them apart."""


class Unique:
    """Refuses to be copied and pickled: a second owner would close the same descriptor, and share the same tasks."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(f"{type(self).__name__} cannot be copied or pickled: what it owns can have one owner only")


class Referable:
    """Can be referred to weakly, as every public object can."""

    __slots__ = ("__weakref__",)


class Strict:
    """Refuses attributes that it has not, such as a handler that is misspelt. Subclasses may have any."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> None:
        """:raises AttributeError: if there is no such attribute, or it cannot be set"""
        try:
            super().__setattr__(name, value)
        except AttributeError:
            if hasattr(type(self), name):  # which cannot be set
                raise
            words = f"{type(self).__name__} has no attribute {name!r}{self._what_there_is()}"
            raise AttributeError(words, name=name, obj=self) from None

    def _what_there_is(self) -> str:
        """How the error goes on."""
        return ""
