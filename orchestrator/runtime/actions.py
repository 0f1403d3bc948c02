"""The audit log: one row for each action of an operator, which cannot be changed.

An action is recorded in the transaction that carries it out: by `record()`, or by `Batch.record()`
where the saga's timeline shows it too. Must not know: what any action does, HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from common.storage.db import Tx, columns

DONE, REFUSED = "done", "refused"


@dataclass(frozen=True, slots=True)
class OperatorAction:
    """An action of a person, carried out or refused."""

    actor: str
    action: str  # compensate, retry, resolve, approve, redrive ...
    reason: str
    saga_id: UUID | None = None
    about: str | None = None  # what else it is about: a step, a dead letter, a customer
    outcome: str = DONE
    detail: str | None = None  # why it was refused; what came of it

    def refused(self, why: str) -> OperatorAction:
        return replace(self, outcome=REFUSED, detail=why)

    def __str__(self) -> str:
        """Return the line of a saga's timeline: `ops: resolve reserve_stock (reason): detail`."""
        what = " ".join(filter(None, (self.action, self.about)))
        return f"{self.actor}: {what} ({self.reason})" + (f": {self.detail}" if self.detail else "")


@dataclass(frozen=True, slots=True)
class RecordedAction:
    """An action as stored in the audit log."""

    id: int
    at: datetime
    action: OperatorAction
    process: str


@dataclass(frozen=True, slots=True)
class ActionFilter:
    """A filter of actions; None matches all."""

    saga_id: UUID | None = None
    actor: str | None = None
    action: str | None = None
    outcome: str | None = None


def record(tx: Tx, actions: Sequence[OperatorAction], process: str) -> None:
    if actions:
        tx.queue_write(
            "insert into operator_action"
            "       (actor, action, reason, saga_id, about, outcome, detail, process)"
            " select actor, action, reason, saga_id, about, outcome, detail, %s"
            "   from unnest(%b::text[], %b::text[], %b::text[], %b::uuid[], %b::text[], %b::text[],"
            "               %b::text[]) with ordinality"
            "     as k (actor, action, reason, saga_id, about, outcome, detail, n)"
            " order by n",
            [process, *columns(map(astuple, actions))],
        )


async def page(
    tx: Tx, wanted: ActionFilter, before: int | None, limit: int
) -> list[RecordedAction]:
    """Return a page of actions, newest first; `before` is the last id of the page before."""
    await tx.plan_by_values()
    rows = await tx.fetch(
        "select id, at, actor, action, reason, saga_id, about, outcome, detail, process"
        "  from operator_action"
        " where (%(saga_id)s::uuid is null or saga_id = %(saga_id)s)"
        "   and (%(actor)s::text is null or actor = %(actor)s)"
        "   and (%(action)s::text is null or action = %(action)s)"
        "   and (%(outcome)s::text is null or outcome = %(outcome)s)"
        "   and (%(before)s::bigint is null or id < %(before)s)"
        " order by id desc limit %(limit)s",
        {**asdict(wanted), "before": before, "limit": limit},
    )
    return [_recorded(**row._asdict()) for row in rows]


def _recorded(id: int, at: datetime, process: str, **fields: Any) -> RecordedAction:
    return RecordedAction(id, at, OperatorAction(**fields), process)
