"""The claim rules, in both arrival orders, in one batch and in two."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random
from uuid import UUID

import pytest

from common.messages.envelope import Direction, Key, Outcome, PivotDone, Reply
from common.messages.errors import Poison
from common.storage.admission import (
    EVIDENCE_GONE,
    Duplicate,
    First,
    InboxView,
    Row,
    claims,
    fence_answer,
)

ACTION = Key(UUID(int=1), "charge_payment", Direction.FORWARD)
UNDO = Key(UUID(int=1), "charge_payment", Direction.COMPENSATING)
DONE = Row(Outcome.DONE, "charged")
REFUSED = Row(Outcome.REFUSED, "declined")
UNDONE = Row(Outcome.DONE, "refunded")
TOMBSTONE = Row(Outcome.FENCED, "too late")


def batch(*keys: Key, inbox: dict[Key, Row] | None = None) -> InboxView:
    """As inbox.claim() makes it: what the inbox did not have is claimed."""
    inbox = inbox or {}
    wanted = claims(keys)
    return InboxView(
        claimed=[key for key in wanted if key not in inbox],
        known={key: inbox[key] for key in wanted if key in inbox},
    )


def lay(action: Key) -> Row:
    assert action.direction is Direction.FORWARD
    return TOMBSTONE


def test_an_action_then_its_undo_in_two_batches() -> None:
    first = batch(ACTION)
    assert first.admit(ACTION, lay) == First()
    first.record_reply(ACTION, DONE)
    inbox = first.rows_to_write()
    assert inbox == {ACTION: DONE}

    second = batch(UNDO, inbox=inbox)
    assert second.admit(UNDO, lay) == First(action=DONE)
    second.record_reply(UNDO, UNDONE)
    assert second.rows_to_write() == {UNDO: UNDONE}


def test_an_undo_then_its_action_in_two_batches() -> None:
    first = batch(UNDO)
    assert first.admit(UNDO, lay) == First(action=TOMBSTONE)  # nothing to undo
    first.record_reply(UNDO, UNDONE)
    inbox = first.rows_to_write()
    assert inbox == {ACTION: TOMBSTONE, UNDO: UNDONE}

    late = batch(ACTION, inbox=inbox)
    assert late.admit(ACTION, lay) == Duplicate(TOMBSTONE)
    assert late.rows_to_write() == {}


def test_an_action_then_its_undo_in_one_batch() -> None:
    view = batch(ACTION, UNDO)
    assert view.admit(ACTION, lay) == First()
    view.record_reply(ACTION, DONE)
    assert view.admit(UNDO, lay) == First(action=DONE)
    view.record_reply(UNDO, UNDONE)
    assert view.rows_to_write() == {ACTION: DONE, UNDO: UNDONE}


def test_an_undo_then_its_action_in_one_batch() -> None:
    view = batch(UNDO, ACTION)
    assert view.admit(UNDO, lay) == First(action=TOMBSTONE)
    view.record_reply(UNDO, UNDONE)
    assert view.admit(ACTION, lay) == Duplicate(TOMBSTONE)
    assert view.rows_to_write() == {ACTION: TOMBSTONE, UNDO: UNDONE}


def test_the_undo_of_a_refused_action_sees_the_refusal() -> None:
    view = batch(UNDO, inbox={ACTION: REFUSED})
    assert view.admit(UNDO, lay) == First(action=REFUSED)
    view.record_reply(UNDO, UNDONE)
    assert view.rows_to_write() == {UNDO: UNDONE}  # the action's row stays what it was


@pytest.mark.parametrize("key", [ACTION, UNDO], ids=["action", "undo"])
def test_a_repeat_gets_the_stored_reply_in_any_batch(key: Key) -> None:
    view = batch(key, key, inbox={} if key == ACTION else {ACTION: DONE})
    assert isinstance(view.admit(key, lay), First)
    view.record_reply(key, REFUSED)
    assert view.admit(key, lay) == Duplicate(REFUSED)
    later = batch(key, inbox=view.rows_to_write())
    assert later.admit(key, lay) == Duplicate(REFUSED)
    assert later.rows_to_write() == {}


def test_a_repeated_undo_lays_no_tombstone() -> None:
    view = batch(UNDO, inbox={ACTION: DONE, UNDO: UNDONE})
    assert view.admit(UNDO, lay) == Duplicate(UNDONE)
    assert view.rows_to_write() == {}


def test_sagas_and_steps_do_not_touch_each_other() -> None:
    other_saga, other_step = UNDO._replace(saga_id=UUID(int=2)), UNDO._replace(step="other")
    view = batch(ACTION, other_saga, other_step)
    view.admit(other_saga, lay)
    view.admit(other_step, lay)
    assert view.admit(ACTION, lay) == First()


def test_rule_10_an_undo_claims_its_action_as_well() -> None:
    assert claims([UNDO]) == [UNDO, ACTION]
    assert claims([ACTION]) == [ACTION]


def test_rule_10_all_claims_come_once_and_in_one_order() -> None:
    keys = [
        Key(UUID(int=n), step, direction)
        for n in range(4)
        for step in ("b", "a")
        for direction in Direction
    ]
    Random(7).shuffle(keys)
    assert claims(keys * 2) == sorted(keys)
    assert claims(reversed(keys)) == claims(keys)


def test_a_claim_that_left_nothing_behind_is_given_back() -> None:
    view = batch(ACTION, UNDO._replace(step="other"))
    view.admit(ACTION, lay)  # and not settled: the key may be used again
    view.admit(UNDO._replace(step="other"), lay)
    view.record_reply(UNDO._replace(step="other"), UNDONE)
    assert view.unused_claims() == [ACTION]
    assert ACTION not in view.rows_to_write()


def test_what_is_given_back_in_a_batch_may_be_tried_again_in_it() -> None:
    view = batch(ACTION)
    assert view.admit(ACTION, lay) == First()
    assert view.admit(ACTION, lay) == First()


def test_a_row_neither_claimed_nor_known_is_never_acted_on() -> None:
    with pytest.raises(AssertionError, match="evidence is gone"):
        InboxView(claimed=[], known={}).admit(ACTION, lay)


@pytest.mark.parametrize(
    ("inbox", "answer"),
    [
        ({ACTION: DONE}, Outcome.DONE),
        ({ACTION: REFUSED}, Outcome.FENCED),
        ({ACTION: TOMBSTONE}, Outcome.FENCED),
        ({}, Outcome.FENCED),
    ],
    ids=["done", "refused", "fenced before", "never came"],
)
def test_rule_01_a_fence_tells_what_became_of_the_pivot(
    inbox: dict[Key, Row], answer: Outcome
) -> None:
    verdict = batch(UNDO, inbox=inbox).admit(UNDO, lay)
    assert isinstance(verdict, First)
    reply: Reply = fence_answer(verdict.action)
    assert reply.outcome is answer
    assert isinstance(reply, PivotDone) is (answer is Outcome.DONE)


def test_an_undo_whose_action_left_no_evidence_is_not_decided() -> None:
    """Laid without a claim, the tombstone would not be kept, and a late action would act."""
    view = InboxView(claimed=[UNDO], known={})
    with pytest.raises(AssertionError, match="evidence is gone"):
        view.admit(UNDO, lay)


# --- what is forgotten (rule 18) ------------------------------------------------

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(seconds=1)


@pytest.mark.parametrize("claimed", [True, False])
def test_rule_18_a_command_as_old_as_forgotten_does_not_act(claimed: bool) -> None:
    """Its row was claimed, or was removed between the claim and the reading."""
    view = InboxView([ACTION] if claimed else [], {}, forgotten_until=NOON)
    with pytest.raises(Poison, match="evidence_gone") as gone:
        view.admit(ACTION, lay, NOON)
    assert gone.value.reason == EVIDENCE_GONE
    assert view.rows_to_write() == {}


def test_rule_18_known_younger_and_kept_for_ever_still_act() -> None:
    assert InboxView([], {ACTION: DONE}, NOON).admit(ACTION, lay, NOON) == Duplicate(DONE)
    assert InboxView([ACTION], {}, NOON).admit(ACTION, lay, LATER) == First()
    assert InboxView([ACTION], {}, NOON).admit(ACTION, lay) == First()
    assert InboxView([ACTION], {}, None).admit(ACTION, lay, NOON) == First()
