"""What the requests of operators have in common.

Owns: an id or the beginning of one, a reason, a page. Must not know: any endpoint.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict, StringConstraints

from common.messages.contracts import MAX_PAGE

LONGEST = 1e9  # seconds, some thirty years

Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="how many at most")]
Seconds = Annotated[float | None, Query(ge=0, le=LONGEST, description="seconds")]
Reason = Annotated[
    str,
    StringConstraints(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]+$"),
]
SagaId = Annotated[str, Path(description="an id, or enough of its beginning to be the only one")]


class Reasoned(BaseModel):
    """What a person gives with whatever they do; it stays on record."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    reason: Reason
