"""The common ground of the command's tests: its result, a clock, a saga's usual events."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from common.messages.envelope import Outcome
from orchestrator.engine.definition import COMPENSATING, FORWARD
from orchestrator.engine.inputs import ReplyArrived

ORDER = ("order", "--customer", "ada", "--line", "tea=2", "--key", "k-1")
ONE, TWO = UUID("aaaa0000-0000-5000-8000-000000000001"), UUID("aaab" + "0" * 28)

RESERVED = ReplyArrived(
    "reserve_stock", FORWARD, Outcome.DONE, "StockReserved", process="inventory-3"
)
DECLINED = ReplyArrived(
    "charge_payment", FORWARD, Outcome.REFUSED, "CardDeclined", "card_declined", process="payment-2"
)
RELEASED = ReplyArrived("reserve_stock", COMPENSATING, Outcome.DONE, "StockReleased")
REJECTED = ReplyArrived("create_order", COMPENSATING, Outcome.DONE, "OrderRejected")
STORY = (RESERVED, DECLINED, RELEASED, REJECTED)


@dataclass
class Result:
    """The output of a command, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


Saga = Callable[..., Result]


class NoTime:
    """A clock on which only sleeping takes time, and the test does not wait."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
