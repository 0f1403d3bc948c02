"""The SQL of forgetting without an orchestrator: which progress may go, and moving it out.

All that is said of a saga says when the saga began (`common/participant/`), by this database's
clock. So no saga may go that did not begin before the oldest that is under way, of which something
may still come that nobody has handled; nor one that did not begin before the oldest transaction, in
which another may begin that nobody can see yet (section 6, rule 18).

Owns: the table progress_archive, and those conditions. Must not know: when, how many.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from common.participant.retention import Archive, Ended, oldest_transaction
from common.storage.db import Tx

PARTICIPANTS = ("order", "inventory", "payment")  # of an order as of a return

# Oldest first, by the index on what has ended, and no further than what can have ended long ago.
# Nobody waits for us, and we for nobody.
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
    """Which of them are there. After whoever moves them has been waited for, in a statement of its
    own: see ProgressStore.lock."""
    return {row[0] for row in await tx.fetch(_ARCHIVED, (list(saga_ids),))}


async def view(tx: Tx, saga_id: UUID) -> list[tuple[Any, ...]]:
    """As ProgressStore reads it, of one that is still there."""
    return await tx.fetch(_VIEW, (saga_id,))
