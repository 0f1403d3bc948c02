"""The choreographed style of payment: which event leads to which command. Pure.

Payment owns the pivot of a return, as the inventory owns that of an order. When its own refusal or
the order service's CancelAsked asks it to cancel, it fences the refund, and its reply says which
came first. It refunds the charge of an order only once the order's pivot is fenced.
"""

from __future__ import annotations

from common.messages.envelope import Fence, Fenced
from common.messages.shop.inventory import StockReserved
from common.messages.shop.order import CancelAsked, ReturnAccepted
from common.messages.shop.payment import ChargePayment, NothingToRefund, RefundOrder, RefundPayment
from common.participant.reactions import Reaction, Reactions

REACTIONS: Reactions = {
    StockReserved: Reaction("charge_payment", ChargePayment),
    Fenced: Reaction("charge_payment", RefundPayment, of="dispatch_stock"),
    ReturnAccepted: Reaction("refund_order", RefundOrder),
    NothingToRefund: Reaction("refund_order", Fence),
    CancelAsked: Reaction("refund_order", Fence, of="cancel_return"),
}
