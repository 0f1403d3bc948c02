"""RabbitMQ: the only module that imports pika.

The connection, publishing with confirms, consuming with acks that belong to their channel (rules 15
and 16). Whatever breaks, every waiter gets BrokerGone and starts over with a new channel.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any
from weakref import WeakSet

import pika
from pika.adapters.asyncio_connection import AsyncioConnection

from common.kit import log
from common.kit.settings import Settings
from common.messages.errors import BrokerGone
from common.messages.topology import Exchange, Queue

logger = log.get("broker")

REPLY_TO = "amq.rabbitmq.reply-to"  # the broker's own pseudo-queue for private replies


@dataclass(frozen=True)
class Publication:
    """A message to publish."""

    queue: str
    body: bytes
    headers: Mapping[str, Any] = field(default_factory=dict)
    reply_to: str | None = None
    correlation_id: str | None = None
    expires_seconds: float | None = None  # transient messages only: queries and answers
    exchange: str = ""  # the default one delivers to the queue


@dataclass(frozen=True)
class Depth:
    """A queue's own count of messages and consumers."""

    ready: int
    consumers: int


class Fate(Enum):
    """The broker's answer to a publication. Confirmed is not routed: returned comes first."""

    CONFIRMED = "confirmed"
    RETURNED = "returned"  # no such queue
    NACKED = "nacked"  # the queue refused it
    SILENT = "silent"  # no answer in time: it may or may not be there


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message to ack on the channel it came by."""

    channel: Channel
    tag: int
    body: bytes
    redelivered: bool
    returns: int | None  # how often it went back to the queue; None: the broker does not say
    headers: Mapping[str, Any]
    reply_to: str | None
    correlation_id: str | None


BLOCKS = "the broker blocks publishers"


class Broker:
    """One connection, opened when first needed and again after it broke."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection: AsyncioConnection | None = None
        self._blocked = False  # the broker reads nothing more from this connection
        self._channels: WeakSet[Channel] = WeakSet()
        self._lock = asyncio.Lock()

    async def channel(self) -> Channel:
        """Open a channel with publisher confirms. Raises BrokerGone."""
        async with self._lock:
            connection = self._connection
            if connection is None or not connection.is_open:
                connection = self._connection = await self._connect()
                self._blocked = False
        if self._blocked:  # the request would not be read, and each would use up a channel number
            raise BrokerGone(BLOCKS)
        try:
            async with asyncio.timeout(self._settings.connect_timeout_seconds):
                channel = await Channel.open(connection)
        except (TimeoutError, pika.exceptions.AMQPError) as error:
            raise BrokerGone(f"no channel: {error!r}") from error
        self._channels.add(channel)
        return channel

    def _block(self) -> None:
        self._blocked = True
        for channel in list(self._channels):
            channel.fail(BLOCKS)

    def _unblock(self) -> None:
        self._blocked = False

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and connection.is_open:
            closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            connection.add_on_close_callback(lambda *_: _resolve(closed, None))
            connection.close()
            await asyncio.wait([closed], timeout=self._settings.connect_timeout_seconds)

    async def _connect(self) -> AsyncioConnection:
        parameters = pika.URLParameters(self._settings.amqp_url.get_secret_value())
        parameters.heartbeat = self._settings.heartbeat_seconds
        parameters.blocked_connection_timeout = None
        parameters.client_properties = {"connection_name": self._settings.process}
        parameters.socket_timeout = parameters.stack_timeout = (
            self._settings.connect_timeout_seconds
        )
        parameters.tcp_options = {
            "TCP_USER_TIMEOUT": round(self._settings.tcp_user_timeout_seconds * 1000)
        }
        if self._settings.amqp_ca_file is not None:  # then it is TLS or nothing
            context = ssl.create_default_context(cafile=self._settings.amqp_ca_file)
            parameters.ssl_options = pika.SSLOptions(context, parameters.host)
        opened: asyncio.Future[AsyncioConnection] = asyncio.get_running_loop().create_future()

        def failed(_: object, error: BaseException) -> None:
            if not opened.done():
                opened.set_exception(BrokerGone(f"no connection to the broker: {error!r}"))

        def closed(_: object, error: BaseException) -> None:
            failed(_, error)
            logger.info("broker.closed", reason=str(error))

        connection = AsyncioConnection(
            parameters,
            on_open_callback=partial(_came, opened),
            on_open_error_callback=failed,
            on_close_callback=closed,
        )
        connection.add_on_connection_blocked_callback(lambda *_: self._block())
        connection.add_on_connection_unblocked_callback(lambda *_: self._unblock())
        return await opened


def _came(opened: asyncio.Future[Any], it: Any) -> None:
    """Hand an open connection or channel to its waiter."""
    if opened.done():
        it.close()  # too late: its waiter has given up
    else:
        opened.set_result(it)


def _resolve(future: asyncio.Future[Any], value: object) -> None:
    """Set the result, unless the waiter has given up before the driver calls back."""
    if not future.done():
        future.set_result(value)


class Channel:
    """Publishes with confirms and consumes with acks; once broken, always broken."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self._loop = asyncio.get_running_loop()
        self._broken: BrokerGone | None = None
        self._waiters: set[asyncio.Future[Any]] = set()
        self._sent = 0
        self._unconfirmed: dict[int, asyncio.Future[Fate]] = {}  # in order of their tags
        self._returned: set[int] = set()
        self._unacked: dict[int, None] = {}  # in order of their tags
        raw.add_on_close_callback(lambda _, reason: self._closed(reason))
        raw.add_on_cancel_callback(lambda _: self.fail("the queue we consume was deleted"))
        raw.add_on_return_callback(
            lambda _c, _m, properties, _b: self._returned.add(int(properties.message_id))
        )

    @classmethod
    async def open(cls, connection: AsyncioConnection) -> Channel:
        opened: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        connection.channel(on_open_callback=partial(_came, opened))
        channel = cls(await opened)
        await channel._call(channel._raw.confirm_delivery, channel._on_confirm)
        return channel

    def close(self) -> None:
        """Close the channel; the broker returns unacked deliveries to their queue."""
        if self._raw.is_open:
            self._raw.close()
        self.fail("closed by us")

    def _closed(self, reason: BaseException) -> None:
        self.fail(f"channel closed: {reason}", getattr(reason, "reply_code", None))

    def fail(self, reason: str, code: int | None = None) -> None:
        """Break the channel: all waiters get BrokerGone."""
        if self._broken is None:
            self._broken = BrokerGone(reason, code)
            if self._raw.is_open:
                self._raw.close()
            for waiter in (*self._waiters, *self._unconfirmed.values()):
                if not waiter.done():
                    waiter.set_exception(self._broken)
            self._waiters.clear()
            self._unconfirmed.clear()

    def check(self) -> None:
        if self._broken is not None:
            raise BrokerGone(str(self._broken), self._broken.code)

    async def wait(self, start: Callable[[asyncio.Future[Any]], Any]) -> Any:
        """Start something and wait until it sets the future, or the channel breaks."""
        self.check()
        waiter = self._loop.create_future()
        self._waiters.add(waiter)
        try:
            start(waiter)
            return await waiter
        finally:
            self._waiters.discard(waiter)

    async def _call(self, method: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        """Call one of the driver's methods; return the broker's answer."""
        return await self.wait(
            lambda waiter: method(*arguments, **more, callback=partial(_resolve, waiter))
        )

    async def declare(self, queues: Sequence[Queue]) -> None:
        """Make sure they exist as described; raises BrokerGone naming the difference if not."""
        for queue in queues:
            arguments = dict(queue.arguments)
            await self._call(self._raw.queue_declare, queue.name, durable=True, arguments=arguments)

    async def depth(self, queue: str) -> Depth:
        """Count a queue's ready messages and its consumers. BrokerGone: 404 if there is none."""
        frame = await self._call(self._raw.queue_declare, queue, passive=True)
        return Depth(int(frame.method.message_count), int(frame.method.consumer_count))

    async def ready_count(self, queue: str) -> int:
        """Count the messages ready in the queue."""
        return (await self.depth(queue)).ready

    # --- publishing ---

    async def publish(
        self,
        publications: Sequence[Publication],
        timeout_seconds: float,
        sent: Callable[[], None] = lambda: None,
    ) -> list[Fate]:
        """Publish persistently and mandatorily; return the fate of each. Raises BrokerGone.

        `sent` is called between publishing and waiting for the confirms.
        """
        self.check()
        futures = [self._send(publication) for publication in publications]
        sent()
        _, silent = await asyncio.wait(futures, timeout=timeout_seconds)
        for future in silent:
            future.cancel()  # a confirm that comes later is ignored
        if any(future.exception() for future in futures if future not in silent):
            self.check()
        return [Fate.SILENT if future in silent else future.result() for future in futures]

    def _send(self, publication: Publication) -> asyncio.Future[Fate]:
        self._sent += 1
        future = self._unconfirmed[self._sent] = self._loop.create_future()
        transient = publication.expires_seconds
        properties = pika.BasicProperties(
            message_id=str(self._sent),  # how a returned message finds its publication
            content_type="application/json",
            delivery_mode=2 if transient is None else 1,
            expiration=None if transient is None else str(round(transient * 1000)),
            headers=dict(publication.headers) or None,
            reply_to=publication.reply_to,
            correlation_id=publication.correlation_id,
        )
        try:
            self._raw.basic_publish(
                publication.exchange,
                publication.queue,
                publication.body,
                properties,
                mandatory=True,
            )
        except pika.exceptions.AMQPError as error:
            self.fail(f"publish failed: {error!r}")
        return future

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        acked = isinstance(method, pika.spec.Basic.Ack)
        if method.multiple:
            tags = []
            for tag in self._unconfirmed:
                if tag > method.delivery_tag:
                    break
                tags.append(tag)
        else:
            tags = [method.delivery_tag]
        for tag in tags:
            future = self._unconfirmed.pop(tag, None)
            returned = tag in self._returned
            self._returned.discard(tag)
            if future is not None and not future.done():
                future.set_result(
                    Fate.NACKED if not acked else Fate.RETURNED if returned else Fate.CONFIRMED
                )

    # --- consuming ---

    async def subscribe(self, exchange: Exchange) -> Consumer:
        """Consume what is published to the exchange from now on, through a private queue."""
        await self.declare_exchange(exchange)
        private = {"x-queue-type": "classic"}
        frame = await self._call(self._raw.queue_declare, "", exclusive=True, arguments=private)
        queue = frame.method.queue
        await self._call(self._raw.queue_bind, queue, exchange.name)
        return await self.consume(queue, prefetch=0, auto_ack=True)

    async def declare_exchange(self, exchange: Exchange) -> None:
        await self._call(self._raw.exchange_declare, exchange.name, exchange.kind, durable=True)

    async def bind(self, queue: str, exchange: Exchange, keys: Iterable[str]) -> None:
        """Bind the queue to the exchange by each of these keys."""
        await self.declare_exchange(exchange)
        for key in keys:
            await self._call(self._raw.queue_bind, queue, exchange.name, routing_key=key)

    async def consume(self, queue: str, prefetch: int, *, auto_ack: bool = False) -> Consumer:
        consumer = Consumer(self, auto_ack)
        await self._call(self._raw.basic_qos, prefetch_count=prefetch)
        await self._call(self._raw.basic_consume, queue, consumer.on_message, auto_ack=auto_ack)
        return consumer

    def took(self, tag: int) -> None:
        self._unacked[tag] = None

    def ack(self, tags: Sequence[int]) -> None:
        """Ack these; `multiple` only for a contiguous prefix of the unacked (rule 15)."""
        if self._broken is not None:
            return  # the broker has returned them to their queue; the inbox detects repeats
        left = set(tags)
        prefix = 0
        while self._unacked and (first := next(iter(self._unacked))) in left:
            del self._unacked[first]
            left.discard(first)
            prefix = first
        try:
            if prefix:
                self._raw.basic_ack(prefix, multiple=True)
            for tag in sorted(left & self._unacked.keys()):
                del self._unacked[tag]
                self._raw.basic_ack(tag)
        except pika.exceptions.AMQPError as error:
            self.fail(f"ack failed: {error!r}")


class Consumer:
    """The deliveries of one queue, in order."""

    def __init__(self, channel: Channel, auto_ack: bool) -> None:
        self.channel = channel
        self._auto_ack = auto_ack
        self._waiting: deque[Delivery] = deque()
        self._arrived: asyncio.Future[None] | None = None
        self._interrupted = False

    def on_message(self, _: Any, method: Any, properties: Any, body: bytes) -> None:
        headers = properties.headers or {}
        returns = headers.get("x-acquired-count", headers.get("x-delivery-count"))
        if not self._auto_ack:
            self.channel.took(method.delivery_tag)
        self._waiting.append(
            Delivery(
                self.channel, method.delivery_tag, body, method.redelivered,
                returns, headers, properties.reply_to, properties.correlation_id,
            )
        )  # fmt: skip
        self._wake()

    @property
    def idle(self) -> bool:
        """Return whether no delivery is waiting."""
        return not self._waiting

    async def arrival(self) -> None:
        """Return once a delivery is waiting, or if interrupted. Raises BrokerGone."""
        self.channel.check()  # what a broken channel left here will be delivered again
        if not (self._waiting or self._interrupted):
            await self.channel.wait(lambda waiter: setattr(self, "_arrived", waiter))

    def interrupt(self) -> None:
        """Let nothing wait for an arrival from now on."""
        self._interrupted = True
        self._wake()

    def _wake(self) -> None:
        if self._arrived is not None:
            _resolve(self._arrived, None)

    async def take(self) -> Delivery:
        """Wait for the next delivery and take it. Raises BrokerGone."""
        await self.arrival()
        if not self._waiting:
            raise BrokerGone("interrupted before anything arrived")
        return self._waiting.popleft()

    def take_waiting(self) -> Delivery | None:
        """Take the next delivery if one is waiting."""
        return self._waiting.popleft() if self._waiting else None
