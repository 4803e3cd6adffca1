"""What stands for a connection, of which there is one."""

from __future__ import annotations

from typing import NoReturn, SupportsIndex

__all__ = ("Unique",)


class Unique:
    """Refuses to be copied and pickled: a second owner would close the same descriptor, and share the same tasks."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(f"{type(self).__name__} cannot be copied or pickled: what it owns can have one owner only")
