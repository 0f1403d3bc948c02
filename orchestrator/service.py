"""A batch of inputs: load, decide, save, send, in one transaction.

Owns: the front door of every input. Replies, starts, deadlines and operators all come
through `_step()`; there is no second path. Must not know: SQL, the broker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from pydantic import ValidationError

from common import failpoints, inbox, log, outbox
from common.contracts import (
    START,
    CancelSaga,
    SagaQuery,
    SagaStarted,
    SagaView,
    StartSaga,
    StepView,
)
from common.daemon import wait_for
from common.db import Database, Tx
from common.envelope import Direction, Envelope, Key, Outcome
from common.errors import IllegalTransition, Poison
from common.failpoints import Point
from common.fence import Fence, First, Row
from common.outbox import Appended, Outgoing
from common.patience import Policy
from common.topology import ORCHESTRATOR_REPLIES, commands_of, dead_letter_queue
from orchestrator import actions, metrics, reader, store
from orchestrator.actions import Action
from orchestrator.approval import Approval, before_a_gate
from orchestrator.decide import decide
from orchestrator.decision import Entry, Send, command_for
from orchestrator.inputs import (
    NOBODY,
    Asked,
    ByHand,
    CompensateAsked,
    GateDecided,
    Input,
    ReplyArrived,
    Resolved,
    RetryAsked,
    StartDeadLettered,
    Started,
    TimedOut,
)
from orchestrator.instance import Instance, Status
from orchestrator.saga import FORWARD, Definition
from orchestrator.store import Held

logger = log.get("orchestrator")

SAGA_STARTED = "saga_started"
ROOM_POLL_SECONDS = 0.25
DETAIL_LENGTH = 300  # of what a reply said, as kept in the saga log
MOVED_ON, JUDGED, ASKED_AGAIN = (
    "nothing: it has moved on", "its deadline was judged", "asked again",
)  # fmt: skip
UNDEPLOYED_AFTER_SECONDS = 60.0  # a deadline that long ago, and nobody knew its definition
LOGGED = (
    "turned", "timed_out", "stuck", "ignored", "completed", "compensated",
    "parked", "approved", "rejected", "expired",
    "compensate_asked", "retry_asked", "resolved", "action_done", "action_refused",
    "held", "undeployed",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Received:
    """An envelope of one of the orchestrator's queues, typed."""

    envelope: Envelope
    message: StartSaga | CancelSaga | ReplyArrived

    @property
    def claims(self) -> tuple[Key, ...]:
        """The inbox rows that it needs: matching makes replies safe to repeat (rule 3)."""
        match self.message:
            case StartSaga():
                return (self.envelope.key,)
            case CancelSaga():
                return (self.envelope.key, Key(self.envelope.saga_id, START, FORWARD))
        return ()


class VersionNotDeployed(Poison):
    """An instance's definition is not known here: another process's turn, or nobody's."""

    def __init__(self, instance: Instance) -> None:
        version = f"{instance.definition} v{instance.version}"
        super().__init__("unknown_version", f"{version} is not deployed")
        self.refusal = f"{version} is not deployed here: it goes on by itself once it is"


class Service:
    """Any number of these may run; a row lock per instance keeps them apart (rule 7)."""

    def __init__(
        self,
        db: Database,
        definitions: Sequence[Definition],
        policy: Policy,
        *,
        process: str,
        approval: Approval | None = None,
        running_limit: int = 1000,
        carry: Callable[[Appended], None] = lambda _: None,
    ) -> None:
        self._db = db
        self._approval = approval or Approval()
        self._definitions: Mapping[tuple[str, int], Definition] = {
            (d.name, d.version): d for d in definitions
        }
        self._newest = {d.name: d for d in sorted(definitions, key=lambda d: d.version)}
        self._before_a_gate = frozenset().union(*map(before_a_gate, definitions))
        self._policy = policy
        self._process = process
        self._carry = carry
        self._running_limit = running_limit
        self._room = 0
        self._ended = asyncio.Event()

    def parse(self, envelope: Envelope) -> Received:
        """Raises Poison for what is neither a reply nor a start of a saga we know."""
        if envelope.outcome is not None:
            reason = envelope.body.get("reason")
            reply = ReplyArrived(
                envelope.step,
                envelope.direction,
                envelope.outcome,
                envelope.type,
                str(reason) if reason else None,
                _said(envelope.body),
                envelope.process,
            )
            return Received(envelope, reply)
        message = envelope.message()
        if not isinstance(message, StartSaga | CancelSaga):
            raise Poison("unknown_command", f"{envelope.type} is no input of the orchestrator")
        if envelope.direction is not Direction.FORWARD:
            raise Poison("wrong_direction", "a saga is not started backwards")
        if message.definition not in self._newest:
            raise Poison("unknown_definition", f"no saga is called {message.definition}")
        _check_data(self._newest[message.definition], message)
        return Received(envelope, message)

    async def handle(self, batch: Sequence[Received]) -> None:
        """Starts, cancels and replies, in the order they came. Raises Poison for a reply to an
        unknown saga."""
        keys = {key for received in batch for key in received.claims}
        async with self._db.transaction() as tx:
            claim = inbox.Claim(tx, list(keys)) if keys else None
            watch = any(self._comes_to_a_gate(r.message) for r in batch)
            new = list({key.saga_id for key in keys})
            round_ = await self.open(tx, [r.envelope.saga_id for r in batch], watch=watch, new=new)
            fence = claim.fence() if claim else None
            for received in batch:
                envelope, message = received.envelope, received.message
                if isinstance(message, ReplyArrived):
                    if envelope.saga_id in round_.archived:  # nobody awaits it any more
                        logger.info("reply.archived", saga_id=envelope.saga_id, step=envelope.step)
                    else:
                        round_.take(envelope, message)
                    continue
                assert fence is not None  # noqa: S101 - it has claims
                if isinstance(message, CancelSaga):
                    round_.cancel(fence, envelope, message)
                else:
                    asked_at = envelope.first_issued_at.isoformat()
                    round_.start(fence, envelope.key, message, asked_at)
                    round_.acknowledge_start(envelope)
            if fence is not None:
                await inbox.keep(tx, fence)
            await round_.save(tx)
            failpoints.reach(Point.BATCH_BEFORE_COMMIT, (r.envelope.key for r in batch))
        failpoints.reach(Point.BATCH_AFTER_COMMIT, (r.envelope.key for r in batch))
        self._room -= sum(isinstance(received.message, StartSaga) for received in batch)
        self.sent(round_)

    async def room(self) -> None:
        """Return once another saga may run; until then starts wait where no deadline runs.

        Without a limit a burst makes every queue longer than the step timeout, resends make
        it longer still, and in the end all compensates. What is stuck does not count.
        """
        while self._room <= 0:
            self._ended.clear()
            async with self._db.transaction() as tx:
                self._room = self._running_limit - await store.count_running(tx)
            if self._room <= 0:
                await wait_for(self._ended, ROOM_POLL_SECONDS)

    async def time_out(self, saga_ids: Sequence[UUID]) -> int:
        """Judge the deadlines of these once their rows are held; how many had passed."""
        async with self._db.transaction() as tx:
            round_ = await self.open(tx, saga_ids)
            passed = sum(round_.judge(saga_id) for saga_id in saga_ids)
            await round_.save(tx)
            failpoints.reach(Point.RECONCILER_BEFORE_COMMIT, round_.timed_out())
        failpoints.reach(Point.RECONCILER_AFTER_COMMIT, round_.timed_out())
        self.sent(round_)
        return passed

    async def reconcile(self, saga_ids: Sequence[UUID], actor: str, reason: str) -> dict[UUID, str]:
        """Asked by a person, of many: deadlines that have passed are judged, what is stuck is asked
        for again. What became of each, in words. Only for who has read all replies (rule 6)."""
        async with self._db.transaction() as tx:
            round_ = await self.open(tx, saga_ids)
            became = {one: round_.reconcile(one, actor, reason) for one in saga_ids}
            await round_.save(tx)
        self.sent(round_)
        return became

    async def release(self, limit: int) -> int:
        """Take the replies that were held for somebody who knows their saga's version; of how many
        sagas there were any."""
        async with self._db.transaction() as tx:
            saga_ids = await store.with_held_replies(tx, self.known, limit)
            if not saga_ids:
                return 0
            round_ = await self.open(tx, saga_ids, watch=True)
            for envelope in await store.take_held(tx, saga_ids):
                round_.take_held(envelope)
            await round_.save(tx)
        self.sent(round_)
        return len(saga_ids)

    @property
    def known(self) -> list[str]:
        """The definitions that are deployed here: `order v2`."""
        return [f"{name} v{version}" for name, version in self._definitions]

    @property
    def undeployed_after(self) -> float:
        return min(self._policy.stuck_after_seconds, UNDEPLOYED_AFTER_SECONDS)

    async def compensate(self, saga_id: UUID, actor: str, reason: str) -> Instance:
        """Asked by a person. Raises IllegalTransition past the pivot or after the end."""
        action = Action(actor, "compensate", reason, saga_id)
        return await self._act(saga_id, action, lambda _: CompensateAsked(actor, reason))

    async def decide_gate(
        self, saga_id: UUID, *, approved: bool, actor: str, reason: str, gate: str | None = None
    ) -> Instance:
        """Asked by a person, who has looked at what waits at `gate`, or at whichever it waits at.

        Raises IllegalTransition if nobody is asked there, for instance no longer.
        """

        def decided(instance: Instance) -> GateDecided:
            step = gate or instance.waiting_at()
            if step is None:
                raise IllegalTransition("it waits at no gate")
            return GateDecided(step, approved, actor, reason)

        action = Action(actor, "approve" if approved else "reject", reason, saga_id, gate)
        return await self._act(saga_id, action, decided, watch=True)

    async def retry(self, saga_id: UUID, actor: str, reason: str) -> Instance:
        """Asked by a person: what is awaited goes out again now. Raises IllegalTransition."""
        action = Action(actor, "retry", reason, saga_id)
        return await self._act(saga_id, action, lambda _: RetryAsked(actor, reason))

    async def resolve(self, saga_id: UUID, step: str, actor: str, reason: str) -> Instance:
        """A person has seen to this step. Raises IllegalTransition if it is none of theirs."""
        action = Action(actor, "resolve", reason, saga_id, step)
        return await self._act(saga_id, action, lambda _: Resolved(step, actor, reason))

    async def _act(
        self,
        saga_id: UUID,
        action: Action,
        asked: Callable[[Instance], Input],
        *,
        watch: bool = False,
    ) -> Instance:
        """What a person asks of one saga: decided like any input, and recorded with it.

        Raises IllegalTransition if it is refused, which is recorded as well.
        """
        refusal: IllegalTransition | None = None
        async with self._db.transaction() as tx:
            round_ = await self.open(tx, [saga_id], watch=watch)
            try:
                round_.step(saga_id, asked(round_.of(saga_id).instance))
            except IllegalTransition as error:
                refusal, action = error, action.refused(str(error))
            except VersionNotDeployed as error:
                refusal, action = IllegalTransition(error.refusal), action.refused(error.refusal)
            round_.acted(action, told=refusal is None)
            await round_.save(tx)
        self.sent(round_)
        if refusal is not None:
            raise refusal
        return round_.held[saga_id].instance

    async def view(self, query: SagaQuery) -> SagaView:
        async with self._db.transaction() as tx:
            seen = await reader.find(tx, query.saga_id)
        if seen is None:
            return SagaView(saga_id=query.saga_id, found=False)
        instance = seen.instance
        known = self.knows(instance)
        return SagaView(
            saga_id=instance.saga_id,
            found=True,
            definition=f"{instance.definition} v{instance.version}",
            state=instance.state,
            reason=instance.reason,
            pivot_passed=instance.pivot_passed,
            compensate_asked=instance.compensate_asked,
            stuck=instance.stuck,
            steps=_step_views(self._definition_of(instance), instance) if known else (),
            started_at=seen.started_at,
            ended_at=seen.ended_at,
        )

    async def open(
        self, tx: Tx, saga_ids: Sequence[UUID], *, watch: bool = False, new: Sequence[UUID] = ()
    ) -> Round:
        """Their rows are held until the transaction ends."""
        held, gone, now = await store.lock(tx, list(set(saga_ids)), watch=watch, new=new)
        return Round(self, held, gone, now)

    def _comes_to_a_gate(self, event: object) -> bool:
        """Whether the saga may stand before a gate next; who is asked there is only then of use."""
        if isinstance(event, ReplyArrived):
            return event.direction is FORWARD and event.step in self._before_a_gate
        return isinstance(event, GateDecided)

    def asked(self, definition: Definition, held: Held | None, event: Input) -> Asked:
        if held is None or not self._comes_to_a_gate(event):
            return NOBODY
        return self._approval.asked(definition, held.instance, held.watched)

    def knows(self, instance: Instance) -> bool:
        """Whether the definition it began with is deployed here; if not, another replica's turn."""
        return (instance.definition, instance.version) in self._definitions

    def _definition_of(self, instance: Instance) -> Definition:
        definition = self._definitions.get((instance.definition, instance.version))
        if definition is None:
            raise VersionNotDeployed(instance)
        return definition

    def sent(self, round_: Round) -> None:
        """After the commit."""
        self._carry(round_.sent)
        metrics.count(round_.log, round_.waited)
        for saga_id, entry in round_.log:
            if entry.entry in ("completed", "compensated"):
                self._ended.set()
            if entry.entry in LOGGED:
                logger.info(
                    f"saga.{entry.entry}",
                    saga_id=saga_id,
                    message_id=_message_id(saga_id, entry),
                    step=entry.step,
                    direction=entry.direction,
                    attempt=entry.attempt,
                    detail=entry.detail,
                )


class Round:
    """The instances of one transaction and what becomes of them."""

    def __init__(
        self, service: Service, held: dict[UUID, Held], archived: set[UUID], now: float
    ) -> None:
        self._service = service
        self.archived = archived
        self._now = now
        self._changed: dict[UUID, Held] = {}
        self.held = held
        self.outgoing: list[Outgoing] = []
        self.sent = Appended([])
        self.log: list[tuple[UUID, Entry]] = []
        self.actions: list[Action] = []
        self.waited: list[tuple[str, str, float]] = []  # step, direction, seconds until its answer
        self._held_replies: list[tuple[str, Envelope]] = []
        self._undeployed: list[UUID] = []

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
        definition = self._service._newest.get(message.definition)
        if held is not None:
            definition = self._service._definition_of(held.instance)
        if definition is None:
            raise Poison("unknown_definition", f"no saga is called {message.definition}")
        self._decide(saga_id, definition, held, event)

    def step(self, saga_id: UUID, event: Input) -> None:
        held = self.of(saga_id)
        self._decide(saga_id, self._service._definition_of(held.instance), held, event)
        if isinstance(event, ReplyArrived):
            with suppress(KeyError):  # nobody had asked
                seconds = self._now - held.issued(event.step, event.direction)
                self.waited.append((event.step, event.direction.value, seconds))

    def take(self, envelope: Envelope, reply: ReplyArrived) -> None:
        """A reply; if only another process knows its saga's version, it is kept for that."""
        instance = self.of(envelope.saga_id).instance
        if self._service.knows(instance):
            self.step(envelope.saga_id, reply)
            return
        version = f"{instance.definition} v{instance.version}"
        self._held_replies.append((version, envelope))
        detail = f"{version} is not deployed in {self._service._process}"
        entry = Entry("held", envelope.step, envelope.direction, detail=detail)
        self.log.append((envelope.saga_id, entry))

    def take_held(self, envelope: Envelope) -> None:
        """One that was kept for us. If it makes no sense, it is a dead letter after all."""
        reply = self._service.parse(envelope).message
        try:
            assert isinstance(reply, ReplyArrived)  # noqa: S101 - nothing else is held
            self.step(envelope.saga_id, reply)
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
        """TimedOut for every leg whose deadline has passed by now, seen with the row held."""
        held = self.held.get(saga_id)
        if held is None:
            return 0
        if not self._service.knows(held.instance):
            self._judge_undeployed(saga_id, held)
            return 0
        passed = 0
        for (step, direction), attempt in held.instance.timed_legs().items():
            if held.times[step]["deadline"] <= self._now:
                waiting = self._now - held.issued(step, direction)
                past_sla = waiting > self._service._policy.stuck_after_seconds
                self.step(saga_id, TimedOut(step, direction, attempt, past_sla))
                passed += 1
        return passed

    def reconcile(self, saga_id: UUID, actor: str, reason: str) -> str:
        """As it stands now, whatever it was when it was found."""
        held = self.held.get(saga_id)
        if held is None or held.instance.state.ended:
            return MOVED_ON
        action = Action(actor, "reconcile", reason, saga_id)
        try:
            self._service._definition_of(held.instance)
            if self.judge(saga_id):
                self.acted(replace(action, detail=JUDGED), told=False)
                return JUDGED
            if not held.instance.stuck:
                return MOVED_ON
            self.step(saga_id, RetryAsked(actor, reason))
        except (IllegalTransition, VersionNotDeployed) as error:
            why = error.refusal if isinstance(error, VersionNotDeployed) else str(error)
            self.acted(action.refused(why), told=False)
            return f"refused: {why}"
        self.acted(replace(action, detail=ASKED_AGAIN), told=True)
        return ASKED_AGAIN

    def _judge_undeployed(self, saga_id: UUID, held: Held) -> None:
        """Somebody who knows its version would have judged it long ago: nobody does."""
        deadline = held.next_deadline()
        if deadline is None or self._now - deadline < self._service.undeployed_after:
            return
        self._undeployed.append(saga_id)
        if not held.undeployed:
            self.log.append((saga_id, Entry("undeployed", detail="version not deployed")))

    def _decide(
        self, saga_id: UUID, definition: Definition, held: Held | None, event: Input
    ) -> None:
        policy = self._service._policy
        try:
            asked = self._service.asked(definition, held, event)
            decision = decide(definition, policy, held.instance if held else None, event, asked)
            held = held or Held(decision.instance, fresh=True)
            held.take(decision.instance, decision.sends, definition, policy, self._now)
            self.outgoing.extend(self._command(definition, held, send) for send in decision.sends)
        except IllegalTransition as error:
            if isinstance(event, ByHand):
                raise
            raise Poison("illegal_transition", str(error)) from error
        except ValidationError as error:
            raise Poison("invalid_data", str(error)) from error
        self.held[saga_id] = self._changed[saga_id] = held
        self.log.extend((saga_id, entry) for entry in decision.log)

    def _command(self, definition: Definition, held: Held, send: Send) -> Outgoing:
        instance = held.instance
        envelope = Envelope.command(
            Key(instance.saga_id, send.step, send.direction),
            command_for(definition, instance, send),
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
        await store.write_log(tx, self.log, self._service._process)
        await store.hold(tx, self._held_replies)
        again_after = self._service._policy.resend_cap_seconds
        await store.mark_undeployed(tx, self._undeployed, again_after)
        await actions.record(tx, self.actions, self._service._process)
        self.sent = await outbox.append(tx, self.outgoing)


def _message_id(saga_id: UUID, entry: Entry) -> UUID | None:
    """Of the command it concerns."""
    if entry.step is None or entry.direction is None:
        return None
    return Key(saga_id, entry.step, entry.direction).command_id


def _check_data(definition: Definition, start: StartSaga | CancelSaga) -> None:
    """Before anything is done: no command of the saga will then lack a field."""
    if definition.data is None:
        return
    try:
        definition.data.model_validate(start.data)
    except ValidationError as error:
        raise Poison("invalid_data", str(error)) from error


def _said(body: Mapping[str, Any]) -> str | None:
    """What a reply says besides its reason: the SKU that was short, that nothing was to undo."""
    words = [
        name if value is True else f"{name} {value}"
        for name, value in body.items()
        if name != "reason" and value is not None and value is not False
    ]
    return ", ".join(words)[:DETAIL_LENGTH] or None


def _step_views(definition: Definition, instance: Instance) -> tuple[StepView, ...]:
    views = []
    for step in definition.steps:
        progress = instance.steps.get(step.name)
        views.append(
            StepView(
                step=step.name,
                kind=step.kind,
                status=progress.status if progress else "not_sent",
                attempts=progress.attempt if progress else 0,
                undo_attempts=progress.undo_attempt if progress else 0,
                compensated=progress is not None and progress.status is Status.UNDONE,
            )
        )
    return tuple(views)


def _no_tombstone(key: Key) -> Row:
    raise AssertionError(f"{key}: a start is never undone")
