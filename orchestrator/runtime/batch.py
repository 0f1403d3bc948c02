"""The batch: the only entry to an instance, and one transaction's unit of work.

It locks instances, applies inputs to them, and saves what they lead to. Every input takes one way,
`apply()`: the locked instance, the pure decision, and what follows from it for the row, the outbox
and the saga log. Must not know: SQL, where an input comes from, when the transaction ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

from common.messages.envelope import Command, Envelope, Key, Outcome
from common.messages.errors import IllegalTransition, Poison
from common.messages.topology import ORCHESTRATOR_REPLIES, commands_of
from common.storage import inbox, outbox
from common.storage.admission import First, InboxView, Row
from common.storage.db import Tx
from common.storage.outbox import Outgoing
from orchestrator.engine.decide import Send, command_for, decide
from orchestrator.engine.definition import FORWARD, Definition
from orchestrator.engine.inputs import ByHand, Input, ReplyArrived
from orchestrator.engine.saga_log import Entry, EntryKind
from orchestrator.runtime import actions, store
from orchestrator.runtime.actions import OperatorAction
from orchestrator.runtime.deployed import DeployedDefinitions
from orchestrator.runtime.store import InstanceRow


class Batch:
    """The instances one transaction has locked, and the rows, messages and log entries to write.

    `tx` is for what else the transaction reads and writes, and for the failpoints' keys; `now` is
    the database's time, read under the locks.
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
        self.deployed = deployed
        self.now = now
        self.log: list[tuple[UUID, Entry]] = []
        self.waited: list[tuple[str, str, float]] = []  # step, direction, seconds until its answer
        self._rows = rows
        self._archived = archived
        self._inbox = view
        self._changed: dict[UUID, InstanceRow] = {}
        self._outgoing: list[Outgoing] = []
        self._actions: list[OperatorAction] = []
        self._held_replies: list[tuple[str, Envelope]] = []
        self._marked: dict[UUID, str | None] = {}

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
        tx, process = self.tx, self.deployed.process
        await inbox.keep(tx, self._inbox)
        store.save(tx, list(self._changed.values()))
        store.write_log(tx, self.log, process)
        store.hold_replies(tx, self._held_replies)
        await store.mark_undeployed(tx, self._marked, self.deployed.policy.resend_cap_seconds)
        actions.record(tx, self._actions, process)
        await outbox.append(tx, self._outgoing)

    # --- the instances ---

    def find(self, saga_id: UUID) -> InstanceRow | None:
        return self._rows.get(saga_id)

    def row(self, saga_id: UUID) -> InstanceRow:
        """Return a locked instance. Raises IllegalTransition if archived, Poison if unknown."""
        if self.is_archived(saga_id):
            raise IllegalTransition("the saga ended long ago and is archived")
        if saga_id not in self._rows:
            raise Poison("unknown_saga", f"no saga {saga_id}")
        return self._rows[saga_id]

    def is_archived(self, saga_id: UUID) -> bool:
        return saga_id in self._archived

    def apply(self, saga_id: UUID, input_: Input, *, begins: str | None = None) -> None:
        """Apply all that an input leads to or, if it raises, nothing.

        `begins` names the definition of a saga that this input may begin. Raises IllegalTransition
        for an impossible request of a person, Poison for anything else.
        """
        row = self.row(saga_id) if begins is None else self._rows.get(saga_id)
        definition = self.deployed.definition_for(row.instance if row else None, begins)
        policy = self.deployed.policy
        try:
            approvals = self.deployed.approvals(definition, row, input_)
            decision = decide(definition, policy, row.instance if row else None, input_, approvals)
            bodies = [command_for(definition, decision.instance, s) for s in decision.sends]
        except IllegalTransition as error:
            if isinstance(input_, ByHand):
                raise
            raise Poison("illegal_transition", str(error)) from error
        row = row or InstanceRow(decision.instance, is_new=True)
        row.apply(decision.instance, decision.sends, definition, policy, self.now)
        for send, body in zip(decision.sends, bodies, strict=True):
            self._outgoing.append(_command(definition, row, send, body))
        self._rows[saga_id] = self._changed[saga_id] = row
        for entry in decision.log:
            self.note(saga_id, entry)
        if isinstance(input_, ReplyArrived):
            with suppress(KeyError):  # a reply to what was never sent
                seconds = self.now - row.issued(input_.step, input_.direction)
                self.waited.append((input_.step, input_.direction.value, seconds))

    # --- what goes with them ---

    def is_first(self, key: Key) -> bool:
        """Return whether a claimed start or cancel is no repeat."""
        return isinstance(self._inbox.admit(key, _no_tombstone), First)

    def settle(self, key: Key, outcome: Outcome) -> None:
        """Record that a start or cancel was handled, so that a repeat leads to nothing."""
        self._inbox.record_reply(key, Row(outcome, None))

    def note(self, saga_id: UUID, entry: Entry) -> None:
        self.log.append((saga_id, entry))

    def record(self, action: OperatorAction, *, logged: bool = False) -> None:
        """Record what a person did, or was refused: also in the saga log, unless `logged` there."""
        self._actions.append(action)
        if action.saga_id is not None and not logged:
            kind = EntryKind(f"action_{action.outcome}")
            self.note(action.saga_id, Entry(kind, detail=str(action)))

    def send(self, message: Outgoing) -> None:
        self._outgoing.append(message)

    def hold(self, version: str, reply: Envelope) -> None:
        self._held_replies.append((version, reply))

    def mark(self, saga_id: UUID, unjudgeable: str | None) -> bool:
        """Mark an instance (versions.py); return whether it was not marked in this batch yet."""
        if saga_id in self._marked:
            return False
        self._marked[saga_id] = unjudgeable
        if unjudgeable is not None:  # another leg may move, and is saved with this
            row = self._rows[saga_id]
            row.instance = replace(row.instance, stuck=True)
        return True

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
