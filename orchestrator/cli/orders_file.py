"""Reads orders from a file of JSON lines or CSV; a wrong line is reported by its number.

JSONL  {"idempotency_key": "k-1", "customer": "c-001", "currency": "EUR",
        "lines": [{"sku": "sku-001", "quantity": 2}]}
CSV    idempotency_key,customer,currency,lines
       k-1,c-001,EUR,sku-001=2 sku-009=1
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

COLUMNS = ("idempotency_key", "customer", "currency", "lines")
KEY = "idempotency_key"


@dataclass(frozen=True)
class FileLine:
    """A line with an order, which the door may still refuse."""

    number: int
    order: dict[str, Any]


@dataclass(frozen=True)
class BadLine:
    """A line that was not placed."""

    number: int
    what: str


class NotAnOrdersFile(Exception):
    """The file as a whole is not a file of orders."""


def read(path: Path) -> Iterator[FileLine | BadLine]:
    """Read a .csv file as CSV, any other as JSON lines. Raises OSError, NotAnOrdersFile."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        yield from _csv(file) if path.suffix.lower() == ".csv" else _jsonl(file)


def parse_line(text: str) -> dict[str, Any]:
    """Parse a line of an order, `sku-001=2`. Raises ValueError."""
    sku, equals, quantity = text.partition("=")
    if not (sku and equals and quantity.isdecimal()):
        raise ValueError(f"{text!r}: write SKU=QUANTITY, like sku-001=2")
    return {"sku": sku, "quantity": int(quantity)}


def _jsonl(file: TextIO) -> Iterator[FileLine | BadLine]:
    for number, text in enumerate(file, start=1):
        if not text.strip():
            continue
        try:
            order = json.loads(text.strip())
        except ValueError as error:
            column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            yield BadLine(number, f"malformed JSON{column}")
        else:
            yield _keyed(number, order)


def _csv(file: TextIO) -> Iterator[FileLine | BadLine]:
    rows = csv.DictReader(file)
    if missing := [name for name in COLUMNS if name not in (rows.fieldnames or ())]:
        raise NotAnOrdersFile(f"its first line must name the columns {', '.join(missing)}")
    for row in rows:
        try:
            lines = [parse_line(text) for text in (row["lines"] or "").split()]
        except ValueError as error:
            yield BadLine(rows.line_num, str(error))
        else:
            given = {name: row[name] for name in COLUMNS if row[name]}
            yield _keyed(rows.line_num, {**given, "lines": lines})


def _keyed(number: int, order: object) -> FileLine | BadLine:
    if not isinstance(order, dict):
        return BadLine(number, "not a JSON object")
    key = order.get(KEY)
    if not isinstance(key, str) or not key:
        return BadLine(number, f"no {KEY}: without one it could not be repeated safely")
    return FileLine(number, order)
