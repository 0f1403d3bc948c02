"""Interventions in stuck sagas, whose causes are real, beside running replicas and replies."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from common.kit.failpoints import Commit
from common.messages.envelope import Direction
from common.messages.errors import IllegalTransition
from common.messages.shop.inventory import StockDispatched, StockReleased
from common.messages.shop.order import OrderRejected
from common.messages.shop.payment import CardDeclined, PaymentRefunded
from common.storage.db import Database
from orchestrator.engine.inputs import DeadLettered
from orchestrator.operator.queries import Queries, Stuck, StuckFilter
from orchestrator.runtime import actions
from orchestrator.runtime.actions import ActionFilter, OperatorAction
from orchestrator.runtime.overdue import MOVED_ON, RETRIED, TIMED_OUT
from tests.integration.mail import saga
from tests.integration.orchestrating import (
    PATIENT,
    RESERVED,
    TO_THE_PIVOT,
    commands,
    give,
    give_each,
    logged,
    make_overdue,
    reply,
    service,
    start,
    state,
)
from tests.integration.waiting import Rows

FORWARD, COMPENSATING = Direction
IMPATIENT = replace(PATIENT, stuck_after_seconds=0)
DECLINED = [*TO_THE_PIVOT[:2], reply(1, "charge_payment", CardDeclined())]
RELEASED = reply(1, "reserve_stock", StockReleased(), COMPENSATING)
REJECTED = reply(1, "create_order", OrderRejected(), COMPENSATING)


async def acted(db: Database) -> list[OperatorAction]:
    """Return the audit log, oldest first."""
    async with db.transaction(None) as tx:
        return [r.action for r in await actions.page(tx, ActionFilter(), None, 1000)][::-1]


async def stuck(db: Database, overdue_by: float = 60) -> list[Stuck]:
    return await Queries(db).stuck(StuckFilter(overdue_by_seconds=overdue_by), None, 1000)


async def dead_letter(db: Database, step: str, direction: Direction) -> None:
    """Discard a dead letter of this step."""
    deciding = service(db)
    async with deciding.batch(Commit.INTAKE, [saga(1)]) as batch:
        batch.apply(saga(1), DeadLettered(step, direction, "no such account", discarded_by="ada"))


async def test_retry_sends_what_is_awaited_with_a_new_deadline(
    db: Database, judge: Rows, admin: Rows
) -> None:
    await give(service(db), start(1))
    make_overdue(admin, "reserve_stock", ago="-1 second")
    await service(db).retry(saga(1), "ada", "inventory is back")
    assert commands(judge) == ["reserve_stock>1", "reserve_stock>1"]
    assert logged(judge)[2:] == ["retry_asked", "sent"]
    assert await acted(db) == [OperatorAction("ada", "retry", "inventory is back", saga(1))]
    left = judge.execute(
        "select (steps -> 'reserve_stock' ->> 'deadline')::float8"
        " - extract(epoch from clock_timestamp())::float8 from orchestrator.saga_instance"
    ).fetchall()
    assert 3000 < float(str(left[0][0])) < 3601


async def test_a_discarded_undo_is_stuck_until_a_person_resolves_it(
    db: Database, judge: Rows
) -> None:
    await give_each(service(db), *DECLINED)
    await dead_letter(db, "reserve_stock", COMPENSATING)
    (one,) = await stuck(db)
    assert one.seen.instance.stuck
    assert one.trouble is not None
    assert one.trouble.entry.kind == "discarded"
    await service(db).resolve(saga(1), "reserve_stock", "ada", "put back on the shelf")
    assert commands(judge)[-1:] == ["create_order<1"]
    await give_each(service(db), RELEASED, REJECTED)  # it was done after all: logged, ignored
    assert state(judge) == ("COMPENSATED", "card_declined")
    assert await stuck(db) == []
    assert await acted(db) == [
        OperatorAction("ada", "resolve", "put back on the shelf", saga(1), "reserve_stock")
    ]


async def test_a_step_after_the_pivot_is_resolved_and_the_pivot_never(
    db: Database, judge: Rows
) -> None:
    await give_each(service(db), *TO_THE_PIVOT)
    with pytest.raises(IllegalTransition, match="is the pivot"):
        await service(db).resolve(saga(1), "dispatch_stock", "ada", "it looks shipped")
    await give(service(db), reply(1, "dispatch_stock", StockDispatched()))
    with pytest.raises(IllegalTransition, match="pivot is passed"):
        await service(db).compensate(saga(1), "ada", "customer called")
    await service(db).resolve(saga(1), "confirm_order", "ada", "confirmed by letter")
    assert state(judge) == ("COMPLETED", None)
    assert [action.outcome for action in await acted(db)] == ["refused", "refused", "done"]


async def test_after_an_outage_sagas_are_reconciled_by_policy(
    db: Database, judge: Rows, admin: Rows
) -> None:
    """Resend where attempts are left, undo where not, retry the stuck, leave the rest alone."""
    deciding = service(db, IMPATIENT)
    await give_each(deciding, *(start(n) for n in (1, 2, 3, 4, 5)))
    await give_each(deciding, *(reply(n, "reserve_stock", RESERVED) for n in (1, 2, 3, 4)))
    make_overdue(admin, "charge_payment", 2)
    await deciding.time_out([saga(2)])  # its last attempt, from here on
    await give(deciding, reply(3, "charge_payment", CardDeclined()))
    make_overdue(admin, "reserve_stock", 3)
    await deciding.time_out([saga(3)])  # stuck
    for number, step in ((1, "charge_payment"), (2, "charge_payment"), (4, "charge_payment")):
        make_overdue(admin, step, number, "1 hour")
    found = [one.seen.instance.saga_id for one in await stuck(db, overdue_by=0)]
    assert sorted(found) == [saga(n) for n in (1, 2, 3, 4)]
    await give(deciding, reply(4, "charge_payment", CardDeclined()))  # the last to be read
    became = await deciding.reconcile(found, "ada", "payment is back")
    assert became == {saga(1): TIMED_OUT, saga(2): TIMED_OUT, saga(3): RETRIED, saga(4): MOVED_ON}
    assert commands(judge, 1)[-1:] == ["charge_payment>2"]
    assert commands(judge, 2)[-1:] == ["charge_payment<1"]
    assert commands(judge, 3)[-1:] == ["reserve_stock<2"]
    assert sorted((str(a.saga_id), a.detail) for a in await acted(db)) == [
        (str(saga(1)), TIMED_OUT), (str(saga(2)), TIMED_OUT), (str(saga(3)), RETRIED),
    ]  # fmt: skip


async def test_reconciling_at_once_with_replies_decides_once(
    db: Database, judge: Rows, admin: Rows
) -> None:
    """The batches lock in opposite orders: a deadlock would raise Infrastructure.

    A reply that comes first leaves nothing to do; one that comes later is still awaited.
    """
    numbers = list(range(1, 41))
    await give(service(db), *(start(n) for n in numbers))
    for number in numbers:
        make_overdue(admin, "reserve_stock", number)
    ids = [saga(n) for n in numbers]

    async def by_hand(order: Sequence[int]) -> None:
        await service(db).reconcile([saga(n) for n in order], "ada", "all of it")

    answered = numbers[10:30]
    await asyncio.gather(
        by_hand(numbers),
        by_hand(numbers[::-1]),
        service(db).time_out(ids),
        give(service(db), *(reply(n, "reserve_stock", RESERVED) for n in answered)),
    )
    for number in numbers:
        sent = commands(judge, number)
        assert sent.count("reserve_stock>2") <= 1
        assert ("charge_payment>1" in sent) == (number in answered)
        assert "reserve_stock>3" not in sent
    assert {action.action for action in await acted(db)} <= {"reconcile"}


async def test_a_way_back_by_hand_ends_like_any_other(db: Database, judge: Rows) -> None:
    await give_each(service(db), *TO_THE_PIVOT[:2])
    await service(db).compensate(saga(1), "ada", "customer_called")
    refunded = reply(1, "charge_payment", PaymentRefunded(), COMPENSATING)
    await give_each(service(db), refunded, RELEASED, REJECTED)
    assert state(judge) == ("COMPENSATED", "customer_called")
    with pytest.raises(IllegalTransition, match="has ended as COMPENSATED"):
        await service(db).retry(saga(1), "ada", "once more")
