"""The consuming loop of every service and of the orchestrator.

Owns: taking a batch, holding it while a server is down, telling a bad message from a bad
deploy, dead-lettering with a reason, acking (section 6, rules 13 to 15). Must not know:
what handling means; a `Handle` does it in one transaction, for the whole batch or not at all.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from uuid import uuid4

from common import failpoints, log, metrics
from common.broker import Broker, Channel, Consumer, Delivery, Fate, Publication
from common.daemon import Backoff, unless
from common.db import Database
from common.envelope import Envelope, Key, Unreadable, pack, unpack
from common.errors import BadDeploy, BrokerGone, Infrastructure, Poison
from common.failpoints import Point
from common.health import Health
from common.settings import Settings
from common.topology import EVENTS, Queue, dead_letter_queue, work_queue

logger = log.get("consumer")

T = TypeVar("T")
R = TypeVar("R")
BAD_DEPLOY_WINDOW_SECONDS = 60.0
LOOK_AGAIN_SECONDS = 1.0  # at a queue that was not seen empty yet


@dataclass(frozen=True)
class Readable(Generic[T]):
    """One envelope and what the service made of it."""

    envelope: Envelope
    item: T


class BatchConsumer(Generic[T]):
    """Consumes one queue. `parse` types an envelope or raises Poison; `handle` acts on a batch;
    `room`, if given, returns when another batch may be taken. `others` are declared along with
    it: those that handling sends to, so that it need not wait for who consumes them; `events` are
    the types of event that are to reach the queue."""

    def __init__(
        self,
        queue: str,
        parse: Callable[[Envelope], T],
        handle: Callable[[Sequence[T]], Awaitable[None]],
        *,
        room: Callable[[], Coroutine[Any, Any, None]] | None = None,
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
        self._handle = handle
        self._room = room
        self._others = others
        self._events = events
        self._db = db
        self._broker = broker
        self._settings = settings
        self._health = health
        self._stop = stop
        self._handled = metrics.ENVELOPES.labels(queue)
        self._batch_seconds = metrics.BATCH_SECONDS.labels(queue)
        self._suspects: dict[
            str, dict[Key, float]
        ] = {}  # error signature: messages it struck, when
        self.drained = False  # the queue was seen empty since we last connected (section 6, rule 6)

    async def run(self) -> None:
        channel = await self._broker.channel()
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await channel.declare([*work_queue(self._queue), *self._others])
            if self._events:
                await channel.bind(self._queue, EVENTS, self._events)
            consumer = await channel.consume(self._queue, self._settings.prefetch_deliveries)
            stopping.add_done_callback(lambda _: consumer.interrupt())
            self._health.set(self._queue, None)
            while not self._stop.is_set():
                await self._next_batch(consumer)
        finally:
            self.drained = False
            stopping.cancel()
            channel.close()

    async def _next_batch(self, consumer: Consumer) -> None:
        if consumer.idle and not self.drained:
            self.drained = await consumer.channel.ready_count(self._queue) == 0 and consumer.idle
        if self._room is not None:
            await unless(self._stop, self._room())
        if consumer.idle:
            # A replica may have emptied what was not empty when we came: then nothing arrives here.
            with suppress(TimeoutError):
                async with asyncio.timeout(None if self.drained else LOOK_AGAIN_SECONDS):
                    await consumer.arrival()
        first = consumer.take_waiting()
        if first is not None:
            await self.process(consumer.channel, self._fill(consumer, first))

    def _fill(
        self, consumer: Consumer, first: Delivery
    ) -> list[tuple[Delivery, Sequence[Envelope | Unreadable]]]:
        members = unpack(first.body)
        batch, size = [(first, members)], len(members)
        while (
            size < self._settings.batch_envelopes
            and (delivery := consumer.take_waiting()) is not None
        ):
            members = unpack(delivery.body)
            batch.append((delivery, members))
            size += len(members)
        return batch

    async def process(
        self, channel: Channel, batch: Sequence[tuple[Delivery, Sequence[Envelope | Unreadable]]]
    ) -> None:
        """Handle or dead-letter every member, then ack. Raises BrokerGone, BadDeploy."""
        began = time.monotonic()
        together: list[Readable[T]] = []
        alone: list[Readable[T]] = []
        for delivery, members in batch:
            for member in members:
                readable = await self._read(channel, member)
                if readable is not None:
                    (alone if _suspicious(delivery) else together).append(readable)
        if together:
            await self._together(channel, together)
        for readable in alone:
            await self._alone(channel, readable)
        failpoints.reach(Point.BATCH_BEFORE_ACK, _keys(batch))
        channel.ack([delivery.tag for delivery, _ in batch])
        failpoints.reach(Point.BATCH_AFTER_ACK, _keys(batch))
        self._handled.inc(sum(len(members) for _, members in batch))
        self._batch_seconds.observe(time.monotonic() - began)

    async def _read(self, channel: Channel, member: Envelope | Unreadable) -> Readable[T] | None:
        if isinstance(member, Unreadable):
            await self._dead_letter(channel, member.raw, member.reason, member.detail)
            return None
        try:
            return Readable(member, self._parse(member))
        except Poison as poison:
            await self._dead_letter(channel, _raw(member), poison.reason, str(poison))
            return None

    async def _together(self, channel: Channel, batch: Sequence[Readable[T]]) -> None:
        """The whole batch at once; if it raises, one by one, so that neighbours are spared."""
        try:
            await self._held(channel, batch)
        except Infrastructure:
            raise
        except Exception:  # whatever it is, it is looked at one by one
            logger.warning(
                "batch.retried_one_by_one", queue=self._queue, envelopes=len(batch), exc_info=True
            )
            failed = []
            for readable in batch:
                try:
                    await self._held(channel, [readable])
                except Infrastructure:
                    raise
                except Poison as poison:
                    await self._dead_letter(
                        channel, _raw(readable.envelope), poison.reason, str(poison)
                    )
                except Exception as error:  # noqa: BLE001 - counted, and looked at alone below
                    self._suspect(readable.envelope.key, error)
                    failed.append(readable)
            for readable in failed:
                await self._alone(channel, readable)

    async def _held(self, channel: Channel, batch: Sequence[Readable[T]]) -> None:
        """Handle; while a server is down, hold the batch."""
        await self._hold(channel, batch, lambda: self._handle([each.item for each in batch]))

    async def _hold(
        self, channel: Channel, batch: Sequence[Readable[T]], act: Callable[[], Awaitable[R]]
    ) -> R:
        """Act for the batch; while a server is down, keep it: it is not the messages' fault."""
        backoff = Backoff(self._settings, self._stop)
        only = _about(batch[0].envelope) if len(batch) == 1 else {}
        while True:
            channel.check()
            try:
                with log.about(queue=self._queue, envelopes=len(batch), **only):
                    done = await act()
            except Infrastructure as error:
                logger.warning(
                    "batch.held", queue=self._queue, envelopes=len(batch), error=str(error), **only
                )
                self._health.set(self._queue, str(error))
                metrics.HELD.labels(self._queue).inc()
                if self._stop.is_set():
                    raise
                await backoff.pause()
            else:
                self._health.set(self._queue, None)
                return done

    async def _alone(self, channel: Channel, readable: Readable[T]) -> None:
        """Each try is counted and committed first, so that what kills us gives itself away."""
        backoff = Backoff(self._settings, self._stop)
        while True:
            tries = await self._hold(
                channel, [readable], lambda: self._count_try(readable.envelope)
            )
            if tries > self._settings.solo_tries:
                await self._dead_letter(
                    channel,
                    _raw(readable.envelope),
                    "exhausted",
                    f"{self._settings.solo_tries} tries alone",
                )
                break
            try:
                await self._held(channel, [readable])
                break
            except Infrastructure:
                raise
            except Poison as poison:
                await self._dead_letter(
                    channel, _raw(readable.envelope), poison.reason, str(poison)
                )
                break
            except Exception as error:
                logger.warning(
                    "envelope.failed", queue=self._queue, **_about(readable.envelope), exc_info=True
                )
                self._suspect(readable.envelope.key, error)
                await backoff.pause()
        await self._hold(channel, [readable], lambda: self._forget_tries(readable.envelope))

    def _suspect(self, key: Key, error: Exception) -> None:
        """Raises BadDeploy once the same error struck several different messages."""
        frame = traceback.extract_tb(error.__traceback__)[-1]
        signature = f"{type(error).__name__} at {frame.name}:{frame.lineno}"
        now = asyncio.get_running_loop().time()
        struck = {
            k: t
            for k, t in self._suspects.get(signature, {}).items()
            if now - t < BAD_DEPLOY_WINDOW_SECONDS
        }
        struck[key] = now
        self._suspects[signature] = struck
        if len(struck) >= self._settings.bad_deploy_messages:
            raise BadDeploy(f"{signature}: {error}") from error

    async def _count_try(self, envelope: Envelope) -> int:
        async with self._db.transaction() as tx:
            rows = await tx.fetch(
                "insert into solo_tries as t (saga_id, step, direction, reply, tries)"
                " values (%s, %s, %s, %s, 1) on conflict (saga_id, step, direction, reply)"
                " do update set tries = t.tries + 1 returning tries",
                (*envelope.key, envelope.outcome is not None),
            )
            failpoints.reach(Point.TRIES_BEFORE_COMMIT, [envelope.key])
        failpoints.reach(Point.TRIES_AFTER_COMMIT, [envelope.key])
        return int(rows[0][0])

    async def _forget_tries(self, envelope: Envelope) -> None:
        async with self._db.transaction() as tx:
            await tx.execute(
                "delete from solo_tries where (saga_id, step, direction, reply) = (%s, %s, %s, %s)",
                (*envelope.key, envelope.outcome is not None),
            )
            failpoints.reach(Point.TRIES_DONE_BEFORE_COMMIT, [envelope.key])
        failpoints.reach(Point.TRIES_DONE_AFTER_COMMIT, [envelope.key])

    async def _dead_letter(self, channel: Channel, raw: bytes, reason: str, detail: str) -> None:
        """Published with its reason, confirmed and not returned; the ack comes after (rule 14)."""
        headers = {
            "x-sagaproof-reason": reason,
            "x-sagaproof-detail": detail[:1000],
            "x-sagaproof-queue": self._queue,
            "x-sagaproof-letter": str(uuid4()),  # so that its redelivery does not count as another
        }
        body = raw if reason in ("not_json", "not_an_array") else pack([raw.decode()])
        publication = Publication(dead_letter_queue(self._queue), body, headers)
        members = unpack(body)
        keys = [m.key for m in members if isinstance(m, Envelope)]
        failpoints.reach(Point.DEAD_LETTER_BEFORE_PUBLISH, keys)
        (fate,) = await channel.publish(
            [publication],
            self._settings.confirm_timeout_seconds,
            sent=lambda: failpoints.reach(Point.DEAD_LETTER_AFTER_PUBLISH, keys),
        )
        failpoints.reach(Point.DEAD_LETTER_AFTER_CONFIRM, keys)
        if fate is not Fate.CONFIRMED:
            raise BrokerGone(f"dead letter for {publication.queue} was {fate.value}")
        metrics.DEAD_LETTERS.labels(self._queue, reason).inc()
        about = _about(members[0]) if isinstance(members[0], Envelope) else {}
        logger.error(
            "envelope.dead_lettered",
            queue=self._queue, reason=reason, detail=detail[:300], **about,
        )  # fmt: skip


def _keys(batch: Sequence[tuple[Delivery, Sequence[Envelope | Unreadable]]]) -> Iterator[Key]:
    return (m.key for _, members in batch for m in members if isinstance(m, Envelope))


def _suspicious(delivery: Delivery) -> bool:
    """Whether its envelopes run alone: it went back more than once, or we cannot tell how often.

    Once is what any restart does to innocents; twice may be its own doing (ADR 5).
    """
    return delivery.redelivered and (delivery.returns is None or int(delivery.returns) >= 2)


def _raw(envelope: Envelope) -> bytes:
    return envelope.encode().encode()


def _about(envelope: Envelope) -> dict[str, str]:
    return {
        "saga_id": str(envelope.saga_id),
        "step": envelope.step,
        "direction": envelope.direction.value,
        "message_id": str(envelope.message_id),
    }
