"""Retention: archive sagas that ended long ago, and send Forget to their participants (rule 18).

Archiving and appending Forget to the outbox are one transaction. Which sagas may go, and where they
are kept, is the `Archive`'s: the orchestrator's, or in choreography the order service's.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID

from common.kit import log
from common.kit.daemon import wait_for
from common.kit.failpoints import Commit
from common.kit.health import Health
from common.kit.settings import Settings
from common.messages.envelope import Direction, Envelope, Forget, Key
from common.messages.topology import commands_of
from common.storage import outbox
from common.storage.db import Database, Tx
from common.storage.outbox import Outgoing

logger = log.get("retention")

FORGET = "forget"  # the step by which the command travels
LOOK_SECONDS = 30.0  # the longest pause between two looks for sagas that are old enough
REST = 3.0  # times as long as a batch took: live traffic has at least three quarters of the time

# Commands of a transaction that has not committed are not visible yet. They are issued after it
# began, so its beginning bounds them. Read in a statement of its own, before the one that reads the
# rest.
_OLDEST_TRANSACTION = """
select min(xact_start) from pg_stat_activity
 where datname = current_database() and usename = current_user"""


class Ended(NamedTuple):
    """An archived saga. None of its commands was first issued after `last`."""

    saga_id: UUID
    last: datetime
    participants: Collection[str]


Archive = Callable[[Tx, int], Awaitable[Sequence[Ended]]]
"""Archives the oldest sagas that may go, at most so many."""


async def oldest_transaction(tx: Tx) -> datetime:
    [(began,)] = await tx.fetch(_OLDEST_TRANSACTION)
    return began  # type: ignore[no-any-return]


class Retention:
    """A daemon. Any number may run: sagas that one has locked are skipped by the others."""

    def __init__(
        self,
        db: Database,
        archive: Archive,
        settings: Settings,
        health: Health,
        stop: asyncio.Event,
        *,
        may_send: Callable[[], bool] = lambda: True,
    ) -> None:
        self._db = db
        self._archive = archive
        self._seconds = settings.retention_seconds
        self._batch = settings.retention_batch
        self._health = health
        self._stop = stop
        self._may_send = may_send

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._stop.is_set():
            began = loop.time()
            more = self._may_send() and await self.run_once() == self._batch
            self._health.set("retention", None)
            rest = REST * (loop.time() - began) if more else min(LOOK_SECONDS, self._seconds / 4)
            await wait_for(self._stop, rest)

    async def run_once(self) -> int:
        """Archive one batch; return how many sagas it had."""
        async with self._db.transaction(Commit.RETENTION) as tx:
            ended = await self._archive(tx, self._batch)
            if not ended:
                return 0
            commands = _commands(ended)
            tx.keys = [_key(saga.saga_id) for saga in ended]
            await outbox.append(tx, commands)
        logger.info("sagas.archived", sagas=len(ended), participants=len(commands))
        return len(ended)


def _commands(ended: Sequence[Ended]) -> list[Outgoing]:
    """Make a Forget for each participant, of the sagas it took part in."""
    theirs: defaultdict[str, list[UUID]] = defaultdict(list)
    for saga in ended:
        for participant in saga.participants:
            theirs[participant].append(saga.saga_id)
    until, now = max(saga.last for saga in ended), datetime.now(UTC)
    commands = []
    for participant, ids in theirs.items():
        forget = Forget(until=until, saga_ids=tuple(ids))
        key = _key(min(ids))  # of one of its sagas, which is forgotten only once
        envelope = Envelope.command(key, forget, issued_at=now, reply_to=None)
        commands.append(Outgoing(commands_of(participant), envelope))
    return commands


def _key(saga_id: UUID) -> Key:
    return Key(saga_id, FORGET, Direction.FORWARD)
