"""Isolation: conflicts in Postgres's log, demand by its skew, and the page."""

from __future__ import annotations

import math
from collections import Counter
from itertools import islice
from typing import Any

import pytest

from chaos.bench.contention import Conflicts, Round, conflicts, figures
from chaos.bench.figures import Measured
from chaos.bench.workload import catalogue, shares, skewed
from chaos.guards.table import GUARDS
from chaos.pages.measurement_pages import ANOMALIES
from chaos.pages.measurement_pages import isolation as page

AT = "2026-01-01 10:00:00 UTC"
LOG = f"""\
{AT} inventory_svc 0 LOG:  process 7 acquired ExclusiveLock on advisory lock [1,0] after 9.9 ms
{AT} inventory_svc 767 LOG:  process 8 still waiting for ShareLock on transaction 766 after 1.1 ms
{AT} inventory_svc 767 DETAIL:  Process holding the lock: 9. Wait queue: 8.
{AT} inventory_svc 767 CONTEXT:  while locking tuple (0,75) in relation "stock"
{AT} inventory_svc 767 LOG:  process 8 acquired ShareLock on transaction 766 after 21.4 ms
{AT} inventory_svc 767 CONTEXT:  while locking tuple (0,76) in relation "stock"
{AT} inventory_svc 767 LOG:  process 8 acquired ShareLock on transaction 768 after 2.0 ms
{AT} inventory_svc 770 LOG:  process 8 acquired ExclusiveLock on extension of relation 5 after 3 ms
{AT} payment_svc 771 CONTEXT:  while locking tuple (0,1) in relation "account"
{AT} payment_svc 771 LOG:  process 6 acquired ShareLock on transaction 770 after 9.0 ms
{AT} inventory_svc 772 ERROR:  canceling statement due to lock timeout
{AT} payment_svc 773 ERROR:  canceling statement due to lock timeout
""".splitlines()


def test_a_batch_that_waited_for_stock_rows_is_one_conflict() -> None:
    assert conflicts(LOG) == Conflicts(
        waited=1, waited_ms=(21.4, 2.0), lock_timeouts=1, serialization_failures=0
    )


@pytest.mark.parametrize(("skew", "hottest"), [(0.0, 1 / 10), (1.1, 0.373), (math.inf, 1.0)])
def test_demand_is_drawn_by_its_skew(skew: float, hottest: float) -> None:
    assert shares(skew, 10)[0] == pytest.approx(hottest, abs=0.01)
    assert sum(shares(skew, 10)) == pytest.approx(1)
    drawn = Counter(o.lines[0][0] for o in islice(skewed(7, "a", skew, 10), 3000))
    assert drawn["sku-000"] / 3000 == pytest.approx(hottest, abs=0.05)
    assert set(drawn) <= {product.sku for product in catalogue(10).products}


def test_figures_are_of_all_rounds_together() -> None:
    met = Conflicts(waited=3, waited_ms=(2.0, 4.0, 9.0), lock_timeouts=1, serialization_failures=0)
    one = Round(Measured(100, 1.0, [0.010] * 100, {}), met, batches=10, deadlocks=0)
    none = Round(
        Measured(300, 1.0, [0.030] * 300, {}), Conflicts(0, (), 0, 0), batches=20, deadlocks=2
    )
    found = figures(0.0, [one, none])
    assert (found["orders_per_second"], found["conflict_percent"]) == (200.0, 10.0)
    assert (found["p99_ms"], found["p99_ms_of_rounds"]) == (30.0, [10, 30])
    assert (found["wait_ms_median"], found["wait_ms_longest"]) == (4.0, 9.0)
    assert (found["deadlocks"], found["lock_timeouts"]) == (2, 1)


def a_result() -> dict[str, Any]:
    played = Round(Measured(100, 1.0, [0.010] * 100, {}), conflicts(LOG), batches=4, deadlocks=0)
    slower = Round(Measured(100, 1.0, [0.015] * 100, {}), conflicts(LOG), batches=4, deadlocks=0)
    return {
        "verdict": "pass",
        "commit": "abc", "uncommitted_changes": False, "at": "today", "seed": 7, "seconds": 9.0,
        "command": "chaos isolation", "python": "3.11", "cores": 2, "load_before": 0.1,
        "contention": {
            "skus": 10_000, "in_flight": 300, "inventories": 2, "rounds": 1, "seconds": 8.0,
            "logged_ms": 1,
            "loads": {"even": figures(0.0, [played]), "one SKU": figures(math.inf, [slower])},
        },
        "guards": [
            {
                "guard": guard, "keeps": "", "of": ["inventory"], "taken_out_too": None,
                "load_says": "", "with_the_guard": [], "verdict": "pass",
                "noticed_by": [{"who": "the judge", "says": f"{guard} is missed"}],
            }
            for anomaly in ANOMALIES for guard in anomaly.guards
        ],
    }  # fmt: skip


def test_every_anomaly_is_shown_by_guards_that_there_are() -> None:
    assert {g for anomaly in ANOMALIES for g in anomaly.guards} <= {g.name for g in GUARDS}


def test_the_page_quotes_what_was_measured() -> None:
    text = page(a_result())
    assert "Written by `chaos isolation`; do not edit. Commit `abc`, seed 7" in text
    assert all(f"{guard} is missed" in text for a in ANOMALIES for guard in a.guards)
    assert "| **of these met a locked row: the conflict rate** | 1 (25.0%) | 1 (25.0%) |" in text
    assert "one SKU: 1.50 times" in text
    assert "own p99 differs 1.00 times" in text
