"""Reconciliation: finding overdue instances, to be timed out in a batch.

Deadlines are not decided before this process's outbox is flushed and its reply queue was seen
empty since it last connected: otherwise an outage uses up every attempt, and every saga
compensates (rule 6). Held replies are decided first. Must not know: what a timeout leads to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from common.kit import log
from common.kit.daemon import wait_for
from common.kit.health import Health
from common.kit.settings import Settings
from common.storage.db import Database
from orchestrator.runtime import store
from orchestrator.runtime.service import Service

logger = log.get("reconciler")

BATCH = 200  # instances decided in one transaction


class Reconciler:
    """The loop that decides overdue deadlines. Any number may run: rows are checked once locked."""

    def __init__(
        self,
        db: Database,
        service: Service,
        may_decide: Callable[[], bool],
        settings: Settings,
        health: Health,
        stop: asyncio.Event,
    ) -> None:
        self._db = db
        self._service = service
        self._may_decide = may_decide
        self._every = settings.reconcile_every_seconds
        self._health = health
        self._stop = stop

    async def run(self) -> None:
        while not self._stop.is_set():
            more = await self._service.decide_held_replies(BATCH) == BATCH
            more |= self._may_decide() and await self.run_once() == BATCH
            self._health.set("reconciler", None)
            if not more:
                await wait_for(self._stop, self._every)

    async def run_once(self) -> int:
        """Decide one batch of overdue instances; return how many were found."""
        async with self._db.reading() as tx:
            deployed = self._service.deployed
            saga_ids = await store.overdue(tx, BATCH, deployed.known, deployed.undeployed_after)
        if saga_ids:
            passed = await self._service.time_out(saga_ids)
            logger.info("reconciler.judged", instances=len(saga_ids), deadlines_passed=passed)
        return len(saga_ids)
