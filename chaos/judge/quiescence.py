"""Quiescence: the system has come to rest, or what remains is named.

At rest means: no order PENDING, no instance alive, every outbox empty, and then nothing
ready or unacked in any queue, dead letters among them; and all of that a second time, because a
message can slip from a queue to an outbox between two looks. A saga parked at a gate is at rest,
with its order PENDING, until a person decides or its deadline passes; but not before SagaStarted
has arrived, since the order service repeats StartSaga until then.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple
from uuid import UUID

import psycopg

from chaos.judge.queues import Messages, RabbitmqCtl, count_queues, is_dead_letter_queue
from chaos.judge.snapshot import SAGAS, count_outboxes

SHOWN = 5  # instances named when it does not come to rest
OUR_QUEUES = "chaos."  # the loader of the catalogue may die before it has read its replies


class Alive(NamedTuple):
    """An instance that has not ended."""

    saga_id: UUID
    state: str
    awaits: str


@dataclass(frozen=True)
class Remaining:
    """The parts that have not come to rest; all empty if everything has."""

    pending_orders: int = 0
    alive: tuple[Alive, ...] = ()
    outboxes: dict[str, int] = field(default_factory=dict)
    queues: dict[str, Messages] = field(default_factory=dict)
    problem: str | None = None  # why it could not be counted

    def __bool__(self) -> bool:
        return bool(
            self.pending_orders or self.alive or self.outboxes or self.queues or self.problem
        )

    def lines(self) -> list[str]:
        """Describe it, one thing per line."""
        found = [f"outbox of {s}: {n} messages" for s, n in self.outboxes.items()]
        found += [
            f"queue {q}: {n.ready} ready, {n.unacked} unacked" for q, n in self.queues.items()
        ]
        if self.pending_orders:
            found.append(f"{self.pending_orders} orders PENDING")
        found += [f"saga {a.saga_id} {a.state}, awaits {a.awaits}" for a in self.alive[:SHOWN]]
        if len(self.alive) > SHOWN:
            found.append(f"... and {len(self.alive) - SHOWN} more sagas")
        return [*found, self.problem] if self.problem else found


def what_remains(
    judge_dsn: str, rabbitmqctl: RabbitmqCtl, style: str = "orchestrated"
) -> Remaining:
    """Look at tables and queues, twice; return the first thing that is not at rest."""
    looks = partial(_tables, judge_dsn, style), partial(_queues, rabbitmqctl, style)
    for look in looks * 2:
        try:
            remaining = look()
        except (psycopg.OperationalError, OSError, ValueError) as error:
            # A server that is down or starting is not at rest; the deadline ends the waiting.
            return Remaining(problem=f"cannot be counted: {error}")
        if remaining:
            return remaining
    return Remaining()


def _tables(judge_dsn: str, style: str) -> Remaining:
    with psycopg.connect(judge_dsn, autocommit=True) as db:
        outboxes = {schema: n for schema, n in count_outboxes(db).items() if n}
        (pending,) = db.execute(
            f"""
            select count(*) from order_svc.customer_order
            where status = 'PENDING' and not (saga_known and order_id in (
              select saga_id from {SAGAS[style]}
              where state = 'WAITING' and next_deadline > now()))"""  # noqa: S608 - one of two names of ours
        ).fetchone() or (0,)
        alive = db.execute(
            f"""
            select saga_id, state, steps from {SAGAS[style]}
            where ended_at is null and (state <> 'WAITING' or next_deadline <= now())
            order by started_at"""  # noqa: S608 - one of two names of ours
        ).fetchall()
    return Remaining(
        pending_orders=pending,
        alive=tuple(Alive(saga_id, state, _awaited(steps)) for saga_id, state, steps in alive),
        outboxes=outboxes,
    )


def _awaited(steps: dict[str, dict[str, str]]) -> str:
    statuses = {step: entry["status"] for step, entry in steps.items()}
    waiting = ("sent", "undoing", "fencing", "waiting")
    return ", ".join(f"{s} ({v})" for s, v in statuses.items() if v in waiting) or "nothing"


def _queues(rabbitmqctl: RabbitmqCtl, style: str) -> Remaining:
    """Count every queue but the experiment's own, and dead letters where no process takes them."""
    kept = is_dead_letter_queue if style == "choreographed" else lambda _: False
    waiting = {
        queue: messages
        for queue, messages in count_queues(rabbitmqctl).items()
        if any(messages) and not kept(queue) and not queue.startswith(OUR_QUEUES)
    }
    return Remaining(queues=waiting)
