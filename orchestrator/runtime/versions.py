"""Instances that this process cannot decide, although another release may.

- A *held* reply waits in a table, since the version of its saga is not deployed in the process
  that received it; a process that has the version decides it.
- *undeployed*: a deadline passed a while ago, and no process has decided it. The instance counts as
  stuck, and is tried again once per resend cap; the next change of its row removes the mark.
- *unjudgeable*: it has that mark too, and a reason: its version is deployed here, but this release
  cannot go on with it, for instance because no command can be made of its data.

Must not know: SQL, what an input leads to.
"""

from __future__ import annotations

from uuid import UUID

from common.kit import log
from common.messages.envelope import Envelope
from common.messages.errors import Poison
from common.messages.topology import ORCHESTRATOR_REPLIES, dead_letter_queue
from common.storage.outbox import Outgoing
from orchestrator.engine.inputs import ReplyArrived
from orchestrator.engine.saga_log import Entry, EntryKind
from orchestrator.runtime.batch import Batch
from orchestrator.runtime.messages import parse
from orchestrator.runtime.store import InstanceRow

logger = log.get("orchestrator")


def hold(batch: Batch, row: InstanceRow, envelope: Envelope) -> None:
    """Hold a reply, or a cancel, for a process that has its saga's version deployed."""
    version = f"{row.instance.definition} v{row.instance.version}"
    batch.hold(version, envelope)
    detail = f"{version} is not deployed in {batch.deployed.process}"
    entry = Entry(EntryKind.HELD, envelope.step, envelope.direction, detail=detail)
    batch.note(envelope.saga_id, entry)


def take_held_reply(batch: Batch, envelope: Envelope) -> None:
    """Decide a reply that was held; one that is impossible becomes a dead letter now."""
    if batch.is_archived(envelope.saga_id):  # it is no longer awaited
        return
    message = parse(envelope, batch.deployed.newest).message
    if not isinstance(message, ReplyArrived):  # a cancel, which needs a claim
        batch.send(Outgoing(ORCHESTRATOR_REPLIES, envelope))
        return
    try:
        batch.apply(envelope.saga_id, message)
    except Poison:
        logger.exception("held_reply.dead", saga_id=envelope.saga_id, step=envelope.step)
        batch.send(Outgoing(dead_letter_queue(ORCHESTRATOR_REPLIES), envelope))


def mark_undeployed(batch: Batch, saga_id: UUID, row: InstanceRow) -> None:
    """Mark it, if no process with its version has decided its deadline for so long."""
    deadline = row.next_deadline()
    if deadline is None or batch.now - deadline < batch.deployed.undeployed_after:
        return
    if batch.mark(saga_id, None) and not row.undeployed:
        batch.note(saga_id, Entry(EntryKind.UNDEPLOYED, detail="version not deployed"))


def mark_unjudgeable(batch: Batch, saga_id: UUID, row: InstanceRow, why: str) -> None:
    if batch.mark(saga_id, why) and row.unjudgeable != why:
        batch.note(saga_id, Entry(EntryKind.UNJUDGEABLE, detail=why))
