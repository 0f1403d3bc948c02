"""What must always hold, as pure functions over the evidence (design.md, section 7). Pure.

Owns: the named invariants. Must not know: how the evidence was gathered, nor any code
of the accused. An invariant is a function whose docstring says what holds; it returns
how many things it looked at and what offends. Those of ALWAYS hold at every moment, also
while sagas run; those of AT_REST only once the system is quiescent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from chaos.evidence import Accepted, Case, Line, Order, Transfer

# The ledger's two accounts that are no customer's; a customer's is called like the customer.
DEPOSITS = "world:deposits"
REVENUE = "shop:revenue"
SETTLED = frozenset({"refused", "undone", "fenced", "open", "resolved"})
DONE = frozenset({"done", "open", "resolved"})
PARKED = "WAITING"
END_OF = {"CONFIRMED": "COMPLETED", "REJECTED": "COMPENSATED", "RETURNED": "COMPLETED"}
RETURN_END_OF = {"FINISHED": "COMPLETED", "CLOSED": "COMPENSATED"}
OF_ORDERS = frozenset({"order", "return"})  # definitions of ours; others may run beside them
AT_REST_AS = {**END_OF, "PENDING": PARKED}


class Looked(NamedTuple):
    """A pass over nothing says nothing, so the number of things looked at is part of the result."""

    at: int
    offences: Sequence[str]


Check = Callable[[Case], Looked]


# --- orders and their effects --------------------------------------------------------------


def confirmed_is_charged_once(case: Case) -> Looked:
    """Order confirmed: one charge, of its total, to its customer, and not refunded."""
    confirmed = case.with_status("CONFIRMED", "RETURN_PENDING")
    bad = []
    for order in confirmed:
        charges = case.charges.get(order.order_id, [])
        if len(charges) != 1:
            bad.append(f"{_order(order)}: {len(charges)} charges")
        elif not _is_charge_of(charges[0], order):
            bad.append(f"{_order(order)}: total {order.total} but {_transfer(charges[0])}")
        if order.status == "CONFIRMED" and case.refunds.get(order.order_id):
            bad.append(f"{_order(order)}: refunded")
    return Looked(len(confirmed), bad)


def confirmed_is_dispatched_once(case: Case) -> Looked:
    """Order confirmed: its stock dispatched once, exactly its lines."""
    confirmed = case.with_status("CONFIRMED")
    bad = []
    for order in confirmed:
        found = case.reservations.get(order.order_id, [])
        if [r.status for r in found] != ["DISPATCHED"]:
            bad.append(f"{_order(order)}: reservations {[r.status for r in found]}")
        elif _pieces(found[0].lines) != _pieces(order.lines):
            bad.append(f"{_order(order)}: dispatched {found[0].lines}, ordered {order.lines}")
    return Looked(len(confirmed), bad)


def returned_is_refunded_and_restocked_once(case: Case) -> Looked:
    """Order given back: one charge, refunded once by its one return, its stock back."""
    returned = case.with_status("RETURNED")
    bad = []
    for order in returned:
        charges = case.charges.get(order.order_id, [])
        refunds = case.refunds.get(order.order_id, [])
        finished = [r.return_id for r in case.returns_of(order.order_id) if r.status == "FINISHED"]
        if [_is_charge_of(c, order) for c in charges] != [True]:
            bad.append(f"{_order(order)}: charges {[_transfer(c) for c in charges]}")
        if len(finished) != 1 or [r.saga_id for r in refunds] != finished:
            said = [_transfer(r) for r in refunds]
            bad.append(f"{_order(order)}: finished returns {finished}, refunds {said}")
        found = [(r.status, _pieces(r.lines)) for r in case.reservations.get(order.order_id, [])]
        if found != [("RETURNED", _pieces(order.lines))]:
            bad.append(f"{_order(order)}: reservations {found}")
    return Looked(len(returned), bad)


def rejected_costs_nothing(case: Case) -> Looked:
    """Order rejected: net charge zero."""
    rejected = case.with_status("REJECTED")
    bad = []
    for order in rejected:
        charged = sum(t.amount for t in case.charges.get(order.order_id, []))
        refunded = sum(t.amount for t in case.refunds.get(order.order_id, []))
        if charged != refunded:
            bad.append(f"{_order(order)}: charged {charged}, refunded {refunded}")
    return Looked(len(rejected), bad)


def rejected_keeps_no_stock(case: Case) -> Looked:
    """Order rejected: nothing held, nothing dispatched."""
    rejected = case.with_status("REJECTED")
    bad = [
        f"{_order(order)}: reservation {reservation.status}"
        for order in rejected
        for reservation in case.reservations.get(order.order_id, [])
        if reservation.status != "RELEASED"
    ]
    return Looked(len(rejected), bad)


def rejected_says_why(case: Case) -> Looked:
    """Order rejected: it has a reason; no other order has one."""
    bad = [
        f"{_order(order)}: {order.status}, reason {order.reason!r}"
        for order in case.snapshot.orders
        if bool(order.reason) != (order.status == "REJECTED")
    ]
    return Looked(len(case.snapshot.orders), bad)


def totals_are_exact(case: Case) -> Looked:
    """An order's prices are the price list's, and its total is the sum of price x quantity."""
    bad = []
    for order in case.snapshot.orders:
        listed = tuple(case.facts.prices.get(line.sku) for line in order.lines)
        sold = sum(p * line.quantity for p, line in zip(order.prices, order.lines, strict=True))
        if order.prices != listed or order.total != sold:
            bad.append(
                f"{_order(order)}: total {order.total}, lines {sold}, sold at {order.prices}, "
                f"price list {listed}"
            )
    return Looked(len(case.snapshot.orders), bad)


def accepted_stands_as_asked(case: Case) -> Looked:
    """Every order the door accepted is there, with the customer, lines and total it was told."""
    bad = []
    for order_id, asked in case.facts.accepted.items():
        found = case.orders.get(order_id, [])
        if len(found) != 1:
            bad.append(f"order {order_id}: {len(found)} rows")
        elif _content(found[0]) != _content(asked):
            bad.append(f"{_order(found[0])}: stands as {found[0].lines}, asked {asked.lines}")
    return Looked(len(case.facts.accepted), bad)


# --- money ---------------------------------------------------------------------------------


def one_charge_per_order(case: Case) -> Looked:
    """At most one charge per order, confirmed or not."""
    bad = [f"saga {s}: {len(c)} charges" for s, c in case.charges.items() if len(c) > 1]
    return Looked(len(case.charges), bad)


def refunds_match_their_charge(case: Case) -> Looked:
    """No refund without its charge, at most one per charge, the same amount the other way."""
    refunds = [t for group in case.refunds.values() for t in group]
    times = Counter(t.refund_of for t in refunds)
    bad = []
    for refund in refunds:
        charge = case.transfers.get(refund.refund_of) if refund.refund_of else None
        if charge is None or charge.kind != "CHARGE":
            bad.append(f"{_transfer(refund)}: there is no such charge")
        elif times[refund.refund_of] > 1:
            bad.append(f"{_transfer(refund)}: one of {times[refund.refund_of]} refunds")
        elif not _undoes(refund, charge, case):
            bad.append(f"{_transfer(refund)} does not undo {_transfer(charge)}")
    return Looked(len(refunds), bad)


def ledger_is_balanced(case: Case) -> Looked:
    """Per currency: entries sum to zero, and what customers and shop own is what was deposited."""
    snapshot = case.snapshot
    entries: Counter[str] = Counter()
    for (_, currency), amount in snapshot.ledger.items():
        entries[currency] += amount
    owned: Counter[str] = Counter()
    for account in snapshot.accounts:
        owned[account.currency] += account.balance
    paid_in: Counter[str] = Counter()
    for (_, currency), amount in case.facts.deposited.items():
        paid_in[currency] += amount
    currencies = sorted(set(entries) | set(owned) | set(paid_in))
    bad = []
    for currency in currencies:
        owned[currency] += snapshot.ledger.get((REVENUE, currency), 0)
        world = -snapshot.ledger.get((DEPOSITS, currency), 0)
        if entries[currency] != 0:
            bad.append(f"{currency}: entries sum to {entries[currency]}")
        if not owned[currency] == world == paid_in[currency]:
            bad.append(
                f"{currency}: deposited {paid_in[currency]}, ledger says {world}, "
                f"accounts and revenue hold {owned[currency]}"
            )
    return Looked(len(currencies), bad)


def accounts_match_the_ledger(case: Case) -> Looked:
    """An account's balance is the sum of its entries and not negative; deposits are as paid in."""
    paid_in: Counter[tuple[str, str]] = Counter()
    for group in case.deposits.values():
        for deposit in group:
            paid_in[(deposit.credit, deposit.currency)] += deposit.amount
    bad = []
    for account in case.snapshot.accounts:
        owner = (account.customer, account.currency)
        entries = case.snapshot.ledger.get(owner, 0)
        if account.balance != entries or account.balance < 0:
            bad.append(f"{owner}: balance {account.balance}, entries {entries}")
        asked = case.facts.deposited.get((account.customer, account.currency), 0)
        if paid_in[owner] != asked:
            bad.append(f"{owner}: {paid_in[owner]} paid in, asked {asked}")
    known = {(a.customer, a.currency) for a in case.snapshot.accounts}
    for (name, currency), amount in case.snapshot.ledger.items():
        if name not in (DEPOSITS, REVENUE) and (name, currency) not in known:
            bad.append(f"{name} {currency}: {amount} on an account that does not exist")
    return Looked(len(case.snapshot.accounts), bad)


# --- stock ---------------------------------------------------------------------------------


def stock_is_conserved(case: Case) -> Looked:
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
    return Looked(len(skus), bad)


def stock_matches_reservations(case: Case) -> Looked:
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
    return Looked(len(skus), bad)


# --- sagas ---------------------------------------------------------------------------------


def compensated_is_settled(case: Case) -> Looked:
    """Nothing COMPENSATED with a step unsettled, nor with its pivot passed."""
    ended = [i for i in case.snapshot.instances if i.state == "COMPENSATED"]
    bad = []
    for instance in ended:
        open_steps = {s: v for s, v in instance.steps.items() if v not in SETTLED}
        if open_steps or instance.pivot_passed:
            bad.append(f"saga {instance.saga_id}: {open_steps}, pivot {instance.pivot_passed}")
    return Looked(len(ended), bad)


def completed_is_done(case: Case) -> Looked:
    """Nothing COMPLETED with a step that is not done, nor without its pivot passed."""
    ended = [i for i in case.snapshot.instances if i.state == "COMPLETED"]
    bad = []
    for instance in ended:
        open_steps = {s: v for s, v in instance.steps.items() if v not in DONE}
        if open_steps or not instance.pivot_passed:
            bad.append(f"saga {instance.saga_id}: {open_steps}, pivot {instance.pivot_passed}")
    return Looked(len(ended), bad)


def parked_holds_its_stock_and_no_money(case: Case) -> Looked:
    """Parked at a gate: the order is PENDING, its lines are held, and nothing is charged."""
    parked = [i.saga_id for i in case.snapshot.instances if i.state == PARKED]
    bad = []
    for saga_id in parked:
        held = case.reservations.get(saga_id, [])
        for order in case.orders.get(saga_id, []):
            if order.status != "PENDING":
                bad.append(f"{_order(order)}: {order.status}")
            if [(r.status, _pieces(r.lines)) for r in held] != [("HELD", _pieces(order.lines))]:
                bad.append(f"{_order(order)}: reservations {held}, ordered {order.lines}")
            if case.charges.get(saga_id):
                bad.append(f"{_order(order)}: charged, and nobody has approved it")
    return Looked(len(parked), bad)


def every_saga_has_its_order(case: Case) -> Looked:
    """No instance of an order's saga without an order or a return, and no return without its order.
    Of sagas of somebody else's nothing is known here."""
    sagas = [i for i in case.snapshot.instances if i.definition in OF_ORDERS]
    known = case.orders.keys() | case.returns.keys()
    bad = [f"saga {i.saga_id}: no order" for i in sagas if i.saga_id not in known]
    lone = [r for r in case.snapshot.returns if r.order_id not in case.orders]
    bad += [f"return {r.return_id}: no order {r.order_id}" for r in lone]
    return Looked(len(sagas), bad)


def nothing_is_duplicated(case: Case) -> Looked:
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
    return Looked(len(effects), bad)


def nothing_is_unexpected(case: Case) -> Looked:
    """No effect nobody asked for: each has its order, each order was asked for and not refused."""
    bad = []
    charges = [t for t in case.snapshot.transfers if t.kind in ("CHARGE", "REFUND")]
    known = case.orders.keys() | case.returns.keys()
    bad += [f"{_transfer(t)}: no such order" for t in charges if t.saga_id not in known]
    bad += [
        f"return {r.return_id} of order {r.order_id}: nobody asked for it"
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
            bad.append(f"{_order(order)}: the door refused it, yet it is written")
        elif key not in asked:
            bad.append(f"{_order(order)}: nobody asked for it")
    return Looked(len(charges) + len(case.snapshot.reservations) + len(case.orders), bad)


def nothing_is_lost(case: Case) -> Looked:
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
    return Looked(len(case.facts.accepted) + len(case.facts.returns), bad)


def every_order_has_its_saga(case: Case) -> Looked:
    """Every order has exactly one instance, ended the way the order did, or parked."""
    bad = []
    for order in case.snapshot.orders:
        states = [i.state for i in case.instances.get(order.order_id, [])]
        if states != [AT_REST_AS.get(order.status)]:
            bad.append(f"{_order(order)}: {order.status}, instances {states}")
    return Looked(len(case.snapshot.orders), bad)


def every_return_has_its_saga(case: Case) -> Looked:
    """Every return has exactly one instance, ended the way the return did."""
    bad = []
    for found in case.snapshot.returns:
        states = [i.state for i in case.instances.get(found.return_id, [])]
        if states != [RETURN_END_OF.get(found.status)]:
            bad.append(f"return {found.return_id}: {found.status}, instances {states}")
    return Looked(len(case.snapshot.returns), bad)


# --- messages ------------------------------------------------------------------------------


def outboxes_are_empty(case: Case) -> Looked:
    """No message is left in an outbox."""
    outboxes = case.snapshot.outboxes
    return Looked(len(outboxes), [f"{s}: {n} messages" for s, n in outboxes.items() if n])


def inboxes_hold_no_claim(case: Case) -> Looked:
    """No inbox row was committed undecided."""
    claims = case.snapshot.claims
    bad = [f"{c.schema}: {c.step} {c.direction} of saga {c.saga_id}" for c in claims]
    return Looked(len(case.snapshot.outboxes), bad)


def dead_letters_are_explained(case: Case) -> Looked:
    """Every dead letter is one the scenario meant to cause."""
    bad = [
        f"{letter.queue}: {letter.reason} ({letter.about})"
        for letter in case.snapshot.dead_letters
        if (letter.queue, letter.reason) not in case.facts.explained
    ]
    return Looked(len(case.snapshot.dead_letters), bad)


ALWAYS: tuple[Check, ...] = (
    confirmed_is_charged_once,
    confirmed_is_dispatched_once,
    returned_is_refunded_and_restocked_once,
    rejected_costs_nothing,
    rejected_keeps_no_stock,
    rejected_says_why,
    totals_are_exact,
    accepted_stands_as_asked,
    one_charge_per_order,
    refunds_match_their_charge,
    ledger_is_balanced,
    accounts_match_the_ledger,
    stock_is_conserved,
    stock_matches_reservations,
    compensated_is_settled,
    completed_is_done,
    parked_holds_its_stock_and_no_money,
    every_saga_has_its_order,
    nothing_is_duplicated,
    nothing_is_unexpected,
    inboxes_hold_no_claim,
    dead_letters_are_explained,
)
AT_REST: tuple[Check, ...] = (
    nothing_is_lost,
    every_order_has_its_saga,
    every_return_has_its_saga,
    outboxes_are_empty,
)
INVARIANTS: tuple[Check, ...] = ALWAYS + AT_REST


# --- words ---------------------------------------------------------------------------------


def _is_charge_of(charge: Transfer, order: Order) -> bool:
    return (charge.amount, charge.currency, charge.debit, charge.credit) == (
        order.total,
        order.currency,
        order.customer,
        REVENUE,
    )


def _undoes(refund: Transfer, charge: Transfer, case: Case) -> bool:
    by_return = case.returns.get(refund.saga_id)
    order_id = by_return.order_id if by_return else refund.saga_id
    return (refund.amount, refund.currency, refund.debit, refund.credit, order_id) == (
        charge.amount,
        charge.currency,
        charge.credit,
        charge.debit,
        charge.saga_id,
    )


def _content(order: Order | Accepted) -> tuple[str, str, str, Counter[str], int]:
    pieces = _pieces(order.lines)
    return order.customer, order.idempotency_key, order.currency, pieces, order.total


def _pieces(lines: Iterable[Line]) -> Counter[str]:
    pieces: Counter[str] = Counter()
    for line in lines:
        pieces[line.sku] += line.quantity
    return pieces


def _order(order: Order) -> str:
    return f"order {order.order_id} ({order.idempotency_key} of {order.customer})"


def _transfer(transfer: Transfer) -> str:
    return (
        f"{transfer.kind} {transfer.amount} {transfer.currency} "
        f"{transfer.debit} > {transfer.credit} of saga {transfer.saga_id}"
    )
