"""The watch list: customers whose orders a person wants to see before they are charged.

Owns: its SQL for operators; every change stands in the log of their actions. Who is on it when a
saga comes to its gate is read by store.py, with the saga. Must not know: what a gate is.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from common.storage.db import Tx
from orchestrator.runtime.actions import OperatorAction, record


@dataclass(frozen=True)
class Watched:
    """A customer on the list: since when, why, and who put them there."""

    customer: str
    actor: str
    reason: str
    added_at: datetime


async def page(tx: Tx, after: str | None, limit: int) -> list[Watched]:
    """By customer; `after` is the last one of the page before."""
    rows = await tx.fetch(
        "select customer, actor, reason, added_at from watched_customer"
        " where customer > %s order by customer limit %s",
        (after or "", limit),
    )
    return [Watched(*row) for row in rows]


async def add(tx: Tx, customer: str, actor: str, reason: str, process: str) -> Watched:
    """Once more gives another reason."""
    rows = await tx.fetch(
        "insert into watched_customer (customer, actor, reason) values (%s, %s, %s)"
        " on conflict (customer) do update"
        "    set actor = excluded.actor, reason = excluded.reason, added_at = now()"
        " returning customer, actor, reason, added_at",
        (customer, actor, reason),
    )
    record(tx, [OperatorAction(actor, "watch", reason, about=customer)], process)
    return Watched(*rows[0])


async def remove(tx: Tx, customer: str, actor: str, reason: str, process: str) -> bool:
    """Whether they were on it."""
    rows = await tx.fetch(
        "delete from watched_customer where customer = %s returning customer", (customer,)
    )
    action = OperatorAction(actor, "unwatch", reason, about=customer)
    record(tx, [action if rows else action.refused("not on the watch list")], process)
    return bool(rows)
