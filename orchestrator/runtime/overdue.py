"""Overdue legs of locked instances: timing them out, and an operator's reconcile.

Must not know: SQL, which instances are looked at, what a timeout leads to.
"""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from common.kit import log
from common.messages.errors import IllegalTransition, Poison
from orchestrator.engine.decide import NeedsAnotherRelease
from orchestrator.engine.inputs import RetryAsked, TimedOut
from orchestrator.runtime import versions
from orchestrator.runtime.actions import OperatorAction
from orchestrator.runtime.batch import Batch

logger = log.get("orchestrator")

MOVED_ON, TIMED_OUT, RETRIED = "nothing: it has moved on", "timed out", "retried"


def time_out(batch: Batch, saga_id: UUID) -> int:
    """Time out the legs of a saga that are overdue by now, under the lock; return their number.

    A saga that cannot be decided is marked, and does not stop the others.
    """
    row = batch.find(saga_id)
    if row is None:
        return 0
    if not batch.deployed.has(row.instance):
        versions.mark_undeployed(batch, saga_id, row)
        return 0
    timed_out = 0
    for (step, direction), attempt in row.instance.timed_legs().items():
        if row.times[step]["deadline"] <= batch.now:
            waiting = batch.now - row.issued(step, direction)
            past_sla = waiting > batch.deployed.policy.stuck_after_seconds
            try:
                batch.apply(saga_id, TimedOut(step, direction, attempt, past_sla))
                timed_out += 1
            except Exception as error:  # even a defect concerns one saga, not all that are due
                logger.exception("saga.unjudgeable", saga_id=saga_id, step=step)
                why = str(error) if isinstance(error, Poison) else repr(error)
                versions.mark_unjudgeable(batch, saga_id, row, why)
    return timed_out


def reconcile(batch: Batch, saga_id: UUID, actor: str, reason: str) -> str:
    """Time out overdue legs, else retry if stuck; return which, in words."""
    row = batch.find(saga_id)
    if row is None or row.instance.state.ended:
        return MOVED_ON
    action = OperatorAction(actor, "reconcile", reason, saga_id)
    try:
        batch.deployed.definition_of(row.instance)
        if time_out(batch, saga_id):
            batch.record(replace(action, detail=TIMED_OUT))
            return TIMED_OUT
        if not row.instance.stuck:
            return MOVED_ON
        batch.apply(saga_id, RetryAsked(actor, reason))
    except (IllegalTransition, NeedsAnotherRelease) as error:
        why = error.refusal if isinstance(error, NeedsAnotherRelease) else str(error)
        batch.record(action.refused(why))
        return f"refused: {why}"
    batch.record(replace(action, detail=RETRIED), logged=True)
    return RETRIED
