"""The engine's own contracts: start, cancel and read sagas; queries to every service. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import Field

from common.messages.envelope import Answer, Command, Message, Query

START = "start"
"""The step of StartSaga: whoever begins a saga claims the inbox row of that name."""


class StartSaga(Command):
    """Asks for a saga to run; an `attempt` above 1 wants SagaStarted back."""

    definition: str
    data: dict[str, object]


class CancelSaga(Command):
    """The customer asks for all of it to be undone. It says what StartSaga says, because it may
    come first: then the saga begins with it, so that there is one to be undone."""

    definition: str
    data: dict[str, object]
    actor: str
    reason: str


class SagaStarted(Command):
    """To the order service: the saga is known, no need to ask again."""


class SagaQuery(Query):
    """Where does this saga stand?"""

    saga_id: UUID


class StepView(Message):
    step: str
    kind: str
    status: str
    attempts: int
    undo_attempts: int
    compensated: bool


class SagaView(Answer):
    """A saga as its participants' customers may see it. `found` is False for an unknown id."""

    saga_id: UUID
    found: bool
    definition: str | None = None
    state: str | None = None
    reason: str | None = None
    pivot_passed: bool = False
    compensate_asked: bool = False
    stuck: bool = False
    steps: tuple[StepView, ...] = ()
    started_at: datetime | None = None
    ended_at: datetime | None = None


MAX_PAGE = 1000

Limit = Annotated[int, Field(ge=1, le=MAX_PAGE)]

FIRST_ID = UUID(int=0)  # no saga's


class TouchedQuery(Query):
    """The next sagas in the order of ids, from behind `after` on, of which this service holds an
    effect that was made before `until` and not settled before `since`. `limit` are looked at."""

    after: UUID = FIRST_ID
    since: datetime | None = None
    until: datetime | None = None
    limit: Limit = MAX_PAGE


class TouchedPage(Answer):
    """Nobody up to `looked_to` is missing; None: nobody is missing at all."""

    saga_ids: tuple[UUID, ...]
    looked_to: UUID | None

    @classmethod
    def of(cls, rows: Sequence[tuple[Any, ...]], limit: int) -> TouchedPage:
        """From those that were looked at, and whether they lie in the window."""
        touched = tuple(saga_id for saga_id, inside in rows if inside)
        return cls(saga_ids=touched, looked_to=rows[-1][0] if len(rows) == limit else None)


class EffectsQuery(Query):
    """What have these sagas left with this service?"""

    saga_ids: Annotated[tuple[UUID, ...], Field(max_length=MAX_PAGE)]


class Effect(Message):
    """What a step has left behind, and in which state it stands: CHARGED, HELD, REJECTED ..."""

    saga_id: UUID
    step: str
    standing: str
    at: datetime


class Effects(Answer):
    rows: tuple[Effect, ...]

    @classmethod
    def of(cls, rows: Sequence[tuple[Any, ...]]) -> Effects:
        names = tuple(Effect.model_fields)
        return cls(rows=tuple(Effect(**dict(zip(names, row, strict=True))) for row in rows))


class ProcessQuery(Query):
    """To every process: who are you, and how are you?"""


class Check(Message):
    """One thing a process needs to be ready, and what is wrong with it."""

    name: str
    problem: str | None = None


class ProcessView(Answer):
    """`applied` is None if the process's database did not answer it."""

    process: str
    service: str
    release: str
    ready: bool
    checks: tuple[Check, ...]
    shipped: tuple[str, ...]
    applied: tuple[str, ...] | None = None
