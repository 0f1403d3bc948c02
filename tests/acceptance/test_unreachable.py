"""A participant that cannot be reached for longer than all attempts, and comes back."""

from __future__ import annotations

import random
from uuid import UUID

import pytest

from chaos.shop import PLENTY, shop
from chaos.system import CONFIRMED, End, System, rejected, until
from common.contracts import RefundPayment
from tests.acceptance.profiles import on

pytestmark = on("impatient")

SEEDS = 5
UNDO = RefundPayment.__name__
FENCED = rejected("dispatch_stock_timed_out")


@pytest.mark.parametrize("arrives", ["in order", "after its undo"])
def test_a_charge_whose_outcome_is_unknown_is_undone_too(system: System, arrives: str) -> None:
    here = system.stock_up(
        shop(f"unknown-{arrives[:2]}", stock={"tea": 50}, accounts={"ann": PLENTY})
    )
    system.stop("payment")
    orders = system.place([here.order("ann", tea=1) for _ in range(4)])
    until(lambda: _gave_up(system, orders), "every charge is given up and the stock released")
    # The undo that nobody confirms holds up the customer's answer, and nothing else.
    pending = system.rows(
        "select status from order_svc.customer_order where order_id = any(%s)", orders
    )
    assert pending == [("PENDING",)] * len(orders)
    if arrives == "after its undo":
        held_up = system.mail.take("payment.commands")
        system.mail.send("payment.commands", sorted(held_up, key=lambda e: e.type != UNDO))
    system.start("payment")

    assert set(system.ends(orders).values()) == {rejected("charge_payment_timed_out")}
    moves = system.rows(
        "select kind from payment_svc.transfer where saga_id = any(%s) order by kind", orders
    )
    if arrives == "after its undo":
        assert moves == []
        fenced = {UUID(line["saga_id"]) for line in system.logged("payment", "command.fenced")}
        assert fenced >= set(orders)
    else:
        assert moves == [("CHARGE",)] * len(orders) + [("REFUND",)] * len(orders)
    system.verdict()


def _gave_up(system: System, orders: list[UUID]) -> bool:
    steps = system.steps(orders)
    return all(
        (s.get("charge_payment"), s.get("reserve_stock")) == ("undoing", "undone") for s in steps
    )


def test_a_silent_pivot_is_fenced_and_its_answer_decides(system: System) -> None:
    """Either the goods left before the fence came, or they never will."""
    seen: set[End] = set()
    for seed in range(SEEDS):
        seen |= set(_silent_pivot(system, seed).values())
        if seen >= {CONFIRMED, FENCED}:
            break
    assert seen >= {CONFIRMED, FENCED}, f"of {seen} only, with the seeds below {SEEDS}"
    system.verdict()


def _silent_pivot(system: System, seed: int) -> dict[UUID, End]:
    """How orders end whose pivot is silent for all attempts, and whose pivot and fence then come
    in an order that the seed chooses."""
    here = system.stock_up(shop(f"pivot-{seed}", stock={"tea": 50}, accounts={"ann": PLENTY}))
    system.runtime.pause("payment")
    orders = system.place([here.order("ann", tea=1) for _ in range(8)])
    until(lambda: all("charge_payment" in s for s in system.steps(orders)), "stock is reserved")
    system.stop("inventory")
    system.runtime.resume("payment")
    until(lambda: all(map(_stands_still, system.steps(orders))), f"the fence is out, seed {seed}")
    for steps in system.steps(orders):
        if steps.get("dispatch_stock") == "fencing":  # the barrier: nothing is undone meanwhile
            assert (steps["charge_payment"], steps["reserve_stock"]) == ("done", "done")
    messages = system.mail.take("inventory.commands")
    random.Random(seed).shuffle(messages)
    system.mail.send("inventory.commands", messages)
    system.start("inventory")
    return system.ends(orders)


def _stands_still(steps: dict[str, str]) -> bool:
    """The fence is out; or the charge was too slow for this machine, and is undone."""
    return steps.get("dispatch_stock") == "fencing" or steps.get("reserve_stock") == "undoing"
