"""The choreographed style of the inventory: which event leads to which command. Pure.

The inventory owns the pivot of an order. Any refusal, and the order service's CancelAsked, ask it
to cancel: it fences the dispatch, and its reply, PivotDone or Fenced, is the event that the other
services wait for. No service undoes anything before Fenced; the inventory too reacts to its own
event. The pivot of a return is payment's: once the money is refunded, the goods go back on the
shelf.
"""

from __future__ import annotations

from common.messages.envelope import Fence, Fenced, PivotDone
from common.messages.shop.inventory import (
    DispatchStock,
    NotStocked,
    OutOfStock,
    ReleaseStock,
    ReservationNotHeld,
    ReserveStock,
    Restock,
)
from common.messages.shop.order import CancelAsked, OrderAccepted
from common.messages.shop.payment import (
    CardDeclined,
    InsufficientFunds,
    OrderRefunded,
    PaymentCharged,
    UnknownAccount,
)
from common.participant.reactions import Reaction, Reactions

_FENCE = Reaction("dispatch_stock", Fence)

REACTIONS: Reactions = {
    OrderAccepted: Reaction("reserve_stock", ReserveStock),
    PaymentCharged: Reaction("dispatch_stock", DispatchStock),
    OutOfStock: _FENCE,
    NotStocked: _FENCE,
    CardDeclined: _FENCE,
    InsufficientFunds: _FENCE,
    UnknownAccount: _FENCE,
    ReservationNotHeld: _FENCE,
    CancelAsked: Reaction("dispatch_stock", Fence, of="cancel_order"),
    Fenced: Reaction("reserve_stock", ReleaseStock, of="dispatch_stock"),
    OrderRefunded: Reaction("restock", Restock),
    PivotDone: Reaction("restock", Restock, of="refund_order"),  # CancelAsked came too late
}
