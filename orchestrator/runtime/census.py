"""One instance as it stands, and all living ones counted: SQL that only reads.

Owns: what is read of an instance in either table, living or archived. Must not know: lists and
pages (operator/queries.py), or how an instance changes (store.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from common.storage.db import Tx
from orchestrator.engine.instance import Instance
from orchestrator.runtime.store import Held, held_of

# In this order held_of() takes the first twelve.
COLUMNS = """
select saga_id, definition, version, state, data, steps, reason, compensate_asked, pivot_passed,
       stuck_since is not null and not undeployed, undeployed, unjudgeable, stuck_since,
       next_deadline, started_at, updated_at, ended_at"""
# An instance is in one of the two tables, whenever one statement looks at both.
ARCHIVED = """
  from (select instance, log from saga_archive where saga_id = %(saga_id)s) a cross join lateral"""
_ONE = (
    COLUMNS + " from saga_instance where saga_id = %(saga_id)s union all" + COLUMNS
    + ARCHIVED + " jsonb_populate_record(null::saga_instance, instance) i"
)  # fmt: skip

# By indexes alone but for the steps of those under way, whose number has a limit. Of what is parked
# at a gate no more than a few are looked at, however many there are: it may be there for days.
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
_LETTERS = """
select queue, count(*) from (select queue from dead_letter where state = 'open' limit %s) letters
 group by 1"""
COUNTED = 10_000
PARKED_COUNTED = 100


@dataclass(frozen=True)
class Seen:
    """An instance as it stood, for reading only."""

    held: Held
    stuck_since: datetime | None
    next_deadline: datetime | None
    started_at: datetime
    updated_at: datetime
    ended_at: datetime | None

    @property
    def instance(self) -> Instance:
        return self.held.instance


@dataclass(frozen=True)
class Census:
    """The living instances, counted."""

    states: Mapping[str, int]  # of the parked: PARKED_COUNTED at most
    stuck: int
    steps: Mapping[str, int]  # by the step whose answer is awaited
    letters: Mapping[str, int]  # by the queue they came from
    overdue_seconds: float  # how far the first deadline is behind; negative: it is ahead


async def census(tx: Tx) -> Census:
    states, steps = tx.ask(_STATES, (PARKED_COUNTED,)), tx.ask(_AWAITED, (COUNTED,))
    marked = tx.ask(_MARKED)
    letters, deadline = tx.ask(_LETTERS, (COUNTED,)), tx.ask(_FIRST_DEADLINE)
    await tx.sync()
    return Census(
        dict(states.rows),
        marked.rows[0][0],
        dict(steps.rows),
        dict(letters.rows),
        deadline.rows[0][0],
    )


async def find(tx: Tx, saga_id: UUID) -> Seen | None:
    rows = await tx.fetch(_ONE, {"saga_id": saga_id})
    return seen_of(rows[0]) if rows else None


def seen_of(row: Sequence[Any]) -> Seen:
    return Seen(held_of(tuple(row[:12])), *row[12:])
