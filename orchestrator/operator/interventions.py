"""What a person does to a saga that stands still: over HTTP.

Owns: the endpoints of stuck, retry, compensate, resolve and reconcile, and how a refusal is told.
Must not know: SQL, what any of them leads to.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from fastapi import FastAPI, Path
from pydantic import Field

from common.http.app import Caller, Problem, Refused, problems
from common.messages.contracts import Name
from common.messages.errors import IllegalTransition
from orchestrator.operator.queries import Stuck, StuckWanted
from orchestrator.operator.requests import LONGEST, Limit, Reasoned, SagaId, Seconds
from orchestrator.operator.schemas import (
    Definitions,
    Reconciled,
    ReconciledRow,
    SagaDetail,
    StuckPage,
    StuckRow,
)
from orchestrator.operator.stuck import JUDGED_WITHIN_SECONDS
from orchestrator.runtime.census import Seen

MOST_AT_ONCE = 200  # instances of one reconciliation; their rows are held together
MAY_ACT = problems(403, 404, 409, 422, 503)


class Reconciliation(Reasoned):
    dry_run: bool = Field(False, description="only say what would be done")
    step: Name | None = Field(None, description="whose answer is awaited")
    older_than: float | None = Field(None, ge=0, le=LONGEST, description="begun so long ago, s")
    limit: int = Field(MOST_AT_ONCE, ge=1, le=MOST_AT_ONCE)
    after: str | None = Field(None, description="the `next` of the answer before")


@dataclass(frozen=True)
class Hands:
    """What acts for a person. What is refused raises IllegalTransition, and says why."""

    stuck: Callable[[StuckWanted, Seen | None, int], Awaitable[list[Stuck]]]
    retry: Callable[[UUID, str, str], Awaitable[object]]
    compensate: Callable[[UUID, str, str], Awaitable[object]]
    resolve: Callable[[UUID, str, str, str], Awaitable[object]]
    reconcile: Callable[[Sequence[UUID], str, str], Awaitable[Mapping[UUID, str]]]
    unread: Callable[[], Awaitable[str | None]]
    """Why deadlines cannot be judged now: what waits to be sent or read."""


def hands(
    app: FastAPI,
    hands: Hands,
    definitions: Definitions,
    named: Callable[[str], Awaitable[Seen]],
) -> None:
    @app.get("/stuck", responses=problems(404, 422, 503))
    async def stuck(
        step: Name | None = None,
        older_than: Seconds = None,
        limit: Limit = 100,
        after: UUID | None = None,
    ) -> StuckPage:
        """What stands still and why: past its SLA, or overdue with nobody to judge it. Oldest
        first."""
        wanted = StuckWanted(step, older_than, JUDGED_WITHIN_SECONDS)
        last = None if after is None else await named(str(after))
        found, now = await hands.stuck(wanted, last, limit), datetime.now(UTC)
        return StuckPage(
            stuck=[StuckRow.why(definitions, one, now) for one in found],
            next=found[-1].seen.instance.saga_id if len(found) == limit else None,
        )

    @app.post("/sagas/{saga_id}/retry", responses=MAY_ACT)
    async def retry(saga_id: SagaId, asked: Reasoned, caller: Caller) -> SagaDetail:
        """Send what it waits for again, now: the same messages, and no attempt is used up."""
        ident = (await named(saga_id)).instance.saga_id
        return await _acted(ident, hands.retry(ident, caller.name, asked.reason))

    @app.post("/sagas/{saga_id}/compensate", responses=MAY_ACT)
    async def compensate(saga_id: SagaId, asked: Reasoned, caller: Caller) -> SagaDetail:
        """Turn it back: what was done is undone. Refused past the pivot; while the pivot is silent
        its answer decides."""
        ident = (await named(saga_id)).instance.saga_id
        return await _acted(ident, hands.compensate(ident, caller.name, asked.reason))

    @app.post("/sagas/{saga_id}/steps/{step}/resolve", responses=MAY_ACT)
    async def resolve(
        saga_id: SagaId, step: Annotated[Name, Path()], asked: Reasoned, caller: Caller
    ) -> SagaDetail:
        """You have seen to what this step is still asked for, where no machine can: an undo, or a
        step after the pivot. Never the pivot."""
        ident = (await named(saga_id)).instance.saga_id
        return await _acted(ident, hands.resolve(ident, step, caller.name, asked.reason))

    @app.post("/reconcile", responses=MAY_ACT)
    async def reconcile(asked: Reconciliation, caller: Caller) -> Reconciled:
        """Judge the deadlines that have passed, and send again what is stuck, of many at once."""
        last = None if asked.after is None else await named(asked.after)
        wanted = StuckWanted(asked.step, asked.older_than, 0)
        found = await hands.stuck(wanted, last, asked.limit)
        became: Mapping[UUID, str] = {}
        if not asked.dry_run:
            if why := await hands.unread():
                remedy = f"{why}: deadlines are judged once that is done, else an outage would burn"
                remedy += " every attempt. See saga doctor, then ask again"
                raise Refused(409, Problem(error="not_caught_up", remedy=remedy))
            ids = [one.seen.instance.saga_id for one in found]
            became = await hands.reconcile(ids, caller.name, asked.reason)
        now = datetime.now(UTC)
        return Reconciled(
            dry_run=asked.dry_run,
            sagas=[ReconciledRow.of(definitions, one, now, became) for one in found],
            next=found[-1].seen.instance.saga_id if len(found) == asked.limit else None,
        )

    async def _acted(saga_id: UUID, act: Awaitable[object]) -> SagaDetail:
        try:
            await act
        except IllegalTransition as refusal:
            problem = Problem(error="refused", field="saga_id", remedy=str(refusal))
            raise Refused(409, problem) from refusal
        return SagaDetail.of(definitions, await named(str(saga_id)))
