"""A definition that contradicts itself says what to change."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
from pydantic import BaseModel

from common.messages.contracts import CancelSaga, StartSaga
from common.messages.envelope import Command, Direction, Envelope, Key, Undo
from common.messages.errors import Poison
from common.messages.shop.inventory import DispatchStock, ReleaseStock, ReserveStock
from common.messages.shop.order import ConfirmOrder, OrderData, RejectOrder
from common.messages.shop.payment import ChargePayment, RefundPayment
from common.messages.shop.values import Lines
from common.messages.topology import commands_of
from orchestrator.engine.definition import Definition, DefinitionError, Kind, Step
from orchestrator.runtime.loading import load, queues_of
from orchestrator.runtime.messages import parse
from orchestrator.sagas.order import DEFINITIONS, ORDER_SAGA, ORDER_SAGA_V1
from order_svc.domain import PlacedOrder, PricedLine
from order_svc.handlers import start_saga

DOOR = Step("door", Kind.COMPENSATABLE, "a", at_the_door=True, undo=RejectOrder)
FIRST = Step("first", Kind.COMPENSATABLE, "a", ReserveStock, ReleaseStock)
SECOND = replace(FIRST, name="second")
PIVOT = Step("pivot", Kind.PIVOT, "b", DispatchStock)
GATE = Step("gate", Kind.GATE, "ops")
LAST = Step("last", Kind.RETRIABLE, "c", ConfirmOrder)


def test_a_definition_without_contradictions_knows_its_steps() -> None:
    definition = Definition("fine", 1, (DOOR, FIRST, SECOND, PIVOT, LAST))
    assert definition.by_name["second"] is SECOND
    Definition("without a pivot", 1, (FIRST, SECOND))
    Definition("without a way back", 1, (PIVOT, LAST))
    Definition("with gates", 1, (DOOR, FIRST, GATE, SECOND, replace(GATE, name="other"), PIVOT))


@pytest.mark.parametrize(
    ("steps", "advice"),
    [
        ((FIRST, FIRST), "t: a step name is used twice; give each step its own"),
        (
            (PIVOT, replace(PIVOT, name="other")),
            "t: two pivots; only one step can be the point of no return",
        ),
        ((PIVOT, FIRST), "t: order the steps compensatable and gates, pivot, retriable"),
        ((FIRST, LAST, PIVOT), "t: order the steps compensatable and gates, pivot, retriable"),
        ((LAST, PIVOT, FIRST), "t: order the steps compensatable and gates, pivot, retriable"),
        (
            (replace(FIRST, undo=None),),
            "t.first: a compensatable step needs an undo, any other must have none",
        ),
        (
            (replace(PIVOT, undo=ReleaseStock),),
            "t.pivot: a compensatable step needs an undo, any other must have none",
        ),
        (
            (PIVOT, replace(LAST, undo=ReleaseStock)),
            "t.last: a compensatable step needs an undo, any other must have none",
        ),
        (
            (replace(FIRST, command=None),),
            "t.first: a step needs a command unless it is done at the door",
        ),
        (
            (replace(DOOR, command=ReserveStock),),
            "t.door: a step needs a command unless it is done at the door",
        ),
        (
            (FIRST, DOOR),
            "t.door: only the first step can be done at the door, and must have an undo",
        ),
        (
            (replace(PIVOT, command=None, at_the_door=True),),
            "t.pivot: only the first step can be done at the door, and must have an undo",
        ),
        ((), "t: no steps; a saga has at least one"),
        (
            (FIRST, PIVOT, GATE),
            "t: order the steps compensatable and gates, pivot, retriable",
        ),
        *(
            (
                steps,
                "t: a gate comes first; put it behind a step that sends a command: that step's"
                " reply is when policy decides whether a person is asked",
            )
            for steps in ((GATE, FIRST), (DOOR, GATE, FIRST))
        ),
        ((FIRST, replace(GATE, command=ReserveStock)), "t.gate: a gate has no command"),
        (
            (FIRST, replace(GATE, undo=ReleaseStock)),
            "t.gate: a compensatable step needs an undo, any other must have none",
        ),
        (
            (replace(FIRST, asks=lambda _: "always"),),
            "t.first: only a gate asks for approval",
        ),
        (
            (FIRST, LAST),
            "t: retriable steps without a pivot; a step that cannot be undone comes after the point"
            " of no return, so say which step that is",
        ),
    ],
)
def test_a_contradiction_is_reported_with_its_remedy(steps: tuple[Step, ...], advice: str) -> None:
    with pytest.raises(DefinitionError) as error:
        Definition("t", 1, steps)
    assert str(error.value) == advice


class Parcel(BaseModel):
    """The data of a saga of parcels."""

    lines: Lines
    note: str = "may be left out"


class Unnote(Undo):
    note: str
    reason: str


Named = type("Named", (Command,), {})
Namesake = type("Named", (Command,), {})


@pytest.mark.parametrize(
    ("steps", "advice"),
    [
        ((replace(FIRST, name="1 st"),), "t.1 st: '1 st' names a row or a queue; begin with a"),
        ((replace(FIRST, participant=""),), "t.first: '' names a row or a queue; begin with a"),
        ((replace(FIRST, participant="a.b"),), "t.first: 'a.b' names a row or a queue; begin"),
        ((replace(FIRST, name="x" * 51),), "names a row or a queue; begin with a letter, go on"),
        (
            (replace(FIRST, participant="orchestrator"),),
            "t.first: the orchestrator itself takes no commands; name the participant that consumes"
            " them, from the queue <participant>.commands",
        ),
        (
            (replace(FIRST, command="ReserveStock"),),  # type: ignore[arg-type]
            "t.first: 'ReserveStock' is no Command; name a class that inherits from"
            " common.messages.envelope.Command",
        ),
        ((replace(FIRST, command=Parcel),), "is no Command; name a class that inherits"),  # type: ignore[arg-type]
        ((replace(FIRST, undo=ReserveStock),), "is no Undo; name a class that inherits from"),  # type: ignore[arg-type]
        ((replace(FIRST, command=ReleaseStock),), "ReleaseStock is an Undo; it goes to `undo=`"),
        (
            (replace(FIRST, command=Namesake),),
            "has two messages called Named, and the wire tells messages apart by their names;"
            " rename one",
        ),
        (
            (FIRST, replace(SECOND, command=ChargePayment, undo=RejectOrder)),
            "t.second: ChargePayment requires `customer`, which Parcel may lack; require it there,"
            " or give it a default",
        ),
        (
            (FIRST, replace(SECOND, undo=Unnote)),
            "t.second: Unnote requires `note`, which Parcel may lack; require it there, or",
        ),
    ],
)
def test_a_bad_name_or_command_is_reported_with_its_remedy(
    steps: tuple[Step, ...], advice: str
) -> None:
    with pytest.raises(DefinitionError) as error:
        Definition("t", 1, steps, data=Parcel)
    assert advice in str(error.value)


def test_a_definitions_data_has_what_its_commands_require() -> None:
    Definition("t", 1, (FIRST, SECOND, PIVOT), data=Parcel)
    Definition(
        "t", 1, (DOOR, replace(FIRST, command=ChargePayment))
    )  # no model of its data to check


def started(message: StartSaga | CancelSaga) -> Envelope:
    key = Key(UUID(int=1), "start", Direction.FORWARD)
    return Envelope.command(key, message, issued_at=datetime.now(UTC), reply_to=None)


def test_a_start_lacking_a_commands_field_is_poison() -> None:
    """Without a model of its data, every command is tried with the data of the start."""
    noted = Definition("noted", 1, (DOOR, FIRST, replace(SECOND, undo=Unnote), PIVOT))
    whole: dict[str, object] = {"lines": [{"sku": "tea", "quantity": 1}], "note": "fragile"}
    parse(started(StartSaga(definition="noted", data=whole)), {"noted": noted})
    for data, why in (
        (
            {**whole, "note": None},
            "second: no Unnote can be made of its data (note: Input should be",
        ),
        ({"note": "fragile"}, "first: no ReserveStock can be made of its data (lines: Field requ"),
    ):
        for message in (
            StartSaga(definition="noted", data=data),
            CancelSaga(definition="noted", data=data, actor="ann", reason="cancelled"),
        ):
            with pytest.raises(Poison) as poison:
                parse(started(message), {"noted": noted})
            assert poison.value.reason == "invalid_data"
            assert why in str(poison.value)


def test_the_order_service_starts_with_the_definitions_data() -> None:
    lines = (PricedLine("tea", 2, 150),)
    order = PlacedOrder(UUID(int=1), "ann", "EUR", lines, 300, datetime.now(UTC))
    envelope = start_saga(order).envelope
    assert isinstance(envelope, Envelope)
    message = envelope.message()
    assert isinstance(message, StartSaga)
    assert OrderData.model_validate(message.data).total == 300


def test_the_order_saga_is_the_table_of_the_design() -> None:
    assert [(s.name, s.kind.value, s.participant, s.command, s.undo) for s in ORDER_SAGA.steps] == [
        ("create_order", "compensatable", "order", None, RejectOrder),
        ("reserve_stock", "compensatable", "inventory", ReserveStock, ReleaseStock),
        ("approve_order", "gate", "orchestrator", None, None),
        ("charge_payment", "compensatable", "payment", ChargePayment, RefundPayment),
        ("dispatch_stock", "pivot", "inventory", DispatchStock, None),
        ("confirm_order", "retriable", "order", ConfirmOrder, None),
    ]
    assert [s.name for s in ORDER_SAGA.steps if s.at_the_door] == ["create_order"]


def test_every_participant_of_the_order_saga_has_a_queue() -> None:
    names = {queue.name for queue in queues_of([ORDER_SAGA])}
    assert {commands_of(step.participant) for step in ORDER_SAGA.steps} < names


def test_a_saga_begun_before_the_gate_can_finish() -> None:
    assert DEFINITIONS == (ORDER_SAGA_V1, ORDER_SAGA)
    assert [d.version for d in DEFINITIONS] == [1, 2]
    assert [step.name for step in ORDER_SAGA_V1.steps] == [
        step.name for step in ORDER_SAGA.steps if step.kind is not Kind.GATE
    ]


# --- which are deployed -----------------------------------------------------------------------

OTHER = Definition("other", 1, (FIRST,))
BOTH = (OTHER, Definition("other", 2, (FIRST, SECOND)))
AGAIN = Definition("other", 1, (SECOND,))
NOTHING = ()
HERE = __name__


def test_the_setting_names_definitions_and_sequences_of_them() -> None:
    assert load("orchestrator.sagas.order:ORDER_SAGA") == (ORDER_SAGA,)
    assert load(f"orchestrator.sagas.order:ORDER_SAGA, {HERE}:BOTH") == (ORDER_SAGA, *BOTH)
    assert load(f"{HERE}:OTHER,{HERE}:BOTH") == BOTH


def test_queues_follow_from_the_definitions() -> None:
    names = [queue.name for queue in queues_of([*BOTH, ORDER_SAGA])]
    assert len(names) == len(set(names))  # a gate has none of its own
    assert names.count("a.commands") == names.count("a.commands.dead") == 1
    assert "order.commands" in names
    assert "order.commands" not in [queue.name for queue in queues_of(BOTH)]


@pytest.mark.parametrize(
    ("setting", "advice"),
    [
        ("", "SAGAPROOF_DEFINITIONS is empty; write module:NAME"),
        ("orchestrator.sagas.order", "'orchestrator.sagas.order' is no name; write module:NAME"),
        (":ORDER_SAGA", "':ORDER_SAGA' is no name; write module:NAME"),
        ("nowhere.saga:X", "nowhere.saga cannot be imported (No module named 'nowhere'); correct"),
        (
            "orchestrator.sagas.order:X",
            "has no Definition X, nor a sequence of them; it has:",
        ),
        (f"{HERE}:NOTHING", "has no Definition NOTHING"),
        (f"{HERE}:LAST", "it has: ORDER_SAGA, ORDER_SAGA_V1, OTHER, AGAIN"),
        (f"{HERE}:OTHER,{HERE}:AGAIN", "other version 1 is defined twice; a change of its steps"),
    ],
)
def test_a_mistake_in_the_setting_is_reported_with_its_remedy(setting: str, advice: str) -> None:
    with pytest.raises(DefinitionError) as error:
        load(setting)
    assert str(error.value).startswith("SAGAPROOF_DEFINITIONS")
    assert advice in str(error.value)


def test_a_process_exits_with_that_sentence_first_of_all() -> None:
    nowhere = {"SAGAPROOF_POSTGRES_DSN": "postgresql://nowhere", "SAGAPROOF_AMQP_URL": "amqp://x"}
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator"],
        env={**nowhere, "SAGAPROOF_DEFINITIONS": "orchestrator.sagas.order:ORDERS"},
        cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("SAGAPROOF_DEFINITIONS: orchestrator.sagas.order has no")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("orchestrator.order_saga:DEFINITIONS", "orchestrator.sagas.order:DEFINITIONS"),
        ("orchestrator.return_saga:RETURN_SAGA", "orchestrator.sagas.returns:RETURN_SAGA"),
    ],
)
def test_the_old_path_of_a_definition_loads_with_a_warning(old: str, new: str) -> None:
    with pytest.warns(FutureWarning, match=f"write {new} instead of {old}"):
        assert load(old) == load(new)
