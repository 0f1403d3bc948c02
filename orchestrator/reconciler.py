"""Reconciliation: finding overdue instances and re-entering through the front door.

Owns: when deadlines may be judged. Not until this process's outbox is flushed and its
queue was seen empty since it last connected: else an outage burns every attempt, and
everything compensates (section 6, rule 6). Replies that were held for a process which knows
their saga's version are read first. Must not know: what a timeout leads to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from uuid import UUID

from common import log
from common.daemon import wait_for
from common.db import Database
from common.errors import Poison
from common.health import Health
from common.settings import Settings
from orchestrator import store
from orchestrator.service import Service

logger = log.get("reconciler")

BATCH = 200  # instances judged in one transaction


class Reconciler:
    """Any number of them may run: each row is judged again once it is held."""

    def __init__(
        self,
        db: Database,
        service: Service,
        may_judge: Callable[[], bool],
        settings: Settings,
        health: Health,
        stop: asyncio.Event,
    ) -> None:
        self._db = db
        self._service = service
        self._may_judge = may_judge
        self._every = settings.reconcile_every_seconds
        self._health = health
        self._stop = stop
        self._problem: str | None = None

    async def run(self) -> None:
        while not self._stop.is_set():
            more = await self._service.release(BATCH) == BATCH
            more |= self._may_judge() and await self.run_once() == BATCH
            self._health.set("reconciler", self._problem)
            if not more:
                await wait_for(self._stop, self._every)

    async def run_once(self) -> int:
        """Judge one batch of overdue instances; how many were found."""
        async with self._db.reading() as tx:
            deployed = self._service.deployed
            saga_ids = await store.overdue(tx, BATCH, deployed.known, deployed.undeployed_after)
        self._problem = None
        if saga_ids:
            passed = await self._judge(saga_ids)
            logger.info("reconciler.judged", instances=len(saga_ids), deadlines_passed=passed)
        return len(saga_ids) if self._problem is None else 0

    async def _judge(self, saga_ids: Sequence[UUID]) -> int:
        """All at once; if one cannot be judged, one by one, so that its neighbours are. How many
        deadlines had passed."""
        try:
            return await self._service.time_out(saga_ids)
        except Poison as error:
            if len(saga_ids) > 1:
                return sum([await self._judge([saga_id]) for saga_id in saga_ids])
            self._problem = f"saga {saga_ids[0]} cannot be judged: {error}"
            logger.exception("reconciler.cannot_judge", saga_id=saga_ids[0])
            return 0
