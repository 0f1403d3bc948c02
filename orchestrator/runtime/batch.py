"""The instances of one transaction, and what becomes of them.

Owns: the one step every input takes, `_decide()`: the instance as it lies in its row, the pure
decision, and what follows from it for row, outbox and log. Must not know: SQL, who opened the
transaction.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

from common.kit import log
from common.messages.contracts import START, CancelSaga, SagaStarted, StartSaga
from common.messages.envelope import Command, Direction, Envelope, Key, Outcome
from common.messages.errors import IllegalTransition, Poison
from common.messages.topology import ORCHESTRATOR_REPLIES, commands_of, dead_letter_queue
from common.storage import outbox
from common.storage.db import Tx
from common.storage.fence import Fence, First, Row
from common.storage.outbox import Outgoing
from orchestrator.engine.decide import Entry, Send, Undecidable, command_for, decide
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
from orchestrator.runtime import actions, store
from orchestrator.runtime.actions import Action
from orchestrator.runtime.deployed import Deployed
from orchestrator.runtime.messages import parse
from orchestrator.runtime.store import Held

logger = log.get("orchestrator")

SAGA_STARTED = "saga_started"
MOVED_ON, JUDGED, ASKED_AGAIN = (
    "nothing: it has moved on", "its deadline was judged", "asked again",
)  # fmt: skip


class Round:
    """The instances of one transaction and what becomes of them."""

    def __init__(
        self, deployed: Deployed, held: dict[UUID, Held], archived: set[UUID], now: float
    ) -> None:
        self._deployed = deployed
        self.archived = archived
        self._now = now
        self._changed: dict[UUID, Held] = {}
        self.held = held
        self.outgoing: list[Outgoing] = []
        self.log: list[tuple[UUID, Entry]] = []
        self.actions: list[Action] = []
        self.waited: list[tuple[str, str, float]] = []  # step, direction, seconds until its answer
        self._held_replies: list[tuple[str, Envelope]] = []
        self._unjudged: dict[UUID, str | None] = {}  # why, if it is not its version

    def start(
        self, fence: Fence, key: Key, message: StartSaga | CancelSaga, asked_at: str | None
    ) -> None:
        """Once, under the newest version; it will finish under it."""
        if key.saga_id in self.archived:  # it began and ended, long ago (rule 9)
            logger.info("start.archived", saga_id=key.saga_id)
        elif isinstance(fence.admit(key, _no_tombstone), First):
            self._begin(key.saga_id, message, Started(key.saga_id, message.data, asked_at))
            fence.settle(key, Row(Outcome.DONE, None))

    def cancel(self, fence: Fence, envelope: Envelope, message: CancelSaga) -> None:
        """Undo it all, if it is not too late: the saga log says which. One that has not begun
        begins with this, so that its order ends like any other."""
        saga_id = envelope.saga_id
        if not isinstance(fence.admit(envelope.key, _no_tombstone), First):
            return
        if saga_id not in self.held:
            self.start(fence, Key(saga_id, START, FORWARD), message, None)
        if saga_id not in self.held:
            return  # it ended long ago, and is forgotten
        if not self._deployed.knows(self.held[saga_id].instance):
            self._hold(envelope)
            return
        outcome = Outcome.DONE
        try:
            self.step(saga_id, CompensateAsked(message.actor, message.reason))
        except IllegalTransition as late:
            outcome = Outcome.REFUSED
            detail = f"{message.actor}: {message.reason}: {late}"
            self.log.append((saga_id, Entry("cancel_refused", detail=detail)))
        fence.settle(envelope.key, Row(outcome, None))

    def start_dead_lettered(self, saga_id: UUID, message: StartSaga, reason: str) -> None:
        """Raises Poison for a definition that nobody here knows."""
        self._begin(saga_id, message, StartDeadLettered(saga_id, message.data, reason))

    def _begin(
        self, saga_id: UUID, message: StartSaga | CancelSaga, event: Started | StartDeadLettered
    ) -> None:
        held = self.held.get(saga_id)
        definition = self._deployed.newest.get(message.definition)
        if held is not None:
            definition = self._deployed.definition_of(held.instance)
        if definition is None:
            raise Poison("unknown_definition", f"no saga is called {message.definition}")
        self._decide(saga_id, definition, held, event)

    def step(self, saga_id: UUID, event: Input) -> None:
        held = self.of(saga_id)
        self._decide(saga_id, self._deployed.definition_of(held.instance), held, event)
        if isinstance(event, ReplyArrived):
            with suppress(KeyError):  # nobody had asked
                seconds = self._now - held.issued(event.step, event.direction)
                self.waited.append((event.step, event.direction.value, seconds))

    def take(self, envelope: Envelope, reply: ReplyArrived) -> None:
        """A reply; if only another process knows its saga's version, it is kept for that."""
        instance = self.of(envelope.saga_id).instance
        if self._deployed.knows(instance):
            self.step(envelope.saga_id, reply)
            return
        self._hold(envelope)

    def _hold(self, envelope: Envelope) -> None:
        """For a process that knows the version of its saga."""
        instance = self.held[envelope.saga_id].instance
        version = f"{instance.definition} v{instance.version}"
        self._held_replies.append((version, envelope))
        detail = f"{version} is not deployed in {self._deployed.process}"
        entry = Entry("held", envelope.step, envelope.direction, detail=detail)
        self.log.append((envelope.saga_id, entry))

    def take_held(self, envelope: Envelope) -> None:
        """One that was kept for us. If it makes no sense, it is a dead letter after all."""
        if envelope.saga_id in self.archived:  # nobody awaits it any more
            return
        message = parse(envelope, self._deployed.newest).message
        if not isinstance(message, ReplyArrived):  # a cancel: it has a claim to make
            self.outgoing.append(Outgoing(ORCHESTRATOR_REPLIES, envelope))
            return
        try:
            self.step(envelope.saga_id, message)
        except Poison:
            logger.exception("held_reply.dead", saga_id=envelope.saga_id, step=envelope.step)
            self.outgoing.append(Outgoing(dead_letter_queue(ORCHESTRATOR_REPLIES), envelope))

    def of(self, saga_id: UUID) -> Held:
        held = self.held.get(saga_id)
        if saga_id in self.archived:
            raise IllegalTransition("the saga ended long ago and is archived")
        if held is None:
            raise Poison("unknown_saga", f"no saga {saga_id}")
        return held

    def judge(self, saga_id: UUID) -> int:
        """TimedOut for every leg whose deadline has passed by now, seen with the row held. What
        cannot be judged is marked, and stops nothing else."""
        held = self.held.get(saga_id)
        if held is None:
            return 0
        if not self._deployed.knows(held.instance):
            self._judge_undeployed(saga_id, held)
            return 0
        passed = 0
        for (step, direction), attempt in held.instance.timed_legs().items():
            if held.times[step]["deadline"] <= self._now:
                waiting = self._now - held.issued(step, direction)
                past_sla = waiting > self._deployed.policy.stuck_after_seconds
                try:
                    self.step(saga_id, TimedOut(step, direction, attempt, past_sla))
                    passed += 1
                except Exception as error:  # a defect, too: of one saga, not of all that are due
                    logger.exception("saga.unjudgeable", saga_id=saga_id, step=step)
                    why = str(error) if isinstance(error, Poison) else repr(error)
                    self._cannot_judge(saga_id, held, why)
        return passed

    def reconcile(self, saga_id: UUID, actor: str, reason: str) -> str:
        """As it stands now, whatever it was when it was found."""
        held = self.held.get(saga_id)
        if held is None or held.instance.state.ended:
            return MOVED_ON
        action = Action(actor, "reconcile", reason, saga_id)
        try:
            self._deployed.definition_of(held.instance)
            if self.judge(saga_id):
                self.acted(replace(action, detail=JUDGED), told=False)
                return JUDGED
            if not held.instance.stuck:
                return MOVED_ON
            self.step(saga_id, RetryAsked(actor, reason))
        except (IllegalTransition, Undecidable) as error:
            why = error.refusal if isinstance(error, Undecidable) else str(error)
            self.acted(action.refused(why), told=False)
            return f"refused: {why}"
        self.acted(replace(action, detail=ASKED_AGAIN), told=True)
        return ASKED_AGAIN

    def _judge_undeployed(self, saga_id: UUID, held: Held) -> None:
        """Somebody who knows its version would have judged it long ago: nobody does."""
        deadline = held.next_deadline()
        if deadline is None or self._now - deadline < self._deployed.undeployed_after:
            return
        self._unjudged[saga_id] = None
        if not held.undeployed:
            self.log.append((saga_id, Entry("undeployed", detail="version not deployed")))

    def _cannot_judge(self, saga_id: UUID, held: Held, why: str) -> None:
        """Its version is known, and this release of it cannot go on."""
        if saga_id in self._unjudged:
            return
        self._unjudged[saga_id] = why
        held.instance = replace(held.instance, stuck=True)  # since when, though another leg moves
        if held.unjudgeable != why:
            self.log.append((saga_id, Entry("unjudgeable", detail=why)))

    def _decide(
        self, saga_id: UUID, definition: Definition, held: Held | None, event: Input
    ) -> None:
        """All of it or, if it raises, nothing."""
        policy = self._deployed.policy
        try:
            asked = self._deployed.asked(definition, held, event)
            decision = decide(definition, policy, held.instance if held else None, event, asked)
            bodies = [command_for(definition, decision.instance, s) for s in decision.sends]
        except IllegalTransition as error:
            if isinstance(event, ByHand):
                raise
            raise Poison("illegal_transition", str(error)) from error
        held = held or Held(decision.instance, fresh=True)
        held.take(decision.instance, decision.sends, definition, policy, self._now)
        for send, body in zip(decision.sends, bodies, strict=True):
            self.outgoing.append(self._command(definition, held, send, body))
        self.held[saga_id] = self._changed[saga_id] = held
        self.log.extend((saga_id, entry) for entry in decision.log)

    def _command(self, definition: Definition, held: Held, send: Send, body: Command) -> Outgoing:
        envelope = Envelope.command(
            Key(held.instance.saga_id, send.step, send.direction),
            body,
            issued_at=datetime.fromtimestamp(held.issued(send.step, send.direction), UTC),
            reply_to=ORCHESTRATOR_REPLIES,
            attempt=send.attempt,
        )
        return Outgoing(commands_of(definition.by_name[send.step].participant), envelope)

    def timed_out(self) -> Iterator[Key]:
        """What was silent for too long, in this round."""
        for saga_id, entry in self.log:
            if entry.entry in ("timed_out", "expired") and entry.step:
                yield Key(saga_id, entry.step, entry.direction or FORWARD)

    def deeds(self) -> Iterator[Key]:
        """What people did, or were refused, in this round: a leg for each, by the deed's name."""
        return (Key(a.saga_id, a.action, FORWARD) for a in self.actions if a.saga_id is not None)

    def acknowledge_start(self, start: Envelope) -> None:
        """Only a re-sent start wants to hear that the saga is known (rule 8)."""
        if start.reply_to is not None:
            key = Key(start.saga_id, SAGA_STARTED, Direction.FORWARD)
            issued_at = datetime.fromtimestamp(self._now, UTC)
            envelope = Envelope.command(key, SagaStarted(), issued_at=issued_at, reply_to=None)
            self.outgoing.append(Outgoing(start.reply_to, envelope))

    def acted(self, action: Action, *, told: bool) -> None:
        """A person did this, or was refused. `told`: the saga's log says so already."""
        self.actions.append(action)
        if action.saga_id is not None and not told:
            self.log.append((action.saga_id, Entry(f"action_{action.outcome}", detail=str(action))))

    async def save(self, tx: Tx) -> None:
        await store.save(tx, list(self._changed.values()))
        await store.write_log(tx, self.log, self._deployed.process)
        await store.hold(tx, self._held_replies)
        again_after = self._deployed.policy.resend_cap_seconds
        await store.mark_unjudged(tx, self._unjudged, again_after)
        await actions.record(tx, self.actions, self._deployed.process)
        await outbox.append(tx, self.outgoing)


def _no_tombstone(key: Key) -> Row:
    raise AssertionError(f"{key}: a start is never undone")
