"""Asks again for sagas that should have begun.

Owns: re-sending StartSaga for overdue PENDING orders, with backoff, until SagaStarted is
heard (section 6, rule 8). Must not know: SQL, what a saga does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from common.kit import failpoints, log
from common.kit.daemon import wait_for
from common.kit.failpoints import Point
from common.kit.health import Health
from common.kit.settings import Settings
from common.storage import outbox
from common.storage.db import Database
from common.storage.outbox import Appended
from order_svc.handlers import start_key, start_saga
from order_svc.store import OrderStore

logger = log.get("starter")

BATCH = 200  # orders asked for again in one transaction


class StartResender:
    """Any number may run: overdue orders are taken with SKIP LOCKED."""

    def __init__(
        self,
        db: Database,
        store: OrderStore,
        settings: Settings,
        health: Health,
        stop: asyncio.Event,
        carry: Callable[[Appended], None],
    ) -> None:
        self._db = db
        self._store = store
        self._every = settings.start_resend_seconds / 4
        self._health = health
        self._stop = stop
        self._carry = carry

    async def run(self) -> None:
        while not self._stop.is_set():
            more = await self.run_once() == BATCH
            self._health.set("starter", None)
            if not more:
                await wait_for(self._stop, self._every)

    async def run_once(self) -> int:
        """Ask again for one batch of overdue orders; how many there were."""
        async with self._db.transaction() as tx:
            overdue = await self._store.overdue_starts(tx, BATCH)
            sent = await outbox.append(tx, [start_saga(order) for order in overdue])
            failpoints.reach(Point.STARTER_BEFORE_COMMIT, map(start_key, overdue))
        failpoints.reach(Point.STARTER_AFTER_COMMIT, map(start_key, overdue))
        if overdue:
            logger.info("starter.asked_again", orders=len(overdue))
            self._carry(sent)
        return len(overdue)
