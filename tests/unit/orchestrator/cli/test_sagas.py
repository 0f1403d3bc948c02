"""`saga list` and `saga show`."""

from __future__ import annotations

import itertools
import json
from uuid import UUID

import pytest

from common.messages.envelope import saga_id_for
from orchestrator.engine.definition import FORWARD
from orchestrator.engine.inputs import TimedOut
from orchestrator.operator.queries import SagaFilter
from tests.support.apis import FakeBackend, Shop
from tests.unit.orchestrator.cli.running import DECLINED, ONE, RESERVED, STORY, TWO, Saga


def test_show_prints_the_timeline_of_a_compensated_saga(saga: Saga, backend: FakeBackend) -> None:
    backend.begin(ONE, *STORY)
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


def test_the_first_digits_of_an_id_are_enough_if_unique(saga: Saga, backend: FakeBackend) -> None:
    backend.begin(ONE, *STORY)
    backend.begin(TWO)
    assert f"saga {ONE}" in saga("show", "aaaa").out
    ambiguous = saga("show", "aaa")
    assert ambiguous.code == 1
    assert "at least the first 4" in ambiguous.err
    backend.begin(UUID(int=ONE.int + 1))
    both = saga("show", "aaaa0000-0000")
    assert both.code == 1
    assert str(ONE) in both.err


def test_show_as_json_holds_the_saga_and_its_timeline(saga: Saga, backend: FakeBackend) -> None:
    backend.begin(ONE, *STORY)
    document = saga("show", str(ONE), "--json").document
    assert document["saga"]["state"] == "COMPENSATED"
    assert document["saga"]["pivot"] == "dispatch_stock"
    assert [e["entry"] for e in document["timeline"]][:3] == ["started", "sent", "done"]
    assert document["timeline"][2]["answered_by"] == "inventory-3"


def test_follow_prints_what_happens_until_the_end(
    saga: Saga, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.begin(ONE)
    later = iter(STORY)
    sleep = "orchestrator.cli.sagas.time.sleep"
    monkeypatch.setattr(sleep, lambda _: backend.go_on(ONE, next(later)))
    ran = saga("show", str(ONE), "--follow", "--json")
    entries = [json.loads(line)["entry"] for line in ran.out.splitlines()]
    assert entries[0] == "started"
    assert entries[-1] == "compensated"
    assert len(entries) == 11


def test_follow_waits_for_a_saga_that_has_not_begun(
    saga: Saga, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = itertools.count()

    def look(_: float) -> None:
        if next(looks) == 1:
            backend.begin(ONE, *STORY)

    monkeypatch.setattr("orchestrator.cli.sagas.time.sleep", look)
    ran = saga("show", str(ONE), "--follow", "--json")
    assert ran.code == 0
    assert len(ran.out.splitlines()) == 11


def test_follow_gives_up_on_a_saga_that_never_begins(
    saga: Saga, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.cli.sagas.BEGINS_WITHIN_SECONDS", 0.1)
    ran = saga("show", str(ONE), "--follow")
    assert ran.code == 1
    assert "no saga" in ran.err


def test_an_entry_that_repeats_is_one_line(saga: Saga, backend: FakeBackend) -> None:
    backend.begin(ONE, RESERVED, RESERVED, RESERVED, RESERVED, DECLINED)
    out = saga("show", str(ONE)).out
    (line,) = (line for line in out.splitlines() if "ignored" in line)
    assert line.endswith("No longer awaited: ignored (3 times)")
    assert "3 times" not in saga("show", str(ONE), "--json").out


def test_a_living_saga_says_what_it_waits_for(saga: Saga, backend: FakeBackend) -> None:
    backend.begin(ONE, RESERVED, TimedOut("charge_payment", FORWARD, 1))
    out = saga("show", str(ONE)).out
    assert "no answer from payment in time (attempt 1)" in out
    assert "waits for payment: charge payment, attempt 2, overdue for" in out


def test_show_says_if_an_order_exists_whose_saga_has_not_begun(saga: Saga, shop: Shop) -> None:
    saga("order", "--customer", "slow", "--line", "tea=1", "--key", "k", "--wait", "0")
    ran = saga("show", str(saga_id_for("slow", "k")))
    assert ran.code == 1
    assert "is PENDING, and its saga has not begun" in ran.err


def test_list_prints_short_ids_and_passes_every_filter(saga: Saga, backend: FakeBackend) -> None:
    backend.begin(ONE, *STORY)
    backend.begin(TWO, RESERVED, customer="bob")
    ran = saga(
        "list", "--state", "compensated", "--step", "charge_payment", "--older-than", "5m",
        "--customer", "bob", "--reason", "card_declined", "--stuck",
    )  # fmt: skip
    assert ran.code == 0
    (wanted,) = backend.filters
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


def test_list_prints_how_to_get_the_next_page(saga: Saga, backend: FakeBackend) -> None:
    backend.begin(ONE)
    backend.begin(TWO)
    first = saga("list", "--limit", "1")
    assert f"--after {ONE}" in first.err
    assert "aaab0000" in saga("list", "--limit", "1", "--after", str(ONE)).out
    assert saga("list", "--limit", "2", "--after", str(TWO)).out == "no such saga\n"
    assert saga("list", "--older-than", "soon").code == 2
    assert saga("list", "--state", "LOST").code == 2
