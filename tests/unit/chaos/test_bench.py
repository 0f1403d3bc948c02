"""The bench's pure parts: percentiles, ratios, and the page that follows from the figures."""

from __future__ import annotations

from typing import Any

import pytest

from chaos.bench.figures import Measured, Pair, document, percentile, ratios
from chaos.bench.profile import by_package
from chaos.bench.workload import PRICE, catalogue, orders
from chaos.pages.measurement_pages import figures, performance

COST = {"cpu_ms": {"postgres": 1.0, "python": 2.0}, "commits": 0.2, "envelopes": 9.0}


def measured(per_second: float, latency: float = 0.01) -> Measured:
    spent = {**COST, "deliveries": 0.1}
    return Measured(int(per_second * 10), 10.0, [latency] * 100, spent)


OURS = [
    {1: measured(40, 0.024), 1000: measured(1100, 0.9)},
    {1: measured(38, 0.026), 1000: measured(900, 1.1)},
]
ALONE = [
    Pair(measured(40, ours), measured(40, 0.020)) for ours in (0.025, 0.024, 0.026, 0.090, 0.021)
]
THEIRS = {(1, 1): measured(45, 0.020), (1, 8): measured(80, 0.1), (4, 32): measured(60, 2.0)}


@pytest.mark.parametrize(
    ("percent", "value"), [(50, 50), (99, 99), (100, 100), (1, 1), (0.5, 1), (0, 1)]
)
def test_a_percentile_is_the_smallest_value_not_exceeded(percent: float, value: float) -> None:
    assert percentile(list(range(100, 0, -1)), percent) == value
    assert percentile([7.0], percent) == 7.0


def test_nothing_measured_has_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_our_mean_is_compared_with_their_best() -> None:
    found = ratios(OURS, THEIRS, ALONE)
    assert found.throughput_vs_dbos == 12.5  # 1000 / 80
    assert found.p50_vs_dbos == 1.25  # the median: one round of bad weather counts once
    assert found.missed == []


def test_a_missed_target_is_said() -> None:
    slow = [{1: measured(20, 0.05), 1000: measured(500)}]
    missed = ratios(slow, THEIRS, [Pair(slow[0][1], THEIRS[1, 1])]).missed
    assert len(missed) == 2
    assert "throughput is 6.25 times DBOS's, not 12" in missed
    assert "p50 is 2.5 times DBOS's, more than 1.3" in missed


def a_result() -> dict[str, Any]:
    about = {
        "commit": "abc", "uncommitted_changes": True, "at": "today", "command": "chaos bench",
        "python": "3.11", "seconds": 10, "seed": 7,
        "configuration": {
            "postgres": "15.1", "rabbitmq": "3.10", "dbos": "3", "cores": 2, "orders": "small",
        },
        "profiles": [{
            "in_flight": 1000,
            "python": {"order": {"json": 0.25}, "payment": {"json": 0.5, "uuid.py": 0.1}},
            "statements": [{"ms_per_saga": 0.5, "calls_per_saga": 0.2, "statement": "select 1"}],
        }],
    }  # fmt: skip
    return document(OURS, THEIRS, ALONE, about)


def test_the_page_shows_provenance_and_every_figure() -> None:
    page = performance(a_result())
    assert "Commit `abc`, with uncommitted changes" in page
    assert "throughput: 12.5 times DBOS's" in page
    assert "| 4 | 32 | 60 | 2,000.0 |" in page
    assert "| 2 | 1,000 | 900 | 1,100.0 |" in page
    assert "| `json` | 25% | 50% |" in page
    assert "MISSED" not in page


def test_without_dbos_there_are_figures_and_no_ratios() -> None:
    alone = document(OURS, {}, [], {})
    assert (alone["ratios"], alone["missed"]) == (None, [])
    assert "DBOS" not in figures(alone)


def test_a_profile_counts_innermost_frames_and_skips_waiting() -> None:
    raw = [
        "run (asyncio/runners.py:1);handle (common/relay.py:9);dumps (json/__init__.py:2) 3",
        "run (asyncio/runners.py:1);loads (json/decoder.py:2) 4",
        "run (asyncio/runners.py:1);select (selectors.py:468) 100",
        "_bootstrap (threading.py:1);_worker (concurrent/futures/thread.py:81) 100",
    ]
    assert by_package(raw) == {"json/__init__.py": 3, "json/decoder.py": 4}


def test_orders_are_drawn_alike_and_can_all_be_carried() -> None:
    one, again, other = orders(7, "a"), orders(7, "a"), orders(8, "a")
    drawn = [next(one) for _ in range(200)]
    assert drawn == [next(again) for _ in range(200)]
    assert drawn != [next(other) for _ in range(200)]
    skus = {product.sku for product in catalogue().products}
    for order in drawn:
        assert {sku for sku, _ in order.lines} <= skus
        assert order.total == PRICE * sum(quantity for _, quantity in order.lines)
    assert len({order.key for order in drawn}) == len(drawn)
