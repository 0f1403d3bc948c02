"""Invariants of sagas, and between sagas and orders. Pure."""

from __future__ import annotations

from chaos.judge.case import Case
from chaos.judge.invariants.checked import END_OF, PARKED, RETURN_END_OF, Checked, pieces

SETTLED = frozenset({"refused", "undone", "fenced", "open", "resolved"})
DONE = frozenset({"done", "open", "resolved"})
OF_ORDERS = frozenset({"order", "return"})  # other definitions may run beside them
AT_REST_AS = {**END_OF, "PENDING": PARKED}


def compensated_is_settled(case: Case) -> Checked:
    """Nothing COMPENSATED with a step unsettled, nor with its pivot passed."""
    ended = [i for i in case.snapshot.instances if i.state == "COMPENSATED"]
    bad = []
    for instance in ended:
        open_steps = {s: v for s, v in instance.steps.items() if v not in SETTLED}
        if open_steps or instance.pivot_passed:
            bad.append(f"saga {instance.saga_id}: {open_steps}, pivot {instance.pivot_passed}")
    return Checked(len(ended), bad)


def completed_is_done(case: Case) -> Checked:
    """Nothing COMPLETED with a step that is not done, nor without its pivot passed."""
    ended = [i for i in case.snapshot.instances if i.state == "COMPLETED"]
    bad = []
    for instance in ended:
        open_steps = {s: v for s, v in instance.steps.items() if v not in DONE}
        if open_steps or not instance.pivot_passed:
            bad.append(f"saga {instance.saga_id}: {open_steps}, pivot {instance.pivot_passed}")
    return Checked(len(ended), bad)


def parked_holds_its_stock_and_no_money(case: Case) -> Checked:
    """Parked at a gate: the order is PENDING, its lines are held, and nothing is charged."""
    parked = [i.saga_id for i in case.snapshot.instances if i.state == PARKED]
    bad = []
    for saga_id in parked:
        held = case.reservations.get(saga_id, [])
        for order in case.orders.get(saga_id, []):
            if order.status != "PENDING":
                bad.append(f"{order}: {order.status}")
            if [(r.status, pieces(r.lines)) for r in held] != [("HELD", pieces(order.lines))]:
                bad.append(f"{order}: reservations {held}, ordered {order.lines}")
            if case.charges.get(saga_id):
                bad.append(f"{order}: charged without approval")
    return Checked(len(parked), bad)


def every_saga_has_its_order(case: Case) -> Checked:
    """No instance of an order's saga without an order or a return; no return without its order."""
    sagas = [i for i in case.snapshot.instances if i.definition in OF_ORDERS]
    known = case.orders.keys() | case.returns.keys()
    bad = [f"saga {i.saga_id}: no order" for i in sagas if i.saga_id not in known]
    lone = [r for r in case.snapshot.returns if r.order_id not in case.orders]
    bad += [f"return {r.return_id}: no order {r.order_id}" for r in lone]
    return Checked(len(sagas), bad)


def every_order_has_its_saga(case: Case) -> Checked:
    """Every order has exactly one instance, ended the way the order did, or parked."""
    bad = []
    for order in case.snapshot.orders:
        states = [i.state for i in case.instances.get(order.order_id, [])]
        if states != [AT_REST_AS.get(order.status)]:
            bad.append(f"{order}: {order.status}, instances {states}")
    return Checked(len(case.snapshot.orders), bad)


def every_return_has_its_saga(case: Case) -> Checked:
    """Every return has exactly one instance, ended the way the return did."""
    bad = []
    for found in case.snapshot.returns:
        states = [i.state for i in case.instances.get(found.return_id, [])]
        if states != [RETURN_END_OF.get(found.status)]:
            bad.append(f"return {found.return_id}: {found.status}, instances {states}")
    return Checked(len(case.snapshot.returns), bad)
