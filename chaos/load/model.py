"""A run's end, foretold from its input alone. Pure.

For each line of an orders file: the answer the door must give and the ends its order may come to,
and the bounds these put on every count. Exact where the order of arrival does not matter; a range
where goods or money go to the first to come. Two rules of the business are assumed: a reservation
takes all lines or none, and comes before the charge.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from chaos.judge.history import CustomerKey
from chaos.load.workload import Ask, Catalogue, Product

CONFIRMED = "confirmed"
NOT_STOCKED = "not_stocked"
OUT_OF_STOCK = "out_of_stock"
UNKNOWN_ACCOUNT = "unknown_account"
CARD_DECLINED = "card_declined"
INSUFFICIENT_FUNDS = "insufficient_funds"
ENDS = (
    CONFIRMED,
    OUT_OF_STOCK,
    NOT_STOCKED,
    CARD_DECLINED,
    INSUFFICIENT_FUNDS,
    UNKNOWN_ACCOUNT,
)


class Bounds(NamedTuple):
    at_least: int
    at_most: int

    def __contains__(self, count: object) -> bool:
        return isinstance(count, int) and self.at_least <= count <= self.at_most

    def __str__(self) -> str:
        exact = self.at_least == self.at_most
        return str(self.at_least) if exact else f"{self.at_least}..{self.at_most}"


@dataclass
class Foreseen:
    """The door's answer to each line, and how each order may end."""

    wrong: dict[int, str] = field(default_factory=dict)  # line to what is wrong with it
    repeats: dict[int, int] = field(default_factory=dict)  # line to the line it repeats
    conflicts: dict[int, int] = field(default_factory=dict)  # line to the line it contradicts
    ends: dict[int, frozenset[str]] = field(default_factory=dict)  # line of each new order
    bounds: dict[str, Bounds] = field(default_factory=dict)  # of each of ENDS


def foresee(catalogue: Catalogue, asks: Iterable[Ask]) -> Foreseen:
    """Foretell; `asks` in the order in which lines with the same key are placed."""
    foreseen = Foreseen()
    price_list = catalogue.price_list
    first: dict[CustomerKey, Ask] = {}
    for ask in asks:
        known = first.get(ask.customer_key)
        if wrong := what_is_wrong(ask.body, price_list):
            foreseen.wrong[ask.number] = wrong
        elif known is None:
            first[ask.customer_key] = ask
        elif ask.body == known.body:
            foreseen.repeats[ask.number] = known.number
        else:
            foreseen.conflicts[ask.number] = known.number
    wishes = [_Wish.of(ask, price_list) for ask in first.values()]
    foreseen.ends, foreseen.bounds = _Market(catalogue, wishes).foretell()
    return foreseen


def what_is_wrong(body: Mapping[str, Any], price_list: Mapping[str, Product]) -> str | None:
    """Return why the door must refuse this, or None."""
    if not isinstance(body.get("customer"), str) or not body["customer"]:
        return "no customer"
    lines = body.get("lines")
    if not isinstance(lines, list) or not lines:
        return "no lines"
    seen: set[str] = set()
    for line in lines:
        if not isinstance(line, dict) or not isinstance(line.get("sku"), str):
            return "a line without SKU"
        sku, quantity = line["sku"], line.get("quantity")
        if not isinstance(quantity, int) or isinstance(quantity, bool) or quantity < 1:
            return f"quantity {quantity!r}"
        if sku in seen:
            return f"{sku} twice"
        if sku not in price_list:
            return f"{sku} is not on the price list"
        if price_list[sku].currency != body.get("currency"):
            return f"{sku} has no price in {body.get('currency')}"
        seen.add(sku)
    return None


@dataclass(frozen=True)
class _Wish:
    """An order as the market sees it."""

    number: int
    account: tuple[str, str]
    pieces: Mapping[str, int]
    total: int

    @classmethod
    def of(cls, ask: Ask, price_list: Mapping[str, Product]) -> _Wish:
        pieces = {line["sku"]: line["quantity"] for line in ask.body["lines"]}
        total = sum(price_list[sku].price * quantity for sku, quantity in pieces.items())
        return cls(ask.number, (ask.body["customer"], ask.body["currency"]), pieces, total)


class _Market:
    """The orders' competition for goods and money."""

    def __init__(self, catalogue: Catalogue, wishes: list[_Wish]) -> None:
        self.received = catalogue.received
        self.deposited = catalogue.deposited
        self.declined = {(a.customer, a.currency) for a in catalogue.accounts if a.card != "good"}
        self.wishes = wishes
        self.pieces_wanted: Counter[str] = Counter()
        self.money_wanted: Counter[tuple[str, str]] = Counter()
        for wish in wishes:
            if not self._impossible(wish):  # it never holds anything
                self.pieces_wanted.update(wish.pieces)
                self.money_wanted[wish.account] += wish.total

    def foretell(self) -> tuple[dict[int, frozenset[str]], dict[str, Bounds]]:
        ends = {w.number: self._impossible(w) or self._contended(w) for w in self.wishes}
        least = Counter(end for possible in ends.values() if len(possible) == 1 for end in possible)
        most = Counter(end for possible in ends.values() for end in possible)
        least[OUT_OF_STOCK] += self._surely_out_of_stock(ends)
        least[INSUFFICIENT_FUNDS] += self._surely_out_of_money(ends)
        refused = sum(least[end] for end in ENDS if end != CONFIRMED)
        most[CONFIRMED] = min(most[CONFIRMED], len(ends) - refused)
        return ends, {end: Bounds(least[end], most[end]) for end in ENDS}

    def _impossible(self, wish: _Wish) -> frozenset[str]:
        """Return how it ends if it can never be reserved; else nothing."""
        ends = {OUT_OF_STOCK for s, n in wish.pieces.items() if n > self.received.get(s, n)}
        if wish.pieces.keys() - self.received.keys():
            ends.add(NOT_STOCKED)
            there = {s: n for s, n in wish.pieces.items() if s in self.received}
            if any(self.pieces_wanted[s] + n > self.received[s] for s, n in there.items()):
                ends.add(OUT_OF_STOCK)  # the inventory may name either line
        return frozenset(ends)

    def _contended(self, wish: _Wish) -> frozenset[str]:
        ends = {OUT_OF_STOCK} if any(self._scarce(sku) for sku in wish.pieces) else set()
        there = self.deposited.get(wish.account)
        if there is None:
            return frozenset(ends | {UNKNOWN_ACCOUNT})
        if wish.account in self.declined:
            ends.add(CARD_DECLINED)
        elif wish.total <= there:
            ends.add(CONFIRMED)
        if self.money_wanted[wish.account] > there and wish.account not in self.declined:
            ends.add(INSUFFICIENT_FUNDS)
        return frozenset(ends)

    def _scarce(self, sku: str) -> bool:
        return self.pieces_wanted[sku] > self.received.get(sku, 0)

    def _surely_out_of_stock(self, ends: Mapping[int, frozenset[str]]) -> int:
        """Count the orders that must find the shelf empty, of those that nothing else can stop.

        Each counts for one scarce SKU only, the first of its lines, so none counts twice.
        """
        claims: defaultdict[str, list[int]] = defaultdict(list)
        for wish in self.wishes:
            if ends[wish.number] == {CONFIRMED, OUT_OF_STOCK}:
                sku = next(sku for sku in wish.pieces if self._scarce(sku))
                claims[sku].append(wish.pieces[sku])
        return _at_least_refused(claims, self.received)

    def _surely_out_of_money(self, ends: Mapping[int, frozenset[str]]) -> int:
        claims: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        for wish in self.wishes:
            if ends[wish.number] == {CONFIRMED, INSUFFICIENT_FUNDS}:
                claims[wish.account].append(wish.total)
        return _at_least_refused(claims, self.deposited)


def _at_least_refused(claims: Mapping[Any, list[int]], there: Mapping[Any, int]) -> int:
    """Return the fewest claims to refuse so that the others fit: the largest first."""
    refused = 0
    for what, sizes in claims.items():
        excess = sum(sizes) - there[what]
        for size in sorted(sizes, reverse=True):
            if excess <= 0:
                break
            excess -= size
            refused += 1
    return refused
