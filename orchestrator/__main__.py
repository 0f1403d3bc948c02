"""The composition root of the orchestrator's processes.

`python -m orchestrator [worker]` decides sagas, `python -m orchestrator operator` serves operators,
and `python -m orchestrator check module:NAME` checks a definition and describes it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.http.access import OPERATORS
from common.kit.settings import Settings
from common.messages.contracts import SagaQuery
from common.messages.topology import (
    ORCHESTRATOR_COMMANDS,
    ORCHESTRATOR_QUERIES,
    ORCHESTRATOR_REPLIES,
    dead_letter_queue,
)
from common.participant.retention import Retention
from common.process.process import Process, prepare
from orchestrator.dead_letters.intake import Intake
from orchestrator.engine.approval import ApprovalPolicy
from orchestrator.engine.definition import Definition, DefinitionError
from orchestrator.runtime import metrics
from orchestrator.runtime.archive import archiving
from orchestrator.runtime.loading import in_words, load, queues_of, work_queues_of
from orchestrator.runtime.service import Service
from orchestrator.runtime.timeouts import Reconciler

if TYPE_CHECKING:
    from common.http.app import Entrance

USAGE = "usage: python -m orchestrator [worker|operator|check MODULE:NAME]"
MIGRATIONS = Path(__file__).parent / "migrations"


def service_of(process: Process, definitions: Sequence[Definition]) -> Service:
    settings = process.settings
    return Service(
        process.db,
        definitions,
        settings.policy,
        process=settings.process,
        approval=ApprovalPolicy(settings.approval_thresholds),
        running_limit=settings.running_limit,
    )


async def worker(settings: Settings) -> None:
    definitions = load(settings.definitions)
    dead = map(dead_letter_queue, work_queues_of(definitions))
    process = Process(
        settings, ORCHESTRATOR_REPLIES, ORCHESTRATOR_COMMANDS, "reconciler", "retention", *dead
    )
    process.announce("orchestrator", MIGRATIONS)
    process.watch.add(metrics.refresh)
    service = service_of(process, definitions)
    queues = queues_of(definitions)
    replies = process.consumer(ORCHESTRATOR_REPLIES, service.parse, service.handle, others=queues)
    process.consumer(
        ORCHESTRATOR_COMMANDS,
        service.parse,
        service.handle,
        wait_for_capacity=service.wait_for_capacity,
    )
    process.answer(ORCHESTRATOR_QUERIES, {SagaQuery: service.view})
    reconciler = Reconciler(
        process.db,
        service,
        lambda: process.relay.flushed and replies.drained,
        settings,
        process.health,
        process.stop,
    )
    process.add("reconciler", reconciler.run)
    retention = Retention(
        process.db,
        archiving(definitions, settings.retention_seconds),
        settings,
        process.health,
        process.stop,
        may_send=lambda: process.relay.flushed,
    )
    process.add("retention", retention.run)
    for queue in work_queues_of(definitions):
        intake = Intake(queue, service, process.broker, process.health, process.stop)
        process.add(intake.name, intake.run)
    await process.run()


def entrance(settings: Settings) -> Entrance:
    from common.http.app import Entrance  # not at the top: a worker needs no web framework

    return Entrance.of(settings, "operator_tokens", OPERATORS)


async def operator(settings: Settings) -> None:
    from common.http.app import serve
    from common.transport.query import Asker
    from orchestrator.operator.api import make_app
    from orchestrator.operator.backend import Backend

    definitions = load(settings.definitions)
    process = Process(settings, "queries", "http")
    process.announce("operator", MIGRATIONS)
    asker = Asker(process.broker, settings, process.health, process.stop)
    backend = Backend.of(process, asker, definitions, service_of(process, definitions))
    app = make_app(backend, process.health, entrance(settings))
    process.add("queries", asker.run)
    process.add("http", lambda: serve(app, process, settings.operator_host, settings.operator_port))
    await process.run()


if __name__ == "__main__":
    match sys.argv[1:]:
        case [] | ["worker"]:
            settings = prepare("orchestrator", MIGRATIONS, check=lambda s: load(s.definitions))
            asyncio.run(worker(settings))
        case ["operator"]:
            check = lambda s: (load(s.definitions), entrance(s))  # noqa: E731
            asyncio.run(operator(prepare("operator", MIGRATIONS, check=check)))
        case ["check", setting]:
            try:
                print("\n".join(line for d in load(setting) for line in in_words(d)))
            except DefinitionError as error:
                sys.exit(str(error))
        case _:
            sys.exit(USAGE)
