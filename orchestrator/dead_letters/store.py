"""The SQL of dead letters.

Owns the table dead_letter. Must not know: what a dead letter leads to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from common.messages.envelope import Direction
from common.storage.db import Tx, columns
from orchestrator.dead_letters.letter import About, DeadLetter

OPEN = "open"

# In the order of ids, in which all transactions lock these rows. A redelivery changes nothing.
_KEEP = """
insert into dead_letter as d
       (letter_id, queue, reason, detail, saga_id, step, direction, reply, message_id, type, body,
        size, readable, headers, set_aside, count)
select letter_id, queue, reason, detail, saga_id, step, direction, reply, message_id, type, body,
       size, readable, headers::jsonb, set_aside, count
  from unnest(%b::uuid[], %b::text[], %b::text[], %b::text[], %b::uuid[], %b::text[], %b::text[],
              %b::bool[], %b::uuid[], %b::text[], %b::bytea[], %b::int[], %b::bool[], %b::text[],
              %b::text[], %b::int[])
    as k (letter_id, queue, reason, detail, saga_id, step, direction, reply, message_id, type, body,
          size, readable, headers, set_aside, count)
 order by letter_id
on conflict (letter_id) do update
   set count = d.count + excluded.count, last_seen = now(), set_aside = excluded.set_aside,
       detail = excluded.detail, body = excluded.body, size = excluded.size,
       readable = excluded.readable, headers = excluded.headers,
       state = 'open', settled_at = null, settled_by = null, settled_why = null
 where d.set_aside <> excluded.set_aside"""


async def last_occasions(tx: Tx, letter_ids: Sequence[UUID]) -> dict[UUID, str]:
    """Return the last occasion of each of these that is stored."""
    rows = await tx.fetch(
        "select letter_id, set_aside from dead_letter where letter_id = any(%b::uuid[])",
        [list(letter_ids)],
    )
    return dict(rows)


def keep(tx: Tx, counted: Sequence[tuple[DeadLetter, int]]) -> None:
    """Store dead letters, each with how often it came; one already stored is open again."""
    if not counted:
        return
    rows = [
        (d.letter_id, d.queue, d.reason, d.detail, about.saga_id, about.step,
         about.direction and about.direction.value, about.reply, about.message_id, about.type,
         d.body, d.size, d.readable, json.dumps(d.headers), d.occasion, count)
        for d, about, count in ((d, d.about, count) for d, count in counted)
    ]  # fmt: skip
    tx.queue_write(_KEEP, columns(rows))


@dataclass(frozen=True)
class DeadLetterFilter:
    """A filter of dead letters; None matches all."""

    state: str = OPEN
    queue: str | None = None
    reason: str | None = None
    saga_id: UUID | None = None


@dataclass(frozen=True)
class Group:
    """The dead letters from one queue with one reason."""

    queue: str
    reason: str
    letters: int
    came: int  # how often they came, in all
    first_seen: datetime
    last_seen: datetime


@dataclass(frozen=True)
class StoredDeadLetter:
    """A dead letter as stored, without headers and body."""

    letter_id: UUID
    queue: str
    reason: str
    detail: str | None
    saga_id: UUID | None
    step: str | None
    direction: str | None
    reply: bool
    message_id: UUID | None
    type: str | None
    size: int
    readable: bool
    count: int
    first_seen: datetime
    last_seen: datetime
    state: str
    settled_at: datetime | None
    settled_by: str | None
    settled_why: str | None


@dataclass(frozen=True)
class FullDeadLetter:
    """A dead letter with headers and body."""

    stored: StoredDeadLetter
    headers: Mapping[str, Any]
    body: bytes


@dataclass(frozen=True)
class LockedDeadLetter:
    """A locked dead letter; its body only if it can be redriven."""

    letter_id: UUID
    queue: str
    reason: str
    state: str
    settled_by: str | None
    body: bytes | None


_KEPT = """
select letter_id, queue, reason, detail, saga_id, step, direction, reply, message_id, type, size,
       readable, count, first_seen, last_seen, state, settled_at, settled_by, settled_why"""
_WANTED = """
  from dead_letter
 where state = %(state)s
   and (%(queue)s::text is null or queue = %(queue)s)
   and (%(reason)s::text is null or reason = %(reason)s)
   and (%(saga_id)s::uuid is null or saga_id = %(saga_id)s)"""
_GROUPS = (
    "select queue, reason, count(*) as letters, sum(count) as came, min(first_seen) as first_seen,"
    " max(last_seen) as last_seen"
    + _WANTED
    + " group by queue, reason order by 3 desc, 1, 2 limit %(limit)s"
)
_ONE = _KEPT + ", headers, body from dead_letter where letter_id = %s"

# In the order of one index or the other, so that a page begins where the one before it ended.
_BY_QUEUE = (
    _KEPT
    + _WANTED
    + """
   and (%(first_seen)s::timestamptz is null or (queue, reason, first_seen, letter_id)
        > (%(from_queue)s, %(from_reason)s, %(first_seen)s, %(letter_id)s))
 order by queue, reason, first_seen, letter_id limit %(limit)s"""
)
_BY_REASON = (
    _KEPT
    + _WANTED
    + """
   and (%(first_seen)s::timestamptz is null or (reason, queue, first_seen, letter_id)
        > (%(from_reason)s, %(from_queue)s, %(first_seen)s, %(letter_id)s))
 order by reason, queue, first_seen, letter_id limit %(limit)s"""
)
_FROM = ("from_queue", "from_reason", "first_seen", "letter_id")


async def groups(tx: Tx, wanted: DeadLetterFilter, limit: int) -> list[Group]:
    """Return the groups of dead letters, the largest first."""
    await tx.plan_by_values()
    rows = await tx.fetch(_GROUPS, {**asdict(wanted), "limit": limit})
    return [Group(**row._asdict()) for row in rows]


async def page(
    tx: Tx, wanted: DeadLetterFilter, after: UUID | None, limit: int
) -> list[StoredDeadLetter]:
    """Return a page by queue and reason, oldest first; `after` is the last of the page before."""
    place: tuple[Any, ...] = (None,) * len(_FROM)
    await tx.plan_by_values()
    if after is not None:
        rows = await tx.fetch(
            "select queue, reason, first_seen, letter_id from dead_letter where letter_id = %s",
            (after,),
        )
        if not rows:
            return []
        (place,) = rows
    by_reason = wanted.reason is not None and wanted.queue is None
    rows = await tx.fetch(
        _BY_REASON if by_reason else _BY_QUEUE,
        {**asdict(wanted), **dict(zip(_FROM, place, strict=True)), "limit": limit},
    )
    return [StoredDeadLetter(**row._asdict()) for row in rows]


async def find(tx: Tx, letter_id: UUID) -> FullDeadLetter | None:
    for row in await tx.fetch(_ONE, (letter_id,)):
        fields = row._asdict()
        headers, body = fields.pop("headers"), fields.pop("body")
        return FullDeadLetter(StoredDeadLetter(**fields), headers, body)
    return None


async def ids_between(tx: Tx, low: UUID, high: UUID, limit: int) -> list[UUID]:
    rows = await tx.fetch(
        "select letter_id from dead_letter where letter_id between %s and %s order by 1 limit %s",
        (low, high, limit),
    )
    return [row.letter_id for row in rows]


async def abouts(tx: Tx, letter_ids: Sequence[UUID]) -> dict[UUID, About]:
    """Return what each of these is about, which never changes."""
    rows = await tx.fetch(
        "select letter_id, saga_id, step, direction, message_id, type, reply from dead_letter"
        " where letter_id = any(%b::uuid[])",
        [list(letter_ids)],
    )
    return {
        row.letter_id: About(
            row.saga_id,
            row.step,
            Direction(row.direction) if row.direction else None,
            row.message_id,
            row.type,
            row.reply,
        )
        for row in rows
    }


async def lock(tx: Tx, letter_ids: Sequence[UUID]) -> list[LockedDeadLetter]:
    """Lock these in the order of their ids, until the transaction ends."""
    rows = await tx.fetch(
        "select letter_id, queue, reason, state, settled_by,"
        "       case when readable then body end as body"
        "  from dead_letter where letter_id = any(%b::uuid[]) order by letter_id for update",
        [sorted(letter_ids)],
    )
    return [LockedDeadLetter(**row._asdict()) for row in rows]


def settle(tx: Tx, letter_ids: Sequence[UUID], state: str, by: str, why: str) -> None:
    """Mark these as redriven or discarded by this person."""
    if letter_ids:
        tx.queue_write(
            "update dead_letter set state = %s, settled_at = now(), settled_by = %s,"
            " settled_why = %s where letter_id = any(%b::uuid[])",
            (state, by, why, list(letter_ids)),
        )
