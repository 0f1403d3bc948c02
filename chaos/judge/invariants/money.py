"""Invariants of money. Pure."""

from __future__ import annotations

from collections import Counter

from chaos.judge.case import Case, Transfer
from chaos.judge.invariants.checked import DEPOSITS, REVENUE, Checked


def one_charge_per_order(case: Case) -> Checked:
    """At most one charge per order, confirmed or not."""
    bad = [f"saga {s}: {len(c)} charges" for s, c in case.charges.items() if len(c) > 1]
    return Checked(len(case.charges), bad)


def refunds_match_their_charge(case: Case) -> Checked:
    """No refund without its charge, at most one per charge, the same amount the other way."""
    refunds = [t for group in case.refunds.values() for t in group]
    times = Counter(t.refund_of for t in refunds)
    bad = []
    for refund in refunds:
        charge = case.charge_of(refund)
        if charge is None or charge.kind != "CHARGE":
            bad.append(f"{refund}: there is no such charge")
        elif times[refund.refund_of] > 1:
            bad.append(f"{refund}: one of {times[refund.refund_of]} refunds")
        elif not _undoes(refund, charge, case):
            bad.append(f"{refund} does not undo {charge}")
    return Checked(len(refunds), bad)


def ledger_is_balanced(case: Case) -> Checked:
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
    return Checked(len(currencies), bad)


def accounts_match_the_ledger(case: Case) -> Checked:
    """Each balance is the sum of its entries and not negative; deposits are as paid in."""
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
    return Checked(len(case.snapshot.accounts), bad)


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
