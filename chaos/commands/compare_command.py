"""`chaos compare`: the same orders with and without an orchestrator, one after the other.

Owns: what is measured of each style, and asking our own tools where an order is. Must not know: how
either style works.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any, LiteralString
from uuid import UUID

from chaos.bench import ours
from chaos.bench.workload import catalogue, orders
from chaos.console.options import Json, Name, Seconds, Seed
from chaos.console.results import BUILD, keep, machine, provenance
from chaos.console.stage import Stage
from chaos.judge.queues import count_queues
from chaos.load.shop import PLENTY, shop
from chaos.pages import measurement_pages as pages
from chaos.runtime import STYLES, Plan, Style, choose
from chaos.runtime.stack import CHECKOUT
from chaos.scenarios.scene import Scene, system_up
from chaos.scenarios.situations import DISPATCH_WAITS, reach
from chaos.stack.system import System
from chaos.waiting import until

RESULT = BUILD / "compare.json"
PAGE = CHECKOUT / "docs/choreography.md"
IN_FLIGHT = (1, 100)
PIECES = 100_000
REFUSED = 40  # orders whose card is declined, one after another
FLOW = 400  # orders under way when a process is killed
PATIENCE_SECONDS = 120.0
# No timeout ends and nothing is resent: a dropped message stays dropped.
UNHURRIED = {"step_timeout_seconds": "600", "start_resend_seconds": "600"}


def compare(
    seconds: Seconds = 10.0, seed: Seed = 7, json_: Json = False, name: Name = "compare"
) -> None:
    """Measure the orchestrated and the choreographed style, and write the comparison.

    Envelopes and commits per order, throughput, latency, the time a compensation and a recovery
    take, and how many questions find an order whose message was dropped. Writes build/compare.json
    and docs/choreography.md. Takes about four minutes, and needs the machine to itself.
    """
    stage = Stage.on(stderr=json_)
    result: dict[str, Any] = {
        **provenance("compare", "--seconds", f"{seconds:g}", "--seed", seed),
        **machine(),
        "seed": seed,
        "added_step": {style: _added_step(style) for style in STYLES},
    }
    for style in STYLES:
        stage.say(f"{style}: bringing a stack up")
        with system_up(Plan(settings=UNHURRIED, style=style), choose("native", name)) as system:
            result[style] = _measured(stage, system, seconds, seed)
    keep(result, RESULT, as_json=json_)
    PAGE.write_text(pages.choreography(result))
    stage.show(pages.styles(result))


def _measured(stage: Stage, system: System, seconds: float, seed: int) -> dict[str, Any]:
    pids = {s.name: s.pid for s in system.runtime.status() if s.pid is not None}
    system.load(catalogue())
    loads = {}
    for load in IN_FLIGHT:
        stage.say(f"{system.style}: {load} in flight")
        asked = orders(seed, str(load))  # the same ones on both stacks
        measured = ours.measure(system.endpoints, pids, asked, load, seconds, system.style)
        loads[str(load)] = measured.figures()
    stage.say(f"{system.style}: refusals, a kill, a dropped message")
    return {
        "loads": loads,
        "compensation_ms": _compensation(system),
        "recovery_seconds": _recovery(system),
        "search": _search(system),
    }


def _compensation(system: System) -> float:
    """Return the median ms from an order's row to its rejection, by the database's clock."""
    here = system.stock_up(
        shop("refused", stock={"tea": PIECES}, accounts={"eve": PLENTY}, declined=["eve"])
    )
    placed: list[UUID] = []
    for _ in range(REFUSED):
        placed += system.door.place([here.order("eve", tea=1)])
        system.db.ends(placed[-1:])
    rows = system.db.rows(
        "select extract(epoch from settled_at - placed_at)::float8 * 1000"
        " from order_svc.customer_order where order_id = any(%s)",
        placed,
    )
    return round(float(median(ms for (ms,) in rows)), 1)


def _recovery(system: System) -> float:
    """Return the seconds from SIGKILL to payment until every order under way has ended."""
    here = system.stock_up(shop("killed", stock={"tea": PIECES}, accounts={"ann": PLENTY}))
    with system.door.placing([here.order("ann", tea=1) for _ in range(FLOW)]) as placing:
        until(
            lambda: len(system.db.alive()) >= FLOW // 20, "orders are under way", PATIENCE_SECONDS
        )
        system.processes.kill("payment")
        killed = time.monotonic()
        system.runtime.start("payment")
        placed = placing.result()
    system.db.ends(placed, PATIENCE_SECONDS)
    return round(time.monotonic() - killed, 2)


def _added_step(style: Style) -> dict[str, int]:
    """Count the files and lines that adding a step touches, by the patch that tests/large plays."""
    patch = CHECKOUT / "examples" / "fraud_check" / f"{style}.patch"
    lines = patch.read_text().splitlines()
    return {
        "files": sum(line.startswith("+++ ") for line in lines),
        "added": sum(line.startswith("+") and not line.startswith("+++") for line in lines),
        "removed": sum(line.startswith("-") and not line.startswith("---") for line in lines),
    }


# --- where is this order? ------------------------------------------------------------------

_HANDLED: LiteralString = (
    "select outcome from {}.inbox where saga_id = %s and step = '{}' and direction = 'forward'"
)
_UNSENT: LiteralString = (
    "select count(*) from {}.outbox where envelope::jsonb->>'saga_id' = %s::text"
)
# Asked in turn, until it is known that the message is neither handled, nor on its way, nor still to
# come: what is asked, and the query. The queue itself is asked last.
QUESTIONS: dict[Style, tuple[tuple[str, LiteralString], ...]] = {
    "orchestrated": (
        (
            "saga show: its last entry",  # that it was sent, to whom, and when it is resent
            "select concat_ws(' ', entry, step, direction) from orchestrator.saga_log"
            " where saga_id = %s order by id desc limit 1",
        ),
        ("inbox of inventory_svc: dispatch_stock",
         _HANDLED.format("inventory_svc", "dispatch_stock")),
        ("outbox of orchestrator: what is not published yet", _UNSENT.format("orchestrator")),
    ),
    "choreographed": (
        ("inbox of inventory_svc: dispatch_stock",
         _HANDLED.format("inventory_svc", "dispatch_stock")),
        ("inbox of payment_svc: charge_payment",  # whose event asks the inventory
         _HANDLED.format("payment_svc", "charge_payment")),
        ("outbox of payment_svc: what is not published yet", _UNSENT.format("payment_svc")),
        ("outbox of order_svc: what is not published yet", _UNSENT.format("order_svc")),
    ),
}  # fmt: skip
KNOWN_AFTER: dict[Style, int] = {"orchestrated": 2, "choreographed": 3}
"""The number of questions after which it is known which service must act next."""


def _search(system: System) -> dict[str, Any]:
    """Drop the message that asks for a dispatch, and count the questions until that is known."""
    scene = Scene(system, "lost", seed=0, count=1)
    (queue,) = system.broker.inputs("inventory")
    with reach(scene, DISPATCH_WAITS) as (order,):
        until(lambda: system.broker.take(queue), "its message is taken away")
    view = system.door.get(f"/orders/{order}/saga")
    sent = [step["step"] for step in view["steps"] if step["status"] == "sent"]
    asked = [(f"GET /orders/{order}/saga", f"{view['state']}, awaits {' and '.join(sent)}")]
    for what, query in QUESTIONS[system.style]:
        rows = system.db.rows(query, order)
        asked.append((what, str(rows[0][0]) if rows else "nothing"))
    for name in (queue, f"{queue}.dead"):
        waiting = sum(count_queues(system.runtime.rabbitmqctl)[name])
        asked.append((f"queue {name}: ready and unacked", str(waiting)))
    return {
        "asked": asked,
        "until_known_who_is_next": KNOWN_AFTER[system.style],
        "queries": len(asked),
    }
