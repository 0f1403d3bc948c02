"""A batch of events: what they tell of orders and returns, and the commands they lead to.

Owns: that it is one transaction. Must not know: what an event means, nor any statement of SQL.
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
from common.storage.db import Database, Tx
from common.storage.fence import EVIDENCE_GONE
from order_svc.choreography.archive import archived
from order_svc.choreography.reactions import hear
from order_svc.choreography.store import ProgressStore


class Listener:
    """Any number may run: a row lock per saga keeps them apart."""

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
        """Raises Poison for what is no event."""
        parse_event(event)
        return event

    async def handle(self, batch: Sequence[Envelope]) -> bool:
        """Raises and changes nothing. Each is heard."""
        async with self._db.transaction(Commit.BATCH) as tx:
            tx.keys = [event.key for event in batch]
            held, now = await self._store.lock(tx, list({event.saga_id for event in batch}))
            strangers = [event.saga_id for event in batch if event.saga_id not in held]
            if strangers:
                raise await self._poison(tx, strangers)
            commands = []
            for event in batch:
                kept = held[event.saga_id]
                news, command = hear(kept.progress, event, now)
                kept.news = kept.news or news
                if command is not None:
                    commands.append(self._participant.parse(command))
            if commands:
                await self._participant.take_part(tx, commands)
            await self._store.keep(tx, [kept for kept in held.values() if kept.news])
        return True

    async def _poison(self, tx: Tx, strangers: Sequence[UUID]) -> Poison:
        """One that is forgotten is told apart from one that never was."""
        first = strangers[0]
        if first in await archived(tx, strangers):
            return Poison(EVIDENCE_GONE, f"{first} ended long ago, and is forgotten")
        return Poison("unknown_saga", f"no order and no return {first}")
