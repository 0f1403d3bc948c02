"""An experiment's own SKUs and customers, so that many can share a stack. Pure.

Owns: their names, and orders made of them. Everything costs 100 cents.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chaos.load.workload import Account, Arrival, Ask, Catalogue, Deposit, Product

PRICE = 100
CURRENCY = "EUR"
PLENTY = 1_000_000_000
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Shop:
    name: str
    catalogue: Catalogue

    def sku(self, sku: str) -> str:
        return f"{self.name}.{sku}"

    def customer(self, who: str) -> str:
        return f"{self.name}.{who}"

    def order(self, who: str, **quantities: int) -> Ask:
        """order("ann", tea=2); each has a key of its own."""
        number = next(_numbers)
        lines = [{"sku": self.sku(s), "quantity": n} for s, n in quantities.items()]
        body = {"customer": self.customer(who), "currency": CURRENCY, "lines": lines}
        return Ask(number, f"{self.name}-{number}", body)


def shop(
    name: str,
    *,
    stock: Mapping[str, int],
    accounts: Mapping[str, int],
    declined: Sequence[str] = (),
    unstocked: Sequence[str] = (),
) -> Shop:
    """What is on the price list and how much of it there is; who has how much money.

    A declined customer's card is, whatever lies on the account; an unstocked SKU is on the
    price list and in no warehouse.
    """
    here = Shop(name, Catalogue())
    catalogue = Catalogue(
        products=tuple(Product(here.sku(s), PRICE, CURRENCY) for s in (*stock, *unstocked)),
        stock=tuple(Arrival(here.sku(s), n, f"{name}-first") for s, n in stock.items()),
        accounts=tuple(
            Account(here.customer(who), CURRENCY, "declined" if who in declined else "good")
            for who in accounts
        ),
        deposits=tuple(
            Deposit(here.customer(who), CURRENCY, amount, f"{name}-first")
            for who, amount in accounts.items()
            if amount
        ),
    )
    return Shop(name, catalogue)


def both(one: Catalogue, other: Catalogue) -> Catalogue:
    return Catalogue(
        products=one.products + other.products,
        stock=one.stock + other.stock,
        accounts=one.accounts + other.accounts,
        deposits=one.deposits + other.deposits,
    )
