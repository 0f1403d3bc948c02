"""The order saga, as its owner would tell it.

Read downwards for the way forward, upwards for the way back. After the goods have been
dispatched there is no way back; an order that cannot go forward before that is undone from the
last step to the first. An undo that has not been answered by its first deadline does not hold up
the next; only `RejectOrder`, which informs the customer, waits for all others. A large order, or
one of a customer on the watch list, waits for a person before it is charged; its stock stays
reserved meanwhile.
"""

from __future__ import annotations

from common.messages.shop.inventory import DispatchStock, ReleaseStock, ReserveStock
from common.messages.shop.order import ConfirmOrder, OrderData, RejectOrder
from common.messages.shop.payment import ChargePayment, RefundPayment
from orchestrator.engine.definition import Definition, Kind, Step

# fmt: off
ORDER_SAGA = Definition("order", version=2, data=OrderData, steps=(
    Step("create_order",   Kind.COMPENSATABLE, "order",     at_the_door=True, undo=RejectOrder),
    Step("reserve_stock",  Kind.COMPENSATABLE, "inventory", ReserveStock,  undo=ReleaseStock),
    Step("approve_order",  Kind.GATE,          "orchestrator"),
    Step("charge_payment", Kind.COMPENSATABLE, "payment",   ChargePayment, undo=RefundPayment),
    Step("dispatch_stock", Kind.PIVOT,         "inventory", DispatchStock),
    Step("confirm_order",  Kind.RETRIABLE,     "order",     ConfirmOrder),
))
# fmt: on

# Without the gate. A saga finishes under the version it began with; new ones begin with the newest.
_WITHOUT_GATE = tuple(step for step in ORDER_SAGA.steps if step.kind is not Kind.GATE)
ORDER_SAGA_V1 = Definition("order", version=1, data=OrderData, steps=_WITHOUT_GATE)
DEFINITIONS = (ORDER_SAGA_V1, ORDER_SAGA)
