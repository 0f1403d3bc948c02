"""Undo before, after and beside its action, against the real participants (rules 1 and 10)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest

from common.messages.envelope import Envelope, Fence, Fenced, Outcome, PivotDone
from common.messages.shop.inventory import (
    DispatchStock,
    ReleaseStock,
    ReservationNotHeld,
    StockDispatched,
    StockReleased,
)
from common.messages.shop.payment import PaymentCharged, PaymentRefunded
from common.participant.participant import Participant, Work
from common.storage.db import Database, Tx
from inventory_svc.store import InventoryStore
from payment_svc.store import PaymentStore
from tests.integration.conftest import MakeSettings
from tests.integration.mail import charge, command, refund, reserve, saga
from tests.integration.services import (
    balance,
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
from tests.integration.waiting import Rows, eventually, lock_waits

pytestmark = pytest.mark.usefixtures("nothing_left_claimed")
NOTHING = PaymentRefunded(nothing_to_undo=True)


# --- a compensatable action and its undo ---------------------------------------------------


async def test_an_undo_after_its_action_undoes_it(settings: MakeSettings, judge: Rows) -> None:
    async with Database(settings("payment_svc")) as db:
        await open_account(db, "ada", 100)
        (charged,) = await handle(payment(db), charge(saga(1)))
        assert isinstance(charged, PaymentCharged)
        assert balance(judge, "ada") == 90
        assert await handle(payment(db), refund(saga(1))) == [PaymentRefunded()]
    assert balance(judge, "ada") == 100
    assert transfers(judge, saga(1)) == ["CHARGE", "REFUND"]
    assert inbox(judge, "payment_svc", saga(1)) == {"forward": "done", "compensating": "done"}


async def test_an_undo_before_its_action_refuses_the_late_action(
    settings: MakeSettings, judge: Rows
) -> None:
    async with Database(settings("payment_svc")) as db:
        await open_account(db, "ada", 100)
        assert await handle(payment(db), refund(saga(1))) == [NOTHING]
        assert inbox(judge, "payment_svc", saga(1)) == {"forward": "fenced", "compensating": "done"}
        await handle(payment(db), charge(saga(1)))
    assert [e.outcome for e in sent(judge, "payment_svc")] == [Outcome.DONE, Outcome.FENCED]
    assert balance(judge, "ada") == 100
    assert transfers(judge, saga(1)) == []


@pytest.mark.parametrize("undo_first", [False, True], ids=["action first", "undo first"])
async def test_rule_10_action_and_undo_in_one_batch_act_in_order(
    settings: MakeSettings, judge: Rows, undo_first: bool
) -> None:
    batch = [charge(saga(1)), refund(saga(1))]
    async with Database(settings("payment_svc")) as db:
        await open_account(db, "ada", 100)
        await handle(payment(db), *(reversed(batch) if undo_first else batch))
    outcomes = [e.message() for e in sent(judge, "payment_svc")]
    if undo_first:
        assert outcomes == [NOTHING, Fenced()]
        assert transfers(judge, saga(1)) == []
    else:
        assert isinstance(outcomes[0], PaymentCharged)
        assert outcomes[1] == PaymentRefunded()
        assert transfers(judge, saga(1)) == ["CHARGE", "REFUND"]
    assert balance(judge, "ada") == 100


async def test_an_undo_of_a_refused_action_finds_nothing(
    settings: MakeSettings, judge: Rows
) -> None:
    async with Database(settings("payment_svc")) as db:
        await handle(payment(db), charge(saga(1), customer="nobody"))
        assert await handle(payment(db), refund(saga(1))) == [NOTHING]
    assert inbox(judge, "payment_svc", saga(1)) == {"forward": "refused", "compensating": "done"}


async def test_a_late_reservation_holds_nothing(settings: MakeSettings, judge: Rows) -> None:
    async with Database(settings("inventory_svc")) as db:
        await receive_stock(db, tea=5)
        undo = command(ReleaseStock(), saga(1))
        assert await handle(inventory(db), undo) == [StockReleased(nothing_to_undo=True)]
        await handle(inventory(db), reserve(saga(1), ("tea", 2)))
    assert stock(judge, "tea") == (5, 0, 0)


# --- the pivot and its fence ---------------------------------------------------------------

DISPATCH, FENCE = command(DispatchStock(), saga(1)), command(Fence(), saga(1))


@pytest.mark.parametrize("together", [False, True], ids=["apart", "in one batch"])
async def test_rule_1_a_fence_after_its_pivot_answers_that_it_was_done(
    settings: MakeSettings, judge: Rows, together: bool
) -> None:
    async with Database(settings("inventory_svc")) as db:
        await receive_stock(db, tea=5)
        await handle(inventory(db), reserve(saga(1), ("tea", 2)))
        for batch in [[DISPATCH, FENCE]] if together else [[DISPATCH], [FENCE]]:
            await handle(inventory(db), *batch)
    replies = [e.message() for e in sent(judge, "inventory_svc")][1:]
    assert replies == [StockDispatched(), PivotDone()]
    assert stock(judge, "tea") == (3, 0, 2)


@pytest.mark.parametrize("together", [False, True], ids=["apart", "in one batch"])
async def test_rule_1_a_fence_before_its_pivot_prevents_it(
    settings: MakeSettings, judge: Rows, together: bool
) -> None:
    async with Database(settings("inventory_svc")) as db:
        await receive_stock(db, tea=5)
        await handle(inventory(db), reserve(saga(1), ("tea", 2)))
        for batch in [[FENCE, DISPATCH]] if together else [[FENCE], [DISPATCH], [DISPATCH]]:
            await handle(inventory(db), *batch)
        assert stock(judge, "tea") == (3, 2, 0)
        await handle(inventory(db), FENCE)
    replies = {e.outcome for e in sent(judge, "inventory_svc")[1:]}
    assert replies == {Outcome.FENCED}


async def test_rule_1_a_fence_after_a_refused_pivot_replies_fenced(
    settings: MakeSettings,
) -> None:
    async with Database(settings("inventory_svc")) as db:
        assert await handle(inventory(db), DISPATCH) == [ReservationNotHeld()]
        assert await handle(inventory(db), FENCE) == [Fenced()]


# --- two replicas --------------------------------------------------------------------------


class Overlap:
    """A store that makes two transactions overlap.

    The one that has claimed first waits in `load` until the other waits for its claims.
    """

    def __init__(self, admin: Rows, role: str) -> None:
        self._admin = admin
        self._role = role
        self._wanted = False

    def want(self) -> None:
        self._wanted = True

    async def hold(self) -> None:
        if self._wanted:
            self._wanted = False
            await eventually(lambda: lock_waits(self._admin, self._role))


class OverlappingPayment(PaymentStore):
    def __init__(self, overlap: Overlap) -> None:
        self._overlap = overlap

    async def load(self, tx: Tx, batch: Sequence[Work]) -> Any:
        await tx.sync()  # the claims
        await self._overlap.hold()
        return await super().load(tx, batch)


class OverlappingInventory(InventoryStore):
    def __init__(self, overlap: Overlap) -> None:
        self._overlap = overlap

    async def load(self, tx: Tx, batch: Sequence[Work]) -> Any:
        await tx.sync()  # the claims
        await self._overlap.hold()
        return await super().load(tx, batch)


Replicas = tuple[Participant[Any], Participant[Any]]


async def race(replicas: Replicas, one: Sequence[Envelope], other: Sequence[Envelope]) -> None:
    await asyncio.gather(handle(replicas[0], *one), handle(replicas[1], *other))


def dealt(dice: random.Random, pairs: Sequence[Sequence[Envelope]]) -> Sequence[list[Envelope]]:
    """One of each pair to each replica, in orders of their own."""
    shuffled = [dice.sample(pair, 2) for pair in pairs]
    hands = [list(hand) for hand in zip(*shuffled, strict=True)]
    for hand in hands:
        dice.shuffle(hand)
    return hands


ROUNDS = range(15)


async def test_rule_10_two_replicas_race_an_action_and_its_undo(
    settings: MakeSettings, judge: Rows, admin: Rows
) -> None:
    made, overlap = settings("payment_svc"), Overlap(admin, "payment_svc")
    sagas = [saga(n) for n in range(1, 1 + 6 * len(ROUNDS))]
    async with Database(made) as db_1, Database(made) as db_2:
        await open_account(db_1, "ada", 10_000)
        stores = OverlappingPayment(overlap), OverlappingPayment(overlap)
        replicas = payment(db_1, stores[0]), payment(db_2, stores[1])
        for seed in ROUNDS:
            dice = random.Random(seed)
            pairs = [(charge(s), refund(s)) for s in sagas[seed * 6 : seed * 6 + 6]]
            one, other = dealt(dice, pairs)
            overlap.want()
            await race(replicas, one, other)
            await race(replicas, other, one)  # all is redelivered, to the other replica

    first: dict[object, Envelope] = {}
    for reply in sent(judge, "payment_svc"):
        assert first.setdefault(reply.in_reply_to, reply) == reply  # word for word, every time
    outcomes = set()
    for saga_id in sagas:
        charged = first[charge(saga_id).message_id].outcome
        refunded = first[refund(saga_id).message_id].message()
        outcomes.add(charged)
        if charged is Outcome.DONE:
            assert refunded == PaymentRefunded()
            assert transfers(judge, saga_id) == ["CHARGE", "REFUND"]
        else:
            assert (charged, refunded) == (Outcome.FENCED, NOTHING)
            assert transfers(judge, saga_id) == []
    assert outcomes == {Outcome.DONE, Outcome.FENCED}
    assert balance(judge, "ada") == 10_000


async def test_rule_1_two_replicas_race_the_pivot_and_its_fence(
    settings: MakeSettings, judge: Rows, admin: Rows
) -> None:
    made, overlap = settings("inventory_svc"), Overlap(admin, "inventory_svc")
    sagas = [saga(n) for n in range(1, 1 + 4 * len(ROUNDS))]
    dispatch = [command(DispatchStock(), s) for s in sagas]
    fence = [command(Fence(), s) for s in sagas]
    async with Database(made) as db_1, Database(made) as db_2:
        await receive_stock(db_1, tea=len(sagas))
        await handle(inventory(db_1), *(reserve(s, ("tea", 1), reply_to=None) for s in sagas))
        stores = OverlappingInventory(overlap), OverlappingInventory(overlap)
        replicas = inventory(db_1, stores[0]), inventory(db_2, stores[1])
        for seed in ROUNDS:
            batch = slice(seed * 4, seed * 4 + 4)
            one, other = dealt(
                random.Random(seed), list(zip(dispatch[batch], fence[batch], strict=True))
            )
            overlap.want()
            await race(replicas, one, other)

    replies = {e.in_reply_to: e.message() for e in sent(judge, "inventory_svc")}
    answers = [
        (replies[d.message_id], replies[f.message_id]) for d, f in zip(dispatch, fence, strict=True)
    ]
    went, never = (StockDispatched(), PivotDone()), (Fenced(), Fenced())
    assert answers.count(went) + answers.count(never) == len(sagas)
    assert answers.count(went) > 0 < answers.count(never)
    assert stock(judge, "tea") == (0, answers.count(never), answers.count(went))


async def test_rule_10_replicas_with_the_same_sagas_never_deadlock(
    settings: MakeSettings, judge: Rows
) -> None:
    """No barrier, large batches, opposite orders: a deadlock would raise Infrastructure."""
    made = settings("payment_svc")
    async with Database(made) as db_1, Database(made) as db_2:
        await open_account(db_1, "ada", 10_000)
        replicas = payment(db_1), payment(db_2)
        for round_ in range(15):
            sagas = [saga(n) for n in range(1 + round_ * 120, 121 + round_ * 120)]
            one = [charge(s, total=0) for s in sagas]
            other = [refund(s) for s in reversed(sagas)]
            await race(replicas, one, other)


async def test_rule_10_replicas_lock_the_same_goods_in_one_order(
    settings: MakeSettings, admin: Rows
) -> None:
    """Delay both amid their SKUs.

    In any other order each would hold a row the other wants, and the deadlock would raise
    Infrastructure.
    """
    skus = [f"sku-{n:02}" for n in range(40)]
    made = settings("inventory_svc")
    async with Database(made) as db_1, Database(made) as db_2:
        await receive_stock(db_1, **dict.fromkeys(skus, 100))
        with admin.transaction():
            admin.execute("select from inventory_svc.stock where sku = 'sku-20' for update")
            one, other = (
                asyncio.create_task(
                    handle(inventory(db), reserve(saga(n), *((s, 1) for s in named)))
                )
                for n, (db, named) in enumerate([(db_1, skus), (db_2, skus[::-1])], 1)
            )
            await eventually(lambda: lock_waits(admin, "inventory_svc") == 2)
        await asyncio.gather(one, other)


async def test_contended_skus_neither_oversell_nor_deadlock(
    settings: MakeSettings, judge: Rows
) -> None:
    """Lines of several SKUs, named in opposite orders, to two replicas at a time."""
    dice = random.Random(1)
    skus = [f"sku-{n}" for n in range(6)]
    made = settings("inventory_svc")
    async with Database(made) as db_1, Database(made) as db_2:
        await receive_stock(db_1, **dict.fromkeys(skus, 100))
        replicas = inventory(db_1), inventory(db_2)
        for round_ in range(15):
            orders = [
                reserve(saga(n), *((sku, dice.randint(1, 3)) for sku in dice.sample(skus, 4)))
                for n in range(1 + round_ * 20, 21 + round_ * 20)
            ]
            await race(replicas, orders[:10], orders[10:])
    held = judge.execute(
        "select line ->> 'sku', sum((line ->> 'quantity')::int)"
        "  from inventory_svc.reservation, jsonb_array_elements(lines) as line"
        " where status = 'HELD' group by 1"
    ).fetchall()
    assert len(held) == len(skus)
    for sku, quantity in held:
        assert stock(judge, str(sku)) == (100 - int(str(quantity)), quantity, 0)
    refused = [e for e in sent(judge, "inventory_svc") if e.outcome is Outcome.REFUSED]
    assert refused, "the SKUs were never contended"
