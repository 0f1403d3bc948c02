"""The consumer's handler of events: record each, and act on the commands they lead to.

One transaction for a batch: progress, the commands' effects and the messages commit together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from common.kit.failpoints import Commit
from common.messages.envelope import Envelope
from common.messages.errors import Poison
from common.participant.participant import Participant
from common.participant.reactions import parse_event
from common.storage.admission import EVIDENCE_GONE
from common.storage.db import Database, Tx
from order_svc.choreography.archive import archived
from order_svc.choreography.reactions import record_event
from order_svc.choreography.store import ProgressStore


class ProgressListener:
    """A handler of batches of events. Any number may run: each locks the progress it changes."""

    def __init__(
        self,
        db: Database,
        store: ProgressStore,
        participant: Participant[Any],
    ) -> None:
        self._db = db
        self._store = store
        self._participant = participant

    def parse(self, event: Envelope) -> Envelope:
        """Return the event as it is, or raise Poison for what is no event."""
        parse_event(event)
        return event

    async def handle(self, batch: Sequence[Envelope]) -> bool:
        """Handle a batch; an error rolls all of it back. Every event counts as handled."""
        async with self._db.transaction(Commit.BATCH) as tx:
            tx.keys = [event.key for event in batch]
            locked, now = await self._store.lock(tx, list({event.saga_id for event in batch}))
            unknown = [event.saga_id for event in batch if event.saga_id not in locked]
            if unknown:
                raise await self._poison(tx, unknown)
            commands = []
            for event in batch:
                saga = locked[event.saga_id]
                new, command = record_event(saga.progress, event, now)
                saga.new_event = saga.new_event or new
                if command is not None:
                    commands.append(self._participant.parse(command))
            if commands:
                await self._participant.handle_within(tx, commands)
            await self._store.save_progress(
                tx, [saga for saga in locked.values() if saga.new_event]
            )
        return True

    async def _poison(self, tx: Tx, unknown: Sequence[UUID]) -> Poison:
        """Make the error for a saga without progress: archived long ago, or never begun."""
        first = unknown[0]
        if first in await archived(tx, unknown):
            return Poison(EVIDENCE_GONE, f"{first} ended long ago, and is forgotten")
        return Poison("unknown_saga", f"no order and no return {first}")
