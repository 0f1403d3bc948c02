"""Whether the system has come to rest, and if not, what stands.

Owns: the definition of quiescence (design.md, section 1) and waiting for it with a
deadline. Must not know: any code of the services.

At rest means: no order PENDING, no instance alive, every outbox empty, and then nothing
ready or unacked in any queue, dead letters among them; and all of that a second time, because a
message can slip from a queue to an outbox between two looks. What is parked at a gate is at rest,
with its order PENDING, until a person decides or its deadline passes; but not before its order
knows that the saga began, since it is asked for again until then.

Who counts the queues? Management API and `rabbitmqctl list_queues` report a quorum queue's
figures of up to 5 s ago; a passive declare is exact and does not see what is unacked. So
each queue's leader is asked, by a consistent query (`rabbitmqctl eval`, half a second).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple
from uuid import UUID

import psycopg

from chaos.judge.snapshot import SAGAS, count_outboxes
from common.messages.topology import is_dead_letter_queue

POLL_SECONDS = 0.25
SHOWN = 5  # instances named when it does not come to rest

OUR_QUEUES = "chaos."  # the loader of the catalogue may die before it has read its replies
COUNT_QUEUES = """
[begin
   {resource, _, _, Name} = amqqueue:get_name(Q),
   {Ready, Unacked} = case amqqueue:get_type(Q) of
     rabbit_quorum_queue ->
       {ok, Counts, _} = ra:consistent_query(amqqueue:get_pid(Q), fun(S) ->
         {rabbit_fifo:query_messages_ready(S), rabbit_fifo:query_messages_checked_out(S)}
       end),
       Counts;
     _ ->
       [{_, R}, {_, U}] = rabbit_amqqueue:info(Q, [messages_ready, messages_unacknowledged]),
       {R, U}
   end,
   {Name, Ready, Unacked}
 end || Q <- rabbit_amqqueue:list()].
"""

RabbitmqCtl = Callable[..., str]
"""Runs rabbitmqctl on the broker's machine with these arguments; its standard output."""


class Messages(NamedTuple):
    ready: int
    unacked: int


@dataclass(frozen=True)
class Alive:
    """An instance that has not ended."""

    saga_id: UUID
    state: str
    awaits: str


@dataclass(frozen=True)
class Standing:
    """What has not come to rest; all empty if everything has."""

    pending_orders: int = 0
    alive: tuple[Alive, ...] = ()
    outboxes: dict[str, int] = field(default_factory=dict)
    queues: dict[str, Messages] = field(default_factory=dict)
    problem: str | None = None  # why it could not be counted

    @property
    def anything(self) -> bool:
        return bool(
            self.pending_orders or self.alive or self.outboxes or self.queues or self.problem
        )

    def lines(self) -> list[str]:
        """For a person, one thing per line."""
        found = [f"outbox of {s}: {n} messages" for s, n in self.outboxes.items()]
        found += [
            f"queue {q}: {n.ready} ready, {n.unacked} unacked" for q, n in self.queues.items()
        ]
        if self.pending_orders:
            found.append(f"{self.pending_orders} orders PENDING")
        found += [f"saga {a.saga_id} {a.state}, awaits {a.awaits}" for a in self.alive[:SHOWN]]
        if len(self.alive) > SHOWN:
            found.append(f"... and {len(self.alive) - SHOWN} more sagas")
        if self.problem:
            found.append(self.problem)
        return found


def wait_for_quiescence(
    judge_dsn: str,
    rabbitmqctl: RabbitmqCtl,
    *,
    deadline_seconds: float,
    style: str = "orchestrated",
    seen: Callable[[Standing], None] = lambda _: None,
) -> Standing:
    """Returns with nothing standing, or with what stands when the time is up."""
    deadline = time.monotonic() + deadline_seconds
    while True:
        standing = look_twice(judge_dsn, rabbitmqctl, style)
        seen(standing)
        if not standing.anything or time.monotonic() > deadline:
            return standing
        time.sleep(POLL_SECONDS)


def look_twice(judge_dsn: str, rabbitmqctl: RabbitmqCtl, style: str = "orchestrated") -> Standing:
    """The first thing that is found not to be at rest."""
    standing = Standing()
    looks = partial(_tables, judge_dsn, style), partial(_queues, rabbitmqctl, style)
    for look in looks * 2:
        try:
            standing = look()
        except (psycopg.OperationalError, OSError, ValueError) as error:
            # A server that is down or starting is not at rest; the deadline ends the waiting.
            return Standing(problem=f"cannot be counted: {error}")
        if standing.anything:
            return standing
    return standing


def _tables(judge_dsn: str, style: str) -> Standing:
    with psycopg.connect(judge_dsn, autocommit=True) as db:
        outboxes = {schema: n for schema, n in count_outboxes(db).items() if n}
        (pending,) = db.execute(
            f"""
            select count(*) from order_svc.customer_order
            where status = 'PENDING' and not (saga_known and order_id in (
              select saga_id from {SAGAS[style]}
              where state = 'WAITING' and next_deadline > now()))"""  # noqa: S608 - likewise
        ).fetchone() or (0,)
        alive = db.execute(
            f"""
            select saga_id, state, steps from {SAGAS[style]}
            where ended_at is null and (state <> 'WAITING' or next_deadline <= now())
            order by started_at"""  # noqa: S608 - one of two names of ours
        ).fetchall()
    return Standing(
        pending_orders=pending,
        alive=tuple(
            Alive(saga_id, state, _awaited({s: e["status"] for s, e in steps.items()}))
            for saga_id, state, steps in alive
        ),
        outboxes=outboxes,
    )


def _awaited(steps: dict[str, str]) -> str:
    waiting = ("sent", "undoing", "fencing", "waiting")
    return ", ".join(f"{s} ({v})" for s, v in steps.items() if v in waiting) or "nothing"


def _queues(rabbitmqctl: RabbitmqCtl, style: str) -> Standing:
    """Count every queue but the experiment's own, and dead letters where nobody takes them in."""
    counts = count_queues(rabbitmqctl)
    kept = is_dead_letter_queue if style == "choreographed" else lambda _: False
    waiting = {
        queue: messages
        for queue, messages in counts.items()
        if any(messages) and not kept(queue) and not queue.startswith(OUR_QUEUES)
    }
    return Standing(queues=waiting)


def count_queues(rabbitmqctl: RabbitmqCtl) -> dict[str, Messages]:
    """Every queue, as its leader counts it at this moment. Raises ValueError or OSError."""
    answer = json.loads(rabbitmqctl("--formatter", "json", "eval", COUNT_QUEUES))
    return {name: Messages(ready, unacked) for name, ready, unacked in answer["value"]}
