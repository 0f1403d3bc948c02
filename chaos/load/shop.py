"""An experiment's own SKUs and customers, so that many can share a stack. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chaos.load.workload import Arrival, Ask, Catalogue, CatalogueAccount, Deposit, Product

PRICE = 100  # of everything
CURRENCY = "EUR"
PLENTY = 1_000_000_000
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Shop:
    """A catalogue, and orders of it."""

    name: str
    catalogue: Catalogue

    def sku(self, sku: str) -> str:
        return f"{self.name}.{sku}"

    def customer(self, name: str) -> str:
        return f"{self.name}.{name}"

    def order(self, customer: str, **quantities: int) -> Ask:
        """Return an order with a key of its own: order("ann", tea=2)."""
        number = next(_numbers)
        lines = [{"sku": self.sku(s), "quantity": n} for s, n in quantities.items()]
        body = {"customer": self.customer(customer), "currency": CURRENCY, "lines": lines}
        return Ask(number, f"{self.name}-{number}", body)


def shop(
    name: str,
    *,
    stock: Mapping[str, int],
    accounts: Mapping[str, int],
    declined: Sequence[str] = (),
    unstocked: Sequence[str] = (),
) -> Shop:
    """Make a shop of `stock` (SKU to pieces) and `accounts` (customer to money).

    A declined customer's card is declined whatever is on the account; an unstocked SKU is on the
    price list and in no warehouse.
    """
    here = Shop(name, Catalogue())
    catalogue = Catalogue(
        products=tuple(Product(here.sku(s), PRICE, CURRENCY) for s in (*stock, *unstocked)),
        stock=tuple(Arrival(here.sku(s), n, f"{name}-first") for s, n in stock.items()),
        accounts=tuple(
            CatalogueAccount(here.customer(a), CURRENCY, "declined" if a in declined else "good")
            for a in accounts
        ),
        deposits=tuple(
            Deposit(here.customer(a), CURRENCY, amount, f"{name}-first")
            for a, amount in accounts.items()
            if amount
        ),
    )
    return Shop(name, catalogue)
