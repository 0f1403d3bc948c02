"""`saga order` and `saga orders place`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.messages.envelope import saga_id_for
from tests.support.apis import Shop
from tests.unit.orchestrator.cli.running import ORDER, Saga


def test_an_order_is_placed_and_its_end_is_shown(saga: Saga, shop: Shop) -> None:
    ran = saga(*ORDER)
    assert ran.code == 0
    assert ran.out == "CONFIRMED after 0.3s\n"
    assert f"{saga_id_for('ada', 'k-1')} placed, 7.00 EUR" in ran.err
    again = saga(*ORDER, "--json")
    assert again.document["status"] == "CONFIRMED"
    assert len(shop.placed) == 1


def test_a_rejected_order_exits_with_1_and_names_saga_show(saga: Saga) -> None:
    ran = saga("order", "--customer", "broke", "--line", "tea=2", "--key", "k")
    assert ran.code == 1
    assert "REJECTED: insufficient funds" in ran.out
    assert f"saga show {saga_id_for('broke', 'k')}" in ran.out


def test_an_order_that_does_not_end_in_time_exits_with_4(saga: Saga) -> None:
    ran = saga("order", "--customer", "slow", "--line", "tea=2", "--wait", "2")
    assert ran.code == 4
    assert "still PENDING" in ran.out


def test_a_refusal_of_the_door_is_printed_with_its_remedy(saga: Saga) -> None:
    ran = saga(*ORDER, "--currency", "XTS")
    assert ran.code == 1
    assert "currency: invalid_order" in ran.err
    assert "nothing is sold in XTS" in ran.err


def test_a_malformed_line_is_a_wrong_command_line(saga: Saga, shop: Shop) -> None:
    ran = saga("order", "--customer", "ada", "--line", "tea")
    assert ran.code == 2
    assert "write SKU=QUANTITY" in ran.err
    assert shop.requests == 0


def test_an_order_is_retried_with_its_key_while_the_door_is_down(saga: Saga, shop: Shop) -> None:
    shop.outages = 3
    assert saga(*ORDER).code == 0
    assert (shop.requests, len(shop.placed)) == (4, 1)


def test_an_order_without_an_answer_says_how_to_repeat_it(saga: Saga, shop: Shop) -> None:
    shop.outages = 10_000
    ran = saga("order", "--customer", "ada", "--line", "tea=2")
    assert ran.code == 3
    assert "may or may not have been placed: repeat with --key " in ran.err


def order(key: str, customer: str = "ada", **changes: object) -> str:
    lines = [{"sku": "tea", "quantity": 2}]
    given = {"idempotency_key": key, "customer": customer, "currency": "EUR", "lines": lines}
    return json.dumps({**given, **changes})


def write(path: Path, *lines: str) -> str:
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def test_the_results_of_a_file_are_counted_line_by_line(saga: Saga, tmp_path: Path) -> None:
    file = write(
        tmp_path / "orders.jsonl",
        order("k-1"),
        '{"idempotency_key": ',
        order("k-2", "broke"),
        "",
        order("k-1"),
        order("k-1", lines=[{"sku": "tea", "quantity": 3}]),
        order("k-3", currency="XTS"),
        "[1, 2]",
        order(""),
        order("k-4", lines=[{"sku": "tea", "quantity": 0}]),
    )
    ran = saga("orders", "place", file, "--json")
    assert ran.code == 1
    tally = ran.document
    bad = {line["line"]: line["what"] for line in tally.pop("bad")}
    assert tally == {
        "lines": 9,
        "orders": 2,
        "repeats": 1,
        "ends": {"confirmed": 1, "insufficient_funds": 1},
        "pending": [],
        "unplaced": [],
    }
    assert list(bad) == [2, 6, 7, 8, 9, 10]
    assert bad[2] == "malformed JSON at column 20"
    assert bad[6].startswith("idempotency key reused: Idempotency-Key: this key belongs to order")
    assert bad[7] == "invalid order: currency: nothing is sold in XTS"
    assert bad[8] == "not a JSON object"
    assert bad[9].startswith("no idempotency_key")
    assert bad[10].startswith("invalid order: lines[0].quantity: it should be greater")

    people = saga("orders", "place", file)
    assert people.code == 1
    assert "line 2: malformed JSON at column 20" in people.out
    assert "rejected: insufficient funds" in people.out


def test_placing_a_good_file_twice_changes_nothing(saga: Saga, shop: Shop, tmp_path: Path) -> None:
    file = write(tmp_path / "orders.jsonl", *(order(f"k-{n}") for n in range(3)))
    first, second = (saga("orders", "place", file, "--json") for _ in range(2))
    assert first.code == second.code == 0
    assert first.document == second.document
    assert len(shop.placed) == 3


def test_csv_has_one_order_per_row(saga: Saga, shop: Shop, tmp_path: Path) -> None:
    file = write(
        tmp_path / "orders.csv",
        "idempotency_key,customer,currency,lines",
        "k-1,ada,EUR,tea=2 cup=1",
        "k-2,ada,EUR,tea",
        "k-3,ada,,tea=1",
    )
    tally = saga("orders", "place", file, "--json").document
    assert tally["orders"] == 1
    assert {line["line"]: line["what"] for line in tally["bad"]} == {
        3: "'tea': write SKU=QUANTITY, like sku-001=2",
        4: "invalid order: currency: add currency",
    }
    ((placed, _),) = shop.placed.values()
    assert [(line.sku, line.quantity) for line in placed.lines] == [("tea", 2), ("cup", 1)]


def test_a_csv_file_without_its_columns_is_refused(saga: Saga, tmp_path: Path) -> None:
    ran = saga("orders", "place", write(tmp_path / "orders.csv", "a,b", "1,2"))
    assert ran.code == 1
    assert "must name the columns idempotency_key, customer, currency, lines" in ran.err


def test_a_request_that_is_too_large_is_halved(saga: Saga, shop: Shop, tmp_path: Path) -> None:
    many = [{"sku": f"tea-{n:03}", "quantity": 1} for n in range(100)]
    small = [order(f"k-{n}") for n in range(6)]
    file = write(tmp_path / "orders.jsonl", *small[:3], order("k-x", lines=many), *small[3:])
    tally = saga("orders", "place", file, "--json").document
    assert tally["orders"] == 6
    ((number, what),) = ((line["line"], line["what"]) for line in tally["bad"])
    assert number == 4
    assert what.startswith("body: too large")


def test_a_door_that_is_down_for_a_while_costs_no_line(
    saga: Saga, shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.cli.orders.BULK", 4)
    file = write(tmp_path / "orders.jsonl", *(order(f"k-{n}") for n in range(10)))
    shop.outages = 4
    tally = saga("orders", "place", file, "--json").document
    assert tally["ends"] == {"confirmed": 10}


def test_lines_without_an_answer_are_named(saga: Saga, shop: Shop, tmp_path: Path) -> None:
    shop.outages = 10_000
    ran = saga("orders", "place", write(tmp_path / "orders.jsonl", order("k-1")), "--json")
    assert ran.code == 3
    assert ran.document["unplaced"] == [1]


def test_orders_that_do_not_end_in_time_are_named(saga: Saga, tmp_path: Path) -> None:
    file = write(tmp_path / "orders.jsonl", order("k-1", "slow"), order("k-2"))
    ran = saga("orders", "place", file, "--json", "--wait", "3")
    assert ran.code == 4
    assert ran.document["pending"] == [str(saga_id_for("slow", "k-1"))]
    assert ran.document["ends"] == {"confirmed": 1}
