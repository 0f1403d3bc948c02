"""The consuming loop of every service and of the orchestrator.

Owns: taking a batch, holding it while a server is down, telling a bad message from a bad
deploy, dead-lettering with a reason, acking (section 6, rules 13 to 15). Must not know:
what handling means; a `Handle` does it in one transaction, for the whole batch or not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar
from uuid import uuid4

from common.kit import failpoints, log, metrics
from common.kit.daemon import Backoff, unless
from common.kit.failpoints import Commit, Point
from common.kit.health import Health
from common.kit.settings import Settings
from common.messages.envelope import Envelope, Key, Unreadable, pack, unpack
from common.messages.errors import BadDeploy, BrokerGone, Infrastructure, Poison
from common.messages.topology import EVENTS, Queue, dead_letter_queue, work_queue
from common.storage.db import Database
from common.transport.bad_deploy import Suspicion
from common.transport.broker import Broker, Channel, Consumer, Delivery, Fate, Publication

logger = log.get("consumer")

T = TypeVar("T")
R = TypeVar("R")
Opened = tuple[Delivery, Sequence[Envelope | Unreadable]]  # and what is packed in it
Aside = dict[bytes, tuple[str, str]]  # what is to be dead-lettered: its reason and detail
EXHAUSTED = "exhausted"
LOOK_AGAIN_SECONDS = 1.0  # at a queue that was not seen empty yet


@dataclass(frozen=True)
class Left:
    """What a batch leaves unacked: it fails by this code's fault, or, without a verdict, we were
    told to stop amid its tries."""

    verdict: str | None
    envelopes: list[Envelope]
    since: float  # when the batch was begun


@dataclass(frozen=True)
class Readable(Generic[T]):
    """One envelope and what the service made of it."""

    envelope: Envelope
    item: T


class BatchConsumer(Generic[T]):
    """Consumes one queue. `parse` types an envelope or raises Poison; `handle` acts on a batch, and
    says whether the code ran that is its service's own: what went well without says nothing for
    it. `room`, if given, returns when another batch may be taken. `others` are declared along with
    it: those that handling sends to, so that it need not wait for who consumes them; `events` are
    the types of event that are to reach the queue."""

    def __init__(
        self,
        queue: str,
        parse: Callable[[Envelope], T],
        handle: Callable[[Sequence[T]], Awaitable[bool]],
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
        self._suspicion = Suspicion(settings.bad_deploy_messages)
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
            self._tell_health()
            while not self._stop.is_set():
                await self._next_batch(consumer)
        finally:
            self.drained = False
            stopping.cancel()
            channel.close()

    async def _next_batch(self, consumer: Consumer) -> None:
        if consumer.idle and not self.drained:
            self.drained = await consumer.channel.ready_count(self._queue) == 0 and consumer.idle
        await self._have_room()
        if consumer.idle:
            # A replica may have emptied what was not empty when we came: then nothing arrives here.
            with suppress(TimeoutError):
                async with asyncio.timeout(None if self.drained else LOOK_AGAIN_SECONDS):
                    await consumer.arrival()
        first = consumer.take_waiting()
        if first is not None:
            left = await self.process(consumer.channel, self._fill(consumer, first))
            if left is not None:
                await self._leave(consumer, left)

    async def _have_room(self) -> None:
        if self._room is not None:
            await unless(self._stop, self._room())

    def _fill(self, consumer: Consumer, first: Delivery) -> list[Opened]:
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

    async def process(self, channel: Channel, batch: Sequence[Opened]) -> Left | None:
        """Handle or dead-letter every member, then ack, but for what is left. Raises BrokerGone."""
        began = _now()
        aside: Aside = {}
        failed, verdict = await self._try(channel, batch, aside)
        left = {readable.envelope.key for readable in failed}
        settled = [each for each in batch if left.isdisjoint(_keys([each]))]
        await self._set_aside(channel, settled, aside)
        failpoints.reach(Point.BATCH_BEFORE_ACK, _keys(batch))
        channel.ack([delivery.tag for delivery, _ in settled])
        failpoints.reach(Point.BATCH_AFTER_ACK, _keys(batch))
        self._handled.inc(sum(len(members) for _, members in settled))
        self._batch_seconds.observe(_now() - began)
        self._tell_health()
        return Left(verdict, [each.envelope for each in failed], began) if failed else None

    async def _try(
        self,
        channel: Channel,
        batch: Sequence[Opened],
        aside: Aside,
    ) -> tuple[list[Readable[T]], str | None]:
        """Those that fail in the end, and the verdict on this code. Nobody is tried again before
        all others were: three that fail say more than one does."""
        together: list[Readable[T]] = []
        alone: list[Readable[T]] = []
        for delivery, members in batch:
            for member in members:
                readable = self._read(member, aside)
                if readable is not None:
                    (alone if _suspicious(delivery) else together).append(readable)
        failed = await self._together(channel, together, aside) if together else []
        failed += await self._each_alone(channel, alone, aside)
        backoff, verdict = Backoff.of_retries(self._settings, self._stop), self._bad_deploy()
        while failed and verdict is None and await backoff.pause():
            failed = await self._each_alone(channel, failed, aside)
            verdict = self._bad_deploy()
        return failed, verdict

    def _read(self, member: Envelope | Unreadable, aside: Aside) -> Readable[T] | None:
        if isinstance(member, Unreadable):
            aside[member.raw] = member.reason, member.detail
            return None
        try:
            return Readable(member, self._parse(member))
        except Poison as poison:
            aside[_raw(member)] = poison.reason, str(poison)
            return None

    async def _together(
        self, channel: Channel, batch: Sequence[Readable[T]], aside: Aside
    ) -> list[Readable[T]]:
        """The whole batch at once; if it raises, one by one, so that neighbours are spared. Those
        that fail."""
        try:
            await self._held(channel, batch)
        except Infrastructure:
            raise
        except Exception:  # whatever it is, it is looked at one by one
            logger.warning(
                "batch.retried_one_by_one", queue=self._queue, envelopes=len(batch), exc_info=True
            )
            return [each for each in batch if not await self._settled(channel, each, aside)]
        return []

    async def _settled(self, channel: Channel, readable: Readable[T], aside: Aside) -> bool:
        """Handled, or to be set aside as poison; False if it failed for a reason nobody foresaw."""
        try:
            await self._held(channel, [readable])
        except Infrastructure:
            raise
        except Poison as poison:
            aside[_raw(readable.envelope)] = poison.reason, str(poison)
        except Exception as error:
            logger.warning(
                "envelope.failed", queue=self._queue, **_about(readable.envelope), exc_info=True
            )
            self._suspicion.struck(readable.envelope.key, error, _now())
            return False
        return True

    async def _held(self, channel: Channel, batch: Sequence[Readable[T]]) -> None:
        """Handle; while a server is down, hold the batch."""
        envelopes = [each.envelope for each in batch]
        items = [each.item for each in batch]
        acted = await self._hold(channel, envelopes, lambda: self._handle(items))
        self._suspicion.went_well([envelope.key for envelope in envelopes], _now(), acted=acted)

    async def _hold(
        self, channel: Channel, batch: Sequence[Envelope], act: Callable[[], Awaitable[R]]
    ) -> R:
        """Act for the batch; while a server is down, keep it: it is not the messages' fault."""
        backoff = Backoff.of_retries(self._settings, self._stop)
        only = _about(batch[0]) if len(batch) == 1 else {}
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
                self._tell_health()
                return done

    async def _each_alone(
        self, channel: Channel, readables: Sequence[Readable[T]], aside: Aside
    ) -> list[Readable[T]]:
        """One try for each, counted and committed first, so that what kills us gives itself away.
        Those that fail, and may be tried again."""
        failed = []
        for readable in readables:
            envelope = readable.envelope
            tries = await self._hold(channel, [envelope], partial(self._count_try, envelope))
            if tries > self._settings.solo_tries:
                aside[_raw(envelope)] = EXHAUSTED, f"{self._settings.solo_tries} tries alone"
            elif await self._settled(channel, readable, aside):
                await self._hold(channel, [envelope], partial(self._forget_tries, envelope))
            else:
                failed.append(readable)
        return failed

    async def _set_aside(
        self,
        channel: Channel,
        batch: Sequence[Opened],
        aside: Aside,
    ) -> None:
        """Dead-letter what is to be, of deliveries that are acked now. Of one that goes back
        nothing is: it would be set aside again with every look, and counted, and tried anew."""
        for member in (member for _, members in batch if aside for member in members):
            raw = _raw(member) if isinstance(member, Envelope) else member.raw
            if raw in aside:
                reason, detail = aside[raw]
                await self._dead_letter(channel, raw, reason, detail)
                if isinstance(member, Envelope) and reason == EXHAUSTED:
                    await self._hold(channel, [member], partial(self._forget_tries, member))

    async def _leave(self, consumer: Consumer, left: Left) -> None:
        """Try what else has arrived, up to a batch of failures, then give them all back. Where
        nothing went well beside them, nothing is held against them. Raises BadDeploy if that is
        the verdict."""
        failed = left.envelopes
        while len(failed) < self._settings.batch_envelopes and not self._stop.is_set():
            await self._have_room()
            if (first := consumer.take_waiting()) is None:
                break
            more = await self.process(consumer.channel, self._fill(consumer, first))
            failed += more.envelopes if more is not None else []
        some_handled = self._suspicion.last_went_well >= left.since
        if not some_handled:
            for envelope in failed:
                forget = partial(self._forget_tries, envelope)
                await self._hold(consumer.channel, [envelope], forget)
        if left.verdict is not None:
            raise BadDeploy(left.verdict, some_handled=some_handled)

    def _tell_health(self) -> None:
        verdict = self._bad_deploy()
        self._health.set(self._queue, verdict and f"bad deploy: {verdict}")

    def _bad_deploy(self) -> str | None:
        return self._suspicion.bad_deploy(_now())

    async def _count_try(self, envelope: Envelope) -> int:
        async with self._db.transaction(Commit.TRIES) as tx:
            tx.keys = [envelope.key]
            rows = await tx.fetch(
                "insert into solo_tries as t (saga_id, step, direction, reply, tries)"
                " values (%s, %s, %s, %s, 1) on conflict (saga_id, step, direction, reply)"
                " do update set tries = t.tries + 1 returning tries",
                (*envelope.key, envelope.outcome is not None),
            )
        return int(rows[0][0])

    async def _forget_tries(self, envelope: Envelope) -> None:
        async with self._db.transaction(Commit.TRIES_DONE) as tx:
            tx.keys = [envelope.key]
            tx.queue_write(
                "delete from solo_tries where (saga_id, step, direction, reply) = (%s, %s, %s, %s)",
                (*envelope.key, envelope.outcome is not None),
            )

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


def _now() -> float:
    return asyncio.get_running_loop().time()


def _keys(batch: Sequence[Opened]) -> Iterator[Key]:
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
