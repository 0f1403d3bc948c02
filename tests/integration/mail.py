"""Messages for integration tests, and direct access to the broker's queues.

Owns: short ways to make envelopes, sending and taking deliveries, the management API. Must not
know: which service handles what.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote
from uuid import UUID

import httpx

from common.kit.settings import Settings
from common.messages.contracts import SagaStarted, StartSaga
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
from common.messages.shop.inventory import DispatchStock, ReceiveStock, ReleaseStock, ReserveStock
from common.messages.shop.order import ConfirmOrder, PlaceOrder, RejectOrder
from common.messages.shop.payment import ChargePayment, Deposit, OpenAccount, RefundPayment
from common.messages.shop.values import Line
from common.messages.topology import Queue, dead_letter_queue
from common.transport.broker import Broker, Channel, Delivery, Fate, Publication
from orchestrator.operator.doctor import expected
from orchestrator.sagas.order import ORDER_SAGA

QUEUES = expected([ORDER_SAGA]).queues
CALLER = "caller"  # a private queue of whoever asks
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
STEPS: dict[type[Command], str] = {
    PlaceOrder: "create_order",
    RejectOrder: "create_order",
    StartSaga: "start",
    SagaStarted: "saga_started",
    ReserveStock: "reserve_stock",
    ReleaseStock: "reserve_stock",
    ChargePayment: "charge_payment",
    RefundPayment: "charge_payment",
    DispatchStock: "dispatch_stock",
    Fence: "dispatch_stock",
    ConfirmOrder: "confirm_order",
    OpenAccount: "open_account",
    Deposit: "deposit",
    ReceiveStock: "receive_stock",
}


def saga(number: int) -> UUID:
    return UUID(int=number)


def command(
    body: Command,
    saga_id: UUID,
    *,
    step: str | None = None,
    reply_to: str | None = CALLER,
    attempt: int = 1,
) -> Envelope:
    direction = Direction.COMPENSATING if isinstance(body, Undo) else Direction.FORWARD
    key = Key(saga_id, step or STEPS[type(body)], direction)
    return Envelope.command(key, body, issued_at=NOON, reply_to=reply_to, attempt=attempt)


def charge(saga_id: UUID, total: int = 10, customer: str = "ada", **more: Any) -> Envelope:
    body = ChargePayment(customer=customer, total=total, currency="EUR")
    return command(body, saga_id, **more)


def refund(saga_id: UUID, **more: Any) -> Envelope:
    return command(RefundPayment(), saga_id, **more)


def reserve(saga_id: UUID, *lines: tuple[str, int], **more: Any) -> Envelope:
    asked = tuple(Line(sku=sku, quantity=quantity) for sku, quantity in lines)
    return command(ReserveStock(lines=asked), saga_id, **more)


class Mail:
    """A broker connection of the test's own."""

    def __init__(self, broker: Broker, channel: Channel) -> None:
        self._broker = broker
        self._channel = channel

    async def send(self, queue: str, *envelopes: Envelope) -> None:
        """Send the envelopes as one delivery."""
        await self.send_raw(queue, pack(e.encode() for e in envelopes))

    async def send_raw(self, queue: str, *bodies: bytes) -> None:
        publications = [Publication(queue, body) for body in bodies]
        fates = await self._channel.publish(publications, 10)
        assert fates == [Fate.CONFIRMED] * len(bodies)

    async def ready(self, queue: str) -> int:
        return await self._channel.ready_count(queue)

    async def take(self, queue: str) -> list[Delivery]:
        """Take every delivery out of the queue."""
        count = await self.ready(queue)
        if not count:
            return []
        channel = await self._broker.channel()
        consumer = await channel.consume(queue, 1000)
        async with asyncio.timeout(10):
            deliveries = [await consumer.take() for _ in range(count)]
        channel.ack([delivery.tag for delivery in deliveries])
        channel.close()
        return deliveries

    async def envelopes(self, queue: str) -> list[Envelope]:
        """Take every delivery out of the queue and unpack it; fail on one that is unreadable."""
        return _readable(await self.take(queue))

    async def await_envelopes(self, queue: str, count: int) -> list[Envelope]:
        """Take deliveries and unpack them until there are this many envelopes."""
        found: list[Envelope] = []
        async with asyncio.timeout(15):
            while len(found) < count:
                found += await self.envelopes(queue)
        return found

    async def dead(self, queue: str, count: int = 0) -> list[tuple[str, bytes]]:
        """Take this many dead letters of the queue; return the reason and body of each."""
        found: list[Delivery] = []
        async with asyncio.timeout(15):
            found += await self.take(dead_letter_queue(queue))
            while len(found) < count:
                found += await self.take(dead_letter_queue(queue))
        return [(str(letter.headers.get("x-sagaproof-reason")), letter.body) for letter in found]


def _readable(deliveries: Sequence[Delivery]) -> list[Envelope]:
    members = [member for delivery in deliveries for member in unpack(delivery.body)]
    assert not [member for member in members if isinstance(member, Unreadable)]
    return [member for member in members if isinstance(member, Envelope)]


@asynccontextmanager
async def mail(settings: Settings, *queues: Queue) -> AsyncIterator[Mail]:
    """Connect, and declare all queues of the order saga, the caller's own, and these."""
    broker = Broker(settings)
    channel = await broker.channel()
    try:
        await channel.declare([*QUEUES, Queue(CALLER, {"x-queue-type": "classic"}), *queues])
        yield Mail(broker, channel)
    finally:
        await broker.close()


@dataclass(frozen=True)
class Management:
    """The broker's management API, for one virtual host."""

    api: httpx.Client
    vhost: str

    def connections(self) -> list[str]:
        answer = self.api.get(f"/vhosts/{self.vhost}/connections")
        answer.raise_for_status()
        return [connection["name"] for connection in answer.json()]

    def close_connections(self) -> int:
        """Close every connection by force; return how many there were."""
        names = self.connections()
        for name in names:
            answer = self.api.delete(f"/connections/{quote(name, safe='')}")
            assert answer.status_code in (204, 404)
        return len(names)

    def delete_queue(self, queue: str) -> None:
        self.api.delete(f"/queues/{self.vhost}/{queue}").raise_for_status()
