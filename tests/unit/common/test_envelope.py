"""Ids that never change, and a codec in which one bad member spoils no other."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.messages.envelope import (
    Command,
    Direction,
    Envelope,
    Key,
    Outcome,
    Unreadable,
    pack,
    saga_id_for,
    unpack,
)
from common.messages.errors import Poison
from common.messages.shop.order import ConfirmOrder, OrderConfirmed
from common.messages.shop.payment import CardDeclined, ChargePayment

SAGA = UUID("b5a1c1de-0000-4000-8000-000000000001")
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
KEY = Key(SAGA, "charge_payment", Direction.FORWARD)
CHARGE = Envelope.command(
    KEY,
    ChargePayment(customer="ada", total=700, currency="EUR"),
    issued_at=NOON,
    reply_to="orchestrator.inputs",
    attempt=2,
)
DECLINED = CHARGE.reply(CardDeclined(), issued_at=NOON)

repeatable = settings(max_examples=100, derandomize=True, deadline=None, database=None)


def wire(envelope: Envelope, **changes: Any) -> dict[str, Any]:
    """Return an envelope as JSON with changes; None removes a field."""
    member = {**json.loads(envelope.encode()), **changes}
    return {name: value for name, value in member.items() if value is not None}


def read_one(member: object) -> Envelope | Unreadable:
    (read,) = unpack(json.dumps([member]).encode())
    return read


# --- ids -----------------------------------------------------------------------------------


def test_ids_are_the_same_for_ever() -> None:
    """Golden: what is in a queue or an inbox today must still match after any release."""
    assert saga_id_for("ada", "key-1") == UUID("881360fb-d736-521f-aac2-1d954fac66ed")
    assert KEY.command_id == UUID("869778c7-9614-5662-8318-5ff951bd42d7")
    assert KEY.reply_id == UUID("a6058e7e-5c35-57cd-a3fc-1104dcdc5b4f")
    assert KEY._replace(direction=Direction.COMPENSATING).command_id == UUID(
        "37adba39-69ec-584c-bdb4-aa71f1a9cfc1"
    )


def test_a_resend_has_the_same_id_and_a_reply_names_it() -> None:
    resend = Envelope.command(KEY, ConfirmOrder(), issued_at=NOON, reply_to=None, attempt=9)
    assert resend.message_id == CHARGE.message_id
    assert DECLINED.in_reply_to == CHARGE.message_id
    assert (DECLINED.key, DECLINED.outcome, DECLINED.attempt) == (KEY, Outcome.REFUSED, 2)
    assert DECLINED.message_id != CHARGE.message_id


def text(max_size: int, min_size: int = 0) -> st.SearchStrategy[str]:
    """Any text but with NUL, which no envelope may hold."""
    letters = st.characters(codec="utf-8", exclude_characters="\0")
    return st.text(letters, min_size=min_size, max_size=max_size)


names = st.sampled_from(["a", "a:forward", "a:forward:reply"]) | text(6, min_size=1)
keys = st.builds(Key, st.just(SAGA) | st.uuids(), names, st.sampled_from(Direction))


@repeatable
@given(keys, keys)
def test_ids_differ_wherever_saga_step_direction_or_kind_differ(one: Key, other: Key) -> None:
    ids = {key.command_id for key in (one, other)} | {key.reply_id for key in (one, other)}
    assert len(ids) == 2 * len({one, other})


# No control characters: a customer with the separator in its name would be somebody else's.
printable = st.text("ab:|/ ", max_size=4)


@repeatable
@given(printable, printable, printable, printable)
def test_saga_ids_of_different_customers_and_keys_never_meet(
    one: str, its_key: str, other: str, its_other_key: str
) -> None:
    same = (one, its_key) == (other, its_other_key)
    assert (saga_id_for(one, its_key) == saga_id_for(other, its_other_key)) is same


@pytest.mark.parametrize(
    ("one", "other"), [(("ab", "c"), ("a", "bc")), (("a", ""), ("", "a")), (("a", "b"), ("b", "a"))]
)
def test_saga_ids_do_not_meet_through_concatenation(
    one: tuple[str, str], other: tuple[str, str]
) -> None:
    assert saga_id_for(*one) != saga_id_for(*other)


# --- a delivery, there and back ------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | text(5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text(5), inner),
    max_leaves=6,
)


@st.composite
def envelopes(draw: st.DrawFn) -> Envelope:
    key = draw(keys)
    outcome = draw(st.none() | st.sampled_from(Outcome))
    return Envelope(
        message_id=key.reply_id if outcome else key.command_id,
        saga_id=key.saga_id,
        step=key.step,
        direction=key.direction,
        type=draw(text(8, min_size=1)),
        version=draw(st.integers(1, 9)),
        outcome=outcome,
        attempt=draw(st.integers(1, 99)),
        first_issued_at=draw(st.datetimes(timezones=st.just(UTC))),
        reply_to=draw(st.none() | st.text("abc.-", min_size=1, max_size=8)),
        in_reply_to=draw(st.none() | st.uuids()),
        body=draw(st.dictionaries(text(5), json_values, max_size=3)),
    )


@repeatable
@given(st.lists(envelopes(), max_size=5))
def test_what_is_packed_is_unpacked(packed: list[Envelope]) -> None:
    assert unpack(pack(envelope.encode() for envelope in packed)) == packed


@repeatable
@given(envelopes())
def test_rule_11_a_missing_message_id_is_recomputed(envelope: Envelope) -> None:
    assert read_one(wire(envelope) | {"message_id": None}) == envelope
    without = json.loads(envelope.encode())
    del without["message_id"]
    assert read_one(without) == envelope


def test_rule_11_another_message_id_is_unreadable() -> None:
    for changed in (SAGA, DECLINED.message_id):  # a reply's id is not its command's either
        read = read_one(wire(CHARGE, message_id=str(changed)))
        assert isinstance(read, Unreadable)
        assert read.reason == "wrong_message_id"


def test_rule_11_what_is_set_aside_for_its_id_keeps_all_it_said() -> None:
    read = read_one(wire(CHARGE, message_id=str(SAGA), hint="from a newer release"))
    assert isinstance(read, Unreadable)
    assert json.loads(read.raw)["hint"] == "from a newer release"


def test_rule_11_a_wrong_id_is_found_beside_an_invalid_member() -> None:
    _, read = unpack(json.dumps([7, wire(CHARGE, message_id=str(SAGA))]).encode())
    assert isinstance(read, Unreadable)
    assert read.reason == "wrong_message_id"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not_json"),
        (b"{", "not_json"),
        (b"\xff\xfe", "not_json"),
        (b"{}", "not_an_array"),
        (b'"text"', "not_an_array"),
        (b"null", "not_an_array"),
    ],
)
def test_a_delivery_that_is_no_array_is_unreadable_as_a_whole(body: bytes, reason: str) -> None:
    (read,) = unpack(body)
    assert isinstance(read, Unreadable)
    assert (read.raw, read.reason) == (body, reason)


BAD_MEMBERS = {
    "a number": (7, "invalid_envelope"),
    "an array": ([], "invalid_envelope"),
    "null": (None, "invalid_envelope"),
    "empty": ({}, "invalid_envelope"),
    "no saga_id": (wire(CHARGE, saga_id=None), "invalid_envelope"),
    "no step": (wire(CHARGE, step=None), "invalid_envelope"),
    "no direction": (wire(CHARGE, direction=None), "invalid_envelope"),
    "no saga_id, no id": (wire(CHARGE, saga_id=None, message_id=None), "invalid_envelope"),
    "no step, no id": (wire(CHARGE, step=None, message_id=None), "invalid_envelope"),
    "null step, no id": ({**wire(CHARGE, message_id=None), "step": None}, "invalid_envelope"),
    "odd saga_id, no id": (wire(CHARGE, saga_id="x", message_id=None), "invalid_envelope"),
    "odd direction, no id": (wire(CHARGE, direction="up", message_id=None), "invalid_envelope"),
    "odd direction": (wire(CHARGE, direction="sideways"), "invalid_envelope"),
    "odd message_id": (wire(CHARGE, message_id="x"), "invalid_envelope"),
    "odd outcome": (wire(CHARGE, outcome="perhaps"), "invalid_envelope"),
    "no type": (wire(CHARGE, type=None), "invalid_envelope"),
    "odd body": (wire(CHARGE, body=[1]), "invalid_envelope"),
    "another's id": (wire(CHARGE, message_id=str(SAGA)), "wrong_message_id"),
}


@pytest.mark.parametrize(("bad", "reason"), BAD_MEMBERS.values(), ids=BAD_MEMBERS)
def test_one_bad_member_leaves_its_neighbours_readable(bad: object, reason: str) -> None:
    before, read, after = unpack(json.dumps([wire(CHARGE), bad, wire(DECLINED)]).encode())
    assert (before, after) == (CHARGE, DECLINED)
    assert isinstance(read, Unreadable)
    assert read.reason == reason
    assert read.detail  # whoever looks at the dead letter is told what is wrong
    assert json.loads(read.raw) == bad  # and sees all of it


# --- the typed body ------------------------------------------------------------------------


def test_a_body_is_typed_by_its_type_and_version() -> None:
    assert CHARGE.message() == ChargePayment(customer="ada", total=700, currency="EUR")
    assert DECLINED.message() == CardDeclined()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"type": "MakeTea"}, "unknown_type"),
        ({"version": 99}, "unknown_type"),
        ({"body": {"customer": "ada", "currency": "EUR"}}, "invalid_body"),
        ({"body": {"customer": "ada", "currency": "EUR", "total": -1}}, "invalid_body"),
    ],
    ids=["type", "version", "missing field", "impossible value"],
)
def test_an_unknown_type_or_version_or_a_misfit_is_poison(
    change: dict[str, object], reason: str
) -> None:
    with pytest.raises(Poison) as poison:
        CHARGE.model_copy(update=change).message()
    assert poison.value.reason == reason


def test_one_wire_name_belongs_to_one_module() -> None:
    assert OrderConfirmed.__module__ != __name__
    with pytest.raises(TypeError, match="is defined in"):
        type("OrderConfirmed", (Command,), {"__module__": __name__})
