"""Dead letters in memory, as the operator's API reads and settles them."""

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

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@dataclass
class Letters:
    """The dead-letter methods of Queries and of Redriver."""

    kept: dict[UUID, FullDeadLetter] = field(default_factory=dict)
    settled: list[tuple[int, bool]] = field(default_factory=list)  # ids of a request, dry run

    def bury(self, queue: str, body: bytes, reason: str) -> UUID:
        (letter,) = dead_letters_of(queue, body, {"x-sagaproof-reason": reason})
        about = letter.about
        kept = StoredDeadLetter(
            letter.letter_id, queue, reason, "some detail", about.saga_id, about.step,
            about.direction, about.reply, about.message_id, about.type, letter.size,
            letter.readable, 1, NOON, NOON, OPEN, None, None, None,
        )  # fmt: skip
        self.kept[letter.letter_id] = FullDeadLetter(kept, letter.headers, body)
        return letter.letter_id

    async def dead_letter_groups(self, which: DeadLetterFilter, limit: int) -> list[Group]:
        found = [(k.queue, k.reason) for k in await self.dead_letters(which, None, 1000)]
        return [
            Group(*key, found.count(key), found.count(key), NOON, NOON) for key in sorted({*found})
        ]

    async def dead_letters(
        self, which: DeadLetterFilter, after: UUID | None, limit: int
    ) -> list[StoredDeadLetter]:
        found = [
            k
            for k in sorted(
                (whole.stored for whole in self.kept.values()),
                key=lambda k: (k.queue, k.reason, k.letter_id),
            )
            if (k.state, which.queue or k.queue, which.reason or k.reason)
            == (which.state, k.queue, k.reason)
        ]
        ids = [k.letter_id for k in found]
        return found[ids.index(after) + 1 if after in ids else 0 :][:limit]

    async def dead_letter(self, letter_id: UUID) -> FullDeadLetter | None:
        return self.kept.get(letter_id)

    async def dead_letter_ids(self, low: UUID, high: UUID, limit: int) -> list[UUID]:
        return [ident for ident in self.kept if low <= ident <= high]

    async def settle(
        self, disposal: Disposal, letter_ids: Sequence[UUID], actor: str, why: str, *, dry_run: bool
    ) -> list[Settlement]:
        self.settled.append((len(letter_ids), dry_run))
        return [self._settle(disposal, self.kept[one], actor, why, dry_run) for one in letter_ids]

    def _settle(
        self, disposal: Disposal, whole: FullDeadLetter, actor: str, why: str, dry_run: bool
    ) -> Settlement:
        kept = whole.stored
        if kept.state != OPEN:
            return Settlement(kept.letter_id, Result.ALREADY, f"{kept.state} by {kept.settled_by}")
        if disposal is Disposal.REDRIVE and not kept.readable:
            return Settlement(kept.letter_id, Result.REFUSED, NO_ENVELOPE)
        if not dry_run:
            kept = replace(
                kept, state=disposal.state, settled_at=NOON + timedelta(hours=1), settled_by=actor,
                settled_why=why,
            )  # fmt: skip
            self.kept[kept.letter_id] = replace(whole, stored=kept)
        return Settlement(kept.letter_id, Result.DONE)


def envelope(number: int, **changes: object) -> bytes:
    """Encode the charge of this saga as it was sent."""
    wire = {
        "saga_id": str(UUID(int=number)), "step": "charge_payment", "direction": "forward",
        "type": "ChargePayment", "first_issued_at": NOON.isoformat(),
        "reply_to": "orchestrator.replies", "body": {}, **changes,
    }  # fmt: skip
    return json.dumps([wire]).encode()
