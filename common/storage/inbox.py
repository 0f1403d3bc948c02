"""The inbox table: one row for every command handled, with its reply; rules in admission.py."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from common.messages.envelope import Direction, Key, Outcome
from common.storage.admission import InboxView, Row, claims
from common.storage.db import Tx

# Claim, then read, in two statements with a snapshot each: a claim-and-read in one saw nothing
# beside an uncommitted action (rule 10). One insert, one order: no deadlocks. The time until which
# sagas are forgotten is read with the rows: a claim of a row that was just forgotten has waited for
# that transaction, and sees its time here. `here` is the key of the single row of `forgotten`.
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

_WRITE = """
update inbox i set outcome = k.outcome, reply = k.reply
  from unnest(%b::uuid[], %b::text[], %b::text[], %b::text[], %b::text[])
    as k (saga_id, step, direction, outcome, reply)
 where (i.saga_id, i.step, i.direction) = (k.saga_id, k.step, k.direction)
   and i.saga_id = any(%b::uuid[])"""

_DELETE_UNUSED = """
delete from inbox i using unnest(%b::uuid[], %b::text[], %b::text[]) as k (saga_id, step, direction)
 where (i.saga_id, i.step, i.direction) = (k.saga_id, k.step, k.direction)
   and i.saga_id = any(%b::uuid[])"""


def _columns(keys: Sequence[Key]) -> list[list[object]]:
    return [[k.saga_id for k in keys], [k.step for k in keys], [k.direction.value for k in keys]]


class Claim:
    """The claims of a batch, queued: they run at the transaction's next sync.

    That sync waits for every transaction that holds one of the same rows. `oldest`: the earliest
    `first_issued_at` in the batch; `forgotten` is read only if it reaches that far.
    """

    def __init__(self, tx: Tx, keys: Sequence[Key], oldest: datetime | None = None) -> None:
        columns = _columns(claims(keys))
        self._claimed = tx.queue_query(_CLAIM, columns)
        self._known = tx.queue_query(_READ, [*columns, columns[0], oldest])

    def view(self) -> InboxView:
        """Return the batch's view of the inbox; call it after that sync."""
        forgotten = (until for saga_id, *_, until in self._known.rows if saga_id is None)
        return InboxView(
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


async def keep(tx: Tx, view: InboxView) -> None:
    """Write what the batch decided; no row is committed as merely claimed."""
    if decided := view.rows_to_write():
        keys, rows = list(decided), list(decided.values())
        values = [[row.outcome.value for row in rows], [row.reply for row in rows]]
        tx.queue_write(_WRITE, [*_columns(keys), *values, [key.saga_id for key in keys]])
    if unused := view.unused_claims():
        tx.queue_write(
            _DELETE_UNUSED,
            [*_columns(unused), [key.saga_id for key in unused]],
            other_rows="a claim is either written or deleted",
        )


async def forget(tx: Tx, until: datetime, saga_ids: Sequence[UUID]) -> None:
    """Delete all rows of these sagas. `forgotten` is locked first: one transaction at a time."""
    tx.queue_query("update forgotten set until = greatest(until, %s) where here", (until,))
    tx.queue_query("delete from inbox where saga_id = any(%b::uuid[])", (list(saga_ids),))
    await tx.sync()
