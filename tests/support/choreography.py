"""Three services that react to each other's events in memory, in the order a test chooses.

Reactions, handlers, domains, fence and progress are the real ones. The inbox is a dict, each step
is one transaction, and the test plays the broker, which may hold, repeat and lose any event.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from common.messages.envelope import (
    Command,
    Direction,
    Envelope,
    Fence,
    Fenced,
    Key,
    Outcome,
    saga_id_for,
)
from common.messages.shop.order import CancelOrder, OpenReturn, PlaceOrder
from common.messages.shop.values import Line
from common.participant.participant import Answered, Handler, Work
from common.participant.reactions import Reactions, react
from common.storage.admission import Duplicate, InboxView, Row, claims, fence_answer
from inventory_svc.choreography import REACTIONS as INVENTORY
from inventory_svc.domain import Pieces, Stock
from inventory_svc.handlers import HANDLERS as INVENTORY_HANDLERS
from order_svc.choreography.progress import ORDER, RETURN, SagaProgress
from order_svc.choreography.reactions import CONSUMED, cancel_asked_event, first_event, record_event
from order_svc.choreography.reactions import HANDLERS as ORDER_HANDLERS
from order_svc.domain import (
    CANCEL_ORDER,
    CANCELLED,
    OPEN_RETURN,
    OpenedReturn,
    OrderBook,
    PlacedOrder,
    Product,
    return_id_for,
)
from payment_svc.choreography import REACTIONS as PAYMENT
from payment_svc.domain import Account, AccountKey, Ledger
from payment_svc.handlers import HANDLERS as PAYMENT_HANDLERS

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
CUSTOMER, SKU, PRICE = "ann", "tea", 100
ORDER_ID = saga_id_for(CUSTOMER, "k")

Waiting = tuple[str, Envelope]  # and the service it goes to


@dataclass
class Service:
    """One participant: its inbox and its domain state."""

    handlers: Mapping[type[Command], Handler]
    state: Any
    inbox: dict[Key, Row] = field(default_factory=dict)

    def take(self, command: Envelope) -> list[Envelope]:
        """Handle a command in one transaction; return the events it publishes."""
        message = command.message()
        assert isinstance(message, Command)
        work = Work(command, message)
        mine = claims([command.key])
        view = InboxView([k for k in mine if k not in self.inbox], self.inbox)
        verdict = view.admit(command.key, _tombstone)
        if isinstance(verdict, Duplicate):
            assert verdict.row.reply is not None
            return [Envelope.model_validate_json(verdict.row.reply)]
        if isinstance(work.command, Fence):
            answered = Answered(fence_answer(verdict.action))
        else:
            said = self.handlers[type(work.command)](self.state, work)
            answered = said if isinstance(said, Answered) else Answered(said)
        assert answered.reply is not None
        event = command.reply(answered.reply, issued_at=NOON)
        if answered.keep:
            view.record_reply(command.key, Row(answered.reply.outcome, event.encode()))
            self.inbox |= view.rows_to_write()
        also = [out.envelope for out in answered.also if isinstance(out.envelope, Envelope)]
        return [event, *also] if command.reply_to else also


def _tombstone(action: Key) -> Row:
    command = Envelope.command(action, Fence(), issued_at=NOON,
                               reply_to=None)  # fmt: skip
    return Row(Outcome.FENCED, command.reply(Fenced(), issued_at=NOON).encode())


class World:
    """An order placed at the door, its returns, and the events under way."""

    def __init__(self, *, stock: int = 9, balance: int = 1000, card: str = "good") -> None:
        self.ledger = Ledger({AccountKey(CUSTOMER, "EUR"): Account(card, balance)})
        self.stock = Stock({SKU: Pieces(on_hand=stock, received=stock)})
        self.book = OrderBook(NOON, {"EUR"}, {SKU: Product(PRICE, "EUR")})
        self.services = {
            "order": Service(ORDER_HANDLERS, self.book),
            "inventory": Service(INVENTORY_HANDLERS, self.stock),
            "payment": Service(PAYMENT_HANDLERS, self.ledger),
        }
        self.progress = SagaProgress(ORDER_ID, ORDER)
        self.sagas: dict[UUID, tuple[SagaProgress, PlacedOrder | OpenedReturn]] = {}
        self.under_way: list[Waiting] = []
        self.delivered: list[Waiting] = []  # and may come again
        asked = PlaceOrder(
            customer=CUSTOMER,
            idempotency_key="k",
            currency="EUR",
            lines=(Line(sku=SKU, quantity=2),),
        )
        key = Key(ORDER_ID, "create_order", Direction.FORWARD)
        place = Envelope.command(key, asked, issued_at=NOON, reply_to=None)
        (accepted,) = self.services["order"].take(place)
        self.sagas[ORDER_ID] = self.progress, self.book.placed[ORDER_ID][0]
        self.progress.record(accepted, 0)
        self.publish([accepted])

    def publish(self, events: list[Envelope]) -> None:
        """Put an event under way to every service that reacts to it."""
        for event in events:
            self.under_way += [(who, event) for who in LISTENERS.get(event.type, ())]

    def deliver(self, number: int = 0) -> None:
        """Deliver one event that is under way."""
        who, event = self.under_way.pop(number)
        self.delivered.append((who, event))
        self._receive(who, event)

    def repeat(self, number: int) -> None:
        """Deliver an event again that was delivered before."""
        self._receive(*self.delivered[number])

    def lose(self, number: int) -> None:
        del self.under_way[number]

    def time_out(self, attempts: int = 2) -> None:
        """Let the deadline pass of every saga that has not ended."""
        for progress, what in self.sagas.values():
            if not progress.ended:
                reason = progress.time_out(attempts, past_sla=False)
                said = first_event(what) if reason is None else cancel_asked_event(what, reason)
                assert isinstance(said.envelope, Envelope)
                self.publish([said.envelope])

    def cancel(self) -> None:
        """Cancel the order, as its customer would."""
        key = Key(ORDER_ID, CANCEL_ORDER, Direction.FORWARD)
        asked = CancelOrder(order_id=ORDER_ID)
        wish = Envelope.command(key, asked, issued_at=NOON, reply_to=None)
        self.publish(self.services["order"].take(wish))
        if ORDER_ID in self.book.cancelled:
            self.progress.cancel(CANCELLED)

    def give_back(self, key: str = "r") -> SagaProgress | None:
        """Open a return; return its progress, or None if it was refused."""
        return_id = return_id_for(ORDER_ID, key)
        asked = OpenReturn(order_id=ORDER_ID, idempotency_key=key)
        opening = Key(return_id, OPEN_RETURN, Direction.FORWARD)
        accepted = self.services["order"].take(
            Envelope.command(opening, asked, issued_at=NOON, reply_to=None)
        )
        if return_id in self.book.opened and return_id not in self.sagas:
            self.sagas[return_id] = SagaProgress(return_id, RETURN), self.book.opened[return_id][0]
            self.sagas[return_id][0].record(accepted[0], 0)
            self.publish(accepted)
        return self.sagas[return_id][0] if return_id in self.sagas else None

    def drain(self) -> None:
        while self.under_way:
            self.deliver()

    def _receive(self, who: str, event: Envelope) -> None:
        if who == "order":
            _, command = record_event(self.sagas[event.saga_id][0], event, 0)
        else:
            command = react(REACTIONS[who], event)
        if command is not None:
            self.publish(self.services[who].take(command))

    # --- what is so ---

    @property
    def status(self) -> str:
        return self.book.orders[ORDER_ID].status.value

    @property
    def reason(self) -> str | None:
        return self.book.orders[ORDER_ID].reason

    @property
    def moves(self) -> list[str]:
        return sorted(transfer.kind for transfer in self.ledger.made)

    @property
    def goods(self) -> str | None:
        reservation = self.stock.reservations.get(ORDER_ID)
        return reservation.status.value if reservation else None


REACTIONS: Mapping[str, Reactions] = {"inventory": INVENTORY, "payment": PAYMENT}
LISTENERS: dict[str, list[str]] = {}
for _event in {*CONSUMED, *INVENTORY, *PAYMENT}:
    LISTENERS[_event.__name__] = [
        who
        for who, consumed in (("order", CONSUMED), ("inventory", INVENTORY), ("payment", PAYMENT))
        if _event in consumed
    ]


def played(world: World) -> World:
    world.drain()
    return world


def waiting(world: World, who: str, type_: str) -> int:
    return next(n for n, (w, e) in enumerate(world.under_way) if (w, e.type) == (who, type_))


def until(world: World, who: str, type_: str) -> int:
    """Deliver every event until one of this type waits for this service; return its place."""
    while others := [n for n, (w, e) in enumerate(world.under_way) if (w, e.type) != (who, type_)]:
        world.deliver(others[0])
    return waiting(world, who, type_)


def but_for_one(world: World, who: str, type_: str) -> None:
    """Lose the first event of a type to one service, and play on until all has ended."""
    lost = False
    for _ in range(6):
        while world.under_way:
            to, event = world.under_way[0]
            if not lost and (to, event.type) == (who, type_):
                world.lose(0)
                lost = True
            else:
                world.deliver()
        world.time_out(attempts=9)
