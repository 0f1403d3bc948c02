"""Helpers for tests of the choreographed style: events, and the order service without a broker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from common.kit.settings import Settings
from common.messages.envelope import (
    Command,
    Direction,
    Envelope,
    Fenced,
    Key,
    PivotDone,
    Reply,
    saga_id_for,
)
from common.messages.shop.inventory import Restocked, StockDispatched, StockReleased, StockReserved
from common.messages.shop.order import (
    CancelAsked,
    CancelOrder,
    ListProduct,
    OpenReturn,
    PlaceOrder,
    ReturnAccepted,
)
from common.messages.shop.payment import (
    CardDeclined,
    NothingToRefund,
    OrderRefunded,
    PaymentCharged,
    PaymentRefunded,
)
from common.messages.shop.values import Line
from common.messages.topology import events_of
from common.participant.participant import Participant, Store
from common.participant.reactions import Listener, Reactions
from common.process.process import Process
from common.storage.db import Database
from order_svc.choreography.deadlines import Deadlines
from order_svc.choreography.listener import ProgressListener
from order_svc.choreography.reactions import HANDLERS
from order_svc.choreography.store import ProgressStore
from order_svc.domain import CANCEL_ORDER, OPEN_RETURN, return_id_for
from order_svc.handlers import ON_DUPLICATE, RECOGNISED_BY_STATE
from tests.integration.conftest import MakeSettings
from tests.integration.mail import NOON, command, saga
from tests.integration.services import handle
from tests.integration.waiting import FAST, Rows

FORWARD, COMPENSATING = Direction.FORWARD, Direction.COMPENSATING
CHOREOGRAPHED: dict[str, Any] = {**FAST, "style": "choreographed"}
ABOUT = {"customer": "ada", "currency": "EUR", "lines": [{"sku": "tea", "quantity": 2}], "total": 8}
STEPS: dict[type[Reply], tuple[str, Direction]] = {
    StockReserved: ("reserve_stock", FORWARD),
    PaymentCharged: ("charge_payment", FORWARD),
    CardDeclined: ("charge_payment", FORWARD),
    StockDispatched: ("dispatch_stock", FORWARD),
    PivotDone: ("dispatch_stock", COMPENSATING),
    Fenced: ("dispatch_stock", COMPENSATING),
    PaymentRefunded: ("charge_payment", COMPENSATING),
    StockReleased: ("reserve_stock", COMPENSATING),
    ReturnAccepted: ("open_return", FORWARD),
    CancelAsked: ("cancel_order", FORWARD),
    OrderRefunded: ("refund_order", FORWARD),
    NothingToRefund: ("refund_order", FORWARD),
    Restocked: ("restock", FORWARD),
}


def event(body: Reply, saga_id: UUID, step: str | None = None, **more: str) -> Envelope:
    its_step, direction = STEPS[type(body)]
    key = Key(saga_id, step or its_step, direction)
    return Envelope.of_reply(key, body, issued_at=NOON, about={**ABOUT, **more})


def outgoing(judge: Rows, schema: str) -> list[object]:
    query = f"select destination from {schema}.outbox order by id"
    return [row[0] for row in judge.execute(query.encode())]


async def deliver(listener: Listener, *events: Envelope) -> None:
    await listener.handle([listener.parse(each) for each in events])


class Orders:
    """The order service in the choreographed style, without a broker."""

    def __init__(self, db: Database, settings: Settings) -> None:
        self.db = db
        self.store = ProgressStore(settings.policy)
        self.participant = Participant(
            db,
            self.store,
            HANDLERS,
            on_duplicate=ON_DUPLICATE,
            recognised_by_state=RECOGNISED_BY_STATE,
        )
        self.listener = ProgressListener(db, self.store, self.participant)
        process = Process(settings)
        self.deadlines = Deadlines(
            db, self.store, lambda: True, settings, process.health, process.stop
        )

    async def place(self, key: str = "k") -> UUID:
        product = ListProduct(sku="tea", price=4, currency="EUR")
        await handle(self.participant, command(product, saga(99), step="list", reply_to=None))
        asked = PlaceOrder(
            customer="ada",
            idempotency_key=key,
            currency="EUR",
            lines=(Line(sku="tea", quantity=2),),
        )
        order_id = saga_id_for("ada", key)
        await handle(self.participant, command(asked, order_id, reply_to=None))
        return order_id

    async def cancel(self, order_id: UUID) -> Reply | None:
        wish = CancelOrder(order_id=order_id)
        asked = command(wish, order_id, step=CANCEL_ORDER, reply_to=None)
        (reply,) = await handle(self.participant, asked)
        return reply

    async def give_back(self, order_id: UUID, key: str = "r") -> tuple[UUID, Reply | None]:
        return_id = return_id_for(order_id, key)
        wish = OpenReturn(order_id=order_id, idempotency_key=key)
        asked = command(wish, return_id, step=OPEN_RETURN, reply_to=None)
        (reply,) = await handle(self.participant, asked)
        return return_id, reply

    async def receives(self, *events: Envelope) -> None:
        await self.listener.handle([self.listener.parse(each) for each in events])

    async def view(self, order_id: UUID) -> tuple[str | None, dict[str, str]]:
        async with self.db.transaction(None) as tx:
            view = await self.store.view(tx, order_id)
        return view.state, {step.step: step.status for step in view.steps}


@asynccontextmanager
async def orders(settings: MakeSettings, **more: object) -> AsyncIterator[Orders]:
    ours = settings("order_svc", **{**CHOREOGRAPHED, **more})
    async with Database(ours) as db:
        yield Orders(db, ours)


def status(judge: Rows, order_id: UUID) -> tuple[object, ...]:
    query = "select status, reason from order_svc.customer_order where order_id = %s"
    return judge.execute(query, (order_id,)).fetchall()[0]


def participant_process(
    settings: Settings,
    service: str,
    store: Store[Any],
    handlers: dict[type[Command], Any],
    reactions: Reactions,
) -> Process:
    """Put a participant's process together as run_participant() does."""
    process = Process(settings)
    participant = Participant(process.db, store, handlers)
    listener = Listener(participant, reactions)
    types = [each.__name__ for each in reactions]
    process.consumer(events_of(service), listener.parse, listener.handle, events=types)
    return process
