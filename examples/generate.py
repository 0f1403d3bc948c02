"""Writes examples/catalogue.json and examples/orders.jsonl; the same seed writes the same bytes.

Owns: what a run is fed with. It is a program of its own and imports nothing of
Sagaproof, so that the input does not bend when the system does. Must not know:
any server, any clock, any randomness but its seed.

    python examples/generate.py --seed 7            write the two files
    python examples/generate.py --seed 7 --check    exit 1 unless they are what would be written
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

SKUS = 500
CUSTOMERS = 200
ORDERS = 2_330  # orders in their own right; repeats, conflicts and wrong lines come on top
REPEATS = 40
CONFLICTS = 15
SHARED_KEYS = 5  # the same key from two customers makes two orders
WHOLESALE = 6  # orders for more of one SKU than was ever received
ZIPF = 1.1

# By number, so that the README can name them. SKU numbers are popularity ranks.
USD_SKU_EVERY = 5
USD_CUSTOMER_EVERY = 8
SCARCE = {2, 4, 10, 13, 21, 35, 54, 75, 98, 140, 205, 333}  # received: 60 % of what is asked
NOT_STOCKED = {19, 62, 130, 251, 390, 444}  # on the price list, never received
DECLINED = {17, 64, 111, 158}  # 4 of 200 customers: about 2 % of the orders
WITHOUT_ACCOUNT = {99, 152}
DRY = {5, 24, 29, 43, 56, 71, 83, 88, 102, 119, 127, 136, 145, 163, 171, 176, 185, 194}
WITHOUT_DEPOSIT = {38}

# A reservation comes before a charge. An order of these customers, or for goods that are
# not stocked, would be refused as out of stock or not, depending on who came first; so it
# keeps off scarce goods, and its outcome can be foretold exactly.
CERTAIN = DECLINED | WITHOUT_ACCOUNT

Row = dict[str, Any]


def sku(rank: int) -> str:
    return f"sku-{rank:03d}"


def customer(number: int) -> str:
    return f"c-{number:03d}"


def sku_currency(rank: int) -> str:
    return "USD" if rank % USD_SKU_EVERY == 0 else "EUR"


def customer_currency(number: int) -> str:
    return "USD" if number % USD_CUSTOMER_EVERY == 0 else "EUR"


class Shelf:
    """The SKUs of one currency with their Zipf popularity."""

    def __init__(self, currency: str) -> None:
        self.ranks = [rank for rank in range(1, SKUS + 1) if sku_currency(rank) == currency]
        self.weights = list(accumulate(rank**-ZIPF for rank in self.ranks))

    def pick(self, rng: random.Random) -> int:
        return rng.choices(self.ranks, cum_weights=self.weights)[0]


def lines_of(rng: random.Random, shelf: Shelf, certain: bool) -> list[Row]:
    """Return 1 to 5 lines, no SKU twice."""
    wanted = rng.choices((1, 2, 3, 4, 5), weights=(34, 27, 19, 12, 8))[0]
    ranks: list[int] = []
    while len(ranks) < wanted:
        rank = shelf.pick(rng)
        if rank not in ranks and not (certain and rank in SCARCE | NOT_STOCKED):
            ranks.append(rank)
    if NOT_STOCKED.intersection(ranks):
        ranks = [rank for rank in ranks if rank not in SCARCE]
    quantities = rng.choices((1, 2, 3, 4, 6, 12), weights=(52, 24, 10, 7, 4, 3), k=len(ranks))
    return [{"sku": sku(r), "quantity": q} for r, q in zip(ranks, quantities, strict=True)]


def order(key: str, number: int, lines: list[Row]) -> Row:
    return {
        "idempotency_key": key,
        "customer": customer(number),
        "currency": customer_currency(number),
        "lines": lines,
    }


def plain_orders(rng: random.Random) -> list[Row]:
    shelves = {currency: Shelf(currency) for currency in ("EUR", "USD")}
    orders = []
    for n in range(1, ORDERS + 1):
        who = rng.randrange(1, CUSTOMERS + 1)
        lines = lines_of(rng, shelves[customer_currency(who)], who in CERTAIN)
        orders.append(order(f"k-{n:05d}", who, lines))
    return orders


def wholesale_orders(rng: random.Random) -> list[Row]:
    """Return orders for more than was ever received: refused whatever else is ordered."""
    eur = [n for n in range(1, CUSTOMERS + 1) if customer_currency(n) == "EUR" and n not in CERTAIN]
    ranks = [rank for rank in sorted(SCARCE) if sku_currency(rank) == "EUR"]
    return [
        order(f"w-{n:02d}", rng.choice(eur), [{"sku": sku(rng.choice(ranks)), "quantity": 9_000}])
        for n in range(1, WHOLESALE + 1)
    ]


def shared_keys(rng: random.Random, orders: list[Row]) -> list[Row]:
    """Return orders that share a key with another customer's: keys are remembered per customer."""
    originals = rng.sample(orders, SHARED_KEYS)
    others = [n for n in range(1, CUSTOMERS + 1) if n not in CERTAIN]
    shared = []
    for original in originals:
        mates = [
            n
            for n in others
            if customer_currency(n) == original["currency"] and customer(n) != original["customer"]
        ]
        shared.append({**original, "customer": customer(rng.choice(mates))})
    return shared


def later_copies(rng: random.Random, orders: list[Row]) -> list[tuple[int, Row]]:
    """Return repeats and conflicts, each with the position it is inserted after."""
    chosen = rng.sample(range(len(orders)), REPEATS + CONFLICTS)
    copies = []
    for n, position in enumerate(chosen):
        copy = orders[position]
        if n >= REPEATS:
            first, *rest = copy["lines"]
            copy = {**copy, "lines": [{**first, "quantity": first["quantity"] + 1}, *rest]}
        # Some come at once, as from an impatient client, others much later.
        distance = rng.choice((0, 1, 3, 20, 400))
        copies.append((min(position + distance, len(orders) - 1), copy))
    return copies


def wrong_lines(rng: random.Random, shelf: Shelf) -> list[str]:
    """Return mistakes as real files have them.

    The first five cannot be sent; the door refuses the others.
    """
    good = order("bad-00", 1, [{"sku": sku(shelf.pick(rng)), "quantity": 1}])
    one = good["lines"][0]
    changes: list[Row] = [
        {"lines": [{"sku": "sku-999", "quantity": 1}]},
        {"lines": [one, {"sku": "sku_001", "quantity": 2}]},
        {"lines": [{**one, "quantity": 0}]},
        {"lines": [{**one, "quantity": -1}]},
        {"lines": [{**one, "quantity": "two"}]},
        {"lines": [{**one, "quantity": 1.5}]},
        {"lines": []},
        {"lines": [one, {**one, "quantity": 3}]},
        {"currency": "DOGE"},
        {"currency": "XTS"},
        {"lines": [{"sku": sku(USD_SKU_EVERY), "quantity": 1}]},  # priced in USD, ordered in EUR
    ]
    wrong = [
        {**good, **change, "idempotency_key": f"bad-{n:02d}"} for n, change in enumerate(changes, 1)
    ]
    wrong += [
        {k: v for k, v in good.items() if k != "customer"} | {"idempotency_key": "bad-12"},
        {k: v for k, v in good.items() if k != "lines"} | {"idempotency_key": "bad-13"},
    ]
    text = json.dumps(good, separators=(",", ":"))
    keyless = {k: v for k, v in good.items() if k != "idempotency_key"}
    return [
        text[:-9],  # cut off, as by a full disk
        text.replace('"', "'"),
        "customer;sku;quantity",
        json.dumps(keyless, separators=(",", ":")),
        json.dumps({**keyless, "idempotency_key": ""}, separators=(",", ":")),
        *(json.dumps(line, separators=(",", ":")) for line in wrong),
    ]


def order_file(rng: random.Random) -> tuple[list[Row], list[str]]:
    """Return the orders without copies and mistakes, and the lines of the file."""
    orders = plain_orders(rng)
    for extra in wholesale_orders(rng) + shared_keys(rng, orders):
        orders.insert(rng.randrange(len(orders) // 4, len(orders)), extra)
    after: dict[int, list[str]] = {}
    for position, copy in later_copies(rng, orders):
        after.setdefault(position, []).append(json.dumps(copy, separators=(",", ":")))
    for line in wrong_lines(rng, Shelf("EUR")):
        after.setdefault(rng.randrange(len(orders)), []).append(line)
    lines = []
    for position, row in enumerate(orders):
        lines.append(json.dumps(row, separators=(",", ":")))
        lines += after.get(position, [])
    return orders, lines


def catalogue(rng: random.Random, orders: Iterable[Row], seed: int) -> Row:
    """Return prices, stock and accounts: enough for these orders, but for the named exceptions."""
    prices = {sku(rank): rng.randrange(99, 9_999) for rank in range(1, SKUS + 1)}
    pieces: Counter[str] = Counter()
    money: Counter[str] = Counter()
    for row in orders:
        if row["idempotency_key"].startswith("w-"):
            continue  # stock and money do not provide for orders that cannot be met
        for line in row["lines"]:
            pieces[line["sku"]] += line["quantity"]
            money[row["customer"]] += line["quantity"] * prices[line["sku"]]
    ranks = range(1, SKUS + 1)
    customers = [n for n in range(1, CUSTOMERS + 1) if n not in WITHOUT_ACCOUNT]
    return {
        "seed": seed,
        "products": [
            {"sku": sku(r), "price": prices[sku(r)], "currency": sku_currency(r)} for r in ranks
        ],
        "stock": [
            {"sku": sku(r), "quantity": received(rng, r, pieces[sku(r)]), "delivery": "d-1"}
            for r in ranks
            if r not in NOT_STOCKED
        ],
        "accounts": [
            {
                "customer": customer(n),
                "currency": customer_currency(n),
                "card": "declined" if n in DECLINED else "good",
            }
            for n in customers
        ],
        "deposits": [
            {
                "customer": customer(n),
                "currency": customer_currency(n),
                "amount": amount,
                "reference": f"t-{i}",
            }
            for n in customers
            for i, amount in enumerate(deposited(n, money[customer(n)]), 1)
        ],
    }


def received(rng: random.Random, rank: int, asked: int) -> int:
    if rank in SCARCE:
        return max(1, asked * 6 // 10)
    return asked + rng.randrange(5, 50)


def deposited(number: int, asked: int) -> list[int]:
    """Return what a customer paid in: one amount, or two for every tenth customer."""
    if number in WITHOUT_DEPOSIT:
        return []
    share = 4 if number in DRY else 13
    whole = math.ceil(asked * share / 10 / 1_000) * 1_000 + 10_000
    return [whole // 4, whole - whole // 4] if number % 10 == 0 else [whole]


def as_json(document: Row) -> str:
    """Write one row per line, so that a change shows as one line of a diff."""
    parts = []
    for name, value in document.items():
        if isinstance(value, list):
            rows = ",\n".join("  " + json.dumps(row) for row in value)
            parts.append(f' "{name}": [\n{rows}\n ]')
        else:
            parts.append(f' "{name}": {json.dumps(value)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def generate(seed: int) -> dict[str, str]:
    """Return the content of both files by name."""
    rng = random.Random(seed)
    orders, lines = order_file(rng)
    return {
        "catalogue.json": as_json(catalogue(rng, orders, seed)),
        "orders.jsonl": "\n".join(lines) + "\n",
    }


def check(path: Path, content: str) -> bool:
    if path.exists() and path.read_text(encoding="utf-8") == content:
        return True
    print(f"{path.name} is not what this generator writes: run it without --check")
    return False


def write(path: Path, content: str) -> bool:
    path.write_text(content, encoding="utf-8")
    print(f"{path.name}: {content.count(chr(10))} lines")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the example catalogue and orders.")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--check", action="store_true", help="compare with the files, write nothing"
    )
    options = parser.parse_args()
    here = Path(__file__).parent
    do: Callable[[Path, str], bool] = check if options.check else write
    results = [do(here / name, content) for name, content in generate(options.seed).items()]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
