"""The invariants of the tally: lost, duplicated, unexpected. Pure."""

from __future__ import annotations

from collections import Counter

from chaos.judge.case import Case
from chaos.judge.invariants.checked import END_OF, PARKED, RETURN_END_OF, Checked


def nothing_is_lost(case: Case) -> Checked:
    """Every accepted order has exactly one outcome, or is parked at a gate."""
    bad = []
    for order_id in case.facts.accepted:
        outcomes = [o.status for o in case.orders.get(order_id, []) if o.status in END_OF]
        parked = [i for i in case.instances.get(order_id, []) if i.state == PARKED]
        if len(outcomes) + len(parked) != 1:
            bad.append(f"order {order_id}: outcomes {outcomes}")
    for return_id in case.facts.returns:
        found = case.returns.get(return_id)
        if found is None or found.status not in RETURN_END_OF:
            bad.append(f"return {return_id}: {found.status if found else 'not there'}")
    return Checked(len(case.facts.accepted) + len(case.facts.returns), bad)


def nothing_is_duplicated(case: Case) -> Checked:
    """Not more than one effect for one (saga, step), nor two orders for one key."""
    snapshot = case.snapshot
    effects: Counter[str] = Counter()
    effects.update(f"{t.kind} {t.step} of saga {t.saga_id}" for t in snapshot.transfers)
    effects.update(f"reservation {r.step} of saga {r.saga_id}" for r in snapshot.reservations)
    effects.update(f"delivery {d.step} of saga {d.saga_id}" for d in snapshot.deliveries)
    effects.update(f"order {o.order_id}" for o in snapshot.orders)
    effects.update(f"order of {o.customer} with {o.idempotency_key}" for o in snapshot.orders)
    effects.update(f"instance {i.saga_id}" for i in snapshot.instances)
    effects.update(f"return of {r.order_id} with {r.idempotency_key}" for r in snapshot.returns)
    bad = [f"{what}: {times} times" for what, times in effects.items() if times > 1]
    return Checked(len(effects), bad)


def nothing_is_unexpected(case: Case) -> Checked:
    """No effect without a request: each has its order, each order was asked for, not refused."""
    bad = []
    charges = [t for t in case.snapshot.transfers if t.kind in ("CHARGE", "REFUND")]
    known = case.orders.keys() | case.returns.keys()
    bad += [f"{t}: no such order" for t in charges if t.saga_id not in known]
    bad += [
        f"return {r.return_id} of order {r.order_id}: it was not asked for"
        for r in case.snapshot.returns
        if (r.order_id, r.idempotency_key) not in case.facts.returns_asked
    ]
    bad += [
        f"reservation of saga {r.saga_id}: no such order"
        for r in case.snapshot.reservations
        if r.saga_id not in case.orders
    ]
    asked = {(a.customer, a.idempotency_key) for a in case.facts.accepted.values()}
    asked |= case.facts.unknown
    for order in case.snapshot.orders:
        key = (order.customer, order.idempotency_key)
        if key in case.facts.refused:
            bad.append(f"{order}: the door refused it, yet it is written")
        elif key not in asked:
            bad.append(f"{order}: it was not asked for")
    return Checked(len(charges) + len(case.snapshot.reservations) + len(case.orders), bad)
