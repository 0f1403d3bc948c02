"""The guards that a process can be started without, and how to remove each.

Owns: the table MUTANTS; `chaos/guards/table.py` names them and says what breaks. Must not know:
under which load.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

import pika

from common.messages.envelope import pack
from common.storage import admission, outbox
from common.storage.db import Tx
from common.storage.outbox import Outgoing
from common.transport import consumer
from inventory_svc import domain as inventory
from inventory_svc import store as inventory_store
from orchestrator.dead_letters import intake
from orchestrator.engine.decide import Move
from order_svc import domain as order
from payment_svc import domain as payment
from tests.support.without import Guard

Remove = Callable[[], None]


def _publish_before_commit() -> None:
    """Publish what a transaction sends before the transaction is committed."""

    async def append(tx: Tx, messages: Sequence[Outgoing]) -> None:
        properties = pika.BasicProperties(content_type="application/json", delivery_mode=2)
        url = pika.URLParameters(os.environ["SAGAPROOF_AMQP_URL"])
        with pika.BlockingConnection(url) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            for destination, envelope in messages:
                encoded = envelope if isinstance(envelope, str) else envelope.encode()
                channel.basic_publish("", destination, pack([encoded]), properties)

    outbox.append = append


def _lock_no_stock() -> None:
    locked = inventory_store._STOCK
    if not locked.endswith(" for update"):
        raise LookupError("the stock is not locked as it was")
    inventory_store._STOCK = locked.removesuffix(" for update")


_ACK = "channel.ack([opened.delivery.tag for opened in finished])"
_ACK_FIRST = "channel.ack([opened.delivery.tag for opened in batch])"
_BEGINNING = "began = _now()"
CHANGED = (
    Guard("inbox", admission.InboxView, "admit", {
        "if row is not None:": "if False:", "if key not in self._claimed:": "if False:"}),
    Guard("charged-already", payment.Ledger, "charge", {
        "if saga_id in self.charges:": "if False:"}),
    Guard("fence", admission.InboxView, "admit", {
        "self._known[key.action] = tombstone(key.action)": "return First()"}),
    Guard("stored-reply", admission.InboxView, "record_reply", {
        "self._known[key] = row": "self._known[key] = Row(row.outcome, None)"}),
    Guard("ack-after-commit", consumer.BatchConsumer, "process", {
        _ACK: "pass", _BEGINNING: f"{_ACK_FIRST}; {_BEGINNING}"}),
    Guard("semantic-lock", inventory.Stock, "dispatch", {
        " or reservation.status is ReservationStatus.RELEASED:": ":",
        "if reservation.status is ReservationStatus.HELD:": "if True:"}),
    Guard("enough-on-hand", inventory.Stock, "reserve", {
        "if pieces.on_hand < quantity:": "if False:"}),
    Guard("return-lock", order.OrderBook, "open_return", {
        "if order.status is not OrderStatus.CONFIRMED:": "if False:"}),
    Guard("refunded-already", payment.Ledger, "refund_order", {
        " or charge.transfer_id in self.refunded:": ":"}),
    Guard("only-awaited", Move, "take_reply", {
        "(input_.step, input_.direction) in self._before.awaited()": "True"}),
    Guard("unknown-is-undone", Move, "_give_up", {
        "status=Status.UNKNOWN": "status=Status.REFUSED"}),
    Guard("end-when-settled", Move, "_compensate", {
        "if self._all_settled():": "if True:"}),
    Guard("gate", Move, "_advance", {
        "if why := self._approvals.get(step.name):": "if why := None:"}),
    Guard("dead-letter-told", intake.Intake, "_keep", {
        "if decide and letter.key:": "if False:"}),
)  # fmt: skip
MUTANTS: Mapping[str, Remove] = {
    **{guard.name: guard.remove for guard in CHANGED},
    "outbox": _publish_before_commit,
    "stock-lock": _lock_no_stock,
}
