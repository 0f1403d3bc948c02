"""Publish a message that can never be handled to the dead-letter queue, with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import uuid4

from common.kit import failpoints, log, metrics
from common.kit.failpoints import Point
from common.messages.envelope import Envelope, Unreadable, pack
from common.messages.errors import BrokerGone
from common.messages.topology import dead_letter_queue
from common.transport.broker import Channel, Fate, Publication

logger = log.get("consumer")


@dataclass(frozen=True, slots=True)
class Dead:
    """The message can never be handled, and why."""

    reason: str
    detail: str


async def dead_letter(
    channel: Channel,
    queue: str,
    message: Envelope | Unreadable,
    dead: Dead,
    confirm_timeout_seconds: float,
) -> None:
    """Publish a dead letter and wait for its confirm; ack its delivery only after it (rule 14).

    Raises BrokerGone if it was not confirmed, or returned because its queue does not exist.
    """
    headers = {
        "x-sagaproof-reason": dead.reason,
        "x-sagaproof-detail": dead.detail[:1000],
        "x-sagaproof-queue": queue,
        "x-sagaproof-letter": str(uuid4()),  # so that its redelivery does not count as another
    }
    raw = message.raw if isinstance(message, Unreadable) else message.encode().encode()
    body = raw if dead.reason in ("not_json", "not_an_array") else pack([raw.decode()])
    publication = Publication(dead_letter_queue(queue), body, headers)
    keys = [message.key] if isinstance(message, Envelope) else []
    failpoints.reach(Point.DEAD_LETTER_BEFORE_PUBLISH, keys)
    (fate,) = await channel.publish(
        [publication],
        confirm_timeout_seconds,
        sent=lambda: failpoints.reach(Point.DEAD_LETTER_AFTER_PUBLISH, keys),
    )
    failpoints.reach(Point.DEAD_LETTER_AFTER_CONFIRM, keys)
    if fate is not Fate.CONFIRMED:
        raise BrokerGone(f"dead letter for {publication.queue} was {fate.value}")
    metrics.DEAD_LETTERS.labels(queue, dead.reason).inc()
    fields = message.log_fields if isinstance(message, Envelope) else {}
    logger.error(
        "envelope.dead_lettered",
        queue=queue, reason=dead.reason, detail=dead.detail[:300], **fields,
    )  # fmt: skip
