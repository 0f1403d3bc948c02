"""Direct access to the broker's queues, to repeat, reorder, delay or lose messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from uuid import UUID

import pika
from pika.adapters.blocking_connection import BlockingChannel

from chaos.runtime import Style
from common.messages.envelope import (
    Command,
    Direction,
    Envelope,
    Fence,
    Key,
    Undo,
    Unreadable,
    pack,
    unpack,
)
from common.messages.topology import ORCHESTRATOR_REPLIES, commands_of, events_of


def command(
    saga_id: UUID, step: str, body: Command, *, reply_to: str | None = None, attempt: int = 1
) -> Envelope:
    direction = Direction.COMPENSATING if isinstance(body, Undo) else Direction.FORWARD
    key = Key(saga_id, step, direction)
    now = datetime.now(UTC)
    return Envelope.command(key, body, issued_at=now, reply_to=reply_to, attempt=attempt)


def nonsense(key: Key) -> Envelope:
    """Return a valid envelope of an unknown type."""
    return Envelope.command(key, Fence(), issued_at=datetime.now(UTC), reply_to=None).model_copy(
        update={"type": "Nonsense"}
    )


class Broker:
    """A stack's RabbitMQ; each call opens a connection of its own."""

    def __init__(self, amqp_url: str, style: Style = "orchestrated") -> None:
        self._amqp_url = amqp_url
        self._style = style

    def inputs(self, service: str) -> list[str]:
        """Return the queues by which sagas reach a service."""
        if self._style == "choreographed":
            return [events_of(service)]
        replies = [ORCHESTRATOR_REPLIES] if service == "orchestrator" else []
        return [commands_of(service), *replies]

    def send(self, queue: str, envelopes: Iterable[Envelope]) -> None:
        """Send each envelope as a delivery of its own, in this order."""
        self.send_raw(queue, *(pack([envelope.encode()]) for envelope in envelopes))

    def send_raw(self, queue: str, *bodies: bytes) -> None:
        properties = pika.BasicProperties(content_type="application/json", delivery_mode=2)
        with self._channel() as channel:
            channel.confirm_delivery()
            for body in bodies:
                channel.basic_publish("", queue, body, properties, mandatory=True)

    def take(self, queue: str) -> list[Envelope]:
        """Remove and return all messages that are ready. Raises ValueError for a foreign one."""
        taken: list[Envelope] = []
        with self._channel() as channel:
            while (got := channel.basic_get(queue, auto_ack=True))[0] is not None:
                members = unpack(got[2])
                if any(isinstance(member, Unreadable) for member in members):
                    raise ValueError(f"{queue} holds what is no envelope: {got[2][:200]!r}")
                taken.extend(member for member in members if isinstance(member, Envelope))
        return taken

    @contextmanager
    def _channel(self) -> Iterator[BlockingChannel]:
        with pika.BlockingConnection(pika.URLParameters(self._amqp_url)) as connection:
            yield connection.channel()
