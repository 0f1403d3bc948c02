"""Things named by enough of their id: what a person types.

Owns: that. Must not know: what is named.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from uuid import UUID

from common.http.app import Problem, Refused

SHORTEST_PREFIX = 4  # hexadecimal digits of an id
NAMED = 5  # ids named when a prefix fits several


async def whole_id(
    text: str, field: str, ids_between: Callable[[UUID, UUID, int], Awaitable[list[UUID]]]
) -> UUID:
    """By a whole id, or by the beginning of one; one that nothing has if nothing begins so."""
    try:
        return UUID(text)
    except ValueError:
        pass
    digits = text.replace("-", "").lower()
    if not re.fullmatch(rf"[0-9a-f]{{{SHORTEST_PREFIX},31}}", digits):
        remedy = f"give an id, or at least the first {SHORTEST_PREFIX} of its digits"
        raise Refused(422, Problem(error="invalid_request", field=field, remedy=remedy))
    low, high = UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
    found = await ids_between(low, high, NAMED)
    if len(found) > 1:
        remedy = f"give more of it: {', '.join(map(str, found))} all begin so"
        raise Refused(409, Problem(error="ambiguous", field=field, remedy=remedy))
    return found[0] if found else low
