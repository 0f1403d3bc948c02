"""Accounts and the ledger: states and rules. Pure.

- Every transfer has a side that gives (debit) and a side that takes (credit), so the entries of a
  currency sum to zero.
- A customer's account never falls below zero. The shop and the outside world have no account, so
  theirs is not checked.
- A refund is a transfer of its own, at most one for a charge; the charge stays on record.

A business "no" is a reply. An illegal transition raises and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID, uuid5

from common.messages.errors import IllegalTransition, Poison
from common.messages.shop.payment import (
    AccountOpened,
    CardDeclined,
    Deposited,
    InsufficientFunds,
    NothingToRefund,
    OrderRefunded,
    PaymentCharged,
    PaymentRefunded,
    UnknownAccount,
)

WORLD = "world:deposits"
SHOP = "shop:revenue"
SIDES = frozenset({WORLD, SHOP})  # sides of the ledger that are not customers


class TransferKind(StrEnum):
    DEPOSIT = "DEPOSIT"
    CHARGE = "CHARGE"
    REFUND = "REFUND"


class AccountKey(NamedTuple):
    customer: str
    currency: str


@dataclass(slots=True)
class Account:
    card: str  # good or declined
    balance: int = 0


@dataclass(frozen=True, slots=True)
class Transfer:
    transfer_id: UUID
    kind: TransferKind
    saga_id: UUID
    step: str
    debit: str
    credit: str
    amount: int
    currency: str
    refund_of: UUID | None = None


@dataclass(slots=True)
class Ledger:
    """The accounts and charges that one batch is about, and what the batch changes in them."""

    accounts: dict[AccountKey, Account] = field(default_factory=dict)
    charges: dict[UUID, Transfer] = field(default_factory=dict)  # by saga
    refunded: set[UUID] = field(default_factory=set)  # ids of charges
    touched: set[AccountKey] = field(default_factory=set)
    made: list[Transfer] = field(default_factory=list)

    def open_account(self, key: AccountKey, card: str) -> AccountOpened:
        """Open an account, or give an existing one another card."""
        if key.customer in SIDES:
            raise Poison("reserved_name", f"{key.customer} is a side of the ledger, no customer")
        self.accounts.setdefault(key, Account(card)).card = card
        self.touched.add(key)
        return AccountOpened(customer=key.customer)

    def deposit(
        self, saga_id: UUID, step: str, key: AccountKey, amount: int
    ) -> Deposited | UnknownAccount:
        if key not in self.accounts:
            return UnknownAccount()
        transfer_id = uuid5(saga_id, f"{step}:deposit")
        self._move(
            Transfer(
                transfer_id,
                TransferKind.DEPOSIT,
                saga_id,
                step,
                WORLD,
                key.customer,
                amount,
                key.currency,
            )
        )
        return Deposited(customer=key.customer)

    def charge(
        self, saga_id: UUID, step: str, key: AccountKey, total: int
    ) -> PaymentCharged | CardDeclined | InsufficientFunds | UnknownAccount:
        if saga_id in self.charges:
            raise IllegalTransition(f"saga {saga_id} was charged already")
        account = self.accounts.get(key)
        if account is None:
            return UnknownAccount()
        if account.card == "declined":
            return CardDeclined()
        if account.balance < total:
            return InsufficientFunds()
        charge_id = uuid5(saga_id, f"{step}:charge")
        charge = Transfer(
            charge_id, TransferKind.CHARGE, saga_id, step, key.customer, SHOP, total, key.currency
        )
        self._move(charge)
        self.charges[saga_id] = charge
        return PaymentCharged(charge_id=charge_id)

    def refund(self, saga_id: UUID, step: str) -> PaymentRefunded:
        """Undo a charge, if there is one to undo."""
        charge = self.charges.get(saga_id)
        if charge is None:
            return PaymentRefunded(nothing_to_undo=True)
        self._refund(charge, saga_id, step)
        return PaymentRefunded()

    def refund_order(
        self, saga_id: UUID, step: str, order_id: UUID
    ) -> OrderRefunded | NothingToRefund:
        """Refund the charge of an order that is returned, unless it was refunded before."""
        charge = self.charges.get(order_id)
        if charge is None or charge.transfer_id in self.refunded:
            return NothingToRefund()
        self._refund(charge, saga_id, step)
        return OrderRefunded()

    def _refund(self, charge: Transfer, saga_id: UUID, step: str) -> None:
        """Transfer a charge back. The refund's id is made from the charge's: there can be one."""
        self.refunded.add(charge.transfer_id)
        self._move(
            Transfer(
                uuid5(charge.transfer_id, "refund"),
                TransferKind.REFUND,
                saga_id,
                step,
                charge.credit,
                charge.debit,
                charge.amount,
                charge.currency,
                refund_of=charge.transfer_id,
            )
        )

    def _move(self, transfer: Transfer) -> None:
        for side, amount in (
            (transfer.debit, -transfer.amount),
            (transfer.credit, transfer.amount),
        ):
            if side not in SIDES:
                key = AccountKey(side, transfer.currency)
                self.accounts[key].balance += amount
                self.touched.add(key)
        self.made.append(transfer)
