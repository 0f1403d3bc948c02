"""The approach to a cell of the crash matrix: the situation in which its leg is in hand.

Owns: which situation that is, for each leg. Must not know: what happens to the process there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import httpx

from chaos.faults.nemesis import Unreachable
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
from chaos.scenarios import situations
from chaos.scenarios.scene import Scene
from chaos.scenarios.situations import Situation, reach, until_forgotten
from chaos.stack.apis import BECAUSE
from chaos.stack.broker import nonsense
from chaos.stack.system import System
from chaos.waiting import until
from common.messages.envelope import Key
from common.messages.topology import ORCHESTRATOR_REPLIES, commands_of, dead_letter_queue

UNKNOWN = "unknown_type"  # why a nonsense is dead-lettered

# The leg's command, or its reply, passes once what was away returns.
PASSING: dict[Leg, Situation] = {
    **dict.fromkeys((START, CREATE, RESERVE, CHARGE, DISPATCH, CONFIRM), situations.PLACED),
    **dict.fromkeys((RELEASE, REJECT), situations.DECLINED),
    REFUND: situations.CHARGE_GIVEN_UP,
    FENCE: situations.FENCE_WAITS,
}
# The leg's deadline passes while it is away.
OVERDUE: dict[Leg, Situation] = {
    RESERVE: situations.RESERVATION_WAITS,
    CHARGE: situations.CHARGE_WAITS,
    DISPATCH: situations.DISPATCH_WAITS,
    CONFIRM: situations.CONFIRMATION_WAITS,
    RELEASE: situations.RELEASE_WAITS,
    REFUND: situations.CHARGE_WAITS,
    FENCE: situations.FENCE_WAITS,
    REJECT: situations.REJECTION_WAITS,
}

Fired = Callable[[], object]
"""Waits until the failpoint has acted and its process is back."""


class _BackAtOnce(Unreachable):
    """Started again without waiting for it: it may be paused in the cell before it is ready."""

    def heal(self, system: System) -> None:
        system.runtime.start(self.target)


def orders_for(cell: Cell, scene: Scene) -> list[Ask]:
    return scene.declined() if cell.leg in (RELEASE, REJECT) else scene.good()


def travel(scene: Scene, cell: Cell, asks: Sequence[Ask], fired: Fired) -> None:
    """Let orders pass the cell; on return its failpoint has acted and every process is up again."""
    system = scene.system
    if cell.process == "operator":
        ASKED.get(cell.leg, _redriven)(scene, asks, fired)
    elif cell.kind == "dead_letter" and cell.leg != FORGET:
        system.broker.send(_queue(cell), [nonsense(Key(uuid4(), *cell.leg))])
        fired()
    elif cell.kind in ("intake", "dead_letter"):
        # About sagas that have ended: nothing as old as an unsettled dead letter is forgotten, and
        # what brought their own commands is acked, or would come again once they are forgotten.
        orders = system.door.place(asks)
        system.db.ends(orders)
        system.broker.send(_queue(cell), [nonsense(Key(order, *cell.leg)) for order in orders])
        fired()
    elif cell.kind in ("starter", "reconciler"):
        situation = situations.START_WAITS if cell.kind == "starter" else OVERDUE[cell.leg]
        with reach(scene, situation, asks=asks, enough=situations.none):
            fired()
    elif cell.leg == FORGET:
        orders = system.door.place(asks)
        fired()
        until_forgotten(system, orders)
    elif cell.by_command:
        system.door.place_by_command(asks)
        fired()
    else:
        _passed(scene, cell, asks, fired)


def _passed(scene: Scene, cell: Cell, asks: Sequence[Ask], fired: Fired) -> None:
    """Let the leg pass: before what is away returns if a relay sends its command, else after.

    A relay is stopped with the first order's command in hand, so the others do not get as far.
    """
    situation = PASSING[cell.leg]
    fault = _BackAtOnce(situation.away) if cell.process == situation.away else None
    sending = cell.process == "orchestrator" and cell.kind == "relay"
    with reach(scene, situation, fault, asks=asks, enough=any if sending else all):
        if sending:
            fired()
    if not sending:
        fired()


def dead_letters(cell: Cell) -> list[tuple[str, str]]:
    """Return which dead-letter queue the cell sends to, and why."""
    if cell.kind in ("dead_letter", "intake"):
        return [(dead_letter_queue(_queue(cell)), UNKNOWN)]
    if cell.process == "operator" and cell.leg in (REDRIVE, SENT_AGAIN):
        return [(dead_letter_queue(commands_of(OWNER[SENT_AGAIN.step])), UNKNOWN)]
    return []


def _queue(cell: Cell) -> str:
    """Return where the cell's process, or another for it, dead-letters nonsense about the leg."""
    if cell.kind == "intake":
        return commands_of(OWNER.get(cell.leg.step, "inventory"))  # any participant's may hold it
    if cell.process == "orchestrator" and cell.leg != START:
        return ORCHESTRATOR_REPLIES
    return commands_of(cell.process)


# --- asked by a person ---------------------------------------------------------------------


def _retried(scene: Scene, asks: Sequence[Ask], fired: Fired) -> None:
    with reach(scene, situations.RESERVATION_WAITS, asks=asks) as orders:
        _ask(scene.system, fired, f"/sagas/{orders[0]}/retry", BECAUSE)


def _reconciled(scene: Scene, asks: Sequence[Ask], fired: Fired) -> None:
    """Stop the orchestrator, so that a person is the only one to notice the deadline."""
    system = scene.system
    with reach(scene, situations.RESERVATION_WAITS, asks=asks) as orders:
        system.processes.stop("orchestrator")
        overdue = "select from orchestrator.saga_instance where next_deadline < now()"
        until(lambda: len(system.db.rows(overdue)) >= len(orders), "all are overdue")
        _ask(system, fired, "/reconcile", BECAUSE)
        system.processes.start("orchestrator")


def _redriven(scene: Scene, asks: Sequence[Ask], fired: Fired) -> None:
    system = scene.system
    order, *_ = system.door.place(asks)
    system.broker.send(commands_of(OWNER[SENT_AGAIN.step]), [nonsense(Key(order, *SENT_AGAIN))])
    letters = "select from orchestrator.dead_letter where saga_id = %s and state = 'open'"
    until(lambda: system.db.rows(letters, order), "the dead letter is taken in")
    _ask(system, fired, "/dead-letters/redrive", {"saga_id": str(order)})


def _ask(system: System, fired: Fired, path: str, body: Mapping[str, str]) -> None:
    """Ask as a person does: again if there is no answer; a refusal is an answer."""

    def answered() -> bool:
        try:
            return not system.operator.post(path, body).is_server_error
        except httpx.TransportError:
            return False

    with ThreadPoolExecutor(1) as people:
        asking = people.submit(until, answered, f"an answer to {path}")
        fired()
        asking.result()


ASKED: dict[Leg, Callable[[Scene, Sequence[Ask], Fired], None]] = {
    RETRY: _retried,
    RECONCILE: _reconciled,
    REDRIVE: _redriven,
}
