"""The consumer: neither a bad message nor an outage harms other messages (rules 11, 13, 14, 16)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from structlog.contextvars import get_contextvars
from structlog.testing import capture_logs

from common.kit.settings import Settings
from common.messages.envelope import Direction, Envelope, Key
from common.messages.errors import Infrastructure
from common.messages.shop.order import ListProduct
from common.messages.shop.payment import CardDeclined
from common.messages.topology import Queue, dead_letter_queue
from common.participant.participant import Work
from common.process.process import Process
from common.storage.db import Database, Tx
from common.transport.broker import Broker, Channel
from payment_svc.store import PaymentStore
from tests.integration.conftest import MakeSettings
from tests.integration.consuming import (
    QUEUE,
    ROLE,
    Service,
    broken,
    consumer_of,
    exhausted,
    tried_alone,
)
from tests.integration.mail import (
    CALLER,
    NOON,
    Mail,
    Management,
    charge,
    command,
    mail,
    refund,
    saga,
)
from tests.integration.services import balance, open_account, payment, transfers
from tests.integration.waiting import FAST, Rows, end_sessions, eventually, reports, running
from tests.integration.wire import Proxy, by


def paying(settings: Settings, store: PaymentStore | None = None) -> Process:
    """Make the whole payment service."""
    process = Process(settings, QUEUE)
    participant = payment(process.db, store)
    process.consumer(QUEUE, participant.parse, participant.handle)
    return process


def sagas_charged(judge: Rows) -> list[int]:
    rows = judge.execute("select saga_id from payment_svc.transfer where kind = 'CHARGE'")
    return sorted(row[0].int for row in rows.fetchall() if isinstance(row[0], UUID))


def more_than(count: int, judge: Rows) -> bool:
    return len(sagas_charged(judge)) > count


# --- poison --------------------------------------------------------------------------------

GOOD = json.loads(charge(saga(5)).encode())
FORWARD_REFUND = Envelope.command(
    Key(saga(5), "charge_payment", Direction.FORWARD),
    refund(saga(5)).message(),
    issued_at=NOON,
    reply_to=None,
)
POISON: dict[str, tuple[str, object]] = {
    "unknown type": ("unknown_type", {**GOOD, "type": "Nonsense"}),
    "unknown version": ("unknown_type", {**GOOD, "version": 99}),
    "wrong message_id": ("wrong_message_id", {**GOOD, "message_id": str(saga(77))}),
    "no saga_id": ("invalid_envelope", {k: v for k, v in GOOD.items() if k != "saga_id"}),
    "no step": ("invalid_envelope", {k: v for k, v in GOOD.items() if k != "step"}),
    "no object": ("invalid_envelope", 42),
    "null": ("invalid_envelope", None),
    "a body that does not fit": ("invalid_body", {**GOOD, "body": {"customer": "ada"}}),
    "an amount below zero": ("invalid_body", {**GOOD, "body": {**GOOD["body"], "total": -1}}),
    "another service's command": (
        "unknown_command",
        json.loads(
            command(ListProduct(sku="a", price=1, currency="EUR"), saga(5), step="x").encode()
        ),
    ),
    "a reply": (
        "unknown_command",
        json.loads(charge(saga(5)).reply(CardDeclined(), issued_at=NOON).encode()),
    ),
    "an undo that travels forward": ("wrong_direction", json.loads(FORWARD_REFUND.encode())),
    "a step with a NUL": (
        "invalid_envelope",
        {k: v for k, v in {**GOOD, "step": "a\0b"}.items() if k != "message_id"},
    ),
    "a customer with a NUL": (
        "invalid_envelope",
        {**GOOD, "body": {**GOOD["body"], "customer": "a\0b"}},
    ),
    "a step no index can hold": (
        "invalid_envelope",
        {k: v for k, v in {**GOOD, "step": "x" * 5000}.items() if k != "message_id"},
    ),
    "a reply_to no broker can carry": ("invalid_envelope", {**GOOD, "reply_to": "q" * 300}),
}


async def test_poison_in_a_packed_delivery_is_dead_lettered_alone(
    settings: MakeSettings, judge: Rows
) -> None:
    made = settings(ROLE, **FAST)
    process = paying(made)
    async with mail(made) as post, running(process):
        await open_account(process.db, "ada", 10_000)
        for number, (_, member) in enumerate(POISON.values()):
            before, after = saga(1000 + 2 * number), saga(1001 + 2 * number)
            members = [
                json.loads(charge(before).encode()),
                member,
                json.loads(charge(after).encode()),
            ]
            await post.send_raw(QUEUE, json.dumps(members).encode())
        neighbours = [1000 + n for n in range(2 * len(POISON))]
        await eventually(lambda: sagas_charged(judge) == neighbours)
        letters = await post.dead(QUEUE, len(POISON))
        assert [reason for reason, _ in letters] == [reason for reason, _ in POISON.values()]
        for (_, body), (_, member) in zip(letters, POISON.values(), strict=True):
            (kept,) = json.loads(body)  # a dead letter holds one envelope
            assert kept == member or kept["saga_id"] == member["saga_id"]  # type: ignore[index]
        assert process.health.ready
        replies = await post.await_envelopes(CALLER, len(neighbours))
        assert sorted(reply.saga_id.int for reply in replies) == neighbours


@pytest.mark.parametrize(
    ("body", "reason"),
    [(b"\xff not json", "not_json"), (b'{"saga_id": 1}', "not_an_array")],
    ids=["not JSON", "not an array"],
)
async def test_a_delivery_that_is_no_array_is_dead_lettered_whole(
    settings: MakeSettings, judge: Rows, body: bytes, reason: str
) -> None:
    made = settings(ROLE, **FAST)
    process = paying(made)
    async with mail(made) as post, running(process):
        await open_account(process.db, "ada", 100)
        await post.send_raw(QUEUE, body)
        await post.send(QUEUE, charge(saga(1)))
        await eventually(lambda: sagas_charged(judge) == [1])
        assert await post.dead(QUEUE, 1) == [(reason, body)]


async def test_rule_11_a_missing_message_id_is_recomputed(
    settings: MakeSettings, judge: Rows
) -> None:
    made = settings(ROLE, **FAST)
    process = paying(made)
    async with mail(made) as post, running(process):
        await open_account(process.db, "ada", 100)
        await post.send_raw(QUEUE, json.dumps([{**GOOD, "message_id": None}]).encode())
        await post.send(QUEUE, charge(saga(5)))
        replies = await post.await_envelopes(CALLER, 2)
        assert {reply.in_reply_to for reply in replies} == {charge(saga(5)).message_id}
        assert transfers(judge, saga(5)) == ["CHARGE"]


async def test_rule_13_a_flood_of_poison_is_no_bad_deploy(
    settings: MakeSettings, judge: Rows
) -> None:
    made = settings(ROLE, **FAST)
    process = paying(made)
    async with mail(made) as post, running(process):
        await open_account(process.db, "ada", 100)
        flood = [
            {**GOOD, "saga_id": str(saga(n)), "message_id": None, "version": 99} for n in range(200)
        ]
        await post.send_raw(QUEUE, *(json.dumps([member]).encode() for member in flood))
        await post.send(QUEUE, charge(saga(1)))
        await eventually(lambda: sagas_charged(judge) == [1])
        assert process.health.ready
        assert [reason for reason, _ in await post.dead(QUEUE, 200)] == ["unknown_type"] * 200


async def test_a_dead_letter_not_published_leaves_its_message(
    settings: MakeSettings, management: Management
) -> None:
    """Published with its reason, confirmed and not returned, then acked: in this order."""
    made = settings(ROLE, **FAST)
    process = paying(made)
    async with mail(made) as post, running(process):
        await eventually(lambda: process.health.ready)
        management.delete_queue(dead_letter_queue(QUEUE))
        with capture_logs() as logs:
            await post.send_raw(QUEUE, b"not json")
            held = "dead letter for payment.commands.dead was returned"
            await eventually(lambda: [log for log in logs if log.get("error") == held])
        async with mail(made) as again:
            assert await again.dead(QUEUE, 1) == [("not_json", b"not json")]


# --- one bad message, or a bad deploy (rule 13) --------------------------------------------


async def test_a_handler_failing_for_one_message_spares_others(
    settings: MakeSettings, judge: Rows
) -> None:
    made = settings(ROLE, **FAST)
    service, process = Service(), Process(made, QUEUE)
    service.faults[3] = broken
    consumer_of(process, service)
    async with mail(made) as post, running(process):
        await post.send(QUEUE, *(charge(saga(n)) for n in range(1, 6)))
        (letter,) = await post.dead(QUEUE, 1)
        assert letter == exhausted(3)
        assert service.handled == [1, 2, 4, 5]
        assert service.batches[0] == [1, 2, 3, 4, 5]
        assert service.calls_with(3) == 2 + made.solo_tries
        assert tried_alone(judge) == 0
        assert await post.ready(QUEUE) == 0
        await post.send(QUEUE, charge(saga(6)))
        await eventually(lambda: 6 in service.handled)
        assert process.health.ready


async def test_log_lines_name_the_message_or_count_the_batch(
    settings: MakeSettings,
) -> None:
    made = settings(ROLE, **FAST)
    service, process = Service(), Process(made, QUEUE)
    said: dict[int, dict[str, Any]] = {}
    for number in (1, 2, 3):
        service.faults[number] = lambda n=number: said.update({n: get_contextvars()})  # type: ignore[misc]
    consumer_of(process, service)
    async with mail(made) as post, running(process):
        await post.send(QUEUE, charge(saga(1)))
        await eventually(lambda: 1 in service.handled)
        await post.send(QUEUE, charge(saga(2)), charge(saga(3)))
        await eventually(lambda: 3 in service.handled)
    asked = charge(saga(1))
    assert said[1] | {"process": ""} == {
        "process": "", "queue": QUEUE, "envelopes": 1, "saga_id": str(saga(1)),
        "step": "charge_payment", "direction": "forward", "message_id": str(asked.message_id),
    }  # fmt: skip
    assert said[2] == said[3]
    assert said[2] | {"process": ""} == {"process": "", "queue": QUEUE, "envelopes": 2}


async def test_a_message_that_fails_a_few_times_is_handled_in_the_end(
    settings: MakeSettings, judge: Rows
) -> None:
    made = settings(ROLE, **FAST)
    service, process = Service(), Process(made, QUEUE)

    def at_first() -> None:
        if service.calls_with(3) < 5:
            broken()

    service.faults[3] = at_first
    consumer_of(process, service)
    async with mail(made) as post, running(process):
        await post.send(QUEUE, *(charge(saga(n)) for n in range(1, 6)))
        await eventually(lambda: sorted(service.handled) == [1, 2, 3, 4, 5])
        await eventually(lambda: tried_alone(judge) == 0)
        assert await post.dead(QUEUE) == []


# --- whose fault: the servers' (rule 13) ---------------------------------------------------


async def test_rule_13_a_killed_backend_dead_letters_nothing(
    settings: MakeSettings, judge: Rows, admin: Rows
) -> None:
    kills = [1, 2, 3]

    class Killed(PaymentStore):
        async def save(self, tx: Tx, state: Any) -> None:
            await super().save(tx, state)
            if kills:
                kills.pop()
                end_sessions(admin, ROLE)

    made = settings(ROLE, **FAST)
    process = paying(made, Killed())
    async with Database(made) as db:
        await open_account(db, "ada", 1000)
    async with mail(made) as post, running(process):
        await post.send(QUEUE, *(charge(saga(n)) for n in range(1, 21)))
        await eventually(lambda: sagas_charged(judge) == list(range(1, 21)))
        assert balance(judge, "ada") == 800
        await eventually(lambda: process.health.ready)
        assert kills == []
        assert await post.dead(QUEUE) == []
        assert await post.ready(QUEUE) == 0


async def test_rule_13_a_database_out_of_reach_holds_the_batch(
    settings: MakeSettings, judge: Rows
) -> None:
    made = settings(ROLE, **FAST, connect_timeout_seconds=0.5)
    async with Database(settings(ROLE)) as db:
        await open_account(db, "ada", 1000)
    async with mail(settings(ROLE)) as post, Proxy(made.postgres_dsn) as proxy:
        process = paying(by(made, postgres=proxy))
        async with running(process):
            await eventually(lambda: process.health.ready)
            proxy.cut()
            await post.send(QUEUE, *(charge(saga(n)) for n in range(1, 11)))
            await eventually(lambda: "postgres" in reports(process, QUEUE))
            assert await post.dead(QUEUE) == []
            assert sagas_charged(judge) == []
            proxy.mend()
            await eventually(lambda: sagas_charged(judge) == list(range(1, 11)))
            await eventually(lambda: process.health.ready)
            assert await post.dead(QUEUE) == []
            assert tried_alone(judge) == 0


async def test_rule_13_a_commit_of_unknown_fate_is_retried(
    settings: MakeSettings, judge: Rows
) -> None:
    made = settings(ROLE, **FAST)
    process = Process(made, QUEUE)
    participant = payment(process.db)
    lost = [Infrastructure("the connection broke right after the commit")]

    async def handle(batch: Sequence[Work]) -> bool:
        acted = await participant.handle(batch)
        if lost:
            raise lost.pop()
        return acted

    process.consumer(QUEUE, participant.parse, handle)
    async with mail(made) as post, running(process):
        await open_account(process.db, "ada", 1000)
        await post.send(QUEUE, charge(saga(1)), refund(saga(2)))
        replies = await post.await_envelopes(CALLER, 4)
    assert replies[:2] == replies[2:]
    assert transfers(judge, saga(1)) == ["CHARGE"]
    assert balance(judge, "ada") == 990


# --- kills do not condemn innocents (rule 14) ----------------------------------------------


class Deadly(Service):
    """One message kills its process: the handler never comes back from it."""

    def __init__(self, killer: int | None) -> None:
        super().__init__()
        self.struck = asyncio.Event()
        self._killer = killer

    async def handle(self, batch: Sequence[Envelope]) -> bool:
        acted = await super().handle(batch)
        if self._killer in self.batches[-1]:
            self.struck.set()
            await asyncio.Event().wait()
        return acted


async def live_and_die(settings: Settings, service: Deadly) -> None:
    """Run a process until the message kills it: nothing is finished, its connections break."""
    process = Process(settings, QUEUE)
    consumer = consumer_of(process, service)
    async with process.db:
        life = asyncio.create_task(consumer.run())
        try:
            async with asyncio.timeout(15):
                await service.struck.wait()
        finally:
            life.cancel()
            await asyncio.wait([life])
            await process.broker.close()


async def test_rule_14_a_message_that_kills_its_process_is_found(
    settings: MakeSettings, judge: Rows
) -> None:
    made = settings(ROLE, **FAST)
    everyone = [1, 2, 3, 4, 5]
    async with mail(made) as post:
        await post.send(QUEUE, *(charge(saga(n)) for n in everyone))
        for _ in range(2):  # any restart returns what was in hand: no reason for suspicion yet
            service = Deadly(killer=3)
            await live_and_die(made, service)
            assert service.batches == [everyone]
            assert tried_alone(judge) == 0
        for tries in range(1, made.solo_tries + 1):
            service = Deadly(killer=3)
            await live_and_die(made, service)
            assert service.batches == [[1], [2], [3]]
            counted = judge.execute("select saga_id, tries from payment_svc.solo_tries").fetchall()
            assert counted == [(saga(3), tries)]  # committed before it struck
        assert await post.dead(QUEUE) == []

        service, process = Deadly(killer=3), Process(made, QUEUE)
        consumer_of(process, service)
        async with running(process):
            await eventually(lambda: service.handled == [1, 2, 4, 5])
            letters = await post.dead(QUEUE, 1)
        assert letters == [exhausted(3)]
        assert not service.struck.is_set()
        assert tried_alone(judge) == 0
        assert await post.ready(QUEUE) == 0


async def test_rule_14_a_prefetch_returned_many_times_is_handled(
    settings: MakeSettings,
) -> None:
    """The broker's own default would have set all of it aside after twenty returns."""
    made = settings(ROLE, **FAST)
    async with mail(made) as post:
        for n in range(1, 11):
            await post.send(QUEUE, charge(saga(n)))
        broker = Broker(made)
        for _ in range(30):
            channel = await broker.channel()
            consumer = await channel.consume(QUEUE, 100)
            async with asyncio.timeout(10):
                for _ in range(10):
                    await consumer.take()
            channel.close()
        await broker.close()
        service, process = Service(), Process(made, QUEUE)
        consumer_of(process, service)
        async with running(process):
            await eventually(lambda: sorted(service.handled) == list(range(1, 11)))
        assert await post.dead(QUEUE) == []


# --- rule 16: what breaks comes back by itself ---------------------------------------------


async def test_rule_16_connections_closed_by_the_server_lose_nothing(
    settings: MakeSettings, judge: Rows, management: Management
) -> None:
    made = settings(ROLE, **FAST, batch_envelopes=5)
    process = paying(made)
    async with Database(made) as db:
        await open_account(db, "ada", 10_000)
    async with running(process):
        for first in (1, 101):
            async with mail(made) as post:
                for n in range(first, first + 100):
                    await post.send(QUEUE, charge(saga(n)))
            await eventually(partial(more_than, first + 10, judge))
            await eventually(lambda: management.close_connections())
        await eventually(lambda: sagas_charged(judge) == list(range(1, 201)))
        await eventually(lambda: process.health.ready)
        async with mail(made) as post:
            await eventually(lambda: judge.execute("select from payment_svc.outbox").rowcount == 0)
            replies = await post.envelopes(CALLER)
            assert await post.dead(QUEUE) == []
    assert {reply.saga_id.int for reply in replies} == set(range(1, 201))
    assert balance(judge, "ada") == 8000


async def test_rule_16_a_consumer_declares_a_deleted_queue_again(
    settings: MakeSettings, management: Management
) -> None:
    made = settings(ROLE, **FAST)
    service, process = Service(), Process(made, QUEUE)
    consumer_of(process, service)
    async with mail(made) as post, running(process):  # who only sends declares nothing again
        await eventually(lambda: process.health.ready)
        management.delete_queue(QUEUE)
        await eventually(lambda: post_and_see(post, service))
        await eventually(lambda: process.health.ready)


async def post_and_see(post: Mail, service: Service) -> bool:
    """Send until the queue exists: what is sent before is lost, which a sender would detect."""
    try:
        await post.send(QUEUE, charge(saga(1)))
    except AssertionError:
        return False
    return 1 in service.handled


async def test_a_queue_declared_otherwise_is_reported_and_waited_for(
    settings: MakeSettings, management: Management
) -> None:
    made = settings(ROLE, **FAST)
    broker = Broker(made)
    await (await broker.channel()).declare([Queue(QUEUE, {"x-queue-type": "classic"})])
    await broker.close()
    service, process = Service(), Process(made, QUEUE)
    consumer_of(process, service)
    async with running(process):
        await eventually(lambda: "PRECONDITION_FAILED" in reports(process, QUEUE))
        assert QUEUE in reports(process, QUEUE)
        assert not process.health.ready
        management.delete_queue(QUEUE)
        await eventually(lambda: process.health.ready)


# --- rule 6: drained -----------------------------------------------------------------------


async def test_rule_6_drained_means_seen_empty_since_connecting(
    settings: MakeSettings, management: Management
) -> None:
    made = settings(ROLE, **FAST)
    service, process = Service(), Process(made, QUEUE)
    consumer = consumer_of(process, service)
    seen_while_handling: list[bool] = []
    for n in (1, 2, 3):
        service.faults[n] = lambda: seen_while_handling.append(consumer.drained)
    async with mail(made) as post:
        await post.send(QUEUE, charge(saga(1)))
        async with running(process):
            await eventually(lambda: consumer.drained)
            assert service.handled == [1]
            await post.send(QUEUE, charge(saga(2)))
            await eventually(lambda: 2 in service.handled)
            assert consumer.drained
            await eventually(lambda: len(management.connections()) == 2)
            management.close_connections()
            await eventually(lambda: not consumer.drained)
            await eventually(lambda: consumer.drained)
    assert seen_while_handling == [False, True]


async def test_rule_6_a_queue_that_others_empty_is_seen_empty_too(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was not empty when we came, and a replica took what was there: look again."""
    made = settings(ROLE, **FAST)
    process = Process(made, QUEUE)
    consumer = consumer_of(process, Service())
    count = Channel.ready_count
    told: list[int] = []

    async def not_empty_at_first(self: Channel, queue: str) -> int:
        told.append(await count(self, queue) if told else 1)
        return told[-1]

    monkeypatch.setattr(Channel, "ready_count", not_empty_at_first)
    async with running(process):
        await eventually(lambda: consumer.drained)


# --- a good end ----------------------------------------------------------------------------


async def test_a_process_told_to_stop_finishes_the_batch_in_hand(settings: MakeSettings) -> None:
    made = settings(ROLE, **FAST)
    go_on = asyncio.Event()

    class Slow(Service):
        async def handle(self, batch: Sequence[Envelope]) -> bool:
            self.batches.append([])
            await go_on.wait()
            return await super().handle(batch)

    service, process = Slow(), Process(made, QUEUE)
    consumer_of(process, service)
    async with mail(made) as post:
        async with running(process):
            await post.send(QUEUE, charge(saga(1)))
            await eventually(lambda: service.batches)
            process.stop.set()
            await post.send(QUEUE, charge(saga(2)))
            go_on.set()
        assert service.handled == [1]
        assert [e.saga_id for e in await post.await_envelopes(QUEUE, 1)] == [saga(2)]


async def test_rule_13_an_outage_returns_no_delivery_that_runs_alone(
    settings: MakeSettings,
) -> None:
    """A message whose attempt is counted first is kept during an outage like any other.

    Else it would be returned again and again, and the broker would dead-letter it in the end.
    """
    made = settings(ROLE, **FAST, connect_timeout_seconds=0.2)
    async with mail(made) as post, Proxy(made.postgres_dsn) as proxy:
        await post.send(QUEUE, charge(saga(1)))
        for _ in range(2):
            channel = await post._broker.channel()
            await (await channel.consume(QUEUE, 1)).take()
            channel.close()
        process = paying(by(made, postgres=proxy))
        proxy.cut()
        with capture_logs() as logs:
            async with running(process):

                async def held_three_times() -> bool:
                    return [line["event"] for line in logs].count("batch.held") >= 3

                await eventually(held_three_times, "the outage is held out")
        channel = await post._broker.channel()
        delivery = await (await channel.consume(QUEUE, 1)).take()
        assert delivery.returns == 3  # the two, and one by the end of the process
        channel.close()
