"""Versions of a definition side by side: an instance finishes under the one it began with.

Any replica that has the version deployed goes on with it; while none does, it is stuck, with a
reason.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.kit import failpoints
from common.kit.failpoints import ARMINGS, Action, Arming, Point, Tripped
from common.kit.health import Health
from common.messages.contracts import SagaQuery
from common.messages.envelope import Fenced
from common.messages.errors import IllegalTransition, Poison
from common.messages.shop.inventory import ReleaseStock, ReserveStock, StockDispatched
from common.messages.shop.order import OrderConfirmed, OrderRejected
from common.storage.db import Database
from orchestrator.engine.decide import decide
from orchestrator.operator.queries import Queries, StuckFilter
from orchestrator.runtime import archive, batch
from orchestrator.runtime.census import Seen
from orchestrator.runtime.service import Service
from orchestrator.runtime.timeouts import Reconciler
from orchestrator.sagas.order import ORDER_SAGA, ORDER_SAGA_V1
from tests.integration.conftest import MakeSettings
from tests.integration.mail import saga
from tests.integration.orchestrating import (
    CHARGED,
    COMPENSATING,
    PATIENT,
    RESERVED,
    ROLE,
    SHORT,
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
from tests.integration.runtime.test_cancel import cancel
from tests.integration.services import sent
from tests.integration.waiting import Rows


class ReserveByCarrier(ReserveStock):
    carrier: str


class ReleaseByCarrier(ReleaseStock):
    carrier: str


# The replicas of a rolling restart: the old release has version 1, the new one both.
POLICY = replace(PATIENT, stuck_after_seconds=40)


def old(db: Database) -> Service:
    return service(db, POLICY, definitions=[ORDER_SAGA_V1])


def new(db: Database) -> Service:
    return service(db, POLICY, definitions=[ORDER_SAGA_V1, ORDER_SAGA])


def needy(db: Database) -> Service:
    """Return a definition whose commands require more than the running sagas began with."""
    steps = tuple(
        replace(step, command=ReserveByCarrier, undo=ReleaseByCarrier)
        if step.name == "reserve_stock" else step
        for step in ORDER_SAGA.steps
    )  # fmt: skip
    return service(db, POLICY, definitions=[replace(ORDER_SAGA, steps=steps, data=None)])


def reconciler(db: Database, deciding: Service, settings: MakeSettings) -> Reconciler:
    return Reconciler(db, deciding, lambda: True, settings(ROLE), Health(), asyncio.Event())


def versions(judge: Rows) -> dict[Any, Any]:
    rows: list[Any] = judge.execute(
        "select saga_id, version from orchestrator.saga_instance"
    ).fetchall()
    return dict(rows)


async def stuck(db: Database) -> list[Seen]:
    found = await Queries(db).stuck(StuckFilter(overdue_by_seconds=60), None, 100)
    return [one.seen for one in found]


async def undeployed(db: Database) -> list[bool]:
    return [one.row.undeployed for one in await stuck(db)]


async def unjudgeable(db: Database) -> dict[Any, Any]:
    return {one.instance.saga_id: one.row.unjudgeable for one in await stuck(db)}


async def test_a_saga_finishes_under_the_version_it_began_with(db: Database, judge: Rows) -> None:
    await give(old(db), start(1))
    await give(new(db), start(2))
    assert versions(judge) == {saga(1): 1, saga(2): 2}
    for number, replica in ((1, new(db)), (2, new(db))):
        await give_each(
            replica,
            reply(number, "reserve_stock", RESERVED),
            reply(number, "charge_payment", CHARGED),
            reply(number, "dispatch_stock", StockDispatched()),
            reply(number, "confirm_order", OrderConfirmed()),
        )
        assert state(judge, number) == ("COMPLETED", None)
    assert versions(judge) == {saga(1): 1, saga(2): 2}
    steps = judge.execute(
        "select version, steps ? 'approve_order' from orchestrator.saga_instance order by version"
    ).fetchall()
    assert steps == [(1, False), (2, True)]


async def test_an_older_replica_parks_a_reply_for_a_newer_one(db: Database, judge: Rows) -> None:
    await give_each(new(db), start(1), start(2))
    answers = [reply(n, "reserve_stock", RESERVED) for n in (1, 2)]
    await give(old(db), *answers, start(3))
    await give(old(db), answers[0])  # and a repeat of it
    assert logged(judge) == ["started", "sent", "held", "held"]
    assert commands(judge, 3) == ["reserve_stock>1"]  # other sagas go on
    assert await old(db).decide_held_replies(100) == 0
    assert await new(db).decide_held_replies(100) == 2
    assert await new(db).decide_held_replies(100) == 0
    for number in (1, 2):
        assert commands(judge, number) == ["reserve_stock>1", "charge_payment>1"]


@pytest.mark.parametrize("point", [Point.RECONCILER_BEFORE_COMMIT, Point.RECONCILER_AFTER_COMMIT])
async def test_a_crash_while_releasing_a_reply_loses_nothing(
    db: Database, judge: Rows, tmp_path: Path, point: Point
) -> None:
    await give(new(db), start(1))
    await give(old(db), reply(1, "reserve_stock", RESERVED))
    arming = Arming(point, "reserve_stock", action=Action.RAISE)
    (tmp_path / "orchestrator").write_bytes(ARMINGS.dump_json([arming]))
    failpoints.watch(tmp_path, "orchestrator")
    try:
        with pytest.raises(Tripped):
            await new(db).decide_held_replies(100)
    finally:
        failpoints.watch(None, "orchestrator")
    left = 1 if point is Point.RECONCILER_BEFORE_COMMIT else 0
    assert await new(db).decide_held_replies(100) == left
    assert commands(judge) == ["reserve_stock>1", "charge_payment>1"]


async def test_replicas_that_release_the_same_replies_take_one_step(
    db: Database, judge: Rows
) -> None:
    numbers = list(range(1, 31))
    await give(new(db), *(start(n) for n in numbers))
    answers = [reply(n, "reserve_stock", RESERVED) for n in numbers]
    await asyncio.gather(
        give(old(db), *answers),
        new(db).decide_held_replies(100),
        give(old(db), *reversed(answers)),
        give(new(db), *answers[10:]),
        new(db).decide_held_replies(100),
    )
    await asyncio.gather(*(new(db).decide_held_replies(100) for _ in range(3)))
    assert judge.execute("select from orchestrator.held_reply").rowcount == 0
    for number in numbers:
        assert commands(judge, number) == ["reserve_stock>1", "charge_payment>1"]


async def test_a_held_reply_that_is_impossible_is_dead_lettered(db: Database, judge: Rows) -> None:
    await give_each(new(db), start(1), start(2))
    nonsense = reply(1, "confirm_order", OrderConfirmed())  # it was never sent
    with pytest.raises(Poison):
        await give(new(db), nonsense)
    await give(old(db), nonsense, reply(2, "reserve_stock", RESERVED))
    assert await new(db).decide_held_replies(100) == 2
    assert commands(judge, 2)[-1:] == ["charge_payment>1"]
    dead = judge.execute(
        "select destination from orchestrator.outbox where destination like '%.dead'"
    ).fetchall()
    assert dead == [("orchestrator.replies.dead",)]


async def test_an_older_replica_parks_a_cancel_for_a_newer_one(db: Database, judge: Rows) -> None:
    await give(new(db), start(1))
    for _ in range(2):
        await give(old(db), cancel(1))
    assert state(judge) == ("RUNNING", None)
    assert await old(db).decide_held_replies(100) == 0
    assert await new(db).decide_held_replies(100) == 1
    (again,) = [e for e in sent(judge, ROLE) if e.type == "CancelSaga"]
    assert again == cancel(1)
    await give(new(db), again)
    assert state(judge) == ("COMPENSATING", "cancelled")


async def test_a_held_reply_of_an_archived_saga_is_dropped(
    db: Database, judge: Rows, admin: Rows, settings: MakeSettings
) -> None:
    rejected = reply(1, "create_order", OrderRejected(), COMPENSATING)
    await give_each(new(db), start(1), reply(1, "reserve_stock", SHORT), rejected)
    await give(old(db), reply(1, "reserve_stock", SHORT))  # a late repeat
    admin.execute("update orchestrator.saga_instance set ended_at = now() - interval '1 year'")
    async with db.transaction(None) as tx:
        await archive.move(tx, [saga(1)])
    assert await new(db).decide_held_replies(100) == 1
    assert await new(db).decide_held_replies(100) == 0


async def test_a_deadline_is_left_to_a_replica_that_knows_the_version(
    db: Database, judge: Rows, admin: Rows, settings: MakeSettings
) -> None:
    await give(new(db), start(1))
    make_overdue(admin, "reserve_stock", ago="20 seconds")
    assert await reconciler(db, old(db), settings).run_once() == 0
    assert await old(db).time_out([saga(1)]) == 0
    assert await undeployed(db) == []
    assert await reconciler(db, new(db), settings).run_once() == 1
    assert commands(judge) == ["reserve_stock>1", "reserve_stock>2"]


async def test_a_saga_of_an_undeployed_version_is_stuck_until_deployed(
    db: Database, judge: Rows, admin: Rows, settings: MakeSettings
) -> None:
    await give_each(new(db), start(1))
    make_overdue(admin, "reserve_stock", ago="2 minutes")
    before = reconciler(db, old(db), settings)
    assert await before.run_once() == 1
    assert await before.run_once() == 0  # tried again later
    assert await undeployed(db) == [True]
    assert logged(judge) == ["started", "sent", "undeployed"]
    status = await Queries(db).status(60, old(db).deployed.known)
    assert (status.undeployed, status.stuck, status.overdue) == (["order v2"], 1, 0)
    assert status.never_archived == {}  # it has not ended
    view = await old(db).view(SagaQuery(saga_id=saga(1)))
    assert (view.definition, view.state) == ("order v2", "RUNNING")
    with pytest.raises(IllegalTransition, match="order v2 is not deployed here: it goes on by"):
        await old(db).compensate(saga(1), "ada", "customer called")
    became = await old(db).reconcile([saga(1)], "ada", "all of it")
    assert became == {
        saga(1): "refused: order v2 is not deployed here: it goes on by itself once it is"
    }

    # Deployed again, with the reply that came meanwhile.
    await give(old(db), reply(1, "reserve_stock", RESERVED))
    assert await new(db).decide_held_replies(100) == 1
    assert await undeployed(db) == []
    assert commands(judge) == ["reserve_stock>1", "charge_payment>1"]
    rows = judge.execute("select stuck_since, undeployed from orchestrator.saga_instance")
    assert rows.fetchall() == [(None, False)]


async def test_without_a_reply_it_is_asked_for_again_once_deployed(
    db: Database, judge: Rows, admin: Rows, settings: MakeSettings
) -> None:
    await give(new(db), start(1))
    make_overdue(admin, "reserve_stock", ago="2 minutes")
    assert await reconciler(db, old(db), settings).run_once() == 1
    make_overdue(admin, "reserve_stock", ago="2 minutes")  # a while later
    assert await reconciler(db, old(db), settings).run_once() == 1
    assert logged(judge).count("undeployed") == 1  # said once
    make_overdue(admin, "reserve_stock", ago="2 minutes")
    assert await reconciler(db, new(db), settings).run_once() == 1
    assert commands(judge)[-1:] == ["reserve_stock>2"]
    assert await undeployed(db) == []


async def test_a_saga_whose_command_cannot_be_made_is_stuck(
    db: Database, judge: Rows, admin: Rows, settings: MakeSettings
) -> None:
    await give(new(db), start(1), start(2))
    admin.execute(
        """update orchestrator.saga_instance set data = data || '{"carrier": "dhl"}'
            where saga_id = %s""",
        (saga(2),),
    )
    for number in (1, 2):
        make_overdue(admin, "reserve_stock", number)
    lacking = reconciler(db, needy(db), settings)
    assert await lacking.run_once() == 2
    why = (
        "invalid_data: reserve_stock: no ReserveByCarrier can be made of its data"
        " (carrier: Field required)"
    )
    assert await unjudgeable(db) == {saga(1): why}
    assert commands(judge, 2) == ["reserve_stock>1", "reserve_stock>2"]  # other sagas go on
    assert await lacking.run_once() == 0  # tried again later
    make_overdue(admin, "reserve_stock")
    assert await lacking.run_once() == 1
    assert logged(judge) == ["started", "sent", "unjudgeable"]  # said once
    status = await Queries(db).status(60, needy(db).deployed.known)
    assert (status.undeployed, status.unjudgeable, status.stuck) == ([], 1, 1)

    with pytest.raises(IllegalTransition, match="no ReserveByCarrier can be made of its data"):
        await needy(db).retry(saga(1), "ada", "once more")
    became = await needy(db).reconcile([saga(1)], "ada", "all of it")
    assert became[saga(1)].startswith("refused: reserve_stock: no ReserveByCarrier")
    assert commands(judge) == ["reserve_stock>1"]

    make_overdue(admin, "reserve_stock")  # the release before, again
    assert await reconciler(db, new(db), settings).run_once() == 1
    assert commands(judge) == ["reserve_stock>1", "reserve_stock>2"]
    assert await stuck(db) == []


async def test_a_saga_whose_decision_raises_is_stuck_alone(
    db: Database,
    judge: Rows,
    admin: Rows,
    settings: MakeSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await give(new(db), start(1), start(2))
    for number in (1, 2):
        make_overdue(admin, "reserve_stock", number)

    def stumbling(*arguments: Any) -> Any:
        if arguments[2].saga_id == saga(1):
            raise KeyError("carrier")
        return decide(*arguments)

    monkeypatch.setattr(batch, "decide", stumbling)
    assert await reconciler(db, new(db), settings).run_once() == 2
    assert await unjudgeable(db) == {saga(1): "KeyError('carrier')"}
    assert commands(judge, 2) == ["reserve_stock>1", "reserve_stock>2"]


async def test_other_legs_of_an_unjudgeable_saga_are_resent(
    db: Database, judge: Rows, admin: Rows, settings: MakeSettings
) -> None:
    """Two undos were sent; this release can make one of them again, and the other not."""
    await give_each(
        new(db),
        start(1),
        reply(1, "reserve_stock", RESERVED),
        reply(1, "charge_payment", CHARGED),
    )
    await new(db).compensate(saga(1), "ada", "customer called")
    await give(new(db), reply(1, "dispatch_stock", Fenced(), COMPENSATING))
    make_overdue(admin, "charge_payment")
    await new(db).time_out([saga(1)])  # it is late, and holds up no undo behind it
    before = commands(judge)
    assert before[-3:] == ["charge_payment<1", "charge_payment<2", "reserve_stock<1"]
    lacking = reconciler(db, needy(db), settings)
    since = []
    for _ in range(2):
        make_overdue(admin, "charge_payment")
        make_overdue(admin, "reserve_stock")
        assert await lacking.run_once() == 1
        (one,) = await stuck(db)
        since.append(one.stuck_since)
    assert commands(judge) == [*before, "charge_payment<3", "charge_payment<4"]
    assert since[0] is not None
    assert since[0] == since[1]
    assert logged(judge).count("unjudgeable") == 1
    with pytest.raises(IllegalTransition, match="no ReleaseByCarrier"):
        await needy(db).retry(saga(1), "ada", "once more")
    assert commands(judge)[-1] == "charge_payment<4"  # all of it, or nothing
