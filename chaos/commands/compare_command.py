"""`chaos compare`: the same orders with and without an orchestrator, one after the other.

Owns: what is measured of each style, and asking our own tools where an order is. Must not know: how
either style works.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from statistics import median
from typing import Any
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
from chaos.scenarios.scene import system_up
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


# --- where is order X? ---------------------------------------------------------------------


@dataclass
class Search:
    """Questions asked about an order, each with its answer."""

    system: System
    order: UUID
    asked: list[tuple[str, str]] = field(default_factory=list)

    def ask(self, what: str, answer: object) -> None:
        self.asked.append((what, str(answer)))

    def customer_view(self) -> None:
        view = self.system.door.get(f"/orders/{self.order}/saga")
        sent = [step["step"] for step in view["steps"] if step["status"] == "sent"]
        self.ask(f"GET /orders/{self.order}/saga", f"{view['state']}, awaits {' and '.join(sent)}")

    def saga_log(self) -> None:
        query = (
            "select concat_ws(' ', entry, step, direction) from orchestrator.saga_log"
            " where saga_id = %s order by id desc limit 1"
        )
        self.ask("saga show: its last entry", self._one(query))

    def handled(self, schema: str, step: str) -> None:
        """Ask a service's inbox whether it has executed a step."""
        query = (
            f"select outcome from {schema}.inbox where saga_id = %s"  # noqa: S608 - ours
            f" and step = '{step}' and direction = 'forward'"
        )
        self.ask(f"inbox of {schema}: {step}", self._one(query))

    def unsent(self, schema: str) -> None:
        query = (
            f"select count(*) from {schema}.outbox"  # noqa: S608 - one of ours
            " where envelope::jsonb->>'saga_id' = %s::text"
        )
        self.ask(f"outbox of {schema}: what is not published yet", self._one(query))

    def queued(self, queue: str) -> None:
        waiting = sum(count_queues(self.system.runtime.rabbitmqctl)[queue])
        self.ask(f"queue {queue}: ready and unacked", waiting)

    def _one(self, query: Any) -> object:
        rows = self.system.db.rows(query, self.order)
        return rows[0][0] if rows else "nothing"


def _search(system: System) -> dict[str, Any]:
    """Drop the message that asks for a dispatch, and ask until it is known that it is gone.

    It is known when it is neither handled, nor on its way, nor still to come.
    """
    here = system.stock_up(shop("lost", stock={"tea": PIECES}, accounts={"ann": PLENTY}))
    (queue,) = system.broker.inputs("inventory")
    system.runtime.pause("payment")
    try:
        (order,) = system.door.place([here.order("ann", tea=1)])
        until(lambda: "charge_payment" in system.db.steps([order])[0], "the charge is asked for")
        system.runtime.stop("inventory")
    finally:
        system.runtime.resume("payment")
    until(lambda: system.db.steps([order])[0].get("dispatch_stock") == "sent", "dispatch is next")
    until(lambda: system.broker.take(queue), "its message is taken away")
    system.processes.start("inventory")
    search = Search(system, order)
    search.customer_view()
    if system.style == "orchestrated":
        search.saga_log()  # says that it was sent, to whom, and when it is sent again
        search.handled("inventory_svc", "dispatch_stock")
        search.unsent("orchestrator")
    else:
        search.handled("inventory_svc", "dispatch_stock")
        search.handled("payment_svc", "charge_payment")  # whose event asks the inventory
        search.unsent("payment_svc")
        search.unsent("order_svc")  # which resends it
    search.queued(queue)
    search.queued(f"{queue}.dead")
    first = 2 if system.style == "orchestrated" else 3
    return {"asked": search.asked, "until_known_who_is_next": first, "queries": len(search.asked)}
