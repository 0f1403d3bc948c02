"""An orchestrator's service without a broker: what tests give it, and how they read its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.kit.settings import Policy
from common.messages.contracts import StartSaga
from common.messages.envelope import Direction, Envelope, Fence, Key, Reply
from common.messages.shop.inventory import OutOfStock, StockReserved
from common.messages.shop.payment import PaymentCharged
from common.storage.db import Database
from orchestrator.engine.approval import ApprovalPolicy
from orchestrator.engine.definition import Definition
from orchestrator.runtime.service import Service
from orchestrator.sagas.order import DEFINITIONS
from tests.integration.mail import NOON, command, saga
from tests.integration.services import sent
from tests.integration.waiting import Rows

ROLE = "orchestrator"
COMMANDS, REPLIES = "orchestrator.commands", "orchestrator.replies"
FORWARD, COMPENSATING = Direction
PATIENT = Policy(
    timeout_seconds=3600,
    attempts=2,
    backoff_first_seconds=0.2,
    backoff_cap_seconds=30,
    resend_cap_seconds=7200,
    stuck_after_seconds=3600,
)


def service(
    db: Database,
    policy: Policy = PATIENT,
    *,
    thresholds: Mapping[str, int] | None = None,
    definitions: Sequence[Definition] = DEFINITIONS,
) -> Service:
    return Service(
        db,
        definitions,
        policy,
        process="orchestrator-test",
        approval=ApprovalPolicy(thresholds or {}),
    )


def start(number: int, **more: Any) -> Envelope:
    data: dict[str, object] = {
        "order_id": str(saga(number)),
        "customer": "ada",
        "currency": "EUR",
        "lines": [{"sku": "tea", "quantity": 2}],
        "total": 700,
    }
    more = {"reply_to": None, **more}
    return command(StartSaga(definition="order", data=data), saga(number), **more)


def reply(number: int, step: str, body: Reply, direction: Direction = FORWARD) -> Envelope:
    asked = Envelope.command(
        Key(saga(number), step, direction), Fence(), issued_at=NOON, reply_to=REPLIES
    )
    return asked.reply(body, issued_at=NOON)


RESERVED, CHARGED = StockReserved(), PaymentCharged(charge_id=saga(99))
SHORT = OutOfStock(sku="tea", wanted=2, available=1)
TO_THE_PIVOT = [
    start(1),
    reply(1, "reserve_stock", RESERVED),
    reply(1, "charge_payment", CHARGED),
]


async def give(service: Service, *envelopes: Envelope) -> None:
    """Handle these as one batch."""
    await service.handle([service.parse(envelope) for envelope in envelopes])


async def give_each(service: Service, *envelopes: Envelope) -> None:
    for envelope in envelopes:
        await give(service, envelope)


def state(judge: Rows, number: int = 1) -> tuple[object, ...]:
    rows = judge.execute(
        "select state, reason from orchestrator.saga_instance where saga_id = %s", (saga(number),)
    ).fetchall()
    return rows[0] if rows else ()


def instances(judge: Rows) -> int:
    return judge.execute("select from orchestrator.saga_instance").rowcount


def commands(judge: Rows, number: int = 1) -> list[str]:
    """Return the commands sent for a saga: step, direction as an arrow, attempt."""
    return [
        f"{e.step}{'>' if e.direction is FORWARD else '<'}{e.attempt}"
        for e in sent(judge, ROLE)
        if e.saga_id == saga(number)
    ]


def logged(judge: Rows, number: int = 1) -> list[str]:
    rows = judge.execute(
        "select entry from orchestrator.saga_log where saga_id = %s order by id", (saga(number),)
    )
    return [str(entry) for (entry,) in rows]


def make_overdue(admin: Rows, step: str, number: int = 1, ago: str = "1 second") -> None:
    """Set the deadline of a step as if it had passed that long ago."""
    admin.execute(
        "update orchestrator.saga_instance"
        " set next_deadline = clock_timestamp() - %(ago)s::interval,"
        " steps = jsonb_set(steps, array[%(step)s, 'deadline'],"
        "   to_jsonb(extract(epoch from clock_timestamp() - %(ago)s::interval)))"
        " where saga_id = %(saga)s",
        {"ago": ago, "step": step, "saga": saga(number)},
    )
