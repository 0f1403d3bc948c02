"""The result of an invariant, and what several have in common. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from chaos.judge.case import Case, Line

# The ledger's accounts that belong to no customer; a customer's account has the customer's name.
DEPOSITS = "world:deposits"
REVENUE = "shop:revenue"
PARKED = "WAITING"
END_OF = {"CONFIRMED": "COMPLETED", "REJECTED": "COMPENSATED", "RETURNED": "COMPLETED"}
RETURN_END_OF = {"FINISHED": "COMPLETED", "CLOSED": "COMPENSATED"}


class Checked(NamedTuple):
    """A pass over nothing proves nothing, so the number of things checked is part of the result."""

    at: int
    offences: Sequence[str]


Check = Callable[[Case], Checked]


def pieces(lines: Iterable[Line]) -> Counter[str]:
    found: Counter[str] = Counter()
    for line in lines:
        found[line.sku] += line.quantity
    return found
