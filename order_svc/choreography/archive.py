"""The SQL that archives the progress of sagas that ended long ago.

Every message of a saga carries the time at which the saga began, by this database's clock (ADR 26).
So a saga may be archived only if it began before the oldest saga under way, which may still have
messages that are not handled, and before the oldest open transaction, which may begin a saga that
is not visible yet (rule 18).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from common.participant.retention import Archive, Ended, oldest_transaction
from common.storage.db import Tx

PARTICIPANTS = ("order", "inventory", "payment")  # of orders and of returns

# Oldest first, by the index on what has ended, and no further than what can have ended long ago.
# SKIP LOCKED, so that this neither waits for another transaction nor makes one wait for long.
_ENDED = """
select saga_id, started_at from saga_progress
 where ended_at < now() - make_interval(secs => %(seconds)s)
   and started_at < least(
         now() - make_interval(secs => %(seconds)s), %(oldest)s::timestamptz,
         (select min(started_at) from saga_progress where ended_at is null))
 order by started_at, saga_id limit %(limit)s for update skip locked"""

_ARCHIVE = """
insert into progress_archive (saga_id, progress)
select saga_id, to_jsonb(p) from saga_progress p where saga_id = any(%b::uuid[])"""
_DELETE = "delete from saga_progress where saga_id = any(%b::uuid[])"

_ARCHIVED = "select saga_id from progress_archive where saga_id = any(%b::uuid[])"

_VIEW = """
select p.saga_id, p.definition, p.heard, p.asked, p.attempt, p.stuck_since is not null, 0.0::float8,
       p.started_at, p.ended_at
  from progress_archive a
 cross join lateral jsonb_populate_record(null::saga_progress, a.progress) p
 where a.saga_id = %s"""


def archiving(retention_seconds: float) -> Archive:
    async def archive(tx: Tx, limit: int) -> list[Ended]:
        oldest = await oldest_transaction(tx)
        rows = await tx.fetch(
            _ENDED, {"seconds": retention_seconds, "oldest": oldest, "limit": limit}
        )
        if rows:
            ids = [saga_id for saga_id, _ in rows]
            tx.queue_write(_ARCHIVE, (ids,))
            tx.queue_write(_DELETE, (ids,))
        return [Ended(saga_id, began, PARTICIPANTS) for saga_id, began in rows]

    return archive


async def archived(tx: Tx, saga_ids: Sequence[UUID]) -> set[UUID]:
    """Return which of these sagas are archived.

    Call it in a statement after ProgressStore.lock, which waits for a transaction that archives.
    """
    return {row[0] for row in await tx.fetch(_ARCHIVED, (list(saga_ids),))}


async def view(tx: Tx, saga_id: UUID) -> list[tuple[Any, ...]]:
    """Read an archived saga's progress in the columns of ProgressStore."""
    return await tx.fetch(_VIEW, (saga_id,))
