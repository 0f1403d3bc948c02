"""Scenarios in which people decide: orders parked at their gate, operators, customers who cancel.

Owns: who asks for what while something is broken, and that everyone is told the truth. Must not
know: how a fault is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import httpx
import psycopg

from chaos.faults.nemesis import Freeze, FullStop, Kill, KillRepeatedly, Nemesis
from chaos.scenarios.scene import ORCHESTRATED, Scene, scenario
from chaos.scenarios.situations import CHARGE_WAITS, PARKED, reach
from chaos.stack.database import CONFIRMED, End, rejected
from chaos.stack.system import System
from chaos.waiting import ExperimentError

EACH = 6  # orders that are decided alike
PEOPLE = 4  # who decide about the same order at the same time
DECIDED, CONFLICT = 200, 409
REJECTED, EXPIRED, CANCELLED = map(rejected, ("rejected", "expired", "cancelled"))
SERVICES = ("orchestrator", "order", "payment", "inventory", "door", "operator")


def _outlived(make: Callable[[], Sequence[Nemesis]]) -> Callable[[Scene], None]:
    """Strike while orders wait; then people decide about some and leave others for a week."""

    def play(scene: Scene) -> None:
        system = scene.system
        with reach(scene, PARKED) as orders:
            approved, refused, unwanted, left = (
                orders[n * EACH : (n + 1) * EACH] for n in range(4)
            )  # fmt: skip
        with scene.struck(*make()):
            pass
        if [s["approve_order"] for s in system.db.steps(orders)] != ["waiting"] * len(orders):
            raise ExperimentError("an order was decided before anyone decided")
        for verb, group, end in (("approve", approved, CONFIRMED), ("reject", refused, REJECTED)):
            answers = [system.operator.decide(verb, order) for order in group]
            if any(answer.status_code != DECIDED for answer in answers):
                raise ExperimentError(f"{verb} was refused: {[a.text for a in answers]}")
            scene.expect(group, end)
        for order in unwanted:
            system.door.cancel(order).raise_for_status()
        scene.expect(unwanted, CANCELLED)
        expire(system, left)
        scene.expect(left, EXPIRED)
        system.db.ends(orders)  # what is parked is at rest: not before all have expired

    return play


def expire(system: System, orders: Sequence[UUID]) -> None:
    """Make orders as if no one had decided in a week."""
    with psycopg.connect(system.endpoints.superuser_dsn, autocommit=True) as server:
        server.execute(
            """
            update orchestrator.saga_instance
            set next_deadline = now(), steps = jsonb_set(steps, '{approve_order,deadline}', '0')
            where saga_id = any(%s)""",
            (list(orders),),
        )


def _contested(scene: Scene) -> None:
    """Let several people decide about one order at once, and customers cancel approved ones."""
    system = scene.system
    with reach(scene, PARKED) as orders:
        contested, unwanted = orders[:EACH], orders[EACH:]
    with ThreadPoolExecutor(PEOPLE) as people, scene.struck(KillRepeatedly("orchestrator")):
        for order in contested:
            verbs = ("approve", "reject") * (PEOPLE // 2)
            answers = [people.submit(system.operator.decide, verb, order) for verb in verbs]
            scene.expect([order], _the_one(verbs, [answer.result() for answer in answers]))
        for order in unwanted:
            approval = people.submit(system.operator.decide, "approve", order)
            cancel = people.submit(system.door.cancel, order)
            approval.result()
            scene.expect([order], *_ends_after(cancel.result()))
    system.db.ends(orders)


def _changed_their_mind(scene: Scene) -> None:
    """Let customers cancel before the goods leave, while they may be leaving, and too late."""
    system, asks = scene.system, scene.good()
    early, racing, late = asks[:EACH], asks[EACH:-EACH], asks[-EACH:]
    with ThreadPoolExecutor(EACH) as customers:
        with reach(scene, CHARGE_WAITS, Freeze("payment"), asks=early) as orders:
            _answered(scene, orders, list(customers.map(system.door.cancel, orders)), too_late=0)
        orders = system.door.place(racing)
        with scene.struck(KillRepeatedly("inventory")):
            _answered(scene, orders, list(customers.map(system.door.cancel, orders)))
        orders = system.door.place(late)
        system.db.ends(orders)
        answers = list(customers.map(system.door.cancel, orders))
        _answered(scene, orders, answers, too_late=len(orders))
    scene.must_be_seen |= {CONFIRMED, CANCELLED}


def _answered(
    scene: Scene,
    orders: Sequence[UUID],
    answers: Sequence[httpx.Response],
    too_late: int | None = None,
) -> None:
    """Check what customers were told: so many, if given, that it is too late."""
    conflicts = [answer.json() for answer in answers if answer.status_code == CONFLICT]
    if too_late not in (None, len(conflicts)) or any(not body["remedy"] for body in conflicts):
        raise ExperimentError(f"{len(conflicts)} were told that it is too late: {conflicts[:1]}")
    for order, answer in zip(orders, answers, strict=True):
        scene.expect([order], *_ends_after(answer))


def _the_one(verbs: Sequence[str], answers: Sequence[httpx.Response]) -> End:
    """Return the end that the one who decided wanted; the others must have been told."""
    won = [verb for verb, a in zip(verbs, answers, strict=True) if a.status_code == DECIDED]
    lost = [a.json()["error"] for a in answers if a.status_code == CONFLICT]
    if len(won) != 1 or lost != ["already_decided"] * (len(verbs) - 1):
        raise ExperimentError(f"not exactly one decided: {[answer.text for answer in answers]}")
    return {"approve": CONFIRMED, "reject": REJECTED}[won[0]]


def _ends_after(answer: httpx.Response) -> Sequence[End]:
    """Return the ends that the answer to a customer's cancel leaves open."""
    if answer.status_code == CONFLICT:
        return (CONFIRMED,)
    certain = answer.json().get("outcome") in ("cancelled", "cancelling")
    return (CANCELLED,) if certain else (CANCELLED, CONFIRMED)


PEOPLE_DECIDE = (
    scenario(
        "parked-through-deaths",
        "Large orders wait for a person while every service dies; some are approved, some"
        " rejected, some cancelled by their customers, and some left to expire.",
        _outlived(lambda: [Kill(service) for service in SERVICES]),
        CONFIRMED, REJECTED, CANCELLED, EXPIRED,
        fault="SIGKILL to every service at once",
        profile="gated", orders=4 * EACH, styles=ORCHESTRATED,
    ),
    scenario(
        "parked-through-a-full-stop",
        "Large orders wait for a person while everything there is stops, Postgres and RabbitMQ"
        " too, and starts again; some are approved, some rejected, some cancelled by their"
        " customers, and some left to expire.",
        _outlived(lambda: [FullStop()]), CONFIRMED, REJECTED, CANCELLED, EXPIRED,
        faults=[FullStop()], profile="gated", orders=4 * EACH, styles=ORCHESTRATED,
    ),
    scenario(
        "people-at-once",
        "Several people decide about the same order at the same moment: one does, the others are"
        " told who. What an operator approves its customer cancels: they are told the truth.",
        _contested, CONFIRMED, REJECTED, CANCELLED,
        faults=[KillRepeatedly("orchestrator")],
        profile="gated", orders=3 * EACH, styles=ORCHESTRATED,
    ),
    scenario(
        "customers-cancel",
        "Customers cancel before the goods leave, while they may be leaving, and afterwards:"
        " exactly one of cancelling and going forward happens, and each is told the truth.",
        _changed_their_mind, CONFIRMED, CANCELLED,
        faults=[KillRepeatedly("inventory")], orders=8 * EACH,
    ),
)  # fmt: skip
