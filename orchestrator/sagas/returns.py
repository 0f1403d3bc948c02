"""The return saga: a confirmed order is given back.

It is a second saga over the same services, so that sagas meet on one record. The money goes back
first, since that may still be refused; the goods follow. A new attempt is a new saga (rule 19).
"""

from __future__ import annotations

from common.messages.shop.inventory import Restock
from common.messages.shop.order import CloseReturn, FinishReturn
from common.messages.shop.payment import RefundOrder
from orchestrator.engine.definition import Definition, Kind, Step

COMPENSATABLE, PIVOT, RETRIABLE = Kind.COMPENSATABLE, Kind.PIVOT, Kind.RETRIABLE

# fmt: off
RETURN_SAGA = Definition("return", version=1, steps=(
    Step("open_return",   COMPENSATABLE, "order",     at_the_door=True,      undo=CloseReturn),
    Step("refund_order",  PIVOT,         "payment",   command=RefundOrder),
    Step("restock",       RETRIABLE,     "inventory", command=Restock),
    Step("finish_return", RETRIABLE,     "order",     command=FinishReturn),
))
# fmt: on
