"""The loads under which a guard is missed: what is asked, what is broken, how orders must end.

Owns: bringing a system to the point where a guard matters. Must not know: which guard that is, nor
whether it is there; a load looks at nothing but how far the sagas are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from chaos.faults.nemesis import Unreachable, hold
from chaos.faults.tampering import DelayPastUndo, Duplicate, Poisoned, Tampering
from chaos.judge.queues import count_queues
from chaos.load.shop import PLENTY
from chaos.load.workload import Ask
from chaos.runtime import Plan
from chaos.scenarios.scene import GATED_PIECES, GIVEN_UP, PROFILES, Scene
from chaos.stack.armory import Armory
from chaos.stack.database import CONFIRMED, RETURNED, End, rejected
from chaos.waiting import ExperimentError, until
from common.kit.failpoints import Arming, Point
from common.messages.envelope import Direction

FORWARD, COMPENSATING = Direction.FORWARD, Direction.COMPENSATING
OUT_OF_STOCK = rejected("out_of_stock")
CHARGE_UNKNOWN = rejected("charge_payment_timed_out")
CHARGE_DEAD = rejected("charge_payment_dead_lettered")
EXPIRED = rejected("expired")
AWAY_SECONDS = 2.0  # past a deadline of half a second
SECONDS = 20.0  # for something that comes within one or two

PATIENT, IMPATIENT = PROFILES["patient"], PROFILES["impatient"]
# A step is not given up before the load has come to its point, on a machine with much else to do.
UNHURRIED = replace(IMPATIENT, settings={**IMPATIENT.settings, "step_timeout_seconds": "1.5"})
# What is lost stays lost: no resend within an experiment's time.
NOBODY_ASKS_TWICE = Plan(
    replicas=PATIENT.replicas,
    settings={"step_timeout_seconds": "600", "start_resend_seconds": "600"},
)
GATED = PROFILES["gated"]
NOBODY_DECIDES = replace(GATED, settings={**GATED.settings, "approval_expiry_seconds": "1"})


@dataclass
class Trial:
    """One playing of a load."""

    scene: Scene
    armory: Armory


@dataclass(frozen=True)
class Load:
    name: str
    says: str
    play: Callable[[Trial], None]
    plan: Plan
    orders: int


def _tripled_charges(trial: Trial) -> None:
    _tampered(trial.scene, Duplicate("payment", trial.scene.seed), CONFIRMED)


def _garbled_charges(trial: Trial) -> None:
    _tampered(trial.scene, Poisoned("payment", trial.scene.seed), CHARGE_DEAD)


def _tripled_replies(trial: Trial) -> None:
    fault = Duplicate("orchestrator", trial.scene.seed, queue="orchestrator.replies")
    scene = trial.scene
    asks = scene.good()
    scene.system.runtime.pause("payment")
    try:
        orders = scene.system.door.place(asks)
        scene.until_asked(orders, "charge_payment")
        with scene.struck(fault):
            scene.system.runtime.resume("payment")
            _until_moved(scene, "CHARGE")
            _until_sent(scene, "payment_svc")
    finally:
        scene.system.runtime.resume("payment")
    scene.expect(orders, CONFIRMED)


def _tampered(scene: Scene, fault: Tampering, end: End) -> None:
    asks = scene.good()
    with scene.struck(fault):
        orders = scene.system.door.place(asks)
        scene.until_asked(orders, "charge_payment")
        _until_sent(scene, "orchestrator")
    scene.expect(orders, end)


def _charges_past_their_undo(trial: Trial) -> None:
    _given_up(trial.scene, DelayPastUndo("payment", trial.scene.seed))


def _charges_found_late(trial: Trial) -> None:
    _given_up(trial.scene, Unreachable("payment"))


def _given_up(scene: Scene, fault: Unreachable | DelayPastUndo) -> None:
    """Payment is away until nobody waits for a charge any more, and the goods are released."""
    asks = scene.good()
    with scene.struck(fault):
        orders = scene.system.door.place(asks)
        scene.until_steps(
            orders,
            lambda s: s.get("charge_payment", "sent") != "sent" and s["reserve_stock"] == "undone",
            "every charge is given up and the stock released",
        )
    scene.expect(orders, *GIVEN_UP)


def _unheard_rejections(trial: Trial) -> None:
    """The last undo of all is not confirmed within its first deadline."""
    scene, system = trial.scene, trial.scene.system
    here = scene.shop(stock={"tea": 10 * scene.count}, accounts={"eve": PLENTY}, declined=["eve"])
    asks = [here.order("eve", tea=1) for _ in range(scene.count)]
    with scene.struck(Unreachable("order")):
        orders = system.door.place(asks)
        scene.until_steps(
            orders, lambda s: s.get("create_order") == "undoing", "all are to be rejected"
        )
        hold(AWAY_SECONDS)
    scene.expect(orders, rejected("card_declined"), *GIVEN_UP)


def _lost_confirmations(trial: Trial) -> None:
    """The orders are confirmed, and what says so is lost on its way to the orchestrator."""
    scene, system = trial.scene, trial.scene.system
    asks = scene.good()
    system.processes.stop("order")
    orders = system.door.place(asks)
    scene.until_asked(orders, "confirm_order")
    system.processes.stop("orchestrator")
    system.processes.start("order")
    until(
        lambda: (
            system.db.rows(
                "select count(*) from order_svc.customer_order"
                " where status = 'CONFIRMED' and order_id = any(%s)",
                orders,
            )
            == [(len(orders),)]
        ),
        "all orders are confirmed",
        SECONDS,
    )
    _until_sent(scene, "order_svc")
    system.broker.take("orchestrator.replies")
    system.processes.start("orchestrator")
    scene.expect(orders, CONFIRMED)


def _killed_while_giving_up(trial: Trial) -> None:
    """The orchestrator gives a charge up, and dies before that is committed; while it is away,
    payment returns and does all it was told to do."""
    scene, system = trial.scene, trial.scene.system
    asks = scene.good()
    attempts = int(IMPATIENT.settings["step_attempts"])
    system.processes.stop("payment")
    trial.armory.arm(
        "orchestrator",
        Arming(Point.RECONCILER_BEFORE_COMMIT, "charge_payment", FORWARD, hit=attempts),
    )
    orders = system.door.place(asks)
    until(lambda: trial.armory.has_acted("orchestrator"), "the charge is given up", SECONDS)
    system.processes.stop("orchestrator")
    system.processes.start("payment")
    _until_moved(scene, "CHARGE")
    _until_through(scene, "payment.commands")
    _until_sent(scene, "payment_svc")
    system.processes.start("orchestrator")
    scene.expect(orders, CONFIRMED, CHARGE_UNKNOWN)


def _killed_with_a_charge(trial: Trial) -> None:
    scene, system = trial.scene, trial.scene.system
    asks = scene.good()
    trial.armory.arm("payment", Arming(Point.BATCH_BEFORE_COMMIT, "charge_payment", FORWARD))
    orders = system.door.place(asks)
    until(lambda: trial.armory.has_acted("payment"), "payment dies", SECONDS)
    system.processes.revive("payment")
    scene.expect(orders, CONFIRMED)


def _dispatch_past_release(trial: Trial) -> None:
    """The pivot is silent, fenced and all undone; then its command arrives, while somebody else's
    goods are held."""
    scene, system = trial.scene, trial.scene.system
    asks = scene.good()
    orders = _held(scene, asks[::2])
    system.processes.stop("inventory")
    system.runtime.resume("payment")
    scene.until_steps(orders, _fenced_or_given_up, "the fence is out")
    waiting = system.broker.take("inventory.commands")
    system.broker.send("inventory.commands", [c for c in waiting if c.direction is COMPENSATING])
    system.processes.start("inventory")
    system.db.ends(orders, SECONDS)
    scene.expect(orders, *GIVEN_UP)

    others = _held(scene, asks[1::2])
    late = {c.saga_id: c for c in waiting if c.step == "dispatch_stock" and c.direction is FORWARD}
    if not late:
        raise ExperimentError("no dispatch was asked for")
    system.broker.send("inventory.commands", late.values())
    _until_through(scene, "inventory.commands")
    system.runtime.resume("payment")
    scene.expect(others, CONFIRMED, *GIVEN_UP)


def _held(scene: Scene, asks: Sequence[Ask]) -> list[UUID]:
    """Orders whose goods are held while payment stands still."""
    scene.system.runtime.pause("payment")
    orders = scene.system.door.place(asks)
    scene.until_asked(orders, "charge_payment")
    return orders


def _fenced_or_given_up(steps: dict[str, str]) -> bool:
    """Or the charge was too slow for this machine, and is undone."""
    return steps.get("dispatch_stock") == "fencing" or steps.get("reserve_stock") == "undoing"


def _parked(trial: Trial) -> None:
    """Orders so large that a person is asked, and nobody is there."""
    scene = trial.scene
    here = scene.shop(stock={"tea": 10 * GATED_PIECES * scene.count}, accounts={"ann": PLENTY})
    orders = scene.system.door.place(
        [here.order("ann", tea=GATED_PIECES) for _ in range(scene.count)]
    )
    scene.system.db.ends(orders, SECONDS)
    scene.expect(orders, EXPIRED)


def _last_unit(trial: Trial) -> None:
    scene = trial.scene
    here = scene.shop(stock={"last": 1}, accounts={"ann": PLENTY})
    orders = scene.system.door.place([here.order("ann", last=1) for _ in range(scene.count)])
    scene.expect(orders, CONFIRMED, OUT_OF_STOCK)


def _contended(trial: Trial) -> None:
    scene, goods = trial.scene, 5
    here = scene.shop(
        stock={f"s{n}": scene.count // 4 for n in range(goods)}, accounts={"ann": PLENTY}
    )
    asks = [here.order("ann", **{f"s{n % goods}": 1}) for n in range(scene.count)]
    scene.expect(scene.system.door.place(asks), CONFIRMED, OUT_OF_STOCK)


def _returns_race(trial: Trial) -> None:
    """Three attempts at each order at once. How many are let in is for others to say."""
    scene = trial.scene
    orders = scene.system.door.place(scene.good())
    scene.system.db.ends(orders, SECONDS)
    scene.expect(orders, RETURNED)
    scene.system.door.give_back(orders, "one", "two", "three")


def _return_meets_order(trial: Trial) -> None:
    """Orders that will be refused are given back before they are."""
    scene = trial.scene
    here = scene.shop(stock={"tea": 10 * scene.count}, accounts={"eve": PLENTY}, declined=["eve"])
    orders = _held(scene, [here.order("eve", tea=1) for _ in range(scene.count)])
    try:
        scene.system.door.give_back(orders, "one")
    finally:
        scene.system.runtime.resume("payment")
    scene.expect(orders, rejected("card_declined"))


def _until_moved(scene: Scene, kind: str) -> None:
    """Each of the scene's orders has one."""
    customers = [f"{scene.name}.ann"]
    until(
        lambda: (
            scene.system.db.rows(
                "select count(distinct saga_id) >= %s from payment_svc.transfer"
                " where kind = %s and debit = any(%s)",
                scene.count,
                kind,
                customers,
            )
            == [(True,)]
        ),
        f"every order has its {kind}",
        SECONDS,
    )


def _until_sent(scene: Scene, schema: str) -> None:
    until(
        lambda: not scene.system.snapshot().outboxes[schema],
        f"the outbox of {schema} is empty",
        SECONDS,
    )


def _until_through(scene: Scene, queue: str) -> None:
    """Its consumer has handled and acked all of it."""
    ctl = scene.system.runtime.rabbitmqctl
    until(lambda: not any(count_queues(ctl)[queue]), f"{queue} is empty", SECONDS)


LOADS = {
    load.name: load
    for load in (
        Load(
            "tripled-charges",
            "every charge comes three times",
            _tripled_charges, PATIENT, 2,
        ),
        Load(
            "tripled-replies",
            "every answer to a charge comes three times",
            _tripled_replies, PATIENT, 2,
        ),
        Load(
            "charges-past-their-undo",
            "charges are given up; payment hears the undo first, and then the charge",
            _charges_past_their_undo, IMPATIENT, 4,
        ),
        Load(
            "charges-found-late",
            "charges are given up; payment returns and finds first them, then their undo",
            _charges_found_late, IMPATIENT, 4,
        ),
        Load(
            "unheard-rejections",
            "all is undone but the order, which is away for longer than its first deadline",
            _unheard_rejections, IMPATIENT, 4,
        ),
        Load(
            "lost-confirmations",
            "orders are confirmed, and the replies that say so are lost",
            _lost_confirmations, IMPATIENT, 4,
        ),
        Load(
            "killed-while-giving-up",
            "the orchestrator gives up a charge and dies before its commit; meanwhile payment does"
            " what it was told",
            _killed_while_giving_up, UNHURRIED, 1,
        ),
        Load(
            "killed-with-a-charge",
            "payment dies before it commits a charge, and nobody asks twice",
            _killed_with_a_charge, NOBODY_ASKS_TWICE, 1,
        ),
        Load(
            "dispatch-past-release",
            "a dispatch comes after its fence, when the goods are released and others are held",
            _dispatch_past_release, UNHURRIED, 6,
        ),
        Load(
            "garbled-charges",
            "every charge is garbled on its way, and nobody asks twice",
            _garbled_charges, NOBODY_ASKS_TWICE, 2,
        ),
        Load(
            "nobody-decides",
            "orders so large that a person is asked, and no person who answers",
            _parked, NOBODY_DECIDES, 4,
        ),
        Load(
            "last-unit",
            "many buyers of the last unit, all at once",
            _last_unit, PATIENT, 8,
        ),
        Load(
            "returns-race",
            "every order is given back three times at once",
            _returns_race, IMPATIENT, 4,
        ),
        Load(
            "return-meets-order",
            "orders whose card will be declined are given back while payment has not said so yet",
            _return_meets_order, PATIENT, 4,
        ),
        Load(
            "contended-by-replicas",
            "many buyers of few goods, and two inventories",
            _contended, replace(PATIENT, replicas={**PATIENT.replicas, "inventory": 2}), 400,
        ),
    )
}  # fmt: skip
