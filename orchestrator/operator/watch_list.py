"""The watch list: customers whose orders a person wants to see before they are charged.

Each change goes to the audit log in its own transaction. When a saga comes to its gate, the list
is read in runtime/store.py, with the saga.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from common.storage.db import Database, Tx
from orchestrator.runtime.actions import OperatorAction, record


@dataclass(frozen=True)
class Watched:
    """A customer on the list: since when, why, and who put them there."""

    customer: str
    actor: str
    reason: str
    added_at: datetime


async def page(tx: Tx, after: str | None, limit: int) -> list[Watched]:
    """Return the customers that follow `after`, by name."""
    rows = await tx.fetch(
        "select customer, actor, reason, added_at from watched_customer"
        " where customer > %s order by customer limit %s",
        (after or "", limit),
    )
    return [Watched(*row) for row in rows]


class WatchList:
    """Changes the list. `process` is recorded in the audit log."""

    def __init__(self, db: Database, process: str) -> None:
        self._db = db
        self._process = process

    async def add(self, customer: str, actor: str, reason: str) -> Watched:
        """Add a customer; if they are on the list, replace the reason."""
        async with self._db.transaction(None) as tx:
            rows = await tx.fetch(
                "insert into watched_customer (customer, actor, reason) values (%s, %s, %s)"
                " on conflict (customer) do update"
                "    set actor = excluded.actor, reason = excluded.reason, added_at = now()"
                " returning customer, actor, reason, added_at",
                (customer, actor, reason),
            )
            record(tx, [OperatorAction(actor, "watch", reason, about=customer)], self._process)
        return Watched(*rows[0])

    async def remove(self, customer: str, actor: str, reason: str) -> bool:
        """Remove a customer; return whether they were on the list."""
        action = OperatorAction(actor, "unwatch", reason, about=customer)
        async with self._db.transaction(None) as tx:
            rows = await tx.fetch(
                "delete from watched_customer where customer = %s returning customer", (customer,)
            )
            outcome = action if rows else action.refused("not on the watch list")
            record(tx, [outcome], self._process)
        return bool(rows)
