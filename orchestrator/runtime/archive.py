"""Archiving: which sagas may be forgotten, and the SQL that moves them out.

A saga may go once nothing of it can arrive any more that would have to be acted on (rule 18). Its
participants then receive a Forget; common/participant/retention.py sends it, and says how often
and how many at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from common.kit import log
from common.messages.envelope import Envelope, unpack
from common.participant.retention import Archive, Ended, oldest_transaction
from common.storage.admission import EVIDENCE_GONE
from common.storage.db import QueuedQuery, Tx
from orchestrator.engine.definition import Definition
from orchestrator.runtime.loading import participants_of

# Of the sagas under way, the first command that may not have been handled: it has no inbox row yet,
# so nothing as late may be forgotten. A step that is settled has its row, which stays until then.
_BOUND = """
select least(
  now() - make_interval(secs => %s), %s::timestamptz, %s::timestamptz,
  (select to_timestamp(min(least((s.value ->> 'issued')::float8,
                                 (s.value ->> 'undo_issued')::float8)))
     from saga_instance i cross join lateral jsonb_each(i.steps) s
    where i.ended_at is null
      and s.value ->> 'status' in ('sent', 'unknown', 'undoing', 'fencing'))) as bound"""

# The oldest of the definitions deployed here, by the index on what has ended of each definition:
# no row of any other is read. Locked rows are skipped, so this never waits for a batch.
_ENDED = """
select saga_id, definition, version, last
  from unnest(%(names)b::text[], %(versions)b::int[]) as known (name, number)
 cross join lateral (
  select i.saga_id, i.definition, i.version, i.started_at, commands.last
    from saga_instance i cross join lateral (
      select greatest(i.ended_at, to_timestamp(max(greatest(
               (s.value ->> 'issued')::float8, (s.value ->> 'undo_issued')::float8))))
             + interval '1 ms' as last  -- above any rounding by its readers
        from jsonb_each(i.steps) s) commands
   where i.definition = known.name and i.version = known.number and i.ended_at is not null
     and i.started_at < %(bound)s and commands.last < %(bound)s
     and not exists (select from dead_letter d where d.saga_id = i.saga_id and d.state = 'open')
   order by i.started_at, i.saga_id limit %(limit)s for update of i skip locked) oldest
 order by started_at, saga_id limit %(limit)s"""

# A dead letter that was never handled is a command that may still arrive, unless its saga has
# ended. A redriven one is on its way for a while.
_MAY_ARRIVE = """
select body from dead_letter d
 where (state = 'open' or (state = 'redriven' and settled_at > now() - interval '1 hour'))
   and readable and not reply and reason <> %s
   and not exists (select from saga_instance i
                    where i.saga_id = d.saga_id and i.ended_at is not null)
   and not exists (select from saga_archive a where a.saga_id = d.saga_id)
 limit %s"""

_ARCHIVE = """
insert into saga_archive (saga_id, instance, log)
select i.saga_id, to_jsonb(i),
       (select coalesce(jsonb_agg(to_jsonb(l) order by l.id), '[]')
          from saga_log l where l.saga_id = i.saga_id)
  from saga_instance i where i.saga_id = any(%b::uuid[])"""

_ARCHIVED = "select saga_id from saga_archive where saga_id = any(%b::uuid[])"

MOST_DEAD_LETTERS = 1000

logger = log.get("retention")


class Found(NamedTuple):
    """A locked instance that may be forgotten; no command of it was first issued after `last`."""

    saga_id: UUID
    definition: str
    version: int
    last: datetime


def archiving(definitions: Sequence[Definition], retention_seconds: float) -> Archive:
    """Return the function that archives sagas of these definitions, and of no others."""
    participants: Mapping[tuple[str, int], Sequence[str]] = {
        (d.name, d.version): participants_of([d]) for d in definitions
    }

    async def archive(tx: Tx, limit: int) -> list[Ended]:
        found = await take(tx, retention_seconds, participants, limit)
        if found:
            await move(tx, [saga.saga_id for saga in found])
        return [Ended(s.saga_id, s.last, participants[s.definition, s.version]) for s in found]

    return archive


async def take(
    tx: Tx, retention_seconds: float, known: Collection[tuple[str, int]], limit: int
) -> list[Found]:
    """Lock the oldest sagas of these definitions that may go, at most `limit`.

    They ended before the retention began, and before the first command was issued that may still
    have to be handled.
    """
    oldest = await oldest_transaction(tx)
    dead_letters = await tx.fetch(_MAY_ARRIVE, (EVIDENCE_GONE, MOST_DEAD_LETTERS + 1))
    if len(dead_letters) > MOST_DEAD_LETTERS:
        logger.warning("retention.waits", for_="a decision about the dead letters that are open")
        return []
    issued = [
        envelope.first_issued_at
        for row in dead_letters
        for envelope in unpack(row.body)
        if isinstance(envelope, Envelope)
    ]
    [(bound,)] = await tx.fetch(_BOUND, (retention_seconds, min(issued, default=oldest), oldest))
    rows = await tx.fetch(
        _ENDED,
        {
            "bound": bound,
            "names": [name for name, _ in known],
            "versions": [version for _, version in known],
            "limit": limit,
        },
    )
    return [Found(*row) for row in rows]


async def move(tx: Tx, saga_ids: Sequence[UUID]) -> None:
    """Move instances and their logs to the archive, with the transaction's commit."""
    ids = list(saga_ids)
    tx.queue_write(_ARCHIVE, (ids,))
    tx.queue_write("delete from saga_log where saga_id = any(%b::uuid[])", (ids,))
    tx.queue_write("delete from saga_instance where saga_id = any(%b::uuid[])", (ids,))


def ask(tx: Tx, saga_ids: Sequence[UUID]) -> QueuedQuery:
    """Ask which of these are archived; the rows are there after the next sync."""
    return tx.queue_query(_ARCHIVED, (list(saga_ids),))
