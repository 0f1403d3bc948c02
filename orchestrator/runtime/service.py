"""The orchestrator: replies, starts, deadlines and requests of people.

All of them go through `batch()`: load, decide, save and send in one transaction. It is the only
entry to an instance. Must not know: SQL, the broker.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

from common.kit import log
from common.kit.daemon import wait_for
from common.kit.failpoints import Commit
from common.kit.settings import Policy
from common.messages.contracts import SagaQuery, SagaView, StartSaga, StepView
from common.messages.envelope import Envelope, Key
from common.messages.errors import IllegalTransition
from common.storage.db import Database
from orchestrator.engine.approval import ApprovalPolicy
from orchestrator.engine.decide import NeedsAnotherRelease
from orchestrator.engine.definition import Definition
from orchestrator.engine.inputs import CompensateAsked, GateDecided, Input, Resolved, RetryAsked
from orchestrator.engine.instance import Instance, Status
from orchestrator.engine.saga_log import Entry, EntryKind
from orchestrator.runtime import arrivals, census, metrics, overdue, store, versions
from orchestrator.runtime.actions import OperatorAction
from orchestrator.runtime.batch import Batch
from orchestrator.runtime.deployed import DeployedDefinitions
from orchestrator.runtime.messages import Received, parse

logger = log.get("orchestrator")

CAPACITY_POLL_SECONDS = 0.25
NOT_LOGGED = frozenset(
    {
        EntryKind.STARTED, EntryKind.SENT, EntryKind.DONE, EntryKind.REFUSED, EntryKind.FENCED,
        EntryKind.DEAD_LETTERED, EntryKind.DISCARDED, EntryKind.CANCEL_REFUSED,
    }
)  # fmt: skip


class Service:
    """One orchestrator. Any number may run: a row lock per instance keeps them apart (rule 7)."""

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
        self.deployed = DeployedDefinitions(definitions, policy, process, approval)
        self._running_limit = running_limit
        self._capacity = 0
        self._ended = asyncio.Event()

    @asynccontextmanager
    async def batch(
        self,
        commit: Commit,
        saga_ids: Sequence[UUID],
        *,
        claims: Sequence[Key] = (),
        watch: bool = False,
    ) -> AsyncIterator[Batch]:
        """Open a transaction and lock these instances; at the end save, commit, count and log.

        `claims` are inbox rows to claim before the locks; `watch` reads the watch list too, for
        sagas that may come to a gate.
        """
        async with self._db.transaction(commit) as tx:
            batch = await Batch.lock(tx, self.deployed, saga_ids, claims=claims, watch=watch)
            yield batch
            await batch.save()
        metrics.count(batch.log, batch.waited)
        for saga_id, entry in batch.log:
            if entry.kind in (EntryKind.COMPLETED, EntryKind.COMPENSATED):
                self._ended.set()
            if entry.kind not in NOT_LOGGED:
                logger.info(
                    f"saga.{entry.kind}",
                    saga_id=saga_id,
                    message_id=_message_id(saga_id, entry),
                    step=entry.step,
                    direction=entry.direction,
                    attempt=entry.attempt,
                    detail=entry.detail,
                )

    # --- what the queues bring ---

    def parse(self, envelope: Envelope) -> Received:
        """Parse a reply, or a start or cancel of a deployed saga; raise Poison otherwise."""
        return parse(envelope, self.deployed.newest)

    async def handle(self, received: Sequence[Received]) -> bool:
        """Decide starts, cancels and replies, in the order they came.

        Raises Poison for a reply to an unknown saga.
        """
        claims = list({key for one in received for key in one.claims})
        watch = any(self.deployed.may_come_to_a_gate(one.message) for one in received)
        saga_ids = [one.envelope.saga_id for one in received]
        async with self.batch(Commit.BATCH, saga_ids, claims=claims, watch=watch) as batch:
            batch.tx.keys = (one.envelope.key for one in received)
            for one in received:
                arrivals.take(batch, one)
        self._capacity -= sum(isinstance(one.message, StartSaga) for one in received)
        return True  # every batch runs decide(): its success counts in bad-deploy detection

    async def wait_for_capacity(self) -> None:
        """Wait until another saga may run; starts wait in their queue, where no deadline runs.

        Without this backpressure a burst makes every queue longer than the step timeout, resends
        make it longer still, and in the end every saga compensates. Stuck sagas do not count.
        """
        while self._capacity <= 0:
            self._ended.clear()
            async with self._db.reading() as tx:
                self._capacity = self._running_limit - await store.count_running(tx)
            if self._capacity <= 0:
                await wait_for(self._ended, CAPACITY_POLL_SECONDS)

    async def view(self, query: SagaQuery) -> SagaView:
        async with self._db.reading() as tx:
            seen = await census.find(tx, query.saga_id)
        if seen is None:
            return SagaView(saga_id=query.saga_id, found=False)
        instance = seen.instance
        known = self.deployed.has(instance)
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

    # --- what the reconciler finds ---

    async def time_out(self, saga_ids: Sequence[UUID]) -> int:
        """Time out the overdue legs of these sagas; return their number."""
        async with self.batch(Commit.RECONCILER, saga_ids) as batch:
            batch.tx.keys = batch.timed_out_keys()
            return sum(overdue.time_out(batch, saga_id) for saga_id in saga_ids)

    async def decide_held_replies(self, limit: int) -> int:
        """Decide the held replies of versions deployed here; return of how many sagas."""
        async with self._db.reading() as tx:
            saga_ids = await store.sagas_with_held_replies(tx, self.deployed.known, limit)
        if not saga_ids:
            return 0
        async with self.batch(Commit.RECONCILER, saga_ids, watch=True) as batch:
            replies = await store.take_held_replies(batch.tx, saga_ids)
            batch.tx.keys = (envelope.key for envelope in replies)
            for envelope in replies:
                versions.take_held_reply(batch, envelope)
        return len(saga_ids)

    # --- what people ask for ---

    async def reconcile(self, saga_ids: Sequence[UUID], actor: str, reason: str) -> dict[UUID, str]:
        """Time out overdue legs and retry what is stuck, of many; return what became of each.

        The operator process calls it, and asks first whether replies or commands wait in any queue
        or in its outbox (`Services.backlog()`): rule 6 holds for a person's request too.
        """
        async with self.batch(Commit.INTERVENTION, saga_ids) as batch:
            batch.tx.keys = batch.action_keys()
            return {one: overdue.reconcile(batch, one, actor, reason) for one in saga_ids}

    async def compensate(self, saga_id: UUID, actor: str, reason: str) -> Instance:
        """Undo a saga. Raises IllegalTransition past the pivot or after the end."""
        action = OperatorAction(actor, "compensate", reason, saga_id)
        return await self._act(action, saga_id, lambda _: CompensateAsked(actor, reason))

    async def decide_gate(
        self, saga_id: UUID, *, approved: bool, actor: str, reason: str, gate: str | None = None
    ) -> Instance:
        """Approve or reject a saga at `gate`, or at the one where it waits.

        Raises IllegalTransition if it does not wait there, for instance no longer.
        """

        def decided(instance: Instance) -> GateDecided:
            step = gate or instance.waiting_at()
            if step is None:
                raise IllegalTransition("it waits at no gate")
            return GateDecided(step, approved, actor, reason)

        action = OperatorAction(actor, "approve" if approved else "reject", reason, saga_id, gate)
        return await self._act(action, saga_id, decided, watch=True)

    async def retry(self, saga_id: UUID, actor: str, reason: str) -> Instance:
        """Send what is awaited again, now. Raises IllegalTransition if that is nothing."""
        action = OperatorAction(actor, "retry", reason, saga_id)
        return await self._act(action, saga_id, lambda _: RetryAsked(actor, reason))

    async def resolve(self, saga_id: UUID, step: str, actor: str, reason: str) -> Instance:
        """Settle a step by hand. Raises IllegalTransition for a step where that is wrong."""
        action = OperatorAction(actor, "resolve", reason, saga_id, step)
        return await self._act(action, saga_id, lambda _: Resolved(step, actor, reason))

    async def _act(
        self,
        action: OperatorAction,
        saga_id: UUID,
        input_for: Callable[[Instance], Input],
        *,
        watch: bool = False,
    ) -> Instance:
        """Decide what a person asks of one saga, and record the action or its refusal with it.

        Raises IllegalTransition if it is refused.
        """
        refusal: str | None = None
        async with self.batch(Commit.INTERVENTION, [saga_id], watch=watch) as batch:
            batch.tx.keys = batch.action_keys()
            try:
                batch.apply(saga_id, input_for(batch.row(saga_id).instance))
                batch.record(action, logged=True)
            except (IllegalTransition, NeedsAnotherRelease) as error:
                refusal = error.refusal if isinstance(error, NeedsAnotherRelease) else str(error)
                batch.record(action.refused(refusal))
        if refusal is not None:
            raise IllegalTransition(refusal)
        return batch.row(saga_id).instance


def _message_id(saga_id: UUID, entry: Entry) -> UUID | None:
    """Return the id of the command that an entry is about."""
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
