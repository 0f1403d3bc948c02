"""Orders parked at the gate while every process is killed; and orders that are cancelled."""

from __future__ import annotations

from uuid import UUID

from chaos.faults.nemesis import FullStop, struck
from chaos.load.shop import PLENTY, Shop, shop
from chaos.scenarios.people import expire
from chaos.stack.database import CONFIRMED, rejected
from chaos.stack.system import System
from chaos.waiting import until
from tests.support.saga import saga
from tests.support.stages import on

pytestmark = on("impatient")

EACH = 3


def parked(system: System, here: Shop, count: int) -> list[UUID]:
    """Place orders of a customer on the watch list and wait until they are parked."""
    saga(system, "watch", "add", here.customer("eve"), "--reason", "chargebacks")
    orders = system.door.place([here.order("eve", tea=1) for _ in range(count)])
    until(
        lambda: all(s.get("approve_order") == "waiting" for s in system.db.steps(orders)),
        f"{count} orders wait at their gate",
    )
    return orders


def test_parked_orders_survive_a_full_stop_and_end_as_decided(system: System) -> None:
    here = system.stock_up(
        shop("parked", stock={"tea": 100}, accounts={"eve": PLENTY, "ann": PLENTY})
    )
    orders = parked(system, here, 4 * EACH)
    (free,) = system.door.place([here.order("ann", tea=1)])
    assert system.db.ends([free]) == {free: CONFIRMED}
    system.verdict()  # at rest: parked, its stock held, nothing charged

    with struck(system, FullStop()):
        pass

    assert all(s["approve_order"] == "waiting" for s in system.db.steps(orders))
    listed = saga(system, "waiting", "--customer", here.customer("eve"))
    assert all(str(order)[:8] in listed for order in orders)
    assert f"1 x {here.sku('tea')}" in listed
    groups = [orders[n * EACH : (n + 1) * EACH] for n in range(4)]
    approved, refused, expired, cancelled = groups
    for order in approved:
        saga(system, "approve", str(order), "--reason", "known to us")
    for order in refused:
        saga(system, "reject", str(order), "--reason", "stolen card")
    for order in cancelled:
        heard = system.door.cancel(order)
        assert heard.json()["outcome"] in ("cancelling", "cancelled"), heard.text
    expire(system, expired)
    ends = dict.fromkeys(approved, CONFIRMED)
    for group, reason in ((refused, "rejected"), (expired, "expired"), (cancelled, "cancelled")):
        ends |= dict.fromkeys(group, rejected(reason))
    assert system.db.ends(orders) == ends
    saga(system, "approve", str(refused[0]), "--reason", "late", code=1)
    saga(system, "watch", "remove", here.customer("eve"), "--reason", "cleared")
    system.verdict()


def test_a_cancel_is_answered_by_whether_it_came_in_time(system: System) -> None:
    """Cancel before the saga starts, in a race with the pivot, and after it."""
    here = system.stock_up(shop("cancel", stock={"tea": 100}, accounts={"ann": PLENTY}))
    system.processes.stop("orchestrator")
    (unbegun,) = system.door.place([here.order("ann", tea=1)])
    for _ in range(2):  # asking again is safe
        early = system.door.cancel(unbegun)
        assert (early.status_code, early.json()["outcome"]) == (202, "asked")
    system.processes.start("orchestrator")
    assert system.db.ends([unbegun]) == {unbegun: rejected("cancelled")}
    again = system.door.cancel(unbegun)
    assert (again.status_code, again.json()["outcome"]) == (200, "cancelled")

    (gone,) = system.door.place([here.order("ann", tea=1)])
    assert system.db.ends([gone]) == {gone: CONFIRMED}
    late = system.door.cancel(gone)
    assert (late.status_code, late.json()["error"]) == (409, "too_late")

    racing = system.door.place([here.order("ann", tea=1) for _ in range(20)])
    told = {order: system.door.cancel(order) for order in racing}
    for order, end in system.db.ends(racing).items():
        status, said = told[order].status_code, told[order].json()
        if status == 409:
            assert end == CONFIRMED, said
        elif said["outcome"] in ("cancelled", "cancelling"):
            assert end == rejected("cancelled"), said
    system.verdict()
