"""The values that the shop's messages hold.

Money is in integer minor units of its currency; quantities are whole pieces.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from common.messages.envelope import Message

Sku = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]

SkuPrefix = Annotated[str, StringConstraints(max_length=64, pattern=r"^[A-Za-z0-9._-]*$")]

# No control characters: Postgres has no NUL, and the others only ever hide something.
Name = Annotated[
    str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")
]

Currency = Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")]

Quantity = Annotated[int, Field(ge=1, le=1_000_000)]

Minor = Annotated[int, Field(ge=0, le=10**15)]

MAX_LINES = 100


class Line(Message):
    """One SKU and how many of it."""

    sku: Sku
    quantity: Quantity


Lines = Annotated[tuple[Line, ...], Field(min_length=1, max_length=MAX_LINES)]
