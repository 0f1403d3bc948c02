"""`saga` against both APIs in memory: what it prints, and its exit codes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from typer.testing import CliRunner

from common.http.access import Role
from common.messages.contracts import FIRST_ID, AccountRow, StockRow
from common.messages.envelope import Outcome, saga_id_for
from orchestrator.cli import app, client, dead_letters, orders, sagas
from orchestrator.engine.definition import COMPENSATING, FORWARD
from orchestrator.engine.inputs import ReplyArrived, TimedOut
from orchestrator.engine.instance import State
from orchestrator.operator.audit import Comparison, Discrepancy, Drift
from orchestrator.operator.auditor import AuditPage, Window
from orchestrator.operator.doctor import Finding
from orchestrator.operator.queries import SagaFilter, StuckFilter
from orchestrator.runtime.actions import ActionFilter, OperatorAction, RecordedAction
from tests.support.apis import NOON, TOKENS, InMemory, Sagas, Shop
from tests.support.letters import envelope

DOOR, OPERATOR = "http://door", "http://operator"
NOBODY = "http://127.0.0.1:9"  # the discard port: nobody listens
ORDER = ("order", "--customer", "ada", "--line", "tea=2", "--key", "k-1")
ONE, TWO = UUID("aaaa0000-0000-5000-8000-000000000001"), UUID("aaab" + "0" * 28)

RESERVED = ReplyArrived(
    "reserve_stock", FORWARD, Outcome.DONE, "StockReserved", process="inventory-3"
)
DECLINED = ReplyArrived(
    "charge_payment", FORWARD, Outcome.REFUSED, "CardDeclined", "card_declined", process="payment-2"
)
RELEASED = ReplyArrived("reserve_stock", COMPENSATING, Outcome.DONE, "StockReleased")
REJECTED = ReplyArrived("create_order", COMPENSATING, Outcome.DONE, "OrderRejected")
STORY = (RESERVED, DECLINED, RELEASED, REJECTED)


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


Saga = Callable[..., Ran]


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def house() -> Sagas:
    return Sagas()


@pytest.fixture
def saga(shop: Shop, house: Sagas, monkeypatch: pytest.MonkeyPatch) -> Saga:
    """saga("list", "--stuck"), with both URLs set."""
    apps = {DOOR: InMemory(shop.app()), OPERATOR: InMemory(house.app())}

    def connect(url: str) -> httpx.Client:
        if url not in apps:
            return httpx.Client(base_url=url)
        return httpx.Client(base_url=url, transport=apps[url])

    monkeypatch.setattr(client, "connect", connect)
    for module in (client, dead_letters, orders, sagas):
        monkeypatch.setattr(module, "time", NoTime())
    environment = {
        "SAGAPROOF_DOOR_URL": DOOR,
        "SAGAPROOF_DOOR_KEY": TOKENS[Role.CUSTOMER],
        "SAGAPROOF_OPERATOR_URL": OPERATOR,
        "SAGAPROOF_OPERATOR_TOKEN": TOKENS[Role.OPERATOR],
    }

    def run(*words: str, **others: str | None) -> Ran:
        result = CliRunner(env={**environment, **others}).invoke(app, words, catch_exceptions=False)
        return Ran(result.exit_code, result.stdout, result.stderr)

    return run


class NoTime:
    """Sleeping is the only thing that takes time, and takes none."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


# --- where the APIs are --------------------------------------------------------------------


def test_without_urls_the_error_says_what_to_type(saga: Saga) -> None:
    for words, name in ((("list",), "OPERATOR"), (ORDER, "DOOR")):
        ran = saga(*words, **{f"SAGAPROOF_{name}_URL": None})
        assert ran.code == 3
        assert f"SAGAPROOF_{name}_URL is not set" in ran.err
        assert 'eval "$(.venv/bin/chaos env)"' in ran.err


def test_nobody_there_is_told_from_a_no(saga: Saga) -> None:
    ran = saga("doctor", "--operator", NOBODY)
    assert ran.code == 3
    assert f"no answer from the operator at {NOBODY}" in ran.err
    assert saga("show", str(ONE)).code == 1


def test_what_does_not_open_an_api_is_told_and_what_to_type(saga: Saga) -> None:
    for words, name, option in (
        (("list",), "OPERATOR_TOKEN", "--token"),
        (ORDER, "DOOR_KEY", "--door-key"),
    ):
        variable = f"SAGAPROOF_{name}"
        for secret, what in (
            (None, "no token was given"),
            ("a-wrong-one", f"{variable} is not valid"),
        ):
            ran = saga(*words, **{variable: secret})
            assert ran.code == 1
            assert what in ran.err
            assert f"set {variable}, or give it: saga {option}" in ran.err
            assert 'eval "$(.venv/bin/chaos env)"' in ran.err
        assert saga(option, "a-wrong-one", *words).code == 1
    ran = saga("--token", TOKENS[Role.VIEWER], "list", SAGAPROOF_OPERATOR_TOKEN=None)
    assert ran.code == 0


def test_errors_are_json_too_where_json_is_asked_for(saga: Saga) -> None:
    ran = saga("show", str(ONE), "--json")
    assert ran.code == 1
    assert ran.out == ""
    assert json.loads(ran.err)["remedy"].startswith(f"no saga {ONE}")


def test_something_else_that_listens_there_is_told(
    saga: Saga, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = httpx.MockTransport(lambda _: httpx.Response(200, text="<html>"))
    connect = lambda url: httpx.Client(base_url=url, transport=page)  # noqa: E731
    monkeypatch.setattr(client, "connect", connect)
    ran = saga("list")
    assert ran.code == 3
    assert "no JSON" in ran.err


@pytest.mark.parametrize(
    "command",
    [
        "",
        "order",
        "orders",
        "orders place",
        "list",
        "show",
        "actions",
        "stuck",
        "retry",
        "compensate",
        "resolve",
        "reconcile",
    ],
)
def test_help_has_examples_and_exit_codes(saga: Saga, command: str) -> None:
    ran = saga(*command.split(), "--help")
    assert ran.code == 0
    assert ("Exit codes:" in ran.out) == (command == "")
    if command not in ("", "orders"):
        assert f"  saga {command} " in ran.out


# --- one order -----------------------------------------------------------------------------


def test_an_order_is_placed_and_its_end_is_shown(saga: Saga, shop: Shop) -> None:
    ran = saga(*ORDER)
    assert ran.code == 0
    assert ran.out == "CONFIRMED after 0.3s\n"
    assert f"{saga_id_for('ada', 'k-1')} placed, 7.00 EUR" in ran.err
    again = saga(*ORDER, "--json")
    assert again.document["status"] == "CONFIRMED"
    assert len(shop.placed) == 1


def test_a_rejected_order_is_a_no_and_names_where_to_look(saga: Saga) -> None:
    ran = saga("order", "--customer", "broke", "--line", "tea=2", "--key", "k")
    assert ran.code == 1
    assert "REJECTED: insufficient funds" in ran.out
    assert f"saga show {saga_id_for('broke', 'k')}" in ran.out


def test_an_order_that_does_not_end_is_not_waited_for_for_ever(saga: Saga) -> None:
    ran = saga("order", "--customer", "slow", "--line", "tea=2", "--wait", "2")
    assert ran.code == 4
    assert "still PENDING" in ran.out


def test_what_the_door_refuses_is_shown_with_its_remedy(saga: Saga) -> None:
    ran = saga(*ORDER, "--currency", "XTS")
    assert ran.code == 1
    assert "currency: invalid_order" in ran.err
    assert "nothing is sold in XTS" in ran.err


def test_a_line_that_is_none_is_a_wrong_command_line(saga: Saga, shop: Shop) -> None:
    ran = saga("order", "--customer", "ada", "--line", "tea")
    assert ran.code == 2
    assert "write SKU=QUANTITY" in ran.err
    assert shop.requests == 0


def test_an_order_is_asked_for_again_with_the_same_key_while_the_door_is_away(
    saga: Saga, shop: Shop
) -> None:
    shop.outages = 3
    assert saga(*ORDER).code == 0
    assert (shop.requests, len(shop.placed)) == (4, 1)


def test_an_order_without_an_answer_says_how_to_repeat_it(saga: Saga, shop: Shop) -> None:
    shop.outages = 10_000
    ran = saga("order", "--customer", "ada", "--line", "tea=2")
    assert ran.code == 3
    assert "may or may not have been placed: repeat with --key " in ran.err


# --- orders from a file --------------------------------------------------------------------


def order(key: str, customer: str = "ada", **changes: object) -> str:
    lines = [{"sku": "tea", "quantity": 2}]
    given = {"idempotency_key": key, "customer": customer, "currency": "EUR", "lines": lines}
    return json.dumps({**given, **changes})


def write(path: Path, *lines: str) -> str:
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def test_a_file_is_placed_and_what_became_of_each_line_is_counted(
    saga: Saga, tmp_path: Path
) -> None:
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


def test_a_csv_file_without_its_columns_is_refused_whole(saga: Saga, tmp_path: Path) -> None:
    ran = saga("orders", "place", write(tmp_path / "orders.csv", "a,b", "1,2"))
    assert ran.code == 1
    assert "must name the columns idempotency_key, customer, currency, lines" in ran.err


def test_a_request_that_is_too_large_is_halved_until_one_line_is(
    saga: Saga, shop: Shop, tmp_path: Path
) -> None:
    many = [{"sku": f"tea-{n:03}", "quantity": 1} for n in range(100)]
    small = [order(f"k-{n}") for n in range(60)]
    file = write(tmp_path / "orders.jsonl", *small[:30], order("k-x", lines=many), *small[30:])
    tally = saga("orders", "place", file, "--json").document
    assert tally["orders"] == 60
    ((number, what),) = ((line["line"], line["what"]) for line in tally["bad"])
    assert number == 31
    assert what.startswith("body: too large")


def test_a_door_that_is_away_for_a_while_costs_no_line(
    saga: Saga, shop: Shop, tmp_path: Path
) -> None:
    file = write(tmp_path / "orders.jsonl", *(order(f"k-{n}") for n in range(300)))
    shop.outages = 4
    tally = saga("orders", "place", file, "--json").document
    assert tally["ends"] == {"confirmed": 300}


def test_a_door_that_stays_away_names_the_lines_without_an_answer(
    saga: Saga, shop: Shop, tmp_path: Path
) -> None:
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


# --- sagas ---------------------------------------------------------------------------------


def test_the_story_of_a_compensated_saga(saga: Saga, house: Sagas) -> None:
    house.begin(ONE, *STORY)
    ran = saga("show", str(ONE))
    assert ran.code == 0
    head, about, _, columns, *story, _, steps, end = ran.out.splitlines()
    assert columns.split(maxsplit=2) == ["seconds", "process", "what happened"]
    assert head == f"saga {ONE} (order v2)"
    assert about == "ada orders 2 x tea for 7.00 EUR"
    assert [line.split(maxsplit=2) for line in story] == [
        ["+0.000", "orchestrator-2", "the saga begins; create order was done at the door"],
        ["+0.000", "orchestrator-2", "asks inventory to reserve stock"],
        ["+0.200", "inventory-3", "inventory: stock reserved"],
        ["+0.200", "orchestrator-2", "asks payment to charge payment"],
        ["+0.400", "payment-2", "payment refuses: card declined"],
        ["+0.400", "orchestrator-2", "compensates, card declined: what was done is undone,"
         " the last step first"],
        ["+0.400", "orchestrator-2", "asks inventory to undo reserve stock: release stock"],
        ["+0.700", "orchestrator-2", "inventory: stock released"],
        ["+0.700", "orchestrator-2", "asks order to undo create order: reject order"],
        ["+0.900", "orchestrator-2", "order: order rejected"],
        ["+0.900", "orchestrator-2", "COMPENSATED: all that was done is undone (card declined)"],
    ]  # fmt: skip
    assert "charge payment: refused, dispatch stock: not sent" in steps
    assert end == "COMPENSATED after 0.9s, card declined"


def test_the_beginning_of_an_id_is_enough_if_it_is_the_only_one(saga: Saga, house: Sagas) -> None:
    house.begin(ONE, *STORY)
    house.begin(TWO)
    assert f"saga {ONE}" in saga("show", "aaaa").out
    ambiguous = saga("show", "aaa")
    assert ambiguous.code == 1
    assert "at least the first 4" in ambiguous.err
    house.begin(UUID(int=ONE.int + 1))
    both = saga("show", "aaaa0000-0000")
    assert both.code == 1
    assert str(ONE) in both.err


def test_show_as_json_holds_the_saga_and_its_timeline(saga: Saga, house: Sagas) -> None:
    house.begin(ONE, *STORY)
    document = saga("show", str(ONE), "--json").document
    assert document["saga"]["state"] == "COMPENSATED"
    assert document["saga"]["pivot"] == "dispatch_stock"
    assert [e["entry"] for e in document["timeline"]][:3] == ["started", "sent", "done"]
    assert document["timeline"][2]["answered_by"] == "inventory-3"


def test_follow_prints_what_happens_until_the_end(
    saga: Saga, house: Sagas, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.begin(ONE)
    later = iter(STORY)
    sleep = "orchestrator.cli.sagas.time.sleep"
    monkeypatch.setattr(sleep, lambda _: house.go_on(ONE, next(later)))
    ran = saga("show", str(ONE), "--follow", "--json")
    entries = [json.loads(line)["entry"] for line in ran.out.splitlines()]
    assert entries[0] == "started"
    assert entries[-1] == "compensated"
    assert len(entries) == 11


def test_follow_waits_for_a_saga_that_has_not_begun(
    saga: Saga, house: Sagas, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = itertools.count()

    def look(_: float) -> None:
        if next(looks) == 1:
            house.begin(ONE, *STORY)

    monkeypatch.setattr("orchestrator.cli.sagas.time.sleep", look)
    ran = saga("show", str(ONE), "--follow", "--json")
    assert ran.code == 0
    assert len(ran.out.splitlines()) == 11


def test_follow_waits_for_nobody_for_ever(saga: Saga, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.cli.sagas.BEGINS_WITHIN_SECONDS", 0.1)
    ran = saga("show", str(ONE), "--follow")
    assert ran.code == 1
    assert "no saga" in ran.err


def test_the_same_answer_many_times_is_one_line(saga: Saga, house: Sagas) -> None:
    house.begin(ONE, RESERVED, RESERVED, RESERVED, RESERVED, DECLINED)
    out = saga("show", str(ONE)).out
    (line,) = (line for line in out.splitlines() if "ignored" in line)
    assert line.endswith("No longer awaited: ignored (3 times)")
    assert "3 times" not in saga("show", str(ONE), "--json").out


def test_a_living_saga_says_what_it_waits_for(saga: Saga, house: Sagas) -> None:
    house.begin(ONE, RESERVED, TimedOut("charge_payment", FORWARD, 1))
    out = saga("show", str(ONE)).out
    assert "no answer from payment in time (attempt 1)" in out
    assert "waits for payment: charge payment, attempt 2, overdue for" in out


def test_an_order_whose_saga_has_not_begun_is_told_from_one_that_is_not(
    saga: Saga, shop: Shop
) -> None:
    saga("order", "--customer", "slow", "--line", "tea=1", "--key", "k", "--wait", "0")
    ran = saga("show", str(saga_id_for("slow", "k")))
    assert ran.code == 1
    assert "is PENDING, and its saga has not begun" in ran.err


def test_list_shows_short_ids_and_asks_for_what_is_wanted(saga: Saga, house: Sagas) -> None:
    house.begin(ONE, *STORY)
    house.begin(TWO, RESERVED, customer="bob")
    ran = saga(
        "list", "--state", "compensated", "--step", "charge_payment", "--older-than", "5m",
        "--customer", "bob", "--reason", "card_declined", "--stuck",
    )  # fmt: skip
    assert ran.code == 0
    (wanted,) = house.filters
    assert isinstance(wanted, SagaFilter)
    assert (wanted.state, wanted.awaits, wanted.older_than_seconds) == (
        "COMPENSATED", "charge_payment", 300.0,
    )  # fmt: skip
    assert (wanted.customer, wanted.reason, wanted.stuck) == ("bob", "card_declined", True)
    _, one, two = ran.out.splitlines()
    assert one.split()[:3] == ["aaaa0000", "COMPENSATED", "ada"]
    assert "card declined" in one
    assert two.split()[:3] == ["aaab0000", "RUNNING", "bob"]
    assert "payment: charge payment, attempt 1, overdue" in two


def test_list_pages_and_says_how_to_go_on(saga: Saga, house: Sagas) -> None:
    house.begin(ONE)
    house.begin(TWO)
    first = saga("list", "--limit", "1")
    assert f"--after {ONE}" in first.err
    assert "aaab0000" in saga("list", "--limit", "1", "--after", str(ONE)).out
    assert saga("list", "--limit", "2", "--after", str(TWO)).out == "no such saga\n"
    assert saga("list", "--older-than", "soon").code == 2
    assert saga("list", "--state", "LOST").code == 2
    assert [*map(str, sagas.State)] == [*map(str, State)]


# --- what stands still, and by hand ---------------------------------------------------------

SILENT_UNDO = (RESERVED, DECLINED, TimedOut("reserve_stock", COMPENSATING, 1, past_sla=True))


def test_stuck_says_why_what_was_tried_and_what_to_type(saga: Saga, house: Sagas) -> None:
    house.begin(TWO, RESERVED)
    assert saga("stuck").out == "nothing is stuck\n"
    house.begin(ONE, *SILENT_UNDO)
    first, last, waits, remedy = saga("stuck").out.splitlines()
    assert first.startswith("aaaa0000  COMPENSATING, started ")
    assert first.endswith(": no answer from inventory: the undo of reserve_stock")
    assert "no answer from inventory in time (attempt 1): release stock may or may not" in last
    assert "waits   for inventory: the undo of reserve stock, attempt 2, overdue for" in waits
    assert "saga retry aaaa0000 sends again at once" in remedy
    assert "saga resolve aaaa0000 reserve_stock --reason" in remedy
    (row,) = saga("stuck", "--json").document["stuck"]
    assert (row["cause"], row["saga_id"]) == ("silent", str(ONE))
    assert f"--after {ONE}" in saga("stuck", "--limit", "1").err


def test_stuck_asks_for_what_is_wanted(saga: Saga, house: Sagas) -> None:
    saga("stuck", "--step", "charge_payment", "--older-than", "2h")
    assert house.filters == [StuckFilter("charge_payment", 7200.0, 60.0)]


def test_retry_compensate_and_resolve_say_how_it_stands(saga: Saga, house: Sagas) -> None:
    house.begin(ONE, RESERVED)
    ran = saga("retry", "aaaa")
    assert (ran.code, ran.out.splitlines()[0]) == (0, "saga aaaa0000 sends again")
    ran = saga("compensate", "aaaa", "--reason", "customer called")
    assert (ran.code, ran.out.splitlines()[0]) == (0, "saga aaaa0000 compensates")
    assert "COMPENSATING; see saga show aaaa0000 --follow" in ran.out
    ran = saga("resolve", "aaaa", "charge_payment", "--reason", "refunded by hand", "--json")
    steps = {step["step"]: step["status"] for step in ran.document["steps"]}
    assert steps["charge_payment"] == "resolved"


def test_what_is_refused_by_hand_says_why_and_exits_with_no(saga: Saga, house: Sagas) -> None:
    house.begin(ONE, *STORY)
    for words, why in (
        (("retry", "aaaa"), "has ended as COMPENSATED: nothing is awaited"),
        (("compensate", "aaaa", "--reason", "why"), "has ended as COMPENSATED"),
        (("resolve", "aaaa", "create_order", "--reason", "why"), "create_order is undone: only"),
        (("resolve", "aaaa", "dispatch_stock", "--reason", "why"), "was never sent"),
    ):
        ran = saga(*words)
        assert (ran.code, ran.out) == (1, "")
        assert why in ran.err
    assert saga("retry", "bbbb").code == 1
    assert saga("compensate", "aaaa").code == 2  # a reason is asked for
    assert saga("compensate", "aaaa", "--reason", "").code == 1


def test_reconcile_takes_up_what_stands_still_or_says_what_it_would(
    saga: Saga, house: Sagas
) -> None:
    assert saga("reconcile", "--dry-run").out == "nothing is overdue or stuck\n"
    house.begin(ONE, *SILENT_UNDO)
    attempts = len(house.log[ONE])
    _, row = saga("reconcile", "--dry-run").out.splitlines()
    assert row.split()[:4] == ["aaaa0000", "COMPENSATING", "(dry", "run)"]
    assert len(house.log[ONE]) == attempts
    _, row = saga("reconcile", "--step", "reserve_stock", "--older-than", "1s").out.splitlines()
    assert row.split()[:3] == ["aaaa0000", "COMPENSATING", "retried"]
    assert house.filters[-1] == StuckFilter("reserve_stock", 1.0, 0)
    house.behind = "7 replies wait to be read"
    ran = saga("reconcile")
    assert ran.code == 1
    assert "7 replies wait to be read: deadlines are checked once" in ran.err


# --- actions -------------------------------------------------------------------------------


def test_actions_say_who_did_what_and_what_came_of_it(saga: Saga, house: Sagas) -> None:
    house.begin(ONE)
    assert saga("actions").out == "no such action\n"
    called = OperatorAction("ada", "compensate", "customer called", ONE)
    freed = OperatorAction(
        "bob", "redrive", "deployed the fix", about="letter 7", detail="12 redriven"
    )
    house.action_rows = [
        RecordedAction(number, NOON, action, "operator")
        for number, action in enumerate((called, called.refused("too late"), freed), start=1)
    ]
    _, *rows = (row.split(maxsplit=4) for row in saga("actions").out.splitlines())
    assert [row[2:4] for row in rows] == [
        ["bob", "redrive"],
        ["ada", "compensate"],
        ["ada", "compensate"],
    ]
    assert [" ".join(row[4].split()) for row in rows] == [
        "letter 7 done deployed the fix: 12 redriven",
        "aaaa0000 refused customer called: too late",
        "aaaa0000 done customer called",
    ]
    ran = saga("actions", "--limit", "1")
    assert "--after 3" in ran.err
    found = saga("actions", "--after", "3", "--json").document
    assert [act["id"] for act in found["actions"]] == [2, 1]


def test_actions_are_asked_for_by_saga_actor_action_and_outcome(saga: Saga, house: Sagas) -> None:
    house.begin(ONE)
    saga("actions", "aaaa", "--actor", "ada", "--action", "retry", "--outcome", "refused")
    assert house.filters == [ActionFilter(ONE, "ada", "retry", "refused")]
    assert saga("actions", "bbbb").code == 1


# --- services ------------------------------------------------------------------------------


def test_stock_and_accounts_are_paged(saga: Saga, house: Sagas) -> None:
    house.stock_rows = [
        StockRow(sku=sku, on_hand=7, held=2, dispatched=1, received=10) for sku in ("cup", "tea")
    ]
    house.account_rows = [AccountRow(customer="a/b", currency="EUR", card="good", balance=1234)]
    stock = saga("stock", "--limit", "1")
    assert stock.out.splitlines()[1].split() == ["7", "2", "1", "10", "cup"]
    assert "--after cup" in stock.err
    assert saga("stock", "--after", "cup", "--json").document["stock"][0]["sku"] == "tea"
    accounts = saga("accounts")
    assert accounts.out.splitlines()[1].split() == ["12.34", "EUR", "good", "a/b"]
    assert saga("accounts", "--after", "a/b/EUR", "--json").document["accounts"] == []


def test_a_doctor_with_an_error_exits_with_one(saga: Saga, house: Sagas) -> None:
    stuck = Finding("warning", "sagas", "one is stuck", "look")
    house.status = replace(house.status, processes=None, queues=None, problems=[stuck])
    warned = saga("doctor")
    assert warned.code == 0
    assert "warning: sagas: one is stuck\n  remedy: look" in warned.out
    house.status = replace(house.status, processes=[], problems=[])
    ran = saga("doctor")
    assert ran.code == 1
    assert "error: service payment: no process of it answers" in ran.out
    assert "remedy: start one: python -m payment_svc" in ran.out
    assert saga("doctor", "--json").document["ok"] is False


# --- gates ---------------------------------------------------------------------------------


def test_what_waits_is_listed_decided_and_told(saga: Saga, house: Sagas) -> None:
    assert saga("waiting").out == "nothing waits for a decision\n"
    house.asked = {"approve_order": "total 700 EUR reaches 500"}
    house.begin(ONE, RESERVED)
    house.begin(TWO, RESERVED, customer="bob")
    table = saga("waiting", "--customer", "ada").out.splitlines()
    assert table[0].split() == [
        "saga", "waits", "expires", "in", "total", "customer", "holds", "why",
    ]  # fmt: skip
    assert "7.00 EUR" in table[1]
    assert "2 x tea" in table[1]
    assert "total 700 EUR reaches 500" in table[1]
    assert len(table) == 2
    assert f"--after {ONE}" in saga("waiting", "--limit", "1").err
    assert saga("waiting", "--json").document["waiting"][1]["customer"] == "bob"
    assert "a person: approve order, expires in" in saga("list").out

    ran = saga("approve", str(ONE), "--reason", "known to us")
    assert (ran.code, ran.out.splitlines()[0]) == (0, "saga aaaa0000 approved: it goes on")
    again = saga("reject", str(ONE), "--reason", "no")
    assert again.code == 1
    assert "already_decided" in again.err
    assert "approved by operator-ann: known to us" in again.err
    assert saga("reject", str(TWO), "--reason", "stolen", "--json").document["reason"] == "rejected"
    assert saga("approve", str(ONE)).code == 2  # a reason is asked for
    assert "approve order: rejected by operator-ann: stolen" in saga("show", str(TWO)).out


def test_the_watch_list(saga: Saga) -> None:
    assert saga("watch", "list").out == "no customer is watched\n"
    assert saga("watch", "add", "bob", "--reason", "chargebacks").out == (
        "bob is watched: chargebacks\n"
    )
    assert saga("watch", "list").out.splitlines()[1].split()[0] == "bob"
    assert saga("watch", "remove", "bob", "--reason", "cleared").code == 0
    gone = saga("watch", "remove", "bob", "--reason", "cleared")
    assert (gone.code, "not_watched" in gone.err) == (1, True)
    assert saga("watch", "list", "--json").document == {"customers": [], "next": None}


# --- dead letters --------------------------------------------------------------------------

PAYMENT, INVENTORY = "payment.commands", "inventory.commands"


@pytest.fixture
def buried(house: Sagas) -> Sagas:
    for number in range(1, 6):
        house.bury(PAYMENT, envelope(number), "unknown_type")
    house.bury(INVENTORY, b"tea, please", "not_json")
    return house


def test_dead_letters_are_grouped_and_listed(saga: Saga, buried: Sagas) -> None:
    grouped = saga("dead-letters", "list")
    assert grouped.code == 0
    rows = [line.split() for line in grouped.out.splitlines()]
    assert [(row[0], *row[-2:]) for row in rows[1:]] == [
        ("1", INVENTORY, "not_json"), ("5", PAYMENT, "unknown_type"),
    ]  # fmt: skip
    assert saga("dead-letters", "list", "--json").document["letters"] == 6
    each = saga("dead-letters", "list", "--queue", INVENTORY, "--each")
    assert "11 bytes" in each.out
    page = saga("dead-letters", "list", "--each", "--limit", "4", "--json").document
    assert len(page["letters"]) == 4
    more = saga("dead-letters", "list", "--each", "--after", page["next"], "--json").document
    assert len(more["letters"]) == 2
    assert saga("dead-letters", "list", "--state", "redriven").out == "no redriven dead letter\n"


def test_a_dead_letter_is_shown_with_all_it_said(saga: Saga, buried: Sagas) -> None:
    ident = buried.bury(PAYMENT, envelope(9), "exhausted")
    shown = saga("dead-letters", "show", str(ident)[:8])
    assert shown.code == 0
    assert f"dead letter {ident}, from payment.commands" in shown.out
    assert "exhausted: some detail" in shown.out
    assert f"charge payment of {UUID(int=9)}" in shown.out
    assert '"type": "ChargePayment"' in shown.out
    assert saga("dead-letters", "show", str(ident), "--json").document["body"][0]["step"]
    assert saga("dead-letters", "show", "ffff").code == 1


def test_redriving_in_bulk_goes_at_the_rate_that_is_asked_for(
    saga: Saga, buried: Sagas, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = NoTime()
    monkeypatch.setattr(dead_letters, "time", time)
    dry = saga("dead-letters", "redrive", "--queue", PAYMENT, "--dry-run", "--rate", "2")
    assert (dry.code, dry.out) == (0, "5 would be redriven\n")
    assert [n for n, dry_run in buried.settled if dry_run] == [2, 2, 1]
    assert time.now == 0
    ran = saga("dead-letters", "redrive", "--queue", PAYMENT, "--rate", "2", "--json")
    assert ran.code == 0
    assert ran.document["done"] == 5
    assert [n for n, dry_run in buried.settled if not dry_run] == [2, 2, 1]
    assert time.now == 2.0  # four letters at two a second, and the last at once
    again = saga("dead-letters", "redrive", "--queue", PAYMENT)
    assert (again.code, again.out) == (0, "0 redriven\n")


def test_what_is_refused_stays_and_says_why(saga: Saga, buried: Sagas) -> None:
    ran = saga("dead-letters", "redrive", "--all")
    assert ran.code == 1
    assert "5 redriven" in ran.out
    assert "1 refused and stay open:" in ran.out
    assert "it can never be handled: discard it" in ran.out
    gone = saga("dead-letters", "discard", "--reason", "not_json", "--why", "junk")
    assert (gone.code, gone.out) == (0, "1 discarded\n")
    discarded = saga("dead-letters", "list", "--state", "discarded", "--each", "--json").document
    (letter,) = discarded["letters"]
    assert (letter["settled_by"], letter["settled_why"]) == ("operator-ann", "junk")


def test_a_letter_that_is_redriven_twice_leaves_once(saga: Saga, buried: Sagas) -> None:
    ident = str(buried.bury(PAYMENT, envelope(9), "exhausted"))
    assert saga("dead-letters", "redrive", ident[:8]).out == "1 redriven\n"
    again = saga("dead-letters", "redrive", ident)
    assert again.code == 0
    assert "1 were settled before and not again" in again.out


def test_which_letters_must_be_said_and_why_they_are_discarded(saga: Saga, buried: Sagas) -> None:
    assert saga("dead-letters", "redrive").code == 2
    assert saga("dead-letters", "redrive", "5c1e", "--all").code == 2
    assert saga("dead-letters", "discard", "--all").code == 2
    assert saga("dead-letters", "discard", "--all", "--why", " ").code == 1
    viewer = TOKENS[Role.VIEWER]
    ran = saga("dead-letters", "redrive", "--all", SAGAPROOF_OPERATOR_TOKEN=viewer)
    assert ran.code == 1
    assert {w.stored.state for w in buried.kept.values()} == {"open"}


# --- audit ---------------------------------------------------------------------------------


def pages(*findings: Discrepancy) -> list[AuditPage]:
    """Two, the second with these."""
    return [
        AuditPage(Comparison(1000, 2, ()), UUID("8" + "0" * 31)),
        AuditPage(Comparison(500, 0, findings), None),
    ]


def test_an_audit_asks_page_by_page_and_finds_nothing(saga: Saga, house: Sagas) -> None:
    house.audit_pages = pages()
    ran = saga("audit", "--since", "1d", "--until", "2026-01-31T12:00+01:00", "--grace", "10s")
    assert ran.code == 0
    assert (
        ran.out.strip()
        == "1,500 sagas compared; 2 under way or of another kind were left out: 0 in drift"
    )
    first, second = (w for w in house.filters if isinstance(w, Window))
    assert (first.after, second.after) == (FIRST_ID, UUID("8" + "0" * 31))
    assert first.since is not None
    assert abs(datetime.now(UTC) - first.since - timedelta(days=1)) < timedelta(seconds=30)
    assert first.until == datetime(2026, 1, 31, 11, tzinfo=UTC)
    assert (first.grace_seconds, second.since) == (10, first.since)


def test_drift_is_named_with_a_remedy_and_an_exit_code(saga: Saga, house: Sagas) -> None:
    uncharged = Discrepancy(Drift.MISSING_REFUND, ONE, "charge_payment", "CHARGED stands")
    house.audit_pages = pages(uncharged)
    ran = saga("audit")
    assert ran.code == 1
    assert f"missing refund  {ONE}  charge payment  CHARGED stands" in ran.out
    assert "missing refund: see saga show; the customer is owed the money" in ran.out
    house.filters.clear()
    document = saga("audit", "--json").document
    assert (document["compared"], document["skipped"]) == (1500, 2)
    assert document["drift"][0]["drift"] == "missing_refund"


def test_one_lost_answer_does_not_end_an_audit_and_nobody_does(saga: Saga, house: Sagas) -> None:
    house.audit_pages = pages()
    house.outages = 3
    assert saga("audit").code == 0
    house.outages = 1000
    assert saga("audit").code == 3
    assert saga("audit", "--since", "yesterday").code == 2
