"""Invariants of orders. Pure."""

from __future__ import annotations

from collections import Counter

from chaos.judge.case import Accepted, Case, Order, Transfer
from chaos.judge.invariants.checked import REVENUE, Checked, pieces


def confirmed_is_charged_once(case: Case) -> Checked:
    """Order confirmed: one charge, of its total, to its customer, and not refunded."""
    confirmed = case.with_status("CONFIRMED", "RETURN_PENDING")
    bad = []
    for order in confirmed:
        charges = case.charges.get(order.order_id, [])
        if len(charges) != 1:
            bad.append(f"{order}: {len(charges)} charges")
        elif not _is_charge_of(charges[0], order):
            bad.append(f"{order}: total {order.total} but {charges[0]}")
        if order.status == "CONFIRMED" and case.refunds.get(order.order_id):
            bad.append(f"{order}: refunded")
    return Checked(len(confirmed), bad)


def confirmed_is_dispatched_once(case: Case) -> Checked:
    """Order confirmed: its stock dispatched once, exactly its lines."""
    confirmed = case.with_status("CONFIRMED")
    bad = []
    for order in confirmed:
        found = case.reservations.get(order.order_id, [])
        if [r.status for r in found] != ["DISPATCHED"]:
            bad.append(f"{order}: reservations {[r.status for r in found]}")
        elif pieces(found[0].lines) != pieces(order.lines):
            bad.append(f"{order}: dispatched {found[0].lines}, ordered {order.lines}")
    return Checked(len(confirmed), bad)


def returned_is_refunded_and_restocked_once(case: Case) -> Checked:
    """Order given back: one charge, refunded once by its one return, its stock back."""
    returned = case.with_status("RETURNED")
    bad = []
    for order in returned:
        charges = case.charges.get(order.order_id, [])
        refunds = case.refunds.get(order.order_id, [])
        finished = [r.return_id for r in case.returns_of(order.order_id) if r.status == "FINISHED"]
        if [_is_charge_of(c, order) for c in charges] != [True]:
            bad.append(f"{order}: charges {[str(c) for c in charges]}")
        if len(finished) != 1 or [r.saga_id for r in refunds] != finished:
            said = [str(r) for r in refunds]
            bad.append(f"{order}: finished returns {finished}, refunds {said}")
        found = [(r.status, pieces(r.lines)) for r in case.reservations.get(order.order_id, [])]
        if found != [("RETURNED", pieces(order.lines))]:
            bad.append(f"{order}: reservations {found}")
    return Checked(len(returned), bad)


def rejected_costs_nothing(case: Case) -> Checked:
    """Order rejected: net charge zero."""
    rejected = case.with_status("REJECTED")
    bad = []
    for order in rejected:
        charged = sum(t.amount for t in case.charges.get(order.order_id, []))
        refunded = sum(t.amount for t in case.refunds.get(order.order_id, []))
        if charged != refunded:
            bad.append(f"{order}: charged {charged}, refunded {refunded}")
    return Checked(len(rejected), bad)


def rejected_keeps_no_stock(case: Case) -> Checked:
    """Order rejected: nothing held, nothing dispatched."""
    rejected = case.with_status("REJECTED")
    bad = [
        f"{order}: reservation {reservation.status}"
        for order in rejected
        for reservation in case.reservations.get(order.order_id, [])
        if reservation.status != "RELEASED"
    ]
    return Checked(len(rejected), bad)


def rejected_says_why(case: Case) -> Checked:
    """Order rejected: it has a reason; no other order has one."""
    bad = [
        f"{order}: {order.status}, reason {order.reason!r}"
        for order in case.snapshot.orders
        if bool(order.reason) != (order.status == "REJECTED")
    ]
    return Checked(len(case.snapshot.orders), bad)


def totals_are_exact(case: Case) -> Checked:
    """Prices are the price list's, and an order's total is the sum of price x quantity."""
    bad = []
    for order in case.snapshot.orders:
        listed = tuple(case.facts.prices.get(line.sku) for line in order.lines)
        sold = sum(p * line.quantity for p, line in zip(order.prices, order.lines, strict=True))
        if order.prices != listed or order.total != sold:
            bad.append(
                f"{order}: total {order.total}, lines {sold}, sold at {order.prices}, "
                f"price list {listed}"
            )
    return Checked(len(case.snapshot.orders), bad)


def accepted_stands_as_asked(case: Case) -> Checked:
    """Every order the door accepted is there, with the customer, lines and total of the answer."""
    bad = []
    for order_id, asked in case.facts.accepted.items():
        found = case.orders.get(order_id, [])
        if len(found) != 1:
            bad.append(f"order {order_id}: {len(found)} rows")
        elif _content(found[0]) != _content(asked):
            bad.append(f"{found[0]}: stands as {found[0].lines}, asked {asked.lines}")
    return Checked(len(case.facts.accepted), bad)


def _is_charge_of(charge: Transfer, order: Order) -> bool:
    return (charge.amount, charge.currency, charge.debit, charge.credit) == (
        order.total,
        order.currency,
        order.customer,
        REVENUE,
    )


def _content(order: Order | Accepted) -> tuple[str, str, str, Counter[str], int]:
    return order.customer, order.idempotency_key, order.currency, pieces(order.lines), order.total
