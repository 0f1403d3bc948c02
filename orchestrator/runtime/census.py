"""One instance, and counts of all living ones: SQL that only reads.

An instance is read from either table, living or archived. Must not know: lists and pages
(operator/queries.py), or how an instance changes (store.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from common.storage.db import Tx
from orchestrator.engine.instance import Instance
from orchestrator.runtime import store
from orchestrator.runtime.store import InstanceRow, instance_row

COLUMNS = store.COLUMNS + ", stuck_since, next_deadline, started_at, updated_at, ended_at"
# One statement that reads both tables finds an instance in exactly one of them.
ARCHIVED = """
  from (select instance, log from saga_archive where saga_id = %(saga_id)s) a cross join lateral"""
_ONE = (
    COLUMNS + " from saga_instance where saga_id = %(saga_id)s union all" + COLUMNS
    + ARCHIVED + " jsonb_populate_record(null::saga_instance, instance) i"
)  # fmt: skip

# These use indexes alone, but for the steps of the sagas under way, whose number has a limit. Of
# those parked at a gate only a few are read, however many there are: they may be there for days.
_STATES = """
select state, count(*) from saga_instance
 where ended_at is null and state in ('RUNNING', 'COMPENSATING') group by 1
 union all
select 'WAITING', count(*)
  from (select from saga_instance where ended_at is null and state = 'WAITING' limit %s) parked
having count(*) > 0"""
_MARKED = """
select count(*) from saga_instance where ended_at is null and stuck_since is not null"""
_AWAITED = """
select step, count(*)
  from (select steps from saga_instance where ended_at is null
           and state in ('RUNNING', 'COMPENSATING') limit %s) under_way
 cross join lateral jsonb_each(steps) as each (step, progress)
 where progress ->> 'status' in ('sent', 'undoing', 'fencing') group by 1"""
_FIRST_DEADLINE = """
select coalesce((select extract(epoch from now() - next_deadline)::float8 from saga_instance
  where next_deadline is not null order by next_deadline limit 1), 0)"""
_DEAD_LETTERS = """
select queue, count(*) from (select queue from dead_letter where state = 'open' limit %s) counted
 group by 1"""
COUNTED = 10_000
PARKED_COUNTED = 100


@dataclass(frozen=True)
class Seen:
    """An instance as read without a lock."""

    row: InstanceRow
    stuck_since: datetime | None
    next_deadline: datetime | None
    started_at: datetime
    updated_at: datetime
    ended_at: datetime | None

    @property
    def instance(self) -> Instance:
        return self.row.instance


@dataclass(frozen=True)
class Census:
    """Counts of the living instances."""

    states: Mapping[str, int]  # of the parked: PARKED_COUNTED at most
    stuck: int
    steps: Mapping[str, int]  # by the step whose answer is awaited
    dead_letters: Mapping[str, int]  # by the queue they came from
    overdue_seconds: float  # how long ago the first deadline passed; negative if it has not


async def census(tx: Tx) -> Census:
    states, steps = tx.queue_query(_STATES, (PARKED_COUNTED,)), tx.queue_query(_AWAITED, (COUNTED,))
    marked = tx.queue_query(_MARKED)
    dead_letters, deadline = (
        tx.queue_query(_DEAD_LETTERS, (COUNTED,)),
        tx.queue_query(_FIRST_DEADLINE),
    )
    await tx.sync()
    return Census(
        dict(states.rows),
        marked.rows[0][0],
        dict(steps.rows),
        dict(dead_letters.rows),
        deadline.rows[0][0],
    )


async def find(tx: Tx, saga_id: UUID) -> Seen | None:
    rows = await tx.fetch(_ONE, {"saga_id": saga_id})
    return seen_of(rows[0]) if rows else None


def seen_of(row: Any) -> Seen:
    """Read a row that has COLUMNS, and perhaps more."""
    return Seen(
        instance_row(row),
        row.stuck_since,
        row.next_deadline,
        row.started_at,
        row.updated_at,
        row.ended_at,
    )
