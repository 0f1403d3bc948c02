"""A scenario, and the scene it plays on: a system, dice, orders, faults, and what it expects.

Owns: the profiles, and the record of one playing. Must not know: any particular scenario.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import LiteralString
from uuid import UUID

import psycopg

from chaos.faults.nemesis import BOTH, Nemesis, hold, struck
from chaos.load.shop import CURRENCY, PLENTY, PRICE, Shop, shop
from chaos.load.workload import Ask
from chaos.runtime import SERVICES, STYLES, Plan, Style
from chaos.runtime.base import Runtime
from chaos.runtime.stack import CHECKOUT, read_plan_file
from chaos.stack.database import CONFIRMED, RETURNED, End, rejected
from chaos.stack.system import FAULT_SETTINGS, System
from chaos.waiting import until

GATED_PIECES = 5  # an order of so many waits for a person, on a stack with a threshold
UNDER_WAY = 0.1  # of the orders: it is mid-flow

_CAN_BE_GIVEN_UP = ("reserve_stock", "charge_payment", "dispatch_stock")
GIVEN_UP = tuple(rejected(f"{step}_timed_out") for step in _CAN_BE_GIVEN_UP)
DEAD = tuple(rejected(f"{step}_dead_lettered") for step in _CAN_BE_GIVEN_UP)
NATURAL = (CONFIRMED, rejected("card_declined"), rejected("out_of_stock"))
PREVIOUS = "previous"
ORCHESTRATED: frozenset[Style] = frozenset({"orchestrated"})
CHOREOGRAPHED: frozenset[Style] = frozenset({"choreographed"})
EITHER: frozenset[Style] = frozenset(STYLES)
_NO_OPERATOR = {"operator": 0}

PROFILES = {
    # What a user gets; only a lost StartSaga is resent sooner. Here no fault changes an end.
    "patient": Plan(replicas=_NO_OPERATOR, settings={"start_resend_seconds": "1"}),
    # Steps time out within seconds, and are given up soon after.
    "impatient": Plan(replicas=_NO_OPERATOR, settings=FAULT_SETTINGS),
    # What ended is forgotten within seconds.
    "forgetful": Plan(
        replicas=_NO_OPERATOR, settings={"start_resend_seconds": "1", "retention_seconds": "2"}
    ),
    # A missing confirm is noticed as soon as a missing reply: only then does the orchestrator know
    # that it is cut off itself, and leaves deadlines alone meanwhile (rule 6).
    "lines": Plan(
        replicas=_NO_OPERATOR,
        settings={**FAULT_SETTINGS, "confirm_timeout_seconds": "0.5"},
        proxied=True,
    ),
    # Two of each, of the previous release until they are replaced; no step is given up meanwhile.
    PREVIOUS: Plan(
        replicas={**_NO_OPERATOR, "orchestrator": 2, "order": 2, "payment": 2, "inventory": 2},
        settings={"start_resend_seconds": "1", "step_timeout_seconds": "20"},
        entry={
            service: f"tests.previous_release {SERVICES[service].entry}"
            for service in ("orchestrator", "inventory")
        },
    ),
    # Large orders wait for a person, and operators are there.
    "gated": Plan(
        settings={
            "start_resend_seconds": "1",
            "reconcile_every_seconds": "0.1",
            "approval_thresholds": f'{{"{CURRENCY}": {GATED_PIECES * PRICE}}}',
        }
    ),
}


def plan_of(profile: str) -> Plan:
    return PROFILES.get(profile) or read_plan_file(CHECKOUT / profile)


@contextmanager
def system_up(plan: Plan, runtime: Runtime) -> Iterator[System]:
    """Bring a stack up for the length of the block."""
    system = System(plan, runtime, runtime.up(plan, tethered=True))
    try:
        yield system
    finally:
        system.close()
        runtime.down()


def in_words(ends: Iterable[End]) -> str:
    """Say which ends are allowed: confirmed, or rejected: card_declined or out_of_stock."""
    found = set(ends)
    reasons = sorted(end.reason or "?" for end in found - {CONFIRMED, RETURNED})
    said = [end.status.lower() for end in (CONFIRMED, RETURNED) if end in found]
    return ", or ".join([*said, *([f"rejected: {' or '.join(reasons)}"] if reasons else [])])


@dataclass
class Scene:
    """One playing of a scenario, a guard's trial or a cell of the matrix."""

    system: System
    name: str
    seed: int
    count: int
    say: Callable[[str], None] = lambda _: None
    allowed: dict[UUID, frozenset[End]] = field(default_factory=dict)
    must_be_seen: set[End] = field(default_factory=set)
    faults: list[Nemesis] = field(default_factory=list)
    drawn: str = ""  # what was broken, if that is drawn while it is played
    others: Mapping[str, int] = field(default_factory=dict)
    """Sagas that are not orders, which the scenario has judged itself: how many ended how."""
    explained: set[tuple[str, str]] = field(default_factory=set)
    under_way: int | None = None  # sagas, when the first fault struck
    healed: float | None = None  # of time.monotonic
    began_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def dice(self) -> random.Random:
        return random.Random(self.seed)

    # --- orders: each of these stocks the scene's shop, so use one of them, and once ---

    def shop(
        self,
        *,
        stock: Mapping[str, int],
        accounts: Mapping[str, int],
        declined: Sequence[str] = (),
        unstocked: Sequence[str] = (),
    ) -> Shop:
        here = shop(self.name, stock=stock, accounts=accounts, declined=declined,
                    unstocked=unstocked)  # fmt: skip
        return self.system.stock_up(here)

    def good(self) -> list[Ask]:
        """Make orders that can all be confirmed."""
        here = self.shop(stock={"tea": 10 * self.count}, accounts={"ann": PLENTY})
        return [here.order("ann", tea=1) for _ in range(self.count)]

    def declined(self) -> list[Ask]:
        """Make orders that are refused at the charge."""
        here = self.shop(stock={"tea": 10 * self.count}, accounts={"eve": PLENTY}, declined=["eve"])
        return [here.order("eve", tea=1) for _ in range(self.count)]

    def large(self) -> list[Ask]:
        """Make orders so large that a person is asked."""
        here = self.shop(stock={"tea": 10 * GATED_PIECES * self.count}, accounts={"ann": PLENTY})
        return [here.order("ann", tea=GATED_PIECES) for _ in range(self.count)]

    def mixed(self) -> list[tuple[Ask, End]]:
        """Make orders, some of which are refused, with their ends when nothing is broken."""
        stock = {"tea": 10 * self.count, "rare": 1}
        here = self.mixed_shop(stock)
        return [mixed_order(here, number) for number in range(self.count)]

    def mixed_shop(self, stock: Mapping[str, int]) -> Shop:
        return self.shop(stock=stock, accounts={"ann": PLENTY, "eve": PLENTY}, declined=["eve"])

    # --- what is done to them ---

    def expect(self, orders: Iterable[UUID], *ends: End) -> None:
        """Allow each order any of these ends and no other."""
        self.allowed |= dict.fromkeys(orders, frozenset(ends))

    @contextmanager
    def struck(self, *faults: Nemesis) -> Iterator[None]:
        """Inject faults for the length of the block, and note what they explain."""
        self.faults += faults
        self.explained |= {letter for fault in faults for letter in fault.explained}
        if self.under_way is None:
            self.under_way = len(self.system.db.alive())
        with struck(self.system, *faults):
            yield
        self.healed = time.monotonic()

    def flow(
        self, faults: Sequence[Nemesis], *, seconds: float = 0.0, otherwise: Sequence[End] = ()
    ) -> list[UUID]:
        """Let a mixed flow of orders be struck in its middle.

        Each must end as if nothing had been broken, or in one of the ways `otherwise`.
        """
        mixed = self.mixed()
        enough = max(1, round(UNDER_WAY * len(mixed)))
        with self.system.door.placing([ask for ask, _ in mixed]) as placed, ExitStack() as waiting:
            if faults:
                waiting.enter_context(self.payment_waits())
                until(
                    lambda: len(self.system.db.alive()) >= enough, f"{enough} sagas are under way"
                )
                with self.struck(*faults):
                    waiting.close()
                    hold(seconds)
        orders = placed.result()
        for order, (_, end) in zip(orders, mixed, strict=True):
            self.expect([order], end, *otherwise)
        return orders

    @contextmanager
    def payment_waits(self) -> Iterator[None]:
        """Lock the rows that payment needs, so that sagas are under way when the fault strikes.

        Otherwise a fast machine is through with them before.
        """
        with (
            suppress(psycopg.OperationalError),  # Postgres may be what is struck
            psycopg.connect(self.system.endpoints.superuser_dsn) as session,
        ):
            session.execute(
                "select from payment_svc.account where customer = any(%s) for update",
                ([f"{self.name}.ann", f"{self.name}.eve"],),
            )
            yield
            session.rollback()

    def count_rows(self, query: LiteralString, *parameters: object) -> int:
        return len(self.system.db.rows(query, *parameters))

    def until_asked(self, orders: Sequence[UUID], step: str) -> None:
        self.until_steps(orders, lambda steps: step in steps, f"{step} is asked for")

    def until_steps(
        self,
        orders: Sequence[UUID],
        fits: Callable[[dict[str, str]], bool],
        what: str,
        enough: Callable[[Iterable[bool]], bool] = all,
    ) -> None:
        """Wait until the steps of enough orders, by default of all, fit."""
        until(lambda: enough(map(fits, self.system.db.steps(orders))), what)


def mixed_order(here: Shop, number: int) -> tuple[Ask, End]:
    """Make the order of this number in a mixed flow, with its end when nothing is broken."""
    if number % 7 == 3:
        return here.order("eve", tea=1), rejected("card_declined")
    if number % 7 == 6:
        return here.order("ann", tea=1, rare=2), rejected("out_of_stock")
    return here.order("ann", tea=1), CONFIRMED


@dataclass(frozen=True)
class Scenario:
    """One row of the table."""

    name: str
    says: str
    fault: str
    expects: str
    play: Callable[[Scene], None]
    profile: str
    """A name of PROFILES; or, for services of your own, a file here with a Plan as JSON."""
    runtimes: frozenset[str] = BOTH
    orders: int | None = None  # how many it needs; None: as many as asked for
    styles: frozenset[Style] = EITHER


def scenario(
    name: str,
    says: str,
    play: Callable[[Scene], None],
    *ends: End,
    faults: Sequence[Nemesis] = (),
    fault: str = "",
    profile: str = "patient",
    expects: str = "",
    orders: int | None = None,
    styles: frozenset[Style] = EITHER,
) -> Scenario:
    """Make a row whose faults say what is broken, and whose ends what is expected."""
    return Scenario(
        name,
        says,
        fault or "; ".join(each.sentence for each in faults) or "none",
        expects or in_words(ends),
        play,
        profile,
        frozenset.intersection(BOTH, *(each.runtimes for each in faults)),
        orders,
        styles,
    )
