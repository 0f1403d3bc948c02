"""The crash matrix as a table: which process can die at which point with which step in hand. Pure.

Owns: every combination of process, failpoint, step and direction, and for those that cannot
be the reason. Must not know: how a process is brought there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple, Protocol

from common.envelope import Direction
from common.failpoints import Point

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

# Who executes the command of each step.
OWNER = {
    "start": "orchestrator",
    "create_order": "order",
    "reserve_stock": "inventory",
    "charge_payment": "payment",
    "dispatch_stock": "inventory",
    "confirm_order": "order",
}
_ACKS = (Point.BATCH_BEFORE_ACK, Point.BATCH_AFTER_ACK)
_THROUGH = (Point.BATCH_AFTER_ACK, Point.RELAY_AFTER_COMMIT, Point.INTAKE_AFTER_ACK)
_NO_DELIVERIES = "the door takes no deliveries"
PROCESSES = ("door", "order", "inventory", "payment", "orchestrator")


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
        """Why no process can come here; None if it can."""
        step, direction = self.leg
        if direction is COMPENSATING and step == "start":
            return "a saga is not started backwards"
        if direction is COMPENSATING and step == "confirm_order":
            return "a retriable step is never undone"
        if self.process == "door" and self.point in _ACKS:
            return _NO_DELIVERIES
        return _RULES[self.point.partition(".")[0]](self.process, self.leg)

    @property
    def repeatable(self) -> bool:
        """Whether what it had in hand when it died comes back to this very process."""
        if self.point in _THROUGH:
            return False  # it is through with it
        # The door and the worker relay what the other left behind.
        return not (self.point.startswith("relay.") and self.process in ("door", "order"))

    @property
    def freezable(self) -> bool:
        """Whether it may stand still here: not at the door, or nobody's order is accepted."""
        return self.process != "door" and self.leg != CREATE

    @property
    def by_command(self) -> bool:
        """Whether the orders must come as commands: the door's own do not pass here."""
        return self.process == "order" and self.leg in (CREATE, START)


class Dice(Protocol):
    """The part of random.Random that choosing cells needs."""

    def shuffle(self, x: list[Cell]) -> None: ...


def combinations() -> Iterator[Cell]:
    """Process x point x step x direction, possible or not."""
    for process, point, step, direction in product(PROCESSES, Point, OWNER, Direction):
        yield Cell(process, point, Leg(step, direction))


def possible() -> list[Cell]:
    return [cell for cell in combinations() if cell.impossible is None]


def impossible() -> list[dict[str, object]]:
    """The combinations that cannot be, and why; the failpoints of a process for which the same
    holds of the same steps as one."""
    legs: dict[tuple[str, str, Point], list[str]] = {}
    for cell in combinations():
        if cell.impossible is not None:
            legs.setdefault((cell.impossible, cell.process, cell.point), []).append(str(cell.leg))
    points: dict[tuple[str, str, tuple[str, ...]], list[Point]] = {}
    for (reason, process, point), names in legs.items():
        points.setdefault((reason, process, tuple(names)), []).append(point)
    return [
        {
            "reason": reason,
            "process": process,
            "points": _points_in_short(found),
            "legs": "all" if len(names) == len(OWNER) * len(Direction) else ", ".join(names),
            "combinations": len(found) * len(names),
        }
        for (reason, process, names), found in sorted(points.items())
    ]


def _points_in_short(points: Sequence[Point]) -> str:
    """batch.* for all of a kind."""
    kinds: dict[str, list[Point]] = {}
    for point in points:
        kinds.setdefault(point.partition(".")[0], []).append(point)
    whole = {kind: [p for p in Point if p.startswith(f"{kind}.")] for kind in kinds}
    return ", ".join(
        f"{kind}.*" if found == whole[kind] else ", ".join(found) for kind, found in kinds.items()
    )


def covering(cells: Sequence[Cell], dice: Dice) -> list[Cell]:
    """A few that meet every point and every leg at least once, chosen by the dice."""
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
    """Whether the leg's command, or its reply, is among what this process takes in."""
    if process == OWNER[leg.step]:
        return None
    if process == "orchestrator":
        return "its reply goes to whoever placed the order" if leg == CREATE else None
    if process == "door":
        return "the door only places orders"
    return f"a command of {OWNER[leg.step]}"


def _batch(process: str, leg: Leg) -> str | None:
    return None if (process, leg) == ("door", CREATE) else _handled(process, leg)


def _delivered(process: str, leg: Leg) -> str | None:
    return _NO_DELIVERIES if process == "door" else _handled(process, leg)


def _relay(process: str, leg: Leg) -> str | None:
    if process == "orchestrator":
        if leg == START:
            return "a start has no reply but to a repeat"
        return "nobody sends it: it is done at the door" if leg == CREATE else None
    if leg == START:
        return None if process in ("door", "order") else "sent by the order service"
    if process == "door":
        return "what a worker leaves behind it relays by chance only"
    return _handled(process, leg)


def _reconciler(process: str, leg: Leg) -> str | None:
    if process != "orchestrator":
        return "only the orchestrator judges deadlines"
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
    "dead_letter": _delivered,
    "intake": _intake,
}
