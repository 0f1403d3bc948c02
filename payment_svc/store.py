"""The payment service's SQL: load what a batch is about, save what it changed, read accounts.

Every transaction locks rows in the same order, so that replicas wait for each other and never
deadlock:

1. accounts opened for the first time, inserted in key order. A transaction that already holds an
   account never waits for one of these, since it is invisible until its insert commits;
2. accounts, by customer and currency.

A transfer never changes, so charges are read without a lock: the inbox makes a refund wait for its
charge's transaction, and an order is returned only after it is confirmed. Whether a charge was
refunded is read once its account is locked.

Arrays are sent in binary (%b): in text form psycopg escapes every element in Python.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from uuid import UUID

from common.messages.contracts import Effects, EffectsQuery, TouchedPage, TouchedQuery
from common.messages.shop.payment import (
    AccountRow,
    AccountsPage,
    AccountsQuery,
    ChargePayment,
    Deposit,
    OpenAccount,
    RefundOrder,
    RefundPayment,
)
from common.participant.participant import Work
from common.storage.db import Tx
from payment_svc.domain import SIDES, Account, AccountKey, Ledger, Transfer, TransferKind

_CHARGES = """
select transfer_id, saga_id, step, debit, credit, amount, currency from transfer
 where saga_id = any(%b::uuid[]) and kind = 'CHARGE'"""

_REFUNDED = "select refund_of from transfer where refund_of = any(%b::uuid[])"

_OPEN = """
insert into account (customer, currency, card, balance)
select customer, currency, 'good', 0 from unnest(%b::text[], %b::text[]) as k (customer, currency)
 order by customer, currency
on conflict do nothing
returning customer, currency"""

_ACCOUNTS = """
select a.customer, a.currency, a.card, a.balance
  from unnest(%b::text[], %b::text[]) as k (customer, currency)
  join account a using (customer, currency)
 where a.customer = any(%b::text[])
 order by a.customer, a.currency for update of a"""

_UPDATE = """
update account a set card = n.card, balance = n.balance
  from unnest(%b::text[], %b::text[], %b::text[], %b::bigint[])
    as n (customer, currency, card, balance)
 where (a.customer, a.currency) = (n.customer, n.currency) and a.customer = any(%b::text[])"""

_TRANSFER = """
insert into transfer
       (transfer_id, kind, saga_id, step, debit, credit, amount, currency, refund_of)
select * from unnest(%b::uuid[], %b::text[], %b::uuid[], %b::text[], %b::text[], %b::text[],
                     %b::bigint[], %b::text[], %b::uuid[])"""

_PAGE = """
select customer, currency, card, balance from account
 where (%(customer)s::text is null or customer = %(customer)s)
   and (%(after)s::text is null or (customer, currency) > (%(after)s, %(after_currency)s))
 order by customer, currency limit %(limit)s"""

_TOUCHED = """
select saga_id, at >= coalesce(%s, '-infinity'::timestamptz)
       and at < coalesce(%s, 'infinity'::timestamptz)
  from transfer
 where kind in ('CHARGE', 'REFUND') and saga_id > %s order by saga_id limit %s"""

# The refund of a returned order is the effect of the return's saga; for the order's own saga the
# charge still counts as CHARGED.
_EFFECTS = """
select c.saga_id, c.step, case when r.transfer_id is null then 'CHARGED' else 'REFUNDED' end, c.at
  from transfer c left join transfer r on r.refund_of = c.transfer_id and r.saga_id = c.saga_id
 where c.saga_id = any(%(ids)b::uuid[]) and c.kind = 'CHARGE'
 union all
select r.saga_id, r.step, 'REFUNDED', r.at
  from transfer r join transfer c on c.transfer_id = r.refund_of and c.saga_id <> r.saga_id
 where r.saga_id = any(%(ids)b::uuid[]) and r.kind = 'REFUND'"""


class PaymentStore:
    async def load(self, tx: Tx, batch: Sequence[Work]) -> Ledger:
        ledger = Ledger()
        named: set[AccountKey] = set()
        opened: set[AccountKey] = set()
        refunded: set[UUID] = set()  # sagas whose charge is to be refunded
        returned: set[UUID] = set()  # those of them that are returned orders
        for work in batch:
            match work.command:
                case ChargePayment() | Deposit() as command:
                    named.add(AccountKey(command.customer, command.currency))
                case OpenAccount() as command if command.customer not in SIDES:
                    opened.add(AccountKey(command.customer, command.currency))
                case RefundPayment():
                    refunded.add(work.saga_id)
                case RefundOrder(order_id=order_id):
                    refunded.add(order_id)
                    returned.add(order_id)
        if refunded:
            for row in await tx.fetch(_CHARGES, (list(refunded),)):
                charge = Transfer(row[0], TransferKind.CHARGE, *row[1:])
                ledger.charges[charge.saga_id] = charge
                named.add(AccountKey(charge.debit, charge.currency))
        new: set[AccountKey] = set()
        if opened:
            new = {AccountKey(*row) for row in await tx.fetch(_OPEN, _columns(opened))}
        customers, currencies = _columns(named | opened)
        for customer, currency, card, balance in await tx.fetch(
            _ACCOUNTS, (customers, currencies, customers)
        ):
            key = AccountKey(customer, currency)
            if key not in new:  # a command before the one that opens it must not see the account
                ledger.accounts[key] = Account(card, balance)
        charged = [c.transfer_id for saga, c in ledger.charges.items() if saga in returned]
        if charged:
            ledger.refunded = {row[0] for row in await tx.fetch(_REFUNDED, (charged,))}
        return ledger

    async def save(self, tx: Tx, state: Ledger) -> None:
        if state.touched:
            accounts = [state.accounts[key] for key in state.touched]
            tx.queue_write(
                _UPDATE,
                (
                    *_columns(state.touched),
                    [a.card for a in accounts],
                    [a.balance for a in accounts],
                    [key.customer for key in state.touched],
                ),
            )
        if state.made:
            tx.queue_write(
                _TRANSFER,
                (
                    [t.transfer_id for t in state.made],
                    [t.kind.value for t in state.made],
                    [t.saga_id for t in state.made],
                    [t.step for t in state.made],
                    [t.debit for t in state.made],
                    [t.credit for t in state.made],
                    [t.amount for t in state.made],
                    [t.currency for t in state.made],
                    [t.refund_of for t in state.made],
                ),
            )

    async def accounts_page(self, tx: Tx, query: AccountsQuery) -> AccountsPage:
        after, after_currency = query.after or (None, None)
        await tx.plan_by_values()
        found = await tx.fetch(
            _PAGE,
            {
                "customer": query.customer,
                "after": after,
                "after_currency": after_currency,
                "limit": query.limit + 1,
            },
        )
        rows = tuple(
            AccountRow(customer=customer, currency=currency, card=card, balance=balance)
            for customer, currency, card, balance in found[: query.limit]
        )
        return AccountsPage(rows=rows, more=len(found) > query.limit)

    async def touched(self, tx: Tx, query: TouchedQuery) -> TouchedPage:
        found = await tx.fetch(_TOUCHED, (query.since, query.until, query.after, query.limit))
        return TouchedPage.of(found, query.limit)

    async def effects(self, tx: Tx, query: EffectsQuery) -> Effects:
        return Effects.of(await tx.fetch(_EFFECTS, {"ids": list(query.saga_ids)}))


def _columns(keys: Iterable[AccountKey]) -> tuple[list[str], list[str]]:
    keys = list(keys)
    return [k.customer for k in keys], [k.currency for k in keys]
