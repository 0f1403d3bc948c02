"""How to bring a process to a cell of the crash matrix: which orders, and whose silence.

Owns: for each leg the shortest way for sagas to pass it, and to stand still at it. Must not
know: what happens to the process there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import httpx

from chaos.load.shop import PLENTY, Shop, shop
from chaos.load.workload import Ask
from chaos.matrix.cells import (
    CHARGE,
    CONFIRM,
    CREATE,
    DISPATCH,
    FENCE,
    FORGET,
    OWNER,
    RECONCILE,
    REDRIVE,
    REFUND,
    REJECT,
    RELEASE,
    RESERVE,
    RETRY,
    SENT_AGAIN,
    START,
    Cell,
    Leg,
)
from chaos.scenarios.forgetting import until_forgotten
from chaos.stack.apis import BECAUSE
from chaos.stack.broker import nonsense
from chaos.stack.system import System
from chaos.waiting import until
from common.messages.envelope import Key
from common.messages.topology import ORCHESTRATOR_REPLIES, commands_of, dead_letter_queue

ORDERS = 3  # through every cell
UNKNOWN = "unknown_type"  # why a nonsense is set aside

Fired = Callable[[], object]
"""Waits until the failpoint has acted and its process is back."""


def new_shop(system: System, name: str) -> Shop:
    """Eve's card is declined."""
    return system.stock_up(
        shop(name, stock={"tea": 50}, accounts={"ann": PLENTY, "eve": PLENTY}, declined=["eve"])
    )


def travel(system: System, cell: Cell, here: Shop, fired: Fired) -> None:
    """Orders pass the cell; on return its failpoint has acted and everybody is up again."""
    kind = cell.kind
    if cell.process == "operator":
        _ASKED.get(cell.leg, _redriven)(system, here, fired)
    elif kind == "dead_letter" and cell.leg != FORGET:
        system.broker.send(_queue(cell), [nonsense(Key(uuid4(), *cell.leg))])
        fired()
    elif kind in ("intake", "dead_letter"):
        # About sagas that have ended: nothing is forgotten that is as old as an unsettled letter;
        # and what brought their own commands is acked, or would come again once they are forgotten.
        orders = system.door.place(_orders(here, "ann"))
        system.db.ends(orders)
        system.broker.send(_queue(cell), [nonsense(Key(order, *cell.leg)) for order in orders])
        fired()
    elif kind == "starter":
        _unheard_start(system, here, fired)
    elif kind == "reconciler":
        _SILENT[cell.leg](system, here, fired, cell)
    else:
        _PASSING[cell.leg](system, here, fired, cell)


def dead_letters(cell: Cell) -> list[tuple[str, str]]:
    """What the cell sends to which dead-letter queue, and why."""
    if cell.kind in ("dead_letter", "intake"):
        return [(dead_letter_queue(_queue(cell)), UNKNOWN)]
    if cell.process == "operator" and cell.leg in (REDRIVE, SENT_AGAIN):
        return [(dead_letter_queue(commands_of(OWNER[SENT_AGAIN.step])), UNKNOWN)]
    return []


def _queue(cell: Cell) -> str:
    """Where nonsense about the cell's leg is set aside by the cell's process, or for it."""
    if cell.point.startswith("intake."):
        return commands_of(OWNER.get(cell.leg.step, "inventory"))  # any participant's may hold it
    if cell.process == "orchestrator" and cell.leg != START:
        return ORCHESTRATOR_REPLIES
    return commands_of(cell.process)


# --- passing a leg -------------------------------------------------------------------------

Road = Callable[[System, Shop, Fired, Cell], None]


def _plain(system: System, here: Shop, fired: Fired, cell: Cell) -> None:
    _place(system, cell, _orders(here, "ann"))
    fired()


def _declined(system: System, here: Shop, fired: Fired, cell: Cell) -> None:
    _place(system, cell, _orders(here, "eve"))
    fired()


def _unknown_charge(system: System, here: Shop, fired: Fired, cell: Cell) -> None:
    """Payment is away for longer than all attempts, and finds charge and refund when it returns."""
    system.processes.stop("payment")
    orders = system.door.place(_orders(here, "ann"))
    until(
        lambda: _enough(cell)(
            s.get("charge_payment") == "undoing" for s in system.db.steps(orders)
        ),
        "the refund is out",
    )
    if cell.process == "payment":
        # Not `processes.start`: it may stand still in the cell before it is ready.
        system.runtime.start("payment")
        fired()
    else:
        _start_when(system, "payment", fired, now=_is_sending(cell))


def _silent_pivot(system: System, here: Shop, fired: Fired, cell: Cell) -> None:
    """Inventory is away for longer than all attempts, and finds pivot and fence when it returns."""
    orders = _to_the_pivot(system, here)
    until(
        lambda: _enough(cell)(_fenced_or_back(s) for s in system.db.steps(orders)),
        "the fence is out",
    )
    if cell.process == "inventory":
        system.runtime.start("inventory")  # as above
        fired()
    else:
        _start_when(system, "inventory", fired, now=_is_sending(cell))


def _is_sending(cell: Cell) -> bool:
    return cell.process == "orchestrator" and cell.point.startswith("relay.")


def _enough(cell: Cell) -> Callable[[Iterable[bool]], bool]:
    """Of the orders that must have turned. An orchestrator that acts on sending the command stands
    still with the first of them in hand, and then the others do not turn."""
    return any if _is_sending(cell) else all


def _start_when(system: System, process: str, fired: Fired, *, now: bool) -> None:
    """The orchestrator's relay acts on the command, everything else of it on the reply."""
    if now:
        fired()
        system.processes.start(process)
    else:
        system.processes.start(process)
        fired()


def _to_the_pivot(system: System, here: Shop) -> list[UUID]:
    """Orders whose stock is reserved, and whose inventory is then away."""
    system.runtime.pause("payment")
    orders = system.door.place(_orders(here, "ann"))
    until(
        lambda: all("charge_payment" in s for s in system.db.steps(orders)),
        "stock is reserved",
    )
    system.processes.stop("inventory")
    system.runtime.resume("payment")
    return orders


def _fenced_or_back(steps: Mapping[str, str]) -> bool:
    """Or the charge was too slow for this machine, and is undone."""
    return steps.get("dispatch_stock") == "fencing" or steps.get("reserve_stock") == "undoing"


def _forgotten(system: System, here: Shop, fired: Fired, _: Cell) -> None:
    orders = system.door.place(_orders(here, "ann"))
    fired()
    until_forgotten(system, orders)


_PASSING: dict[Leg, Road] = {
    START: _plain,
    CREATE: _plain,
    RESERVE: _plain,
    CHARGE: _plain,
    DISPATCH: _plain,
    CONFIRM: _plain,
    RELEASE: _declined,
    REJECT: _declined,
    REFUND: _unknown_charge,
    FENCE: _silent_pivot,
    FORGET: _forgotten,
}


# --- standing still at a leg ---------------------------------------------------------------


def _owner_away(system: System, here: Shop, fired: Fired, cell: Cell) -> None:
    owner = OWNER[cell.leg.step]
    system.processes.stop(owner)
    system.door.place(_orders(here, "eve" if cell.leg == REJECT else "ann"))
    fired()
    system.processes.start(owner)


def _release_unanswered(system: System, here: Shop, fired: Fired, _: Cell) -> None:
    system.runtime.pause("payment")
    orders = system.door.place(_orders(here, "eve"))
    until(
        lambda: all("charge_payment" in s for s in system.db.steps(orders)),
        "stock is reserved",
    )
    system.processes.stop("inventory")
    system.runtime.resume("payment")
    fired()
    system.processes.start("inventory")


def _refund_unanswered(system: System, here: Shop, fired: Fired, _: Cell) -> None:
    system.processes.stop("payment")
    system.door.place(_orders(here, "ann"))
    fired()
    system.processes.start("payment")


def _pivot_unanswered(system: System, here: Shop, fired: Fired, _: Cell) -> None:
    _to_the_pivot(system, here)
    fired()
    system.processes.start("inventory")


_SILENT: dict[Leg, Road] = {
    RESERVE: _owner_away,
    CHARGE: _owner_away,
    CONFIRM: _owner_away,
    REJECT: _owner_away,
    RELEASE: _release_unanswered,
    REFUND: _refund_unanswered,
    DISPATCH: _pivot_unanswered,
    FENCE: _pivot_unanswered,
}


def _unheard_start(system: System, here: Shop, fired: Fired) -> None:
    """Nobody hears StartSaga until the order service asks again."""
    system.processes.stop("orchestrator")
    system.door.place(_orders(here, "ann"))
    fired()
    system.processes.start("orchestrator")


# --- asked by a person ---------------------------------------------------------------------


def _retried(system: System, here: Shop, fired: Fired) -> None:
    system.processes.stop("inventory")
    order, *_ = system.door.place(_orders(here, "ann"))
    until(lambda: "reserve_stock" in system.db.steps([order])[0], "stock is asked for")
    _ask(system, fired, f"/sagas/{order}/retry", BECAUSE)
    system.processes.start("inventory")


def _reconciled(system: System, here: Shop, fired: Fired) -> None:
    """Nobody else is there to judge the deadline."""
    system.processes.stop("inventory")
    orders = system.door.place(_orders(here, "ann"))
    until(
        lambda: all("reserve_stock" in s for s in system.db.steps(orders)),
        "stock is asked for",
    )
    system.processes.stop("orchestrator")
    overdue = "select from orchestrator.saga_instance where next_deadline < now()"
    until(lambda: len(system.db.rows(overdue)) >= len(orders), "all are overdue")
    _ask(system, fired, "/reconcile", BECAUSE)
    system.processes.start("orchestrator")
    system.processes.start("inventory")


def _redriven(system: System, here: Shop, fired: Fired) -> None:
    order, *_ = system.door.place(_orders(here, "ann"))
    system.broker.send(commands_of(OWNER[SENT_AGAIN.step]), [nonsense(Key(order, *SENT_AGAIN))])
    letters = "select from orchestrator.dead_letter where saga_id = %s and state = 'open'"
    until(lambda: system.db.rows(letters, order), "the letter is taken in")
    _ask(system, fired, "/dead-letters/redrive", {"saga_id": str(order)})


def _ask(system: System, fired: Fired, path: str, body: Mapping[str, str]) -> None:
    """A person who hears no answer asks again; a no is an answer."""

    def answered() -> bool:
        try:
            return not system.operator.post(path, body).is_server_error
        except httpx.TransportError:
            return False

    with ThreadPoolExecutor(1) as people:
        asking = people.submit(until, answered, f"an answer to {path}")
        fired()
        asking.result()


_ASKED: dict[Leg, Callable[[System, Shop, Fired], None]] = {
    RETRY: _retried,
    RECONCILE: _reconciled,
    REDRIVE: _redriven,
}


def _orders(here: Shop, who: str) -> list[Ask]:
    return [here.order(who, tea=1) for _ in range(ORDERS)]


def _place(system: System, cell: Cell, asks: Sequence[Ask]) -> None:
    if cell.by_command:
        system.door.place_by_command(asks)
    else:
        system.door.place(asks)
