"""Endpoints of dead letters: list, show, redrive, discard; and the shape of their answers."""

from __future__ import annotations

import json
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

from fastapi import FastAPI, Path, Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from common.http.app import Caller, Problem, Refused, problems
from common.messages.contracts import MAX_PAGE
from common.messages.shop.values import Name
from orchestrator.dead_letters.redrive import Disposal, Result
from orchestrator.dead_letters.store import DeadLetterFilter, FullDeadLetter
from orchestrator.operator.backend import Backend
from orchestrator.operator.requests import whole_id

MAX_BULK = 500  # dead letters settled by one request
GROUPS_SHOWN = 500
NEXT = "pass as `after` for the next ones; null: no more"

Why = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=300,
                                       pattern=r"^[^\x00-\x1f\x7f]*$")]  # fmt: skip


class LetterState(StrEnum):
    OPEN = "open"
    REDRIVEN = "redriven"
    DISCARDED = "discarded"


class LetterGroup(BaseModel):
    """The dead letters from one queue with one reason."""

    model_config = ConfigDict(from_attributes=True)
    queue: str
    reason: str
    letters: int
    came: int = Field(description="how often they were dead-lettered, all together")
    first_seen: datetime
    last_seen: datetime


class LetterGroups(BaseModel):
    letters: int = Field(description="in all the groups shown")
    groups: list[LetterGroup]


class LetterRow(BaseModel):
    """A dead letter. Fields that cannot be read from the message are null."""

    model_config = ConfigDict(from_attributes=True)
    letter_id: UUID
    queue: str = Field(description="where it came from, and returns to if it is redriven")
    reason: str
    detail: str | None
    saga_id: UUID | None
    step: str | None
    direction: str | None
    reply: bool = Field(description="a reply to a command, not a command")
    message_id: UUID | None
    type: str | None
    size: int = Field(description="bytes; of a larger message only the first mebibyte is kept")
    readable: bool = Field(description="a whole envelope, which can be redriven")
    count: int = Field(description="how often it was dead-lettered")
    first_seen: datetime
    last_seen: datetime
    state: LetterState
    settled_at: datetime | None
    settled_by: str | None
    settled_why: str | None


class LetterPage(BaseModel):
    letters: list[LetterRow]
    next: UUID | None = Field(description=NEXT)


class LetterDetail(LetterRow):
    headers: dict[str, Any]
    body: Any = Field(description="as JSON if it is JSON, else as text with \\x escapes")

    @classmethod
    def of(cls, whole: FullDeadLetter) -> LetterDetail:
        row = LetterRow.model_validate(whole.stored).model_dump()
        return cls(**row, headers=dict(whole.headers), body=_readable(whole.body))


class Which(BaseModel):
    """Dead letters by their ids, or all open ones of a queue, a reason or a saga."""

    model_config = ConfigDict(extra="forbid")
    letters: list[UUID] = Field(default=[], max_length=MAX_BULK)
    queue: Name | None = None
    reason: Name | None = None
    saga_id: UUID | None = None
    all: bool = Field(False, description="every open dead letter")
    after: UUID | None = Field(None, description="the `next` of the answer before")
    limit: int = Field(
        200, ge=1, le=MAX_BULK, description="the most to settle; then ask again with `after`"
    )
    dry_run: bool = Field(False, description="only return what would happen to each")


class Redrive(Which):
    why: Why = "redriven"


class Discard(Which):
    why: Why


class LetterOutcome(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    letter_id: UUID
    result: Result
    why: str | None


class Settlements(BaseModel):
    done: int
    already: int
    refused: int
    dry_run: bool
    outcomes: list[LetterOutcome]
    next: UUID | None = Field(description=NEXT)


def add_dead_letters(app: FastAPI, backend: Backend) -> None:
    """Add the endpoints of dead letters."""
    queries = backend.queries

    @app.get("/dead-letters/groups", responses=problems(422, 503))
    async def dead_letter_groups(
        state: LetterState = LetterState.OPEN,
        queue: Name | None = None,
        reason: Name | None = None,
        saga_id: UUID | None = None,
    ) -> LetterGroups:
        """Count dead letters by queue and reason, largest group first."""
        wanted = DeadLetterFilter(state, queue, reason, saga_id)
        found = await queries.dead_letter_groups(wanted, GROUPS_SHOWN)
        return LetterGroups(
            letters=sum(group.letters for group in found),
            groups=[LetterGroup.model_validate(group) for group in found],
        )

    @app.get("/dead-letters", responses=problems(422, 503))
    async def dead_letters(
        state: LetterState = LetterState.OPEN,
        queue: Name | None = None,
        reason: Name | None = None,
        saga_id: UUID | None = None,
        limit: Annotated[
            int, Query(ge=1, le=MAX_PAGE, description="the most rows to return")
        ] = 100,
        after: UUID | None = None,
    ) -> LetterPage:
        """List dead letters by queue and reason, oldest first."""
        wanted = DeadLetterFilter(state, queue, reason, saga_id)
        found = await queries.dead_letters(wanted, after, limit)
        return LetterPage(
            letters=[LetterRow.model_validate(kept) for kept in found],
            next=found[-1].letter_id if len(found) == limit else None,
        )

    @app.get("/dead-letters/{letter_id}", responses=problems(404, 409, 422, 503))
    async def dead_letter(
        letter_id: Annotated[str, Path(description="an id, or its first digits")],
    ) -> LetterDetail:
        """Show one dead letter: its reason, its saga and step, and the whole message."""
        ident = await whole_id(letter_id, "letter_id", queries.dead_letter_ids)
        whole = await queries.dead_letter(ident)
        if whole is None:
            remedy = f"no dead letter {letter_id}: GET /dead-letters lists them"
            raise Refused(404, Problem(error="not_found", field="letter_id", remedy=remedy))
        return LetterDetail.of(whole)

    @app.post("/dead-letters/redrive", responses=problems(403, 422, 503))
    async def redrive(asked: Redrive, caller: Caller) -> Settlements:
        """Send the same messages to the queues they came from, each only once."""
        return await _settle(backend, Disposal.REDRIVE, asked, asked.why, caller.name)

    @app.post("/dead-letters/discard", responses=problems(403, 422, 503))
    async def discard(asked: Discard, caller: Caller) -> Settlements:
        """Discard dead letters that can never be handled, with a reason. Sagas show it."""
        return await _settle(backend, Disposal.DISCARD, asked, asked.why, caller.name)


async def _settle(
    backend: Backend, disposal: Disposal, asked: Which, why: str, actor: str
) -> Settlements:
    wanted = DeadLetterFilter("open", asked.queue, asked.reason, asked.saga_id)
    ids, more = asked.letters, False
    by_filter = wanted != DeadLetterFilter() or asked.all
    if bool(ids) == by_filter:
        remedy = "give the ids in `letters`, or else a queue, a reason, a saga_id or `all`"
        raise Refused(422, Problem(error="invalid_request", field="letters", remedy=remedy))
    if not ids:
        page = await backend.queries.dead_letters(wanted, asked.after, asked.limit)
        ids = [kept.letter_id for kept in page]
        more = len(ids) == asked.limit
    outcomes = await backend.redriver.settle(disposal, ids, actor, why, dry_run=asked.dry_run)
    counted = [outcome.result for outcome in outcomes]
    return Settlements(
        done=counted.count(Result.DONE),
        already=counted.count(Result.ALREADY),
        refused=counted.count(Result.REFUSED),
        dry_run=asked.dry_run,
        outcomes=[LetterOutcome.model_validate(outcome) for outcome in outcomes],
        next=ids[-1] if more else None,
    )


def _readable(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode(errors="backslashreplace")
