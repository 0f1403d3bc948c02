"""Silence, where no orchestrator notices it: the order service owns the deadline.

Owns: when deadlines may be judged (not before this process's outbox is flushed and its queue of
events was seen empty since it last connected: else an outage would cancel everything), and saying
again what must be heard. Must not know: SQL, what silence leads to.
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
from order_svc.choreography.reactions import begun, cancel_asked, first_key
from order_svc.choreography.store import ProgressStore

logger = log.get("deadlines")

BATCH = 200  # orders and returns judged in one transaction


class Deadlines:
    """Any number may run: what is overdue is taken with SKIP LOCKED."""

    def __init__(
        self,
        db: Database,
        store: ProgressStore,
        may_judge: Callable[[], bool],
        settings: Settings,
        health: Health,
        stop: asyncio.Event,
    ) -> None:
        self._db = db
        self._store = store
        self._may_judge = may_judge
        self._policy = settings.policy
        self._every = settings.reconcile_every_seconds
        self._health = health
        self._stop = stop

    async def run(self) -> None:
        while not self._stop.is_set():
            more = self._may_judge() and await self.run_once() == BATCH
            self._health.set("deadlines", None)
            if not more:
                await wait_for(self._stop, self._every)

    async def run_once(self) -> int:
        """Judge one batch of overdue orders and returns; how many there were."""
        async with self._db.transaction(Commit.RECONCILER) as tx:
            overdue = await self._store.overdue(tx, BATCH)
            tx.keys = [first_key(what) for _, what in overdue]
            said = []
            for kept, what in overdue:
                past_sla = kept.silent_seconds > self._policy.stuck_after_seconds
                reason = kept.progress.silence(self._policy.attempts, past_sla=past_sla)
                said.append(begun(what) if reason is None else cancel_asked(what, reason))
            await self._store.keep(tx, [kept for kept, _ in overdue])
            await outbox.append(tx, said)
        if said:
            logger.info("deadlines.judged", sagas=len(said))
        return len(said)
