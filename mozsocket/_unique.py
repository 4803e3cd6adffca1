"""Base classes for what the public objects have in common as Python objects, and their numbers for the log."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any, NoReturn, SupportsIndex

__all__ = ("Referable", "Strict", "Unique", "next_number", "setters_of")

next_number: Callable[[], int] = count(1).__next__
"""The next number for a socket or a server in this process. The log tells them apart by it."""


class Unique:
    """A base of objects that cannot be copied or pickled: a copy would share, and close, the same descriptor."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(f"{type(self).__name__} cannot be copied or pickled: its sockets and tasks have one owner only")


class Referable:
    """A base of objects that weak references can refer to, as they can to every public object."""

    __slots__ = ("__weakref__",)


class Strict:
    """A base of objects on which unknown attributes cannot be set, such as a misspelt handler. Subclasses that do not
    define ``__slots__`` allow any attribute.
    """

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute.

        :raises AttributeError: if there is no such attribute, or it is read-only
        """
        try:
            super().__setattr__(name, value)
        except AttributeError:
            if hasattr(type(self), name):  # a read-only attribute: Python's own message says so
                raise
            words = f"{type(self).__name__} has no attribute {name!r}{self._what_there_is()}"
            raise AttributeError(words, name=name, obj=self) from None

    def _what_there_is(self) -> str:
        """The end of that error's message: what attributes there are."""
        return ""


def setters_of(owner: type[Strict], *names: str) -> list[Callable[[Any, Any], None]]:
    """Functions that set slots of an object without the check for unknown attributes, which takes a server some time at
    each connection.

    :param owner: the class
    :param names: the names of the slots
    """
    return [getattr(owner, name).__set__ for name in names]
