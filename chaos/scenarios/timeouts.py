"""Scenarios in which a participant is away for longer than all attempts at its step.

Owns: what must be true while it is away, and what must come of it. Must not know: how a fault is
done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from uuid import UUID

from chaos.faults.nemesis import Nemesis, Unreachable
from chaos.faults.tampering import DelayPastUndo, Lose
from chaos.scenarios import situations
from chaos.scenarios.scene import PROFILES, Scenario, Scene, scenario
from chaos.scenarios.situations import CHARGE_TIMED_OUT, FENCED, RESERVE_TIMED_OUT, fencing, reach
from chaos.stack.database import CONFIRMED, End
from chaos.waiting import ExperimentError, until

FEW = 8
FAILURES = 5  # of a compensation that then works
ATTEMPTS = int(PROFILES["impatient"].settings["step_attempts"])


def _must_be(found: object, wanted: object, what: str) -> None:
    if found != wanted:
        raise ExperimentError(f"{what}: {found}")


def _charge_given_up(scene: Scene, fault: Nemesis) -> list[UUID]:
    """Require that the unconfirmed undo holds up the customer's answer, and nothing else."""
    with reach(scene, situations.STOCK_RELEASED, fault) as orders:
        pending = scene.system.db.rows(
            "select distinct status from order_svc.customer_order where order_id = any(%s)", orders
        )
        _must_be(pending, [("PENDING",)], "a customer was answered before all is undone")
    scene.system.db.ends(orders)
    _asked_as_often_as_allowed(scene, orders, "charge_payment")
    return orders


def _asked_as_often_as_allowed(scene: Scene, orders: Sequence[UUID], step: str) -> None:
    rows = scene.system.db.rows(
        "select distinct steps->%s->>'attempt' from orchestrator.saga_instance"
        " where saga_id = any(%s)",
        step,
        list(orders),
    )
    _must_be(rows, [(str(ATTEMPTS),)], f"{step} has {ATTEMPTS} attempts, and took")


def _transfers(scene: Scene, orders: Sequence[UUID]) -> list[str]:
    rows = scene.system.db.rows(
        "select kind from payment_svc.transfer where saga_id = any(%s) order by kind", orders
    )
    return [kind for (kind,) in rows]


def _payment_unreachable(scene: Scene) -> None:
    """Payment finds the charge first when it returns: it succeeds after its timeout."""
    orders = _charge_given_up(scene, Unreachable("payment"))
    both = ["CHARGE"] * len(orders) + ["REFUND"] * len(orders)
    _must_be(_transfers(scene, orders), both, "not every charge was made and refunded")


def _charge_after_its_undo(scene: Scene) -> None:
    """Payment finds the undo first: the charge meets its tombstone."""
    orders = _charge_given_up(scene, DelayPastUndo("payment", scene.seed))
    _must_be(_transfers(scene, orders), [], "a charge that came after its undo had an effect")
    fenced = {
        UUID(line["saga_id"]) for line in scene.system.processes.logged("payment", "command.fenced")
    }
    if not fenced >= set(orders):
        raise ExperimentError("not every late charge is logged as fenced")


def _inventory_unreachable(scene: Scene) -> None:
    """Inventory finds the reservation first when it returns, and releases it."""
    with reach(scene, situations.RESERVATION_GIVEN_UP) as orders:
        pass
    scene.system.db.ends(orders)
    _asked_as_often_as_allowed(scene, orders, "reserve_stock")
    found = scene.system.db.rows(
        "select status, count(*) from inventory_svc.reservation where saga_id = any(%s) group by 1",
        orders,
    )
    _must_be(found, [("RELEASED", len(orders))], "not every reservation was made and released")


def _order_unreachable(scene: Scene) -> None:
    """Past the pivot there is only forward: confirm_order is resent until it is answered."""
    with reach(scene, situations.CONFIRMATION_WAITS) as orders:
        more = (
            "select from orchestrator.saga_instance where saga_id = any(%s)"
            " and (steps->'confirm_order'->>'attempt')::int > %s"
        )
        until(
            lambda: scene.count_rows(more, orders, ATTEMPTS) == len(orders),
            f"every confirmation was asked for more than {ATTEMPTS} times",
        )


def _silent_pivot(
    scene: Scene,
    fault: Nemesis,
    end: End,
    meanwhile: Callable[[], object] = lambda: None,
) -> list[UUID]:
    """Give up the pivot; nothing is undone until its fence is answered (rule 1)."""
    with reach(scene, situations.FENCE_WAITS, fault) as orders:
        steps = dict(zip(orders, scene.system.db.steps(orders), strict=True))
        fenced = [order for order in orders if fencing(steps[order])]
        for order in fenced:
            if {"undoing", "undone"} & {
                steps[order]["charge_payment"], steps[order]["reserve_stock"]
            }:  # fmt: skip
                raise ExperimentError(f"something was undone before the fence: {steps[order]}")
        meanwhile()
    scene.expect(orders, end, CHARGE_TIMED_OUT, RESERVE_TIMED_OUT)  # on a slow machine
    scene.must_be_seen.add(end)
    return fenced


def _pivot_done(scene: Scene) -> None:
    _silent_pivot(scene, Unreachable("inventory"), CONFIRMED)


def _pivot_lost(scene: Scene) -> None:
    _silent_pivot(scene, Lose("inventory", scene.seed), FENCED)


def _failing_refund(scene: Scene) -> None:
    """Lock a row that payment needs: each try fails until the lock is released."""
    system = scene.system
    with system.db.session("payment_svc") as session:
        fenced = _silent_pivot(
            scene,
            Lose("inventory", scene.seed),
            FENCED,
            lambda: session.execute(
                "select from account where customer = %s for update", (f"{scene.name}.ann",)
            ),
        )
        before = len(system.processes.logged("payment", "batch.held"))
        scene.until_steps(
            fenced,
            lambda s: s["charge_payment"] == "undoing" and s["reserve_stock"] == "undone",
            "the stock is released while the refund fails",
        )
        until(
            lambda: len(system.processes.logged("payment", "batch.held")) >= before + FAILURES,
            f"the refund has failed {FAILURES} times",
        )
        answered = (
            "select from order_svc.customer_order where status <> 'PENDING' and order_id = any(%s)"
        )
        _must_be(scene.count_rows(answered, fenced), 0, "answered before the refund")


def _timeout(
    name: str, says: str, fault: Nemesis, play: Callable[[Scene], None], end: End
) -> Scenario:
    return scenario(name, says, play, end, faults=[fault], profile="impatient", orders=FEW)


TIMEOUTS = (
    _timeout(
        "payment-unreachable",
        "Payment is away for longer than all attempts; the late charge is made and refunded.",
        Unreachable("payment"), _payment_unreachable, CHARGE_TIMED_OUT,
    ),
    _timeout(
        "charge-after-its-undo",
        "As before, and the charge comes after its undo: it is refused, and no customer charged.",
        DelayPastUndo("payment", 0), _charge_after_its_undo, CHARGE_TIMED_OUT,
    ),
    _timeout(
        "inventory-unreachable",
        "Inventory is away for longer than all attempts; the late reservation is made and"
        " released.",
        Unreachable("inventory"), _inventory_unreachable, RESERVE_TIMED_OUT,
    ),
    _timeout(
        "order-unreachable",
        "Past the pivot, order is away for longer than all attempts: resent until it answers.",
        Unreachable("order"), _order_unreachable, CONFIRMED,
    ),
    _timeout(
        "silent-pivot-done",
        "Inventory does not answer whether the goods have left; they have, before the fence:"
        " forward.",
        Unreachable("inventory"), _pivot_done, CONFIRMED,
    ),
    _timeout(
        "silent-pivot-lost",
        "Inventory does not answer whether the goods have left; the fence comes first: all is"
        " undone.",
        Lose("inventory", 0), _pivot_lost, FENCED,
    ),
    _timeout(
        "failing-refund",
        f"A refund fails {FAILURES} times, behind a lock on the account; the release after it is"
        " not held up, and the customer is answered last.",
        Lose("inventory", 0), _failing_refund, FENCED,
    ),
)  # fmt: skip
