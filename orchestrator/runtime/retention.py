"""Which sagas of the orchestrator's are archived, and who has to forget them.

Owns: the participants of each, by its definition. Must not know: SQL, which may go (archive.py),
how often (common/participant/retention.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common.participant.retention import Archive, Ended
from common.storage.db import Tx
from orchestrator.engine.definition import Definition
from orchestrator.runtime import archive
from orchestrator.runtime.loading import participants_of


def archiving(definitions: Sequence[Definition], retention_seconds: float) -> Archive:
    """Of these definitions; others wait for whoever knows them."""
    participants: Mapping[tuple[str, int], Sequence[str]] = {
        (d.name, d.version): participants_of([d]) for d in definitions
    }

    async def archive_(tx: Tx, limit: int) -> list[Ended]:
        found = await archive.take(tx, retention_seconds, participants, limit)
        if found:
            await archive.move(tx, [saga.saga_id for saga in found])
        return [Ended(s.saga_id, s.last, participants[s.definition, s.version]) for s in found]

    return archive_
