"""Liveness and readiness that tell the truth, over a few lines of HTTP.

Owns: the process's named checks. /live answers while the event loop turns; /ready
answers 200 only if every check holds. The door mounts the same checks on its own app.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager


class Health:
    """Named checks: None means well, a text says what is wrong."""

    def __init__(self, *expected: str) -> None:
        self._checks: dict[str, str | None] = dict.fromkeys(expected, "not started")

    def set(self, check: str, problem: str | None) -> None:
        self._checks[check] = problem

    @property
    def ready(self) -> bool:
        return all(problem is None for problem in self._checks.values())

    @property
    def checks(self) -> Mapping[str, str | None]:
        """Each check and what is wrong with it."""
        return self._checks

    def report(self) -> dict[str, object]:
        return {"ready": self.ready, "checks": {k: v or "ok" for k, v in self._checks.items()}}

    @asynccontextmanager
    async def served(self, host: str, port: int) -> AsyncIterator[None]:
        """Answer GET /live and /ready on this port; port 0 serves nothing."""
        if port == 0:
            yield
            return
        async with await asyncio.start_server(self._answer, host, port):
            yield

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(5):
                request = await reader.readuntil(b"\r\n")
                path = request.split(b" ")[1].decode(errors="replace") if b" " in request else ""
                status = {"/live": 200, "/ready": 200 if self.ready else 503}.get(path, 404)
                body = json.dumps(self.report()).encode()
                head = (
                    f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\n"
                    f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                )
                writer.write(head.encode() + body)
                await writer.drain()
        except (
            TimeoutError,
            ConnectionError,
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
        ):
            return  # a caller that went away or never asked; there is nobody to tell
        finally:
            writer.close()
