"""The inventory without an orchestrator: which event leads to which command. Pure.

The inventory owns the pivot. Any refusal, and the order service's deadline, ask it to cancel: it
fences the dispatch, and its answer, PivotDone or Fenced, is the event that everybody else waits
for. Until then nobody undoes anything; it waits for its own answer like the others. Of a return the
pivot is payment's: once the money is back, the goods go back on the shelf.

Owns: the table REACTIONS. Must not know: who publishes the events, and who hears ours.
"""

from __future__ import annotations

from common.messages.contracts import (
    CancelAsked,
    CardDeclined,
    DispatchStock,
    InsufficientFunds,
    NotStocked,
    OrderAccepted,
    OrderRefunded,
    OutOfStock,
    PaymentCharged,
    ReleaseStock,
    ReservationNotHeld,
    ReserveStock,
    Restock,
    UnknownAccount,
)
from common.messages.envelope import Fence, Fenced, PivotDone
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
    PivotDone: Reaction("restock", Restock, of="refund_order"),  # asked to cancel too late
}
