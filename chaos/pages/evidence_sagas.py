"""Single orders watched closely: a redelivered charge, and sagas whose orchestrator was killed.

Owns: playing each, and what is quoted of logs, `saga show` and tables. Must not know: how the page
looks.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, LiteralString
from uuid import UUID

from chaos.faults.nemesis import Freeze
from chaos.load.shop import PLENTY, shop
from chaos.runtime import Plan, choose
from chaos.scenarios.scene import Scene, system_up
from chaos.scenarios.situations import CHARGE_WAITS, reach
from chaos.stack.database import CONFIRMED, rejected
from chaos.stack.system import System
from chaos.waiting import ExperimentError, until

# What a user gets, and an operator.
PLAN = Plan(settings={"start_resend_seconds": "1"})
WIDTH = "110"  # of `saga show`


def redelivered_charge(name: str) -> dict[str, Any]:
    """Deliver a charge twice to payment, and a third time when the saga has ended."""
    with system_up(PLAN, choose("native", name)) as system:
        here = system.stock_up(shop("again", stock={"tea": 5}, accounts={"ann": PLENTY}))
        system.processes.stop("payment")
        (order,) = system.door.place([here.order("ann", tea=1)])
        (charge,) = until(lambda: system.broker.take("payment.commands"), "the charge is asked for")
        system.broker.send("payment.commands", [charge, charge])
        system.processes.start("payment")
        system.db.ends([order])
        system.broker.send("payment.commands", [charge])
        skips = until(lambda: _skips(system, order, at_least=2), "both repeats are skipped")
        until(lambda: _ignored(system, order) >= 2, "both replies are ignored")
        system.verdict()
        if system.db.ends([order]) != {order: CONFIRMED}:
            raise ExperimentError("the order is not confirmed")
        return {
            "saga_id": str(order),
            "message_id": str(charge.message_id),
            "delivered": 3,
            "skips": skips,
            "timeline": saga_show(system, order),
            "ledger": _records(
                system,
                "select kind, debit, credit, amount, currency, at from payment_svc.transfer"
                " where saga_id = %s order by at",
                order,
            ),
            "inbox": _records(
                system,
                "select step, direction, outcome, handled_at from payment_svc.inbox"
                " where saga_id = %s",
                order,
            ),
        }


def killed_orchestrator(name: str) -> dict[str, Any]:
    """Kill it while two sagas wait for a charge; one will be made, the other declined."""
    with system_up(PLAN, choose("native", name)) as system:
        scene = Scene(system, "resumed", seed=0, count=2)
        here = scene.mixed_shop({"tea": 5})
        asks = [here.order("ann", tea=1), here.order("eve", tea=1)]
        with reach(scene, CHARGE_WAITS, Freeze("payment"), asks=asks) as orders:
            before = system.db.steps(orders)
            killed = system.processes.record("SIGKILL", "orchestrator", healed=False)
            system.runtime.kill("orchestrator")
        until(lambda: system.processes.is_ready("orchestrator"), "the orchestrator is ready")
        ready = system.processes.record("SIGKILL", "orchestrator", healed=True)
        ends = system.db.ends(orders)
        system.verdict()
        if [ends[order] for order in orders] != [CONFIRMED, rejected("card_declined")]:
            raise ExperimentError(f"they ended as {ends}")
        return {
            "saga_ids": [str(order) for order in orders],
            "before": before,
            "killed_at": killed.at.isoformat(timespec="milliseconds"),
            "ready_at": ready.at.isoformat(timespec="milliseconds"),
            "starts": [
                line["timestamp"]
                for line in system.processes.logged("orchestrator", "process.started")
            ],
            "entries": _records(
                system,
                "select saga_id, at, extract(epoch from at - %s)::float8 as after_kill, entry,"
                " coalesce(step, '') as step, direction, coalesce(detail, '') as detail"
                " from orchestrator.saga_log where saga_id = any(%s) order by id",
                killed.at,
                list(orders),
            ),
            "timelines": [saga_show(system, order) for order in orders],
            "ends": {str(order): list(end) for order, end in ends.items()},
        }


def saga_show(system: System, saga_id: UUID) -> str:
    """Return what an operator sees of a saga."""
    environment = {
        **os.environ,
        **system.endpoints.environment,
        "NO_COLOR": "1",
        "COLUMNS": WIDTH,
    }
    saga = Path(sys.executable).with_name("saga")
    done = subprocess.run(
        [saga, "show", str(saga_id)], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ExperimentError(f"saga show: {done.stderr.strip()}")
    return "\n".join(line.rstrip() for line in done.stdout.splitlines())


def _skips(system: System, order: UUID, at_least: int) -> list[dict[str, Any]] | None:
    logged = system.processes.logged("payment", "command.duplicate")
    skips = [line for line in logged if line["saga_id"] == str(order)]
    return skips if len(skips) >= at_least else None


def _ignored(system: System, order: UUID) -> int:
    return len(
        system.db.rows(
            "select from orchestrator.saga_log where saga_id = %s and entry = 'ignored'", order
        )
    )


def _records(system: System, query: LiteralString, *parameters: object) -> list[dict[str, Any]]:
    """Return the rows of a query by the names of their columns."""
    rows = system.db.rows(f"select to_json(found) from ({query}) as found", *parameters)  # noqa: S608 - ours
    return [record for (record,) in rows]
