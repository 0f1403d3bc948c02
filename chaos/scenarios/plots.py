"""Scenarios with a plot: a refusal at each step, messages tampered with, and long silences.

Owns: bringing sagas to the point where it matters, and what must come of it. Must not know: how
a fault is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from uuid import UUID

from chaos.faults.nemesis import Nemesis, Unreachable
from chaos.faults.tampering import (
    DelayPastUndo,
    Duplicate,
    Lose,
    Poisoned,
    Reorder,
    Requeue,
    Tampering,
)
from chaos.judge.history import Refused
from chaos.load.shop import PLENTY
from chaos.scenarios.scene import PROFILES, Scenario, Scene, in_words
from chaos.stack.database import CONFIRMED, End, rejected
from chaos.waiting import ExperimentError, until

FEW = 8
FAILURES = 5  # of a compensation that then works
CHARGE_UNKNOWN = rejected("charge_payment_timed_out")
CHARGE_DEAD = rejected("charge_payment_dead_lettered")
FENCED = rejected("dispatch_stock_timed_out")
RESERVE_UNKNOWN = rejected("reserve_stock_timed_out")
TOO_SLOW = (CHARGE_UNKNOWN, RESERVE_UNKNOWN)
"""On a machine with much else to do a step may be given up before the plot begins."""


# --- refusals ------------------------------------------------------------------------------


def _refusal(reason: str, says: str, who: str, sku: str) -> Scenario:
    def play(scene: Scene) -> None:
        here = scene.shop(
            stock={"plenty": 10 * FEW, "rare": 1},
            unstocked=["promised"],
            accounts={"rich": PLENTY, "poor": 199, "declined": PLENTY},
            declined=["declined"],
        )
        asks = [here.order(who, **{"plenty": 2, sku: 2}) for _ in range(FEW)]
        scene.expect(scene.system.door.place(asks), rejected(reason))

    name = reason.replace("_", "-")
    return Scenario(name, says, "none", f"rejected: {reason}", play, "patient", orders=FEW)


def _refused_at_the_door(scene: Scene) -> None:
    """Nothing is written: neither an order nor a saga."""
    here = scene.shop(stock={"plenty": FEW}, accounts={"rich": PLENTY})
    asks = [here.order("rich", unheard_of=1) for _ in range(FEW)]
    accepted = [a for a in scene.system.door.place_file(asks) if not isinstance(a, Refused)]
    if accepted:
        raise ExperimentError(f"the door accepted {accepted[0].body}")


REFUSALS = (
    Scenario(
        "refused-at-the-door",
        "The SKU is not on the price list: create_order refuses, and no saga begins.",
        "none",
        "none is accepted",
        _refused_at_the_door,
        "patient",
        orders=FEW,
    ),
    _refusal("out_of_stock", "Inventory has too few.", "rich", "rare"),
    _refusal("not_stocked", "Inventory never had it.", "rich", "promised"),
    _refusal(
        "card_declined", "The card is declined; the goods are released.", "declined", "plenty"
    ),
    _refusal("insufficient_funds", "The money does not suffice.", "poor", "plenty"),
    _refusal("unknown_account", "Payment does not know the customer.", "stranger", "plenty"),
)


# --- messages ------------------------------------------------------------------------------


def _tampered(
    name: str, says: str, make: Callable[[Scene], Tampering], step: str, *ends: End
) -> Scenario:
    """The commands of a step wait for their participant, and are changed before it returns."""

    def play(scene: Scene) -> None:
        fault, asks = make(scene), scene.good()
        with scene.struck(fault):
            orders = scene.system.door.place(asks)
            scene.until_asked(orders, step)
        scene.under_way = len(orders)
        if not fault.moved:
            raise ExperimentError("there was no message to tamper with")
        scene.expect(orders, *ends)

    fault = make(Scene(system=None, name=name, seed=0, count=0))  # type: ignore[arg-type]
    return Scenario(name, says, fault.sentence, in_words(ends), play, "patient", orders=50)


def _requeue(scene: Scene) -> None:
    """Half come in flow; the rest while nobody reads, so that on a fast machine too some wait."""
    fault, system = _everything(scene), scene.system
    asks = scene.good()
    half = len(asks) // 2
    with system.door.placing(asks[:half]) as placed:
        until(lambda: system.db.alive() or placed.done(), "sagas are under way")
        with scene.struck(fault):
            late = system.door.place(asks[half:])
            scene.under_way = len(system.db.alive()) + len(late)
            until(
                lambda: not system.db.rows("select from order_svc.outbox limit 1"),
                "what the door has to say waits in the queues",
            )
    if not fault.moved:
        raise ExperimentError("all queues were empty")
    scene.expect([*placed.result(), *late], CONFIRMED)


def _everything(scene: Scene | None) -> Requeue:
    return Requeue("order,inventory,payment,orchestrator", scene.seed if scene else 0)


MESSAGES = (
    _tampered(
        "duplicate-charge",
        "Every charge comes three times; each customer is charged once.",
        lambda scene: Duplicate("payment", scene.seed),
        "charge_payment",
        CONFIRMED,
    ),
    _tampered(
        "duplicate-reserve",
        "Every reservation comes three times; the goods are held once.",
        lambda scene: Duplicate("inventory", scene.seed),
        "reserve_stock",
        CONFIRMED,
    ),
    _tampered(
        "reordered",
        "Inventory's commands come in another order.",
        lambda scene: Reorder("inventory", scene.seed),
        "reserve_stock",
        CONFIRMED,
    ),
    _tampered(
        "poisoned-charge",
        "Every charge is garbled on its way and set aside; its saga is told, and turns at once.",
        lambda scene: Poisoned("payment", scene.seed),
        "charge_payment",
        CHARGE_DEAD,
    ),
    Scenario(
        "requeue-shuffled",
        "All queues are drained in mid-flow; everything is put back in another order.",
        _everything(None).sentence,
        in_words([CONFIRMED]),
        _requeue,
        "patient",
    ),
)


# --- silence -------------------------------------------------------------------------------


def _charge_given_up(scene: Scene, fault: Nemesis) -> list[UUID]:
    """Payment is away until every charge is given up: the undo that nobody confirms holds up the
    customer's answer, and nothing else."""
    asks = scene.good()
    with scene.struck(fault):
        orders = scene.system.door.place(asks)
        scene.until_steps(
            orders,
            lambda s: (s.get("charge_payment"), s.get("reserve_stock")) == ("undoing", "undone"),
            "every charge is given up and the stock released",
        )
        pending = scene.system.db.rows(
            "select distinct status from order_svc.customer_order where order_id = any(%s)", orders
        )
        if pending != [("PENDING",)]:
            raise ExperimentError(f"a customer was told before all is undone: {pending}")
    scene.under_way = len(orders)
    scene.expect(orders, CHARGE_UNKNOWN)
    scene.system.db.ends(orders)
    _asked_no_more_than_allowed(scene, orders, "charge_payment")
    return orders


def _asked_no_more_than_allowed(scene: Scene, orders: Sequence[UUID], step: str) -> None:
    allowed = int(PROFILES["impatient"].settings["step_attempts"])
    rows = scene.system.db.rows(
        "select distinct steps->%s->>'attempt' from orchestrator.saga_instance"
        " where saga_id = any(%s)",
        step,
        list(orders),
    )
    if rows != [(str(allowed),)]:
        raise ExperimentError(f"{step} was asked for {rows} times; {allowed} are allowed")


def _moves(scene: Scene, orders: Sequence[UUID]) -> list[str]:
    rows = scene.system.db.rows(
        "select kind from payment_svc.transfer where saga_id = any(%s) order by kind", orders
    )
    return [kind for (kind,) in rows]


def _unreachable(scene: Scene) -> None:
    """The charge is found first when payment returns: it succeeds after its timeout."""
    orders = _charge_given_up(scene, Unreachable("payment"))
    moves = _moves(scene, orders)
    if moves != ["CHARGE"] * len(orders) + ["REFUND"] * len(orders):
        raise ExperimentError(f"not every charge was made and refunded: {moves}")


def _inventory_unreachable(scene: Scene) -> None:
    """Away until every reservation is given up, and its undo unconfirmed past its first deadline.
    The reservation is found first when inventory returns, and released."""
    asks, fault = scene.good(), Unreachable("inventory")
    with scene.struck(fault):
        orders = scene.system.door.place(asks)
        scene.until_steps(
            orders, lambda s: s.get("reserve_stock") == "undoing", "every reservation is given up"
        )
    scene.under_way = len(orders)
    scene.expect(orders, RESERVE_UNKNOWN)
    scene.system.db.ends(orders)
    _asked_no_more_than_allowed(scene, orders, "reserve_stock")
    held = scene.system.db.rows(
        "select status, count(*) from inventory_svc.reservation where saga_id = any(%s) group by 1",
        orders,
    )
    if held != [("RELEASED", len(orders))]:
        raise ExperimentError(f"not every reservation was made and released: {held}")


def _order_unreachable(scene: Scene) -> None:
    """Past the pivot there is only forward: confirm_order is asked for until it is answered."""
    asks = scene.good()
    allowed = int(PROFILES["impatient"].settings["step_attempts"])
    with scene.struck(Unreachable("order")):
        orders = scene.system.door.place(asks)
        until(
            lambda: (
                scene.system.db.rows(
                    "select count(*) from orchestrator.saga_instance where saga_id = any(%s)"
                    " and (steps->'confirm_order'->>'attempt')::int > %s",
                    orders,
                    allowed,
                )
                == [(len(orders),)]
            ),
            f"every confirmation was asked for more than {allowed} times",
        )
    scene.under_way = len(orders)
    scene.expect(orders, CONFIRMED)


def _late(scene: Scene) -> None:
    """The undo comes first: the charge finds its tombstone."""
    orders = _charge_given_up(scene, DelayPastUndo("payment", scene.seed))
    if moves := _moves(scene, orders):
        raise ExperimentError(f"a charge that came after its undo had an effect: {moves}")
    fenced = {
        UUID(line["saga_id"]) for line in scene.system.processes.logged("payment", "command.fenced")
    }
    if not fenced >= set(orders):
        raise ExperimentError("not every late charge is logged as fenced")


def _nothing(_: Sequence[UUID]) -> None:
    pass


def _silent_pivot(
    scene: Scene,
    fault: Nemesis,
    end: End,
    meanwhile: Callable[[Sequence[UUID]], object] = _nothing,
) -> list[UUID]:
    """Inventory is away from before the goods are to leave until the fence is out."""
    system, asks = scene.system, scene.good()
    system.runtime.pause("payment")
    try:
        orders = system.door.place(asks)
        scene.until_asked(orders, "charge_payment")
    except ExperimentError:
        system.runtime.resume("payment")
        raise
    with scene.struck(fault):
        system.runtime.resume("payment")
        scene.until_steps(orders, _stands_still, "the fence is out")
        fencing = [o for o, s in zip(orders, system.db.steps(orders), strict=True) if _fencing(s)]
        for steps in filter(_fencing, system.db.steps(orders)):  # the barrier
            if {"undoing", "undone"} & {steps["charge_payment"], steps["reserve_stock"]}:
                raise ExperimentError(f"something was undone before the fence's answer: {steps}")
        meanwhile(fencing)
    scene.under_way = len(orders)
    scene.expect(orders, end, *TOO_SLOW)
    scene.must_be_seen.add(end)
    return fencing


def _fencing(steps: dict[str, str]) -> bool:
    return steps.get("dispatch_stock") == "fencing"


def _stands_still(steps: dict[str, str]) -> bool:
    """The fence is out; or the charge was too slow for this machine, and is undone."""
    return _fencing(steps) or steps.get("reserve_stock") == "undoing"


def _pivot_done(scene: Scene) -> None:
    _silent_pivot(scene, Unreachable("inventory"), CONFIRMED)


def _pivot_lost(scene: Scene) -> None:
    _silent_pivot(scene, Lose("inventory", scene.seed), FENCED)


def _failing_refund(scene: Scene) -> None:
    """A row that payment needs is locked: each try fails, until it is let go."""
    system = scene.system
    with system.db.session("payment_svc") as session:
        fencing = _silent_pivot(
            scene,
            Lose("inventory", scene.seed),
            FENCED,
            lambda _: session.execute(
                "select from account where customer = %s for update", (f"{scene.name}.ann",)
            ),
        )
        before = len(system.processes.logged("payment", "batch.held"))
        scene.until_steps(
            fencing,
            lambda s: s["charge_payment"] == "undoing" and s["reserve_stock"] == "undone",
            "the stock is released while the refund fails",
        )
        until(
            lambda: len(system.processes.logged("payment", "batch.held")) >= before + FAILURES,
            f"the refund has failed {FAILURES} times",
        )
        told = system.db.rows(
            "select count(*) from order_svc.customer_order"
            " where status <> 'PENDING' and order_id = any(%s)",
            fencing,
        )
        if told != [(0,)]:
            raise ExperimentError(f"{told} customers were told before the refund")


SILENCE = (
    Scenario(
        "payment-unreachable",
        "Payment is away for longer than all attempts; the late charge is made and refunded.",
        Unreachable("payment").sentence,
        in_words([CHARGE_UNKNOWN]),
        _unreachable,
        "impatient",
        orders=FEW,
    ),
    Scenario(
        "charge-after-its-undo",
        "As before, and the charge comes after its undo: it is refused and charges nobody.",
        DelayPastUndo("payment", 0).sentence,
        in_words([CHARGE_UNKNOWN]),
        _late,
        "impatient",
        orders=FEW,
    ),
    Scenario(
        "inventory-unreachable",
        "Inventory is away for longer than all attempts; the late reservation is made and"
        " released.",
        Unreachable("inventory").sentence,
        in_words([RESERVE_UNKNOWN]),
        _inventory_unreachable,
        "impatient",
        orders=FEW,
    ),
    Scenario(
        "order-unreachable",
        "Past the pivot order is away for longer than all attempts: asked until it answers.",
        Unreachable("order").sentence,
        in_words([CONFIRMED]),
        _order_unreachable,
        "impatient",
        orders=FEW,
    ),
    Scenario(
        "silent-pivot-done",
        "Nobody hears whether the goods have left; they have, before the fence: forward.",
        Unreachable("inventory").sentence,
        in_words([CONFIRMED]),
        _pivot_done,
        "impatient",
        orders=FEW,
    ),
    Scenario(
        "silent-pivot-lost",
        "Nobody hears whether the goods have left; the fence comes first: all is undone.",
        Lose("inventory", 0).sentence,
        in_words([FENCED]),
        _pivot_lost,
        "impatient",
        orders=FEW,
    ),
    Scenario(
        "failing-refund",
        f"A refund fails {FAILURES} times; the release behind it is not held up, and the customer"
        " is told last.",
        f"{Lose('inventory', 0).sentence}; a lock on the customer's account",
        in_words([FENCED]),
        _failing_refund,
        "impatient",
        orders=FEW,
    ),
)
