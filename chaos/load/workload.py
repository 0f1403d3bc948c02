"""An orders file, a catalogue, and the facts that follow from them and a history. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any
from uuid import UUID

from pydantic import TypeAdapter

from chaos.judge.case import Accepted, Facts, Line
from chaos.judge.history import (
    Answered,
    Asked,
    CustomerKey,
    Event,
    Fault,
    Refused,
    ReturnAnswered,
    ReturnAsked,
    customer_key,
)

KEY_REUSED = 409  # this key stands for another order: it refuses the body, not the key


@dataclass(frozen=True)
class Ask:
    """A line of an orders file that can be sent; the door decides whether it is valid."""

    number: int
    key: str
    body: dict[str, Any]

    @property
    def customer_key(self) -> CustomerKey:
        return customer_key(self.body, self.key)


@dataclass(frozen=True)
class BadLine:
    """A line that cannot be sent: not a JSON object, or without an idempotency key."""

    number: int
    why: str


@dataclass(frozen=True)
class Product:
    sku: str
    price: int
    currency: str


@dataclass(frozen=True)
class Arrival:
    """A delivery of new goods."""

    sku: str
    quantity: int
    delivery: str


@dataclass(frozen=True)
class CatalogueAccount:
    customer: str
    currency: str
    card: str


@dataclass(frozen=True)
class Deposit:
    customer: str
    currency: str
    amount: int
    reference: str


@dataclass(frozen=True)
class Catalogue:
    """The price list and the opening balances."""

    products: tuple[Product, ...] = ()
    stock: tuple[Arrival, ...] = ()
    accounts: tuple[CatalogueAccount, ...] = ()
    deposits: tuple[Deposit, ...] = ()

    def __add__(self, other: Catalogue) -> Catalogue:
        return Catalogue(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def price_list(self) -> dict[str, Product]:
        return {p.sku: p for p in self.products}

    @property
    def received(self) -> dict[str, int]:
        """SKU to pieces."""
        pieces: Counter[str] = Counter()
        for arrival in self.stock:
            pieces[arrival.sku] += arrival.quantity
        return dict(pieces)

    @property
    def deposited(self) -> dict[tuple[str, str], int]:
        """(customer, currency) of every account to the money paid in."""
        money = {(a.customer, a.currency): 0 for a in self.accounts}
        for d in self.deposits:
            money[(d.customer, d.currency)] += d.amount
        return money


def parse_catalogue(text: str) -> Catalogue:
    return TypeAdapter(Catalogue).validate_json(text)


def parse_orders(lines: Iterable[str]) -> Iterator[Ask | BadLine]:
    """Read one order per line, numbered from 1. Blank lines are counted and skipped."""
    for number, text in enumerate(lines, 1):
        if text.strip():
            yield _parse_line(number, text)


def _parse_line(number: int, text: str) -> Ask | BadLine:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        return BadLine(number, f"malformed JSON at column {error.colno}")
    if not isinstance(row, dict):
        return BadLine(number, "not a JSON object")
    key = row.pop("idempotency_key", None)
    if not isinstance(key, str) or not key:
        return BadLine(number, "no idempotency_key")
    return Ask(number, key, row)


def facts_of(
    catalogue: Catalogue, events: Iterable[Event], explained: Iterable[tuple[str, str]] = ()
) -> Facts:
    """Collect what must hold after this history."""
    asked: dict[tuple[int, int], Asked] = {}
    accepted: dict[UUID, Accepted] = {}
    yes, no = set[CustomerKey](), set[CustomerKey]()
    healed = []
    returns, returns_asked = set[UUID](), set[tuple[UUID, str]]()
    for event in events:
        match event:
            case Asked():
                asked[(event.run, event.line)] = event
            case Answered():
                ask = asked[(event.run, event.line)]
                order = _accepted(ask, event.body)
                accepted.setdefault(order.order_id, order)
                yes.add(ask.customer_key)
            case Refused() if event.status != KEY_REUSED:
                no.add(asked[(event.run, event.line)].customer_key)
            case Fault(healed=True):
                healed.append(event.at)
            case ReturnAsked():
                returns_asked.add((UUID(event.order_id), event.key))
            case ReturnAnswered(return_id=str(return_id)):
                returns.add(UUID(return_id))
    return Facts(
        prices={p.sku: p.price for p in catalogue.products},
        received=catalogue.received,
        deposited=catalogue.deposited,
        accepted=accepted,
        refused=frozenset(no - yes),
        unknown=frozenset({ask.customer_key for ask in asked.values()} - yes - no),
        healed=tuple(healed),
        returns=frozenset(returns),
        returns_asked=frozenset(returns_asked),
        explained=frozenset(explained),
    )


def _accepted(asked: Asked, answer: Mapping[str, Any]) -> Accepted:
    """Take the order as it was asked; only its id and total come from the answer."""
    return Accepted(
        order_id=UUID(answer["order_id"]),
        customer=asked.body["customer"],
        idempotency_key=asked.key,
        currency=asked.body["currency"],
        lines=tuple(Line(line["sku"], line["quantity"]) for line in asked.body["lines"]),
        total=answer["total"],
    )
