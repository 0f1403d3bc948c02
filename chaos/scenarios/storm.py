"""A storm: faults drawn from the whole list strike a flow of orders that does not end until the
time is up; then all is healed, and judged.

Owns: the flow, the drawing, and that no two faults work on the same thing at once. Must not
know: how a fault is done.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

import psycopg

from chaos.faults.nemesis import (
    CloseConnections,
    CutLine,
    Disconnect,
    ExhaustPool,
    Freeze,
    HalfOpen,
    Kill,
    KillBackends,
    KillInRecovery,
    KillRepeatedly,
    Nemesis,
    Slow,
    Unconfirmed,
    Unreachable,
    hold,
)
from chaos.faults.tampering import (
    DelayPastUndo,
    Duplicate,
    Lose,
    Poison,
    Poisoned,
    PoisonFlood,
    Reorder,
    Requeue,
)
from chaos.load.shop import PLENTY, Shop
from chaos.load.workload import Ask
from chaos.runtime import Style
from chaos.scenarios.scene import DEAD, GIVEN_UP, Scene
from chaos.stack.database import CONFIRMED, RETURNED, rejected

SERVICES = ("orchestrator", "order", "payment", "inventory")
ROLES = ("orchestrator", "order_svc", "payment_svc", "inventory_svc")
SERVERS = ("postgres", "rabbitmq")
PER_ROUND = 25  # orders
GIVEN_BACK = 3  # orders of a round, if they are confirmed by then
MOST_PENDING = 300  # orders; while nothing ends, nothing new begins
LOOK_AGAIN_SECONDS = 0.1
CALM_SECONDS = (0.2, 2.0)
HELD_SECONDS = (0.2, 6.0)

ENDS = (CONFIRMED, RETURNED, rejected("card_declined"), rejected("out_of_stock"), *GIVEN_UP, *DEAD)

Draw = Callable[[random.Random], Nemesis]


def _participant(dice: random.Random) -> str:
    return dice.choice(("order", "payment", "inventory"))


FAULTS: Sequence[Draw] = (
    lambda d: Kill(d.choice((*SERVICES, "door"))),
    lambda d: KillRepeatedly(d.choice(SERVICES)),
    lambda d: KillInRecovery(d.choice(SERVICES)),
    lambda d: Freeze(d.choice(SERVICES)),
    lambda d: Unreachable(d.choice(SERVICES)),
    lambda d: Kill(d.choice(SERVERS)),
    lambda d: KillBackends(d.choice(ROLES)),
    lambda d: ExhaustPool(d.choice(ROLES)),
    lambda _: CloseConnections("all"),
    lambda d: CutLine(d.choice(SERVICES), d.choice(SERVERS)),
    lambda d: HalfOpen(d.choice(SERVICES), d.choice(SERVERS)),
    lambda d: Unconfirmed(d.choice(SERVICES), "rabbitmq"),
    lambda d: Slow(d.choice(SERVICES), d.choice(SERVERS)),
    lambda d: Duplicate(_participant(d), d.randrange(1000)),
    lambda d: Reorder(_participant(d), d.randrange(1000)),
    lambda d: DelayPastUndo(_participant(d), d.randrange(1000)),
    lambda d: Lose(_participant(d), d.randrange(1000)),
    lambda d: Poisoned(_participant(d), d.randrange(1000)),
    lambda d: Requeue("order,inventory,payment,orchestrator", d.randrange(1000)),
    lambda d: Poison(f"{_participant(d)}.commands"),
    lambda d: PoisonFlood(f"{_participant(d)}.commands"),
    lambda d: Disconnect(d.choice(("payment", "inventory", "order"))),
)


def draw(dice: random.Random, kind: str, style: Style = "orchestrated") -> Nemesis:
    """Of what this runtime can do, and hits what there is in this style."""
    while True:
        fault = dice.choice(FAULTS)(dice)
        there = style == "orchestrated" or "orchestrator" not in fault.where
        if there and kind in fault.runtimes:
            return fault


@dataclass
class Storm:
    """One of them, on one stack."""

    scene: Scene
    kind: str
    minutes: float
    say: Callable[[str], None]
    placed: list[UUID] = field(default_factory=list)

    @property
    def style(self) -> Style:
        return self.scene.system.style

    def blow(self) -> None:
        """On return all is healed, and every order placed is known to the scene."""
        dice = self.scene.dice
        here = self.scene.shop(
            stock={"tea": 1_000_000, "rare": 1},
            accounts={"ann": PLENTY, "eve": PLENTY},
            declined=["eve"],
        )
        ends_at = time.monotonic() + 60 * self.minutes
        with self._flowing(here) as flow:
            while time.monotonic() < ends_at and not flow.done():
                fault, seconds = draw(dice, self.kind, self.style), dice.uniform(*HELD_SECONDS)
                self.say(f"{len(self.placed)} orders placed; {fault.sentence}, {seconds:.1f} s")
                with self.scene.struck(fault):
                    hold(seconds)
                hold(dice.uniform(*CALM_SECONDS))
        self.scene.expect(self.placed, *ENDS)

    def _pending(self) -> int:
        """Orders under way; as many as can be while that cannot be asked."""
        try:
            ((pending,),) = self.scene.system.db.rows(
                "select count(*) from order_svc.customer_order"
                " where status in ('PENDING', 'RETURN_PENDING')"
            )
        except psycopg.OperationalError:
            return MOST_PENDING
        return int(pending)

    @contextmanager
    def _flowing(self, here: Shop) -> Iterator[Future[None]]:
        """Orders go in, one lot after another, while the block goes on."""
        enough = threading.Event()

        def flow() -> None:
            while not enough.is_set():
                if self._pending() < MOST_PENDING:
                    before = self.placed[-PER_ROUND:]
                    self.placed += self.scene.system.door.place(_lot(here))
                    if before:
                        # two attempts at each; an order that is not confirmed says no
                        self.scene.system.door.give_back(before[:GIVEN_BACK], "one", "two")
                else:
                    enough.wait(LOOK_AGAIN_SECONDS)

        with ThreadPoolExecutor(1) as pool:
            flowing = pool.submit(flow)
            try:
                yield flowing
            finally:
                enough.set()
            flowing.result()


def _lot(here: Shop) -> list[Ask]:
    return [
        here.order("eve", tea=1)
        if number % 7 == 3
        else here.order("ann", tea=1, rare=2)
        if number % 7 == 6
        else here.order("ann", tea=1)
        for number in range(PER_ROUND)
    ]
