"""What this process holds, to be compared with what it held before."""

from __future__ import annotations

import gc

import anyio
import psutil

__all__ = ("Footprint",)


class Footprint:
    """What there is now, once what nobody refers to is gone.

    :ivar descriptors: how many are open
    :ivar tasks: how many run
    :ivar objects: how many the collector knows of
    :ivar memory: bytes that are in the machine's memory
    """

    def __init__(self) -> None:
        gc.collect()
        process = psutil.Process()
        self.descriptors: int = process.num_fds()
        self.tasks = len(anyio.get_running_tasks())
        self.objects = len(gc.get_objects())
        self.memory: int = process.memory_info().rss
