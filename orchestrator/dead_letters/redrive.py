"""Redriving and discarding dead letters.

Each dead letter is settled once; its message may still be delivered twice, which the inbox answers.
A dead letter is redriven only while the inbox row that would detect a duplicate still exists. Must
not know: HTTP, SQL, what a saga makes of a discarded dead letter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from common.kit import log
from common.kit.failpoints import Commit
from common.messages.envelope import Envelope, unpack
from common.messages.errors import Poison
from common.messages.topology import ORCHESTRATOR_REPLIES
from common.storage.db import Database
from common.storage.outbox import Outgoing
from orchestrator.dead_letters import store
from orchestrator.dead_letters.letter import About
from orchestrator.dead_letters.store import OPEN, LockedDeadLetter
from orchestrator.engine.inputs import DeadLettered
from orchestrator.engine.instance import Status
from orchestrator.runtime.actions import OperatorAction
from orchestrator.runtime.batch import Batch
from orchestrator.runtime.service import Service

logger = log.get("dead_letters")


class Disposal(StrEnum):
    """The two ways a person can settle a dead letter."""

    REDRIVE = "redrive"
    DISCARD = "discard"

    @property
    def state(self) -> str:
        return {Disposal.REDRIVE: "redriven", Disposal.DISCARD: "discarded"}[self]


class Result(StrEnum):
    DONE = "done"
    ALREADY = "already"  # redriven or discarded before
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Settlement:
    """The result for one dead letter, and the reason if it was not settled."""

    letter_id: UUID
    result: Result
    why: str | None = None


NO_SUCH = "there is no such dead letter"
NO_ENVELOPE = "it is no whole envelope, so it can never be handled: discard it"
EVIDENCE_GONE = (
    "its saga is unknown or archived, so a duplicate of what it does would not be detected:"
    " discard it"
)
RESOLVED = "a person has resolved this step, so what it does would never be undone: discard it"


class Redriver:
    """Redrives and discards dead letters for people. Any number may run."""

    def __init__(self, db: Database, service: Service) -> None:
        self._db = db
        self._service = service

    async def settle(
        self, disposal: Disposal, letter_ids: Sequence[UUID], actor: str, why: str, *, dry_run: bool
    ) -> list[Settlement]:
        """Redrive or discard these; return what came of each, in the order of ids.

        A dry run changes nothing, and returns what would come of each.
        """
        async with self._db.reading() as tx:
            about = await store.abouts(tx, letter_ids)
        sagas = [a.saga_id for a in about.values() if a.saga_id]
        async with self._service.batch(Commit.INTERVENTION, sagas) as batch:
            batch.tx.keys = batch.action_keys()
            # Instances before dead letters: the order in which the intake locks them.
            letters = await store.lock(batch.tx, list(about))
            settled = [_check(disposal, letter, batch) for letter in letters]
            done = [s.letter_id for s in settled if s.result is Result.DONE]
            if not dry_run:
                for letter, one in zip(letters, settled, strict=True):
                    of = about[letter.letter_id]
                    saga_id = of.saga_id if of.saga_id and batch.find(of.saga_id) else None
                    label = f"dead letter {letter.letter_id}"
                    action = OperatorAction(actor, disposal, why, saga_id, label)
                    _carry_out(batch, letter, of, one, action)
                store.settle(batch.tx, sorted(done), disposal.state, actor, why)
        if not dry_run:
            logger.info(f"dead_letters.{disposal.state}", letters=len(done), actor=actor, why=why)
        missing = sorted(set(letter_ids) - about.keys())
        return settled + [Settlement(one, Result.REFUSED, NO_SUCH) for one in missing]


def _check(disposal: Disposal, letter: LockedDeadLetter, batch: Batch) -> Settlement:
    """Decide whether a dead letter may be redriven or discarded; it and its saga are locked."""
    if letter.state != OPEN:
        why = f"{letter.state} by {letter.settled_by}"
        return Settlement(letter.letter_id, Result.ALREADY, why)
    if disposal is Disposal.REDRIVE:
        if letter.body is None:
            return Settlement(letter.letter_id, Result.REFUSED, NO_ENVELOPE)
        (envelope,) = unpack(letter.body)
        assert isinstance(envelope, Envelope)  # noqa: S101 - it was when it was taken in
        if not _is_duplicate_detected(envelope, batch):
            return Settlement(letter.letter_id, Result.REFUSED, EVIDENCE_GONE)
        if _is_resolved(envelope, batch):
            return Settlement(letter.letter_id, Result.REFUSED, RESOLVED)
    return Settlement(letter.letter_id, Result.DONE)


def _is_duplicate_detected(envelope: Envelope, batch: Batch) -> bool:
    """Return whether it would be recognised if it was handled before.

    Participants keep the inbox rows of a saga as long as its instance exists; rows of messages from
    other senders than the orchestrator are kept for ever.
    """
    of_a_saga = envelope.outcome is not None or envelope.reply_to == ORCHESTRATOR_REPLIES
    return not of_a_saga or batch.find(envelope.saga_id) is not None


def _is_resolved(envelope: Envelope, batch: Batch) -> bool:
    """Return whether it would carry out a step that a person has resolved."""
    row = batch.find(envelope.saga_id)
    if envelope.outcome is not None or row is None:
        return False
    progress = row.instance.steps.get(envelope.step)
    return progress is not None and progress.status is Status.RESOLVED


def _carry_out(
    batch: Batch,
    letter: LockedDeadLetter,
    about: About,
    settled: Settlement,
    action: OperatorAction,
) -> None:
    """Redrive or discard as was decided, and record the action or its refusal."""
    if settled.result is Result.REFUSED:
        batch.record(action.refused(str(settled.why)))
    elif settled.result is Result.DONE and action.action == Disposal.REDRIVE:
        assert letter.body is not None  # noqa: S101 - checked
        same_message = letter.body.strip()[1:-1].decode()
        batch.send(Outgoing(letter.queue, same_message))
        batch.record(action)
    elif settled.result is Result.DONE:
        _decide_discarded(batch, letter, about, action)
        batch.record(action, logged=True)


def _decide_discarded(
    batch: Batch, letter: LockedDeadLetter, about: About, action: OperatorAction
) -> None:
    key, by, why = about.key, action.actor, action.reason
    if key is None or batch.find(key.saga_id) is None:
        return
    try:
        dead = DeadLettered(key.step, key.direction, why, about.reply, discarded_by=by)
        batch.apply(key.saga_id, dead)
    except Poison as nothing:  # about a step that was never sent, or a version not deployed here
        logger.info("dead_letter.about_nothing", letter_id=letter.letter_id, why=str(nothing))
