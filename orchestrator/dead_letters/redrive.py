"""Redriving and discarding dead letters, each once.

Owns: that whoever asks, and however often, a letter leaves once, and only while what it would be
recognised by is still there. Must not know: HTTP, SQL, what a saga makes of the news.
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
from orchestrator.dead_letters.store import OPEN, Locked
from orchestrator.engine.inputs import DeadLettered
from orchestrator.engine.instance import Status
from orchestrator.runtime.actions import Action
from orchestrator.runtime.batch import Round
from orchestrator.runtime.service import Service

logger = log.get("dead_letters")


class Deed(StrEnum):
    """What becomes of a letter."""

    REDRIVE = "redrive"
    DISCARD = "discard"

    @property
    def state(self) -> str:
        return {Deed.REDRIVE: "redriven", Deed.DISCARD: "discarded"}[self]


class Result(StrEnum):
    DONE = "done"
    ALREADY = "already"  # by somebody else, or by the same one a moment ago
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one letter, and why not if so."""

    letter_id: UUID
    result: Result
    why: str | None = None


NO_SUCH = "there is no such letter"
NO_ENVELOPE = "it is no whole envelope, which nobody can ever handle: discard it"
EVIDENCE_GONE = (
    "its saga is not known, or no more: what would tell that it was done already is gone with it;"
    " discard it"
)

RESOLVED = "a person has resolved this step, so that nobody would undo what it does; discard it"


class LetterDesk:
    """Any number of people may sit at it, at any number of them."""

    def __init__(self, db: Database, service: Service) -> None:
        self._db = db
        self._service = service

    async def settle(
        self, deed: Deed, letter_ids: Sequence[UUID], actor: str, why: str, *, dry_run: bool
    ) -> list[Outcome]:
        """What came of each, in the order of their ids. A dry run only says what would."""
        async with self._db.transaction(Commit.DEED) as tx:
            about = await store.abouts(tx, letter_ids)
            # Instances before letters, as whoever takes letters in locks them.
            round_ = await self._service.open(tx, [a.saga_id for a in about.values() if a.saga_id])
            tx.keys = round_.deeds()
            held = await store.lock(tx, list(about))
            outcomes = [_judge(deed, letter, round_) for letter in held]
            missing = set(letter_ids) - about.keys()
            outcomes += [Outcome(one, Result.REFUSED, NO_SUCH) for one in sorted(missing)]
            done = {o.letter_id for o in outcomes if o.result is Result.DONE}
            if not dry_run:
                for letter, outcome in zip(held, outcomes, strict=False):
                    ask = _Ask(deed, letter, about[letter.letter_id], actor, why)
                    if outcome.result is Result.DONE:
                        ask.act(round_)
                    elif outcome.why and outcome.result is Result.REFUSED:
                        round_.acted(ask.action(round_).refused(outcome.why), told=False)
                await store.settle(tx, sorted(done), deed.state, actor, why)
                await round_.save(tx)
        if not dry_run:
            self._service.sent(round_)
            logger.info(f"dead_letters.{deed.state}", letters=len(done), actor=actor, why=why)
        return outcomes


def _judge(deed: Deed, letter: Locked, round_: Round) -> Outcome:
    """With the row of the letter, and of its saga, held."""
    if letter.state != OPEN:
        why = f"{letter.state} by {letter.settled_by}"
        return Outcome(letter.letter_id, Result.ALREADY, why)
    if deed is Deed.REDRIVE:
        if letter.body is None:
            return Outcome(letter.letter_id, Result.REFUSED, NO_ENVELOPE)
        if not _is_recognised(letter.body, round_):
            return Outcome(letter.letter_id, Result.REFUSED, EVIDENCE_GONE)
        if _is_resolved(letter.body, round_):
            return Outcome(letter.letter_id, Result.REFUSED, RESOLVED)
    return Outcome(letter.letter_id, Result.DONE)


def _is_recognised(body: bytes, round_: Round) -> bool:
    """Whether it would be known should it have been done before. Participants keep what tells as
    long as the saga is known; what others than the orchestrator sent is theirs to keep for ever."""
    (envelope,) = unpack(body)
    assert isinstance(envelope, Envelope)  # noqa: S101 - it was when it was taken in
    of_a_saga = envelope.outcome is not None or envelope.reply_to == ORCHESTRATOR_REPLIES
    return not of_a_saga or envelope.saga_id in round_.held


def _is_resolved(body: bytes, round_: Round) -> bool:
    """Whether it would do what a person has seen to, and nobody would ever undo."""
    (envelope,) = unpack(body)
    assert isinstance(envelope, Envelope)  # noqa: S101 - it was when it was taken in
    if envelope.outcome is not None or envelope.saga_id not in round_.held:
        return False
    progress = round_.held[envelope.saga_id].instance.steps.get(envelope.step)
    return progress is not None and progress.status is Status.RESOLVED


@dataclass(frozen=True, slots=True)
class _Ask:
    """What a person wants of one letter."""

    deed: Deed
    letter: Locked
    about: About
    actor: str
    why: str

    def act(self, round_: Round) -> None:
        if self.deed is Deed.REDRIVE:
            assert self.letter.body is not None  # noqa: S101 - judged
            encoded = self.letter.body.strip()[1:-1].decode()  # the same message, the same id
            round_.outgoing.append(Outgoing(self.letter.queue, encoded))
        else:
            self._tell(round_)
        round_.acted(self.action(round_), told=self.deed is Deed.DISCARD)

    def action(self, round_: Round) -> Action:
        """For the log of what operators did."""
        saga_id = self.about.saga_id if self.about.saga_id in round_.held else None
        about = f"dead letter {self.letter.letter_id}"
        return Action(self.actor, self.deed, self.why, saga_id, about)

    def _tell(self, round_: Round) -> None:
        key, letter = self.about.key, self.letter
        if key is None or key.saga_id not in round_.held:
            return
        try:
            dead = DeadLettered(
                key.step, key.direction, self.why, self.about.reply, discarded_by=self.actor
            )
            round_.step(key.saga_id, dead)
        except Poison as nothing:  # about a step that it never had, or a version not deployed here
            logger.info("dead_letter.about_nothing", letter_id=letter.letter_id, why=str(nothing))
