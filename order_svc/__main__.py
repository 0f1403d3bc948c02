"""The order service's two processes: `python -m order_svc worker` and `python -m order_svc door`.

The worker takes commands from `order.commands`; the door serves the customers over HTTP. Both are
put together here, and the style of coordination is chosen here and nowhere else in this service.
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
from common.messages.topology import ORCHESTRATOR_QUERIES, commands_of, queries_of
from common.participant.participant import Participant
from common.process.process import Process, prepare
from common.transport.query import Asker
from order_svc.choreography.compose import Choreographed
from order_svc.domain import OrderBook
from order_svc.door import queries
from order_svc.door.api import make_app
from order_svc.door.batcher import Batcher
from order_svc.door.queries import CustomerQueries, ReadSaga
from order_svc.door.start_resender import StartResender
from order_svc.handlers import HANDLERS, ON_DUPLICATE, RECOGNISED_BY_STATE
from order_svc.store import OrderStore

MIGRATIONS = Path(__file__).parent / "migrations"
USAGE = "usage: python -m order_svc worker|door"


class Orchestrated:
    """The usual style: the orchestrator runs the sagas and answers what state each is in."""

    handlers = HANDLERS

    def __init__(self, process: Process) -> None:
        self._process = process
        self.store = OrderStore(process.settings.start_resend_seconds)

    def add_daemons(self, _: Participant[OrderBook]) -> None:
        process = self._process
        process.health.set("starter", "not started")
        resender = StartResender(
            process.db,
            self.store,
            process.settings,
            process.health,
            process.stop,
        )
        process.add("starter", resender.run)

    def saga_reader(self) -> ReadSaga:
        process = self._process
        asker = Asker(process.broker, process.settings, process.health, process.stop)
        process.health.set("queries", "not started")
        process.add("queries", asker.run)

        async def read(saga_id: UUID) -> SagaView:
            answer = await asker.ask(ORCHESTRATOR_QUERIES, SagaQuery(saga_id=saga_id))
            if not isinstance(answer, SagaView):
                raise TypeError(f"SagaQuery was answered with {type(answer).__name__}")
            return answer

        return read


def coordination(process: Process) -> Orchestrated | Choreographed:
    """Choose the style; they differ in store, handlers, daemons and how a saga is read."""
    choreographed = process.settings.style == "choreographed"
    return Choreographed(process) if choreographed else Orchestrated(process)


def participant_of(process: Process, style: Orchestrated | Choreographed) -> Participant[OrderBook]:
    return Participant(
        process.db,
        style.store,
        style.handlers,
        on_duplicate=ON_DUPLICATE,
        recognised_by_state=RECOGNISED_BY_STATE,
        process=process.settings.process,
    )


async def worker(settings: Settings) -> None:
    queue = commands_of("order")
    process = Process(settings, queue)
    process.announce("order", MIGRATIONS)
    style = coordination(process)
    participant = participant_of(process, style)
    process.consumer(queue, participant.parse, participant.handle)
    process.answer_from(
        queries_of("order"), {TouchedQuery: queries.touched, EffectsQuery: queries.effects}
    )
    style.add_daemons(participant)
    await process.run()


def entrance(settings: Settings) -> Entrance:
    return Entrance.of(settings, "door_keys", CUSTOMERS)


async def door(settings: Settings) -> None:
    process = Process(settings, "orders", "http")
    process.announce("door", MIGRATIONS)
    style = coordination(process)
    participant = participant_of(process, style)
    batcher = Batcher(participant, settings.batch_envelopes, process.health, process.stop)
    reads = CustomerQueries(process.db, style.saga_reader())
    app = make_app(batcher, reads, process.health, entrance(settings))
    process.add("orders", batcher.run)
    process.add("http", lambda: serve(app, process, settings.door_host, settings.door_port))
    await process.run()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["worker"]:
            asyncio.run(worker(prepare("order", MIGRATIONS)))
        case ["door"]:
            asyncio.run(door(prepare("door", MIGRATIONS, check=entrance)))
        case _:
            sys.exit(USAGE)
