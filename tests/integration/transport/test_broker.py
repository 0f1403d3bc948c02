"""Fates of publications, and acks that belong to their channel (rules 15 and 16)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pika
import pytest

from common.kit.settings import Settings
from common.messages.errors import BrokerGone
from common.messages.topology import Queue
from common.transport.broker import Broker, Channel, Consumer, Delivery, Fate, Publication
from tests.integration.conftest import MakeSettings
from tests.integration.mail import CALLER, QUEUES, Mail, Management, mail
from tests.integration.waiting import eventually
from tests.integration.wire import Proxy, by

ROLE = "order_svc"
WORK = "order.commands"


@asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[Broker]:
    broker = Broker(settings)
    try:
        yield broker
    finally:
        await broker.close()


async def take(consumer: Consumer, count: int) -> list[Delivery]:
    async with asyncio.timeout(10):
        return [await consumer.take() for _ in range(count)]


def tags(*deliveries: Delivery) -> list[int]:
    return [delivery.tag for delivery in deliveries]


async def left(post: Mail, count: int) -> bytes:
    """Take the deliveries that were returned to the queue, once all are there."""

    async def are_back() -> bool:
        return await post.ready(WORK) == count

    await eventually(are_back, f"{count} are back in {WORK}")
    return b"".join(sorted(delivery.body for delivery in await post.take(WORK)))


# --- publishing ----------------------------------------------------------------------------


async def test_rule_16_each_publication_hears_its_own_fate(settings: MakeSettings) -> None:
    """A mandatory publish that cannot be routed is returned *and then acked*."""
    full = Queue(
        "full", {"x-queue-type": "classic", "x-max-length": 1, "x-overflow": "reject-publish"}
    )
    expected = {WORK: Fate.CONFIRMED, "nowhere": Fate.RETURNED, "full": Fate.NACKED}
    async with mail(settings(ROLE), full) as post, connected(settings(ROLE)) as broker:
        await post.send_raw("full", b"[]")
        channel = await broker.channel()
        queues = list(expected) * 40
        fates = await channel.publish([Publication(queue, b"[]") for queue in queues], 10)
        assert fates == [expected[queue] for queue in queues]
        assert await channel.publish([Publication(WORK, b"[]")], 10) == [Fate.CONFIRMED]
        assert await post.ready(WORK) == 41


async def test_confirms_for_many_at_once_reach_every_publication(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = 0
    on_confirm = Channel._on_confirm

    def counted(self: Channel, frame: Any) -> None:
        nonlocal several
        several += frame.method.multiple
        on_confirm(self, frame)

    monkeypatch.setattr(Channel, "_on_confirm", counted)
    async with mail(settings(ROLE)) as post, connected(settings(ROLE)) as broker:
        channel = await broker.channel()
        for _ in range(20):
            many = [Publication(CALLER, b"[]")] * 200
            assert await channel.publish(many, 10) == [Fate.CONFIRMED] * 200
        assert await post.ready(CALLER) == 4000
        assert several, "the broker never confirmed several at once; nothing was tested"


async def test_a_confirm_that_comes_too_late_is_ignored(
    settings: MakeSettings,
) -> None:
    made = settings(ROLE)
    async with mail(made) as post, Proxy(made.amqp_url) as proxy:
        async with connected(by(made, amqp=proxy)) as broker:
            channel = await broker.channel()
            proxy.silence()
            assert await channel.publish([Publication(WORK, b"[1]")] * 2, 0.1) == [Fate.SILENT] * 2
            proxy.mend()
            fates = await channel.publish(
                [Publication(WORK, b"[2]"), Publication("nowhere", b"[3]")], 10
            )
            assert fates == [Fate.CONFIRMED, Fate.RETURNED]
        assert await left(post, 3) == b"[1][1][2]"


async def test_a_lost_connection_fails_those_waiting_for_confirms(
    settings: MakeSettings,
) -> None:
    made = settings(ROLE)
    async with (
        mail(made),
        Proxy(made.amqp_url) as proxy,
        connected(by(made, amqp=proxy)) as broker,
    ):
        channel = await broker.channel()
        proxy.silence()
        publishing = asyncio.create_task(channel.publish([Publication(WORK, b"[]")], 30))
        await asyncio.sleep(0)
        proxy.cut()
        with pytest.raises(BrokerGone):
            await publishing
        with pytest.raises(BrokerGone):
            await channel.publish([Publication(WORK, b"[]")], 30)
        with pytest.raises(BrokerGone):
            await broker.channel()
        proxy.mend()
        again = await broker.channel()
        assert await again.publish([Publication(WORK, b"[]")], 10) == [Fate.CONFIRMED]


# --- acks ----------------------------------------------------------------------------------


async def test_rule_15_an_ack_belongs_to_its_channel(settings: MakeSettings) -> None:
    """Tags start again with every channel: what an old one had in hand acks nothing here."""
    async with mail(settings(ROLE)) as post, connected(settings(ROLE)) as broker:
        await post.send_raw(WORK, b"[1]", b"[2]", b"[3]")
        first = await broker.channel()
        old = await take(await first.consume(WORK, 10), 3)
        first.close()
        second = await broker.channel()
        new = await take(await second.consume(WORK, 10), 3)
        assert [d.tag for d in new] == [d.tag for d in old]
        assert [d.redelivered for d in new] == [True] * 3
        assert [d.returns for d in new] == [1, 1, 1]
        old[0].channel.ack(tags(*old))
        new[0].channel.ack(tags(new[0]))
        second.close()
        assert await left(post, 2) == b"[2][3]"


async def test_rule_15_multiple_is_used_for_a_contiguous_prefix_only(
    settings: MakeSettings,
) -> None:
    """Each of these sets of acks, and what comes back of five deliveries."""
    cases: list[tuple[list[list[int]], bytes]] = [
        ([[0, 1, 2]], b"34"),
        ([[1]], b"0234"),
        ([[1, 3]], b"024"),
        ([[0, 2, 3]], b"14"),
        ([[3], [0, 1]], b"24"),
        ([[4, 3, 2, 1, 0]], b""),
        ([[1], [0], [2], [4], [3]], b""),
        ([[0], [0], [1, 1]], b"234"),
    ]
    async with mail(settings(ROLE)) as post, connected(settings(ROLE)) as broker:
        for acks, back in cases:
            await post.send_raw(WORK, b"0", b"1", b"2", b"3", b"4")
            channel = await broker.channel()
            deliveries = await take(await channel.consume(WORK, 10), 5)
            for indexes in acks:
                channel.ack(tags(*(deliveries[index] for index in indexes)))
            channel.close()
            assert await left(post, len(back)) == back, acks


# --- what breaks ---------------------------------------------------------------------------


async def test_a_connection_the_server_closes_wakes_its_consumer(
    settings: MakeSettings, management: Management
) -> None:
    async with mail(settings(ROLE)), connected(settings(ROLE)) as broker:
        channel = await broker.channel()
        consumer = await channel.consume(WORK, 10)
        waiting = asyncio.create_task(consumer.take())
        await eventually(lambda: len(management.connections()) == 2)
        management.close_connections()
        with pytest.raises(BrokerGone):
            await waiting
        with pytest.raises(BrokerGone):
            channel.check()
        (await broker.channel()).check()


async def test_rule_16_a_consumer_hears_that_its_queue_was_deleted(
    settings: MakeSettings, management: Management
) -> None:
    async with mail(settings(ROLE)), connected(settings(ROLE)) as broker:
        channel = await broker.channel()
        waiting = asyncio.create_task((await channel.consume(WORK, 10)).take())
        management.delete_queue(WORK)
        with pytest.raises(BrokerGone, match="deleted"):
            await waiting


@pytest.mark.parametrize("when", ["while it waits", "before"])
async def test_an_interrupted_consumer_waits_for_no_arrival(
    settings: MakeSettings, when: str
) -> None:
    async with mail(settings(ROLE)), connected(settings(ROLE)) as broker:
        consumer = await (await broker.channel()).consume(WORK, 10)
        if when == "before":
            consumer.interrupt()
        waiting = asyncio.create_task(consumer.arrival())
        await asyncio.sleep(0)
        consumer.interrupt()
        async with asyncio.timeout(5):
            await waiting
        assert consumer.idle


async def test_what_a_broken_channel_left_is_not_handed_out(
    settings: MakeSettings,
) -> None:
    async with mail(settings(ROLE)) as post, connected(settings(ROLE)) as broker:
        await post.send_raw(WORK, b"[1]", b"[2]")
        channel = await broker.channel()
        consumer = await channel.consume(WORK, 10)
        await take(consumer, 1)
        await eventually(lambda: not consumer.idle)
        channel.close()
        with pytest.raises(BrokerGone):
            await consumer.take()
        assert await left(post, 2) == b"[1][2]"


async def test_a_queue_declared_otherwise_is_named_with_what_differs(
    settings: MakeSettings,
) -> None:
    other = Queue(WORK, {"x-queue-type": "quorum", "x-delivery-limit": 3})
    async with connected(settings(ROLE)) as broker:
        await (await broker.channel()).declare([other])
        with pytest.raises(BrokerGone) as said:
            await (await broker.channel()).declare(QUEUES)
    assert "PRECONDITION_FAILED" in str(said.value)
    assert WORK in str(said.value)
    assert "x-" in str(said.value)


async def test_declaring_again_changes_nothing(settings: MakeSettings) -> None:
    async with mail(settings(ROLE)) as post, mail(settings(ROLE)) as again:
        await post.send_raw(WORK, b"[1]")
        assert await left(again, 1) == b"[1]"


async def test_a_wrong_password_or_no_broker_is_a_broker_gone(
    settings: MakeSettings, unused_tcp_port: int
) -> None:
    made = settings(ROLE)
    url = made.amqp_url.get_secret_value()
    for wrong in (url.replace("://", "://x"), f"amqp://u:pw@127.0.0.1:{unused_tcp_port}/x"):
        secret = type(made.amqp_url)(wrong)
        with pytest.raises(BrokerGone):
            await Broker(made.model_copy(update={"amqp_url": secret})).channel()


async def test_a_broker_that_never_answers_is_given_up_in_time(settings: MakeSettings) -> None:
    made = settings(ROLE, connect_timeout_seconds=0.5)
    async with Proxy(made.amqp_url) as proxy:
        proxy.silence()
        async with asyncio.timeout(20):
            with pytest.raises(BrokerGone):
                await Broker(by(made, amqp=proxy)).channel()


async def test_a_connection_that_comes_too_late_is_closed_again(settings: MakeSettings) -> None:
    made = settings(ROLE)
    async with Proxy(made.amqp_url) as proxy:
        proxy.silence()
        opening = asyncio.create_task(Broker(by(made, amqp=proxy)).channel())
        await eventually(lambda: proxy.connections, "it is being opened")
        opening.cancel()
        await asyncio.wait([opening])
        proxy.mend()
        await eventually(lambda: not proxy.connections, "what nobody waits for is closed", within=5)


async def test_a_blocking_broker_uses_up_no_channel(
    settings: MakeSettings,
) -> None:
    """Requests on a blocked connection are not read, and each would use up a channel number.

    A connection has 2,047 of those.
    """
    async with connected(settings(ROLE)) as broker:
        channel = await broker.channel()
        connection = broker._connection
        assert connection is not None

        def says(method: type[pika.amqp_object.Method]) -> None:
            frame = pika.frame.Method(0, method())
            connection.callbacks.process(0, method, connection, frame)

        says(pika.spec.Connection.Blocked)
        with pytest.raises(BrokerGone, match="blocks"):
            channel.check()
        before = len(connection._channels)
        for _ in range(5):
            with pytest.raises(BrokerGone, match="blocks"):
                await broker.channel()
        assert len(connection._channels) <= before
        says(pika.spec.Connection.Unblocked)
        (await broker.channel()).close()
        assert broker._connection is connection


async def test_a_channel_that_comes_too_late_is_closed_again(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(settings(ROLE)) as broker:
        (await broker.channel()).close()
        impatient = broker._settings.model_copy(update={"connect_timeout_seconds": 0.0})
        with monkeypatch.context() as patch:  # closing the connection takes its time
            patch.setattr(broker, "_settings", impatient)
            for _ in range(5):
                with pytest.raises(BrokerGone, match="no channel"):
                    await broker.channel()

        async def none_is_left() -> bool:
            assert broker._connection is not None
            return not broker._connection._channels

        await eventually(none_is_left, "what nobody waits for is closed")
