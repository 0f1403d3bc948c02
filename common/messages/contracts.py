"""The engine's own contracts: start, cancel and read sagas; queries to every service. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import Field

from common.messages.envelope import Answer, Command, Message, Query

START = "start"
"""The step of StartSaga: beginning a saga claims the inbox row of that name."""


class StartSaga(Command):
    """The request to run a saga; one resent (`attempt` above 1) is answered with SagaStarted."""

    definition: str
    data: dict[str, object]


class CancelSaga(Command):
    """A customer's request to undo everything.

    It has the data of StartSaga because it may come first: then the saga begins with it, so that
    there is one to undo.
    """

    definition: str
    data: dict[str, object]
    actor: str
    reason: str


class SagaStarted(Command):
    """The answer to a resent StartSaga: the saga exists, so resending ends."""


class SagaQuery(Query):
    """The query for a saga's state."""

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
    """The query for the next sagas by id, after `after`, with an effect held by this service.

    The effect was made before `until` and not settled before `since`. `limit` sagas are examined.
    """

    after: UUID = FIRST_ID
    since: datetime | None = None
    until: datetime | None = None
    limit: Limit = MAX_PAGE


class TouchedPage(Answer):
    """The sagas found; complete up to `looked_to`, or altogether if it is None."""

    saga_ids: tuple[UUID, ...]
    looked_to: UUID | None

    @classmethod
    def of(cls, rows: Sequence[tuple[Any, ...]], limit: int) -> TouchedPage:
        """Make a page of the rows examined: a saga's id, and whether it is in the window."""
        touched = tuple(saga_id for saga_id, inside in rows if inside)
        return cls(saga_ids=touched, looked_to=rows[-1][0] if len(rows) == limit else None)


class EffectsQuery(Query):
    """The query for the effects of these sagas in this service."""

    saga_ids: Annotated[tuple[UUID, ...], Field(max_length=MAX_PAGE)]


class Effect(Message):
    """The effect of a step and its state: CHARGED, HELD, REJECTED ..."""

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
    """The query to every process for its version and health."""


class Check(Message):
    """One readiness check of a process, and its problem if it has one."""

    name: str
    problem: str | None = None


class ProcessView(Answer):
    """A process's version and health; `applied` is None if its database did not answer."""

    process: str
    service: str
    release: str
    ready: bool
    checks: tuple[Check, ...]
    shipped: tuple[str, ...]
    applied: tuple[str, ...] | None = None
