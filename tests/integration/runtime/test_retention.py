"""Archiving of ended sagas, after which a command as old as theirs does not act (rules 9, 18)."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import psycopg
import pytest

from common.kit.failpoints import Commit
from common.kit.health import Health
from common.kit.settings import Settings
from common.messages.contracts import SagaQuery
from common.messages.envelope import Direction, Envelope, Forget, Key, pack, saga_id_for
from common.messages.errors import IllegalTransition, Poison
from common.messages.shop.inventory import ReceiveStock, StockDispatched
from common.messages.shop.order import (
    CloseReturn,
    ConfirmOrder,
    KeyReused,
    ListProduct,
    OpenReturn,
    OrderAccepted,
    OrderConfirmed,
    OrderRejected,
    PlaceOrder,
    RejectOrder,
    ReturnAccepted,
)
from common.messages.shop.values import Line
from common.participant.participant import Participant
from common.participant.retention import Retention
from common.storage.db import Database
from orchestrator.operator import queries
from orchestrator.operator.queries import Queries
from orchestrator.runtime import archive, census
from orchestrator.runtime.archive import archiving
from orchestrator.runtime.store import lock
from orchestrator.sagas.order import DEFINITIONS
from order_svc.domain import return_id_for
from order_svc.handlers import HANDLERS, ON_DUPLICATE, RECOGNISED_BY_STATE
from order_svc.store import OrderStore
from tests.integration.conftest import MakeSettings
from tests.integration.mail import NOON, charge, command, refund, reserve, saga
from tests.integration.orchestrating import (
    CHARGED,
    COMPENSATING,
    RESERVED,
    ROLE,
    SHORT,
    give,
    give_each,
    instances,
    logged,
    reply,
    service,
    start,
    state,
)
from tests.integration.services import (
    balance,
    consume,
    handle,
    inbox,
    inventory,
    open_account,
    payment,
    receive_stock,
    sent,
    stock,
    transfers,
)
from tests.integration.waiting import Rows, eventually, lock_waits, rows_read

pytestmark = pytest.mark.usefixtures("nothing_left_claimed")

AT_ONCE = {"retention_seconds": 0.001}
LATER = NOON + timedelta(days=1)


def retention(db: Database, settings: MakeSettings, **overrides: object) -> Retention:
    made: Settings = settings(ROLE, **{**AT_ONCE, **overrides})
    archive = archiving(DEFINITIONS, made.retention_seconds)
    return Retention(db, archive, made, Health(), asyncio.Event())


def refused(number: int) -> tuple[Envelope, ...]:
    """Return the messages of a saga from its start to COMPENSATED."""
    return (
        start(number),
        reply(number, "reserve_stock", SHORT),
        reply(number, "create_order", OrderRejected(), COMPENSATING),
    )


def confirmed(number: int) -> tuple[Envelope, ...]:
    return (
        start(number),
        reply(number, "reserve_stock", RESERVED),
        reply(number, "charge_payment", CHARGED),
        reply(number, "dispatch_stock", StockDispatched()),
        reply(number, "confirm_order", OrderConfirmed()),
    )


def archived(judge: Rows) -> set[object]:
    rows = judge.execute("select saga_id from orchestrator.saga_archive").fetchall()
    return {saga_id for (saga_id,) in rows}


def forgets(judge: Rows) -> dict[str, Forget]:
    """Return the last message sent to each queue."""
    rows = judge.execute("select destination, envelope from orchestrator.outbox order by id")
    found = {str(queue): Envelope.model_validate_json(str(text)) for queue, text in rows}
    return {
        queue: message
        for queue, envelope in found.items()
        if isinstance(message := envelope.message(), Forget)
    }


# --- what is archived ---------------------------------------------------------------------


async def test_an_ended_saga_is_archived_and_participants_forget_it(
    db: Database, settings: MakeSettings, judge: Rows
) -> None:
    await give_each(service(db), *refused(1), *confirmed(2))
    before = {number: logged(judge, number) for number in (1, 2)}
    async with db.transaction(None) as tx:
        held, *_ = await lock(tx, [saga(1), saga(2)])
    assert await retention(db, settings).run_once() == 2
    assert instances(judge) == 0
    assert judge.execute("select from orchestrator.saga_log").rowcount == 0
    assert archived(judge) == {saga(1), saga(2)}

    async with db.transaction(None) as tx:
        for number in (1, 2):
            seen = await census.find(tx, saga(number))
            assert seen is not None
            assert seen.row.instance == held[saga(number)].instance
            assert seen.ended_at is not None
            entries = await Queries(db).timeline(saga(number), 0, 1000)
            assert [entry.entry.kind for entry in entries] == before[number]
            rest = await Queries(db).timeline(saga(number), entries[0].id, 1000)
            assert rest == entries[1:]
    assert await Queries(db).saga_ids(saga(1), saga(9), 5) == [saga(1), saga(2)]
    assert set(await Queries(db).audited([saga(1), saga(2), saga(3)])) == {saga(1), saga(2)}
    view = await service(db).view(SagaQuery(saga_id=saga(1)))
    assert (view.found, view.state, view.reason) == (True, "COMPENSATED", "out_of_stock")

    sent_forgets = forgets(judge)
    assert set(sent_forgets) == {"order.commands", "inventory.commands", "payment.commands"}
    for forget in sent_forgets.values():
        assert set(forget.saga_ids) == {saga(1), saga(2)}
        assert forget.until.timestamp() > held[saga(1)].times["create_order"]["undo_issued"]
    assert await retention(db, settings).run_once() == 0


async def test_a_saga_that_ended_recently_is_not_archived(
    db: Database, settings: MakeSettings, judge: Rows
) -> None:
    await give_each(service(db), *refused(1))
    assert await retention(db, settings, retention_seconds=60).run_once() == 0
    assert state(judge) == ("COMPENSATED", "out_of_stock")


async def test_replicas_archive_the_oldest_first_and_none_twice(
    db: Database, settings: MakeSettings, judge: Rows
) -> None:
    for number in range(1, 11):
        await give_each(service(db), *refused(number))
    one, other = (retention(db, settings, retention_batch=3) for _ in range(2))
    assert await one.run_once() == 3
    assert archived(judge) == {saga(1), saga(2), saga(3)}
    moved = await asyncio.gather(one.run_once(), other.run_once())
    assert sum(moved) <= 6
    while await one.run_once():
        pass
    assert archived(judge) == {saga(n) for n in range(1, 11)}
    sent_forgets = [e.message() for e in sent(judge, ROLE) if e.type == "Forget"]
    ids = [ident for m in sent_forgets if isinstance(m, Forget) for ident in m.saga_ids]
    assert len(ids) == 3 * 10  # each to three participants, once


async def test_rule_18_forgetting_stops_at_an_unsettled_command(
    db: Database, settings: MakeSettings, judge: Rows
) -> None:
    """The participant may not have received it yet, so a command that old must still be run."""
    await give_each(service(db), start(1), *refused(2))
    assert await retention(db, settings).run_once() == 0
    await give_each(service(db), *refused(1)[1:], *refused(3))
    assert await retention(db, settings).run_once() == 3


async def test_rule_18_forgetting_stops_at_uncommitted_commands(
    db: Database, settings: MakeSettings, judge: Rows
) -> None:
    async with Database(settings(ROLE)) as elsewhere, elsewhere.transaction(None) as tx:
        await tx.fetch("select 1")  # began; whatever it will send is issued after this
        await give_each(service(db), *refused(1))
        assert await retention(db, settings).run_once() == 0
    assert await retention(db, settings).run_once() == 1


async def test_parked_and_stuck_sagas_stay_and_do_not_block_others(
    db: Database, settings: MakeSettings, judge: Rows
) -> None:
    gate = service(db, thresholds={"EUR": 1})
    await give_each(gate, start(1), reply(1, "reserve_stock", RESERVED))
    assert state(judge)[0] == "WAITING"
    await give_each(service(db), *refused(2))
    assert await retention(db, settings).run_once() == 1
    assert archived(judge) == {saga(2)}


def dead_letter(admin: Rows, envelope: Envelope) -> None:
    """Insert a dead letter as the intake stores it."""
    admin.execute(
        "insert into orchestrator.dead_letter (letter_id, queue, reason, saga_id, reply, body,"
        " size, readable, headers, set_aside, count)"
        " values (gen_random_uuid(), 'payment.commands', 'poison', %s, false, %s, 0, true, '{}',"
        " 'once', 1)",
        (envelope.saga_id, pack([envelope.encode()])),
    )


async def test_rule_18_forgetting_stops_at_an_open_dead_letter(
    db: Database, settings: MakeSettings, admin: Rows, judge: Rows
) -> None:
    await give_each(service(db), *refused(1), *refused(2))
    dead_letter(admin, charge(saga(1)))
    assert await retention(db, settings).run_once() == 1
    assert archived(judge) == {saga(2)}

    await give_each(service(db), *refused(3))
    dead_letter(admin, charge(saga(99)))  # of no known saga; it may still be redriven
    assert await retention(db, settings).run_once() == 0
    admin.execute(
        "update orchestrator.dead_letter set state = 'discarded', settled_at = now(),"
        " settled_by = 'ann', settled_why = 'junk'"
    )
    assert await retention(db, settings).run_once() == 2


async def test_a_saga_of_an_undeployed_definition_is_not_archived(
    db: Database, settings: MakeSettings, admin: Rows, judge: Rows
) -> None:
    await give_each(service(db), *refused(1), *refused(2))
    admin.execute(
        "update orchestrator.saga_instance set definition = 'other' where saga_id = %s", (saga(1),)
    )
    assert await retention(db, settings).run_once() == 1
    assert archived(judge) == {saga(2)}


def ended(admin: Rows, number: int, definition: str, version: int, count: int) -> None:
    """Insert instances that ended an hour ago and were started one second after the other."""
    admin.execute(
        "insert into orchestrator.saga_instance"
        "       (saga_id, definition, version, state, data, steps, started_at, ended_at)"
        " select lpad((%s + n)::text, 32, '0')::uuid, %s, %s, 'COMPENSATED', '{}', '{}',"
        "        now() - interval '1 day' + (%s + n) * interval '1 s', now() - interval '1 hour'"
        "   from generate_series(0, %s - 1) n",
        (number, definition, version, number, count),
    )


async def test_archiving_reads_only_deployed_definitions_oldest_first(
    db: Database, admin: Rows
) -> None:
    ended(admin, 1000, "order", 9, 5000)
    for number in range(6000, 6200, 2):
        ended(admin, number, "order", 1, 1)
        ended(admin, number + 1, "order", 2, 1)
    admin.execute("vacuum analyze orchestrator.saga_instance")  # or autovacuum decides on the plan
    async with db.transaction(None) as tx:
        taking = archive.take(tx, 1, [("order", 1), ("order", 2), ("return", 1)], 9)
        found, read = await rows_read(tx, "saga_instance", taking)
    assert [int(str(saga.saga_id).replace("-", "")) for saga in found] == [*range(6000, 6009)]
    assert {(saga.definition, saga.version) for saga in found} == {("order", 1), ("order", 2)}
    assert read <= 50


async def test_undeployed_ended_sagas_are_counted_to_a_limit(
    db: Database, admin: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "COUNTED", 7)
    ended(admin, 1, "order", 1, 5000)
    ended(admin, 6000, "order", 8, 2)
    ended(admin, 7000, "order", 9, 5000)
    ended(admin, 12000, "trip", 1, 1)
    admin.execute("vacuum analyze orchestrator.saga_instance")  # or autovacuum decides on the plan
    async with db.transaction(None) as tx:
        in_this: Any = SimpleNamespace(reading=lambda: nullcontext(tx))
        asked = Queries(in_this).status(60, ["order v1", "order v2"])
        status, read = await rows_read(tx, "saga_instance", asked)
    assert status.never_archived == {"order v8": 2, "order v9": 7, "trip v1": 1}
    assert read <= 30


async def test_dead_letters_redriven_long_ago_are_not_read(db: Database, admin: Rows) -> None:
    """One of 5,001 is open, then redriven for an hour: what began after it is not archived."""
    admin.execute("""
        insert into orchestrator.dead_letter
               (letter_id, queue, reason, reply, body, size, readable, headers, set_aside, count,
                state, settled_by, settled_at)
        select md5(n::text)::uuid, 'q', 'r', false, '[]', 0, true, '{}', '', 1, 'redriven', 'ann',
               now() - interval '2 hours'
          from generate_series(1, 5000) n""")
    ended(admin, 1, "order", 1, 1)
    dead_letter(admin, charge(saga(99)))
    redriven = (
        "update orchestrator.dead_letter set state = 'redriven', settled_by = 'ann',"
        " settled_at = now() - %s::interval where saga_id = %s"
    )
    for ago, taken in ((None, 0), ("50 min", 0), ("70 min", 1)):
        if ago:
            admin.execute(redriven, (ago, saga(99)))
        admin.execute("vacuum analyze orchestrator.dead_letter")
        async with db.transaction(None) as tx:
            taking = archive.take(tx, 1, [("order", 1)], 9)
            found, read = await rows_read(tx, "dead_letter", taking)
        assert len(found) == taken, ago
        assert read <= 10, ago


# --- what comes after ----------------------------------------------------------------------


async def test_rule_9_a_start_of_an_archived_saga_is_a_duplicate(
    db: Database, settings: MakeSettings, judge: Rows
) -> None:
    await give_each(service(db), *refused(1))
    await retention(db, settings).run_once()
    count = len(sent(judge, ROLE))
    await give(service(db), start(1), start(1, attempt=2, reply_to="order.commands"))
    assert instances(judge) == 0
    assert [e.type for e in sent(judge, ROLE)[count:]] == ["SagaStarted"]


async def test_rule_9_a_dead_start_of_an_archived_saga_begins_nothing(
    db: Database, settings: MakeSettings, judge: Rows, admin: Rows
) -> None:
    """The saga began with a dead start, so the inbox has no row of a start."""
    await give_each(service(db), *refused(1))
    admin.execute("delete from orchestrator.inbox")
    await retention(db, settings).run_once()
    async with service(db).batch(Commit.INTAKE, [saga(1), saga(2)]) as batch:
        assert batch.is_archived(saga(1))
        with pytest.raises(IllegalTransition):
            batch.row(saga(1))
    await give(service(db), start(1), start(1, attempt=2, reply_to="order.commands"))
    assert instances(judge) == 0
    assert judge.execute("select from orchestrator.inbox").rowcount == 0


async def test_a_reply_to_an_archived_saga_is_dropped(
    db: Database, settings: MakeSettings, judge: Rows
) -> None:
    await give_each(service(db), *refused(1))
    await retention(db, settings).run_once()
    await give(service(db), reply(1, "reserve_stock", SHORT), start(2))
    assert instances(judge) == 1
    with pytest.raises(Poison, match="unknown_saga"):
        await give(service(db), reply(3, "reserve_stock", SHORT))


def forget(*numbers: int, until: datetime = NOON) -> Envelope:
    message = Forget(until=until, saga_ids=tuple(saga(n) for n in numbers))
    key = Key(saga(numbers[0]), "forget", Direction.FORWARD)
    return Envelope.command(key, message, issued_at=LATER, reply_to=None)


def late(envelope: Envelope) -> Envelope:
    return envelope.model_copy(update={"first_issued_at": LATER})


async def test_rule_18_a_command_as_old_as_the_forgotten_is_dead(
    settings: MakeSettings, judge: Rows
) -> None:
    async with Database(settings("payment_svc")) as db:
        await open_account(db, "ada", 100)
        await handle(payment(db), charge(saga(1)), charge(saga(2)))
        await handle(payment(db), refund(saga(1)), refund(saga(3)))
        await consume(payment(db), forget(1, 3), forget(1, 3))
        assert inbox(judge, "payment_svc", saga(1)) == inbox(judge, "payment_svc", saga(3)) == {}
        nowhere = charge(saga(4)).model_copy(update={"first_issued_at": NOON.replace(tzinfo=None)})
        for old in (charge(saga(1)), refund(saga(1)), charge(saga(3)), charge(saga(4)), nowhere):
            with pytest.raises(Poison, match="evidence_gone"):
                await handle(payment(db), old)
        # A command with an inbox row is answered as ever; one issued later acts.
        await handle(payment(db), charge(saga(2)), late(charge(saga(5))))
        # An older Forget does not lower the bound.
        await consume(payment(db), forget(9, until=NOON - timedelta(days=9)))
        with pytest.raises(Poison, match="evidence_gone"):
            await handle(payment(db), charge(saga(4)))
    assert balance(judge, "ada") == 80
    assert transfers(judge, saga(1)) == ["CHARGE", "REFUND"]
    assert transfers(judge, saga(3)) == transfers(judge, saga(4)) == []
    rows = judge.execute("select distinct step from payment_svc.inbox").fetchall()
    assert {step for (step,) in rows} == {"charge_payment", "open_account", "deposit"}


async def test_rule_18_without_forgotten_a_late_reservation_would_act(
    settings: MakeSettings, judge: Rows
) -> None:
    """No domain row records a refusal, so there is no second line of defence."""
    async with Database(settings("inventory_svc")) as db:
        await receive_stock(db, tea=1)
        await handle(inventory(db), reserve(saga(1), ("tea", 2)))
        await consume(inventory(db), forget(1))
        await receive_stock_later(db)
        with pytest.raises(Poison, match="evidence_gone"):
            await handle(inventory(db), reserve(saga(1), ("tea", 2)))
    assert stock(judge, "tea") == (11, 0, 0)


async def receive_stock_later(db: Database) -> None:
    more = command(ReceiveStock(sku="tea", quantity=10), saga(8999), reply_to=None)
    await handle(inventory(db), late(more))


async def test_rule_18_a_repeat_that_waited_for_the_forgetting_sees_it(
    settings: MakeSettings, judge: Rows, admin: Rows, servers: Any, database: str
) -> None:
    """Its claim waits for the row that is being removed, and only then is `forgotten` read."""
    async with Database(settings("payment_svc")) as db:
        await open_account(db, "ada", 100)
        await handle(payment(db), charge(saga(1)))
        with psycopg.connect(servers.dsn(database)) as forgetting:
            forgetting.execute("update payment_svc.forgotten set until = %s", (NOON,))
            forgetting.execute("delete from payment_svc.inbox where saga_id = %s", (saga(1),))
            repeat = asyncio.create_task(handle(payment(db), charge(saga(1))))
            await eventually(lambda: lock_waits(admin, "payment_svc") == 1)
            forgetting.commit()
            with pytest.raises(Poison, match="evidence_gone"):
                await repeat
    assert balance(judge, "ada") == 90


# --- the door ------------------------------------------------------------------------------


def place(quantity: int) -> Envelope:
    line = Line(sku="tea", quantity=quantity)
    asked = PlaceOrder(customer="ada", idempotency_key="key-1", currency="EUR", lines=(line,))
    return command(asked, ORDER)


ORDER: UUID = saga_id_for("ada", "key-1")


def tea() -> Envelope:
    listed = ListProduct(sku="tea", price=350, currency="EUR")
    return command(listed, saga(7000), step="list_product", reply_to=None)


def forgotten(saga_id: UUID) -> Envelope:
    message = Forget(until=NOON, saga_ids=(saga_id,))
    key = Key(saga_id, "forget", Direction.FORWARD)
    return Envelope.command(key, message, issued_at=LATER, reply_to=None)


def order_service(db: Database) -> Participant[Any]:
    return Participant(
        db,
        OrderStore(),
        HANDLERS,
        on_duplicate=ON_DUPLICATE,
        recognised_by_state=RECOGNISED_BY_STATE,
    )


async def test_a_key_is_remembered_for_ever_by_the_order(
    settings: MakeSettings, judge: Rows
) -> None:
    async with Database(settings("order_svc")) as db:
        orders = order_service(db)
        await handle(orders, tea())
        (first,) = await handle(orders, place(2))
        await consume(orders, forgotten(ORDER))

        same, again, other = await handle(orders, place(2), late(place(2)), place(3))
        assert isinstance(first, OrderAccepted)
        assert same == again == first
        assert other == KeyReused(order_id=ORDER)
        assert inbox(judge, "order_svc", ORDER) == {}
        with pytest.raises(Poison, match="evidence_gone"):
            await handle(orders, command(RejectOrder(reason="late"), ORDER))
    assert [e.type for e in sent(judge, "order_svc")].count("StartSaga") == 1
    assert judge.execute("select status from order_svc.customer_order").fetchall() == [("PENDING",)]


async def test_a_return_is_remembered_for_ever_by_itself(
    settings: MakeSettings, judge: Rows
) -> None:
    """A closed return is too, though its order may be returned again under another key."""
    async with Database(settings("order_svc")) as db:
        orders = order_service(db)
        await handle(orders, tea(), place(2))
        await handle(orders, command(ConfirmOrder(), ORDER))
        asked = OpenReturn(order_id=ORDER, idempotency_key="back-1")
        return_id = return_id_for(ORDER, "back-1")
        opening = command(asked, return_id, step="open_return")
        (first,) = await handle(orders, opening)
        undo = command(CloseReturn(reason="late"), return_id, step="open_return")
        await handle(orders, undo)
        await consume(orders, forgotten(return_id))
        assert await handle(orders, opening) == [first]
        assert isinstance(first, ReturnAccepted)
        assert inbox(judge, "order_svc", return_id) == {}
    assert [e.type for e in sent(judge, "order_svc")].count("StartSaga") == 2  # one of each
    statuses = judge.execute("select status from order_svc.order_return").fetchall()
    assert statuses == [("CLOSED",)]
