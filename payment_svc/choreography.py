"""Payment without an orchestrator: which event leads to which command. Pure.

Owns: the table REACTIONS. Must not know: who publishes the events, and who hears ours.
"""

from __future__ import annotations

from common.contracts import ChargePayment, RefundPayment, StockReserved
from common.envelope import Fenced
from common.reactions import Reaction, Reactions

REACTIONS: Reactions = {
    StockReserved: Reaction("charge_payment", ChargePayment),
    Fenced: Reaction("charge_payment", RefundPayment),  # only now: the pivot will never be
}
