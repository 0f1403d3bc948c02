"""Dead letters where nobody takes them in: in the choreographed style they lie where they fell.

Owns: looking at them, so that the judge sees them in either style. Must not know: why they died.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pika
from pika.adapters.blocking_connection import BlockingChannel

from chaos.judge.evidence import DeadLetter, Snapshot
from chaos.judge.quiescence import RabbitmqCtl, count_queues
from chaos.judge.snapshot import take_snapshot
from common.messages.envelope import Unreadable, unpack
from common.messages.topology import is_dead_letter_queue


def whole_snapshot(
    dsn: str, amqp_url: str, rabbitmqctl: RabbitmqCtl, style: str = "orchestrated"
) -> Snapshot:
    """Everything the invariants look at, wherever it lies in this style."""
    snapshot = take_snapshot(dsn, style)
    if style == "orchestrated":
        return snapshot
    return replace(snapshot, dead_letters=_read(amqp_url, rabbitmqctl))


def _read(amqp_url: str, rabbitmqctl: RabbitmqCtl) -> tuple[DeadLetter, ...]:
    """Nothing is taken: unacked, it all goes back."""
    queues = sorted(filter(is_dead_letter_queue, count_queues(rabbitmqctl)))
    with pika.BlockingConnection(pika.URLParameters(amqp_url)) as connection:
        channel = connection.channel()
        return tuple(letter for queue in queues for letter in _letters(channel, queue))


def _letters(channel: BlockingChannel, queue: str) -> Iterable[DeadLetter]:
    while True:
        method, properties, body = channel.basic_get(queue)
        if method is None:
            return
        reason = str((properties.headers or {}).get("x-sagaproof-reason", "?"))
        yield DeadLetter(queue, reason, _about(body))


def _about(body: bytes) -> str:
    member = next(iter(unpack(body)), None)
    if member is None or isinstance(member, Unreadable):
        return repr(body[:80])
    return f"{member.type} of saga {member.saga_id}"
