"""Liveness, readiness and metrics over a few lines of HTTP.

/live answers while the event loop turns; /ready answers 200 only if every check holds; /metrics is
Prometheus's. The APIs mount the first two on their own apps as well, but not the metrics.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from common.kit import metrics


class Health:
    """The named checks of a process: None is well, a text says what is wrong."""

    def __init__(self, *expected: str) -> None:
        self._checks: dict[str, str | None] = {}
        for check in expected:
            self.set(check, "not started")

    def set(self, check: str, problem: str | None) -> None:
        self._checks[check] = problem
        metrics.READY.labels(check).set(problem is None)

    @property
    def ready(self) -> bool:
        return all(problem is None for problem in self._checks.values())

    @property
    def checks(self) -> Mapping[str, str | None]:
        """Return each check and its problem, if any."""
        return self._checks

    def report(self) -> dict[str, object]:
        return {"ready": self.ready, "checks": {k: v or "ok" for k, v in self._checks.items()}}

    @asynccontextmanager
    async def served(self, host: str, port: int) -> AsyncIterator[None]:
        """Answer GET /live, /ready and /metrics on this port; port 0 serves nothing."""
        if port == 0:
            yield
            return
        async with await asyncio.start_server(self._answer, host, port):
            yield

    def _say(self, path: str) -> tuple[int, str, bytes]:
        if path == "/metrics":
            return 200, CONTENT_TYPE_LATEST, generate_latest()
        status = {"/live": 200, "/ready": 200 if self.ready else 503}.get(path, 404)
        return status, "application/json", json.dumps(self.report()).encode()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(5):
                request = await reader.readuntil(b"\r\n")
                path = request.split(b" ")[1].decode(errors="replace") if b" " in request else ""
                status, kind, body = self._say(path)
                head = (
                    f"HTTP/1.1 {status} -\r\nContent-Type: {kind}\r\n"
                    f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                )
                writer.write(head.encode() + body)
                await writer.drain()
        except (OSError, EOFError, asyncio.LimitOverrunError):
            return  # the caller went away or sent no request
        finally:
            writer.close()
