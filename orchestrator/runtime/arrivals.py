"""Starts, cancels and replies as inputs, each claimed, awaited or ignored as its kind requires.

Must not know: SQL, the broker, what an input leads to.
"""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from common.kit import log
from common.messages.contracts import START, CancelSaga, SagaStarted, StartSaga
from common.messages.envelope import Envelope, Key, Outcome
from common.messages.errors import IllegalTransition
from common.storage.outbox import Outgoing
from orchestrator.engine.definition import FORWARD
from orchestrator.engine.inputs import CompensateAsked, ReplyArrived, StartDeadLettered, Started
from orchestrator.engine.saga_log import Entry, EntryKind
from orchestrator.runtime import versions
from orchestrator.runtime.batch import Batch
from orchestrator.runtime.messages import Received

logger = log.get("orchestrator")

SAGA_STARTED = "saga_started"


def take(batch: Batch, received: Received) -> None:
    """Decide a start, a cancel or a reply. Raises Poison for a reply to an unknown saga."""
    envelope, message = received.envelope, received.message
    match message:
        case StartSaga():
            _start(batch, envelope.key, message, envelope.first_issued_at.isoformat())
            _acknowledge_start(batch, envelope)
        case CancelSaga():
            _cancel(batch, envelope, message)
        case ReplyArrived():
            _take_reply(batch, envelope, message)


def take_dead_start(batch: Batch, saga_id: UUID, message: StartSaga, reason: str) -> None:
    """Make a stuck instance of a start that is dead. Raises Poison if no such saga exists."""
    dead = StartDeadLettered(saga_id, message.data, reason)
    batch.apply(saga_id, dead, begins=message.definition)


def _start(batch: Batch, key: Key, message: StartSaga | CancelSaga, asked_at: str | None) -> None:
    """Start a saga once, under the newest version; it will finish under it."""
    if batch.is_archived(key.saga_id):  # it began and ended long ago (rule 9)
        logger.info("start.archived", saga_id=key.saga_id)
    elif batch.is_first(key):
        started = Started(key.saga_id, message.data, asked_at)
        batch.apply(key.saga_id, started, begins=message.definition)
        batch.settle(key, Outcome.DONE)


def _acknowledge_start(batch: Batch, start: Envelope) -> None:
    """Answer a re-sent start, the only kind that names a reply queue (rule 8)."""
    if start.reply_to is not None:
        key = Key(start.saga_id, SAGA_STARTED, FORWARD)
        issued_at = datetime.fromtimestamp(batch.now, UTC)
        envelope = Envelope.command(key, SagaStarted(), issued_at=issued_at, reply_to=None)
        batch.send(Outgoing(start.reply_to, envelope))


def _cancel(batch: Batch, envelope: Envelope, message: CancelSaga) -> None:
    """Compensate the saga, or log that it is too late.

    A saga that has not begun begins with this, so that its order ends like any other.
    """
    saga_id = envelope.saga_id
    if not batch.is_first(envelope.key):
        return
    if batch.find(saga_id) is None:
        _start(batch, Key(saga_id, START, FORWARD), message, None)
    row = batch.find(saga_id)
    if row is None:
        return  # it is archived
    if not batch.deployed.has(row.instance):
        versions.hold(batch, row, envelope)
        return
    outcome = Outcome.DONE
    try:
        batch.apply(saga_id, CompensateAsked(message.actor, message.reason))
    except IllegalTransition as late:
        outcome = Outcome.REFUSED
        detail = f"{message.actor}: {message.reason}: {late}"
        batch.note(saga_id, Entry(EntryKind.CANCEL_REFUSED, detail=detail))
    batch.settle(envelope.key, outcome)


def _take_reply(batch: Batch, envelope: Envelope, reply: ReplyArrived) -> None:
    """Decide a reply, or hold it for a process that has its saga's version deployed."""
    saga_id = envelope.saga_id
    if batch.is_archived(saga_id):  # it is no longer awaited
        logger.info("reply.archived", saga_id=saga_id, step=envelope.step)
    elif batch.deployed.has((row := batch.row(saga_id)).instance):
        batch.apply(saga_id, reply)
    else:
        versions.hold(batch, row, envelope)
