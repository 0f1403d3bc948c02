"""The choreographed style of the order service: which event leads to which command. Pure.

The order service owns the deadline. After a timeout it publishes the first event again, which every
service answers with its own stored event, so that a lost one is replaced. After the last attempt,
and at once when a customer cancels, it asks the pivot's owner to cancel. It rejects the order last,
once the other services have confirmed their undos.
"""

from __future__ import annotations

from typing import Any

from common.messages.envelope import Command, Direction, Envelope, Fenced, Key, PivotDone, Reply
from common.messages.shop.inventory import Restocked, StockDispatched, StockReleased
from common.messages.shop.order import (
    CancelAsked,
    CancelNoted,
    CancelOrder,
    CloseReturn,
    ConfirmOrder,
    FinishReturn,
    OpenReturn,
    OrderAccepted,
    OrderIsOver,
    OrderUnknown,
    PlaceOrder,
    RejectOrder,
    ReturnAccepted,
)
from common.messages.shop.payment import PaymentRefunded
from common.messages.topology import event_of
from common.participant.participant import Answered, Handler, Work
from common.participant.reactions import Reaction, Reactions, parse_event, react
from common.storage.outbox import Outgoing
from order_svc import handlers
from order_svc.choreography.progress import OUTLINES, SagaProgress
from order_svc.domain import (
    CANCELLED,
    CREATE_ORDER,
    OPEN_RETURN,
    OpenedReturn,
    OrderBook,
    PlacedOrder,
)

REJECT = Reaction(CREATE_ORDER, RejectOrder)

REACTIONS: Reactions = {
    StockDispatched: Reaction("confirm_order", ConfirmOrder),
    # CancelAsked came too late.
    PivotDone: Reaction("confirm_order", ConfirmOrder, of="dispatch_stock"),
    StockReleased: REJECT,  # once both of these have come
    PaymentRefunded: REJECT,
    Restocked: Reaction("finish_return", FinishReturn),
    Fenced: Reaction(OPEN_RETURN, CloseReturn, of="refund_order"),
}
_FIRST = (OrderAccepted, ReturnAccepted)  # published here, so not consumed here
# Every other event of both sagas, since customers may ask for the progress of theirs.
CONSUMED = tuple(
    dict.fromkeys(
        event
        for outline in OUTLINES.values()
        for step in outline.steps
        for event in step.events
        if event not in _FIRST
    )
)


def record_event(
    progress: SagaProgress, event: Envelope, at: float
) -> tuple[bool, Envelope | None]:
    """Record an event; return whether it was new, and the command it leads to."""
    new = progress.record(event, at)
    command = react(REACTIONS, event)
    if REACTIONS.get(type(parse_event(event))) is REJECT and not progress.all_undone:
        command = None
    return new, command


def first_key(what: PlacedOrder | OpenedReturn) -> Key:
    if isinstance(what, PlacedOrder):
        return Key(what.order_id, CREATE_ORDER, Direction.FORWARD)
    return Key(what.return_id, OPEN_RETURN, Direction.FORWARD)


def first_event(what: PlacedOrder | OpenedReturn) -> Outgoing:
    """Make the event that all others follow from, the same each time."""
    if isinstance(what, PlacedOrder):
        return _event(what, first_key(what), handlers.order_accepted(what))
    return _event(what, first_key(what), handlers.return_accepted(what))


def cancel_asked_event(what: PlacedOrder | OpenedReturn, reason: str) -> Outgoing:
    """Make the event that asks the pivot's owner to cancel."""
    step = "cancel_order" if isinstance(what, PlacedOrder) else "cancel_return"
    key = first_key(what)._replace(step=step)
    about = {"order_id": str(what.order_id), "reason": reason}
    return _event(what, key, CancelAsked(reason=reason), about)


def _event(
    what: PlacedOrder | OpenedReturn, key: Key, body: Reply, about: dict[str, Any] | None = None
) -> Outgoing:
    at = what.placed_at if isinstance(what, PlacedOrder) else what.opened_at
    event = Envelope.of_reply(key, body, issued_at=at, attempt=what.attempt, about=about)
    return Outgoing(event_of(event.type), event)


def cancel_order(book: OrderBook, work: Work) -> Answered:
    """Ask the pivot's owner to cancel, once: its inbox row answers every repeat."""
    order = book.cancel(work.saga_id)
    if isinstance(order, OrderIsOver | OrderUnknown):
        return Answered(order, keep=False)
    return Answered(CancelNoted(), also=(cancel_asked_event(order, CANCELLED),))


HANDLERS: dict[type[Command], Handler] = {
    **handlers.HANDLERS,
    PlaceOrder: handlers.placing(first_event),
    OpenReturn: handlers.opening(first_event),
    CancelOrder: cancel_order,
}
