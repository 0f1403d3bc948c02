"""Queries over the broker: a deadline and a private reply queue; no inbox, no outbox, no effect."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from uuid import uuid4

from pydantic import BaseModel

from common.kit import log
from common.kit.daemon import Backoff, unless
from common.kit.health import Health
from common.kit.settings import Settings
from common.messages.envelope import Answer, Message, Query, typed
from common.messages.errors import BrokerGone, Infrastructure, NoAnswer, Poison
from common.messages.topology import Exchange, query_queue
from common.transport.broker import REPLY_TO, Broker, Channel, Consumer, Fate, Publication

logger = log.get("query")

Respond = Callable[[Any], Awaitable[Answer]]


class _Body(BaseModel):
    """A query or an answer on the wire."""

    type: str
    version: int = 1
    body: dict[str, Any]

    @classmethod
    def of(cls, message: Message) -> bytes:
        wire = cls(
            type=type(message).__name__,
            version=message.version,
            body=message.model_dump(mode="json"),
        )
        return wire.model_dump_json().encode()

    def message(self) -> Message:
        return typed(self.type, self.version, self.body)


class Asker:
    """Sends queries, over one channel and one private reply queue for the whole process."""

    def __init__(
        self, broker: Broker, settings: Settings, health: Health, stop: asyncio.Event
    ) -> None:
        self._broker = broker
        self._settings = settings
        self._health = health
        self._stop = stop
        self._channel: Channel | None = None
        self._open: dict[str, asyncio.Future[Answer]] = {}

    async def run(self) -> None:
        """Consume the reply queue; a daemon."""
        channel = await self._broker.channel()
        try:
            consumer = await channel.consume(REPLY_TO, prefetch=0, auto_ack=True)
            self._channel = channel
            self._health.set("queries", None)
            while (delivery := await unless(self._stop, consumer.take())) is not None:
                waiting = self._open.get(delivery.correlation_id or "")
                message = _answer(delivery.body)
                if waiting is not None and not waiting.done() and message is not None:
                    waiting.set_result(message)
        finally:
            self._channel = None
            channel.close()

    async def ask(self, queue: str, query: Query) -> Answer:
        """Send a query and wait for its answer. Raises NoAnswer at the deadline."""
        timeout, channel = self._settings.query_timeout_seconds, self._channel
        if channel is None:
            raise NoAnswer("the broker is out of reach")
        ident = str(uuid4())
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._open[ident] = answer
        try:
            async with asyncio.timeout(timeout):
                publication = Publication(
                    queue,
                    _Body.of(query),
                    reply_to=REPLY_TO,
                    correlation_id=ident,
                    expires_seconds=timeout,
                )
                (fate,) = await channel.publish([publication], timeout)
                if fate is not Fate.CONFIRMED:
                    raise NoAnswer(f"the question was {fate.value}")
                return await answer
        except (TimeoutError, BrokerGone) as error:
            raise NoAnswer from error
        finally:
            del self._open[ident]


async def ask_everybody(
    broker: Broker, exchange: Exchange, query: Query, seconds: float
) -> list[Answer]:
    """Return the answers of all processes within that time. Raises BrokerGone.

    The channel is its own and declares nothing: this is for finding out what is wrong.
    """
    answers: list[Answer] = []
    channel = await broker.channel()
    try:
        consumer = await channel.consume(REPLY_TO, prefetch=0, auto_ack=True)
        publication = Publication(
            "", _Body.of(query), reply_to=REPLY_TO, expires_seconds=seconds, exchange=exchange.name
        )
        async with asyncio.timeout(seconds):
            await channel.publish([publication], seconds)
            while True:
                answer = _answer((await consumer.take()).body)
                if answer is not None:
                    answers.append(answer)
    except TimeoutError:
        return answers
    finally:
        channel.close()


def _answer(body: bytes) -> Answer | None:
    """Read an answer; None if it cannot be read, as of a newer version: there is then none."""
    try:
        message = _Body.model_validate_json(body).message()
    except (ValueError, Poison):
        logger.exception("answer.unreadable")
        return None
    return message if isinstance(message, Answer) else None


class Answerer:
    """Answers queries: of a queue, as one of several processes; or of an exchange, as all do."""

    def __init__(
        self,
        source: str | Exchange,
        responders: Mapping[type[Query], Respond],
        broker: Broker,
        settings: Settings,
        health: Health,
        stop: asyncio.Event,
    ) -> None:
        self._source = source
        self._name = source if isinstance(source, str) else source.name
        self._responders = responders
        self._broker = broker
        self._settings = settings
        self._health = health
        self._stop = stop

    async def run(self) -> None:
        channel = await self._broker.channel()
        try:
            consumer = await self._consume(channel)
            self._health.set(self._name, None)
            while (delivery := await unless(self._stop, consumer.take())) is not None:
                channel.ack([delivery.tag])  # a query is tried once; it has a deadline
                answer = await self._respond(delivery.body)
                if answer is not None and delivery.reply_to is not None:
                    publication = Publication(
                        delivery.reply_to, _Body.of(answer), correlation_id=delivery.correlation_id,
                        expires_seconds=self._settings.query_timeout_seconds,
                    )  # fmt: skip
                    await channel.publish([publication], self._settings.query_timeout_seconds)
        finally:
            channel.close()

    async def _consume(self, channel: Channel) -> Consumer:
        if isinstance(self._source, Exchange):
            return await channel.subscribe(self._source)
        await channel.declare(query_queue(self._source))
        return await channel.consume(self._source, prefetch=100)

    async def _respond(self, body: bytes) -> Answer | None:
        started = time.monotonic()
        backoff = Backoff.of_retries(self._settings, self._stop)
        try:
            query = _Body.model_validate_json(body).message()
            responder = self._responders[type(query)]  # type: ignore[index]
        except (ValueError, KeyError, Poison):
            logger.exception("query.unreadable", queue=self._name)
            return None
        while time.monotonic() - started < self._settings.query_timeout_seconds:
            try:
                return await responder(query)
            except Infrastructure as error:
                logger.warning("query.held", queue=self._name, error=str(error))
                await backoff.pause()
            except Exception:  # a query, which has no effect, must not end the process
                logger.exception("query.failed", queue=self._name, type=type(query).__name__)
                return None
        return None
