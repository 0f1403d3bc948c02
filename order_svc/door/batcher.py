"""The batcher: commands of HTTP requests that arrive together become one transaction.

Each request waits for the reply to its own command.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime

from common.kit import log
from common.kit.daemon import unless
from common.kit.health import Health
from common.messages.envelope import Direction, Envelope, Key, Reply, saga_id_for
from common.messages.errors import Infrastructure
from common.messages.shop.order import CancelOrder, OpenReturn, PlaceOrder
from common.participant.participant import Participant, Work
from order_svc.domain import CANCEL_ORDER, CREATE_ORDER, OPEN_RETURN, OrderBook, return_id_for

logger = log.get("door")

CustomerCommand = PlaceOrder | CancelOrder | OpenReturn
Waiter = tuple[Work[CustomerCommand], "asyncio.Future[Reply]"]


class Batcher:
    """A daemon that takes commands by `ask` and handles them in batches."""

    def __init__(
        self, participant: Participant[OrderBook], batch: int, health: Health, stop: asyncio.Event
    ) -> None:
        self._participant = participant
        self._batch = batch
        self._health = health
        self._stop = stop
        self._waiting: deque[Waiter] = deque()
        self._arrived = asyncio.Event()

    async def ask(self, commands: Sequence[CustomerCommand]) -> list[Reply]:
        """Return the reply to each command. Raises Infrastructure if it may or may not be done."""
        loop = asyncio.get_running_loop()
        waiters: list[Waiter] = [(_work(command), loop.create_future()) for command in commands]
        self._waiting.extend(waiters)
        self._arrived.set()
        return list(await asyncio.gather(*(future for _, future in waiters)))

    async def run(self) -> None:
        self._health.set("orders", None)
        while not self._stop.is_set():
            if not self._waiting:
                self._arrived.clear()
                await unless(self._stop, self._arrived.wait())
                continue
            count = min(self._batch, len(self._waiting))
            batch = [self._waiting.popleft() for _ in range(count)]
            await self._handle_batch(batch)

    async def _handle_batch(self, batch: Sequence[Waiter]) -> None:
        try:
            await self._answer(batch)
        except Infrastructure as error:
            for _, future in batch:
                _fail(future, error)
        except Exception:
            if len(batch) == 1:
                work = batch[0][0]
                logger.exception(
                    "order.failed",
                    saga_id=work.saga_id, step=work.step, message_id=work.envelope.message_id,
                )  # fmt: skip
                _fail(batch[0][1], RuntimeError("this order could not be handled"))
                return
            logger.warning("batch.retried_one_by_one", orders=len(batch), exc_info=True)
            for waiter in batch:
                await self._handle_batch([waiter])

    async def _answer(self, batch: Sequence[Waiter]) -> None:
        replies = await self._participant.answer([work for work, _ in batch])
        for (_, future), reply in zip(batch, replies, strict=True):
            if reply is None:  # a defect, which must not leave a request waiting for ever
                _fail(future, RuntimeError("this order was handled without an answer"))
            elif not future.done():
                future.set_result(reply)


def _fail(future: asyncio.Future[Reply], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _work(command: CustomerCommand) -> Work[CustomerCommand]:
    """Wrap a command as if it had come by `order.commands`, but with no queue for its reply."""
    match command:
        case PlaceOrder(customer=customer, idempotency_key=idempotency_key):
            saga_id, step = saga_id_for(customer, idempotency_key), CREATE_ORDER
        case CancelOrder(order_id=order_id):
            saga_id, step = order_id, CANCEL_ORDER
        case OpenReturn(order_id=order_id, idempotency_key=idempotency_key):
            saga_id, step = return_id_for(order_id, idempotency_key), OPEN_RETURN
    key = Key(saga_id, step, Direction.FORWARD)
    return Work(Envelope.command(key, command, issued_at=datetime.now(UTC), reply_to=None), command)
