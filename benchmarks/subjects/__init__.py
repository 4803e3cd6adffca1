"""The subjects that are measured. Each has a module, imported only in the process that measures it."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from typing import NamedTuple

from .base import Foreign, Subject

__all__ = ("LOOPS", "SUBJECTS", "Entry", "make")

LOOPS = {"asyncio": "asyncio", "uvloop": "uvloop", "trio": "Trio"}
"""The event loops, with the names that reports show."""


class Entry(NamedTuple):
    """A subject that can be measured.

    :ivar label: the name that reports show
    :ivar module: the module that implements it
    :ivar backends: the event loops that it runs on; ``"none"`` if it has its own, or needs none
    :ivar needs: the module or program that it needs; without it the subject is skipped
    :ivar per_message: the share of the small messages that it gets, 1 for the fastest; less if each is a task switch
    :ivar has_threads: whether it has a thread for each connection; then scenarios with hundreds are skipped
    :ivar serves_redis: whether it is a :class:`~benchmarks.subjects.base.RedisServer`
    :ivar scenarios: the scenarios that it is made for; None for all
    """

    label: str
    module: str
    backends: tuple[str, ...]
    needs: str
    per_message: float = 1
    has_threads: bool = False
    serves_redis: bool = False
    scenarios: tuple[str, ...] | None = None

    def is_available(self) -> bool:
        return bool(importlib.util.find_spec(self.needs) or shutil.which(self.needs))

    def takes_part_in(self, scenario: str) -> bool:
        return self.scenarios is None or scenario in self.scenarios


SUBJECTS = {
    "mozsocket": Entry(
        "mozsocket", "mozsocket_handlers", ("asyncio", "uvloop", "trio"), "mozsocket", serves_redis=True
    ),
    "mozsocket-stream": Entry(
        "mozsocket's stream()", "mozsocket_stream", ("asyncio", "uvloop", "trio"), "mozsocket", 0.05
    ),
    "prototype": Entry(
        "a bare prototype",
        "prototype",
        ("asyncio", "uvloop", "trio"),
        "select",
        serves_redis=True,
        scenarios=("echo", "echo-100", "load-1", "load-50", "load-500", "redis", "redis-pipelined", "visits"),
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
    """Import a subject and create it.

    :param name: a key of :data:`SUBJECTS`
    """
    module = importlib.import_module(f"{__name__}.{SUBJECTS[name].module}")
    subject: Subject | Foreign = module.Subject()
    return subject
