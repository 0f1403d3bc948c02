"""The orchestrator against a real Postgres: starts, races, deadlines, ends (rules 2, 3, 6 to 9)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from common.kit.health import Health
from common.kit.settings import Settings
from common.messages.contracts import StartSaga
from common.messages.envelope import Envelope, Fenced, Key, PivotDone
from common.messages.errors import IllegalTransition, Poison
from common.messages.shop.inventory import StockDispatched, StockReleased
from common.messages.shop.order import OrderConfirmed, OrderRejected
from common.messages.shop.payment import CardDeclined, PaymentRefunded
from common.storage.db import Database
from orchestrator import __main__ as root
from orchestrator.runtime.timeouts import Reconciler
from tests.integration.conftest import MakeSettings
from tests.integration.mail import command, mail, reserve, saga
from tests.integration.orchestrating import (
    CHARGED,
    COMMANDS,
    COMPENSATING,
    PATIENT,
    REPLIES,
    RESERVED,
    ROLE,
    SHORT,
    TO_THE_PIVOT,
    commands,
    give,
    give_each,
    instances,
    logged,
    make_overdue,
    reply,
    service,
    start,
    state,
)
from tests.integration.services import sent
from tests.integration.waiting import FAST, Rows, eventually, lock_waits, running, wired
from tests.integration.wire import Proxy, by

pytestmark = pytest.mark.usefixtures("nothing_left_claimed")


# --- starting (rules 8 and 9) --------------------------------------------------------------


async def test_rule_9_a_saga_starts_once_however_often_it_is_asked_for(
    db: Database, judge: Rows
) -> None:
    await give(service(db), start(1), start(2), start(1))
    await give(service(db), start(1, attempt=2))
    assert instances(judge) == 2
    assert commands(judge) == ["reserve_stock>1"]
    assert logged(judge) == ["started", "sent"]


async def test_rule_9_a_start_is_a_repeat_also_after_the_saga_ended(
    db: Database, judge: Rows
) -> None:
    await give_each(
        service(db),
        start(1),
        reply(1, "reserve_stock", SHORT),
        reply(1, "create_order", OrderRejected(), COMPENSATING),
        start(1, attempt=3),
    )
    assert state(judge) == ("COMPENSATED", "out_of_stock")
    assert commands(judge) == ["reserve_stock>1", "create_order<1"]


async def test_rule_9_replicas_that_race_on_a_start_make_one_instance(
    db: Database, judge: Rows
) -> None:
    starts = [start(n) for n in range(1, 31)]
    await asyncio.gather(
        give(service(db), *starts),
        give(service(db), *reversed(starts)),
        give(service(db), *starts[10:], *starts[:10]),
    )
    assert instances(judge) == len(starts)
    assert len(sent(judge, ROLE)) == len(starts)


async def test_rule_8_only_a_start_sent_again_is_answered_saga_started(
    db: Database, judge: Rows
) -> None:
    await give(service(db), start(1))
    assert [e.type for e in sent(judge, ROLE)] == ["ReserveStock"]
    await give(service(db), start(1, attempt=2, reply_to="order.commands"))
    rows = judge.execute(
        "select destination, envelope from orchestrator.outbox order by id desc"
    ).fetchall()
    answer = Envelope.model_validate_json(str(rows[0][1]))
    assert (rows[0][0], answer.type, answer.saga_id) == ("order.commands", "SagaStarted", saga(1))
    assert len(rows) == 2


async def test_rule_8_a_resent_start_is_answered_if_the_first_was_lost(
    db: Database, judge: Rows
) -> None:
    await give(service(db), start(1, attempt=2, reply_to="order.commands"))
    assert sorted(e.type for e in sent(judge, ROLE)) == ["ReserveStock", "SagaStarted"]


def started_backwards(number: int) -> Envelope:
    message_id = Key(saga(number), "start", COMPENSATING).command_id
    changes = {"direction": COMPENSATING, "message_id": message_id}
    return start(number).model_copy(update=changes)


async def test_impossible_messages_are_poison_and_change_nothing(db: Database, judge: Rows) -> None:
    await give(service(db), start(7))
    before = judge.execute("select * from orchestrator.saga_instance").fetchall()
    for envelope, reason in (
        (reserve(saga(1), ("tea", 1)), "unknown_command"),
        (command(StartSaga(definition="trip", data={}), saga(1)), "unknown_definition"),
        (command(StartSaga(definition="order", data={"lines": 3}), saga(1)), "invalid_data"),
        (started_backwards(1), "wrong_direction"),
        (start(7, step="start_again"), "illegal_transition"),
        (reply(99, "reserve_stock", RESERVED), "unknown_saga"),
        (reply(7, "nonsense", RESERVED), "illegal_transition"),
        (reply(7, "dispatch_stock", StockDispatched()), "illegal_transition"),
    ):
        with pytest.raises(Poison) as poison:
            await give(service(db), envelope)
        assert poison.value.reason == reason
    assert judge.execute("select * from orchestrator.saga_instance").fetchall() == before
    assert len(sent(judge, ROLE)) == 1


# --- the way forward and back, in the tables -----------------------------------------------


async def test_an_order_without_refusals_is_completed(db: Database, judge: Rows) -> None:
    await give_each(
        service(db),
        *TO_THE_PIVOT,
        reply(1, "dispatch_stock", StockDispatched()),
        reply(1, "confirm_order", OrderConfirmed()),
    )
    assert state(judge) == ("COMPLETED", None)
    assert commands(judge) == [
        "reserve_stock>1",
        "charge_payment>1",
        "dispatch_stock>1",
        "confirm_order>1",
    ]


async def test_rule_2_compensated_only_when_every_step_is_settled(
    db: Database, judge: Rows
) -> None:
    await give_each(service(db), *TO_THE_PIVOT[:2], reply(1, "charge_payment", CardDeclined()))
    assert state(judge) == ("COMPENSATING", "card_declined")
    assert commands(judge)[-1:] == ["reserve_stock<1"]
    await give(service(db), reply(1, "reserve_stock", StockReleased(), COMPENSATING))
    assert commands(judge)[-1:] == ["create_order<1"]
    assert state(judge) == ("COMPENSATING", "card_declined")
    await give(service(db), reply(1, "create_order", OrderRejected(), COMPENSATING))
    assert state(judge) == ("COMPENSATED", "card_declined")


async def test_a_whole_way_may_come_in_one_batch(db: Database, judge: Rows) -> None:
    await give(service(db), *TO_THE_PIVOT, reply(1, "dispatch_stock", StockDispatched()))
    assert commands(judge)[-1:] == ["confirm_order>1"]
    assert instances(judge) == 1


async def test_rule_3_a_reply_that_is_not_awaited_is_only_logged(db: Database, judge: Rows) -> None:
    await give_each(service(db), start(1), *[reply(1, "reserve_stock", RESERVED)] * 3)
    assert commands(judge) == ["reserve_stock>1", "charge_payment>1"]
    assert logged(judge)[-2:] == ["ignored", "ignored"]
    await give(service(db), reply(1, "reserve_stock", SHORT))
    assert state(judge) == ("RUNNING", None)


# --- rule 7: one row lock per instance -----------------------------------------------------


async def test_rule_7_replicas_that_race_on_an_instance_take_one_step(
    db: Database, judge: Rows
) -> None:
    """Large batches in opposite orders: a deadlock would raise Infrastructure."""
    numbers = list(range(1, 101))
    await give(service(db), *(start(n) for n in numbers))
    for step, body in (("reserve_stock", RESERVED), ("charge_payment", CHARGED)):
        replies = [reply(n, step, body) for n in numbers]
        await asyncio.gather(
            give(service(db), *replies),
            give(service(db), *reversed(replies)),
            give(service(db), *replies[50:], *replies[:50]),
        )
    for number in numbers:
        assert commands(judge, number) == [
            "reserve_stock>1",
            "charge_payment>1",
            "dispatch_stock>1",
        ]
        assert logged(judge, number).count("ignored") == 4


async def test_rule_7_a_reply_waits_for_the_instances_lock(
    db: Database, judge: Rows, admin: Rows
) -> None:
    """Decide the second of two contradictory replies on what the first led to."""
    await give(service(db), start(1))
    with admin.transaction():
        admin.execute("lock table orchestrator.saga_log in share mode")
        done = asyncio.create_task(give(service(db), reply(1, "reserve_stock", RESERVED)))
        await eventually(lambda: lock_waits(admin, ROLE) == 1)
        refused = asyncio.create_task(give(service(db), reply(1, "reserve_stock", SHORT)))
        await eventually(lambda: lock_waits(admin, ROLE) == 2)
    await asyncio.gather(done, refused)
    assert state(judge) == ("RUNNING", None)
    assert logged(judge) == ["started", "sent", "done", "sent", "ignored"]


# --- deadlines (rule 6) --------------------------------------------------------------------


async def test_a_step_that_times_out_is_resent_as_the_same_message(
    db: Database, judge: Rows, admin: Rows
) -> None:
    await give(service(db), start(1))
    assert await service(db).time_out([saga(1)]) == 0
    make_overdue(admin, "reserve_stock")
    assert await service(db).time_out([saga(1)]) == 1
    assert await service(db).time_out([saga(1)]) == 0  # it has a new deadline
    first, again = sent(judge, ROLE)
    assert again == first.model_copy(update={"attempt": 2})  # rule 18: first_issued_at as well
    assert logged(judge) == ["started", "sent", "timed_out", "sent"]


async def test_rule_5_a_step_out_of_attempts_is_undone(
    db: Database, judge: Rows, admin: Rows
) -> None:
    await give_each(service(db), *TO_THE_PIVOT[:2])
    for _ in range(PATIENT.attempts):
        make_overdue(admin, "charge_payment")
        assert await service(db).time_out([saga(1)]) == 1
    assert state(judge) == ("COMPENSATING", "charge_payment_timed_out")
    assert commands(judge)[1:] == ["charge_payment>1", "charge_payment>2", "charge_payment<1"]


async def test_rule_1_a_silent_pivot_is_fenced_before_any_undo(
    db: Database, judge: Rows, admin: Rows
) -> None:
    await give_each(service(db), *TO_THE_PIVOT)
    for _ in range(PATIENT.attempts):
        make_overdue(admin, "dispatch_stock")
        await service(db).time_out([saga(1)])
    for _ in range(3):  # however often the fence times out
        make_overdue(admin, "dispatch_stock")
        await service(db).time_out([saga(1)])
    assert commands(judge)[2:] == [
        "dispatch_stock>1",
        "dispatch_stock>2",
        *(f"dispatch_stock<{n}" for n in (1, 2, 3, 4)),
    ]
    assert state(judge) == ("RUNNING", "dispatch_stock_timed_out")
    await give(service(db), reply(1, "dispatch_stock", Fenced(), COMPENSATING))
    assert commands(judge)[-1:] == ["charge_payment<1"]
    await give_each(
        service(db),
        reply(1, "charge_payment", PaymentRefunded(), COMPENSATING),
        reply(1, "reserve_stock", StockReleased(), COMPENSATING),
        reply(1, "create_order", OrderRejected(), COMPENSATING),
    )
    assert state(judge) == ("COMPENSATED", "dispatch_stock_timed_out")


async def test_rule_1_a_fence_too_late_sends_the_saga_forward(
    db: Database, judge: Rows, admin: Rows
) -> None:
    await give_each(service(db), *TO_THE_PIVOT)
    for _ in range(PATIENT.attempts):
        make_overdue(admin, "dispatch_stock")
        await service(db).time_out([saga(1)])
    await give(service(db), reply(1, "dispatch_stock", PivotDone(), COMPENSATING))
    assert commands(judge)[-1:] == ["confirm_order>1"]
    with pytest.raises(IllegalTransition, match="pivot is passed"):
        await service(db).compensate(saga(1), "ops", "customer called")
    assert state(judge) == ("RUNNING", None)


async def test_an_undo_past_its_sla_is_stuck_until_answered(
    db: Database, judge: Rows, admin: Rows
) -> None:
    impatient = replace(PATIENT, stuck_after_seconds=0)
    await give_each(service(db), *TO_THE_PIVOT[:2], reply(1, "charge_payment", CardDeclined()))
    for _ in range(4):
        make_overdue(admin, "reserve_stock")
        await service(db, impatient).time_out([saga(1)])
    assert commands(judge)[2:] == [f"reserve_stock<{n}" for n in (1, 2, 3, 4, 5)]
    assert logged(judge).count("stuck") == 1
    stuck = "select stuck_since is not null from orchestrator.saga_instance"
    assert judge.execute(stuck).fetchall() == [(True,)]
    await give(service(db), reply(1, "reserve_stock", StockReleased(), COMPENSATING))
    assert judge.execute(stuck).fetchall() == [(False,)]


async def test_rule_6_a_reply_committed_before_the_lock_is_no_timeout(
    db: Database, judge: Rows, admin: Rows, settings: MakeSettings
) -> None:
    await give(service(db), start(1))
    make_overdue(admin, "reserve_stock")
    reconciler = Reconciler(
        db, service(db), lambda: True, settings(ROLE), Health(), asyncio.Event()
    )
    with admin.transaction():  # blocks every write to the saga log
        admin.execute("lock table orchestrator.saga_log in share mode")
        answered = asyncio.create_task(give(service(db), reply(1, "reserve_stock", RESERVED)))
        await eventually(lambda: lock_waits(admin, ROLE) == 1)
        judging = asyncio.create_task(reconciler.run_once())
        await eventually(lambda: lock_waits(admin, ROLE) == 2)
    assert await judging == 1  # it was overdue when it was found
    await answered
    assert commands(judge) == ["reserve_stock>1", "charge_payment>1"]
    assert "timed_out" not in logged(judge)


async def test_rule_6_deadlines_go_by_the_databases_clock_once_locked(
    db: Database, judge: Rows, admin: Rows
) -> None:
    """The deadline passes while the lock is awaited: the clock is read after it, not before."""
    await give(service(db), start(1))
    make_overdue(admin, "reserve_stock", ago="-0.3 seconds")
    with admin.transaction():
        admin.execute("select from orchestrator.saga_instance for update")
        judging = asyncio.create_task(service(db).time_out([saga(1)]))
        await eventually(lambda: lock_waits(admin, ROLE) == 1)
        passed = (
            "select (steps -> 'reserve_stock' ->> 'deadline')::float8"
            "     < extract(epoch from clock_timestamp()) from orchestrator.saga_instance"
        )
        await eventually(lambda: admin.execute(passed).fetchall() == [(True,)])
    assert await judging == 1


async def test_replicas_may_reconcile_the_same_instances(
    db: Database, judge: Rows, admin: Rows, settings: MakeSettings
) -> None:
    numbers = list(range(1, 51))
    await give(service(db), *(start(n) for n in numbers))
    for number in numbers:
        make_overdue(admin, "reserve_stock", number)
    replicas = [
        Reconciler(db, service(db), lambda: True, settings(ROLE), Health(), asyncio.Event())
        for _ in range(3)
    ]
    await asyncio.gather(*(replica.run_once() for replica in replicas))
    for number in numbers:
        assert commands(judge, number) == ["reserve_stock>1", "reserve_stock>2"]


# --- when deadlines may be decided (rule 6) ------------------------------------------------


async def overdue_saga(made: Settings, admin: Rows) -> None:
    """Leave a saga that awaits its reservation with a deadline that passed in an outage."""
    async with Database(made) as db:
        await give(service(db), start(1))
        async with db.transaction(None) as tx:
            tx.queue_write("delete from outbox")  # it was sent long ago
    make_overdue(admin, "reserve_stock", ago="1 hour")


async def test_rule_6_replies_of_an_outage_are_read_before_deadlines(
    settings: MakeSettings, judge: Rows, admin: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = settings(ROLE, **FAST)
    await overdue_saga(made, admin)
    async with mail(made) as post:
        for _ in range(200):  # and it stands behind many others
            await post.send(REPLIES, reply(1, "create_order", OrderRejected(), COMPENSATING))
        await post.send(REPLIES, reply(1, "reserve_stock", RESERVED))
        process = await wired(monkeypatch, root.worker, made)
        async with running(process):
            await eventually(lambda: len(commands(judge)) or post.ready("payment.commands"))
            await eventually(lambda: process.health.ready)
    assert "timed_out" not in logged(judge)


async def test_rule_6_no_deadline_is_decided_without_the_broker(
    settings: MakeSettings, judge: Rows, admin: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = settings(ROLE, **FAST)
    await overdue_saga(made, admin)
    async with mail(made), Proxy(made.amqp_url) as proxy:
        proxy.cut()
        asked = counting_reconciler(monkeypatch)
        process = await wired(monkeypatch, root.worker, by(made, amqp=proxy))
        async with running(process):
            await eventually(lambda: len(asked) > 5)
            assert set(asked) == {False}
            assert "timed_out" not in logged(judge)
            proxy.mend()
            await eventually(lambda: "timed_out" in logged(judge))


async def test_rule_6_no_deadline_is_decided_with_a_full_outbox(
    settings: MakeSettings, judge: Rows, admin: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that was never sent cannot have been answered."""
    made = settings(ROLE, **FAST)
    await overdue_saga(made, admin)
    async with mail(made):
        with psycopg.connect(made.postgres_dsn.get_secret_value(), autocommit=True) as own:
            own.execute("insert into outbox (destination, envelope) values ('gone.commands', '{}')")
        asked = counting_reconciler(monkeypatch)
        process = await wired(monkeypatch, root.worker, made)
        async with running(process):
            await eventually(lambda: len(asked) > 5)
            assert set(asked) == {False}
            assert "timed_out" not in logged(judge)
            admin.execute("delete from orchestrator.outbox")
            await eventually(lambda: "timed_out" in logged(judge))


def counting_reconciler(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Record what `may_decide` returns to every reconciler made from now on."""
    asked: list[bool] = []
    init = Reconciler.__init__

    def counted(self: Reconciler, db: Any, svc: Any, may: Callable[[], bool], *rest: Any) -> None:
        def may_judge() -> bool:
            asked.append(may())
            return asked[-1]

        init(self, db, svc, may_judge, *rest)

    monkeypatch.setattr(Reconciler, "__init__", counted)
    return asked


# --- capacity (ADR 1) ----------------------------------------------------------------------


async def test_starts_wait_at_the_gate_and_replies_never_do(
    settings: MakeSettings, judge: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = settings(ROLE, **FAST, running_limit=2, batch_envelopes=1)
    process = await wired(monkeypatch, root.worker, made)
    async with mail(made) as post, running(process):
        for n in (1, 2, 3, 4):
            await post.send(COMMANDS, start(n))
        await eventually(lambda: instances(judge) == 2)
        await post.send(REPLIES, reply(1, "reserve_stock", RESERVED))
        await eventually(lambda: "done" in logged(judge, 1))
        assert instances(judge) == 2

        await post.send(REPLIES, reply(1, "charge_payment", CardDeclined()))
        await post.send(REPLIES, reply(1, "reserve_stock", StockReleased(), COMPENSATING))
        await post.send(REPLIES, reply(1, "create_order", OrderRejected(), COMPENSATING))
        await eventually(lambda: instances(judge) == 3)
        assert state(judge, 1) == ("COMPENSATED", "card_declined")
        assert state(judge, 4) == ()
        await post.send(REPLIES, reply(2, "reserve_stock", SHORT))
        await post.send(REPLIES, reply(2, "create_order", OrderRejected(), COMPENSATING))
        await eventually(lambda: instances(judge) == 4)
        assert await post.dead(COMMANDS) == []


async def test_a_stuck_saga_does_not_keep_others_at_the_gate(
    settings: MakeSettings, judge: Rows, admin: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = settings(ROLE, **FAST, running_limit=1, batch_envelopes=1)
    process = await wired(monkeypatch, root.worker, made)
    async with mail(made) as post, running(process):
        await post.send(COMMANDS, start(1))
        await post.send(COMMANDS, start(2))
        await eventually(lambda: instances(judge) == 1)
        admin.execute("update orchestrator.saga_instance set stuck_since = now()")
        await eventually(lambda: instances(judge) == 2)


# --- through the queues --------------------------------------------------------------------


async def test_a_reply_for_an_unknown_saga_is_dead_lettered_alone(
    settings: MakeSettings, judge: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = settings(ROLE, **FAST)
    process = await wired(monkeypatch, root.worker, made)
    async with mail(made) as post, running(process):
        await post.send(COMMANDS, start(1), start(2))
        await eventually(lambda: instances(judge) == 2)
        unknown = reply(99, "reserve_stock", RESERVED)
        await post.send(
            REPLIES,
            reply(1, "reserve_stock", RESERVED),
            unknown,
            reply(2, "reserve_stock", SHORT),
        )
        letters = "select queue, reason, body from orchestrator.dead_letter"
        (letter,) = await eventually(lambda: judge.execute(letters).fetchall())
        body = b"[" + unknown.encode().encode() + b"]"
        assert letter == (REPLIES, "unknown_saga", body)
        await eventually(lambda: state(judge, 2) == ("COMPENSATING", "out_of_stock"))
        assert "done" in logged(judge, 1)
        assert process.health.ready
