"""The SQL of progress: the events of each order and each return, and its deadline.

Rows of saga_progress are locked in the order of their ids, before any other row of a transaction.
Deadlines are compared with this database's clock only.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from common.kit.settings import Policy
from common.messages.contracts import SagaView
from common.messages.envelope import Direction, Outcome
from common.messages.shop.order import CancelOrder
from common.participant.participant import Work
from common.storage.db import Tx
from order_svc.choreography import archive
from order_svc.choreography.progress import (
    FORWARD,
    ORDER,
    OUTLINES,
    RETURN,
    Outline,
    RecordedEvent,
    SagaProgress,
)
from order_svc.domain import CANCELLED, OpenedReturn, OrderBook, PlacedOrder, PricedLine
from order_svc.store import OrderStore

_LOCK = """
select saga_id, definition, heard, asked, attempt, stuck_since is not null,
       extract(epoch from clock_timestamp() - heard_at)::float8
  from saga_progress where saga_id = any(%b::uuid[]) order by saga_id for update"""

_BEGIN = """
insert into saga_progress (saga_id, definition, state, heard, steps, next_deadline)
select saga_id, definition, 'RUNNING', heard::jsonb, steps::jsonb, now() + make_interval(secs => %s)
  from unnest(%b::uuid[], %b::text[], %b::text[], %b::text[])
    as k (saga_id, definition, heard, steps)"""

_SAVE = """
update saga_progress p
   set state = k.state, heard = k.heard::jsonb, steps = k.steps::jsonb, reason = k.reason,
       asked = k.asked, pivot_passed = k.pivot_passed, attempt = k.attempt,
       stuck_since = case when k.stuck then coalesce(p.stuck_since, now()) end,
       next_deadline = case when not k.ended then now() + make_interval(secs => k.patience) end,
       heard_at = case when k.news then now() else p.heard_at end,
       ended_at = case when k.ended then coalesce(p.ended_at, now()) end
  from unnest(%b::uuid[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::bool[],
              %b::int[], %b::bool[], %b::bool[], %b::bool[], %b::float8[])
    as k (saga_id, state, heard, steps, reason, asked, pivot_passed, attempt, stuck, ended, news,
          patience)
 where p.saga_id = k.saga_id and p.saga_id = any(%b::uuid[])"""

# Each is taken by one process. The orders are joined afterwards: the limit is on what is overdue.
_OVERDUE = """
with overdue as (
  select saga_id, definition, heard, asked, attempt, stuck_since is not null as stuck,
         extract(epoch from clock_timestamp() - heard_at)::float8 as silent
    from saga_progress where next_deadline <= now()
   order by next_deadline limit %s for update skip locked
)
select p.saga_id, p.definition, p.heard, p.asked, p.attempt, p.stuck, p.silent,
       o.order_id, o.customer, o.currency, o.lines, o.total, coalesce(r.opened_at, o.placed_at)
  from overdue p left join order_return r on r.return_id = p.saga_id
  join customer_order o on o.order_id = coalesce(r.order_id, p.saga_id)"""

_VIEW = """
select saga_id, definition, heard, asked, attempt, stuck_since is not null, 0.0,
       started_at, ended_at
  from saga_progress where saga_id = %s"""


@dataclass(slots=True)
class LockedProgress:
    """A locked row: its progress, and the seconds since its last event."""

    progress: SagaProgress
    idle_seconds: float
    new_event: bool = False


class ProgressStore(OrderStore):
    """The order service's SQL in the choreographed style, where an order begins its progress."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self._policy = policy

    async def load(self, tx: Tx, batch: Sequence[Work]) -> OrderBook:
        cancelled = [work.saga_id for work in batch if isinstance(work.command, CancelOrder)]
        if cancelled:  # progress before orders: the listener locks in that order
            await self.lock(tx, cancelled)
        return await super().load(tx, batch)

    async def save(self, tx: Tx, state: OrderBook) -> None:
        await super().save(tx, state)
        at = state.now.timestamp()
        begun = [_begun(order_id, ORDER, "OrderAccepted", at) for order_id in state.placed]
        begun += [_begun(return_id, RETURN, "ReturnAccepted", at) for return_id in state.opened]
        if begun:
            tx.queue_write(
                _BEGIN,
                (
                    self._policy.timeout_seconds,
                    [p.saga_id for p in begun],
                    [p.outline.name for p in begun],
                    [_events(p) for p in begun],
                    [_steps(p) for p in begun],
                ),
            )
        if state.cancelled:
            locked, _ = await self.lock(tx, list(state.cancelled))
            for one in locked.values():
                one.progress.cancel(CANCELLED)
            await self.save_progress(tx, list(locked.values()))

    async def lock(
        self, tx: Tx, saga_ids: Sequence[UUID]
    ) -> tuple[dict[UUID, LockedProgress], float]:
        """Lock the progress of these sagas; return it, and the time once it was locked."""
        rows = tx.queue_query(_LOCK, [sorted(saga_ids)])
        clock = tx.queue_query("select extract(epoch from clock_timestamp())::float8")
        await tx.sync()
        return {row[0]: _locked(row) for row in rows.rows}, clock.rows[0][0]

    async def overdue(
        self, tx: Tx, limit: int
    ) -> list[tuple[LockedProgress, PlacedOrder | OpenedReturn]]:
        """Lock sagas whose deadline has passed; return each with its order or return."""
        rows = await tx.fetch(_OVERDUE, (limit,))
        locked = [(_locked(row[:7]), row[7:]) for row in rows]
        return [(one, _subject(one.progress, *columns)) for one, columns in locked]

    async def save_progress(self, tx: Tx, locked: Sequence[LockedProgress]) -> None:
        """Save locked progress, each with its next deadline."""
        if not locked:
            return
        all_ = [one.progress for one in locked]
        tx.queue_write(
            _SAVE,
            (
                [p.saga_id for p in all_],
                [p.state for p in all_],
                [_events(p) for p in all_],
                [_steps(p) for p in all_],
                [p.reason for p in all_],
                [p.cancel_asked for p in all_],
                [p.pivot_passed for p in all_],
                [p.attempt for p in all_],
                [p.stuck for p in all_],
                [p.ended for p in all_],
                [one.new_event for one in locked],
                [self._patience(p) for p in all_],
                [p.saga_id for p in all_],
            ),
        )

    def _patience(self, progress: SagaProgress) -> float:
        dice = random.random()  # noqa: S311 - spreads retries, no secret
        return self._policy.patience(progress.attempt, capped=progress.capped, jitter=dice)

    async def view(self, tx: Tx, saga_id: UUID) -> SagaView:
        """Return a saga's progress in the shape of the orchestrator's answer."""
        rows = await tx.fetch(_VIEW, (saga_id,)) or await archive.view(tx, saga_id)
        if not rows:
            return SagaView(saga_id=saga_id, found=False)
        progress = _locked(rows[0][:7]).progress
        started_at, ended_at = rows[0][7:]
        return SagaView(
            saga_id=saga_id,
            found=True,
            definition=f"{progress.outline.name} (choreographed)",
            state=progress.state,
            reason=progress.reason,
            pivot_passed=progress.pivot_passed,
            compensate_asked=progress.reason is not None,
            stuck=progress.stuck,
            steps=progress.views(),
            started_at=started_at,
            ended_at=ended_at,
        )


def _begun(saga_id: UUID, outline: Outline, event: str, at: float) -> SagaProgress:
    """Begin progress with this service's own first event, which it does not consume."""
    accepted = RecordedEvent(event, Outcome.DONE, None, None, at)
    return SagaProgress(saga_id, outline, {(outline.first, FORWARD): accepted})


def _locked(row: tuple[Any, ...]) -> LockedProgress:
    saga_id, definition, heard, asked, attempt, stuck, idle = row
    events = {
        _leg(key): RecordedEvent(outcome=Outcome(event.pop("outcome")), **event)
        for key, event in heard.items()
    }
    outline = OUTLINES[definition]
    return LockedProgress(SagaProgress(saga_id, outline, events, asked, attempt, stuck), idle)


def _leg(key: str) -> tuple[str, Direction]:
    step, _, direction = key.rpartition(":")
    return step, Direction(direction)


def _events(progress: SagaProgress) -> str:
    return json.dumps(
        {
            f"{step}:{direction.value}": asdict(event)
            for (step, direction), event in progress.events.items()
        }
    )


def _steps(progress: SagaProgress) -> str:
    return json.dumps(
        {
            step: {
                "status": status,
                "attempt": progress.attempts(status),
                "undo_attempt": progress.undo_attempts(status),
            }
            for step, status in progress.statuses().items()
        }
    )


def _subject(
    progress: SagaProgress,
    order_id: UUID,
    customer: str,
    currency: str,
    lines: Sequence[dict[str, Any]],
    total: int,
    began_at: datetime,
) -> PlacedOrder | OpenedReturn:
    attempt = progress.attempt + 1
    if progress.outline is RETURN:
        return OpenedReturn(
            progress.saga_id, order_id, customer, currency, total, began_at, attempt
        )
    priced = tuple(PricedLine(**line) for line in lines)
    return PlacedOrder(order_id, customer, currency, priced, total, began_at, attempt)
