"""Scenarios in which messages are refused, repeated, reordered, garbled or put back shuffled.

Owns: which commands are changed, and what must come of it. Must not know: how a fault is done.
"""

from __future__ import annotations

from collections.abc import Callable

from chaos.faults.tampering import Duplicate, Poisoned, Reorder, Requeue, Tampering
from chaos.judge.history import Refused
from chaos.load.shop import PLENTY
from chaos.scenarios.scene import Scenario, Scene, scenario
from chaos.scenarios.situations import CHARGE_WAITS, RESERVATION_WAITS, Situation, reach
from chaos.stack.database import CONFIRMED, End, rejected
from chaos.waiting import ExperimentError, until

FEW = 8
MANY = 50
CHARGE_DEAD = rejected("charge_payment_dead_lettered")


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

    return scenario(reason.replace("_", "-"), says, play, rejected(reason), orders=FEW)


def _refused_at_the_door(scene: Scene) -> None:
    """Nothing is written: neither an order nor a saga."""
    here = scene.shop(stock={"plenty": FEW}, accounts={"rich": PLENTY})
    asks = [here.order("rich", unheard_of=1) for _ in range(FEW)]
    accepted = [a for a in scene.system.door.place_file(asks) if not isinstance(a, Refused)]
    if accepted:
        raise ExperimentError(f"the door accepted {accepted[0].body}")


def _tampered(
    name: str, says: str, situation: Situation, make: Callable[[int], Tampering], end: End
) -> Scenario:
    """Change the commands of a step while they wait for their participant."""

    def play(scene: Scene) -> None:
        fault = make(scene.seed)
        with reach(scene, situation, fault) as orders:
            scene.expect(orders, end)
        if not fault.moved:
            raise ExperimentError("there was no message to tamper with")

    return scenario(name, says, play, end, faults=[make(0)], orders=MANY)


def _everything(seed: int) -> Requeue:
    return Requeue("order,inventory,payment,orchestrator", seed)


def _requeue(scene: Scene) -> None:
    """Half come in flow; the rest while no queue is read, so that on a fast machine some wait."""
    fault, system, asks = _everything(scene.seed), scene.system, scene.good()
    half = len(asks) // 2
    with system.door.placing(asks[:half]) as placed:
        until(lambda: system.db.alive() or placed.done(), "sagas are under way")
        with scene.struck(fault):
            late = system.door.place(asks[half:])
            scene.under_way = len(system.db.alive()) + len(late)
            until(
                lambda: not system.db.rows("select from order_svc.outbox limit 1"),
                "what the door has sent waits in the queues",
            )
    if not fault.moved:
        raise ExperimentError("all queues were empty")
    scene.expect([*placed.result(), *late], CONFIRMED)


REFUSALS = (
    scenario(
        "refused-at-the-door",
        "The SKU is not on the price list: create_order refuses, and no saga begins.",
        _refused_at_the_door, expects="none is accepted", orders=FEW,
    ),
    _refusal("out_of_stock", "Inventory has too few.", "rich", "rare"),
    _refusal("not_stocked", "Inventory never had it.", "rich", "promised"),
    _refusal(
        "card_declined", "The card is declined; the goods are released.", "declined", "plenty"
    ),
    _refusal("insufficient_funds", "The money does not suffice.", "poor", "plenty"),
    _refusal("unknown_account", "The customer has no account.", "stranger", "plenty"),
)  # fmt: skip
MESSAGES = (
    _tampered(
        "duplicate-charge", "Every charge comes three times; each customer is charged once.",
        CHARGE_WAITS, lambda seed: Duplicate("payment", seed), CONFIRMED,
    ),
    _tampered(
        "duplicate-reserve", "Every reservation comes three times; the goods are reserved once.",
        RESERVATION_WAITS, lambda seed: Duplicate("inventory", seed), CONFIRMED,
    ),
    _tampered(
        "reordered", "Inventory's commands come in another order.",
        RESERVATION_WAITS, lambda seed: Reorder("inventory", seed), CONFIRMED,
    ),
    _tampered(
        "poisoned-charge",
        "Every charge is garbled on its way and dead-lettered; its saga compensates at once.",
        CHARGE_WAITS, lambda seed: Poisoned("payment", seed), CHARGE_DEAD,
    ),
    scenario(
        "requeue-shuffled",
        "All queues are drained in mid-flow; everything is put back in another order.",
        _requeue, CONFIRMED, faults=[_everything(0)],
    ),
)  # fmt: skip
