"""The wire form of every message, pinned.

After an intended change: `python -m tests.golden.regenerate`, which refuses a change that an older
peer could not read.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from common.messages.envelope import Envelope, Message, unpack
from common.messages.shop.order import ListProduct, PlaceOrder
from common.messages.shop.payment import Deposit
from common.messages.shop.values import MAX_LINES, Line
from tests.golden.examples import examples
from tests.golden.regenerate import FOLDER, broken_promises, path_of, wire

EXAMPLES = list(examples())
every_message = pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.type)
ORDER: dict[str, Any] = {
    "customer": "ada",
    "idempotency_key": "key-1",
    "currency": "EUR",
    "lines": [{"sku": "tea", "quantity": 2}],
}


def golden(example: Envelope) -> dict[str, Any]:
    form: dict[str, Any] = json.loads(path_of(example).read_text())
    return form


def travels(cls: type[Message]) -> bool:
    """Neither a family (Command, Done, ...) nor a part of others (Line, ...)."""
    is_family = any(is_ours(each) for each in cls.__subclasses__())
    return not is_family and Message not in cls.__bases__


def is_ours(cls: type[Message]) -> bool:
    return cls.__module__.startswith("common.")


def test_every_message_has_exactly_one_golden_file() -> None:
    ours = {
        f"{name}.v{version}.json"
        for (name, version), cls in Message.registry.items()
        if is_ours(cls) and travels(cls)
    }
    assert {path_of(example).name for example in EXAMPLES} == ours
    assert {path.name for path in FOLDER.glob("*.json")} == ours


@every_message
def test_what_we_send_is_the_golden_form(example: Envelope) -> None:
    assert wire(example) == golden(example)


@every_message
def test_the_golden_form_is_read_back(example: Envelope) -> None:
    (read,) = unpack(json.dumps([golden(example)]).encode())
    assert read == example
    assert isinstance(read, Envelope)
    assert read.message().model_dump(mode="json") == example.body


@every_message
def test_an_older_reader_ignores_fields_from_the_future(example: Envelope) -> None:
    form = with_a_future(golden(example))
    (read,) = unpack(json.dumps([form]).encode())
    assert isinstance(read, Envelope)
    assert read.message() == example.message()


def with_a_future(form: Any) -> Any:
    """Add an unknown field to every object but a saga's data, which is its own."""
    if isinstance(form, dict):
        known = {n: value if n == "data" else with_a_future(value) for n, value in form.items()}
        return known | {"mood": "bright"}
    return [with_a_future(value) for value in form] if isinstance(form, list) else form


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({"reply_to": "another.queue"}, []),
        ({"mood": "bright"}, []),
        ({"attempt": "2"}, ["attempt (int) is gone"]),
        ({"body": {**ORDER, "lines": [{"sku": "tea"}]}}, ["body.lines[].quantity (int) is gone"]),
    ],
    ids=["other example", "new field", "other type", "field gone"],
)
def test_regenerating_keeps_what_older_peers_rely_on(
    change: dict[str, Any], broken: list[str]
) -> None:
    old = wire(next(example for example in EXAMPLES if example.type == "PlaceOrder"))
    assert broken_promises(old, {**old, **change}) == broken


def test_regenerating_refuses_a_new_required_field() -> None:
    new = wire(next(example for example in EXAMPLES if example.type == "PlaceOrder"))
    old = {**new, "body": {"customer": "ada"}}
    (broken,) = broken_promises(old, new)
    assert broken.startswith("the old form is refused: invalid_body")


# --- what no reader needs to check again ---------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"customer": ""},
        {"customer": "a" * 129},
        {"customer": "a\x1fb"},  # what separates customer and key in a saga's id
        {"idempotency_key": "a\x1fb"},
        {"idempotency_key": ""},
        {"currency": "eur"},
        {"currency": "EURO"},
        {"lines": []},
        {"lines": [{"sku": f"s{n}", "quantity": 1} for n in range(MAX_LINES + 1)]},
        {"lines": [{"sku": "two words", "quantity": 1}]},
        {"lines": [{"sku": "tea", "quantity": 0}]},
        {"lines": [{"sku": "tea", "quantity": 1.5}]},
        {"lines": [{"sku": "tea"}]},
    ],
    ids=str,
)
def test_an_order_out_of_bounds_is_refused(change: dict[str, Any]) -> None:
    assert PlaceOrder.model_validate(ORDER).lines == (Line(sku="tea", quantity=2),)
    with pytest.raises(ValidationError):
        PlaceOrder.model_validate({**ORDER, **change})


def test_money_is_never_negative_and_a_deposit_never_nothing() -> None:
    ListProduct(sku="gift", price=0, currency="EUR")
    with pytest.raises(ValidationError):
        ListProduct(sku="tea", price=-1, currency="EUR")
    with pytest.raises(ValidationError):
        Deposit(customer="ada", currency="EUR", amount=0)


def test_messages_do_not_change_once_made() -> None:
    line = Line(sku="tea", quantity=1)
    with pytest.raises(ValidationError, match="frozen"):
        line.quantity = 2  # type: ignore[misc]
