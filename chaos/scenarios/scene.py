"""What a scenario is, and what it plays with: a system, dice, orders, faults, and what it expects.

Owns: the record of one playing. Must not know: any particular scenario.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

import psycopg

from chaos.faults.nemesis import BOTH, Nemesis, hold, struck
from chaos.load.shop import CURRENCY, PLENTY, PRICE, Shop, shop
from chaos.load.workload import Ask
from chaos.runtime import SERVICES, STYLES, Plan, Style
from chaos.runtime.stack import CHECKOUT, read_plan_file
from chaos.stack.database import CONFIRMED, RETURNED, End, rejected
from chaos.stack.system import FAULT_SETTINGS, System
from chaos.waiting import until

GATED_PIECES = 5  # an order of so many waits for a person, on a stack where any does
UNDER_WAY = 0.1  # of the orders: it is mid-flow

_CAN_BE_GIVEN_UP = ("reserve_stock", "charge_payment", "dispatch_stock")
GIVEN_UP = tuple(rejected(f"{step}_timed_out") for step in _CAN_BE_GIVEN_UP)
DEAD = tuple(rejected(f"{step}_dead_lettered") for step in _CAN_BE_GIVEN_UP)
_NO_OPERATOR = {"operator": 0}
ELDER = "elder"

PROFILES = {
    # What a user gets; only a lost StartSaga is missed sooner. Here no fault changes an end.
    "patient": Plan(replicas=_NO_OPERATOR, settings={"start_resend_seconds": "1"}),
    # Silence is noticed within seconds, and given up soon after.
    "impatient": Plan(replicas=_NO_OPERATOR, settings=FAULT_SETTINGS),
    # What ended is forgotten within seconds.
    "forgetful": Plan(
        replicas=_NO_OPERATOR, settings={"start_resend_seconds": "1", "retention_seconds": "2"}
    ),
    # A confirm that does not come is missed as soon as a reply: only then does the orchestrator
    # know that it is cut off, and judges nobody for it (design.md, section 6, rule 6).
    "lines": Plan(
        replicas=_NO_OPERATOR,
        settings={**FAULT_SETTINGS, "confirm_timeout_seconds": "0.5"},
        proxied=True,
    ),
    # Two of each, of the release before until they are replaced; nobody gives up meanwhile.
    ELDER: Plan(
        replicas={**_NO_OPERATOR, "orchestrator": 2, "order": 2, "payment": 2, "inventory": 2},
        settings={"start_resend_seconds": "1", "step_timeout_seconds": "20"},
        entry={
            service: f"tests.previous_release {SERVICES[service].entry}"
            for service in ("orchestrator", "inventory")
        },
    ),
    # Large orders wait for a person. Here operators decide.
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


def in_words(ends: Iterable[End]) -> str:
    """confirmed, or rejected: card_declined or charge_payment_timed_out."""
    found = set(ends)
    reasons = sorted(end.reason or "?" for end in found - {CONFIRMED, RETURNED})
    said = [end.status.lower() for end in (CONFIRMED, RETURNED) if end in found]
    return ", or ".join([*said, *([f"rejected: {' or '.join(reasons)}"] if reasons else [])])


@dataclass
class Scene:
    """One playing of a scenario."""

    system: System
    name: str
    seed: int
    count: int
    allowed: dict[UUID, frozenset[End]] = field(default_factory=dict)
    must_be_seen: set[End] = field(default_factory=set)
    faults: list[Nemesis] = field(default_factory=list)
    others: Mapping[str, int] = field(default_factory=dict)
    """Sagas that are no orders, which it has judged itself: how many ended in which way."""
    explained: set[tuple[str, str]] = field(default_factory=set)
    under_way: int | None = None  # sagas, when the first fault struck
    healed: float | None = None  # of time.monotonic
    began_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def dice(self) -> random.Random:
        return random.Random(self.seed)

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

    def mixed(self) -> list[tuple[Ask, End]]:
        """Orders, some of which will be compensated, and how each ends when nothing is broken."""
        here = self.shop(
            stock={"tea": 10 * self.count, "rare": 1},
            accounts={"ann": PLENTY, "eve": PLENTY},
            declined=["eve"],
        )
        asks: list[tuple[Ask, End]] = []
        for number in range(self.count):
            if number % 7 == 3:
                asks.append((here.order("eve", tea=1), rejected("card_declined")))
            elif number % 7 == 6:
                asks.append((here.order("ann", tea=1, rare=2), rejected("out_of_stock")))
            else:
                asks.append((here.order("ann", tea=1), CONFIRMED))
        return asks

    def good(self) -> list[Ask]:
        """Orders that all can go well."""
        here = self.shop(stock={"tea": 10 * self.count}, accounts={"ann": PLENTY})
        return [here.order("ann", tea=1) for _ in range(self.count)]

    def expect(self, orders: Iterable[UUID], *ends: End) -> None:
        """Each may end in any of these ways and in no other."""
        self.allowed |= dict.fromkeys(orders, frozenset(ends))

    @contextmanager
    def struck(self, *faults: Nemesis) -> Iterator[None]:
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
        """A mixed flow of orders, struck in its middle. Each ends as if nothing had been broken, or
        otherwise."""
        mixed = self.mixed()
        asks = [ask for ask, _ in mixed]
        enough = max(1, round(UNDER_WAY * len(asks)))
        with self.system.door.placing(asks) as placed:
            if faults:
                with ExitStack() as waiting:
                    waiting.enter_context(self.payment_waits())
                    until(
                        lambda: len(self.system.db.alive()) >= enough,
                        f"{enough} sagas are under way",
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
        """In the middle of a transaction, for a row that is locked: so that sagas are under way
        when the fault strikes, on a fast machine too."""
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

    def until_asked(self, orders: Sequence[UUID], step: str) -> None:
        self.until_steps(orders, lambda steps: step in steps, f"{step} is asked for")

    def until_steps(
        self, orders: Sequence[UUID], fits: Callable[[dict[str, str]], bool], what: str
    ) -> None:
        until(lambda: all(map(fits, self.system.db.steps(orders))), what)


@dataclass(frozen=True)
class Scenario:
    """One row of the table."""

    name: str
    says: str
    fault: str
    expects: str
    play: Callable[[Scene], None]
    profile: str
    """Of PROFILES; or, for services of your own, a Plan in a file of this checkout, as JSON."""
    runtimes: frozenset[str] = BOTH
    orders: int | None = None  # how many it wants; None: as many as asked for
    styles: frozenset[Style] = frozenset(STYLES)
