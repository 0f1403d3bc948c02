"""What an invariant returns, and what several have in common. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from chaos.judge.evidence import Case, Line

# The ledger's two accounts that are no customer's; a customer's is called like the customer.
DEPOSITS = "world:deposits"
REVENUE = "shop:revenue"
PARKED = "WAITING"
END_OF = {"CONFIRMED": "COMPLETED", "REJECTED": "COMPENSATED", "RETURNED": "COMPLETED"}
RETURN_END_OF = {"FINISHED": "COMPLETED", "CLOSED": "COMPENSATED"}


class Looked(NamedTuple):
    """A pass over nothing says nothing, so the number of things looked at is part of the result."""

    at: int
    offences: Sequence[str]


Check = Callable[[Case], Looked]


def pieces(lines: Iterable[Line]) -> Counter[str]:
    found: Counter[str] = Counter()
    for line in lines:
        found[line.sku] += line.quantity
    return found
