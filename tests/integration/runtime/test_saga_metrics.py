"""Metrics of sagas: counters of what happened, gauges of the living instances."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from prometheus_client import REGISTRY

from common.messages.contracts import StartSaga
from common.messages.envelope import Command, Envelope, Reply
from common.messages.shop.inventory import OutOfStock, ReserveStock
from common.messages.shop.order import OrderRejected, RejectOrder
from common.storage.db import Database
from orchestrator.runtime import metrics
from orchestrator.runtime.service import Service
from orchestrator.sagas.order import ORDER_SAGA
from tests.integration.conftest import MakeSettings
from tests.integration.mail import command, saga
from tests.integration.waiting import Rows

LINES = [{"sku": "tea", "quantity": 5}]


def start(number: int) -> Envelope:
    data: Any = {"customer": "ada", "currency": "EUR", "total": 700, "lines": LINES}
    data["order_id"] = str(saga(number))
    return command(StartSaga(definition="order", data=data), saga(number), reply_to=None)


def answer(number: int, asked: Command, said: Reply) -> Envelope:
    return command(asked, saga(number)).reply(said, issued_at=datetime.now(UTC))


def refused(number: int) -> list[Envelope]:
    shortage = OutOfStock(sku="tea", wanted=5, available=3)
    return [
        answer(number, ReserveStock.model_validate({"lines": LINES}), shortage),
        answer(number, RejectOrder(reason="out_of_stock"), OrderRejected()),
    ]


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_sagas_and_steps_are_counted_once_they_are_committed(
    settings: MakeSettings, admin: Rows
) -> None:
    made = settings("orchestrator", step_timeout_seconds=60)
    counted = {
        "begun": ("sagaproof_saga_entries_total", {"entry": "started", "step": ""}),
        "ignored": ("sagaproof_saga_entries_total", {"entry": "ignored", "step": "reserve_stock"}),
        "out": ("sagaproof_compensated_total", {"reason": "out_of_stock"}),
        "resent": ("sagaproof_resent_total", {"step": "reserve_stock", "direction": "forward"}),
        "took": (
            "sagaproof_step_seconds_count", {"step": "reserve_stock", "direction": "forward"},
        ),
    }  # fmt: skip
    before = {what: sample(name, **labels) for what, (name, labels) in counted.items()}
    async with Database(made) as db:
        service = Service(db, [ORDER_SAGA], made.policy, process="orchestrator")

        async def feed(*envelopes: Envelope) -> None:
            for envelope in envelopes:
                await service.handle([service.parse(envelope)])

        await feed(start(1), start(2), start(3), start(4))
        await feed(*refused(1), refused(1)[0])
        async with db.transaction(None) as tx:
            await metrics.refresh(tx)
        assert sample("sagaproof_sagas", state="RUNNING") == 3
        assert sample("sagaproof_in_flight", step="reserve_stock") == 3
        assert sample("sagaproof_sagas_stuck") == 0
        assert sample("sagaproof_overdue_seconds") == 0

        admin.execute(
            "update orchestrator.saga_instance set next_deadline = now() - interval '100 s',"
            " steps = jsonb_set(steps, '{reserve_stock,deadline}', '1'), stuck_since = now()"
            " where saga_id = %s",
            (saga(2),),
        )
        async with db.transaction(None) as tx:
            await metrics.refresh(tx)
        assert sample("sagaproof_sagas_stuck") == 1
        assert 100 <= sample("sagaproof_overdue_seconds") < 160
        await service.time_out([saga(2)])
        await feed(*refused(2), *refused(3), *refused(4))
        async with db.transaction(None) as tx:
            await metrics.refresh(tx)
        assert REGISTRY.get_sample_value("sagaproof_sagas", {"state": "RUNNING"}) is None
    after = {what: sample(name, **labels) for what, (name, labels) in counted.items()}
    assert {what: after[what] - before[what] for what in after} == {
        "begun": 4, "ignored": 1, "out": 4, "resent": 1, "took": 5,
    }  # fmt: skip
