"""The situations that scenarios, guards and cells of the crash matrix bring orders into.

Each says which orders are placed, which process is away so that they cannot go on, how far they
come, and how they may end once it is back. What is done to them there is up to its user.

Owns: the table, and bringing a scene's orders into a situation. Must not know: what for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import LiteralString
from uuid import UUID

from chaos.faults.nemesis import Nemesis, Unreachable
from chaos.load.workload import Ask
from chaos.runtime import Style
from chaos.scenarios.scene import GIVEN_UP, Scene
from chaos.stack.database import CONFIRMED, End, rejected
from chaos.stack.system import System
from chaos.waiting import until

Steps = Mapping[str, str]
"""The steps of a saga so far, each with its status."""

CHARGE_TIMED_OUT = rejected("charge_payment_timed_out")
RESERVE_TIMED_OUT = rejected("reserve_stock_timed_out")
FENCED = rejected("dispatch_stock_timed_out")
CARD_DECLINED = rejected("card_declined")


def _anywhere(_: Steps) -> bool:
    return True


def _asked(step: str) -> Callable[[Steps], bool]:
    return lambda steps: step in steps


def _is(step: str, status: str) -> Callable[[Steps], bool]:
    return lambda steps: steps.get(step) == status


def given_up_and_released(steps: Steps) -> bool:
    """Return whether a charge is given up, and its undo does not hold up the release."""
    return steps.get("charge_payment", "sent") != "sent" and steps["reserve_stock"] == "undone"


def fencing(steps: Steps) -> bool:
    return steps.get("dispatch_stock") == "fencing"


def fencing_or_undone(steps: Steps) -> bool:
    """Return whether the fence is out, or, on a slow machine, the charge was given up before."""
    return fencing(steps) or steps.get("reserve_stock") == "undoing"


@dataclass(frozen=True)
class Situation:
    """Orders, and the point at which they wait."""

    says: str
    orders: Callable[[Scene], list[Ask]] = Scene.good
    away: str = ""
    """The process that is away; none if nothing keeps the orders from going on."""
    reserved: bool = False
    """It goes away once the goods are reserved; payment is paused until then."""
    reached: Callable[[Steps], bool] = _anywhere
    ends: tuple[End, ...] = (CONFIRMED,)


# fmt: off
PLACED = Situation("orders are placed")
DECLINED = Situation(
    "orders are placed whose card is declined", Scene.declined, ends=(CARD_DECLINED,))
START_WAITS = Situation("StartSaga waits for the orchestrator", away="orchestrator")
RESERVATION_WAITS = Situation(
    "every reservation waits for inventory", away="inventory", reached=_asked("reserve_stock"))
RESERVATION_GIVEN_UP = Situation(
    "every reservation is given up, and its undo waits for inventory",
    away="inventory", reached=_is("reserve_stock", "undoing"), ends=(RESERVE_TIMED_OUT,))
PARKED = Situation(
    "every order waits for a person", Scene.large, reached=_is("approve_order", "waiting"))
CHARGE_WAITS = Situation(
    "every charge waits for payment", away="payment", reached=_asked("charge_payment"))
REFUSAL_WAITS = replace(
    CHARGE_WAITS, says="every charge waits for payment, which will refuse it",
    orders=Scene.declined, ends=(CARD_DECLINED,))
CHARGE_GIVEN_UP = Situation(
    "every charge is given up, and its undo waits for payment",
    away="payment", reached=_is("charge_payment", "undoing"), ends=GIVEN_UP)
STOCK_RELEASED = Situation(
    "every charge is given up and the stock released, while payment is away",
    away="payment", reached=given_up_and_released, ends=(CHARGE_TIMED_OUT,))
RELEASE_WAITS = Situation(
    "the card is declined, and every release waits for inventory", Scene.declined,
    away="inventory", reserved=True, reached=_is("reserve_stock", "undoing"),
    ends=(CARD_DECLINED,))
DISPATCH_WAITS = Situation(
    "every dispatch waits for inventory",
    away="inventory", reserved=True, reached=_is("dispatch_stock", "sent"))
FENCE_WAITS = Situation(
    "every dispatch is given up, and its fence waits for inventory",
    away="inventory", reserved=True, reached=fencing_or_undone,
    ends=(CONFIRMED, FENCED, CHARGE_TIMED_OUT, RESERVE_TIMED_OUT))
CONFIRMATION_WAITS = Situation(
    "every confirmation waits for order", away="order", reached=_asked("confirm_order"))
REJECTION_WAITS = Situation(
    "everything is undone, and every rejection waits for order", Scene.declined,
    away="order", reached=_is("create_order", "undoing"), ends=(CARD_DECLINED, *GIVEN_UP))
# fmt: on


@contextmanager
def reach(
    scene: Scene,
    situation: Situation,
    fault: Nemesis | None = None,
    *,
    asks: Sequence[Ask] | None = None,
    enough: Callable[[Iterable[bool]], bool] = all,
) -> Iterator[list[UUID]]:
    """Bring orders into a situation for the length of the block, and allow them its ends.

    `fault` is how the process is away: by default it is stopped. `asks` are placed instead of the
    situation's own orders; `enough` says of how many it must be true that they have arrived.
    """
    asks = situation.orders(scene) if asks is None else asks  # stocked while all are there
    fault = fault or Unreachable(situation.away)
    orders: list[UUID] = []
    with ExitStack() as away:
        if situation.away and not situation.reserved:
            away.enter_context(scene.struck(fault))
        with _payment_paused(scene.system) if situation.reserved else nullcontext():
            orders += scene.system.door.place(asks)
            scene.expect(orders, *situation.ends)
            if situation.reserved:
                scene.until_asked(orders, "charge_payment")
                away.enter_context(scene.struck(fault))
        scene.until_steps(orders, situation.reached, situation.says, enough)
        if situation.away:
            scene.under_way = len(orders)
        yield orders


@contextmanager
def _payment_paused(system: System) -> Iterator[None]:
    system.runtime.pause("payment")
    try:
        yield
    finally:
        system.runtime.resume("payment")


def none(_: Iterable[bool]) -> bool:
    """Be content with no order at all: the situation is yet to come while the block goes on."""
    return True


# By style: which of these sagas are archived, and when all that was said of each was first issued.
ARCHIVED: dict[Style, LiteralString] = {
    "orchestrated": """
      select saga_id, to_timestamp((instance->'steps'->'reserve_stock'->>'issued')::float8)
      from orchestrator.saga_archive where saga_id = any(%s)""",
    "choreographed": """
      select saga_id, (progress->>'started_at')::timestamptz
      from order_svc.progress_archive where saga_id = any(%s)""",
}


def until_forgotten(system: System, orders: Sequence[UUID]) -> None:
    """Wait until sagas are archived and no participant's inbox has a row of them."""

    def forgotten() -> bool:
        archived = system.db.rows(ARCHIVED[system.style], list(orders))
        [(remembered,)] = system.db.rows(
            """
            select (select count(*) from order_svc.inbox where saga_id = any(%(ids)s))
                   + (select count(*) from inventory_svc.inbox where saga_id = any(%(ids)s))
                   + (select count(*) from payment_svc.inbox where saga_id = any(%(ids)s))""",
            ids=list(orders),
        )
        return (len(archived), remembered) == (len(orders), 0)

    until(forgotten, f"{len(orders)} sagas are archived, and no inbox remembers them")
