"""The inbox table: one row for every command handled, with its reply. The rules are in fence.py."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from common.messages.envelope import Direction, Key, Outcome
from common.storage.db import Tx
from common.storage.fence import Fence, Row, claims

# Claim, then read, in two statements with a snapshot each: a claim-and-read in one saw nothing
# beside an uncommitted action (rule 10). One insert, one order: no deadlocks. The time until which
# sagas are forgotten is read with the rows: a claim of a row that was just forgotten has waited for
# that transaction, and sees its time here.
_CLAIM = """
insert into inbox (saga_id, step, direction)
select saga_id, step, direction
  from unnest(%b::uuid[], %b::text[], %b::text[]) as k (saga_id, step, direction)
 order by saga_id, step, direction
on conflict do nothing
returning saga_id, step, direction"""

_READ = """
select i.saga_id, i.step, i.direction, i.outcome, i.reply, null::timestamptz
  from unnest(%b::uuid[], %b::text[], %b::text[]) as k (saga_id, step, direction)
  join inbox i using (saga_id, step, direction)
 where i.outcome <> 'claimed' and i.saga_id = any(%b::uuid[])
 union all
select null, null, null, null, null, until from forgotten where here and until >= %b::timestamptz"""

_SETTLE = """
update inbox i set outcome = k.outcome, reply = k.reply
  from unnest(%b::uuid[], %b::text[], %b::text[], %b::text[], %b::text[])
    as k (saga_id, step, direction, outcome, reply)
 where (i.saga_id, i.step, i.direction) = (k.saga_id, k.step, k.direction)
   and i.saga_id = any(%b::uuid[])"""

_GIVE_BACK = """
delete from inbox i using unnest(%b::uuid[], %b::text[], %b::text[]) as k (saga_id, step, direction)
 where (i.saga_id, i.step, i.direction) = (k.saga_id, k.step, k.direction)
   and i.saga_id = any(%b::uuid[])"""


def _columns(keys: Sequence[Key]) -> list[list[object]]:
    return [[k.saga_id for k in keys], [k.step for k in keys], [k.direction.value for k in keys]]


class Claim:
    """The claims of a batch, queued: they run at the transaction's next sync.

    It waits for transactions that hold one of the same rows; rows locked later in the same round
    trip are locked in that order. `oldest` is when the first of the commands was issued whose rows
    may be forgotten: the time of forgetting is read only if it is as late, as each row read costs.
    """

    def __init__(self, tx: Tx, keys: Sequence[Key], oldest: datetime | None = None) -> None:
        columns = _columns(claims(keys))
        self._claimed = tx.queue_query(_CLAIM, columns)
        self._known = tx.queue_query(_READ, [*columns, columns[0], oldest])

    def fence(self) -> Fence:
        """Return the batch's view of the inbox; call it after that sync."""
        forgotten = (until for saga_id, *_, until in self._known.rows if saga_id is None)
        return Fence(
            claimed=[_key(*row) for row in self._claimed.rows],
            known={
                _key(*key): Row(Outcome(outcome), reply)
                for *key, outcome, reply, _ in self._known.rows
                if outcome is not None
            },
            forgotten_until=next(forgotten, None),
        )


def _key(saga_id: UUID, step: str, direction: str) -> Key:
    return Key(saga_id, step, Direction(direction))


async def keep(tx: Tx, fence: Fence) -> None:
    """Write what the batch decided; no row is committed as merely claimed."""
    settled = fence.settled()
    if settled:
        rows = list(settled.values())
        columns = [
            *_columns(list(settled)),
            [r.outcome.value for r in rows],
            [r.reply for r in rows],
            [key.saga_id for key in settled],
        ]
        tx.queue_write(_SETTLE, columns)
    if back := fence.given_back():
        tx.queue_write(
            _GIVE_BACK,
            [*_columns(back), [key.saga_id for key in back]],
            other_rows="a claim is either settled or given back",
        )


async def forget(tx: Tx, until: datetime, saga_ids: Sequence[UUID]) -> None:
    """Delete all rows of these sagas. `forgotten` is locked first: one transaction at a time."""
    tx.queue_query("update forgotten set until = greatest(until, %s) where here", (until,))
    tx.queue_query("delete from inbox where saga_id = any(%b::uuid[])", (list(saga_ids),))
    await tx.sync()
