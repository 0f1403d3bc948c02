"""The consuming loop of every service and of the orchestrator.

It takes a batch of deliveries, has `Retry` give each message an outcome, dead-letters those that
can never be handled, and acks (rules 13 to 15). The service's `handle` processes a batch in one
transaction, whole or not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from common.kit import failpoints, metrics
from common.kit.daemon import Backoff, unless
from common.kit.failpoints import Point
from common.kit.health import Health
from common.kit.settings import Settings
from common.messages.envelope import Envelope, Key, Unreadable, unpack
from common.messages.errors import BadDeploy, Poison
from common.messages.topology import EVENTS, Queue, work_queue
from common.storage.db import Database
from common.transport.bad_deploy import BadDeployDetector
from common.transport.broker import Broker, Channel, Consumer, Delivery
from common.transport.dead_letter import Dead, dead_letter
from common.transport.retry import EXHAUSTED, Failed, Member, Retry

T = TypeVar("T")
LOOK_AGAIN_SECONDS = 1.0  # at a queue that was not seen empty yet


class Opened(NamedTuple):
    """A delivery and the messages packed in it."""

    delivery: Delivery
    members: list[Member[Any]]

    @property
    def finished(self) -> bool:
        """Return whether no message in it failed; only then it is acked."""
        return not any(isinstance(member.outcome, Failed) for member in self.members)


@dataclass(frozen=True)
class Unfinished:
    """The messages of a batch that still fail: the code looks broken, or a shutdown came."""

    members: list[Member[Any]]
    bad_deploy: str | None  # its error; None at shutdown
    began: float


class BatchConsumer(Generic[T]):
    """Consumes one queue.

    `parse` types an envelope or raises Poison. `handle` processes a batch and returns whether any
    handler ran; only such successes count in bad-deploy detection. `wait_for_capacity`, if given,
    returns when another batch may be taken. `others` are queues that handling sends to: they are
    declared here, so that nothing waits for their consumers. `events` are the types of event bound
    to the queue.
    """

    def __init__(
        self,
        queue: str,
        parse: Callable[[Envelope], T],
        handle: Callable[[Sequence[T]], Awaitable[bool]],
        *,
        wait_for_capacity: Callable[[], Coroutine[Any, Any, None]] | None = None,
        others: Sequence[Queue] = (),
        events: Sequence[str] = (),
        db: Database,
        broker: Broker,
        settings: Settings,
        health: Health,
        stop: asyncio.Event,
    ) -> None:
        self._queue = queue
        self._parse = parse
        self._capacity = wait_for_capacity
        self._others = others
        self._events = events
        self._broker = broker
        self._settings = settings
        self._stop = stop
        self._handled = metrics.ENVELOPES.labels(queue)
        self._batch_seconds = metrics.BATCH_SECONDS.labels(queue)
        self._detector = BadDeployDetector(settings.bad_deploy_messages)
        self._retry = Retry(
            queue, handle, self._detector, db=db, settings=settings, health=health, stop=stop
        )
        self.drained = False  # the queue was seen empty since the last connection (rule 6)

    async def run(self) -> None:
        channel = await self._broker.channel()
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await channel.declare([*work_queue(self._queue), *self._others])
            if self._events:
                await channel.bind(self._queue, EVENTS, self._events)
            consumer = await channel.consume(self._queue, self._settings.prefetch_deliveries)
            stopping.add_done_callback(lambda _: consumer.interrupt())
            self._retry.report_health()
            while not self._stop.is_set():
                await self._wait_for_arrival(consumer)
                batch = self._take_batch(consumer)
                if batch and (unfinished := await self.process(channel, batch)):
                    await self._stop_consuming(consumer, unfinished)
        finally:
            self.drained = False
            stopping.cancel()
            channel.close()  # returns what was not acked to the queue

    async def _wait_for_arrival(self, consumer: Consumer) -> None:
        if consumer.idle and not self.drained:
            self.drained = await consumer.channel.ready_count(self._queue) == 0 and consumer.idle
        await self._wait_for_capacity()
        if consumer.idle:
            # Another replica may have emptied a queue that was not empty: then nothing arrives.
            with suppress(TimeoutError):
                async with asyncio.timeout(None if self.drained else LOOK_AGAIN_SECONDS):
                    await consumer.arrival()

    async def _wait_for_capacity(self) -> None:
        if self._capacity is not None:
            await unless(self._stop, self._capacity())

    def _take_batch(self, consumer: Consumer) -> list[Opened]:
        """Take what has arrived, up to about `batch_envelopes` messages."""
        batch: list[Opened] = []
        size = 0
        while size < self._settings.batch_envelopes and (delivery := consumer.take_waiting()):
            alone = _runs_alone(delivery)
            opened = Opened(delivery, [self._open(m, alone) for m in unpack(delivery.body)])
            batch.append(opened)
            size += len(opened.members)
        return batch

    def _open(self, message: Envelope | Unreadable, alone: bool) -> Member[T]:
        if isinstance(message, Unreadable):
            return Member(message, outcome=Dead(message.reason, message.detail))
        try:
            return Member(message, self._parse(message), alone)
        except Poison as poison:
            return Member(message, outcome=Dead(poison.reason, str(poison)))

    async def process(self, channel: Channel, batch: Sequence[Opened]) -> Unfinished | None:
        """Handle or dead-letter each message, then ack; return what still fails. Raises BrokerGone.

        Try every message once before retrying any: the same error on several
        (`bad_deploy_messages`) shows a bad deploy.
        """
        began = _now()
        members = [m for opened in batch for m in opened.members if m.outcome is None]
        await self._retry.handle_batch(channel, members)
        backoff = Backoff.of_retries(self._settings, self._stop)
        bad_deploy: str | None = None
        while failed := [member for member in members if isinstance(member.outcome, Failed)]:
            bad_deploy = self._detector.verdict(_now())
            if bad_deploy or not await backoff.pause():
                break
            await self._retry.handle_individually(channel, failed)
        finished = [opened for opened in batch if opened.finished]
        await self._dead_letter(channel, finished)
        failpoints.reach(Point.BATCH_BEFORE_ACK, _keys(batch))
        channel.ack([opened.delivery.tag for opened in finished])
        failpoints.reach(Point.BATCH_AFTER_ACK, _keys(batch))
        self._handled.inc(sum(len(opened.members) for opened in finished))
        self._batch_seconds.observe(_now() - began)
        self._retry.report_health()
        return Unfinished(failed, bad_deploy, began) if failed else None

    async def _dead_letter(self, channel: Channel, finished: Sequence[Opened]) -> None:
        """Publish the dead letters of deliveries about to be acked.

        A delivery that is returned to the queue is retried whole, so dead-lettering part of it
        now would duplicate the dead letter.
        """
        for member in (member for opened in finished for member in opened.members):
            if isinstance(member.outcome, Dead):
                timeout = self._settings.confirm_timeout_seconds
                await dead_letter(channel, self._queue, member.message, member.outcome, timeout)
                if member.outcome.reason == EXHAUSTED:
                    await self._retry.forget_tries(channel, member)

    async def _stop_consuming(self, consumer: Consumer, unfinished: Unfinished) -> None:
        """Process what else has arrived, since it may succeed; then raise BadDeploy, if it is one.

        It ends after as many failures as a batch has messages, or at shutdown. If no handler
        succeeded meanwhile, the code is broken and the tries of its messages are not counted.
        """
        failed = unfinished.members
        while len(failed) < self._settings.batch_envelopes and not self._stop.is_set():
            await self._wait_for_capacity()
            if not (batch := self._take_batch(consumer)):
                break
            if more := await self.process(consumer.channel, batch):
                failed += more.members  # the first error found is the one raised
        some_handled = self._detector.last_success >= unfinished.began
        if not some_handled:
            for member in failed:
                await self._retry.forget_tries(consumer.channel, member)
        if unfinished.bad_deploy is not None:
            raise BadDeploy(unfinished.bad_deploy, some_handled=some_handled)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _keys(batch: Iterable[Opened]) -> Iterator[Key]:
    return (m.message.key for o in batch for m in o.members if isinstance(m.message, Envelope))


def _runs_alone(delivery: Delivery) -> bool:
    """Return whether its messages run alone: it was returned more than once, or maybe so.

    Any restart returns innocent messages once; twice may be their own doing (ADR 5).
    """
    return delivery.redelivered and (delivery.returns is None or int(delivery.returns) >= 2)
