"""The batch: one transaction's instances, and what their inputs lead to.

Every input takes one way, `_decide()`: the locked instance, the pure decision, and what follows
from it for the row, the outbox and the saga log. Must not know: SQL, when the transaction ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

from common.kit import log
from common.messages.contracts import START, CancelSaga, SagaStarted, StartSaga
from common.messages.envelope import Command, Envelope, Key, Outcome
from common.messages.errors import IllegalTransition, Poison
from common.messages.topology import ORCHESTRATOR_REPLIES, commands_of, dead_letter_queue
from common.storage import inbox, outbox
from common.storage.admission import First, InboxView, Row
from common.storage.db import Tx
from common.storage.outbox import Outgoing
from orchestrator.engine.decide import Send, Undecidable, command_for, decide
from orchestrator.engine.definition import FORWARD, Definition
from orchestrator.engine.inputs import (
    ByHand,
    CompensateAsked,
    Input,
    ReplyArrived,
    RetryAsked,
    StartDeadLettered,
    Started,
    TimedOut,
)
from orchestrator.engine.saga_log import Entry, EntryKind
from orchestrator.runtime import actions, store
from orchestrator.runtime.actions import OperatorAction
from orchestrator.runtime.deployed import DeployedDefinitions
from orchestrator.runtime.messages import Received, parse
from orchestrator.runtime.store import InstanceRow

logger = log.get("orchestrator")

SAGA_STARTED = "saga_started"
MOVED_ON, TIMED_OUT, RETRIED = "nothing: it has moved on", "timed out", "retried"


class Batch:
    """The instances one transaction has locked, and the rows, messages and log entries to write.

    `tx` is for what else the transaction reads and writes, and for the failpoints' keys.
    """

    def __init__(
        self,
        tx: Tx,
        deployed: DeployedDefinitions,
        rows: dict[UUID, InstanceRow],
        archived: set[UUID],
        now: float,
        view: InboxView,
    ) -> None:
        self.tx = tx
        self.rows = rows
        self.archived = archived
        self.outgoing: list[Outgoing] = []
        self.log: list[tuple[UUID, Entry]] = []
        self.waited: list[tuple[str, str, float]] = []  # step, direction, seconds until its answer
        self._deployed = deployed
        self._now = now
        self._inbox = view
        self._changed: dict[UUID, InstanceRow] = {}
        self._actions: list[OperatorAction] = []
        self._parked_replies: list[tuple[str, Envelope]] = []
        self._undecided: dict[UUID, str | None] = {}  # why; None: its version is not deployed

    @classmethod
    async def lock(
        cls,
        tx: Tx,
        deployed: DeployedDefinitions,
        saga_ids: Sequence[UUID],
        *,
        claims: Sequence[Key],
        watch: bool,
    ) -> Batch:
        """Claim the inbox rows, then lock the instances, in one round trip."""
        claim = inbox.Claim(tx, claims) if claims else None
        new = list({key.saga_id for key in claims})
        locked = await store.lock(tx, list(set(saga_ids)), watch=watch, new=new)
        return cls(tx, deployed, *locked, claim.view() if claim else InboxView((), {}))

    async def save(self) -> None:
        """Queue all that this batch writes; it leaves with the commit."""
        tx = self.tx
        await inbox.keep(tx, self._inbox)
        store.save(tx, list(self._changed.values()))
        store.write_log(tx, self.log, self._deployed.process)
        store.park_replies(tx, self._parked_replies)
        again_after = self._deployed.policy.resend_cap_seconds
        await store.mark_undecided(tx, self._undecided, again_after)
        actions.record(tx, self._actions, self._deployed.process)
        await outbox.append(tx, self.outgoing)

    # --- what the queues bring ---

    def take(self, received: Received) -> None:
        """Decide a start, a cancel or a reply. Raises Poison for a reply to an unknown saga."""
        envelope, message = received.envelope, received.message
        match message:
            case StartSaga():
                self._start(envelope.key, message, envelope.first_issued_at.isoformat())
                self._acknowledge_start(envelope)
            case CancelSaga():
                self._cancel(envelope, message)
            case ReplyArrived():
                self._take_reply(envelope, message)

    def _start(self, key: Key, message: StartSaga | CancelSaga, asked_at: str | None) -> None:
        """Start a saga once, under the newest version; it will finish under it."""
        if key.saga_id in self.archived:  # it began and ended long ago (rule 9)
            logger.info("start.archived", saga_id=key.saga_id)
        elif self._is_first(key):
            self._begin(key.saga_id, message, Started(key.saga_id, message.data, asked_at))
            self._inbox.record_reply(key, Row(Outcome.DONE, None))

    def _acknowledge_start(self, start: Envelope) -> None:
        """Answer a re-sent start, the only kind that names a reply queue (rule 8)."""
        if start.reply_to is not None:
            key = Key(start.saga_id, SAGA_STARTED, FORWARD)
            issued_at = datetime.fromtimestamp(self._now, UTC)
            envelope = Envelope.command(key, SagaStarted(), issued_at=issued_at, reply_to=None)
            self.outgoing.append(Outgoing(start.reply_to, envelope))

    def _cancel(self, envelope: Envelope, message: CancelSaga) -> None:
        """Compensate the saga, or log that it is too late.

        A saga that has not begun begins with this, so that its order ends like any other.
        """
        saga_id = envelope.saga_id
        if not self._is_first(envelope.key):
            return
        if saga_id not in self.rows:
            self._start(Key(saga_id, START, FORWARD), message, None)
        if saga_id not in self.rows:
            return  # it ended long ago and is forgotten
        if not self._deployed.has(self.rows[saga_id].instance):
            self._park_reply(envelope)
            return
        outcome = Outcome.DONE
        try:
            self.decide(saga_id, CompensateAsked(message.actor, message.reason))
        except IllegalTransition as late:
            outcome = Outcome.REFUSED
            detail = f"{message.actor}: {message.reason}: {late}"
            self.log.append((saga_id, Entry(EntryKind.CANCEL_REFUSED, detail=detail)))
        self._inbox.record_reply(envelope.key, Row(outcome, None))

    def _is_first(self, key: Key) -> bool:
        return isinstance(self._inbox.admit(key, _no_tombstone), First)

    def _take_reply(self, envelope: Envelope, reply: ReplyArrived) -> None:
        """Decide a reply, or park it for a process that has its saga's version deployed."""
        if envelope.saga_id in self.archived:  # it is no longer awaited
            logger.info("reply.archived", saga_id=envelope.saga_id, step=envelope.step)
        elif self._deployed.has(self.row(envelope.saga_id).instance):
            self.decide(envelope.saga_id, reply)
        else:
            self._park_reply(envelope)

    def _park_reply(self, envelope: Envelope) -> None:
        instance = self.rows[envelope.saga_id].instance
        version = f"{instance.definition} v{instance.version}"
        self._parked_replies.append((version, envelope))
        detail = f"{version} is not deployed in {self._deployed.process}"
        entry = Entry(EntryKind.HELD, envelope.step, envelope.direction, detail=detail)
        self.log.append((envelope.saga_id, entry))

    def take_parked_reply(self, envelope: Envelope) -> None:
        """Decide a reply that was parked; one that is impossible becomes a dead letter now."""
        if envelope.saga_id in self.archived:  # it is no longer awaited
            return
        message = parse(envelope, self._deployed.newest).message
        if not isinstance(message, ReplyArrived):  # a cancel, which needs a claim
            self.outgoing.append(Outgoing(ORCHESTRATOR_REPLIES, envelope))
            return
        try:
            self.decide(envelope.saga_id, message)
        except Poison:
            logger.exception("held_reply.dead", saga_id=envelope.saga_id, step=envelope.step)
            self.outgoing.append(Outgoing(dead_letter_queue(ORCHESTRATOR_REPLIES), envelope))

    def take_dead_start(self, saga_id: UUID, message: StartSaga, reason: str) -> None:
        """Make a stuck instance of a start that is dead. Raises Poison if no such saga exists."""
        self._begin(saga_id, message, StartDeadLettered(saga_id, message.data, reason))

    def _begin(
        self, saga_id: UUID, message: StartSaga | CancelSaga, event: Started | StartDeadLettered
    ) -> None:
        row = self.rows.get(saga_id)
        definition = self._deployed.newest.get(message.definition)
        if row is not None:
            definition = self._deployed.definition_of(row.instance)
        if definition is None:
            raise Poison("unknown_definition", f"no saga is called {message.definition}")
        self._decide(saga_id, definition, row, event)

    # --- deadlines, and what people ask for ---

    def decide_deadlines(self, saga_id: UUID) -> int:
        """Decide every leg whose deadline has passed by now, under the lock; return how many.

        A saga that cannot be decided is marked, and does not stop the others.
        """
        row = self.rows.get(saga_id)
        if row is None:
            return 0
        if not self._deployed.has(row.instance):
            self._mark_undeployed(saga_id, row)
            return 0
        passed = 0
        for (step, direction), attempt in row.instance.timed_legs().items():
            if row.times[step]["deadline"] <= self._now:
                waiting = self._now - row.issued(step, direction)
                past_sla = waiting > self._deployed.policy.stuck_after_seconds
                try:
                    self.decide(saga_id, TimedOut(step, direction, attempt, past_sla))
                    passed += 1
                except Exception as error:  # even a defect concerns one saga, not all that are due
                    logger.exception("saga.unjudgeable", saga_id=saga_id, step=step)
                    why = str(error) if isinstance(error, Poison) else repr(error)
                    self._mark_undecidable(saga_id, row, why)
        return passed

    def _mark_undeployed(self, saga_id: UUID, row: InstanceRow) -> None:
        """Mark it, if no process with its version has decided its deadline for so long."""
        deadline = row.next_deadline()
        if deadline is None or self._now - deadline < self._deployed.undeployed_after:
            return
        self._undecided[saga_id] = None
        if not row.undeployed:
            self.log.append((saga_id, Entry(EntryKind.UNDEPLOYED, detail="version not deployed")))

    def _mark_undecidable(self, saga_id: UUID, row: InstanceRow, why: str) -> None:
        """Mark it: its version is deployed here, and this release cannot go on with it."""
        if saga_id in self._undecided:
            return
        self._undecided[saga_id] = why
        row.instance = replace(row.instance, stuck=True)  # another leg may move, and is saved so
        if row.undecidable != why:
            self.log.append((saga_id, Entry(EntryKind.UNJUDGEABLE, detail=why)))

    def reconcile(self, saga_id: UUID, actor: str, reason: str) -> str:
        """Decide overdue deadlines, else retry if stuck; return which, in words."""
        row = self.rows.get(saga_id)
        if row is None or row.instance.state.ended:
            return MOVED_ON
        action = OperatorAction(actor, "reconcile", reason, saga_id)
        try:
            self._deployed.definition_of(row.instance)
            if self.decide_deadlines(saga_id):
                self.record(replace(action, detail=TIMED_OUT))
                return TIMED_OUT
            if not row.instance.stuck:
                return MOVED_ON
            self.decide(saga_id, RetryAsked(actor, reason))
        except (IllegalTransition, Undecidable) as error:
            why = error.refusal if isinstance(error, Undecidable) else str(error)
            self.record(action.refused(why))
            return f"refused: {why}"
        self.record(replace(action, detail=RETRIED), logged=True)
        return RETRIED

    def record(self, action: OperatorAction, *, logged: bool = False) -> None:
        """Record what a person did, or was refused: also in the saga log, unless `logged` there."""
        self._actions.append(action)
        if action.saga_id is not None and not logged:
            self.log.append(
                (action.saga_id, Entry(EntryKind(f"action_{action.outcome}"), detail=str(action)))
            )

    # --- the one way ---

    def row(self, saga_id: UUID) -> InstanceRow:
        """Return a locked instance. Raises IllegalTransition if archived, Poison if unknown."""
        if saga_id in self.archived:
            raise IllegalTransition("the saga ended long ago and is archived")
        if saga_id not in self.rows:
            raise Poison("unknown_saga", f"no saga {saga_id}")
        return self.rows[saga_id]

    def decide(self, saga_id: UUID, event: Input) -> None:
        """Decide an input of a saga that has begun.

        Raises IllegalTransition for an impossible request of a person, Poison for anything else.
        """
        row = self.row(saga_id)
        self._decide(saga_id, self._deployed.definition_of(row.instance), row, event)
        if isinstance(event, ReplyArrived):
            with suppress(KeyError):  # a reply to what was never sent
                seconds = self._now - row.issued(event.step, event.direction)
                self.waited.append((event.step, event.direction.value, seconds))

    def _decide(
        self, saga_id: UUID, definition: Definition, row: InstanceRow | None, event: Input
    ) -> None:
        """Apply all that an input leads to or, if it raises, nothing."""
        policy = self._deployed.policy
        try:
            approvals = self._deployed.approvals(definition, row, event)
            decision = decide(definition, policy, row.instance if row else None, event, approvals)
            bodies = [command_for(definition, decision.instance, s) for s in decision.sends]
        except IllegalTransition as error:
            if isinstance(event, ByHand):
                raise
            raise Poison("illegal_transition", str(error)) from error
        row = row or InstanceRow(decision.instance, is_new=True)
        row.apply(decision.instance, decision.sends, definition, policy, self._now)
        for send, body in zip(decision.sends, bodies, strict=True):
            self.outgoing.append(_command(definition, row, send, body))
        self.rows[saga_id] = self._changed[saga_id] = row
        self.log.extend((saga_id, entry) for entry in decision.log)

    # --- for failpoints ---

    def timed_out_keys(self) -> Iterator[Key]:
        for saga_id, entry in self.log:
            if entry.kind in (EntryKind.TIMED_OUT, EntryKind.EXPIRED) and entry.step:
                yield Key(saga_id, entry.step, entry.direction or FORWARD)

    def action_keys(self) -> Iterator[Key]:
        """Yield a key for each action of a person; its step is the action's name."""
        return (Key(a.saga_id, a.action, FORWARD) for a in self._actions if a.saga_id is not None)


def _command(definition: Definition, row: InstanceRow, send: Send, body: Command) -> Outgoing:
    envelope = Envelope.command(
        Key(row.instance.saga_id, send.step, send.direction),
        body,
        issued_at=datetime.fromtimestamp(row.issued(send.step, send.direction), UTC),
        reply_to=ORCHESTRATOR_REPLIES,
        attempt=send.attempt,
    )
    return Outgoing(commands_of(definition.by_name[send.step].participant), envelope)


def _no_tombstone(key: Key) -> Row:
    raise AssertionError(f"{key}: a start is never undone")
