"""Poison on any queue is dead-lettered with its reason, and its neighbours are handled."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from uuid import UUID, uuid4

from chaos.faults.poison import poisons
from chaos.load.shop import CURRENCY, PLENTY, PRICE, Shop, shop
from chaos.load.workload import Arrival, Catalogue
from chaos.stack.broker import command
from chaos.stack.database import CONFIRMED
from chaos.stack.system import System
from chaos.waiting import until
from common.messages.contracts import StartSaga
from common.messages.envelope import Envelope, pack
from common.messages.shop.inventory import ReceiveStock
from common.messages.shop.order import ListProduct
from common.messages.shop.payment import OpenAccount, PaymentCharged
from common.messages.topology import dead_letter_queue
from tests.support.stages import on

pytestmark = on("plain")

AMID = ("unknown_type", "wrong_message_id")  # also between good messages
NEW_SKUS = ("cup", "pot")
NEW_GOODS = (3, 4)
NEW_CUSTOMERS = ("bob", "eve")


def test_poison_on_every_queue_is_dead_lettered_in_full_flow(system: System) -> None:
    here = system.stock_up(shop("poison", stock={"tea": 500}, accounts={"ann": PLENTY}))
    early = system.door.place([here.order("ann", tea=1) for _ in range(2)])
    system.db.ends(early)
    told = neighbours(here, early)
    arrivals = tuple(Arrival(here.sku("tea"), n, "with poison") for n in NEW_GOODS)
    system.expect(Catalogue(stock=arrivals))

    with system.door.placing([here.order("ann", tea=1) for _ in range(100)]) as placed:
        for queue, (before, after) in told.items():
            poison = poisons(queue, early[0])
            bad = [poison[reason].decode()[1:-1] for reason in AMID]
            amid = pack([before.encode(), *bad, after.encode()])
            system.broker.send_raw(queue, amid, *poison.values())

    assert set(system.db.ends(placed.result()).values()) == {CONFIRMED}
    until(lambda: were_handled(system, here, early), "what came with the poison is handled")
    expected = Counter(
        (dead_letter_queue(queue), reason)
        for queue in told
        for reason in (*poisons(queue, early[0]), *AMID)
    )
    until(lambda: system.dead_letters().total() >= expected.total(), "all poison is taken in")
    assert system.dead_letters() == expected
    assert [s.name for s in system.runtime.status() if not s.ready] == []
    system.verdict(explained=expected)


def neighbours(here: Shop, ended: list[UUID]) -> dict[str, list[Envelope]]:
    """Make two messages for each queue, whose handling can be observed."""
    now = datetime.now(UTC)
    products = [ListProduct(sku=here.sku(s), price=PRICE, currency=CURRENCY) for s in NEW_SKUS]
    goods = [ReceiveStock(sku=here.sku("tea"), quantity=n) for n in NEW_GOODS]
    accounts = [OpenAccount(customer=here.customer(c), currency=CURRENCY) for c in NEW_CUSTOMERS]
    data = {
        "order_id": str(ended[0]), "customer": here.customer("ann"), "currency": CURRENCY,
        "total": PRICE, "lines": [{"sku": here.sku("tea"), "quantity": 1}],
    }  # fmt: skip
    again = StartSaga(definition="order", data=data)
    return {
        "order.commands": [command(uuid4(), "list_product", p) for p in products],
        "inventory.commands": [command(uuid4(), "receive_stock", g) for g in goods],
        "payment.commands": [command(uuid4(), "open_account", a) for a in accounts],
        # A resent start is answered with SagaStarted.
        "orchestrator.commands": [
            command(s, "start", again, reply_to="order.commands", attempt=2) for s in ended
        ],
        "orchestrator.replies": [
            command(s, "charge_payment", again).reply(PaymentCharged(charge_id=s), issued_at=now)
            for s in ended
        ],
    }


def were_handled(system: System, here: Shop, ended: list[UUID]) -> bool:
    skus = [here.sku(sku) for sku in NEW_SKUS]
    customers = [here.customer(who) for who in NEW_CUSTOMERS]
    seen = [
        system.db.rows("select sku from order_svc.product where sku = any(%s)", skus),
        system.db.rows(
            "select customer from payment_svc.account where customer = any(%s)", customers
        ),
        system.db.rows(
            "select at from inventory_svc.delivery where sku = %s and quantity = any(%s)",
            here.sku("tea"),
            list(NEW_GOODS),
        ),
        system.db.rows(
            "select order_id from order_svc.customer_order where saga_known and order_id = any(%s)",
            ended,
        ),
        system.db.rows(
            """
            select saga_id from orchestrator.saga_log
            where entry = 'ignored' and step = 'charge_payment' and saga_id = any(%s)""",
            ended,
        ),
    ]
    return all(len(rows) == 2 for rows in seen)
