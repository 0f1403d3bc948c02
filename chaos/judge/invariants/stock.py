"""Invariants of stock. Pure."""

from __future__ import annotations

from collections import Counter

from chaos.judge.case import Case
from chaos.judge.invariants.checked import Checked


def stock_is_conserved(case: Case) -> Checked:
    """Per SKU: on hand + held + dispatched is what was received, by books and catalogue."""
    delivered: Counter[str] = Counter()
    for delivery in case.snapshot.deliveries:
        delivered[delivery.sku] += delivery.quantity
    stock = {s.sku: s for s in case.snapshot.stock}
    bad = []
    skus = sorted(set(stock) | set(delivered) | set(case.facts.received))
    for sku in skus:
        row = stock.get(sku)
        there = row.on_hand + row.held + row.dispatched if row else 0
        booked = row.received if row else 0
        received = case.facts.received.get(sku, 0)
        if not there == booked == delivered[sku] == received:
            bad.append(
                f"{sku}: {there} pieces, {booked} booked, {delivered[sku]} delivered, "
                f"{received} received"
            )
        if row and min(row.on_hand, row.held, row.dispatched) < 0:
            bad.append(f"{sku}: negative: {row}")
    return Checked(len(skus), bad)


def stock_matches_reservations(case: Case) -> Checked:
    """Per SKU: held is the sum of the HELD lines, dispatched the sum of the DISPATCHED lines."""
    sums: dict[str, Counter[str]] = {"HELD": Counter(), "DISPATCHED": Counter()}
    for reservation in case.snapshot.reservations:
        for line in reservation.lines:
            sums.setdefault(reservation.status, Counter())[line.sku] += line.quantity
    stock = {s.sku: (s.held, s.dispatched) for s in case.snapshot.stock}
    bad = []
    skus = sorted(set(stock) | set(sums["HELD"]) | set(sums["DISPATCHED"]))
    for sku in skus:
        books = stock.get(sku, (0, 0))
        lines = (sums["HELD"][sku], sums["DISPATCHED"][sku])
        if books != lines:
            bad.append(f"{sku}: (held, dispatched) is {books}, reservations say {lines}")
    return Checked(len(skus), bad)
