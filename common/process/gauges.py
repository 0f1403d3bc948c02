"""Refresh gauges that need SQL every few seconds: the outbox's depth and age.

The check `outbox` says when the relay is behind. A service adds gauges of its own tables.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from common.kit import metrics
from common.kit.daemon import wait_for
from common.kit.health import Health
from common.kit.settings import Settings
from common.storage import outbox
from common.storage.db import Database, Tx

Look = Callable[[Tx], Awaitable[None]]


class Watch:
    """A daemon; it also detects an outage of the database while there is nothing else to do."""

    def __init__(
        self, db: Database, settings: Settings, health: Health, stop: asyncio.Event
    ) -> None:
        self._db = db
        self._every = settings.watch_every_seconds
        self._behind = settings.relay_behind_seconds
        self._health = health
        self._stop = stop
        self._looks: list[Look] = [self._outbox]

    def add(self, look: Look) -> None:
        self._looks.append(look)

    async def run(self) -> None:
        while not self._stop.is_set():
            await self.run_once()
            await wait_for(self._stop, self._every)

    async def run_once(self) -> None:
        async with self._db.reading() as tx:
            for look in self._looks:
                await look(tx)
        self._health.set("watch", None)

    async def _outbox(self, tx: Tx) -> None:
        backlog = await outbox.backlog(tx)
        metrics.OUTBOX_ROWS.set(backlog.rows)
        metrics.OUTBOX_AGE.set(backlog.oldest_seconds)
        behind = backlog.oldest_seconds > self._behind
        self._health.set(
            "outbox",
            f"the relay is behind: the oldest of {backlog.rows} rows has waited"
            f" {backlog.oldest_seconds:.0f} s"
            if behind
            else None,
        )
