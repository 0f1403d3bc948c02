"""The order service without an orchestrator: which event leads to which command. Pure.

It owns the deadline. Whatever is silent for too long, the first event is told again, and with it,
from service to service, each that followed; in the end the pivot's owner is asked to cancel, as it
is at once for a customer who wants the order no more.
The customer is told last, once the others have confirmed that nothing of theirs is left.

Owns: the table REACTIONS, the events that are this service's own, and what PlaceOrder and
OpenReturn lead to in this style. Must not know: SQL, the broker, who hears its events.
"""

from __future__ import annotations

from typing import Any

from common.messages.contracts import (
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
    PaymentRefunded,
    PlaceOrder,
    RejectOrder,
    Restocked,
    ReturnAccepted,
    StockDispatched,
    StockReleased,
)
from common.messages.envelope import Command, Direction, Envelope, Fenced, Key, PivotDone, Reply
from common.messages.topology import event_of
from common.participant.participant import Answered, Handler, Work
from common.participant.reactions import Reaction, Reactions, parse_event, react
from common.storage.outbox import Outgoing
from order_svc import handlers
from order_svc.choreography.progress import STORIES, Progress
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
    # Asked to cancel too late.
    PivotDone: Reaction("confirm_order", ConfirmOrder, of="dispatch_stock"),
    StockReleased: REJECT,  # once all of these have been heard
    PaymentRefunded: REJECT,
    Restocked: Reaction("finish_return", FinishReturn),
    Fenced: Reaction(OPEN_RETURN, CloseReturn, of="refund_order"),
}
# All that is told of a saga but what we begin it with: the customer may ask where it stands.
_BEGIN = (OrderAccepted, ReturnAccepted)
HEARD = tuple(
    dict.fromkeys(
        event
        for story in STORIES.values()
        for step in story.steps
        for event in step.events
        if event not in _BEGIN
    )
)


def hear(progress: Progress, event: Envelope, at: float) -> tuple[bool, Envelope | None]:
    """Whether it is news, and the command it leads to."""
    news = progress.hear(event, at)
    command = react(REACTIONS, event)
    if REACTIONS.get(type(parse_event(event))) is REJECT and not progress.all_undone:
        command = None
    return news, command


def first_key(what: PlacedOrder | OpenedReturn) -> Key:
    if isinstance(what, PlacedOrder):
        return Key(what.order_id, CREATE_ORDER, Direction.FORWARD)
    return Key(what.return_id, OPEN_RETURN, Direction.FORWARD)


def begun(what: PlacedOrder | OpenedReturn) -> Outgoing:
    """The event that all others follow from; the same however often it is told."""
    if isinstance(what, PlacedOrder):
        return _told(what, first_key(what), handlers.order_accepted(what))
    return _told(what, first_key(what), handlers.return_accepted(what))


def cancel_asked(what: PlacedOrder | OpenedReturn, reason: str) -> Outgoing:
    """To the pivot's owner, until it is answered."""
    step = "cancel_order" if isinstance(what, PlacedOrder) else "cancel_return"
    key = first_key(what)._replace(step=step)
    about = {"order_id": str(what.order_id), "reason": reason}
    return _told(what, key, CancelAsked(reason=reason), about)


def _told(
    what: PlacedOrder | OpenedReturn, key: Key, body: Reply, about: dict[str, Any] | None = None
) -> Outgoing:
    at = what.placed_at if isinstance(what, PlacedOrder) else what.opened_at
    event = Envelope.event(key, body, issued_at=at, attempt=what.attempt, about=about)
    return Outgoing(event_of(event.type), event)


def cancel_order(book: OrderBook, work: Work) -> Answered:
    """The pivot's owner is asked at once; whoever asks again is asked for no second time."""
    order = book.cancel(work.saga_id)
    if isinstance(order, OrderIsOver | OrderUnknown):
        return Answered(order, keep=False)
    return Answered(CancelNoted(), also=(cancel_asked(order, CANCELLED),))


HANDLERS: dict[type[Command], Handler] = {
    **handlers.HANDLERS,
    PlaceOrder: handlers.placing(begun),
    OpenReturn: handlers.opening(begun),
    CancelOrder: cancel_order,
}
