"""The operator's process, its API, and an orchestrator to feed, for tests of the API."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx

from common.http.access import Role
from common.messages.contracts import StartSaga
from common.messages.envelope import Command, Envelope, Reply
from common.messages.shop.inventory import OutOfStock, ReserveStock
from common.messages.shop.order import OrderRejected, RejectOrder
from common.process.process import Process
from orchestrator.runtime.service import Service
from tests.integration.mail import command
from tests.integration.waiting import eventually
from tests.support.apis import bearer

ONE, TWO, THREE = (UUID(f"aaaa000{n}-0000-5000-8000-000000000000") for n in (1, 2, 3))
SHORT_DEADLINE = 0.5
LINES = [{"sku": "tea", "quantity": 5}]


def start(saga_id: UUID, customer: str = "ada") -> Envelope:
    data: dict[str, object] = {
        "order_id": str(saga_id), "customer": customer, "currency": "EUR", "total": 700,
        "lines": LINES,
    }  # fmt: skip
    return command(StartSaga(definition="order", data=data), saga_id, reply_to=None)


def answer(saga_id: UUID, asked: Command, said: Reply, process: str) -> Envelope:
    return command(asked, saga_id).reply(said, issued_at=datetime.now(UTC), process=process)


def refused(saga_id: UUID) -> tuple[Envelope, ...]:
    """Return the replies from the refusal of the stock to the end."""
    shortage = OutOfStock(sku="tea", wanted=5, available=3)
    asked = ReserveStock.model_validate({"lines": LINES})
    undone = RejectOrder(reason="out_of_stock")
    return (
        answer(saga_id, asked, shortage, "inventory-7"),
        answer(saga_id, undone, OrderRejected(), "order"),
    )


class Stage:
    """The operator's process, its API, and an orchestrator to feed."""

    def __init__(self, api: httpx.AsyncClient, process: Process, service: Service) -> None:
        self.api = api
        self.process = process
        self._service = service

    async def feed(self, *envelopes: Envelope) -> None:
        for envelope in envelopes:
            await self._service.handle([self._service.parse(envelope)])

    async def get(self, path: str, status: int = 200, **parameters: Any) -> Any:
        response = await self.api.get(path, params=parameters)
        assert response.status_code == status, response.text
        return response.json()

    async def post(self, path: str, status: int = 200, **body: Any) -> Any:
        """Post with the role of an operator."""
        response = await self.api.post(path, json=body, headers=bearer(Role.OPERATOR))
        assert response.status_code == status, response.text
        return response.json()

    async def ids(self, **wanted: Any) -> list[str]:
        page = await self.get("/sagas", **wanted)
        return [row["saga_id"] for row in page["sagas"]]


async def answering(process: Process, *checks: str) -> None:
    await eventually(lambda: all(process.health.checks[check] is None for check in checks))
