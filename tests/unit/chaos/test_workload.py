"""Reading an orders file, foretelling what it must end with, and reading facts from a history."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.judge.case import Accepted, Line
from chaos.judge.history import (
    Answered,
    Asked,
    Event,
    Fault,
    History,
    Refused,
    Unknown,
    read_history,
)
from chaos.load.model import Bounds, Foreseen, foresee, what_is_wrong
from chaos.load.workload import (
    Arrival,
    Ask,
    BadLine,
    Catalogue,
    CatalogueAccount,
    Deposit,
    Product,
    facts_of,
    parse_catalogue,
    parse_orders,
)

CATALOGUE = Catalogue(
    products=(
        Product("tea", 300, "EUR"),
        Product("cup", 400, "EUR"),
        Product("rare", 100, "EUR"),
        Product("gone", 100, "EUR"),
        Product("mug", 500, "USD"),
    ),
    stock=(
        Arrival("tea", 500, "d-1"),
        Arrival("tea", 500, "d-2"),
        Arrival("cup", 1000, "d-1"),
        Arrival("rare", 3, "d-1"),
        Arrival("mug", 10, "d-1"),
    ),
    accounts=(
        CatalogueAccount("ann", "EUR", "good"),
        CatalogueAccount("bob", "EUR", "declined"),
        CatalogueAccount("cid", "EUR", "good"),
    ),
    deposits=(
        Deposit("ann", "EUR", 90_000, "t-1"),
        Deposit("ann", "EUR", 10_000, "t-2"),
        Deposit("bob", "EUR", 50_000, "t-1"),
        Deposit("cid", "EUR", 1_000, "t-1"),
    ),
)


def body(customer: str = "ann", currency: str = "EUR", /, **pieces: Any) -> dict[str, Any]:
    lines = [{"sku": sku, "quantity": quantity} for sku, quantity in pieces.items()]
    return {"customer": customer, "currency": currency, "lines": lines}


def asks(*bodies: dict[str, Any]) -> list[Ask]:
    return [Ask(n, f"k-{n}", b) for n, b in enumerate(bodies, 1)]


def ends(*bodies: dict[str, Any]) -> list[set[str]]:
    return [set(e) for e in foresee(CATALOGUE, asks(*bodies)).ends.values()]


# --- reading the files ---------------------------------------------------------------------


def test_a_line_becomes_an_ask_with_its_number() -> None:
    text = json.dumps({"idempotency_key": "k", **body(tea=1)})
    assert list(parse_orders(["\n", text])) == [Ask(2, "k", body(tea=1))]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "malformed JSON at column 2"),
        ("[1]", "not a JSON object"),
        ('{"customer": "ann"}', "no idempotency_key"),
        ('{"idempotency_key": ""}', "no idempotency_key"),
        ('{"idempotency_key": 5}', "no idempotency_key"),
    ],
)
def test_a_line_that_cannot_be_sent_is_bad_and_says_why(text: str, why: str) -> None:
    assert list(parse_orders([text])) == [BadLine(1, why)]


def test_a_catalogue_adds_up_deliveries_and_deposits() -> None:
    document = {
        "seed": 1,
        "products": [{"sku": "tea", "price": 300, "currency": "EUR"}],
        "stock": [
            {"sku": "tea", "quantity": 2, "delivery": "d-1"},
            {"sku": "tea", "quantity": 3, "delivery": "d-2"},
        ],
        "accounts": [{"customer": "ann", "currency": "EUR", "card": "good"}],
        "deposits": [],
    }
    catalogue = parse_catalogue(json.dumps(document))
    assert catalogue.received == {"tea": 5}
    assert catalogue.deposited == {("ann", "EUR"): 0}


# --- foretelling: the door -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({**body(tea=1), "customer": ""}, "no customer"),
        ({"currency": "EUR", "lines": []}, "no customer"),
        (body(), "no lines"),
        ({**body(), "lines": None}, "no lines"),
        ({**body(), "lines": ["tea"]}, "a line without SKU"),
        ({**body(), "lines": [{"sku": ["tea"], "quantity": 1}]}, "a line without SKU"),
        (body(tea=0), "quantity 0"),
        (body(tea=-1), "quantity -1"),
        (body(tea="two"), "quantity 'two'"),
        (body(tea=True), "quantity True"),
        (body(milk=1), "milk is not on the price list"),
        (body(mug=1), "mug has no price in EUR"),
        (body("ann", "XTS", tea=1), "tea has no price in XTS"),
        ({**body(), "lines": [{"sku": "tea", "quantity": 1}] * 2}, "tea twice"),
    ],
)
def test_a_wrong_order_is_foreseen(wrong: dict[str, Any], says: str) -> None:
    assert what_is_wrong(wrong, CATALOGUE.price_list) == says
    foreseen = foresee(CATALOGUE, asks(wrong))
    assert (foreseen.wrong, foreseen.ends) == ({1: says}, {})


def test_the_same_key_again_is_a_repeat_or_a_conflict() -> None:
    foreseen = foresee(
        CATALOGUE,
        [
            Ask(1, "k", body(tea=1)),
            Ask(2, "k", body(tea=1)),
            Ask(3, "k", body(tea=2)),
            Ask(4, "k", body("cid", tea=1)),
        ],
    )
    assert foreseen.repeats == {2: 1}
    assert foreseen.conflicts == {3: 1}
    assert set(foreseen.ends) == {1, 4}, "another customer's same key is another order"


def test_a_refused_order_leaves_its_key_free() -> None:
    foreseen = foresee(CATALOGUE, [Ask(1, "k", body(tea=0)), Ask(2, "k", body(tea=1))])
    assert set(foreseen.wrong) == {1}
    assert set(foreseen.ends) == {2}


# --- foretelling: the ends -----------------------------------------------------------------


def test_enough_of_everything_is_confirmed() -> None:
    assert ends(body(tea=1, cup=2)) == [{"confirmed"}]


def test_what_was_never_received_is_not_stocked() -> None:
    assert ends(body(gone=1)) == [{"not_stocked"}]


def test_more_than_was_ever_received_is_out_of_stock() -> None:
    assert ends(body(rare=4)) == [{"out_of_stock"}]


def test_an_impossible_order_takes_nothing_from_others() -> None:
    assert ends(body(rare=4), body(rare=3)) == [{"out_of_stock"}, {"confirmed"}]


def test_contended_stock_goes_to_the_first_to_come() -> None:
    either = {"confirmed", "out_of_stock"}
    assert ends(body(rare=2), body(rare=2)) == [either, either]


def test_not_stocked_and_scarce_may_be_refused_for_either() -> None:
    scarce = body(rare=2)
    assert ends(body(gone=1, rare=1), scarce, scarce)[0] == {"not_stocked", "out_of_stock"}


def test_accounts_say_no_after_the_stock_did() -> None:
    assert ends(body("bob", tea=1), body("nobody", tea=1)) == [
        {"card_declined"},
        {"unknown_account"},
    ]
    assert ends(body("bob", rare=2), body(rare=2))[0] == {"card_declined", "out_of_stock"}


def test_money_that_runs_out_goes_to_the_first_to_come() -> None:
    either = {"confirmed", "insufficient_funds"}
    assert ends(body("cid", tea=2), body("cid", tea=2)) == [either, either]
    assert ends(body("cid", tea=4)) == [{"insufficient_funds"}]


def bounds(foreseen: Foreseen) -> dict[str, str]:
    return {end: str(b) for end, b in foreseen.bounds.items() if b != Bounds(0, 0)}


def test_bounds_say_how_many_must_be_refused() -> None:
    five = [body(rare=1)] * 5  # 3 were received
    assert bounds(foresee(CATALOGUE, asks(*five))) == {"confirmed": "0..3", "out_of_stock": "2..5"}
    four = [body("cid", tea=1)] * 4  # 1000 paid in, 300 each
    assert bounds(foresee(CATALOGUE, asks(*four))) == {
        "confirmed": "0..3",
        "insufficient_funds": "1..4",
    }


@given(st.lists(st.tuples(st.sampled_from(["ann", "bob", "cid", "nobody"]),
                          st.dictionaries(st.sampled_from(["tea", "rare", "gone"]),
                                          st.integers(1, 4), min_size=1)), max_size=12),
       st.randoms(use_true_random=False))  # fmt: skip
def test_any_order_of_arrival_ends_within_the_bounds(
    wishes: list[tuple[str, dict[str, int]]], dice: random.Random
) -> None:
    orders = asks(*(body(customer, **pieces) for customer, pieces in wishes))
    foreseen = foresee(CATALOGUE, orders)
    shelf, money = dict(CATALOGUE.received), dict(CATALOGUE.deposited)
    counted = dict.fromkeys(foreseen.bounds, 0)
    dice.shuffle(orders)
    for ask in orders:
        end = settle(ask.body, shelf, money)
        assert end in foreseen.ends[ask.number]
        counted[end] += 1
    for end, count in counted.items():
        assert count in foreseen.bounds[end], end


def settle(order: dict[str, Any], shelf: dict[str, int], money: dict[tuple[str, str], int]) -> str:
    """One order after the other, the plainest shop there is."""
    wanted = {line["sku"]: line["quantity"] for line in order["lines"]}
    for sku, quantity in wanted.items():
        if sku not in shelf:
            return "not_stocked"
        if shelf[sku] < quantity:
            return "out_of_stock"
    account = (order["customer"], order["currency"])
    if account not in money:
        return "unknown_account"
    if account[0] == "bob":
        return "card_declined"
    total = sum(CATALOGUE.price_list[sku].price * n for sku, n in wanted.items())
    if money[account] < total:
        return "insufficient_funds"
    money[account] -= total
    for sku, quantity in wanted.items():
        shelf[sku] -= quantity
    return "confirmed"


# --- the history and its facts -------------------------------------------------------------

ID = UUID(int=1)


def asked(line: int, key: str, **pieces: int) -> Asked:
    return Asked(run=1, line=line, key=key, body=body(**pieces))


def answered(line: int) -> Answered:
    return Answered(run=1, line=line, status=202, body={"order_id": str(ID), "total": 300})


def refused(line: int, status: int) -> Refused:
    return Refused(run=1, line=line, status=status, body={"error": "invalid_order"})


def test_an_answer_makes_an_order_as_it_was_asked() -> None:
    facts = facts_of(CATALOGUE, [asked(1, "k", tea=1), answered(1)])
    assert facts.accepted == {ID: Accepted(ID, "ann", "k", "EUR", (Line("tea", 1),), 300)}
    assert (facts.refused, facts.unknown) == (frozenset(), frozenset())
    assert facts.received["tea"] == 1000
    assert facts.deposited["ann", "EUR"] == 100_000


def test_an_order_that_was_only_ever_refused_must_not_be_there() -> None:
    assert facts_of(CATALOGUE, [asked(1, "k", tea=0), refused(1, 422)]).refused == {("ann", "k")}


def test_a_refusal_then_a_corrected_order_under_the_same_key() -> None:
    history = [asked(1, "k", tea=0), refused(1, 422), asked(2, "k", tea=1), answered(2)]
    facts = facts_of(CATALOGUE, history)
    assert set(facts.accepted) == {ID}
    assert facts.refused == frozenset()


def test_no_answer_is_unknown_until_there_is_one() -> None:
    cut_off = [asked(1, "k", tea=1), Unknown(run=1, line=1, why="cut off")]
    assert facts_of(CATALOGUE, cut_off).unknown == {("ann", "k")}
    assert facts_of(CATALOGUE, [*cut_off, answered(1)]).unknown == frozenset()


def test_a_conflict_refuses_the_body_and_not_the_key() -> None:
    cut_off = [asked(1, "k", tea=1), Unknown(run=1, line=1, why="cut off")]
    facts = facts_of(CATALOGUE, [*cut_off, asked(2, "k", tea=2), refused(2, 409)])
    assert facts.refused == frozenset()
    assert facts.unknown == {("ann", "k")}


def test_a_history_is_whole_when_threads_write_at_once(tmp_path: Path) -> None:
    """A text file of Python's alone mixes up what threads write at once."""
    path = tmp_path / "history.jsonl"
    with closing(History(path)) as history, ThreadPoolExecutor(4) as pool:

        def write(who: str) -> None:
            for _ in range(2000):
                history.record(Fault(what="x" * 200, target=who, healed=False))

        for _ in pool.map(write, "abcd"):
            pass
    assert len(list(read_history(path))) == len(history.events) == 8000


def test_a_history_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    events: list[Event] = [
        asked(1, "k", tea=1),
        Unknown(run=1, line=1, why="cut off"),
        answered(1),
        refused(2, 422),
        Fault(what="SIGKILL", target="payment", healed=False),
    ]
    path = tmp_path / "history.jsonl"
    with closing(History(path)) as history:
        for event in events:
            history.record(event)
    assert list(read_history(path)) == events
    with path.open("a") as file:
        file.write('{"kind":"Ans')  # as a crash leaves it
    assert list(read_history(path)) == events
