"""The operator's API of dead letters: what was set aside and why, once more, or away with it.

Owns: what may be asked of them, and the shape of the answers. Must not know: SQL, how a letter is
redriven.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Protocol
from uuid import UUID

from fastapi import FastAPI, Path, Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from common.http.app import Caller, Problem, Refused, problems
from common.messages.contracts import MAX_PAGE, Name
from orchestrator.dead_letters.redrive import Disposal, Result, Settlement
from orchestrator.dead_letters.store import (
    DeadLetterFilter,
    FullDeadLetter,
    Group,
    StoredDeadLetter,
)
from orchestrator.operator.naming import whole_id

MAX_BULK = 500  # letters settled by one request
GROUPS_SHOWN = 500
NEXT = "pass as `after` for the next ones; null: no more"

Why = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=300,
                                       pattern=r"^[^\x00-\x1f\x7f]*$")]  # fmt: skip


class LetterState(StrEnum):
    OPEN = "open"
    REDRIVEN = "redriven"
    DISCARDED = "discarded"


class Settle(Protocol):
    """What the desk does with letters."""

    async def __call__(
        self, disposal: Disposal, letter_ids: Sequence[UUID], actor: str, why: str, *, dry_run: bool
    ) -> list[Settlement]: ...


@dataclass(frozen=True)
class LetterSources:
    """Whom these endpoints ask; given by the composition root."""

    groups: Callable[[DeadLetterFilter, int], Awaitable[list[Group]]]
    page: Callable[[DeadLetterFilter, UUID | None, int], Awaitable[list[StoredDeadLetter]]]
    find: Callable[[UUID], Awaitable[FullDeadLetter | None]]
    ids_between: Callable[[UUID, UUID, int], Awaitable[list[UUID]]]
    settle: Settle


class LetterGroup(BaseModel):
    """Letters from one queue, set aside for one reason."""

    model_config = ConfigDict(from_attributes=True)
    queue: str
    reason: str
    letters: int
    came: int = Field(description="how often they came, all together")
    first_seen: datetime
    last_seen: datetime


class LetterGroups(BaseModel):
    letters: int = Field(description="in all the groups shown")
    groups: list[LetterGroup]


class LetterRow(BaseModel):
    """A dead letter. Whose message it was is null as far as that cannot be told."""

    model_config = ConfigDict(from_attributes=True)
    letter_id: UUID
    queue: str = Field(description="where it came from, and goes to if it is redriven")
    reason: str
    detail: str | None
    saga_id: UUID | None
    step: str | None
    direction: str | None
    reply: bool = Field(description="an answer to a command, not a command")
    message_id: UUID | None
    type: str | None
    size: int = Field(description="bytes; of more than a mebibyte the first is kept")
    readable: bool = Field(description="a whole envelope, which can be redriven")
    count: int = Field(description="how often it came")
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
    body: Any = Field(description="as JSON if that is what it is, else as text with \\x escapes")

    @classmethod
    def of(cls, whole: FullDeadLetter) -> LetterDetail:
        row = LetterRow.model_validate(whole.stored).model_dump()
        return cls(**row, headers=dict(whole.headers), body=_readable(whole.body))


class Which(BaseModel):
    """Letters by their ids, or all open ones of a queue, for a reason, of a saga."""

    model_config = ConfigDict(extra="forbid")
    letters: list[UUID] = Field(default=[], max_length=MAX_BULK)
    queue: Name | None = None
    reason: Name | None = None
    saga_id: UUID | None = None
    all: bool = Field(False, description="every open letter there is")
    after: UUID | None = Field(None, description="`next` of the answer before")
    limit: int = Field(200, ge=1, le=MAX_BULK, description="how many at most; then ask again")
    dry_run: bool = Field(False, description="only say what would come of each")


class Redrive(Which):
    why: Why = "redriven"


class Discard(Which):
    why: Why


class LetterOutcome(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    letter_id: UUID
    result: Result
    why: str | None


class Settled(BaseModel):
    done: int
    already: int
    refused: int
    dry_run: bool
    outcomes: list[LetterOutcome]
    next: UUID | None = Field(description=NEXT)


def letters(app: FastAPI, sources: LetterSources) -> None:
    """The endpoints of dead letters."""

    @app.get("/dead-letters/groups", responses=problems(422, 503))
    async def dead_letter_groups(
        state: LetterState = LetterState.OPEN,
        queue: Name | None = None,
        reason: Name | None = None,
        saga_id: UUID | None = None,
    ) -> LetterGroups:
        """How many there are, by queue and reason, the most first."""
        wanted = DeadLetterFilter(state, queue, reason, saga_id)
        found = await sources.groups(wanted, GROUPS_SHOWN)
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
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="how many at most")] = 100,
        after: UUID | None = None,
    ) -> LetterPage:
        """Dead letters by queue and reason, the oldest first."""
        found = await sources.page(DeadLetterFilter(state, queue, reason, saga_id), after, limit)
        return LetterPage(
            letters=[LetterRow.model_validate(kept) for kept in found],
            next=found[-1].letter_id if len(found) == limit else None,
        )

    @app.get("/dead-letters/{letter_id}", responses=problems(404, 409, 422, 503))
    async def dead_letter(
        letter_id: Annotated[str, Path(description="an id, or how it begins")],
    ) -> LetterDetail:
        """One letter: why it is there, whose message it was, all it said."""
        ident = await whole_id(letter_id, "letter_id", sources.ids_between)
        whole = await sources.find(ident)
        if whole is None:
            remedy = f"no dead letter {letter_id}: GET /dead-letters lists them"
            raise Refused(404, Problem(error="not_found", field="letter_id", remedy=remedy))
        return LetterDetail.of(whole)

    @app.post("/dead-letters/redrive", responses=problems(403, 422, 503))
    async def redrive(asked: Redrive, caller: Caller) -> Settled:
        """Send letters once more to the queue they came from: the same message, each only once."""
        return await _settle(sources, Disposal.REDRIVE, asked, asked.why, caller.name)

    @app.post("/dead-letters/discard", responses=problems(403, 422, 503))
    async def discard(asked: Discard, caller: Caller) -> Settled:
        """Away with letters that can never be handled, for a reason; their sagas are told."""
        return await _settle(sources, Disposal.DISCARD, asked, asked.why, caller.name)


async def _settle(
    sources: LetterSources, disposal: Disposal, asked: Which, why: str, actor: str
) -> Settled:
    wanted = DeadLetterFilter("open", asked.queue, asked.reason, asked.saga_id)
    ids, more = asked.letters, False
    by_filter = wanted != DeadLetterFilter() or asked.all
    if bool(ids) == by_filter:
        remedy = "name letters by id, or else a queue, a reason or a saga_id, or say `all`"
        raise Refused(422, Problem(error="invalid_request", field="letters", remedy=remedy))
    if not ids:
        ids = [kept.letter_id for kept in await sources.page(wanted, asked.after, asked.limit)]
        more = len(ids) == asked.limit
    outcomes = await sources.settle(disposal, ids, actor, why, dry_run=asked.dry_run)
    counted = [outcome.result for outcome in outcomes]
    return Settled(
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
