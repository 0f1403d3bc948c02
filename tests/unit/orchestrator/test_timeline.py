"""The timeline in words: every entry that decide() can write."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from common.messages.envelope import Direction, Outcome
from orchestrator.engine.decide import decide
from orchestrator.engine.definition import COMPENSATING, FORWARD
from orchestrator.engine.inputs import Input, ReplyArrived, Started
from orchestrator.engine.saga_log import Entry
from orchestrator.operator.timeline import describe, words
from orchestrator.runtime.actions import OperatorAction
from orchestrator.sagas.order import ORDER_SAGA
from tests.support.explore import explore
from tests.support.story import DATA, POLICY, SAGA, given

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def told(entry: Entry) -> str:
    return describe(ORDER_SAGA, entry, NOON)


def test_every_entry_of_decide_is_told_in_words() -> None:
    entries = {entry for t in explore(ORDER_SAGA, POLICY) if t.decision for entry in t.decision.log}
    assert len({entry.kind for entry in entries}) >= 12
    for entry in entries:
        sentence = told(entry)
        assert len(sentence.split()) > 1, entry
        assert "_" not in sentence, f"{entry} is shown as it is stored: {sentence}"


def test_interventions_are_quoted_done_or_refused() -> None:
    done = OperatorAction("ada", "resolve", "refunded by hand", SAGA, about="charge_payment")
    assert told(Entry("action_done", detail=str(done))) == (
        "intervention: ada: resolve charge_payment (refunded by hand)"
    )
    assert told(Entry("action_refused", detail=str(done.refused("it is done")))) == (
        "intervention, refused: ada: resolve charge_payment (refunded by hand): it is done"
    )


def test_an_entry_that_no_release_can_decide_says_why() -> None:
    assert told(Entry("unjudgeable", detail="no carrier")) == (
        "blocked: this release cannot decide about it: no carrier"
    )


def after(*inputs: Input) -> str:
    """Give these inputs to a saga that awaits the charge; return the log of the last, in words."""
    story = given(ORDER_SAGA).awaiting("charge_payment")
    for input_ in inputs:
        story.when(input_)
    return "\n".join(told(entry) for entry in story.decision.log)


def test_a_refusal_names_participant_reason_and_consequence() -> None:
    refusal = ReplyArrived(
        "charge_payment", FORWARD, Outcome.REFUSED, "CardDeclined", "card_declined"
    )
    assert after(refusal).splitlines() == [
        "payment refuses: card declined",
        "compensates, card declined: what was done is undone, the last step first",
        "asks inventory to undo reserve stock: release stock",
    ]


def test_the_details_of_a_refusal_are_quoted() -> None:
    entry = Entry("refused", "reserve_stock", FORWARD, None, "out_of_stock (sku tea_1, wanted 2)")
    assert told(entry) == "inventory refuses: out of stock (sku tea_1, wanted 2)"


def test_the_start_says_how_long_the_order_had_waited() -> None:
    asked_at = (NOON - timedelta(seconds=2)).isoformat()
    log = decide(ORDER_SAGA, POLICY, None, Started(SAGA, DATA, asked_at)).log
    assert told(log[0]) == "the saga begins; create order was done at the door, 2.000 s before"


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (
            Entry("sent", "charge_payment", FORWARD, 3),
            "asks payment again (attempt 3) to charge payment",
        ),
        (
            Entry("timed_out", "charge_payment", FORWARD, 1),
            "no answer from payment in time (attempt 1):"
            " charge payment may or may not have been done",
        ),
        (
            Entry("sent", "dispatch_stock", COMPENSATING, 1),
            "asks inventory whether dispatch stock was done; if not, it must never be",
        ),
        (
            Entry("fenced", "dispatch_stock", COMPENSATING),
            "inventory: dispatch stock was not done and never will be",
        ),
        (
            Entry("done", "dispatch_stock", COMPENSATING, None, "PivotDone"),
            "inventory: too late to stop it: dispatch stock was done."
            " From here on the saga only goes forward",
        ),
        (
            Entry("done", "reserve_stock", COMPENSATING, None, "StockReleased (nothing_to_undo)"),
            "inventory: nothing to undo; if the command still arrives, it is refused",
        ),
        (
            Entry("ignored", "charge_payment", FORWARD, None, "PaymentCharged"),
            "payment: payment charged. No longer awaited: ignored",
        ),
    ],
    ids=lambda value: value.kind if isinstance(value, Entry) else "",
)
def test_entries_that_are_hard_to_read_in_a_log(entry: Entry, sentence: str) -> None:
    assert told(entry) == sentence


def test_an_entry_of_another_version_is_shown_unchanged() -> None:
    assert told(Entry("archived", detail="by policy")) == "archived by policy"
    assert told(Entry("sent", "gift_wrap", Direction.FORWARD)) == "sent gift_wrap forward"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("reserve_stock", "reserve stock"),
        ("ReserveStock", "reserve stock"),
        ("out_of_stock (sku a_b)", "out of stock (sku a_b)"),
    ],
)
def test_words(name: str, said: str) -> None:
    assert words(name) == said
