"""Scenarios of orders given back, where two sagas meet on one record.

Owns: bringing orders and returns together, and what must come of it. Must not know: how a fault is
done.
"""

from __future__ import annotations

from uuid import UUID

from chaos.faults.nemesis import Freeze, Kill, Nemesis
from chaos.scenarios.scene import CHOREOGRAPHED, ORCHESTRATED, Scene, scenario
from chaos.scenarios.situations import CHARGE_WAITS, reach
from chaos.stack.database import CONFIRMED, RETURNED
from chaos.waiting import ExperimentError

FEW = 20
PARTICIPANTS = tuple(map(Kill, ("order", "payment", "inventory")))
ALL = (Kill("orchestrator"), *PARTICIPANTS)


def confirmed(scene: Scene) -> list[UUID]:
    orders = scene.system.door.place(scene.good())
    scene.system.db.ends(orders)
    return orders


def _given_back(scene: Scene, *faults: Nemesis) -> None:
    orders = confirmed(scene)
    with scene.struck(*faults):
        accepted = scene.system.door.give_back(orders, "first")
    scene.under_way = len(orders)
    if None in accepted:
        raise ExperimentError("a confirmed order was not taken back")
    if scene.system.door.give_back(orders, "first") != accepted:
        raise ExperimentError("the same key twice is not the same return")
    scene.expect(orders, RETURNED)


def _raced(scene: Scene) -> None:
    """Three attempts at each order at once: its lock lets in one."""
    orders = confirmed(scene)
    answers = scene.system.door.give_back(orders, "one", "two", "three")
    let_in = [sum(a is not None for a in answers[n : n + 3]) for n in range(0, len(answers), 3)]
    if set(let_in) != {1}:
        raise ExperimentError(f"of three attempts at an order so many were let in: {let_in}")
    scene.under_way = len(orders)
    scene.expect(orders, RETURNED)


def _too_early(scene: Scene) -> None:
    """While the order's own saga is at work on it, it cannot go back; afterwards it can."""
    with reach(scene, CHARGE_WAITS, Freeze("payment")) as orders:
        early = scene.system.door.give_back(orders, "first")
    if any(early):
        raise ExperimentError("an order that is not confirmed was taken back")
    scene.system.db.ends(orders)
    later = scene.system.door.give_back(orders[::2], "first")
    if None in later:
        raise ExperimentError("a confirmed order was not taken back")
    scene.expect(orders[::2], RETURNED)
    scene.expect(orders[1::2], CONFIRMED)


RETURNS = (
    scenario(
        "given-back", "Confirmed orders go back: refunded once, goods on the shelf again.",
        _given_back, RETURNED, orders=FEW,
    ),
    scenario(
        "returns-race", "Every order is given back three times at once; one return is let in.",
        _raced, RETURNED, orders=FEW,
    ),
    scenario(
        "return-meets-order",
        "An order is given back while its own saga is at work on it, and again later.",
        _too_early, CONFIRMED, RETURNED, orders=FEW,
    ),
    scenario(
        "kill-everybody-in-return", "Orders go back; all services die at once.",
        lambda scene: _given_back(scene, *ALL),
        RETURNED, faults=ALL, orders=FEW, styles=ORCHESTRATED,
    ),
    scenario(
        "kill-participants-in-return",
        "Orders go back without an orchestrator; all participants die at once.",
        lambda scene: _given_back(scene, *PARTICIPANTS),
        RETURNED, faults=PARTICIPANTS, orders=FEW, styles=CHOREOGRAPHED,
    ),
)  # fmt: skip
