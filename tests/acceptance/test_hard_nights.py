"""What stands still, on a whole stack: `saga stuck` names the cause, what it says to type helps."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import psycopg

from chaos.shop import PLENTY, shop
from chaos.system import System, rejected, until
from tests.acceptance.profiles import on
from tests.acceptance.test_saga_cli import saga

pytestmark = on("elders")

FEW = 4


def an_hour_passes(system: System, orders: Sequence[UUID]) -> None:
    """For these sagas: all they wait for was due, and began, an hour earlier."""
    with psycopg.connect(system.endpoints.superuser_dsn, autocommit=True) as server:
        server.execute(
            "update orchestrator.saga_instance set next_deadline = next_deadline - interval '1 h',"
            " started_at = started_at - interval '1 h', stuck_since = stuck_since - interval '1 h'"
            " where saga_id = any(%s)",
            (list(orders),),
        )


def stands_still(system: System, why: str, *orders: UUID) -> str:
    """Once `saga stuck` has each of them, with the reason."""

    def said() -> str | None:
        listed = saga(system, "stuck")
        heads = [line for line in listed.splitlines() if why in line]
        shown = all(any(line.startswith(str(o)[:8]) for line in heads) for o in orders)
        return listed if shown else None

    return until(said, f"saga stuck says of each: {why}")


def test_a_service_that_was_down_for_an_hour(system: System) -> None:
    here = system.stock_up(shop("hour", stock={"tea": 50}, accounts={"ann": PLENTY}))
    system.stop("payment")
    orders = system.place([here.order("ann", tea=1) for _ in range(FEW)])
    until(
        lambda: all(s.get("charge_payment") == "undoing" for s in system.steps(orders)),
        "every charge is given up",
    )
    stands_still(system, "no answer from payment", *orders)
    an_hour_passes(system, orders)
    listed = saga(system, "stuck", "--step", "charge_payment", "--older-than", "50m")
    assert all(str(order)[:8] in listed for order in orders), listed
    assert "saga retry" in listed
    system.start("payment")
    saga(system, "reconcile", "--step", "charge_payment", "--reason", "payment is back")
    given_up = rejected("charge_payment_timed_out")
    assert system.ends(orders) == dict.fromkeys(orders, given_up)
    assert "nothing stands still" in saga(system, "stuck")
    system.verdict()
