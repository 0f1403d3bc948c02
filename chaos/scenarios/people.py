"""Scenarios in which people decide: orders parked at their gate, operators, customers who cancel.

Owns: who asks for what while something is broken, and that everybody is told the truth. Must not
know: how a fault is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from uuid import UUID

import httpx
import psycopg

from chaos.faults.nemesis import FullStop, Kill, KillRepeatedly, Nemesis
from chaos.load.shop import PLENTY
from chaos.runtime import STYLES, Style
from chaos.scenarios.scene import GATED_PIECES, Scenario, Scene, in_words
from chaos.stack.database import CONFIRMED, End, rejected
from chaos.stack.system import System
from chaos.waiting import ExperimentError

EACH = 6  # orders that are decided alike
PEOPLE = 4  # who decide about the same order at the same time
DECIDED, CONFLICT = 200, 409
REJECTED, EXPIRED, CANCELLED = map(rejected, ("rejected", "expired", "cancelled"))
EVERYBODY = ("orchestrator", "order", "payment", "inventory", "door", "operator")


def _parked(scene: Scene, count: int) -> list[UUID]:
    here = scene.shop(stock={"tea": 10 * GATED_PIECES * count}, accounts={"ann": PLENTY})
    orders = scene.system.door.place([here.order("ann", tea=GATED_PIECES) for _ in range(count)])
    scene.until_steps(orders, lambda s: s.get("approve_order") == "waiting", "all are parked")
    return orders


def _outlived(*faults: Callable[[], Nemesis]) -> Callable[[Scene], None]:
    """While they wait; then people decide about some of them and leave others for a week."""

    def play(scene: Scene) -> None:
        orders, system = _parked(scene, 4 * EACH), scene.system
        approved, refused, unwanted, left = (orders[n * EACH : (n + 1) * EACH] for n in range(4))
        with scene.struck(*(fault() for fault in faults)):
            pass
        if [s["approve_order"] for s in system.db.steps(orders)] != ["waiting"] * len(orders):
            raise ExperimentError("somebody decided while nobody was there")
        for verb, group, end in (("approve", approved, CONFIRMED), ("reject", refused, REJECTED)):
            said = {order: system.operator.decide(verb, order) for order in group}
            if any(answer.status_code != DECIDED for answer in said.values()):
                raise ExperimentError(f"{verb} was refused: {[a.text for a in said.values()]}")
            scene.expect(group, end)
        for order in unwanted:
            system.door.cancel(order).raise_for_status()
        scene.expect(unwanted, CANCELLED)
        expire(system, left)
        scene.expect(left, EXPIRED)
        system.db.ends(orders)  # what is parked is at rest: not before all have expired

    return play


def expire(system: System, orders: Sequence[UUID]) -> None:
    """As if nobody had decided in a week."""
    with psycopg.connect(system.endpoints.superuser_dsn, autocommit=True) as server:
        server.execute(
            """
            update orchestrator.saga_instance
            set next_deadline = now(), steps = jsonb_set(steps, '{approve_order,deadline}', '0')
            where saga_id = any(%s)""",
            (list(orders),),
        )


def _contested(scene: Scene) -> None:
    """Several people decide about the same order at once, while the orchestrator dies; and a
    customer cancels what an operator approves."""
    orders = _parked(scene, 3 * EACH)
    contested, unwanted = orders[:EACH], orders[EACH:]
    system = scene.system
    with ThreadPoolExecutor(PEOPLE) as people, scene.struck(KillRepeatedly("orchestrator")):
        for order in contested:
            verbs = ("approve", "reject") * (PEOPLE // 2)
            heard = list(
                people.map(lambda verb, order=order: system.operator.decide(verb, order), verbs)
            )
            scene.expect([order], _the_one(verbs, heard))
        for order in unwanted:
            approval = people.submit(system.operator.decide, "approve", order)
            cancel = people.submit(system.door.cancel, order)
            approval.result()
            scene.expect([order], *_ends_after(cancel.result(), CONFIRMED))
    system.db.ends(orders)


def _changed_their_mind(scene: Scene) -> None:
    """Customers cancel while payment stands still, while their goods may be leaving and the pivot's
    owner dies, and when it is too late."""
    system = scene.system
    asks = scene.good()
    early, racing, late = asks[:EACH], asks[EACH:-EACH], asks[-EACH:]
    with ThreadPoolExecutor(EACH) as customers:
        system.runtime.pause("payment")
        try:
            orders = system.door.place(early)
            scene.until_asked(orders, "charge_payment")
            _told(scene, orders, list(customers.map(system.door.cancel, orders)), too_late=0)
        finally:
            system.runtime.resume("payment")
        orders = system.door.place(racing)
        with scene.struck(KillRepeatedly("inventory")):
            _told(scene, orders, list(customers.map(system.door.cancel, orders)))
        orders = system.door.place(late)
        system.db.ends(orders)
        _told(scene, orders, list(customers.map(system.door.cancel, orders)), too_late=len(orders))
    scene.must_be_seen |= {CONFIRMED, CANCELLED}


def _told(
    scene: Scene,
    orders: Sequence[UUID],
    heard: Sequence[httpx.Response],
    too_late: int | None = None,
) -> None:
    """Each customer the truth; `too_late`: so many of them that."""
    conflicts = [said.json() for said in heard if said.status_code == CONFLICT]
    if too_late not in (None, len(conflicts)) or any(not told["remedy"] for told in conflicts):
        raise ExperimentError(f"{len(conflicts)} were told that it is too late: {conflicts[:1]}")
    for order, said in zip(orders, heard, strict=True):
        scene.expect([order], *_ends_after(said, CONFIRMED))


def _the_one(verbs: Sequence[str], heard: Sequence[httpx.Response]) -> End:
    """What the one who was told that they decided wanted; everybody else was told who did."""
    winners = [verb for verb, said in zip(verbs, heard, strict=True) if said.status_code == DECIDED]
    losers = [said.json()["error"] for said in heard if said.status_code == CONFLICT]
    if len(winners) != 1 or losers != ["already_decided"] * (len(verbs) - 1):
        raise ExperimentError(f"not exactly one decided: {[said.text for said in heard]}")
    return {"approve": CONFIRMED, "reject": REJECTED}[winners[0]]


def _ends_after(said: httpx.Response, otherwise: End) -> Sequence[End]:
    """The ends that a customer's cancel leaves open, by what they were told."""
    if said.status_code == CONFLICT:
        return (CONFIRMED,)
    certain = said.json().get("outcome") in ("cancelled", "cancelling")
    return (CANCELLED,) if certain else (CANCELLED, otherwise)


def _scenario(
    name: str,
    says: str,
    fault: str,
    ends: Sequence[End],
    play: Callable[[Scene], None],
    count: int,
    styles: Sequence[Style] = STYLES[:1],  # whom nobody owns, nobody parks
) -> Scenario:
    profile = "gated" if len(styles) == 1 else "patient"
    told = in_words(ends)
    return Scenario(name, says, fault, told, play, profile, orders=count, styles=frozenset(styles))


PEOPLE_DECIDE = (
    _scenario(
        "parked-through-deaths",
        "Large orders wait for a person while every service dies; some are approved, some"
        " rejected, some cancelled by their customers, and some left to expire.",
        "SIGKILL to every service at once",
        (CONFIRMED, REJECTED, CANCELLED, EXPIRED),
        _outlived(*(partial(Kill, process) for process in EVERYBODY)),
        4 * EACH,
    ),
    _scenario(
        "parked-through-a-full-stop",
        "Large orders wait for a person while everything there is stops, Postgres and RabbitMQ"
        " too, and starts again; some are approved, some rejected, some cancelled by their"
        " customers, and some left to expire.",
        FullStop().sentence,
        (CONFIRMED, REJECTED, CANCELLED, EXPIRED),
        _outlived(FullStop),
        4 * EACH,
    ),
    _scenario(
        "people-at-once",
        "Several people decide about the same order at the same moment: one does, the others are"
        " told who. What an operator approves its customer cancels: they are told the truth.",
        KillRepeatedly("orchestrator").sentence,
        (CONFIRMED, REJECTED, CANCELLED),
        _contested,
        3 * EACH,
    ),
    _scenario(
        "customers-cancel",
        "Customers cancel before the goods leave, while they may be leaving, and afterwards:"
        " exactly one of cancelling and going forward happens, and each is told the truth.",
        KillRepeatedly("inventory").sentence,
        (CONFIRMED, CANCELLED),
        _changed_their_mind,
        8 * EACH,
        STYLES,
    ),
)
