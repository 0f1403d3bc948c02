"""Payment without an orchestrator: which event leads to which command. Pure.

It owns the pivot of a return, as the inventory owns an order's: a refusal of its own, and the order
service's deadline, ask it to cancel. It fences the refund, and says which came first.

Owns: the table REACTIONS. Must not know: who publishes the events, and who hears ours.
"""

from __future__ import annotations

from common.messages.contracts import (
    CancelAsked,
    ChargePayment,
    NothingToRefund,
    RefundOrder,
    RefundPayment,
    ReturnAccepted,
    StockReserved,
)
from common.messages.envelope import Fence, Fenced
from common.participant.reactions import Reaction, Reactions

REACTIONS: Reactions = {
    StockReserved: Reaction("charge_payment", ChargePayment),
    # Only now: the pivot will never be.
    Fenced: Reaction("charge_payment", RefundPayment, of="dispatch_stock"),
    ReturnAccepted: Reaction("refund_order", RefundOrder),
    NothingToRefund: Reaction("refund_order", Fence),
    CancelAsked: Reaction("refund_order", Fence, of="cancel_return"),
}
