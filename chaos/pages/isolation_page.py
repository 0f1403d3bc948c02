"""docs/isolation.md: the anomalies, what stands against each, and what was measured. Pure.

Owns: the table ANOMALIES, and the page made of build/isolation.json. Must not know: how anything
was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from chaos.pages.evidence_pages import guard_table
from chaos.pages.page import page as exhibit
from chaos.pages.page import table

Result = Mapping[str, Any]


class Anomaly(NamedTuple):
    """One, and what stands against it. `guards`: the rows of `chaos.guards.table` that show it."""

    name: str
    countermeasure: str
    guards: tuple[str, ...]


ANOMALIES = (
    Anomaly(
        "Lost update: many buyers of the last unit each find it there",
        "*Commutative update, judged under the row's lock*: what is on hand is read and taken in"
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
        " *reread value* with the account held (`payment_svc/store.py`, `_REFUNDED`), and in DDL"
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


def page(result: Result) -> str:
    found = {row["guard"]: row for row in result["guards"]}
    shown = [
        f"## {anomaly.name}\n\n{anomaly.countermeasure}\n\n"
        + guard_table([found[name] for name in anomaly.guards])
        for anomaly in ANOMALIES
    ]
    passed = sum(row["verdict"] == "pass" for row in found.values())
    told = f"**{passed} of {len(found)} were missed when out, and sufficed when in.**"
    return exhibit("Isolation", result, [WORDS, told, *shown, OTHERS, _hot(result), LEFT])


def contention(measured: Result) -> str:
    """As a Markdown table: a column for each demand."""
    loads = measured["loads"]
    rows = [
        (what, *(form.format(*(_shown(load[key]) for key in keys)) for load in loads.values()))
        for what, form, *keys in _LINES
    ]
    return table(("demand", *loads), rows)


_LINES: tuple[tuple[str, ...], ...] = (
    ("share of the hottest SKU", "{}%", "hottest_percent"),
    ("orders measured", "{}", "orders"),
    ("orders a second", "{}", "orders_per_second"),
    ("p50 ms", "{}", "p50_ms"),
    ("p99 ms", "{}", "p99_ms"),
    ("p99 ms, round by round", "{}", "p99_ms_of_rounds"),
    ("batches of the inventories that locked stock", "{}", "batches"),
    ("**of these met a locked row: the conflict rate**", "{} ({}%)", "waited", "conflict_percent"),
    ("ms waited for a row: median, longest", "{}, {}", "wait_ms_median", "wait_ms_longest"),
    ("lock timeouts", "{}", "lock_timeouts"),
    ("deadlocks", "{}", "deadlocks"),
    ("serialization failures", "{}", "serialization_failures"),
)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return "–" if value is None else f"{value:,}"


def _hot(result: Result) -> str:
    measured = result["contention"]
    loads = list(measured["loads"].values())
    even = loads[0]
    scatter = max(even["p99_ms_of_rounds"]) / min(even["p99_ms_of_rounds"])
    ratios = ", ".join(
        f"{name}: {load['p99_ms'] / even['p99_ms']:.2f} times"
        for name, load in list(measured["loads"].items())[1:]
    )
    return f"""## Hot SKUs

The same flow of orders, one line each, and every one can be served: nobody is out of stock.
{measured["in_flight"]} in flight, {measured["skus"]:,} SKUs, {measured["inventories"]} inventories;
{measured["rounds"]} rounds of {measured["seconds"]:g} s for each demand, in turn;
{result["cores"]} cores for everything, load average before
{result["load_before"]} (above 1, others worked here too).

A conflict is a batch of an inventory that had to wait, for longer than {measured["logged_ms"]} ms,
for a row of the stock that another batch had locked: Postgres logs each wait (`log_lock_waits`) and
counts the batches (`pg_stat_statements`). Nothing is tried again for it: the batch waits, then
judges what the other one left. Warm-up counts in batches and conflicts, not in latency.

{contention(measured)}

**p99 against the even demand: {ratios}.** The even demand's own p99 differs {scatter:.2f} times
from round to round; what is less than that may be the machine's doing."""


WORDS = """A saga is not isolated: what its steps did is seen by others before it ends, and may be
taken back. For each anomaly that follows from it there is a load under which the system runs with
the countermeasure and without it, and the judge tells the difference. `make isolation` plays all of
it; `chaos guards NAME` one."""

OTHERS = """## Shown elsewhere

| anomaly | countermeasure | where | shown by |
|---|---|---|---|
| *fuzzy read*: the price changes between asking and charging | **by value**: the price is\
 kept with the order when it is placed, and is what is charged | `order_svc/domain.py` (`place`) |\
 `tests/unit/services/test_order_domain.py` |
| *the most dangerous step too early*: goods leave for an order that is undone afterwards |\
 **pessimistic view**: dispatch is the last step that can fail, and the pivot |\
 `orchestrator/sagas/order.py` | `make model` |"""

LEFT = """## What is still not prevented

- **A buyer is refused for goods that come free a moment later.** A hold counts as taken; when its
  saga is compensated the pieces are on hand again, and whoever was refused meanwhile is not called
  back.
- **Money is seen to leave and come back.** A charge that is refunded is two entries; the customer
  sees both, and a card that is nearly empty may refuse something else in between.
- **A price list may change between two orders of one customer.** Each is right by itself.
- **Reading over several services is not a snapshot.** `GET /orders/{id}` and `saga stock` may be
  some milliseconds apart; only what stands at rest is compared (`saga audit`)."""
