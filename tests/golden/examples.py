"""One example of every message that travels, every optional field filled.

Owns: what the golden files are made from. Must not know: how they are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import UUID

from common.messages import contracts
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
from common.messages.shop import inventory, order, payment, values

SAGA = UUID("5a6a0000-0000-5000-8000-000000000001")
CHARGE = UUID("5a6a0000-0000-5000-8000-000000000002")
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LINES = (values.Line(sku="tea", quantity=2), values.Line(sku="cup", quantity=1))

FORWARD: dict[str, list[Message]] = {
    "create_order": [
        order.PlaceOrder(customer="ada", idempotency_key="key-1", currency="EUR", lines=LINES),
        order.OrderAccepted(order_id=SAGA, customer="ada", currency="EUR", lines=LINES, total=700),
        order.OrderInvalid(field="lines", remedy="order at least one line"),
        order.KeyReused(order_id=SAGA),
    ],
    "cancel_order": [order.CancelAsked(reason="charge_payment_timed_out")],
    "customer_cancels": [
        order.CancelOrder(order_id=SAGA),
        order.CancelNoted(),
        order.OrderIsOver(status="CONFIRMED"),
        order.OrderUnknown(),
    ],
    "cancel": [
        contracts.CancelSaga(
            definition="order",
            data={"customer": "ada", "total": 700},
            actor="customer ada",
            reason="cancelled",
        )
    ],
    "start": [contracts.StartSaga(definition="order", data={"customer": "ada", "total": 700})],
    "saga_started": [contracts.SagaStarted()],
    "reserve_stock": [
        inventory.ReserveStock(lines=LINES),
        inventory.StockReserved(),
        inventory.OutOfStock(sku="tea", wanted=2, available=1),
        inventory.NotStocked(sku="tea"),
    ],
    "charge_payment": [
        payment.ChargePayment(customer="ada", total=700, currency="EUR"),
        payment.PaymentCharged(charge_id=CHARGE),
        payment.CardDeclined(),
        payment.InsufficientFunds(),
        payment.UnknownAccount(),
        Fenced(),
    ],
    "dispatch_stock": [
        inventory.DispatchStock(),
        inventory.StockDispatched(),
        inventory.ReservationNotHeld(),
    ],
    "confirm_order": [order.ConfirmOrder(), order.OrderConfirmed()],
    "open_return": [
        order.OpenReturn(order_id=SAGA, idempotency_key="key-2"),
        order.ReturnAccepted(return_id=CHARGE, order_id=SAGA),
        order.NotReturnable(field="order_id", remedy="it is not confirmed yet"),
    ],
    "refund_order": [
        payment.RefundOrder(order_id=SAGA),
        payment.OrderRefunded(),
        payment.NothingToRefund(),
    ],
    "restock": [inventory.Restock(order_id=SAGA), inventory.Restocked()],
    "finish_return": [order.FinishReturn(order_id=SAGA), order.ReturnFinished()],
    "list_product": [
        order.ListProduct(sku="tea", price=300, currency="EUR"),
        order.ProductListed(sku="tea"),
    ],
    "receive_stock": [
        inventory.ReceiveStock(sku="tea", quantity=10),
        inventory.StockReceived(sku="tea"),
    ],
    "open_account": [
        payment.OpenAccount(customer="ada", currency="EUR", card="declined"),
        payment.AccountOpened(customer="ada"),
    ],
    "deposit": [
        payment.Deposit(customer="ada", currency="EUR", amount=9000),
        payment.Deposited(customer="ada"),
    ],
    "forget": [Forget(until=NOON, saga_ids=(SAGA, CHARGE))],
    "saga_view": [
        contracts.SagaQuery(saga_id=SAGA),
        contracts.SagaView(
            saga_id=SAGA,
            found=True,
            definition="order v1",
            state="COMPENSATED",
            reason="card_declined",
            pivot_passed=False,
            compensate_asked=True,
            stuck=False,
            steps=(
                contracts.StepView(
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
        inventory.StockQuery(prefix="te", after="tea", limit=10),
        inventory.StockPage(
            rows=(inventory.StockRow(sku="tee", on_hand=7, held=2, dispatched=1, received=10),),
            more=True,
        ),
    ],
    "accounts": [
        payment.AccountsQuery(customer="ada", after=("ada", "EUR"), limit=10),
        payment.AccountsPage(
            rows=(payment.AccountRow(customer="ada", currency="USD", card="good", balance=700),),
            more=True,
        ),
    ],
    "audit": [
        contracts.TouchedQuery(after=CHARGE, since=NOON, until=NOON, limit=10),
        contracts.TouchedPage(saga_ids=(SAGA, CHARGE), looked_to=CHARGE),
        contracts.EffectsQuery(saga_ids=(SAGA,)),
        contracts.Effects(
            rows=(
                contracts.Effect(saga_id=SAGA, step="charge_payment", standing="CHARGED", at=NOON),
            )
        ),
    ],
    "processes": [
        contracts.ProcessQuery(),
        contracts.ProcessView(
            process="payment-2",
            service="payment",
            release="0.1.0",
            ready=False,
            checks=(contracts.Check(name="relay", problem="not started"),),
            shipped=("common/0001_inbox_outbox", "payment_svc/0001_payment"),
            applied=("common/0001_inbox_outbox",),
        ),
    ],
}
COMPENSATING: dict[str, list[Message]] = {
    "create_order": [order.RejectOrder(reason="card_declined"), order.OrderRejected()],
    "reserve_stock": [inventory.ReleaseStock(), inventory.StockReleased(nothing_to_undo=True)],
    "charge_payment": [payment.RefundPayment(), payment.PaymentRefunded(nothing_to_undo=True)],
    "dispatch_stock": [Fence(), PivotDone()],
    "open_return": [order.CloseReturn(reason="nothing_to_refund"), order.ReturnClosed()],
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
