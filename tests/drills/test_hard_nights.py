"""Stuck sagas on a whole stack: `saga stuck` names the cause, and the remedy it prints helps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from uuid import UUID

import psycopg

from chaos.load.shop import PLENTY, shop
from chaos.scenarios.rolling import Replace, release
from chaos.stack.database import CONFIRMED, rejected
from chaos.stack.system import System
from chaos.waiting import until
from tests.support.saga import saga
from tests.support.stages import on
from tests.support.stuck import is_stuck

pytestmark = on("previous-release")

FEW = 4


def an_hour_passes(system: System, orders: Sequence[UUID]) -> None:
    """Move these sagas' start and stuck time back an hour, but not their next deadline."""
    with psycopg.connect(system.endpoints.superuser_dsn, autocommit=True) as server:
        server.execute(
            "update orchestrator.saga_instance set started_at = started_at - interval '1 h',"
            " stuck_since = stuck_since - interval '1 h' where saga_id = any(%s)",
            (list(orders),),
        )


def test_a_service_that_was_down_for_an_hour(system: System) -> None:
    here = system.stock_up(shop("hour", stock={"tea": 50}, accounts={"ann": PLENTY}))
    system.processes.stop("payment")
    orders = system.door.place([here.order("ann", tea=1) for _ in range(FEW)])
    until(
        lambda: all(s.get("charge_payment") == "undoing" for s in system.db.steps(orders)),
        "every charge is given up",
    )
    is_stuck(system, "no answer from payment", *orders)
    an_hour_passes(system, orders)
    listed = saga(system, "stuck", "--step", "charge_payment", "--older-than", "50m")
    assert all(str(order)[:8] in listed for order in orders), listed
    assert listed.count("saga retry") == FEW, listed
    system.processes.start("payment")
    saga(system, "reconcile", "--step", "charge_payment", "--reason", "payment is back")
    given_up = rejected("charge_payment_timed_out")
    assert system.db.ends(orders) == dict.fromkeys(orders, given_up)
    assert "nothing is stuck" in saga(system, "stuck")
    system.verdict()


@contextmanager
def rolled_back(system: System) -> Iterator[None]:
    """Run the previous release of the orchestrator, which lacks the newest definition."""
    system.processes.stop("orchestrator")
    release(system)
    system.processes.start("orchestrator")
    yield
    new = Replace("orchestrator")
    new.inject(system)
    new.heal(system)


def test_a_saga_whose_version_is_no_longer_deployed(system: System) -> None:
    new = Replace("orchestrator")
    new.inject(system)
    new.heal(system)
    here = system.stock_up(shop("rolled-back", stock={"tea": 50}, accounts={"ann": PLENTY}))
    system.runtime.pause("payment")
    orders = system.door.place([here.order("ann", tea=1) for _ in range(FEW)])
    until(
        lambda: all("charge_payment" in steps for steps in system.db.steps(orders)),
        "every charge is asked for",
    )
    with rolled_back(system):
        system.runtime.resume("payment")
        listed = is_stuck(system, "its definition version is not deployed: order v2", *orders)
        assert "deploy a release" in listed, listed
        saga(system, "doctor", code=1)
    ends = system.db.ends(orders)
    assert set(ends.values()) <= {CONFIRMED, rejected("charge_payment_timed_out")}
    assert "nothing is stuck" in saga(system, "stuck")
    system.verdict()
