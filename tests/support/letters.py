"""Dead letters in memory, for tests of the `saga` command.

Owns: what the operator's API asks of them. Must not know: the command.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from orchestrator.dead_letters.letter import dead_letters_of
from orchestrator.dead_letters.redrive import NO_ENVELOPE, Disposal, Result, Settlement
from orchestrator.dead_letters.store import (
    OPEN,
    DeadLetterFilter,
    FullDeadLetter,
    Group,
    StoredDeadLetter,
)
from orchestrator.operator.dead_letters import LetterSources

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@dataclass
class Letters:
    """Those that are readable can be redriven."""

    kept: dict[UUID, FullDeadLetter] = field(default_factory=dict)
    requests: list[tuple[Disposal, int, str, bool]] = field(default_factory=list)

    def bury(self, queue: str, body: bytes, reason: str) -> UUID:
        (letter,) = dead_letters_of(queue, body, {"x-sagaproof-reason": reason})
        about = letter.about
        kept = StoredDeadLetter(
            letter.letter_id, queue, reason, "so it is", about.saga_id, about.step,
            about.direction, about.reply, about.message_id, about.type, letter.size,
            letter.readable, 1, NOON, NOON, OPEN, None, None, None,
        )  # fmt: skip
        self.kept[letter.letter_id] = FullDeadLetter(kept, letter.headers, body)
        return letter.letter_id

    @property
    def sources(self) -> LetterSources:
        return LetterSources(self._groups, self._page, self._find, self._ids_between, self._settle)

    def _wanted(self, wanted: DeadLetterFilter) -> list[StoredDeadLetter]:
        found = [
            w.stored
            for w in self.kept.values()
            if w.stored.state == wanted.state
            and wanted.queue in (None, w.stored.queue)
            and wanted.reason in (None, w.stored.reason)
            and wanted.saga_id in (None, w.stored.saga_id)
        ]
        return sorted(found, key=lambda k: (k.queue, k.reason, k.letter_id))

    async def _groups(self, wanted: DeadLetterFilter, limit: int) -> list[Group]:
        found = self._wanted(wanted)
        keys = sorted({(k.queue, k.reason) for k in found})
        counted = [(q, r, sum((k.queue, k.reason) == (q, r) for k in found)) for q, r in keys]
        return [Group(q, r, n, n, NOON, NOON) for q, r, n in counted][:limit]

    async def _page(
        self, wanted: DeadLetterFilter, after: UUID | None, limit: int
    ) -> list[StoredDeadLetter]:
        found = self._wanted(wanted)
        if after is not None:
            last = self.kept[after].stored
            place = (last.queue, last.reason, last.letter_id)
            found = [k for k in found if (k.queue, k.reason, k.letter_id) > place]
        return found[:limit]

    async def _find(self, letter_id: UUID) -> FullDeadLetter | None:
        return self.kept.get(letter_id)

    async def _ids_between(self, low: UUID, high: UUID, limit: int) -> list[UUID]:
        return sorted(ident for ident in self.kept if low <= ident <= high)[:limit]

    async def _settle(
        self, disposal: Disposal, letter_ids: Sequence[UUID], actor: str, why: str, *, dry_run: bool
    ) -> list[Settlement]:
        self.requests.append((disposal, len(letter_ids), actor, dry_run))
        return [self._one(disposal, ident, actor, why, dry_run) for ident in letter_ids]

    def _one(
        self, disposal: Disposal, ident: UUID, actor: str, why: str, dry_run: bool
    ) -> Settlement:
        whole = self.kept[ident]
        if whole.stored.state != OPEN:
            return Settlement(
                ident, Result.ALREADY, f"{whole.stored.state} by {whole.stored.settled_by}"
            )
        if disposal is Disposal.REDRIVE and not whole.stored.readable:
            return Settlement(ident, Result.REFUSED, NO_ENVELOPE)
        if not dry_run:
            at = NOON + timedelta(hours=1)
            settled = replace(
                whole.stored, state=disposal.state, settled_at=at, settled_by=actor, settled_why=why
            )
            self.kept[ident] = replace(whole, stored=settled)
        return Settlement(ident, Result.DONE)


def envelope(number: int, **changes: object) -> bytes:
    """A charge of this saga, as it was sent."""
    wire = {
        "saga_id": str(UUID(int=number)), "step": "charge_payment", "direction": "forward",
        "type": "ChargePayment", "first_issued_at": NOON.isoformat(),
        "reply_to": "orchestrator.replies", "body": {}, **changes,
    }  # fmt: skip
    return json.dumps([wire]).encode()
