"""The daemon that enforces deadlines where there is no orchestrator.

It enforces none before this process's outbox is flushed and its queue of events was seen empty
since it last connected; otherwise an outage of the broker would cancel every order (rule 6).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from common.kit import log
from common.kit.daemon import wait_for
from common.kit.failpoints import Commit
from common.kit.health import Health
from common.kit.settings import Settings
from common.storage import outbox
from common.storage.db import Database
from order_svc.choreography.reactions import cancel_asked_event, first_event, first_key
from order_svc.choreography.store import ProgressStore

logger = log.get("deadlines")

BATCH = 200  # orders and returns in one transaction


class Deadlines:
    """A daemon that publishes again for overdue sagas. Any number may run: they SKIP LOCKED."""

    def __init__(
        self,
        db: Database,
        store: ProgressStore,
        may_enforce: Callable[[], bool],
        settings: Settings,
        health: Health,
        stop: asyncio.Event,
    ) -> None:
        self._db = db
        self._store = store
        self._may_enforce = may_enforce
        self._policy = settings.policy
        self._every = settings.reconcile_every_seconds
        self._health = health
        self._stop = stop

    async def run(self) -> None:
        while not self._stop.is_set():
            more = self._may_enforce() and await self.run_once() == BATCH
            self._health.set("deadlines", None)
            if not more:
                await wait_for(self._stop, self._every)

    async def run_once(self) -> int:
        """Act on one batch of overdue orders and returns; return how many there were."""
        async with self._db.transaction(Commit.RECONCILER) as tx:
            overdue = await self._store.overdue(tx, BATCH)
            tx.keys = [first_key(what) for _, what in overdue]
            events = []
            for saga, what in overdue:
                past_sla = saga.idle_seconds > self._policy.stuck_after_seconds
                reason = saga.progress.time_out(self._policy.attempts, past_sla=past_sla)
                events.append(
                    first_event(what) if reason is None else cancel_asked_event(what, reason)
                )
            await self._store.save_progress(tx, [saga for saga, _ in overdue])
            await outbox.append(tx, events)
        if events:
            logger.info("deadlines.judged", sagas=len(events))
        return len(events)
