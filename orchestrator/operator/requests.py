"""Parameters that several endpoints take, and finding a saga by the beginning of its id."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Annotated
from uuid import UUID

from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict, StringConstraints

from common.http.app import Problem, Refused
from common.messages.contracts import MAX_PAGE
from orchestrator.operator.queries import Queries
from orchestrator.runtime.census import Seen

LONGEST = 1e9  # seconds, some thirty years
SHORTEST_PREFIX = 4  # hexadecimal digits of an id
SHOWN_IF_AMBIGUOUS = 5  # ids

Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="the most rows to return")]
Seconds = Annotated[float | None, Query(ge=0, le=LONGEST, description="seconds")]
Reason = Annotated[
    str,
    StringConstraints(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]+$"),
]
SagaId = Annotated[str, Path(description="an id, or its first digits if no other begins so")]


class Reasoned(BaseModel):
    """The reason for an intervention. It goes to the audit log."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    reason: Reason


async def existing_saga(queries: Queries, saga_id: UUID) -> Seen:
    """Return this saga. Raises Refused (404) if there is none."""
    seen = await queries.saga(saga_id)
    if seen is None:
        remedy = f"no saga {saga_id}: GET /sagas lists them; an order that has just been placed"
        remedy += " may wait for its saga to begin"
        raise Refused(404, Problem(error="not_found", field="saga_id", remedy=remedy))
    return seen


async def named_saga(queries: Queries, text: str) -> Seen:
    """Return the saga with this id, or the only one whose id begins so. Raises Refused."""
    return await existing_saga(queries, await whole_id(text, "saga_id", queries.saga_ids))


async def whole_id(
    text: str, field: str, ids_between: Callable[[UUID, UUID, int], Awaitable[list[UUID]]]
) -> UUID:
    """Complete the beginning of an id. Raises Refused if several ids begin so.

    If none does, return an id that does not exist: the caller's look-up then answers 404.
    """
    try:
        return UUID(text)
    except ValueError:
        pass
    digits = text.replace("-", "").lower()
    if not re.fullmatch(rf"[0-9a-f]{{{SHORTEST_PREFIX},31}}", digits):
        remedy = f"give an id, or at least the first {SHORTEST_PREFIX} of its digits"
        raise Refused(422, Problem(error="invalid_request", field=field, remedy=remedy))
    low, high = UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
    found = await ids_between(low, high, SHOWN_IF_AMBIGUOUS)
    if len(found) > 1:
        remedy = f"give more digits: {', '.join(map(str, found))} all begin so"
        raise Refused(409, Problem(error="ambiguous", field=field, remedy=remedy))
    return found[0] if found else low
