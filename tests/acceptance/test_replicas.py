"""Two and three replicas of every consumer, on the same SKUs."""

from __future__ import annotations

import random

import pytest

from chaos.load.shop import PLENTY, shop
from chaos.stack.database import CONFIRMED, rejected
from chaos.stack.system import System
from tests.support.stages import CONSUMERS, on

pytestmark = on("replicas")

ORDERS = 400
SKUS = 100
PIECES = 12
CUSTOMERS = 4


@pytest.mark.parametrize("replicas", [3, 2])
def test_replicas_neither_oversell_nor_deadlock(system: System, replicas: int) -> None:
    """Place orders whose SKUs are in random order, so that every batch locks most of them."""
    here = system.stock_up(
        shop(
            f"contended-{replicas}",
            stock={f"s{n}": PIECES for n in range(SKUS)},
            accounts={f"c{n}": PLENTY for n in range(CUSTOMERS)},
        )
    )
    spare = [p for service in CONSUMERS for p in system.processes.replicas(service)[replicas:]]
    for process in spare:
        system.processes.stop(process)
    dice = random.Random(replicas)
    asks = []
    for _ in range(ORDERS):
        skus = dice.sample(range(SKUS), dice.randint(1, 5))
        pieces = {f"s{n}": dice.randint(1, 3) for n in skus}
        asks.append(here.order(f"c{dice.randrange(CUSTOMERS)}", **pieces))
    orders = system.door.place(asks)

    ends = system.db.ends(orders)
    assert set(ends.values()) == {CONFIRMED, rejected("out_of_stock")}
    sold = system.db.rows(
        "select on_hand, held, dispatched from inventory_svc.stock where sku = any(%s)",
        [product.sku for product in here.catalogue.products],
    )
    assert all(held == 0 and on_hand + dispatched == PIECES for on_hand, held, dispatched in sold)
    assert min(on_hand for on_hand, _, _ in sold) == 0, "nothing was contended"
    assert _deadlocks(system) == []
    processes = system.db.rows(
        "select distinct process from orchestrator.saga_log where saga_id = any(%s)", orders
    )
    assert {process for (process,) in processes} == set(
        system.processes.replicas("orchestrator")[:replicas]
    )
    for process in spare:
        system.processes.start(process)
    system.verdict()


def _deadlocks(system: System) -> list[str]:
    logs = ["postgres", *(p for service in CONSUMERS for p in system.processes.replicas(service))]
    return [line for log in logs for line in system.runtime.logs(log) if "deadlock" in line]
