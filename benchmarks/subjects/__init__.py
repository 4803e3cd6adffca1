"""What is measured: a module for each, imported by the process that measures it and by no other."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from typing import NamedTuple

from .base import Foreign, Subject

__all__ = ("LOOPS", "SUBJECTS", "Entry", "make")

LOOPS = {"asyncio": "asyncio", "uvloop": "uvloop", "trio": "Trio"}
"""The event loops, and what people call them."""


class Entry(NamedTuple):
    """A subject that can be measured.

    :ivar label: what people call it
    :ivar module: where it is
    :ivar backends: the event loops it runs on; ``"none"``: it brings its own, or needs none
    :ivar needs: the module, or the program, without which it is left out
    :ivar per_message: how many of the small messages it is given, for one of the fastest; it takes a task switch each
    :ivar has_threads: one for each connection, so that it is left out where there are hundreds
    :ivar serves_redis: whether it is a :class:`~benchmarks.subjects.base.RedisServer`
    """

    label: str
    module: str
    backends: tuple[str, ...]
    needs: str
    per_message: float = 1
    has_threads: bool = False
    serves_redis: bool = False

    def is_available(self) -> bool:
        return bool(importlib.util.find_spec(self.needs) or shutil.which(self.needs))


SUBJECTS = {
    "mozsocket": Entry(
        "mozsocket", "mozsocket_handlers", ("asyncio", "uvloop", "trio"), "mozsocket", serves_redis=True
    ),
    "mozsocket-stream": Entry(
        "mozsocket's stream()", "mozsocket_stream", ("asyncio", "uvloop", "trio"), "mozsocket", 0.05
    ),
    "protocol": Entry("asyncio.Protocol", "asyncio_protocol", ("asyncio", "uvloop"), "asyncio", 0.5, serves_redis=True),
    "streams": Entry("asyncio streams", "asyncio_streams", ("asyncio", "uvloop"), "asyncio", 0.2),
    "anyio": Entry("AnyIO streams", "anyio_streams", ("asyncio", "uvloop", "trio"), "anyio", 0.05),
    "trio": Entry("Trio streams", "trio_streams", ("trio",), "trio", 0.05),
    "twisted": Entry("Twisted", "twisted_protocol", ("none",), "twisted", 0.2),
    "node": Entry("Node", "node", ("none",), "node", 0.2),
    "blocking": Entry("blocking sockets, two threads", "blocking", ("none",), "socket", 0.2, has_threads=True),
}


def make(name: str) -> Subject | Foreign:
    """:param name: a key of :data:`SUBJECTS`"""
    module = importlib.import_module(f"{__name__}.{SUBJECTS[name].module}")
    subject: Subject | Foreign = module.Subject()
    return subject
