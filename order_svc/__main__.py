"""`python -m order_svc worker` serves `order.commands`; `python -m order_svc door` the customers.

The composition root of both.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from uuid import UUID

from common.http.access import CUSTOMERS
from common.http.app import Entrance, serve
from common.kit.settings import Settings
from common.messages.contracts import EffectsQuery, SagaQuery, SagaView, TouchedQuery
from common.messages.topology import ORCHESTRATOR_QUERIES, commands_of, events_of, queries_of
from common.participant.participant import Participant
from common.participant.retention import Retention
from common.process.process import Process, prepare
from common.transport.query import Asker
from order_svc.choreography import reactions
from order_svc.choreography.archive import archiving
from order_svc.choreography.deadlines import Deadlines
from order_svc.choreography.listener import Listener
from order_svc.choreography.store import ProgressStore
from order_svc.domain import OrderBook
from order_svc.door import queries
from order_svc.door.api import Reader, make_app
from order_svc.door.batcher import Door
from order_svc.door.schemas import OrderView, ReturnView
from order_svc.door.start_resender import Starter
from order_svc.handlers import HANDLERS, KEPT_FOR_EVER, ON_DUPLICATE
from order_svc.store import OrderStore

MIGRATIONS = Path(__file__).parent / "migrations"
USAGE = "usage: python -m order_svc worker|door"


def participant_of(process: Process) -> Participant[OrderBook]:
    choreographed = process.settings.style == "choreographed"
    return Participant(
        process.db,
        ProgressStore(process.settings.policy) if choreographed else _store(process.settings),
        reactions.HANDLERS if choreographed else HANDLERS,
        on_duplicate=ON_DUPLICATE,
        kept_for_ever=KEPT_FOR_EVER,
        process=process.settings.process,
        carry=process.relay.carry,
    )


def entrance(settings: Settings) -> Entrance:
    return Entrance.of(settings, "door_keys", CUSTOMERS)


async def worker(settings: Settings) -> None:
    queue = commands_of("order")
    process = Process(settings, queue)
    process.announce("order", MIGRATIONS)
    participant = participant_of(process)
    process.consumer(queue, participant.parse, participant.handle)
    process.answer_from(
        queries_of("order"), {TouchedQuery: queries.touched, EffectsQuery: queries.effects}
    )
    if settings.style == "choreographed":
        _listen(process, participant)
    else:
        process.health.set("starter", "not started")
        starter = Starter(
            process.db,
            _store(settings),
            settings,
            process.health,
            process.stop,
            process.relay.carry,
        )
        process.add("starter", starter.run)
    await process.run()


def _listen(process: Process, participant: Participant[OrderBook]) -> None:
    """The choreographed style: events are heard here, their silence is, and what ended goes."""
    settings, health, carry = process.settings, process.health, process.relay.carry
    store = ProgressStore(settings.policy)
    listener = Listener(process.db, store, participant, carry)
    queue = events_of("order")
    types = [event.__name__ for event in reactions.HEARD]
    for check in (queue, "deadlines"):
        health.set(check, "not started")
    events = process.consumer(queue, listener.parse, listener.handle, events=types)
    deadlines = Deadlines(
        process.db, store, lambda: process.relay.flushed and events.drained,
        settings, health, process.stop, carry,
    )  # fmt: skip
    process.add("deadlines", deadlines.run)
    retention = Retention(
        process.db, archiving(settings.retention_seconds), settings, health, process.stop,
        may_send=lambda: process.relay.flushed, carry=carry,
    )  # fmt: skip
    process.add("retention", retention.run)


def _store(settings: Settings) -> OrderStore:
    return OrderStore(settings.start_resend_seconds)


async def door(settings: Settings) -> None:
    process = Process(settings, "orders", "queries", "http")
    process.announce("door", MIGRATIONS)
    asker = Asker(process.broker, settings, process.health, process.stop)
    counter = Door(participant_of(process), settings.batch_envelopes, process.health, process.stop)
    app = make_app(counter, _reader(process, asker), process.health, entrance(settings))
    process.add("queries", asker.run)
    process.add("orders", counter.run)
    process.add("http", lambda: serve(app, process, settings.door_host, settings.door_port))
    await process.run()


def _reader(process: Process, asker: Asker) -> Reader:
    async def order(order_id: UUID) -> OrderView | None:
        async with process.db.reading() as tx:
            return await queries.order(tx, order_id)

    async def orders(customer: str, limit: int, after: UUID | None) -> list[OrderView]:
        async with process.db.reading() as tx:
            return await queries.orders(tx, customer, limit, after)

    async def progress(query: SagaQuery) -> SagaView:
        async with process.db.reading() as tx:
            return await ProgressStore(process.settings.policy).view(tx, query.saga_id)

    async def saga(query: SagaQuery) -> SagaView:
        answer = await asker.ask(ORCHESTRATOR_QUERIES, query)
        if not isinstance(answer, SagaView):
            raise TypeError(f"asked where a saga stands, answered {type(answer).__name__}")
        return answer

    async def return_(return_id: UUID) -> ReturnView | None:
        async with process.db.reading() as tx:
            return await queries.return_(tx, return_id)

    choreographed = process.settings.style == "choreographed"
    return Reader(order, orders, progress if choreographed else saga, return_)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["worker"]:
            asyncio.run(worker(prepare("order", MIGRATIONS)))
        case ["door"]:
            asyncio.run(door(prepare("door", MIGRATIONS, check=entrance)))
        case _:
            sys.exit(USAGE)
