"""One example of every message that travels, every optional field filled.

Owns: what the golden files are made from. Must not know: how they are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import UUID

from common.messages import contracts as c
from common.messages.envelope import (
    Direction,
    Envelope,
    Fence,
    Fenced,
    Forget,
    Key,
    Message,
    PivotDone,
    Reply,
    Undo,
)

SAGA = UUID("5a6a0000-0000-5000-8000-000000000001")
CHARGE = UUID("5a6a0000-0000-5000-8000-000000000002")
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LINES = (c.Line(sku="tea", quantity=2), c.Line(sku="cup", quantity=1))

FORWARD: dict[str, list[Message]] = {
    "create_order": [
        c.PlaceOrder(customer="ada", idempotency_key="key-1", currency="EUR", lines=LINES),
        c.OrderAccepted(order_id=SAGA, customer="ada", currency="EUR", lines=LINES, total=700),
        c.OrderInvalid(field="lines", remedy="order at least one line"),
        c.KeyReused(order_id=SAGA),
    ],
    "cancel_order": [c.CancelAsked(reason="charge_payment_timed_out")],
    "customer_cancels": [
        c.CancelOrder(order_id=SAGA),
        c.CancelNoted(),
        c.OrderIsOver(status="CONFIRMED"),
        c.OrderUnknown(),
    ],
    "cancel": [
        c.CancelSaga(
            definition="order",
            data={"customer": "ada", "total": 700},
            actor="customer ada",
            reason="cancelled",
        )
    ],
    "start": [c.StartSaga(definition="order", data={"customer": "ada", "total": 700})],
    "saga_started": [c.SagaStarted()],
    "reserve_stock": [
        c.ReserveStock(lines=LINES),
        c.StockReserved(),
        c.OutOfStock(sku="tea", wanted=2, available=1),
        c.NotStocked(sku="tea"),
    ],
    "charge_payment": [
        c.ChargePayment(customer="ada", total=700, currency="EUR"),
        c.PaymentCharged(charge_id=CHARGE),
        c.CardDeclined(),
        c.InsufficientFunds(),
        c.UnknownAccount(),
        Fenced(),
    ],
    "dispatch_stock": [c.DispatchStock(), c.StockDispatched(), c.ReservationNotHeld()],
    "confirm_order": [c.ConfirmOrder(), c.OrderConfirmed()],
    "open_return": [
        c.OpenReturn(order_id=SAGA, idempotency_key="key-2"),
        c.ReturnAccepted(return_id=CHARGE, order_id=SAGA),
        c.NotReturnable(field="order_id", remedy="it is not confirmed yet"),
    ],
    "refund_order": [c.RefundOrder(order_id=SAGA), c.OrderRefunded(), c.NothingToRefund()],
    "restock": [c.Restock(order_id=SAGA), c.Restocked()],
    "finish_return": [c.FinishReturn(order_id=SAGA), c.ReturnFinished()],
    "list_product": [
        c.ListProduct(sku="tea", price=300, currency="EUR"),
        c.ProductListed(sku="tea"),
    ],
    "receive_stock": [c.ReceiveStock(sku="tea", quantity=10), c.StockReceived(sku="tea")],
    "open_account": [
        c.OpenAccount(customer="ada", currency="EUR", card="declined"),
        c.AccountOpened(customer="ada"),
    ],
    "deposit": [
        c.Deposit(customer="ada", currency="EUR", amount=9000),
        c.Deposited(customer="ada"),
    ],
    "forget": [Forget(until=NOON, saga_ids=(SAGA, CHARGE))],
    "saga_view": [
        c.SagaQuery(saga_id=SAGA),
        c.SagaView(
            saga_id=SAGA,
            found=True,
            definition="order v1",
            state="COMPENSATED",
            reason="card_declined",
            pivot_passed=False,
            compensate_asked=True,
            stuck=False,
            steps=(
                c.StepView(
                    step="reserve_stock",
                    kind="compensatable",
                    status="undone",
                    attempts=1,
                    undo_attempts=2,
                    compensated=True,
                ),
            ),
            started_at=NOON,
            ended_at=NOON,
        ),
    ],
}
QUERIES: dict[str, list[Message]] = {
    "stock": [
        c.StockQuery(prefix="te", after="tea", limit=10),
        c.StockPage(
            rows=(c.StockRow(sku="tee", on_hand=7, held=2, dispatched=1, received=10),), more=True
        ),
    ],
    "accounts": [
        c.AccountsQuery(customer="ada", after=("ada", "EUR"), limit=10),
        c.AccountsPage(
            rows=(c.AccountRow(customer="ada", currency="USD", card="good", balance=700),),
            more=True,
        ),
    ],
    "audit": [
        c.TouchedQuery(after=CHARGE, since=NOON, until=NOON, limit=10),
        c.TouchedPage(saga_ids=(SAGA, CHARGE), looked_to=CHARGE),
        c.EffectsQuery(saga_ids=(SAGA,)),
        c.Effects(
            rows=(c.Effect(saga_id=SAGA, step="charge_payment", standing="CHARGED", at=NOON),)
        ),
    ],
    "processes": [
        c.ProcessQuery(),
        c.ProcessView(
            process="payment-2",
            service="payment",
            release="0.1.0",
            ready=False,
            checks=(c.Check(name="relay", problem="not started"),),
            shipped=("common/0001_inbox_outbox", "payment_svc/0001_payment"),
            applied=("common/0001_inbox_outbox",),
        ),
    ],
}
COMPENSATING: dict[str, list[Message]] = {
    "create_order": [c.RejectOrder(reason="card_declined"), c.OrderRejected()],
    "reserve_stock": [c.ReleaseStock(), c.StockReleased(nothing_to_undo=True)],
    "charge_payment": [c.RefundPayment(), c.PaymentRefunded(nothing_to_undo=True)],
    "dispatch_stock": [Fence(), PivotDone()],
    "open_return": [c.CloseReturn(reason="nothing_to_refund"), c.ReturnClosed()],
}


def examples() -> Iterator[Envelope]:
    forward = {**FORWARD, **QUERIES}
    for direction, steps in ((Direction.FORWARD, forward), (Direction.COMPENSATING, COMPENSATING)):
        for step, messages in steps.items():
            for message in messages:
                yield _travelling(Key(SAGA, step, direction), message)


def _travelling(key: Key, message: Message) -> Envelope:
    if isinstance(message, Reply):
        return _travelling(key, Undo()).reply(message, issued_at=NOON, process="payment-2")
    return Envelope.command(key, message, issued_at=NOON, reply_to="a.queue", attempt=2)
