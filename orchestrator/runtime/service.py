"""A batch of inputs: load, decide, save, send, in one transaction.

Owns: the front door of every input. Replies, starts, deadlines and operators all come
through one Round; there is no second path. Must not know: SQL, the broker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from uuid import UUID

from common.kit import log
from common.kit.daemon import wait_for
from common.kit.failpoints import Commit
from common.kit.patience import Policy
from common.messages.contracts import CancelSaga, SagaQuery, SagaView, StartSaga, StepView
from common.messages.envelope import Envelope, Key
from common.messages.errors import IllegalTransition
from common.storage import inbox
from common.storage.db import Database, Tx
from orchestrator.engine.approval import ApprovalPolicy
from orchestrator.engine.decide import Entry, Undecidable
from orchestrator.engine.definition import Definition
from orchestrator.engine.inputs import (
    CompensateAsked,
    GateDecided,
    Input,
    ReplyArrived,
    Resolved,
    RetryAsked,
)
from orchestrator.engine.instance import Instance, Status
from orchestrator.runtime import census, metrics, store
from orchestrator.runtime.actions import Action
from orchestrator.runtime.batch import Round
from orchestrator.runtime.deployed import Deployed
from orchestrator.runtime.messages import Received, parse

logger = log.get("orchestrator")

ROOM_POLL_SECONDS = 0.25
LOGGED = (
    "turned", "timed_out", "stuck", "ignored", "completed", "compensated",
    "parked", "approved", "rejected", "expired",
    "compensate_asked", "retry_asked", "resolved", "action_done", "action_refused",
    "held", "undeployed", "unjudgeable",
)  # fmt: skip


class Service:
    """Any number of these may run; a row lock per instance keeps them apart (rule 7)."""

    def __init__(
        self,
        db: Database,
        definitions: Sequence[Definition],
        policy: Policy,
        *,
        process: str,
        approval: ApprovalPolicy | None = None,
        running_limit: int = 1000,
    ) -> None:
        self._db = db
        self.deployed = Deployed(definitions, policy, process, approval)
        self._running_limit = running_limit
        self._room = 0
        self._ended = asyncio.Event()

    def parse(self, envelope: Envelope) -> Received:
        """Raises Poison for what is neither a reply nor a start of a saga we know."""
        return parse(envelope, self.deployed.newest)

    async def handle(self, batch: Sequence[Received]) -> bool:
        """Starts, cancels and replies, in the order they came: each is decided about. Raises Poison
        for a reply to an unknown saga."""
        keys = {key for received in batch for key in received.claims}
        async with self._db.transaction(Commit.BATCH) as tx:
            tx.keys = (received.envelope.key for received in batch)
            claim = inbox.Claim(tx, list(keys)) if keys else None
            watch = any(self.deployed.comes_to_a_gate(r.message) for r in batch)
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
        self._room -= sum(isinstance(received.message, StartSaga) for received in batch)
        self.sent(round_)
        return True

    async def room(self) -> None:
        """Return once another saga may run; until then starts wait where no deadline runs.

        Without a limit a burst makes every queue longer than the step timeout, resends make
        it longer still, and in the end all compensates. What is stuck does not count.
        """
        while self._room <= 0:
            self._ended.clear()
            async with self._db.reading() as tx:
                self._room = self._running_limit - await store.count_running(tx)
            if self._room <= 0:
                await wait_for(self._ended, ROOM_POLL_SECONDS)

    async def time_out(self, saga_ids: Sequence[UUID]) -> int:
        """Judge the deadlines of these once their rows are held; how many had passed."""
        async with self._db.transaction(Commit.RECONCILER) as tx:
            round_ = await self.open(tx, saga_ids)
            tx.keys = round_.timed_out()
            passed = sum(round_.judge(saga_id) for saga_id in saga_ids)
            await round_.save(tx)
        self.sent(round_)
        return passed

    async def reconcile(self, saga_ids: Sequence[UUID], actor: str, reason: str) -> dict[UUID, str]:
        """Asked by a person, of many: deadlines that have passed are judged, what is stuck is asked
        for again. What became of each, in words. Only for who has read all replies (rule 6)."""
        async with self._db.transaction(Commit.DEED) as tx:
            round_ = await self.open(tx, saga_ids)
            tx.keys = round_.deeds()
            became = {one: round_.reconcile(one, actor, reason) for one in saga_ids}
            await round_.save(tx)
        self.sent(round_)
        return became

    async def release(self, limit: int) -> int:
        """Take the replies that were held for somebody who knows their saga's version; of how many
        sagas there were any."""
        async with self._db.transaction(Commit.RECONCILER) as tx:
            saga_ids = await store.with_held_replies(tx, self.deployed.known, limit)
            if not saga_ids:
                return 0
            round_ = await self.open(tx, saga_ids, watch=True)
            held = await store.take_held(tx, saga_ids)
            tx.keys = [envelope.key for envelope in held]
            for envelope in held:
                round_.take_held(envelope)
            await round_.save(tx)
        self.sent(round_)
        return len(saga_ids)

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
        async with self._db.transaction(Commit.DEED) as tx:
            round_ = await self.open(tx, [saga_id], watch=watch)
            tx.keys = round_.deeds()
            try:
                round_.step(saga_id, asked(round_.of(saga_id).instance))
            except IllegalTransition as error:
                refusal, action = error, action.refused(str(error))
            except Undecidable as error:
                refusal, action = IllegalTransition(error.refusal), action.refused(error.refusal)
            round_.acted(action, told=refusal is None)
            await round_.save(tx)
        self.sent(round_)
        if refusal is not None:
            raise refusal
        return round_.held[saga_id].instance

    async def view(self, query: SagaQuery) -> SagaView:
        async with self._db.reading() as tx:
            seen = await census.find(tx, query.saga_id)
        if seen is None:
            return SagaView(saga_id=query.saga_id, found=False)
        instance = seen.instance
        known = self.deployed.knows(instance)
        return SagaView(
            saga_id=instance.saga_id,
            found=True,
            definition=f"{instance.definition} v{instance.version}",
            state=instance.state,
            reason=instance.reason,
            pivot_passed=instance.pivot_passed,
            compensate_asked=instance.compensate_asked,
            stuck=instance.stuck,
            steps=_step_views(self.deployed.definition_of(instance), instance) if known else (),
            started_at=seen.started_at,
            ended_at=seen.ended_at,
        )

    async def open(
        self, tx: Tx, saga_ids: Sequence[UUID], *, watch: bool = False, new: Sequence[UUID] = ()
    ) -> Round:
        """Their rows are held until the transaction ends."""
        held, gone, now = await store.lock(tx, list(set(saga_ids)), watch=watch, new=new)
        return Round(self.deployed, held, gone, now)

    def sent(self, round_: Round) -> None:
        """After the commit."""
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


def _message_id(saga_id: UUID, entry: Entry) -> UUID | None:
    """Of the command it concerns."""
    if entry.step is None or entry.direction is None:
        return None
    return Key(saga_id, entry.step, entry.direction).command_id


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
