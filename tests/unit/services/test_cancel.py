"""Tests of POST /orders/{id}/cancel: its answer, by what the saga is doing meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
import pytest

from common.http.access import Role
from common.kit.health import Health
from common.messages.contracts import SagaView
from common.messages.envelope import Reply
from common.messages.errors import NoAnswer
from common.messages.shop.order import CancelNoted, CancelOrder, OrderIsOver, OrderUnknown
from order_svc.door import api
from order_svc.door.api import make_app
from order_svc.door.batcher import Batcher, CustomerCommand
from order_svc.door.queries import CustomerQueries
from order_svc.door.schemas import OrderView
from tests.support.apis import ENTRANCES, InMemory, bearer

ORDER = UUID(int=7)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@dataclass
class FakeDoor(Batcher, CustomerQueries):
    """The door of one order: its reply, its status, and its saga as each look finds it."""

    reply: Reply = field(default_factory=CancelNoted)
    status: str = "PENDING"
    sagas: Sequence[SagaView | None] = (None,)  # None: no answer
    looks: int = 0

    async def ask(self, commands: Sequence[CustomerCommand]) -> list[Reply]:
        assert commands == [CancelOrder(order_id=ORDER)]
        return [self.reply]

    async def order(self, order_id: UUID) -> OrderView | None:
        return OrderView(
            order_id=order_id, customer="ann", currency="EUR", lines=[], total=1,
            status=self.status, reason="cancelled" if self.status == "REJECTED" else None,
            placed_at=NOON, settled_at=None,
        )  # fmt: skip

    async def saga(self, saga_id: UUID) -> SagaView:
        view = self.sagas[min(self.looks, len(self.sagas) - 1)]
        self.looks += 1
        if view is None:
            raise NoAnswer("no orchestrator is there")
        return view

    def post(self) -> httpx.Response:
        app = make_app(self, self, Health(), ENTRANCES["door"])
        with httpx.Client(
            transport=InMemory(app), base_url="http://door", headers=bearer(Role.CUSTOMER)
        ) as client:
            return client.post(f"/orders/{ORDER}/cancel")


def saga(state: str, **more: Any) -> SagaView:
    return SagaView(saga_id=ORDER, found=True, state=state, **more)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "CANCEL_WAIT_SECONDS", 0.2)
    monkeypatch.setattr(api, "CANCEL_POLL_SECONDS", 0.01)


UNKNOWN, FENCED = SagaView(saga_id=ORDER, found=False), saga("RUNNING", compensate_asked=True)
RUNNING, TURNED = saga("RUNNING"), saga("COMPENSATING", compensate_asked=True)


@pytest.mark.parametrize(
    ("sagas", "outcome"),
    [
        ((TURNED,), "cancelling"),
        ((UNKNOWN, RUNNING, TURNED), "cancelling"),  # it had not even begun
        ((FENCED, FENCED, TURNED), "cancelling"),  # the goods had not left
        ((FENCED,), "undecided"),  # the pivot's owner is away
        ((RUNNING,), "asked"),  # the orchestrator is behind
        ((UNKNOWN,), "asked"),
        ((None,), "asked"),  # no answer
    ],
)
def test_cancelling_a_pending_order_answers_only_what_is_known(
    sagas: Sequence[SagaView | None], outcome: str
) -> None:
    response = FakeDoor(sagas=sagas).post()
    assert (response.status_code, response.json()["outcome"]) == (202, outcome)
    assert response.json()["look"] == f"/orders/{ORDER}"
    assert response.json()["told"]


@pytest.mark.parametrize(
    "door",
    [
        lambda: FakeDoor(sagas=[saga("RUNNING", pivot_passed=True)]),
        lambda: FakeDoor(sagas=[FENCED, FENCED, saga("RUNNING", pivot_passed=True)]),
        lambda: FakeDoor(sagas=[saga("COMPLETED", pivot_passed=True)]),
        lambda: FakeDoor(status="CONFIRMED"),
        lambda: FakeDoor(reply=OrderIsOver(status="CONFIRMED"), status="CONFIRMED"),
    ],
    ids=["passed", "passed under its fence", "completed", "confirmed since", "confirmed"],
)
def test_cancelling_past_the_pivot_is_refused_with_a_remedy(
    door: Callable[[], FakeDoor],
) -> None:
    response = door().post()
    assert (response.status_code, response.json()["error"]) == (409, "too_late")
    assert f"POST /orders/{ORDER}/returns" in response.json()["remedy"]


def test_cancelling_a_rejected_order_is_repeatable() -> None:
    for reply in (CancelNoted(), OrderIsOver(status="REJECTED")):
        response = FakeDoor(reply=reply, status="REJECTED").post()
        assert (response.status_code, response.json()["outcome"]) == (200, "cancelled")


def test_no_such_order() -> None:
    response = FakeDoor(reply=OrderUnknown()).post()
    assert (response.status_code, response.json()["error"]) == (404, "not_found")
