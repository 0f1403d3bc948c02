"""The SQL of forgetting: which sagas may go, and moving them out.

Owns: the table saga_archive, and the conditions under which nothing of a saga can come any more
that anybody would have to act on (section 6, rule 18). Must not know: when, how many, who is told.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from common.kit import log
from common.messages.envelope import Envelope, unpack
from common.participant.retention import oldest_transaction
from common.storage.db import Asked, Tx
from common.storage.fence import EVIDENCE_GONE

# Of the sagas under way, the first command that may not have been handled: it has no inbox row yet,
# so nothing as late may be forgotten. A step that is settled has its row, which stays until then.
_BOUND = """
select least(
  now() - make_interval(secs => %s), %s::timestamptz, %s::timestamptz,
  (select to_timestamp(min(least((s.value ->> 'issued')::float8,
                                 (s.value ->> 'undo_issued')::float8)))
     from saga_instance i cross join lateral jsonb_each(i.steps) s
    where i.ended_at is null
      and s.value ->> 'status' in ('sent', 'unknown', 'undoing', 'fencing')))"""

# The oldest of all that is known, by the index on what has ended of each definition: what nobody
# here knows is not even read. Nobody waits for us, and we for nobody.
_ENDED = """
select saga_id, definition, version, last
  from unnest(%(names)b::text[], %(versions)b::int[]) as known (name, number)
 cross join lateral (
  select i.saga_id, i.definition, i.version, i.started_at, commands.last
    from saga_instance i cross join lateral (
      select greatest(i.ended_at, to_timestamp(max(greatest(
               (s.value ->> 'issued')::float8, (s.value ->> 'undo_issued')::float8))))
             + interval '1 ms' as last  -- however who reads it rounds
        from jsonb_each(i.steps) s) commands
   where i.definition = known.name and i.version = known.number and i.ended_at is not null
     and i.started_at < %(bound)s and commands.last < %(bound)s
     and not exists (select from dead_letter d where d.saga_id = i.saga_id and d.state = 'open')
   order by i.started_at, i.saga_id limit %(limit)s for update of i skip locked) oldest
 order by started_at, saga_id limit %(limit)s"""

# An envelope that was set aside and never handled is a command that is still to come; of a saga
# that has ended none is. One that was sent again is on its way for a while.
_SET_ASIDE = """
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


MOST_LETTERS = 1000

logger = log.get("retention")


class Ended(NamedTuple):
    """An instance that may be forgotten; its row is locked. None of its commands was first issued
    after `last`."""

    saga_id: UUID
    definition: str
    version: int
    last: datetime


async def take(
    tx: Tx, retention_seconds: float, known: Collection[tuple[str, int]], limit: int
) -> list[Ended]:
    """The oldest of these definitions, at most so many, that ended before the retention and before
    the first command that is still to be handled was issued."""
    oldest = await oldest_transaction(tx)
    letters = await tx.fetch(_SET_ASIDE, (EVIDENCE_GONE, MOST_LETTERS + 1))
    if len(letters) > MOST_LETTERS:
        logger.warning("retention.waits", for_="a decision about the dead letters that are open")
        return []
    issued = (e.first_issued_at for (body,) in letters for e in _envelopes(body))
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
    return [Ended(*row) for row in rows]


async def move(tx: Tx, saga_ids: Sequence[UUID]) -> None:
    """Instances and their logs, whole. No statement here: all leave with the transaction."""
    ids = list(saga_ids)
    await tx.execute(_ARCHIVE, (ids,))
    await tx.execute("delete from saga_log where saga_id = any(%b::uuid[])", (ids,))
    await tx.execute("delete from saga_instance where saga_id = any(%b::uuid[])", (ids,))


def ask(tx: Tx, saga_ids: Sequence[UUID]) -> Asked:
    """Which of them are there: at the next sync, after all that was asked before."""
    return tx.ask(_ARCHIVED, (list(saga_ids),))


def _envelopes(body: bytes) -> list[Envelope]:
    return [member for member in unpack(body) if isinstance(member, Envelope)]
