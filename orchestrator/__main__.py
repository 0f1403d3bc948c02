"""`python -m orchestrator`: the composition root."""

from __future__ import annotations

import asyncio
from pathlib import Path

from common.contracts import SagaQuery
from common.process import Process, prepare
from common.settings import Settings
from common.topology import ORCHESTRATOR_COMMANDS, ORCHESTRATOR_QUERIES, ORCHESTRATOR_REPLIES
from orchestrator.order_saga import ORDER_SAGA
from orchestrator.reconciler import Reconciler
from orchestrator.saga import Policy
from orchestrator.service import Service

DEFINITIONS = (ORDER_SAGA,)
MIGRATIONS = Path(__file__).parent / "migrations"


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
    process = Process(settings, ORCHESTRATOR_REPLIES, ORCHESTRATOR_COMMANDS, "reconciler")
    process.announce("orchestrator", MIGRATIONS)
    service = Service(
        process.db,
        DEFINITIONS,
        policy_of(settings),
        process=settings.process,
        running_limit=settings.running_limit,
        wake=process.relay.wake,
    )
    replies = process.consumer(ORCHESTRATOR_REPLIES, service.parse, service.handle)
    process.consumer(ORCHESTRATOR_COMMANDS, service.parse, service.handle, room=service.room)
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
    await process.run()


if __name__ == "__main__":
    asyncio.run(main(prepare("orchestrator", MIGRATIONS)))
