"""The SQL that only reads instances and their logs, for customers' questions and operators.

Owns: filters, pages, and the order in which instances are listed. Must not know: how
an instance changes (store.py), or what a page looks like.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from common.messages.contracts import TouchedPage, TouchedQuery
from common.messages.envelope import Direction
from common.storage.db import Tx
from orchestrator.engine.decide import Entry
from orchestrator.engine.instance import State
from orchestrator.operator.audit import Known
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

# Newest first. Those alive are few and have no index in this order, those ended have one.
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

_DECIDED = """
select id, at, entry, step, direction, attempt, detail, answered_by, process from saga_log
 where saga_id = %s and entry in ('approved', 'rejected', 'expired', 'compensate_asked')
 order by id desc limit 1"""

# Oldest first, by the index of the living; each with the last trouble in its log.
# What a person discarded is said for as long as its answer is awaited: silence follows it anyway.
_TROUBLE = """,
       log_id, log_at, log_entry, log_step, log_direction, log_attempt, log_detail, log_by,
       log_process
  from saga_instance i left join lateral (
    select l.id as log_id, l.at as log_at, l.entry as log_entry, l.step as log_step,
           l.direction as log_direction, l.attempt as log_attempt, l.detail as log_detail,
           l.answered_by as log_by, l.process as log_process
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
_STANDS_STILL = """
 where ended_at is null
   and (stuck_since is not null
        or next_deadline < now() - make_interval(secs => %(overdue_by)s))
   and (%(awaits)s::text is null
        or steps -> %(awaits)s ->> 'status' in ('sent', 'undoing', 'fencing'))
   and (%(older_than)s::float8 is null
        or started_at < now() - make_interval(secs => %(older_than)s))
   and (started_at, saga_id) > (%(after)s, %(after_id)s)
 order by started_at, saga_id limit %(limit)s"""
_STUCK = COLUMNS + _TROUBLE + _STANDS_STILL
_LOGGED = 9

_STANDING = """
select count(*) as alive, count(stuck_since) as stuck,
       count(*) filter (where next_deadline < now() - make_interval(secs => %s)) as overdue,
       (select count(*) from dead_letter where state = 'open') as dead_letters,
       array(select distinct definition || ' v' || version from saga_instance
              where ended_at is null and undeployed and unjudgeable is null) as undeployed,
       count(unjudgeable) filter (where undeployed) as unjudgeable
  from saga_instance where ended_at is null"""
# Of each definition that has ended instances, one after the other by the index on them; of what is
# not deployed, how many, up to so many.
_KEPT = """
with recursive ended (definition, version) as (
  (select definition, version from saga_instance where ended_at is not null
    order by definition, version limit 1)
   union all
  select following.* from ended e cross join lateral (
    select definition, version from saga_instance
     where ended_at is not null and (definition, version) > (e.definition, e.version)
     order by definition, version limit 1) following)
select e.definition || ' v' || e.version, counted.sagas
  from ended e cross join lateral (
    select count(*) as sagas
      from (select from saga_instance i
             where ended_at is not null and i.definition = e.definition and i.version = e.version
             limit %(most)s) some_of_it) counted
 where not e.definition || ' v' || e.version = any(%(known)b::text[])"""

# For the audit.
_TOUCHED = """
(select saga_id, coalesce(ended_at, 'infinity') >= coalesce(%(since)s, '-infinity'::timestamptz)
        and started_at < coalesce(%(until)s, 'infinity'::timestamptz)
   from saga_instance where saga_id > %(after)s order by saga_id limit %(limit)s)
union all
(select saga_id, (instance ->> 'ended_at')::timestamptz
                 >= coalesce(%(since)s, '-infinity'::timestamptz)
        and (instance ->> 'started_at')::timestamptz
            < coalesce(%(until)s, 'infinity'::timestamptz)
   from saga_archive where saga_id > %(after)s order by saga_id limit %(limit)s)
 order by saga_id limit %(limit)s"""
_KNOWN = """
select saga_id, definition, state, data ->> 'order_id'
  from saga_instance where saga_id = any(%(ids)b::uuid[])
 union all
select saga_id, instance ->> 'definition', instance ->> 'state', instance -> 'data' ->> 'order_id'
  from saga_archive
 where saga_id = any(%(ids)b::uuid[])"""


@dataclass(frozen=True)
class Wanted:
    """Which instances; what is None does not matter."""

    state: str | None = None
    awaits: str | None = None  # a step
    older_than_seconds: float | None = None
    customer: str | None = None
    reason: str | None = None
    stuck: bool = False


@dataclass(frozen=True)
class Logged:
    """An entry of the saga log: when, and which orchestrator wrote it."""

    id: int
    at: datetime
    entry: Entry
    process: str


@dataclass(frozen=True)
class Parked:
    """An instance that waits at a gate, and why it does."""

    seen: Seen
    why: str | None


@dataclass(frozen=True)
class Stuck:
    """An instance that stands still, and the last trouble its log tells of."""

    seen: Seen
    trouble: Logged | None


@dataclass(frozen=True)
class StuckWanted:
    """Which of those that stand still; what is None does not matter."""

    awaits: str | None = None  # a step
    older_than_seconds: float | None = None
    overdue_by_seconds: float = 0  # besides the stuck, those whose deadline is that long behind


@dataclass(frozen=True)
class Standing:
    """How the living instances fare, which of the ended ones nobody will archive, and how many
    dead letters nobody has dealt with."""

    alive: int
    stuck: int
    overdue: int
    dead_letters: int = 0
    undeployed: Sequence[str] = ()  # definitions of theirs that nobody knows: `order v2`
    unjudgeable: int = 0  # by a release that does know theirs
    kept: Mapping[str, int] = field(default_factory=dict)  # ended, by such a definition: to COUNTED


async def ids_between(tx: Tx, low: UUID, high: UUID, limit: int) -> list[UUID]:
    rows = await tx.fetch(_IDS, {"low": low, "high": high, "limit": limit})
    return [row[0] for row in rows]


async def page(tx: Tx, wanted: Wanted, after: Seen | None, limit: int) -> list[Seen]:
    """Newest first; `after` is the last one of the page before."""
    before, before_id = (
        (after.started_at, after.instance.saga_id) if after is not None else _FIRST_PAGE
    )
    await tx.plan_by_values()
    rows = await tx.fetch(
        _PAGE,
        {
            "state": wanted.state,
            "awaits": wanted.awaits,
            "older_than": wanted.older_than_seconds,
            "customer": wanted.customer,
            "reason": wanted.reason,
            "stuck": wanted.stuck,
            "before": before,
            "before_id": before_id,
            "limit": limit,
        },
    )
    return [seen_of(row) for row in rows]


async def timeline(tx: Tx, saga_id: UUID, after: int, limit: int) -> list[Logged]:
    """In the order in which it happened: an instance's row was locked when each was written."""
    wanted = {"saga_id": saga_id, "after": after, "limit": limit}
    return [_logged(row) for row in await tx.fetch(_TIMELINE, wanted)]


async def waiting(tx: Tx, customer: str | None, after: Seen | None, limit: int) -> list[Parked]:
    """Oldest first; `after` is the last one of the page before."""
    place = (after.started_at, after.instance.saga_id) if after is not None else _BEFORE_ALL
    await tx.plan_by_values()
    rows = await tx.fetch(
        _WAITING,
        {"customer": customer, "after": place[0], "after_id": place[1], "limit": limit},
    )
    return [Parked(seen_of(row), row.why) for row in rows]


async def stuck(tx: Tx, wanted: StuckWanted, after: Seen | None, limit: int) -> list[Stuck]:
    """Oldest first; `after` is the last one of the page before."""
    place = (after.started_at, after.instance.saga_id) if after is not None else _BEFORE_ALL
    await tx.plan_by_values()
    rows = await tx.fetch(
        _STUCK,
        {
            "awaits": wanted.awaits,
            "older_than": wanted.older_than_seconds,
            "overdue_by": wanted.overdue_by_seconds,
            "after": place[0],
            "after_id": place[1],
            "limit": limit,
        },
    )
    return [Stuck(seen_of(row), _trouble(row[-_LOGGED:])) for row in rows]


def _trouble(row: Sequence[Any]) -> Logged | None:
    return _logged(row) if row[0] is not None else None


async def decided(tx: Tx, saga_id: UUID) -> Logged | None:
    """What was decided last about its gate, or about all of it, and by whom."""
    rows = await tx.fetch(_DECIDED, (saga_id,))
    return _logged(rows[0]) if rows else None


async def standing(tx: Tx, overdue_by_seconds: float, deployed: Sequence[str]) -> Standing:
    """`deployed` are the definitions that there are: `order v2`."""
    living = tx.queue_query(_STANDING, (overdue_by_seconds,))
    kept = tx.queue_query(_KEPT, {"known": list(deployed), "most": COUNTED})
    await tx.sync()
    return replace(Standing(*living.rows[0]), kept=dict(kept.rows))


async def touched(tx: Tx, query: TouchedQuery) -> TouchedPage:
    found = await tx.fetch(_TOUCHED, query.model_dump())
    return TouchedPage.of(found, query.limit)


async def known(tx: Tx, saga_ids: Sequence[UUID]) -> dict[UUID, Known]:
    rows = await tx.fetch(_KNOWN, {"ids": list(saga_ids)})
    return {
        saga_id: Known(definition, State(state), UUID(order_id) if order_id else None)
        for saga_id, definition, state, order_id in rows
    }


def _logged(row: Sequence[Any]) -> Logged:
    ident, at, entry, step, direction, attempt, detail, answered_by, process = row
    way = Direction(direction) if direction else None
    return Logged(ident, at, Entry(entry, step, way, attempt, detail, answered_by), process)
