"""The orders that are measured, all of which can be served. Pure.

They have 1 to 3 lines of 500 SKUs, or one line of SKUs in unequal demand, and 200 customers.

Owns: their shape and their seed. Must not know: who carries them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from chaos.load.workload import Arrival, Catalogue, CatalogueAccount, Deposit, Product

SKUS = 500
CUSTOMERS = 200
CURRENCY = "EUR"
PRICE = 100  # cents
PLENTY = 1_000_000  # pieces; a thousand times that in cents


@dataclass(frozen=True)
class BenchOrder:
    """One customer's order; `total` is in cents."""

    key: str
    customer: str
    lines: tuple[tuple[str, int], ...]

    @property
    def total(self) -> int:
        return PRICE * sum(quantity for _, quantity in self.lines)


def orders(seed: int, prefix: str) -> Iterator[BenchOrder]:
    """Draw orders without end, SKUs evenly, so that rows are contended by chance only."""
    dice = random.Random(f"{seed} {prefix}")
    number = 0
    while True:
        number += 1
        picked = dice.sample(range(SKUS), dice.randint(1, 3))
        lines = tuple((_sku(n), dice.randint(1, 3)) for n in sorted(picked))
        yield BenchOrder(f"{prefix}-{number}", _customer(dice.randrange(CUSTOMERS)), lines)


def shares(skew: float, skus: int) -> list[float]:
    """Return each SKU's share of the demand by Zipf's law: rank to the power of -skew.

    0 is even, infinity is one SKU alone.
    """
    weights = [float(rank) ** -skew for rank in range(1, skus + 1)]
    return [weight / sum(weights) for weight in weights]


def skewed(seed: int, prefix: str, skew: float, skus: int) -> Iterator[BenchOrder]:
    """Draw orders without end, of one line each, so that only the demand differs by skew."""
    dice, bounds = random.Random(f"{seed} {prefix}"), list(accumulate(shares(skew, skus)))
    number = 0
    while True:
        number += 1
        (sku,) = dice.choices(range(skus), cum_weights=bounds)
        lines = ((_sku(sku), dice.randint(1, 3)),)
        yield BenchOrder(f"{prefix}-{number}", _customer(dice.randrange(CUSTOMERS)), lines)


def catalogue(count: int = SKUS) -> Catalogue:
    """Stock enough goods and money for everything."""
    skus = [_sku(n) for n in range(count)]
    customers = [_customer(n) for n in range(CUSTOMERS)]
    return Catalogue(
        products=tuple(Product(sku, PRICE, CURRENCY) for sku in skus),
        stock=tuple(Arrival(sku, PLENTY, "bench") for sku in skus),
        accounts=tuple(CatalogueAccount(customer, CURRENCY, "good") for customer in customers),
        deposits=tuple(
            Deposit(customer, CURRENCY, 1000 * PLENTY, "bench") for customer in customers
        ),
    )


def _sku(number: int) -> str:
    return f"sku-{number:03}"


def _customer(number: int) -> str:
    return f"c-{number:03}"
