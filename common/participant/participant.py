"""A participant: a batch of commands against its inbox, its state and its outbox.

Claim, load, decide, save and reply are one transaction over a batch of 1..N commands. Replies are
stored in the inbox and sent again to every repeat; a transient failure rolls all back, claims
included (rules 4 and 10). Business rules are in a service's handlers, which are pure; SQL is in
its store.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, Protocol
from uuid import UUID

from typing_extensions import TypeVar

from common.kit import log, metrics
from common.kit.failpoints import Commit
from common.messages.envelope import (
    Command,
    Direction,
    Envelope,
    Fence,
    Fenced,
    Forget,
    Key,
    Message,
    Outcome,
    Reply,
    Undo,
)
from common.messages.errors import Poison
from common.messages.topology import EVENTS, event_of
from common.storage import inbox, outbox
from common.storage.admission import Duplicate, First, Row, fence_answer
from common.storage.db import Database, Tx
from common.storage.outbox import Outgoing

logger = log.get("participant")

State = TypeVar("State")
C = TypeVar("C", bound=Command, default=Command, covariant=True)


@dataclass(frozen=True, slots=True)
class Work(Generic[C]):
    """One command to act on, and the envelope it came in."""

    envelope: Envelope
    command: C

    @property
    def key(self) -> Key:
        return self.envelope.key

    @property
    def saga_id(self) -> UUID:
        return self.envelope.saga_id

    @property
    def step(self) -> str:
        return self.envelope.step

    @property
    def direction(self) -> Direction:
        return self.envelope.direction


@dataclass(frozen=True, slots=True)
class Answered:
    """The result of a handler that returns more than a reply."""

    reply: Reply | None
    also: tuple[Outgoing, ...] = ()
    """Further messages, committed with the state."""
    keep: bool = True
    """False: nothing was written; the claim is deleted and the same key may be used again."""


Handler = Callable[[Any, Any], Reply | Answered]
OnDuplicate = Callable[[Any, Any], Reply]


class Store(Protocol[State]):
    """A service's SQL."""

    async def load(self, tx: Tx, batch: Sequence[Work]) -> State:
        """Load everything the batch concerns, locked in key order."""

    async def save(self, tx: Tx, state: State) -> None:
        """Save what has changed, set-wise."""


class Participant(Generic[State]):
    """Handles batches of commands.

    `recognised_by_state` are commands whose repeats their handler recognises from the service's
    own rows, so that acting on one without an inbox row is no danger (rule 18).
    """

    def __init__(
        self,
        db: Database,
        store: Store[State],
        handlers: Mapping[type[Command], Handler],
        *,
        on_duplicate: Mapping[type[Command], OnDuplicate] | None = None,
        recognised_by_state: Collection[type[Command]] = (),
        process: str | None = None,
    ) -> None:
        self._db = db
        self._store = store
        self._handlers = handlers
        self._on_duplicate = on_duplicate or {}
        self._kept_for_ever = frozenset(recognised_by_state)
        self._process = process

    def parse(self, envelope: Envelope) -> Work:
        """Type a command. Raises Poison for what this participant can never handle."""
        message = envelope.message()
        if not isinstance(message, Command) or not (
            isinstance(message, Fence | Forget) or type(message) in self._handlers
        ):
            raise Poison("unknown_command", f"{envelope.type} is no command of this participant")
        if isinstance(message, Undo) != (envelope.direction is Direction.COMPENSATING):
            raise Poison("wrong_direction", f"{envelope.type} does not travel {envelope.direction}")
        return Work(envelope, message)

    async def handle(self, batch: Sequence[Work]) -> bool:
        """Handle a batch in one transaction, or raise and change nothing.

        Return whether any handler ran: none does for repeats, fences and Forget. Each Forget gets
        its own transaction: many in one would make a long one.
        """
        for work in batch:
            if isinstance(work.command, Forget):
                await self._forget(work.key, work.command)
        batch = [work for work in batch if not isinstance(work.command, Forget)]
        return bool(batch) and (await self._commit(batch)).handlers_ran

    async def answer(self, batch: Sequence[Work]) -> list[Reply | None]:
        """Handle a batch and return the reply to each, for the door.

        It is None where there is none, or where a stored reply was sent again unread.
        """
        return (await self._commit(batch)).replies

    async def _commit(self, batch: Sequence[Work]) -> _BatchResult:
        async with self._db.transaction(Commit.BATCH) as tx:
            tx.keys = (work.key for work in batch)
            result = await self.handle_within(tx, batch)
        result.count()
        return result

    async def _forget(self, key: Key, forget: Forget) -> None:
        """Delete inbox rows; it is idempotent, so it claims no row of its own."""
        async with self._db.transaction(Commit.BATCH) as tx:
            tx.keys = [key]
            await inbox.forget(tx, forget.until, forget.saga_ids)
        logger.info("sagas.forgotten", sagas=len(forget.saga_ids), until=forget.until.isoformat())

    async def handle_within(self, tx: Tx, batch: Sequence[Work]) -> _BatchResult:
        """Handle a batch inside the caller's transaction."""
        issued = [self._forgettable(work) for work in batch]
        oldest = min(filter(None, issued), default=None)
        claim = inbox.Claim(tx, [work.key for work in batch], oldest)
        state = await self._store.load(tx, batch)
        await tx.sync()  # runs the claim if load() queried nothing; otherwise a no-op
        view = claim.view()
        result = _BatchResult()
        for work in batch:
            verdict = view.admit(work.key, _tombstone, self._forgettable(work))
            if isinstance(verdict, Duplicate):
                self._repeat(result, work, verdict.row)
                continue
            answered = self._act(result, state, work, verdict)
            encoded = self._encode(work, answered.reply) if answered.reply else None
            outcome = answered.reply.outcome if answered.reply else Outcome.DONE
            if answered.keep:
                view.record_reply(work.key, Row(outcome, encoded))
            result.outgoing.extend(answered.also)
            result.answer(work, answered.reply, encoded)
            result.acted[type(work.command).__name__, outcome] += 1
        await self._store.save(tx, state)
        await inbox.keep(tx, view)
        await outbox.append(tx, result.outgoing)
        return result

    def _forgettable(self, work: Work) -> datetime | None:
        """Return when it was first issued; None if its row is never forgotten."""
        if type(work.command) in self._kept_for_ever:
            return None
        issued = work.envelope.first_issued_at
        return issued if issued.tzinfo else issued.replace(tzinfo=UTC)

    def _act(self, result: _BatchResult, state: State, work: Work, verdict: First) -> Answered:
        if isinstance(work.command, Fence):
            return Answered(fence_answer(verdict.action))
        result.handlers_ran = True
        answered = self._handlers[type(work.command)](state, work)
        return answered if isinstance(answered, Answered) else Answered(answered)

    def _repeat(self, result: _BatchResult, work: Work, row: Row) -> None:
        """Send the stored reply again: without it a resend could never unstick a saga."""
        fenced = row.outcome is Outcome.FENCED
        (result.fenced if fenced else result.repeated)[type(work.command).__name__] += 1
        logger.info(
            "command.fenced" if fenced else "command.duplicate",
            type=work.envelope.type,
            **work.envelope.log_fields,
        )
        again = self._on_duplicate.get(type(work.command))
        if again is None or row.reply is None:
            result.answer(work, None, row.reply)
            return
        stored = _decode(row.reply)  # a caller at the door gets a fenced one as well
        reply = again(work.command, stored) if row.outcome is Outcome.DONE else stored
        result.answer(work, reply, row.reply if reply is stored else self._encode(work, reply))

    def _encode(self, work: Work, reply: Reply) -> str:
        """Encode a reply. A published one is as old as its saga: so are its commands (ADR 26)."""
        published = work.envelope.reply_to == EVENTS.name
        issued_at = work.envelope.first_issued_at if published else _now()
        return work.envelope.reply(reply, issued_at=issued_at, process=self._process).encode()


class _BatchResult:
    """The messages a batch sends, and the reply to each of its commands in order."""

    def __init__(self) -> None:
        self.outgoing: list[Outgoing] = []
        self.replies: list[Reply | None] = []
        self.handlers_ran = False
        self.acted: Tally[tuple[str, Outcome]] = Tally()
        self.repeated: Tally[str] = Tally()
        self.fenced: Tally[str] = Tally()

    def count(self) -> None:
        """Count the batch; call it after the commit."""
        for (command, outcome), number in self.acted.items():
            metrics.COMMANDS.labels(command, outcome.value).inc(number)
        for tally, metric in ((self.repeated, metrics.DUPLICATES), (self.fenced, metrics.FENCED)):
            for command, number in tally.items():
                metric.labels(command).inc(number)

    def answer(self, work: Work, reply: Reply | None, encoded: str | None) -> None:
        self.replies.append(reply)
        destination = work.envelope.reply_to
        if encoded is None or destination is None:
            return
        if destination == EVENTS.name:  # to the services that react to it
            destination = event_of(type(reply or _decode(encoded)).__name__)
        self.outgoing.append(Outgoing(destination, encoded))


def _tombstone(action: Key) -> Row:
    """Make the row by which an action is refused if it still comes."""
    return Row(Outcome.FENCED, Envelope.of_reply(action, Fenced(), issued_at=_now()).encode())


def _decode(encoded: str) -> Reply:
    message: Message = Envelope.model_validate_json(encoded).message()
    if not isinstance(message, Reply):
        raise TypeError(f"the inbox holds {type(message).__name__} where a reply belongs")
    return message


def _now() -> datetime:
    return datetime.now(UTC)
