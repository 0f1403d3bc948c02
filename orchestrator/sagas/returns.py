"""The return saga: a confirmed order is given back.

It is a second saga over the same services, so that sagas meet on one record. The money goes back
first, since that may still be refused; the goods follow. A new attempt is a new saga (rule 19).
"""

from __future__ import annotations

from common.messages.shop.inventory import Restock
from common.messages.shop.order import CloseReturn, FinishReturn
from common.messages.shop.payment import RefundOrder
from orchestrator.engine.definition import Definition, Kind, Step

# fmt: off
RETURN_SAGA = Definition("return", version=1, steps=(
    Step("open_return",   Kind.COMPENSATABLE, "order",     at_the_door=True, undo=CloseReturn),
    Step("refund_order",  Kind.PIVOT,         "payment",   RefundOrder),
    Step("restock",       Kind.RETRIABLE,     "inventory", Restock),
    Step("finish_return", Kind.RETRIABLE,     "order",     FinishReturn),
))
# fmt: on
