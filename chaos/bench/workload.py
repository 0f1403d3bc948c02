"""The orders that are measured: 1 to 3 lines of 500 SKUs, or one that some want more than others;
200 customers, all of them good. Pure.

Owns: their shape and their seed. Must not know: who carries them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from chaos.load.workload import Account, Arrival, Catalogue, Deposit, Product

SKUS = 500
CUSTOMERS = 200
CURRENCY = "EUR"
PRICE = 100  # cents
PLENTY = 1_000_000  # pieces; a thousand times that in cents


@dataclass(frozen=True)
class Order:
    """One customer's order; `total` is in cents."""

    key: str
    customer: str
    lines: tuple[tuple[str, int], ...]

    @property
    def total(self) -> int:
        return PRICE * sum(quantity for _, quantity in self.lines)


def orders(seed: int, prefix: str) -> Iterator[Order]:
    """Without end; SKUs are drawn evenly, so that rows are contended by chance only."""
    dice = random.Random(f"{seed} {prefix}")
    number = 0
    while True:
        number += 1
        picked = dice.sample(range(SKUS), dice.randint(1, 3))
        lines = tuple((_sku(n), dice.randint(1, 3)) for n in sorted(picked))
        yield Order(f"{prefix}-{number}", _customer(dice.randrange(CUSTOMERS)), lines)


def shares(skew: float, skus: int) -> list[float]:
    """How much of the demand each SKU has, by Zipf's law: rank to the power of -skew. 0 is even,
    infinity one SKU alone."""
    weights = [float(rank) ** -skew for rank in range(1, skus + 1)]
    return [weight / sum(weights) for weight in weights]


def skewed(seed: int, prefix: str, skew: float, skus: int) -> Iterator[Order]:
    """Without end; one line each, so that nothing but the demand differs from skew to skew."""
    dice, bounds = random.Random(f"{seed} {prefix}"), list(accumulate(shares(skew, skus)))
    number = 0
    while True:
        number += 1
        (sku,) = dice.choices(range(skus), cum_weights=bounds)
        lines = ((_sku(sku), dice.randint(1, 3)),)
        yield Order(f"{prefix}-{number}", _customer(dice.randrange(CUSTOMERS)), lines)


def catalogue(count: int = SKUS) -> Catalogue:
    """Goods and money enough for everything."""
    skus = [_sku(n) for n in range(count)]
    customers = [_customer(n) for n in range(CUSTOMERS)]
    return Catalogue(
        products=tuple(Product(sku, PRICE, CURRENCY) for sku in skus),
        stock=tuple(Arrival(sku, PLENTY, "bench") for sku in skus),
        accounts=tuple(Account(customer, CURRENCY, "good") for customer in customers),
        deposits=tuple(
            Deposit(customer, CURRENCY, 1000 * PLENTY, "bench") for customer in customers
        ),
    )


def _sku(number: int) -> str:
    return f"sku-{number:03}"


def _customer(number: int) -> str:
    return f"c-{number:03}"
