"""The trials under which a guard is missed: a situation, what is done in it, how orders must end.

Owns: bringing a system to the point where a guard matters. Must not know: which guard that is, nor
whether it is there; a trial looks at nothing but how far the sagas are.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

from chaos.faults.nemesis import Freeze, Nemesis, hold
from chaos.faults.tampering import DelayPastUndo, Duplicate, Poisoned
from chaos.judge.queues import count_queues
from chaos.load.shop import PLENTY
from chaos.runtime import Plan
from chaos.scenarios import situations
from chaos.scenarios.messages import CHARGE_DEAD
from chaos.scenarios.returns import confirmed
from chaos.scenarios.scene import GIVEN_UP, PROFILES, Scene
from chaos.scenarios.situations import Situation, reach
from chaos.stack.armory import Armory
from chaos.stack.database import CONFIRMED, RETURNED, End, rejected
from chaos.waiting import ExperimentError, until
from common.kit.failpoints import Arming, Point
from common.messages.envelope import Direction

FORWARD, COMPENSATING = Direction.FORWARD, Direction.COMPENSATING
SOLD_OUT = (CONFIRMED, rejected("out_of_stock"))
AWAY_SECONDS = 2.0  # past a deadline of half a second
SECONDS = 20.0  # for something that comes within one or two

PATIENT, IMPATIENT = PROFILES["patient"], PROFILES["impatient"]
# A step is not given up before the trial has come to its point, on a machine with much else to do.
UNHURRIED = replace(IMPATIENT, settings={**IMPATIENT.settings, "step_timeout_seconds": "1.5"})
# What is lost stays lost: no resend within an experiment's time.
NO_RESEND = Plan(
    replicas=PATIENT.replicas,
    settings={"step_timeout_seconds": "600", "start_resend_seconds": "600"},
)
GATED = PROFILES["gated"]
UNATTENDED = replace(GATED, settings={**GATED.settings, "approval_expiry_seconds": "1"})
TWO_INVENTORIES = replace(PATIENT, replicas={**PATIENT.replicas, "inventory": 2})

Play = Callable[[Scene, Armory], None]


@dataclass(frozen=True)
class Trial:
    """A row of the table: how a stack is brought to where a guard is missed."""

    name: str
    says: str
    play: Play
    plan: Plan
    orders: int


def _simply(
    situation: Situation,
    fault: Callable[[int], Nemesis | None] = lambda _: None,
    *ends: End,
    sent: str = "",
    away_seconds: float = 0.0,
) -> Play:
    """Reach a situation and leave it; before, wait for an outbox to be empty, or for seconds."""

    def play(scene: Scene, _: Armory) -> None:
        with reach(scene, situation, fault(scene.seed)) as orders:
            scene.expect(orders, *(ends or situation.ends))
            if sent:
                _until_sent(scene, sent)
            hold(away_seconds)

    return play


def _tripled_replies(scene: Scene, _: Armory) -> None:
    """Stop the orchestrator while charges wait, and triple what it finds when it returns."""
    fault = Duplicate("orchestrator", scene.seed, queue="orchestrator.replies")
    with ExitStack() as away:
        with reach(scene, situations.CHARGE_WAITS, Freeze("payment")):
            away.enter_context(scene.struck(fault))
        _until_charged(scene)
        _until_sent(scene, "payment_svc")


def _lost_confirmations(scene: Scene, _: Armory) -> None:
    """Stop the orchestrator before orders are confirmed, and lose what it would be told."""
    system = scene.system
    with reach(scene, situations.CONFIRMATION_WAITS) as orders:
        system.processes.stop("orchestrator")
    done = "select from order_svc.customer_order where status = 'CONFIRMED' and order_id = any(%s)"
    until(
        lambda: scene.count_rows(done, orders) == len(orders), "all orders are confirmed", SECONDS
    )
    _until_sent(scene, "order_svc")
    system.broker.take("orchestrator.replies")
    system.processes.start("orchestrator")


def _killed_while_giving_up(scene: Scene, armory: Armory) -> None:
    """Kill the orchestrator before it commits that a charge is given up.

    While it is away, payment returns and executes all commands it was sent.
    """
    system, asks = scene.system, scene.good()
    attempts = int(IMPATIENT.settings["step_attempts"])
    system.processes.stop("payment")
    armory.arm(
        "orchestrator",
        Arming(Point.RECONCILER_BEFORE_COMMIT, "charge_payment", FORWARD, hit=attempts),
    )
    orders = system.door.place(asks)
    until(lambda: armory.has_acted("orchestrator"), "the charge is given up", SECONDS)
    system.processes.stop("orchestrator")
    system.processes.start("payment")
    _until_charged(scene)
    _until_through(scene, "payment.commands")
    _until_sent(scene, "payment_svc")
    system.processes.start("orchestrator")
    scene.expect(orders, CONFIRMED, situations.CHARGE_TIMED_OUT)


def _killed_with_a_charge(scene: Scene, armory: Armory) -> None:
    system, asks = scene.system, scene.good()
    armory.arm("payment", Arming(Point.BATCH_BEFORE_COMMIT, "charge_payment", FORWARD))
    orders = system.door.place(asks)
    until(lambda: armory.has_acted("payment"), "payment dies", SECONDS)
    system.processes.revive("payment")
    scene.expect(orders, CONFIRMED)


def _dispatch_past_release(scene: Scene, _: Armory) -> None:
    """Deliver the pivot after its fence, while the goods of other orders are reserved."""
    system, asks = scene.system, scene.good()
    with reach(scene, situations.FENCE_WAITS, asks=asks[::2]) as orders:
        waiting = system.broker.take("inventory.commands")
        system.broker.send(
            "inventory.commands", [c for c in waiting if c.direction is COMPENSATING]
        )
    scene.expect(orders, *GIVEN_UP)
    system.db.ends(orders, SECONDS)
    late = {c.saga_id: c for c in waiting if c.step == "dispatch_stock" and c.direction is FORWARD}
    if not late:
        raise ExperimentError("no dispatch was asked for")
    with reach(scene, situations.CHARGE_WAITS, Freeze("payment"), asks=asks[1::2]) as others:
        scene.expect(others, CONFIRMED, *GIVEN_UP)
        system.broker.send("inventory.commands", late.values())
        _until_through(scene, "inventory.commands")


def _unattended(scene: Scene, _: Armory) -> None:
    orders = scene.system.door.place(scene.large())
    scene.expect(orders, rejected("expired"))
    scene.system.db.ends(orders, SECONDS)


def _last_unit(scene: Scene, _: Armory) -> None:
    here = scene.shop(stock={"last": 1}, accounts={"ann": PLENTY})
    asks = [here.order("ann", last=1) for _ in range(scene.count)]
    scene.expect(scene.system.door.place(asks), *SOLD_OUT)


def _contended(scene: Scene, _: Armory) -> None:
    goods = 5
    stock = {f"s{n}": scene.count // 4 for n in range(goods)}
    here = scene.shop(stock=stock, accounts={"ann": PLENTY})
    asks = [here.order("ann", **{f"s{n % goods}": 1}) for n in range(scene.count)]
    scene.expect(scene.system.door.place(asks), *SOLD_OUT)


def _returns_race(scene: Scene, _: Armory) -> None:
    """Attempt three returns of each order at once; how many are let in is not checked here."""
    orders = confirmed(scene)
    scene.expect(orders, RETURNED)
    scene.system.door.give_back(orders, "one", "two", "three")


def _return_meets_order(scene: Scene, _: Armory) -> None:
    """Give orders back that will be refused, before they are."""
    with reach(scene, situations.REFUSAL_WAITS, Freeze("payment")) as orders:
        scene.system.door.give_back(orders, "one")


def _until_charged(scene: Scene) -> None:
    charged = (
        "select distinct saga_id from payment_svc.transfer where kind = 'CHARGE' and debit = %s"
    )
    until(
        lambda: scene.count_rows(charged, f"{scene.name}.ann") >= scene.count,
        "every order is charged",
        SECONDS,
    )


def _until_sent(scene: Scene, schema: str) -> None:
    until(
        lambda: not scene.system.snapshot().outboxes[schema],
        f"the outbox of {schema} is empty",
        SECONDS,
    )


def _until_through(scene: Scene, queue: str) -> None:
    """Wait until the queue's consumer has handled and acked all of it."""
    ctl = scene.system.runtime.rabbitmqctl
    until(lambda: not any(count_queues(ctl)[queue]), f"{queue} is empty", SECONDS)


TRIALS = {
    trial.name: trial
    for trial in (
        Trial(
            "tripled-charges", "every charge comes three times",
            _simply(situations.CHARGE_WAITS, lambda seed: Duplicate("payment", seed),
                    sent="orchestrator"),
            PATIENT, 2,
        ),
        Trial(
            "tripled-replies", "every reply to a charge comes three times",
            _tripled_replies, PATIENT, 2,
        ),
        Trial(
            "charges-past-their-undo",
            "charges are given up; payment receives the undo first, and then the charge",
            _simply(situations.STOCK_RELEASED, lambda seed: DelayPastUndo("payment", seed),
                    *GIVEN_UP),
            IMPATIENT, 4,
        ),
        Trial(
            "charges-found-late",
            "charges are given up; payment returns and finds first them, then their undo",
            _simply(situations.STOCK_RELEASED, lambda _: None, *GIVEN_UP), IMPATIENT, 4,
        ),
        Trial(
            "unheard-rejections",
            "all is undone but the order, which is away for longer than its first deadline",
            _simply(situations.REJECTION_WAITS, away_seconds=AWAY_SECONDS), IMPATIENT, 4,
        ),
        Trial(
            "lost-confirmations", "orders are confirmed, and the replies that say so are lost",
            _lost_confirmations, IMPATIENT, 4,
        ),
        Trial(
            "killed-while-giving-up",
            "the orchestrator gives up a charge and dies before its commit; meanwhile payment"
            " executes what it was sent",
            _killed_while_giving_up, UNHURRIED, 1,
        ),
        Trial(
            "killed-with-a-charge",
            "payment dies before it commits a charge, and nothing is resent",
            _killed_with_a_charge, NO_RESEND, 1,
        ),
        Trial(
            "dispatch-past-release",
            "a dispatch comes after its fence, when its goods are released and others reserved",
            _dispatch_past_release, UNHURRIED, 6,
        ),
        Trial(
            "garbled-charges", "every charge is garbled on its way, and nothing is resent",
            _simply(situations.CHARGE_WAITS, lambda seed: Poisoned("payment", seed), CHARGE_DEAD,
                    sent="orchestrator"),
            NO_RESEND, 2,
        ),
        Trial(
            "nobody-decides", "orders so large that a person is asked, and no person answers",
            _unattended, UNATTENDED, 4,
        ),
        Trial("last-unit", "many buyers of the last unit, all at once", _last_unit, PATIENT, 8),
        Trial(
            "returns-race", "every order is given back three times at once",
            _returns_race, IMPATIENT, 4,
        ),
        Trial(
            "return-meets-order",
            "orders whose card will be declined are given back before payment has declined it",
            _return_meets_order, PATIENT, 4,
        ),
        Trial(
            "contended-by-replicas", "many buyers of few goods, and two inventories",
            _contended, TWO_INVENTORIES, 400,
        ),
    )
}  # fmt: skip
