"""The pages in docs that are made of measurements: performance, choreography, isolation. Pure.

Owns: which anomalies there are, and what a template cannot add up. Must not know: how anything was
measured.
"""

from __future__ import annotations

from typing import NamedTuple

from chaos.bench.figures import P50_TARGET, THROUGHPUT_TARGET
from chaos.pages.render import Row, render
from chaos.runtime import STYLES

SERVERS = {"postgres", "rabbitmq", "epmd"}


class Anomaly(NamedTuple):
    """An anomaly of sagas that meet, what prevents it, and the guards that show that it does."""

    name: str
    countermeasure: str
    guards: tuple[str, ...]


ANOMALIES = (
    Anomaly(
        "Lost update: many buyers of the last unit each find it there",
        "*Commutative update, decided under the row's lock*: what is on hand is read and taken in"
        " one transaction (`inventory_svc/store.py`, `_STOCK`, `for update`; `domain.py`,"
        " `reserve`); in DDL it is never negative (`on_hand_not_negative`).",
        ("conditional-stock-update", "stock-constraint", "stock-lock"),
    ),
    Anomaly(
        "Dirty read: acting on a hold that was compensated meanwhile",
        "*Semantic lock* (`HELD`) and *reread value*: dispatch looks at the reservation again, not"
        " at what a message says of it (`inventory_svc/domain.py`, `dispatch`).",
        ("semantic-lock",),
    ),
    Anomaly(
        "Two sagas on one record: a return races another return of the same order",
        "*Semantic lock* (`RETURN_PENDING`, with whose it is; `order_svc/domain.py`,"
        " `open_return`), in DDL one return per order (`one_return_per_order`). Behind it,"
        " *reread value* under the account's lock (`payment_svc/store.py`, `_REFUNDED`), and in DDL"
        " one refund per charge, whichever saga asks (`one_refund_per_charge`).",
        ("return-lock", "refund-reread", "refund-constraint"),
    ),
    Anomaly(
        "Dirty read: a return races the order's own saga",
        "*Semantic lock* (`PENDING`): only a confirmed order is returnable (`order_svc/domain.py`,"
        " `open_return`).",
        ("return-waits",),
    ),
)


def isolation(result: Row) -> str:
    found = {row["guard"]: row for row in result["guards"]}
    return render(
        "isolation.md",
        result=result,
        measured=result["contention"],
        found=found,
        anomalies=ANOMALIES,
    )


def contention(measured: Row) -> str:
    return render("contention.md", measured=measured)


def choreography(result: Row) -> str:
    return render("choreography.md", result=result, styles=STYLES)


def styles(result: Row) -> str:
    return render("compare.md", result=result, styles=STYLES)


def performance(result: Row) -> str:
    last = [row for row in result["ours"] if row["round"] == result["ours"][-1]["round"]]
    return render(
        "performance.md",
        result=result,
        targets={"throughput": THROUGHPUT_TARGET, "p50": P50_TARGET},
        last=last,
        best=max(result["dbos"], key=lambda row: float(row["sagas_per_second"])),
        python=[name for name in last[0]["per_saga"]["cpu_ms"] if name not in SERVERS],
        packages=[_packages(profile["python"]) for profile in result["profiles"]],
    )


def figures(result: Row) -> str:
    """Tabulate sagas per second, latency and cost, for the terminal."""
    return render("figures.md", result=result)


def _packages(python: Row) -> list[str]:
    """Order what was at work by its share over all processes."""
    found = {package for shares in python.values() for package in shares}
    return sorted(found, key=lambda p: -sum(shares.get(p, 0) for shares in python.values()))
