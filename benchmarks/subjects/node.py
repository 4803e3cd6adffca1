"""Node's ``net`` and ``tls``: the whole scenario runs in Node (``node.mjs``)."""

from __future__ import annotations

import json
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from . import base
from .base import HOST

SCRIPT = Path(__file__).with_suffix(".mjs")


class Subject(base.Foreign):
    @asynccontextmanager
    async def echoing(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
        with subprocess.Popen(["node", SCRIPT, json.dumps({"scenario": "serve"})], stdout=subprocess.PIPE) as node:
            assert node.stdout
            self.pid = node.pid
            yield int(await anyio.to_thread.run_sync(node.stdout.readline))
            node.kill()

    async def run(self, scenario: str, **parameters: Any) -> Any:
        described = json.dumps({"scenario": scenario, "host": HOST, **parameters})
        process = await anyio.run_process(["node", SCRIPT, described])
        return json.loads(process.stdout)
