"""The crash matrix as a table: which process can die at which point with which step in hand. Pure.

Owns: every combination of process, failpoint, step and direction, and for those that cannot
be the reason. Must not know: how a process is brought there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import product
from typing import NamedTuple, Protocol

from common.kit.failpoints import Point
from common.messages.envelope import Direction

FORWARD, COMPENSATING = Direction.FORWARD, Direction.COMPENSATING


class Leg(NamedTuple):
    """A step in one direction."""

    step: str
    direction: Direction

    def __str__(self) -> str:
        return f"{self.step} {self.direction}"


START = Leg("start", FORWARD)  # StartSaga
CREATE = Leg("create_order", FORWARD)  # PlaceOrder
REJECT = Leg("create_order", COMPENSATING)
RESERVE = Leg("reserve_stock", FORWARD)
RELEASE = Leg("reserve_stock", COMPENSATING)
CHARGE = Leg("charge_payment", FORWARD)
REFUND = Leg("charge_payment", COMPENSATING)
DISPATCH = Leg("dispatch_stock", FORWARD)
FENCE = Leg("dispatch_stock", COMPENSATING)
CONFIRM = Leg("confirm_order", FORWARD)
FORGET = Leg("forget", FORWARD)  # a saga that ended long ago
RETRY = Leg("retry", FORWARD)  # of one saga, as everything else that a person asks of one
RECONCILE = Leg("reconcile", FORWARD)  # many sagas
REDRIVE = Leg("redrive", FORWARD)  # a dead letter; to discard one is the same transaction
DEEDS = (RETRY, RECONCILE, REDRIVE)

# Who executes the command of each step.
OWNER = {
    "start": "orchestrator",
    "create_order": "order",
    "reserve_stock": "inventory",
    "charge_payment": "payment",
    "dispatch_stock": "inventory",
    "confirm_order": "order",
}
LEGS = (*(Leg(*leg) for leg in product(OWNER, Direction)), FORGET, *DEEDS)
_ACKS = (Point.BATCH_BEFORE_ACK, Point.BATCH_AFTER_ACK)
_THROUGH = (
    Point.BATCH_AFTER_ACK,
    Point.RELAY_AFTER_COMMIT,
    Point.INTAKE_AFTER_ACK,
    Point.RETENTION_AFTER_COMMIT,
)
_NO_DELIVERIES = "the door takes no deliveries"
_ONE_LEG = "one leg of each process stands for all: a count of tries goes alike"
PROCESSES = ("door", "order", "inventory", "payment", "orchestrator", "operator")

# A count of tries is removed alike whatever it counted, and what a person has sent again is relayed
# alike whatever its step is: one leg of each process stands for all.
_COUNTED = {"order": CONFIRM, "inventory": RESERVE, "payment": CHARGE, "orchestrator": RESERVE}
SENT_AGAIN = RESERVE


class StackKind(Enum):
    """The stack a cell is run on."""

    PLAIN = auto()
    FORGETFUL = auto()
    """Sagas that ended are forgotten at once."""
    ATTENDED = auto()
    """Operators are there. Elsewhere their relay would send what a dead orchestrator left."""


@dataclass(frozen=True)
class Cell:
    """One way to die."""

    process: str
    point: Point
    leg: Leg

    def __str__(self) -> str:
        return f"{self.process} {self.point} {self.leg}"

    @property
    def impossible(self) -> str | None:
        """The reason why no process can come here; None if one can."""
        step, direction = self.leg
        if direction is COMPENSATING and step == "start":
            return "a saga is not started backwards"
        if direction is COMPENSATING and step == "confirm_order":
            return "a retriable step is never undone"
        if self.process == "operator":
            return _operator(self.point, self.leg)
        if self.leg in DEEDS or self.kind == "deed":
            return "people ask the operator's process only"
        if self.leg == FORGET:
            return _forgotten(self.kind, self.process)
        if self.process == "door" and self.point in _ACKS:
            return _NO_DELIVERIES
        return _RULES[self.kind](self.process, self.leg)

    @property
    def kind(self) -> str:
        """The part of the code its point is in: batch, relay ..."""
        return self.point.partition(".")[0]

    @property
    def stack(self) -> StackKind:
        if self.process == "operator":
            return StackKind.ATTENDED
        return StackKind.FORGETFUL if self.leg == FORGET else StackKind.PLAIN

    @property
    def repeatable(self) -> bool:
        """True if what it had in hand when it died comes back to this very process."""
        if self.point in _THROUGH:
            return False  # it is through with it
        if self.process == "operator":
            return False  # a person asks again, or the orchestrator relays it
        # The door and the worker relay what the other left behind.
        return not (self.point.startswith("relay.") and self.process in ("door", "order"))

    @property
    def freezable(self) -> bool:
        """True if it may freeze here: not at the door, or no order is accepted."""
        return self.process != "door" and self.leg != CREATE

    @property
    def by_command(self) -> bool:
        """True if the orders must come as commands: the door's own do not pass here."""
        return self.process == "order" and self.leg in (CREATE, START)


class Dice(Protocol):
    """The part of random.Random that choosing cells needs."""

    def shuffle(self, x: list[Cell]) -> None: ...


def combinations() -> Iterator[Cell]:
    """Combine process, point and leg, possible or not."""
    for process, point, leg in product(PROCESSES, Point, LEGS):
        yield Cell(process, point, leg)


def possible() -> list[Cell]:
    return [cell for cell in combinations() if cell.impossible is None]


def reasons() -> dict[str, int]:
    """Count why combinations cannot be."""
    why = (cell.impossible for cell in combinations())
    return dict(Counter(filter(None, why)).most_common())


def covering(cells: Sequence[Cell], dice: Dice) -> list[Cell]:
    """Choose a few that meet every point and every leg at least once, by the dice."""
    shuffled = list(cells)
    dice.shuffle(shuffled)
    wanted: set[Point | Leg] = {thing for cell in cells for thing in (cell.point, cell.leg)}
    chosen = []
    while wanted:
        best = max(shuffled, key=lambda cell: len({cell.point, cell.leg} & wanted))
        wanted -= {best.point, best.leg}
        chosen.append(best)
    return chosen


def _handled(process: str, leg: Leg) -> str | None:
    """Say why this process consumes neither the leg's command nor its reply; None if it does."""
    if process == OWNER[leg.step]:
        return None
    if process == "orchestrator":
        return "its reply goes to the caller that placed the order" if leg == CREATE else None
    if process == "door":
        return "the door only places orders"
    return f"a command of {OWNER[leg.step]}"


def _operator(point: Point, leg: Leg) -> str | None:
    match point.partition(".")[0]:
        case "deed":
            return None if leg in DEEDS else "nothing that a person does is called so"
        case "relay":
            return None if leg == SENT_AGAIN else "one step stands for all that people send again"
        case _:
            return "the operator's process does what people ask, and relays it"


def _forgotten(kind: str, process: str) -> str | None:
    """Say why not. The orchestrator sends Forget to participants, which do not answer."""
    if process == "door":
        return _NO_DELIVERIES
    if kind == "intake":
        return _intake(process, FORGET)
    if kind in ("retention", "relay"):
        return None if process == "orchestrator" else "the orchestrator sends what is forgotten"
    if kind in ("batch", "tries", "dead_letter"):
        return None if process != "orchestrator" else "no participant answers that it has forgotten"
    return _ONE_LEG if kind == "tries_done" else "has no deadline, and is no start"


def _batch(process: str, leg: Leg) -> str | None:
    return None if (process, leg) == ("door", CREATE) else _handled(process, leg)


def _delivered(process: str, leg: Leg) -> str | None:
    return _NO_DELIVERIES if process == "door" else _handled(process, leg)


def _tries_done(process: str, leg: Leg) -> str | None:
    return _delivered(process, leg) or (None if leg == _COUNTED[process] else _ONE_LEG)


def _relay(process: str, leg: Leg) -> str | None:
    if process == "orchestrator":
        if leg == START:
            return "a start has no reply but to a repeat"
        return "it is not sent: it is done at the door" if leg == CREATE else None
    if leg == START:
        return None if process in ("door", "order") else "sent by the order service"
    if process == "door":
        return "what a worker leaves behind it relays by chance only"
    return _handled(process, leg)


def _reconciler(process: str, leg: Leg) -> str | None:
    if process != "orchestrator":
        return "only the orchestrator enforces deadlines"
    return "has no deadline" if leg in (CREATE, START) else None


def _starter(process: str, leg: Leg) -> str | None:
    return None if (process, leg) == ("order", START) else "only the order service asks for starts"


def _intake(process: str, _: Leg) -> str | None:
    return None if process == "orchestrator" else "only the orchestrator takes dead letters in"


_RULES = {
    "batch": _batch,
    "relay": _relay,
    "reconciler": _reconciler,
    "starter": _starter,
    "tries": _delivered,
    "tries_done": _tries_done,
    "dead_letter": _delivered,
    "intake": _intake,
    "retention": lambda *_: "only forgetting moves out what has ended",
}
