"""Outbox to broker: nothing lost, nothing delayed (rules 6 and 16)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from common.kit.settings import Settings
from common.messages.envelope import Envelope, unpack
from common.messages.errors import Infrastructure
from common.messages.topology import Queue
from common.process.process import Process
from common.storage import outbox
from common.storage.db import Database, OutboxRow
from common.storage.outbox import Outgoing
from common.transport.broker import Channel, Fate, Publication
from common.transport.relay import Relay
from tests.integration.conftest import MakeSettings
from tests.integration.mail import CALLER, Management, charge, mail, saga
from tests.integration.waiting import FAST, Rows, end_sessions, eventually, rows_read, running
from tests.integration.wire import Proxy, by

ROLE = "orchestrator"
ORDER, PAYMENT, INVENTORY = "order.commands", "payment.commands", "inventory.commands"


async def put(db: Database, destination: str, *numbers: int) -> list[OutboxRow]:
    async with db.transaction(None) as tx:
        await outbox.append(tx, [Outgoing(destination, charge(saga(n))) for n in numbers])
    return tx.outbox_rows()


def waiting(judge: Rows) -> list[tuple[object, ...]]:
    """Count the rows that wait for each destination."""
    return judge.execute(
        "select destination, count(*) from orchestrator.outbox group by 1 order by 1"
    ).fetchall()


def numbers(envelopes: Sequence[Envelope]) -> list[int]:
    return [envelope.saga_id.int for envelope in envelopes]


@asynccontextmanager
async def at_hand(settings: Settings) -> AsyncIterator[tuple[Process, Channel]]:
    """Run the relay of a process by hand: it is given only the rows that the test hands to it."""
    process = Process(settings)
    process.db.on_committed = lambda _: None
    async with process.db:
        try:
            yield process, await process.broker.channel()
        finally:
            await process.broker.close()


class Watched:
    """A channel that remembers what was published, and may be told to wait before or after."""

    def __init__(
        self,
        channel: Channel,
        after: Callable[[], object] = lambda: None,
        before: asyncio.Event | None = None,
    ) -> None:
        self._channel = channel
        self._after = after
        self._before = before
        self.published: list[Publication] = []

    async def publish(
        self, publications: Sequence[Publication], within: float, sent: Callable[[], None]
    ) -> list[Fate]:
        self.published += publications
        if self._before is not None:
            await self._before.wait()
        fates = await self._channel.publish(publications, within, sent)
        self._after()
        return fates

    def queues(self) -> list[str]:
        return [publication.queue for publication in self.published]


async def once(relay: Relay, channel: Channel | Watched) -> int:
    return await relay.poll(channel)  # type: ignore[arg-type]


# --- packing -------------------------------------------------------------------------------


async def test_rows_for_one_queue_are_packed_in_order_up_to_64(
    settings: MakeSettings, judge: Rows
) -> None:
    made = settings(ROLE)
    async with mail(made) as post, at_hand(made) as (process, channel):
        await put(process.db, ORDER, *range(1, 51))
        await put(process.db, PAYMENT, 200, 201)
        await put(process.db, ORDER, *range(51, 101))
        assert await once(process.relay, channel) == 102
        assert waiting(judge) == []
        deliveries = [unpack(d.body) for d in await post.take(ORDER)]
        assert [len(members) for members in deliveries] == [64, 36]
        envelopes = [m for members in deliveries for m in members if isinstance(m, Envelope)]
        assert numbers(envelopes) == list(range(1, 101))
        assert numbers(await post.envelopes(PAYMENT)) == [200, 201]


# --- rule 16: confirmed is not routed ------------------------------------------------------


async def test_rule_16_returned_rows_stay_and_hold_up_nobody(
    settings: MakeSettings, judge: Rows, management: Management
) -> None:
    made = settings(ROLE, retry_first_seconds=3600, retry_cap_seconds=3600)
    async with mail(made) as post, at_hand(made) as (process, channel):
        management.delete_queue(PAYMENT)
        watched = Watched(channel)
        await put(process.db, PAYMENT, *range(200, 400))
        for n in (1, 2, 3):
            await put(process.db, ORDER, n)
            assert await once(process.relay, watched) == 1
        assert await once(process.relay, watched) == 0
        assert waiting(judge) == [(PAYMENT, 200)]
        assert not process.relay.flushed
        assert watched.queues().count(PAYMENT) == 4  # 200 rows, tried once, then left to rest
        assert numbers(await post.envelopes(ORDER)) == [1, 2, 3]


async def test_rule_16_what_was_returned_goes_once_its_queue_is_there(
    settings: MakeSettings, judge: Rows, management: Management
) -> None:
    made = settings(ROLE, **FAST)
    async with mail(made) as post, at_hand(made) as (process, channel):
        management.delete_queue(PAYMENT)
        await put(process.db, PAYMENT, 1)
        assert await once(process.relay, channel) == 0
        async with mail(made):  # declares it
            await eventually(lambda: once(process.relay, channel))
        assert waiting(judge) == []
        assert numbers(await post.envelopes(PAYMENT)) == [1]


async def test_rule_16_a_failed_publish_doubles_the_pause_once(
    settings: MakeSettings, management: Management
) -> None:
    made = settings(ROLE, retry_first_seconds=0.01, retry_cap_seconds=3600)
    async with mail(made), at_hand(made) as (process, channel):
        management.delete_queue(PAYMENT)
        await put(process.db, PAYMENT, *range(1, 300))
        with capture_logs() as logs:
            await once(process.relay, channel)
            watched = Watched(channel)
            await eventually(lambda: tried_again(process.relay, watched))
        failed = [log for log in logs if log["event"] == "relay.not_delivered"]
        assert [log["pause_seconds"] for log in failed] == [0.01, 0.02]
        assert [log["fate"] for log in failed] == ["returned", "returned"]


async def tried_again(relay: Relay, watched: Watched) -> bool:
    await once(relay, watched)
    return bool(watched.published)


async def test_rule_16_nacked_rows_stay_and_hold_up_nobody(
    settings: MakeSettings, judge: Rows
) -> None:
    full = Queue(
        "full", {"x-queue-type": "classic", "x-max-length": 1, "x-overflow": "reject-publish"}
    )
    made = settings(ROLE, **FAST)
    async with mail(made, full) as post, at_hand(made) as (process, channel):
        await post.send("full", charge(saga(1)))
        await put(process.db, "full", 2)
        await put(process.db, ORDER, 3)
        with capture_logs() as logs:
            assert await once(process.relay, channel) == 1
        assert [log["fate"] for log in logs] == ["nacked"]
        assert waiting(judge) == [("full", 1)]
        assert numbers(await post.envelopes("full")) == [1]
        await eventually(lambda: once(process.relay, channel))
        assert numbers(await post.envelopes("full")) == [2]
        assert numbers(await post.envelopes(ORDER)) == [3]


async def test_rule_16_rows_the_broker_is_silent_about_stay(
    settings: MakeSettings, judge: Rows
) -> None:
    """They may or may not have arrived, so they are sent again: a duplicate, by design."""
    made = settings(ROLE, confirm_timeout_seconds=0.3, retry_first_seconds=0.01)
    async with mail(made) as post, Proxy(made.amqp_url) as proxy:
        async with at_hand(by(made, amqp=proxy)) as (process, channel):
            await put(process.db, ORDER, 1)
            proxy.silence()
            with capture_logs() as logs:
                assert await once(process.relay, channel) == 0
            assert [log["fate"] for log in logs] == ["silent"]
            assert waiting(judge) == [(ORDER, 1)]
            proxy.mend()
            await eventually(lambda: once(process.relay, channel))
        assert waiting(judge) == []
        assert set(numbers(await post.envelopes(ORDER))) == {1}


async def test_a_reply_to_a_missing_private_queue_is_dropped(
    settings: MakeSettings, judge: Rows
) -> None:
    made = settings(ROLE)
    async with mail(made), at_hand(made) as (process, channel):
        await put(process.db, "gone.for.ever", 1)
        with capture_logs() as logs:
            assert await once(process.relay, channel) == 1
        assert [log["event"] for log in logs] == ["relay.reply_undeliverable"]
        assert waiting(judge) == []


# --- crashes, replicas, order of commits ---------------------------------------------------


async def test_a_crash_between_confirm_and_removal_duplicates(
    settings: MakeSettings, judge: Rows, admin: Rows
) -> None:
    made = settings(ROLE, **FAST)
    async with mail(made) as post, at_hand(made) as (process, channel):
        await put(process.db, ORDER, 1, 2)
        crashing = Watched(channel, after=lambda: end_sessions(admin, ROLE))
        with pytest.raises(Infrastructure):
            await once(process.relay, crashing)
        assert waiting(judge) == [(ORDER, 2)]
        async with at_hand(made) as (other, its_channel):
            assert await once(other.relay, its_channel) == 2
        assert waiting(judge) == []
        assert numbers(await post.envelopes(ORDER)) == [1, 2, 1, 2]


async def test_two_relays_share_the_work_without_waiting(
    settings: MakeSettings, judge: Rows
) -> None:
    made = settings(ROLE, relay_rows=10)
    async with (
        mail(made) as post,
        at_hand(made) as (one, channel),
        at_hand(made) as (other, second),
    ):
        await put(one.db, ORDER, *range(1, 21))
        go_on = asyncio.Event()
        held = Watched(channel, before=go_on)
        first = asyncio.create_task(once(one.relay, held))
        await eventually(lambda: held.published)
        assert await once(other.relay, second) == 10
        assert await once(other.relay, second) == 0  # the rest is in the other's hands
        go_on.set()
        assert await first == 10
        assert waiting(judge) == []
        assert sorted(numbers(await post.envelopes(ORDER))) == list(range(1, 21))


async def test_a_row_committed_out_of_sequence_is_not_skipped(
    settings: MakeSettings, judge: Rows
) -> None:
    made = settings(ROLE)
    async with mail(made) as post, at_hand(made) as (process, channel):
        async with process.db.transaction(None) as slow:
            await outbox.append(slow, [Outgoing(ORDER, charge(saga(1)))])
            await slow.fetch("select 1")  # it has its number, and is not committed
            await put(process.db, ORDER, 2)
            assert await once(process.relay, channel) == 1
            assert await once(process.relay, channel) == 0
        await eventually(lambda: once(process.relay, channel))
        assert numbers(await post.envelopes(ORDER)) == [2, 1]


async def test_many_rows_for_a_paused_queue_slow_no_other(
    settings: MakeSettings,
) -> None:
    async def touched(db: Database, paused: Sequence[str]) -> tuple[list[str], int]:
        async with db.transaction(None) as tx:
            taken, rows = await rows_read(tx, "outbox", outbox.take(tx, 100, paused, 5))
        return sorted({row.destination for row in taken}), rows

    async with Database(settings(ROLE, statement_timeout_seconds=60)) as db:
        await put(db, ORDER, 1, 2, 3)
        await put(db, PAYMENT, 1, 2, 3)
        _, without = await touched(db, [])
        async with db.transaction(None) as tx:
            tx.queue_write(
                "insert into outbox (destination, envelope)"
                " select %s, repeat('x', 300) from generate_series(1, 100000)",
                (INVENTORY,),
            )
        resting = await touched(db, [INVENTORY])
        assert resting[0] == [ORDER, PAYMENT]
        assert resting[1] <= without + 10
        awake = await touched(db, [])
        assert awake[0] == [INVENTORY, ORDER, PAYMENT]
        assert awake[1] <= without + 250  # as many as were asked for, not all


# --- rule 6: flushed -----------------------------------------------------------------------


async def test_rule_6_flushed_means_no_row_left_since_connecting(
    settings: MakeSettings, management: Management
) -> None:
    made = settings(ROLE, **FAST)
    async with mail(made), at_hand(made) as (process, channel):
        relay = process.relay
        await put(process.db, ORDER, 1)
        assert not relay.flushed
        await once(relay, channel)
        assert relay.flushed
        await put(process.db, ORDER, 2)
        await once(relay, channel)
        assert relay.flushed  # it is young: whoever committed it carries it

        management.delete_queue(PAYMENT)
        await put(process.db, PAYMENT, 3)
        await eventually(lambda: in_doubt(relay, channel))
        await once(relay, channel)
        assert not relay.flushed  # a resting queue hides what waits for it
        async with mail(made):
            await eventually(lambda: flushed_by(relay, channel))


async def in_doubt(relay: Relay, channel: Channel) -> bool:
    return not await flushed_by(relay, channel)


async def flushed_by(relay: Relay, channel: Channel) -> bool:
    await relay.poll(channel)
    return relay.flushed


async def test_rule_6_flushed_ends_with_the_connection(settings: MakeSettings) -> None:
    made = settings(ROLE, **FAST)
    async with mail(made), Proxy(made.amqp_url) as proxy:
        process = Process(by(made, amqp=proxy))
        async with running(process, "relay"):
            await eventually(lambda: process.relay.flushed)
            proxy.cut()
            await put(process.db, ORDER, 1)
            await eventually(lambda: not process.relay.flushed)
            assert not process.health.ready
            proxy.mend()
            await eventually(lambda: process.relay.flushed)
            await eventually(lambda: process.health.ready)


# --- the daemon ----------------------------------------------------------------------------


async def test_committed_rows_go_at_once_left_over_ones_are_found(
    settings: MakeSettings, judge: Rows
) -> None:
    patient = settings(ROLE, **{**FAST, "relay_poll_seconds": 3600})
    async with mail(patient) as post:
        process = Process(patient)
        async with running(process):
            await eventually(lambda: process.relay.flushed)
            await put(process.db, CALLER, 1)
            await eventually(lambda: waiting(judge) == [])
            process.db.on_committed = lambda _: None
            await put(process.db, CALLER, 2)  # as if the process had died after its commit
        restless = Process(settings(ROLE, **FAST))
        async with running(restless):
            await eventually(lambda: waiting(judge) == [])
        assert numbers(await post.envelopes(CALLER)) == [1, 2]


async def test_a_young_row_is_left_to_its_process_an_old_one_is_not(
    settings: MakeSettings, judge: Rows
) -> None:
    made = settings(ROLE)
    async with mail(made) as post, at_hand(made) as (process, channel):
        assert await once(process.relay, channel) == 0
        await put(process.db, ORDER, 1)
        assert await once(process.relay, channel) == 0
        async with process.db.transaction(None) as tx:
            tx.queue_write("update outbox set created_at = created_at - interval '2 seconds'")
        assert await once(process.relay, channel) == 1
        assert numbers(await post.envelopes(ORDER)) == [1]
        assert waiting(judge) == []


async def test_rows_faster_than_the_confirms_are_looked_for(
    settings: MakeSettings, judge: Rows
) -> None:
    made = settings(ROLE, relay_rows=2)
    async with mail(made) as post, at_hand(made) as (process, channel):
        await once(process.relay, channel)
        assert process.relay.flushed
        process.relay.enqueue(await put(process.db, ORDER, 1, 2))
        process.relay.enqueue(await put(process.db, ORDER, 3))  # it holds no more
        assert not process.relay.flushed
        assert await once(process.relay, channel) == 2
        assert await once(process.relay, channel) == 1
        assert process.relay.flushed
        await process.relay.publish_now(channel)  # what was found meanwhile is not sent again
        assert numbers(await post.envelopes(ORDER)) == [1, 2, 3]
        assert waiting(judge) == []


async def test_what_was_carried_in_vain_is_looked_for(
    settings: MakeSettings, judge: Rows, management: Management
) -> None:
    made = settings(ROLE, **FAST)
    async with mail(made) as post, at_hand(made) as (process, channel):
        await once(process.relay, channel)
        management.delete_queue(PAYMENT)
        process.relay.enqueue(await put(process.db, PAYMENT, 1))
        process.relay.enqueue(await put(process.db, ORDER, 2))
        await process.relay.publish_now(channel)
        assert not process.relay.flushed
        async with mail(made):  # declares it
            await eventually(lambda: flushed_by(process.relay, channel))
        assert waiting(judge) == []
        assert numbers(await post.envelopes(PAYMENT)) == [1]
        assert numbers(await post.envelopes(ORDER)) == [2]


async def test_rule_16_nothing_is_carried_to_a_queue_that_rests(
    settings: MakeSettings, judge: Rows, management: Management
) -> None:
    made = settings(ROLE, retry_first_seconds=3600, retry_cap_seconds=3600)
    async with mail(made), at_hand(made) as (process, channel):
        watched: Any = Watched(channel)
        management.delete_queue(PAYMENT)
        for n in (1, 2):
            process.relay.enqueue(await put(process.db, PAYMENT, n))
            await process.relay.publish_now(watched)
        assert watched.queues() == [PAYMENT]
        assert waiting(judge) == [(PAYMENT, 2)]


async def test_a_relay_that_is_told_to_stop_removes_what_was_confirmed(
    settings: MakeSettings, judge: Rows
) -> None:
    made = settings(ROLE, relay_poll_seconds=3600)
    async with mail(made) as post:
        process = Process(made)
        async with running(process, "relay"):
            await eventually(lambda: process.relay.flushed)
            await put(process.db, ORDER, 1)
            process.stop.set()
        assert waiting(judge) == []
        assert numbers(await post.envelopes(ORDER)) == [1]


async def test_the_relay_recovers_from_the_loss_of_either_server(
    settings: MakeSettings, judge: Rows, admin: Rows
) -> None:
    made = settings(ROLE, **FAST)
    async with mail(made) as post, Proxy(made.amqp_url) as proxy:
        process = Process(by(made, amqp=proxy))
        async with running(process), Database(made) as db:
            await eventually(lambda: process.relay.flushed)
            proxy.cut()
            await put(db, ORDER, 1)
            await eventually(lambda: not process.health.ready)
            proxy.mend()
            await eventually(lambda: waiting(judge) == [])
            end_sessions(admin, ROLE)
            await eventually(lambda: put_again(db, 2))
            await eventually(lambda: waiting(judge) == [])
        assert set(numbers(await post.envelopes(ORDER))) == {1, 2}


async def put_again(db: Database, number: int) -> bool:
    try:
        await put(db, ORDER, number)
    except Infrastructure:
        return False
    return True
