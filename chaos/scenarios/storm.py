"""A storm: faults drawn from the whole list strike a flow of orders until the time is up.

Owns: the flow, the drawing, and that one fault is healed before the next strikes. Must not know:
how a fault is done.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

import psycopg

from chaos.faults import nemesis, tampering
from chaos.faults.nemesis import Nemesis, hold
from chaos.load.shop import Shop
from chaos.runtime import Style
from chaos.scenarios.scene import (
    DEAD,
    GIVEN_UP,
    NATURAL,
    Scenario,
    Scene,
    mixed_order,
    scenario,
)
from chaos.stack.database import RETURNED

SERVICES = ("orchestrator", "order", "payment", "inventory")
ROLES = ("orchestrator", "order_svc", "payment_svc", "inventory_svc")
SERVERS = ("postgres", "rabbitmq")
AT_ONCE = 25  # orders
GIVEN_BACK = 3  # of each lot, if they are confirmed by then
MOST_PENDING = 300  # orders; while nothing ends, nothing new begins
LOOK_AGAIN_SECONDS = 0.1
CALM_SECONDS = (0.2, 2.0)
HELD_SECONDS = (0.2, 6.0)

ENDS = (*NATURAL, RETURNED, *GIVEN_UP, *DEAD)

Draw = Callable[[random.Random], Nemesis]


def _participant(dice: random.Random) -> str:
    return dice.choice(("order", "payment", "inventory"))


FAULTS: Sequence[Draw] = (
    lambda d: nemesis.Kill(d.choice((*SERVICES, "door"))),
    lambda d: nemesis.KillRepeatedly(d.choice(SERVICES)),
    lambda d: nemesis.KillInRecovery(d.choice(SERVICES)),
    lambda d: nemesis.Freeze(d.choice(SERVICES)),
    lambda d: nemesis.Unreachable(d.choice(SERVICES)),
    lambda d: nemesis.Kill(d.choice(SERVERS)),
    lambda d: nemesis.KillBackends(d.choice(ROLES)),
    lambda d: nemesis.ExhaustPool(d.choice(ROLES)),
    lambda _: nemesis.CloseConnections("all"),
    lambda d: nemesis.CutLine(d.choice(SERVICES), d.choice(SERVERS)),
    lambda d: nemesis.HalfOpen(d.choice(SERVICES), d.choice(SERVERS)),
    lambda d: nemesis.Unconfirmed(d.choice(SERVICES), "rabbitmq"),
    lambda d: nemesis.Slow(d.choice(SERVICES), d.choice(SERVERS)),
    lambda d: tampering.Duplicate(_participant(d), d.randrange(1000)),
    lambda d: tampering.Reorder(_participant(d), d.randrange(1000)),
    lambda d: tampering.DelayPastUndo(_participant(d), d.randrange(1000)),
    lambda d: tampering.Lose(_participant(d), d.randrange(1000)),
    lambda d: tampering.Poisoned(_participant(d), d.randrange(1000)),
    lambda d: tampering.Requeue("order,inventory,payment,orchestrator", d.randrange(1000)),
    lambda d: tampering.Poison(f"{_participant(d)}.commands"),
    lambda d: tampering.PoisonFlood(f"{_participant(d)}.commands"),
    lambda d: nemesis.Disconnect(d.choice(("payment", "inventory", "order"))),
)


def draw(dice: random.Random, kind: str, style: Style = "orchestrated") -> Nemesis:
    """Draw a fault that this runtime can inject and that hits a process of this style."""
    while True:
        fault = dice.choice(FAULTS)(dice)
        there = style == "orchestrated" or "orchestrator" not in fault.where
        if there and kind in fault.runtimes:
            return fault


def storm_of(minutes: float, kind: str) -> Scenario:
    return scenario(
        "storm",
        f"{minutes:g} minutes of faults, one after another.",
        lambda scene: Storm(scene, kind, minutes).play(),
        *ENDS,
        fault="drawn by the seed",
        profile="lines",
    )


@dataclass
class Storm:
    """A storm on one stack."""

    scene: Scene
    kind: str
    minutes: float
    placed: list[UUID] = field(default_factory=list)

    def play(self) -> None:
        """Strike until the time is up; on return all is healed, and the scene has every order."""
        scene, dice = self.scene, self.scene.dice
        here = scene.mixed_shop({"tea": 1_000_000, "rare": 1})
        ends_at = time.monotonic() + 60 * self.minutes
        with self._flowing(here) as flow:
            while time.monotonic() < ends_at and not flow.done():
                fault = draw(dice, self.kind, scene.system.style)
                seconds = dice.uniform(*HELD_SECONDS)
                scene.say(f"{len(self.placed)} orders placed; {fault.sentence}, {seconds:.1f} s")
                with scene.struck(fault):
                    hold(seconds)
                hold(dice.uniform(*CALM_SECONDS))
        scene.expect(self.placed, *ENDS)
        drawn = Counter(fault.name for fault in scene.faults).most_common()
        scene.drawn = f"{len(scene.faults)} faults, drawn by the seed: " + ", ".join(
            f"{count} {kind}" for kind, count in drawn
        )

    def _pending(self) -> int:
        """Count the orders under way; as many as can be while Postgres does not answer."""
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
        """Place one lot of orders after another while the block goes on."""
        enough, system = threading.Event(), self.scene.system

        def flow() -> None:
            while not enough.is_set():
                if self._pending() < MOST_PENDING:
                    before = self.placed[-AT_ONCE:]
                    self.placed += system.door.place(
                        [mixed_order(here, n)[0] for n in range(AT_ONCE)]
                    )
                    if before:
                        # two attempts at each; an order that is not confirmed refuses both
                        system.door.give_back(before[:GIVEN_BACK], "one", "two")
                else:
                    enough.wait(LOOK_AGAIN_SECONDS)

        with ThreadPoolExecutor(1) as pool:
            flowing = pool.submit(flow)
            try:
                yield flowing
            finally:
                enough.set()
            flowing.result()
