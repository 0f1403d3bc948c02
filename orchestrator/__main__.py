"""`python -m orchestrator`: the composition root."""

from __future__ import annotations

import asyncio
from pathlib import Path

from common.contracts import SagaQuery
from common.process import Process, prepare
from common.query import Answerer
from common.settings import Settings
from common.topology import ORCHESTRATOR_INPUTS, ORCHESTRATOR_QUERIES
from orchestrator.order_saga import ORDER_SAGA
from orchestrator.reconciler import Reconciler
from orchestrator.saga import Policy
from orchestrator.service import Service

DEFINITIONS = (ORDER_SAGA,)


def policy_of(settings: Settings) -> Policy:
    return Policy(
        timeout_seconds=settings.step_timeout_seconds,
        attempts=settings.step_attempts,
        backoff_first_seconds=settings.backoff_first_seconds,
        backoff_cap_seconds=settings.backoff_cap_seconds,
        resend_cap_seconds=settings.resend_cap_seconds,
        stuck_after_seconds=settings.stuck_after_seconds,
    )


async def main(settings: Settings) -> None:
    process = Process(settings, ORCHESTRATOR_INPUTS, ORCHESTRATOR_QUERIES, "reconciler")
    service = Service(
        process.db,
        DEFINITIONS,
        policy_of(settings),
        process=settings.process,
        wake=process.relay.wake,
    )
    consumer = process.consumer(ORCHESTRATOR_INPUTS, service.parse, service.handle)
    answerer = Answerer(
        ORCHESTRATOR_QUERIES,
        {SagaQuery: service.view},
        process.broker,
        settings,
        process.health,
        process.stop,
    )
    process.add(ORCHESTRATOR_QUERIES, answerer.run)
    reconciler = Reconciler(
        process.db,
        service,
        lambda: process.relay.flushed and consumer.drained,
        settings,
        process.health,
        process.stop,
    )
    process.add("reconciler", reconciler.run)
    await process.run()


if __name__ == "__main__":
    asyncio.run(main(prepare("orchestrator", Path(__file__).parent / "migrations")))
