"""Parsing dead letters, whatever their bodies hold."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.messages.contracts import StartSaga
from common.messages.envelope import Direction, Envelope, Fence, Key, pack
from orchestrator.dead_letters.letter import BODY_KEPT, DeadLetter, dead_letters_of

KEY = Key(UUID(int=1), "charge_payment", Direction.FORWARD)
WIRE: dict[str, Any] = json.loads(
    Envelope.command(
        KEY, Fence(), issued_at=datetime(2026, 1, 1, tzinfo=UTC), reply_to=None
    ).encode()
)
DEAD = {"x-sagaproof-reason": "poison", "x-sagaproof-letter": "once"}


def packed(**changes: object) -> bytes:
    return json.dumps([{**WIRE, **changes}]).encode()


def letter(
    body: bytes, headers: dict[str, Any] = DEAD, queue: str = "payment.commands"
) -> DeadLetter:
    (only,) = dead_letters_of(queue, body, headers)
    return only


@given(st.binary(max_size=200), st.dictionaries(st.text(), st.text() | st.binary() | st.integers()))
def test_every_body_becomes_a_dead_letter_postgres_can_store(
    body: bytes, headers: dict[str, Any]
) -> None:
    for one in dead_letters_of("payment.commands", body, headers):
        kept = [one.reason, one.detail, one.about.step, one.about.type, one.occasion]
        kept += [*one.headers, *map(str, one.headers.values())]
        assert not any("\x00" in text for text in kept if text)


@given(st.recursive(st.none() | st.booleans() | st.text() | st.floats(), st.lists))
def test_any_field_of_an_envelope_may_be_anything(value: object) -> None:
    for field in WIRE:
        assert dead_letters_of("payment.commands", packed(**{field: value}), DEAD)


def test_a_resent_message_is_the_same_dead_letter() -> None:
    body = packed()
    same = {
        letter(packed(attempt=n, first_issued_at=WIRE["first_issued_at"])).letter_id for n in (1, 9)
    }
    assert same == {letter(body).letter_id}
    others = [
        letter(packed(type="MakeTea")),
        letter(packed(version=2)),
        letter(body, {**DEAD, "x-sagaproof-reason": "exhausted"}),
        letter(body, queue="order.commands"),
        letter(b"tea"),
        letter(b"coffee"),
    ]
    assert len({other.letter_id for other in others} | same) == len(others) + 1


@pytest.mark.parametrize(
    ("body", "key"),
    [
        (packed(), KEY),
        (packed(message_id=None), KEY),
        (packed(first_issued_at="yesterday"), KEY),
        (json.dumps(WIRE).encode(), KEY),
        (packed(outcome="done", message_id=str(KEY.reply_id)), KEY),
        (packed(message_id=str(uuid4())), None),
        (packed(outcome="done"), None),
        (packed(direction="sideways"), None),
        (packed(saga_id=1), None),
    ],
)
def test_a_key_is_read_unless_the_message_id_contradicts_it(body: bytes, key: Key | None) -> None:
    assert letter(body).key == key


def test_the_brokers_own_dead_letters_have_their_reason_too() -> None:
    death = {"x-first-death-reason": "delivery_limit", "x-death": [{"count": 1}]}
    assert letter(packed(), death).reason == "delivery_limit"
    assert letter(packed(), {}).reason == "unknown"
    two = pack([json.dumps(WIRE), json.dumps({**WIRE, "message_id": "odd"})])
    first, second = dead_letters_of("payment.commands", two, death)
    assert (first.readable, second.readable) == (True, False)
    assert json.loads(first.body)[0]["message_id"] == WIRE["message_id"]


def test_a_truncated_dead_letter_cannot_be_redriven() -> None:
    large = letter(packed(body={"x": "y" * BODY_KEPT}))
    assert (large.readable, len(large.body)) == (False, BODY_KEPT)
    assert large.key == KEY
    assert large.size > BODY_KEPT


@pytest.mark.parametrize(
    ("queue", "kind", "starts"),
    [
        ("orchestrator.commands", "StartSaga", True),
        ("payment.commands", "StartSaga", False),
        ("orchestrator.commands", "MakeTea", False),
    ],
)
def test_a_dead_start_is_recognised(queue: str, kind: str, starts: bool) -> None:
    found = letter(packed(type=kind, body={"definition": "order", "data": {"a": 1}}), queue=queue)
    assert found.start == (StartSaga(definition="order", data={"a": 1}) if starts else None)
