"""A participant's one transaction: stored replies, and all or nothing (rule 4)."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from common.messages.envelope import Envelope, Outcome, saga_id_for
from common.messages.errors import ConstraintViolated, Infrastructure
from common.messages.shop.order import KeyReused, ListProduct, OrderInvalid, PlaceOrder, RejectOrder
from common.messages.shop.values import Line
from common.participant.participant import Participant
from common.storage.db import Database, Tx
from order_svc.handlers import HANDLERS as ORDER
from order_svc.handlers import ON_DUPLICATE
from order_svc.store import OrderStore
from payment_svc.domain import Ledger
from payment_svc.store import PaymentStore
from tests.integration.conftest import MakeSettings
from tests.integration.mail import charge, command, refund, saga
from tests.integration.services import balance, handle, open_account, payment, sent, transfers
from tests.integration.waiting import Rows

pytestmark = pytest.mark.usefixtures("nothing_left_claimed")


async def test_a_duplicate_gets_the_stored_reply_and_acts_no_more(
    settings: MakeSettings, judge: Rows
) -> None:
    async with Database(settings("payment_svc")) as db:
        await open_account(db, "ada", 100)
        await handle(payment(db), charge(saga(1)))
        with capture_logs() as logs:
            await handle(payment(db), charge(saga(1)), charge(saga(1)))
            await handle(payment(db), charge(saga(1), attempt=7))
    replies = sent(judge, "payment_svc")
    assert len(replies) == 4
    assert [reply for reply in replies if reply != replies[0]] == []
    assert transfers(judge, saga(1)) == ["CHARGE"]
    assert balance(judge, "ada") == 90
    assert [log["event"] for log in logs] == ["command.duplicate"] * 3
    assert logs[0]["message_id"] == str(charge(saga(1)).message_id)


async def test_a_refusal_is_final_whatever_has_changed_since(
    settings: MakeSettings, judge: Rows
) -> None:
    async with Database(settings("payment_svc")) as db:
        await handle(payment(db), charge(saga(1)))
        await open_account(db, "ada", 100)
        await handle(payment(db), charge(saga(1)))
    assert [e.type for e in sent(judge, "payment_svc")] == ["UnknownAccount"] * 2
    assert balance(judge, "ada") == 100


async def test_a_command_without_reply_to_is_handled_in_silence(
    settings: MakeSettings, judge: Rows
) -> None:
    async with Database(settings("payment_svc")) as db:
        await open_account(db, "ada", 100)
        await handle(payment(db), charge(saga(1), reply_to=None))
        assert sent(judge, "payment_svc") == []
        await handle(payment(db), charge(saga(1)))  # asked by somebody who wants to know
    assert [e.outcome for e in sent(judge, "payment_svc")] == [Outcome.DONE]


@pytest.mark.parametrize("error", [Infrastructure("the server went away"), RuntimeError("a bug")])
async def test_rule_4_a_transient_failure_rolls_back_the_claim_too(
    settings: MakeSettings, judge: Rows, error: Exception
) -> None:
    class FailsOnce(PaymentStore):
        failed = False

        async def save(self, tx: Tx, state: Ledger) -> None:
            await super().save(tx, state)
            await tx.fetch("select 1")  # it is written, but for the commit
            if not self.failed:
                self.failed = True
                raise error

    async with Database(settings("payment_svc")) as db:
        await open_account(db, "ada", 100)
        participant = payment(db, FailsOnce())
        batch = [charge(saga(1)), refund(saga(2)), charge(saga(3), customer="nobody")]
        with pytest.raises(type(error), match=str(error)):
            await handle(participant, *batch)
        assert balance(judge, "ada") == 100
        assert transfers(judge, saga(1)) == []
        assert sent(judge, "payment_svc") == []
        batched = "select 1 from payment_svc.inbox where saga_id = any(%s)"
        assert judge.execute(batched, ([e.saga_id for e in batch],)).fetchall() == []

        await handle(participant, *batch)
    assert balance(judge, "ada") == 90
    assert [e.type for e in sent(judge, "payment_svc")] == [
        "PaymentCharged",
        "PaymentRefunded",
        "UnknownAccount",
    ]


async def test_the_effect_row_is_a_second_line_of_defence(
    settings: MakeSettings, judge: Rows
) -> None:
    """Were the inbox to lose its memory, the ledger would still refuse a second charge."""
    async with Database(settings("payment_svc")) as db:
        await open_account(db, "ada", 100)
        await handle(payment(db), charge(saga(1)))
        async with db.transaction(None) as tx:
            tx.queue_write("delete from inbox")
        with pytest.raises(ConstraintViolated) as violated:
            await handle(payment(db), charge(saga(1)))
        assert violated.value.constraint in ("transfer_pk", "effect_once", "one_charge_per_saga")
    assert balance(judge, "ada") == 90
    assert judge.execute("select 1 from payment_svc.inbox").fetchall() == []


async def test_a_batch_of_one_message_twice_acts_once(settings: MakeSettings, judge: Rows) -> None:
    async with Database(settings("payment_svc")) as db:
        await open_account(db, "ada", 100)
        await handle(payment(db), *[charge(saga(1))] * 5)
    assert balance(judge, "ada") == 90
    assert len({e.encode() for e in sent(judge, "payment_svc")}) == 1


# --- replies that are not kept (ADR 4) -----------------------------------------------------


def order_service(db: Database) -> Participant[Any]:
    return Participant(db, OrderStore(), ORDER, on_duplicate=ON_DUPLICATE)


def place(*lines: tuple[str, int], key: str = "key-1") -> Envelope:
    asked = PlaceOrder(
        customer="ada",
        idempotency_key=key,
        currency="EUR",
        lines=tuple(Line(sku=sku, quantity=quantity) for sku, quantity in lines),
    )
    return command(asked, saga_id_for("ada", key))


async def list_tea(db: Database) -> None:
    tea = ListProduct(sku="tea", price=350, currency="EUR")
    await handle(order_service(db), command(tea, saga(7000), step="list_product", reply_to=None))


async def test_a_reply_that_is_not_kept_leaves_the_key_free(
    settings: MakeSettings, judge: Rows
) -> None:
    async with Database(settings("order_svc")) as db:
        await list_tea(db)
        (refused,) = await handle(order_service(db), place(("cup", 1)))
        assert isinstance(refused, OrderInvalid)
        assert refused.field == "lines[0].sku"
        about = (saga_id_for("ada", "key-1"),)
        assert judge.execute("select from order_svc.inbox where saga_id = %s", about).rowcount == 0
        assert judge.execute("select from order_svc.customer_order").rowcount == 0
        assert [e.type for e in sent(judge, "order_svc")] == ["OrderInvalid"]

        await handle(order_service(db), place(("tea", 1)))
    types = [e.type for e in sent(judge, "order_svc")]
    assert sorted(types) == ["OrderAccepted", "OrderInvalid", "StartSaga"]


async def test_a_wrong_order_and_its_correction_may_share_a_batch(
    settings: MakeSettings, judge: Rows
) -> None:
    async with Database(settings("order_svc")) as db:
        await list_tea(db)
        wrong, right = place(("cup", 1)), place(("tea", 1))
        await handle(order_service(db), wrong, right, right)
    replies = [e.type for e in sent(judge, "order_svc") if e.type != "StartSaga"]
    assert replies == ["OrderInvalid", "OrderAccepted", "OrderAccepted"]
    assert judge.execute("select from order_svc.customer_order").rowcount == 1


async def test_another_body_under_the_same_key_is_refused(
    settings: MakeSettings, judge: Rows
) -> None:
    async with Database(settings("order_svc")) as db:
        await list_tea(db)
        await handle(order_service(db), place(("tea", 1)))
        before = judge.execute("select * from order_svc.inbox").fetchall()
        assert await handle(order_service(db), place(("tea", 2))) == [
            KeyReused(order_id=saga_id_for("ada", "key-1"))
        ]
        after = judge.execute("select * from order_svc.inbox").fetchall()
    assert after == before
    assert [e.type for e in sent(judge, "order_svc")].count("StartSaga") == 1


async def test_a_late_order_hears_that_its_undo_came_first(settings: MakeSettings) -> None:
    """The caller that waits for the answer must get one."""
    order = place(("tea", 1))
    undo = command(RejectOrder(reason="timed out"), order.saga_id)
    async with Database(settings("order_svc")) as db:
        await list_tea(db)
        await handle(order_service(db), undo)
        (reply,) = await handle(order_service(db), order)
    assert reply is not None
    assert reply.outcome is Outcome.FENCED
