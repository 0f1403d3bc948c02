"""The daemon that resends StartSaga until the orchestrator answers SagaStarted (rule 8).

A StartSaga can be lost for good: it may be dead-lettered before any instance exists.
"""

from __future__ import annotations

import asyncio

from common.kit import log
from common.kit.daemon import wait_for
from common.kit.failpoints import Commit
from common.kit.health import Health
from common.kit.settings import Settings
from common.storage import outbox
from common.storage.db import Database
from order_svc.handlers import start_key, start_saga
from order_svc.store import OrderStore

logger = log.get("starter")

BATCH = 200  # orders and returns in one transaction


class StartResender:
    """A daemon that resends with a backoff. Any number may run: they SKIP LOCKED."""

    def __init__(
        self,
        db: Database,
        store: OrderStore,
        settings: Settings,
        health: Health,
        stop: asyncio.Event,
    ) -> None:
        self._db = db
        self._store = store
        self._every = settings.start_resend_seconds / 4
        self._health = health
        self._stop = stop

    async def run(self) -> None:
        while not self._stop.is_set():
            more = await self.run_once() == BATCH
            self._health.set("starter", None)
            if not more:
                await wait_for(self._stop, self._every)

    async def run_once(self) -> int:
        """Resend for one batch of overdue orders and returns; return how many there were."""
        async with self._db.transaction(Commit.STARTER) as tx:
            overdue = await self._store.overdue_starts(tx, BATCH)
            tx.keys = map(start_key, overdue)
            await outbox.append(tx, [start_saga(order) for order in overdue])
        if overdue:
            logger.info("starter.asked_again", orders=len(overdue))
        return len(overdue)
