"""`chaos compare`: the same orders with and without an orchestrator, on one machine, one after the
other.

Owns: what is measured of each style, and asking our own tools where an order is. Must not know: how
either style works; what is made of the figures is compare_page.py's.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.console import Console

from chaos.bench import ours
from chaos.bench.workload import catalogue, orders
from chaos.console.options import Json, Name
from chaos.console.provenance import provenance
from chaos.console.stage import Stage
from chaos.judge.queues import count_queues
from chaos.load.shop import PLENTY, shop
from chaos.pages import compare_page
from chaos.runtime import STYLES, Plan, Style, choose
from chaos.runtime.stack import CHECKOUT
from chaos.stack.system import System
from chaos.waiting import until

RESULT = Path("build/compare.json")
PAGE = Path("docs/choreography.md")
IN_FLIGHT = (1, 100)
PIECES = 100_000
REFUSED = 40  # orders whose card is declined, one after another
FLOW = 400  # orders under way when a process is killed
PATIENCE_SECONDS = 120.0
# Nobody asks again by himself: what is dropped stays dropped, and nothing else needs it.
UNHURRIED = {"step_timeout_seconds": "600", "start_resend_seconds": "600"}


def compare(
    seconds: Annotated[
        float, typer.Option(min=1, help="How long each load of each style is measured.")
    ] = 10.0,
    seed: Annotated[int, typer.Option(help="Draws the orders.")] = 7,
    json_: Json = False,
    name: Name = "compare",
) -> None:
    """Measure the orchestrated and the choreographed style, and write the comparison.

    Envelopes and commits per order, throughput, latency, the time a compensation and a recovery
    take, and how often one must ask to find an order whose message was dropped. Writes
    build/compare.json and docs/choreography.md. Takes about four minutes, and wants the machine to
    itself.
    """
    stage = Stage(Console(stderr=json_, highlight=False))
    command = ["chaos", "compare", "--seconds", f"{seconds:g}", "--seed", str(seed)]
    result: dict[str, Any] = {**provenance(command), "cores": os.cpu_count(), "seed": seed}
    result["load_before"] = round(os.getloadavg()[1], 1)
    result["added_step"] = {style: _added_step(style) for style in STYLES}
    for style in STYLES:
        with _stack(stage, style, name) as system:
            result[style] = _measured(stage, system, seconds, seed)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    PAGE.write_text(compare_page.page(result))
    stage.console.print(compare_page.figures(result), highlight=False)
    if json_:
        print(json.dumps(result, indent=1))


@contextmanager
def _stack(stage: Stage, style: Style, name: str) -> Iterator[System]:
    stage.say(f"{style}: bringing a stack up")
    plan = Plan(settings=UNHURRIED, style=style)
    runtime = choose("native", name)
    system = System(plan, runtime, runtime.up(plan, tethered=True))
    try:
        yield system
    finally:
        system.close()
        runtime.down()


def _measured(stage: Stage, system: System, seconds: float, seed: int) -> dict[str, Any]:
    pids = {s.name: s.pid for s in system.runtime.status() if s.pid is not None}
    system.load(catalogue())
    loads = {}
    for load in IN_FLIGHT:
        stage.say(f"{system.style}: {load} in flight")
        asked = orders(seed, str(load))  # the same ones on both stacks
        loads[str(load)] = ours.measure(
            system.endpoints, pids, asked, load, seconds, system.style
        ).figures()
    stage.say(f"{system.style}: refusals, a kill, a dropped message")
    return {
        "loads": loads,
        "compensation_ms": _compensation(system),
        "recovery_seconds": _recovery(system),
        "search": _search(system),
    }


def _compensation(system: System) -> float:
    """From the order's row to its rejection, by the database's clock: the median, alone."""
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
    """From SIGKILL to payment, with orders under way, until every one of them has ended."""
    here = system.stock_up(shop("killed", stock={"tea": PIECES}, accounts={"ann": PLENTY}))
    with system.door.placing([here.order("ann", tea=1) for _ in range(FLOW)]) as placing:
        until(
            lambda: len(system.db.alive()) >= FLOW // 20,
            "orders are under way",
            PATIENCE_SECONDS,
        )
        system.processes.kill("payment")
        killed = time.monotonic()
        system.runtime.start("payment")
        placed = placing.result()
    system.db.ends(placed, PATIENCE_SECONDS)
    return round(time.monotonic() - killed, 2)


def _added_step(style: Style) -> dict[str, int]:
    """Files and lines that adding one touches, by the patch that does it; tests/large plays it."""
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
    """Questions asked, each with what was said."""

    system: System
    order: UUID
    asked: list[tuple[str, str]] = field(default_factory=list)

    def ask(self, what: str, answer: Callable[[], object]) -> str:
        said = str(answer())
        self.asked.append((what, said))
        return said

    def customer_view(self) -> str:
        def awaited() -> str:
            view = self.system.door.get(f"/orders/{self.order}/saga")
            sent = [step["step"] for step in view["steps"] if step["status"] == "sent"]
            return f"{view['state']}, awaits {' and '.join(sent)}"

        return self.ask(f"GET /orders/{self.order}/saga", awaited)

    def saga_log(self) -> str:
        return self.ask(
            "saga show: its last entry",
            lambda: self._one(
                "select concat_ws(' ', entry, step, direction) from orchestrator.saga_log"
                " where saga_id = %s order by id desc limit 1"
            ),
        )

    def handled(self, schema: str, step: str) -> str:
        """Whether that service has done it, by its inbox."""
        return self.ask(
            f"inbox of {schema}: {step}",
            lambda: self._one(
                f"select outcome from {schema}.inbox where saga_id = %s"  # noqa: S608 - ours
                f" and step = '{step}' and direction = 'forward'"
            ),
        )

    def unsent(self, schema: str) -> str:
        return self.ask(
            f"outbox of {schema}: what is not published yet",
            lambda: self._one(
                f"select count(*) from {schema}.outbox"  # noqa: S608 - one of ours
                " where envelope::jsonb->>'saga_id' = %s::text"
            ),
        )

    def queued(self, queue: str) -> str:
        return self.ask(
            f"queue {queue}: ready and unacked",
            lambda: sum(count_queues(self.system.runtime.rabbitmqctl)[queue]),
        )

    def _one(self, query: Any) -> object:
        rows = self.system.db.rows(query, self.order)
        return rows[0][0] if rows else "nothing"


def _search(system: System) -> dict[str, Any]:
    """The message that asks for the dispatch is taken from its queue. Asked until it is known where
    the order stands and that the message is neither handled, nor on its way, nor still to come."""
    here = system.stock_up(shop("lost", stock={"tea": PIECES}, accounts={"ann": PLENTY}))
    (queue,) = system.broker.inputs("inventory")
    system.runtime.pause("payment")
    try:
        (order,) = system.door.place([here.order("ann", tea=1)])
        until(lambda: "charge_payment" in system.db.steps([order])[0], "the charge is asked for")
        system.runtime.stop("inventory")
    finally:
        system.runtime.resume("payment")
    until(
        lambda: system.db.steps([order])[0].get("dispatch_stock") == "sent",
        "dispatch is next",
    )
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
        search.handled("payment_svc", "charge_payment")  # who had to tell the inventory
        search.unsent("payment_svc")
        search.unsent("order_svc")  # and who tells it again
    search.queued(queue)
    search.queued(f"{queue}.dead")
    first = 2 if system.style == "orchestrated" else 3
    return {"asked": search.asked, "until_known_who_is_next": first, "queries": len(search.asked)}
