"""Measures the resources that this process holds, to compare with an earlier measurement."""

from __future__ import annotations

import gc

import anyio
import psutil

__all__ = ("Footprint",)


class Footprint:
    """The resources held now, after a garbage collection.

    :ivar descriptors: the number of open descriptors
    :ivar tasks: the number of running tasks
    :ivar objects: the number of objects that the collector tracks
    :ivar memory: the resident memory, in bytes
    """

    def __init__(self) -> None:
        gc.collect()
        process = psutil.Process()
        self.descriptors: int = process.num_fds()
        self.tasks = len(anyio.get_running_tasks())
        self.objects = len(gc.get_objects())
        self.memory: int = process.memory_info().rss
