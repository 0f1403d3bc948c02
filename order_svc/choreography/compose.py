"""The choreographed style of the order service, put together: the counterpart of `Orchestrated`.

The service consumes events, enforces the deadline of its orders and returns, and archives what
ended: all that an orchestrator would do for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from uuid import UUID

from common.messages.contracts import SagaView
from common.messages.topology import events_of
from common.participant.participant import Participant
from common.participant.retention import Retention
from common.process.process import Process
from order_svc.choreography import reactions
from order_svc.choreography.archive import archiving
from order_svc.choreography.deadlines import Deadlines
from order_svc.choreography.listener import ProgressListener
from order_svc.choreography.store import ProgressStore
from order_svc.domain import OrderBook


class Choreographed:
    """The style without an orchestrator: this service keeps progress and enforces deadlines."""

    handlers = reactions.HANDLERS

    def __init__(self, process: Process) -> None:
        self._process = process
        self.store = ProgressStore(process.settings.policy)

    def add_daemons(self, participant: Participant[OrderBook]) -> None:
        process, settings = self._process, self._process.settings
        queue = events_of("order")
        for check in (queue, "deadlines"):
            process.health.set(check, "not started")
        listener = ProgressListener(process.db, self.store, participant)
        types = [event.__name__ for event in reactions.CONSUMED]
        events = process.consumer(queue, listener.parse, listener.handle, events=types)
        deadlines = Deadlines(
            process.db, self.store, lambda: process.relay.flushed and events.drained,
            settings, process.health, process.stop,
        )  # fmt: skip
        process.add("deadlines", deadlines.run)
        retention = Retention(
            process.db, archiving(settings.retention_seconds),
            settings, process.health, process.stop,
            may_send=lambda: process.relay.flushed,
        )  # fmt: skip
        process.add("retention", retention.run)

    def saga_reader(self) -> Callable[[UUID], Awaitable[SagaView]]:
        async def read(saga_id: UUID) -> SagaView:
            async with self._process.db.reading() as tx:
                return await self.store.view(tx, saga_id)

        return read
