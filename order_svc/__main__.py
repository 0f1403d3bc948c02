"""`python -m order_svc worker` serves `order.commands`; `python -m order_svc door` the customers.

The composition root of both.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from uuid import UUID

from common.access import CUSTOMERS
from common.contracts import SagaQuery, SagaView
from common.http import Entrance, serve
from common.participant import Participant
from common.process import Process, prepare
from common.query import Asker
from common.settings import Settings
from common.topology import ORCHESTRATOR_QUERIES, commands_of
from order_svc.api import OrderView, Reader, ReturnView, make_app
from order_svc.domain import OrderBook
from order_svc.door import Door
from order_svc.handlers import HANDLERS, ON_DUPLICATE
from order_svc.starter import Starter
from order_svc.store import OrderStore

MIGRATIONS = Path(__file__).parent / "migrations"
USAGE = "usage: python -m order_svc worker|door"


def participant_of(process: Process) -> Participant[OrderBook]:
    return Participant(
        process.db,
        OrderStore(process.settings.start_resend_seconds),
        HANDLERS,
        on_duplicate=ON_DUPLICATE,
        process=process.settings.process,
        wake=process.relay.wake,
    )


def entrance(settings: Settings) -> Entrance:
    return Entrance.of(settings, "door_keys", CUSTOMERS)


async def worker(settings: Settings) -> None:
    queue = commands_of("order")
    process = Process(settings, queue, "starter")
    process.announce("order", MIGRATIONS)
    participant = participant_of(process)
    process.consumer(queue, participant.parse, participant.handle)
    store = OrderStore(settings.start_resend_seconds)
    starter = Starter(process.db, store, settings, process.health, process.stop, process.relay.wake)
    process.add("starter", starter.run)
    await process.run()


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
    store = OrderStore(process.settings.start_resend_seconds)

    async def order(order_id: UUID) -> OrderView | None:
        async with process.db.transaction() as tx:
            row = await store.get_order(tx, order_id)
        return OrderView.model_validate(row, from_attributes=True) if row else None

    async def orders(customer: str, limit: int, after: UUID | None) -> list[OrderView]:
        async with process.db.transaction() as tx:
            rows = await store.list_orders(tx, customer, limit, after)
        return [OrderView.model_validate(row, from_attributes=True) for row in rows]

    async def saga(query: SagaQuery) -> SagaView:
        answer = await asker.ask(ORCHESTRATOR_QUERIES, query)
        if not isinstance(answer, SagaView):
            raise TypeError(f"asked where a saga stands, answered {type(answer).__name__}")
        return answer

    async def return_(return_id: UUID) -> ReturnView | None:
        async with process.db.transaction() as tx:
            row = await store.get_return(tx, return_id)
        return ReturnView.model_validate(row, from_attributes=True) if row else None

    return Reader(order, orders, saga, return_)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["worker"]:
            asyncio.run(worker(prepare("order", MIGRATIONS)))
        case ["door"]:
            asyncio.run(door(prepare("door", MIGRATIONS, check=entrance)))
        case _:
            sys.exit(USAGE)
