"""A release that fails on every message, on a whole stack: /ready says so until it is replaced."""

from __future__ import annotations

from chaos.load.shop import PLENTY, shop
from chaos.scenarios.rolling import Replace, release
from chaos.stack.database import CONFIRMED, rejected
from chaos.stack.system import System
from chaos.waiting import until
from tests.support.saga import saga
from tests.support.stages import on

pytestmark = on("defective")

LOOKS = 8  # from the third on, all messages come as redelivered
DECLINED = rejected("card_declined")


def test_a_bad_deploy_dead_letters_nothing_until_it_is_replaced(
    system: System,
) -> None:
    system.processes.stop("inventory")
    release(system)
    system.processes.start("inventory")
    stock = {"tea": 50, "cup.brittle": 50}
    here = shop("bad-deploy", stock=stock, accounts={"ann": PLENTY, "eve": 0}, declined=["eve"])
    system.stock_up(here)
    orders = system.door.place([here.order("eve", **{"cup.brittle": 1}) for _ in range(4)])
    before = len(system.processes.logged("inventory", "daemon.bad_deploy"))
    until(
        lambda: len(system.processes.logged("inventory", "daemon.bad_deploy")) >= before + LOOKS,
        "it requeued everything and tried again, repeatedly",
    )
    assert not system.processes.is_ready("inventory")
    assert {steps["reserve_stock"] for steps in system.db.steps(orders)} == {"undoing"}
    assert "no open dead letter" in saga(system, "dead-letters", "list")

    roll_back = Replace("inventory")
    roll_back.inject(system)
    roll_back.heal(system)
    assert set(system.db.ends(orders).values()) == {DECLINED}
    (neighbour,) = system.door.place([here.order("ann", tea=1)])
    assert system.db.ends([neighbour]) == {neighbour: CONFIRMED}
    assert "no open dead letter" in saga(system, "dead-letters", "list")
    saga(system, "audit")
    system.verdict()
