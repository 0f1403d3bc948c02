"""`saga dead-letters`."""

from __future__ import annotations

from uuid import UUID

import pytest

from common.http.access import Role
from orchestrator.cli import dead_letters
from tests.support.apis import TOKENS, FakeBackend
from tests.support.letters import envelope
from tests.unit.orchestrator.cli.running import NoTime, Saga

PAYMENT, INVENTORY = "payment.commands", "inventory.commands"


@pytest.fixture
def buried(backend: FakeBackend) -> FakeBackend:
    for number in range(1, 6):
        backend.bury(PAYMENT, envelope(number), "unknown_type")
    backend.bury(INVENTORY, b"tea, please", "not_json")
    return backend


def test_dead_letters_are_grouped_and_listed(saga: Saga, buried: FakeBackend) -> None:
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


def test_a_dead_letter_is_shown_with_its_message(saga: Saga, buried: FakeBackend) -> None:
    ident = buried.bury(PAYMENT, envelope(9), "exhausted")
    shown = saga("dead-letters", "show", str(ident)[:8])
    assert shown.code == 0
    assert f"dead letter {ident}, from payment.commands" in shown.out
    assert "exhausted: some detail" in shown.out
    assert f"charge payment of {UUID(int=9)}" in shown.out
    assert '"type": "ChargePayment"' in shown.out
    assert saga("dead-letters", "show", str(ident), "--json").document["body"][0]["step"]
    assert saga("dead-letters", "show", "ffff").code == 1


def test_redriving_in_bulk_keeps_to_the_rate(
    saga: Saga, buried: FakeBackend, monkeypatch: pytest.MonkeyPatch
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


def test_a_refused_dead_letter_stays_open_and_says_why(saga: Saga, buried: FakeBackend) -> None:
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


def test_a_dead_letter_is_redriven_only_once(saga: Saga, buried: FakeBackend) -> None:
    ident = str(buried.bury(PAYMENT, envelope(9), "exhausted"))
    assert saga("dead-letters", "redrive", ident[:8]).out == "1 redriven\n"
    again = saga("dead-letters", "redrive", ident)
    assert again.code == 0
    assert "1 were settled before and not again" in again.out


def test_redriving_needs_a_choice_and_discarding_a_reason(saga: Saga, buried: FakeBackend) -> None:
    assert saga("dead-letters", "redrive").code == 2
    assert saga("dead-letters", "redrive", "5c1e", "--all").code == 2
    assert saga("dead-letters", "discard", "--all").code == 2
    assert saga("dead-letters", "discard", "--all", "--why", " ").code == 1
    viewer = TOKENS[Role.VIEWER]
    ran = saga("dead-letters", "redrive", "--all", SAGAPROOF_OPERATOR_TOKEN=viewer)
    assert ran.code == 1
    assert {w.stored.state for w in buried.kept.values()} == {"open"}
