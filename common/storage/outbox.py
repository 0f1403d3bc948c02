"""The outbox table: envelopes committed together with the state that caused them (rule 2).

Rows are claimed with SKIP LOCKED and per destination, so that neither a slow peer nor one dead
queue with a million rows delays the others (rule 16).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from common.messages.envelope import Envelope
from common.storage.db import OutboxRow, Tx


class Outgoing(NamedTuple):
    """A message to append to the outbox."""

    destination: str  # a queue
    envelope: Envelope | str  # or a reply already encoded


class Backlog(NamedTuple):
    """The outbox's depth and the age of its oldest row."""

    rows: int  # counted to MOST
    oldest_seconds: float  # 0: there are none


async def append(tx: Tx, messages: Sequence[Outgoing]) -> None:
    """Append these to the outbox, at most once in a transaction.

    After the commit the rows are handed to this process's relay.
    """
    if not messages:
        return
    encoded = [(to, e if isinstance(e, str) else e.encode()) for to, e in messages]
    ids = tx.queue_returning(
        "insert into outbox (destination, envelope)"
        " select destination, envelope from unnest(%b::text[], %b::text[])"
        "   with ordinality as k (destination, envelope, n) order by n returning id",
        ([to for to, _ in encoded], [envelope for _, envelope in encoded]),
    )
    tx.sends(encoded, ids)


# The recursion hops from destination to destination along the primary key. `patience` is how long
# the transaction may then be idle, while the relay waits for the broker.
_TAKE = """
with recursive destinations as (
  (select destination from outbox order by destination limit 1)
  union all
  select (select o.destination from outbox o where o.destination > d.destination order by 1 limit 1)
    from destinations d where d.destination is not null
)
select o.destination, o.id, o.envelope
  from (select set_config('idle_in_transaction_session_timeout', %(patience)s, true)) patience
 cross join destinations d
 cross join lateral (
   select destination, id, envelope from outbox
    where destination = d.destination
      and created_at <= clock_timestamp() - make_interval(secs => %(age)s)
    order by id limit %(rows)s for update skip locked
 ) o
 where d.destination is not null and d.destination <> all(%(paused)b::text[])"""


# The first row of each destination is its oldest, but for transactions that overlapped.
MOST = 10_000
_BACKLOG = """
with recursive destinations as (
  (select destination from outbox order by destination limit 1)
  union all
  select (select o.destination from outbox o where o.destination > d.destination order by 1 limit 1)
    from destinations d where d.destination is not null
)
select (select count(*) from (select from outbox limit %s) counted),
       coalesce(extract(epoch from max(now() - first.created_at)), 0)::float8
  from destinations d cross join lateral (
    select created_at from outbox where destination = d.destination order by id limit 1) first"""


async def backlog(tx: Tx) -> Backlog:
    """Read the backlog; as cheap for millions of rows as for few."""
    return Backlog(*(await tx.fetch(_BACKLOG, (MOST,)))[0])


async def take(
    tx: Tx, rows: int, paused: Collection[str], patience_seconds: float, age_seconds: float = 0.0
) -> list[OutboxRow]:
    """Lock up to `rows` oldest rows of that age of each destination that is not paused."""
    patience = str(round(patience_seconds * 1000))
    found = await tx.fetch(
        _TAKE, {"rows": rows, "paused": list(paused), "patience": patience, "age": age_seconds}
    )
    return [OutboxRow(*row) for row in found]


async def remove(tx: Tx, rows: Sequence[OutboxRow]) -> None:
    """Delete these rows, a destination a statement.

    The table's statistics say that it is empty: the plan of a join would rely on them.
    """
    ids: dict[str, list[int]] = {}
    for row in rows:
        ids.setdefault(row.destination, []).append(row.id)
    for destination, gone in ids.items():
        tx.queue_write(
            "delete from outbox where destination = %s and id = any(%b::bigint[])",
            (destination, gone),
            other_rows="each write is of another destination",
        )
