"""Everything the operator's API, the doctor and the audit read from the orchestrator's schema.

`Queries` only reads: each method is one READ ONLY transaction. What changes a saga is
runtime/service.py; what other services hold is asked in services.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from common.messages.contracts import TouchedPage, TouchedQuery
from common.messages.envelope import Direction
from common.storage.db import Database
from orchestrator.dead_letters import store
from orchestrator.dead_letters.store import (
    DeadLetterFilter,
    FullDeadLetter,
    Group,
    StoredDeadLetter,
)
from orchestrator.engine.instance import State
from orchestrator.engine.saga_log import Entry
from orchestrator.operator import watch_list
from orchestrator.operator.audit import AuditedInstance
from orchestrator.operator.watch_list import Watched
from orchestrator.runtime import actions, census
from orchestrator.runtime.actions import ActionFilter, RecordedAction
from orchestrator.runtime.census import ARCHIVED, COLUMNS, COUNTED, Seen, seen_of

_IDS = """
select saga_id from saga_instance where saga_id between %(low)s and %(high)s union all
select saga_id from saga_archive where saga_id between %(low)s and %(high)s
 order by 1 limit %(limit)s"""

_WANTED = """
   and (%(state)s::text is null or state = %(state)s)
   and (%(awaits)s::text is null
        or steps -> %(awaits)s ->> 'status' in ('sent', 'undoing', 'fencing'))
   and (%(customer)s::text is null or data ->> 'customer' = %(customer)s)
   and (%(reason)s::text is null or reason = %(reason)s)
   and (not %(stuck)s or stuck_since is not null)
   and (%(older_than)s::float8 is null
        or started_at < now() - make_interval(secs => %(older_than)s))
   and (started_at, saga_id) < (%(before)s, %(before_id)s)
 order by started_at desc, saga_id desc limit %(limit)s"""

# Newest first. Living instances are few and have no index in this order; ended ones have one.
_ALIVE = "(" + COLUMNS + " from saga_instance where ended_at is null" + _WANTED + ")"
_ENDED = (
    "(" + COLUMNS + " from saga_instance where ended_at is not null"
    " and not %(stuck)s and %(awaits)s::text is null" + _WANTED + ")"
)
_PAGE = _ALIVE + " union all " + _ENDED + " order by started_at desc, saga_id desc limit %(limit)s"
_FIRST_PAGE = ("infinity", UUID(int=2**128 - 1))

_ENTRIES = "select id, at, entry, step, direction, attempt, detail, answered_by, process"
_TIMELINE = (
    _ENTRIES + " from saga_log where saga_id = %(saga_id)s and id > %(after)s union all "
    + _ENTRIES + ARCHIVED + " jsonb_populate_recordset(null::saga_log, log) where id > %(after)s"
    " order by id limit %(limit)s"
)  # fmt: skip

# Oldest first, by the index of the living. The saga log says why a person is asked.
_WHY = """,
       (select l.detail from saga_log l
         where l.saga_id = i.saga_id and l.entry = 'parked' order by l.id desc limit 1) as why"""
_OLDEST_FIRST = """
  from saga_instance i
 where ended_at is null and state = 'WAITING'
   and (%(customer)s::text is null or data ->> 'customer' = %(customer)s)
   and (started_at, saga_id) > (%(after)s, %(after_id)s)
 order by started_at, saga_id limit %(limit)s"""
_WAITING = COLUMNS + _WHY + _OLDEST_FIRST
_BEFORE_ALL = ("-infinity", UUID(int=0))

_DECIDED = (
    _ENTRIES + " from saga_log where saga_id = %s"
    " and entry in ('approved', 'rejected', 'expired', 'compensate_asked')"
    " order by id desc limit 1"
)  # fmt: skip

# Oldest first, by the index of the living; each with the last trouble in its log. A discarded
# dead letter comes before the timeouts that follow it, for as long as its answer is awaited.
_TROUBLE = """,
       id, at, entry, step, direction, attempt, detail, answered_by, process
  from saga_instance i left join lateral (
    select id, at, entry, step, direction, attempt, detail, answered_by, process
      from saga_log l
     where l.saga_id = i.saga_id and l.id in (
       (select id from saga_log d
         where d.saga_id = i.saga_id and d.entry = 'discarded'
           and (d.direction, i.steps -> d.step ->> 'status') in (
               ('forward', 'sent'), ('compensating', 'undoing'), ('compensating', 'fencing'))
         order by id desc limit 1)
       union all
       (select id from saga_log t
         where t.saga_id = i.saga_id
           and t.entry in ('timed_out', 'dead_lettered', 'discarded', 'undeployed',
                           'unjudgeable', 'held')
         order by id desc limit 1))
     order by l.entry = 'discarded' desc, l.id desc limit 1) trouble on true"""
_IS_STUCK = """
 where ended_at is null
   and (stuck_since is not null
        or next_deadline < now() - make_interval(secs => %(overdue_by)s))
   and (%(awaits)s::text is null
        or steps -> %(awaits)s ->> 'status' in ('sent', 'undoing', 'fencing'))
   and (%(older_than)s::float8 is null
        or started_at < now() - make_interval(secs => %(older_than)s))
   and (started_at, saga_id) > (%(after)s, %(after_id)s)
 order by started_at, saga_id limit %(limit)s"""
_STUCK = COLUMNS + _TROUBLE + _IS_STUCK

_STATUS = """
select count(*) as alive, count(stuck_since) as stuck,
       count(*) filter (where next_deadline < now() - make_interval(secs => %s)) as overdue,
       (select count(*) from dead_letter where state = 'open') as dead_letters,
       array(select distinct definition || ' v' || version from saga_instance
              where ended_at is null and undeployed and unjudgeable is null) as undeployed,
       count(unjudgeable) filter (where undeployed) as unjudgeable
  from saga_instance where ended_at is null"""
# Definitions that have ended instances, found by hopping along the index on them; of each one that
# is not deployed, the number of its instances, counted up to a limit.
_NEVER_ARCHIVED = """
with recursive ended (definition, version) as (
  (select definition, version from saga_instance where ended_at is not null
    order by definition, version limit 1)
   union all
  select following.* from ended e cross join lateral (
    select definition, version from saga_instance
     where ended_at is not null and (definition, version) > (e.definition, e.version)
     order by definition, version limit 1) following)
select e.definition || ' v' || e.version as definition, counted.sagas
  from ended e cross join lateral (
    select count(*) as sagas
      from (select from saga_instance i
             where ended_at is not null and i.definition = e.definition and i.version = e.version
             limit %(most)s) some_of_it) counted
 where not e.definition || ' v' || e.version = any(%(known)b::text[])"""

# For the audit.
_TOUCHED = """
(select saga_id, coalesce(ended_at, 'infinity') >= coalesce(%(since)s, '-infinity'::timestamptz)
        and started_at < coalesce(%(until)s, 'infinity'::timestamptz) as in_window
   from saga_instance where saga_id > %(after)s order by saga_id limit %(limit)s)
union all
(select saga_id, (instance ->> 'ended_at')::timestamptz
                 >= coalesce(%(since)s, '-infinity'::timestamptz)
        and (instance ->> 'started_at')::timestamptz
            < coalesce(%(until)s, 'infinity'::timestamptz)
   from saga_archive where saga_id > %(after)s order by saga_id limit %(limit)s)
 order by saga_id limit %(limit)s"""
_AUDITED = """
select saga_id, definition, state, data ->> 'order_id' as order_id
  from saga_instance where saga_id = any(%(ids)b::uuid[])
 union all
select saga_id, instance ->> 'definition', instance ->> 'state', instance -> 'data' ->> 'order_id'
  from saga_archive
 where saga_id = any(%(ids)b::uuid[])"""


@dataclass(frozen=True)
class SagaFilter:
    """The instances to list; None matches all."""

    state: str | None = None
    awaits: str | None = None  # a step
    older_than_seconds: float | None = None
    customer: str | None = None
    reason: str | None = None
    stuck: bool = False


@dataclass(frozen=True)
class StuckFilter:
    """The stuck instances to list; None matches all."""

    awaits: str | None = None  # a step
    older_than_seconds: float | None = None
    overdue_by_seconds: float = 0
    """List also instances that are not stuck, but whose deadline passed so long ago."""


@dataclass(frozen=True)
class LogEntry:
    """An entry of the saga log: when it was written, and by which orchestrator."""

    id: int
    at: datetime
    entry: Entry
    process: str


@dataclass(frozen=True)
class Parked:
    """An instance that waits at a gate, and why a person is asked."""

    seen: Seen
    why: str | None


@dataclass(frozen=True)
class Stuck:
    """A stuck or overdue instance, and the last trouble in its log."""

    seen: Seen
    trouble: LogEntry | None


@dataclass(frozen=True)
class SagaStatus:
    """Counts of living instances, of ended ones that are never archived, and of dead letters."""

    alive: int
    stuck: int
    overdue: int
    dead_letters: int = 0
    undeployed: Sequence[str] = ()  # definitions of living instances that no release has: order v2
    unjudgeable: int = 0  # instances that a release with their definition cannot decide about
    never_archived: Mapping[str, int] = field(default_factory=dict)
    """Ended instances of definitions that are not deployed, counted up to COUNTED."""


class Queries:
    """The operator's queries. Pages begin after the last row of the page before."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def saga(self, saga_id: UUID) -> Seen | None:
        async with self._db.reading() as tx:
            return await census.find(tx, saga_id)

    async def saga_ids(self, low: UUID, high: UUID, limit: int) -> list[UUID]:
        async with self._db.reading() as tx:
            rows = await tx.fetch(_IDS, {"low": low, "high": high, "limit": limit})
        return [row.saga_id for row in rows]

    async def sagas(self, which: SagaFilter, after: Seen | None, limit: int) -> list[Seen]:
        """Return a page of instances, newest first."""
        before, before_id = _place(after) or _FIRST_PAGE
        async with self._db.reading() as tx:
            await tx.plan_by_values()
            rows = await tx.fetch(
                _PAGE,
                {
                    "state": which.state,
                    "awaits": which.awaits,
                    "older_than": which.older_than_seconds,
                    "customer": which.customer,
                    "reason": which.reason,
                    "stuck": which.stuck,
                    "before": before,
                    "before_id": before_id,
                    "limit": limit,
                },
            )
        return [seen_of(row) for row in rows]

    async def timeline(self, saga_id: UUID, after: int, limit: int) -> list[LogEntry]:
        """Return entries of a saga's log after entry `after`.

        Ids are in the order of what happened, since each entry was written under the lock of its
        instance's row.
        """
        which = {"saga_id": saga_id, "after": after, "limit": limit}
        async with self._db.reading() as tx:
            return [_log_entry(row) for row in await tx.fetch(_TIMELINE, which)]

    async def waiting(self, customer: str | None, after: Seen | None, limit: int) -> list[Parked]:
        """Return a page of instances parked at a gate, oldest first."""
        place, place_id = _place(after) or _BEFORE_ALL
        async with self._db.reading() as tx:
            await tx.plan_by_values()
            rows = await tx.fetch(
                _WAITING,
                {"customer": customer, "after": place, "after_id": place_id, "limit": limit},
            )
        return [Parked(seen_of(row), row.why) for row in rows]

    async def last_decision(self, saga_id: UUID) -> LogEntry | None:
        """Return the last decision about a saga's gate, or the request to compensate it."""
        async with self._db.reading() as tx:
            rows = await tx.fetch(_DECIDED, (saga_id,))
        return _log_entry(rows[0]) if rows else None

    async def stuck(self, which: StuckFilter, after: Seen | None, limit: int) -> list[Stuck]:
        """Return a page of stuck and overdue instances, oldest first."""
        place, place_id = _place(after) or _BEFORE_ALL
        async with self._db.reading() as tx:
            await tx.plan_by_values()
            rows = await tx.fetch(
                _STUCK,
                {
                    "awaits": which.awaits,
                    "older_than": which.older_than_seconds,
                    "overdue_by": which.overdue_by_seconds,
                    "after": place,
                    "after_id": place_id,
                    "limit": limit,
                },
            )
        return [Stuck(seen_of(row), None if row.id is None else _log_entry(row)) for row in rows]

    async def status(self, overdue_by_seconds: float, deployed: Sequence[str]) -> SagaStatus:
        """Count instances and dead letters. `deployed` are definitions, as `order v2`."""
        async with self._db.reading() as tx:
            living = tx.queue_query(_STATUS, (overdue_by_seconds,))
            ended = tx.queue_query(_NEVER_ARCHIVED, {"known": list(deployed), "most": COUNTED})
            await tx.sync()
        counts = living.rows[0]._asdict()
        return SagaStatus(**counts, never_archived={r.definition: r.sagas for r in ended.rows})

    async def actions(
        self, which: ActionFilter, before: int | None, limit: int
    ) -> list[RecordedAction]:
        """Return a page of what operators did, newest first."""
        async with self._db.reading() as tx:
            return await actions.page(tx, which, before, limit)

    async def watched(self, after: str | None, limit: int) -> list[Watched]:
        """Return a page of the watch list, by customer."""
        async with self._db.reading() as tx:
            return await watch_list.page(tx, after, limit)

    async def dead_letter_groups(self, which: DeadLetterFilter, limit: int) -> list[Group]:
        """Return dead letters counted by queue and reason, largest group first."""
        async with self._db.reading() as tx:
            return await store.groups(tx, which, limit)

    async def dead_letters(
        self, which: DeadLetterFilter, after: UUID | None, limit: int
    ) -> list[StoredDeadLetter]:
        """Return a page of dead letters by queue and reason, oldest first."""
        async with self._db.reading() as tx:
            return await store.page(tx, which, after, limit)

    async def dead_letter(self, letter_id: UUID) -> FullDeadLetter | None:
        async with self._db.reading() as tx:
            return await store.find(tx, letter_id)

    async def dead_letter_ids(self, low: UUID, high: UUID, limit: int) -> list[UUID]:
        async with self._db.reading() as tx:
            return await store.ids_between(tx, low, high, limit)

    async def touched(self, query: TouchedQuery) -> TouchedPage:
        """Return the ids of the next sagas that were active in the audit's window."""
        async with self._db.reading() as tx:
            return TouchedPage.of(await tx.fetch(_TOUCHED, query.model_dump()), query.limit)

    async def audited(self, saga_ids: Sequence[UUID]) -> dict[UUID, AuditedInstance]:
        """Return what the audit compares of those sagas that exist."""
        if not saga_ids:
            return {}
        async with self._db.reading() as tx:
            rows = await tx.fetch(_AUDITED, {"ids": list(saga_ids)})
        return {
            row.saga_id: AuditedInstance(
                row.definition, State(row.state), UUID(row.order_id) if row.order_id else None
            )
            for row in rows
        }


def _place(seen: Seen | None) -> tuple[datetime, UUID] | None:
    return None if seen is None else (seen.started_at, seen.instance.saga_id)


def _log_entry(row: Any) -> LogEntry:
    direction = Direction(row.direction) if row.direction else None
    entry = Entry(row.entry, row.step, direction, row.attempt, row.detail, row.answered_by)
    return LogEntry(row.id, row.at, entry, row.process)
