"""Every refusal, end to end: the order, its saga as the customer sees it, and the verdict."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from chaos.load.shop import PLENTY, Shop, shop
from chaos.stack.broker import command
from chaos.stack.database import CONFIRMED, rejected
from chaos.stack.system import System
from chaos.waiting import until
from common.messages.shop.inventory import ReleaseStock
from tests.support.stages import on

pytestmark = on("plain")

STEPS = (
    "create_order",
    "reserve_stock",
    "approve_order",
    "charge_payment",
    "dispatch_stock",
    "confirm_order",
)
AT_STOCK = ("undone", "refused", "not_sent", "not_sent", "not_sent", "not_sent")
AT_PAYMENT = ("undone", "undone", "open", "refused", "not_sent", "not_sent")


def saga_of(system: System, order_id: UUID) -> Any:
    """Wait for the end of the saga and return the customer's view of it."""

    def ended() -> Any:
        view = system.door.get(f"/orders/{order_id}/saga")
        return view if view["ended_at"] else None

    return until(ended, f"saga {order_id} ends")


def steps_of(view: Any) -> dict[str, str]:
    return {step["step"]: step["status"] for step in view["steps"]}


@pytest.mark.parametrize(
    ("reason", "who", "sku", "steps"),
    [
        ("out_of_stock", "rich", "rare", AT_STOCK),
        ("not_stocked", "rich", "promised", AT_STOCK),
        ("card_declined", "declined", "plenty", AT_PAYMENT),
        ("insufficient_funds", "poor", "plenty", AT_PAYMENT),
        ("unknown_account", "stranger", "plenty", AT_PAYMENT),
    ],
)
def test_a_refusal_turns_the_saga_and_undoes_what_was_done(
    system: System, reason: str, who: str, sku: str, steps: tuple[str, ...]
) -> None:
    here = system.stock_up(
        shop(
            f"refusal-{reason}",
            stock={"plenty": 10, "rare": 1},
            unstocked=["promised"],
            accounts={"rich": PLENTY, "poor": 199, "declined": PLENTY},
            declined=["declined"],
        )
    )
    (order_id,) = system.door.place([here.order(who, **{"plenty": 2, sku: 2})])

    assert system.db.ends([order_id]) == {order_id: rejected(reason)}
    order = system.door.get(f"/orders/{order_id}")
    assert (order["status"], order["reason"]) == ("REJECTED", reason)
    view = saga_of(system, order_id)
    assert (view["state"], view["reason"], view["pivot_passed"]) == ("COMPENSATED", reason, False)
    assert steps_of(view) == dict(zip(STEPS, steps, strict=True))
    compensated = {step["step"] for step in view["steps"] if step["compensated"]}
    assert compensated == {s for s, status in steps_of(view).items() if status == "undone"}
    system.verdict()


def test_a_released_reservation_at_the_pivot_refunds_the_charge(system: System) -> None:
    """Release the reservation by a command from outside; that undo is final."""
    here = system.stock_up(shop("not-held", stock={"tea": 5}, accounts={"ann": PLENTY}))
    system.processes.stop("payment")
    (order_id,) = system.door.place([here.order("ann", tea=2)])
    until(
        lambda: system.db.steps([order_id])[0].get("charge_payment"),
        "the charge is asked for",
    )
    system.broker.send("inventory.commands", [command(order_id, "reserve_stock", ReleaseStock())])
    until(
        lambda: system.db.rows(
            "select 1 from inventory_svc.reservation where saga_id = %s and status = 'RELEASED'",
            order_id,
        ),
        "the reservation is released",
    )
    system.processes.start("payment")

    assert system.db.ends([order_id]) == {order_id: rejected("reservation_not_held")}
    view = saga_of(system, order_id)
    assert (view["state"], view["pivot_passed"]) == ("COMPENSATED", False)
    statuses = ("undone", "undone", "open", "undone", "refused", "not_sent")
    assert steps_of(view) == dict(zip(STEPS, statuses, strict=True))
    moves = system.db.rows(
        "select kind, amount from payment_svc.transfer where saga_id = %s order by at", order_id
    )
    assert moves == [("CHARGE", 200), ("REFUND", 200)]
    system.verdict()


def test_an_accepted_order_is_charged_dispatched_and_confirmed(system: System) -> None:
    here = system.stock_up(shop("goes-well", stock={"tea": 5}, accounts={"ann": 500}))
    answer = system.door.post(here.order("ann", tea=2))
    assert answer.status_code == 202
    order_id = UUID(answer.json()["order_id"])

    assert system.db.ends([order_id]) == {order_id: CONFIRMED}
    view = saga_of(system, order_id)
    assert (view["state"], view["reason"], view["pivot_passed"]) == ("COMPLETED", None, True)
    assert set(steps_of(view).values()) == {"done", "open"}
    assert system.db.rows(
        "select balance from payment_svc.account where customer = %s", here.customer("ann")
    ) == [(300,)]
    assert system.db.rows(
        "select on_hand, held, dispatched from inventory_svc.stock where sku = %s", here.sku("tea")
    ) == [(3, 0, 2)]
    system.verdict()


def test_an_invalid_order_gets_the_reason_and_writes_nothing(system: System) -> None:
    here = system.stock_up(shop("invalid", stock={"tea": 5}, accounts={"ann": PLENTY}))
    right = here.order("ann", tea=1)
    line = right.body["lines"][0]
    wrong: dict[str, dict[str, Any]] = {
        "lines": {"lines": []},
        "lines[0].quantity": {"lines": [{**line, "quantity": 0}]},
        "lines[0].sku": {"lines": [{**line, "sku": here.sku("unheard-of")}]},
        "lines[1].sku": {"lines": [line, line]},
        "currency": {"currency": "XXX"},
        "customer": {"customer": ""},
    }
    for field, change in wrong.items():
        answer = system.door.post(replace(right, body={**right.body, **change}))
        assert answer.status_code == 422, field
        assert answer.json()["field"] == field
        assert answer.json()["remedy"]
    assert order_count(system, here) == 0

    # The key was not used up: the corrected order may have it.
    answer = system.door.post(right)
    assert answer.status_code == 202
    system.db.ends([UUID(answer.json()["order_id"])])
    system.verdict()


def test_a_key_stands_for_one_order_for_ever(system: System) -> None:
    here = system.stock_up(shop("key", stock={"tea": 5}, accounts={"ann": PLENTY}))
    first = here.order("ann", tea=1)
    told = system.door.post(first)
    assert told.status_code == 202
    order_id = UUID(told.json()["order_id"])
    system.db.ends([order_id])

    again = system.door.post(first)
    assert (again.status_code, again.json()) == (202, told.json())
    other = system.door.post(replace(here.order("ann", tea=2), key=first.key))
    assert other.status_code == 409
    assert other.json()["error"] == "idempotency_key_reused"
    assert str(order_id) in other.json()["remedy"]
    assert order_count(system, here) == 1
    system.verdict()


def order_count(system: System, here: Shop) -> int:
    ((count,),) = system.db.rows(
        "select count(*) from order_svc.customer_order where customer like %s", f"{here.name}.%"
    )
    return int(count)
