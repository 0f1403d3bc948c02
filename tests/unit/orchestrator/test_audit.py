"""Drift, and what must not count as drift, without a server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from common.messages.contracts import Effect
from orchestrator.engine.instance import State
from orchestrator.operator.audit import (
    ORDER,
    REMEDIES,
    RETURN,
    AuditedInstance,
    Comparison,
    Drift,
    compare,
)
from orchestrator.sagas.order import ORDER_SAGA
from orchestrator.sagas.returns import RETURN_SAGA

ROOT = Path(__file__).parents[3]
SAGA = UUID(int=7)
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
GRACE = timedelta(minutes=5)
EVERYTHING = {
    "create_order": "CONFIRMED", "reserve_stock": "DISPATCHED", "charge_payment": "CHARGED",
}  # fmt: skip
GIVEN_BACK = {"open_return": "RETURNED", "refund_order": "REFUNDED", "restock": "RETURNED"}
NOTHING_KEPT = {
    "create_order": "REJECTED", "reserve_stock": "RELEASED", "charge_payment": "REFUNDED",
}  # fmt: skip


def looked(
    before: State | None,
    effects: dict[str, str],
    after: State | None = None,
    age: int = 60,
    definition: str = "order",
) -> Comparison:
    """Audit one saga, by its state before its effects were read, or after if it was not there."""
    return compare(
        [SAGA],
        {SAGA: AuditedInstance(definition, before)} if before else {},
        [
            Effect(saga_id=SAGA, step=step, standing=standing, at=NOW - timedelta(minutes=age))
            for step, standing in effects.items()
        ],
        {SAGA: AuditedInstance(definition, after)} if after else {},
        now=NOW,
        grace=GRACE,
    )


def drifts(*args: object, **more: object) -> dict[str, Drift]:
    found = looked(*args, **more)  # type: ignore[arg-type]
    return {finding.step: finding.drift for finding in found.findings}


def test_a_saga_that_left_what_it_should_is_no_drift() -> None:
    assert looked(State.COMPLETED, EVERYTHING) == Comparison(1, 0, ())
    assert looked(State.COMPENSATED, NOTHING_KEPT) == Comparison(1, 0, ())
    assert drifts(State.COMPENSATED, {"create_order": "REJECTED"}) == {}
    given_back = {"create_order": "RETURNED", "reserve_stock": "RETURNED"}
    assert drifts(State.COMPLETED, {**EVERYTHING, **given_back}) == {}


@pytest.mark.parametrize("state", [s for s in State if not s.ended])
def test_a_saga_under_way_is_skipped(state: State) -> None:
    assert looked(state, {"reserve_stock": "HELD"}) == Comparison(0, 1, ())


@pytest.mark.parametrize("state", State)
def test_a_saga_that_began_during_the_audit_is_skipped(state: State) -> None:
    """It may have ended since its effects were read."""
    assert looked(None, {"reserve_stock": "HELD"}, after=state) == Comparison(0, 1, ())


def test_any_effect_of_a_saga_that_does_not_exist_is_drift() -> None:
    assert drifts(None, {"charge_payment": "CHARGED"}) == {"charge_payment": Drift.ORPHAN_CHARGE}
    for step, standing in (
        ("charge_payment", "REFUNDED"), ("reserve_stock", "HELD"), ("create_order", "REJECTED"),
    ):  # fmt: skip
        assert drifts(None, {step: standing}) == {step: Drift.EFFECT_WITHOUT_INSTANCE}


def test_an_order_may_wait_for_its_saga_for_the_grace() -> None:
    assert drifts(None, {"create_order": "PENDING"}, age=4) == {}
    assert drifts(None, {"create_order": "PENDING"}, age=6) == {
        "create_order": Drift.PENDING_WITHOUT_SAGA
    }


@pytest.mark.parametrize(
    ("step", "standing", "drift"),
    [
        ("charge_payment", None, Drift.EFFECT_MISSING),
        ("charge_payment", "REFUNDED", Drift.EFFECT_MISSING),
        ("reserve_stock", None, Drift.EFFECT_MISSING),
        ("reserve_stock", "RELEASED", Drift.EFFECT_MISSING),
        ("reserve_stock", "HELD", Drift.LEAKED_HOLD),
        ("create_order", None, Drift.EFFECT_MISSING),
        ("create_order", "PENDING", Drift.WRONG_END),
        ("create_order", "REJECTED", Drift.EFFECT_MISSING),
        ("wrap_it", "WRAPPED", Drift.WRONG_END),
    ],
)
def test_drift_of_a_completed_saga(step: str, standing: str | None, drift: Drift) -> None:
    effects = {name: is_ for name, is_ in {**EVERYTHING, step: standing}.items() if is_}
    assert drifts(State.COMPLETED, effects) == {step: drift}


@pytest.mark.parametrize(
    ("step", "standing", "drift"),
    [
        ("charge_payment", "CHARGED", Drift.MISSING_REFUND),
        ("reserve_stock", "HELD", Drift.LEAKED_HOLD),
        ("reserve_stock", "DISPATCHED", Drift.WRONG_END),
        ("create_order", "CONFIRMED", Drift.WRONG_END),
        ("create_order", "PENDING", Drift.WRONG_END),
        ("create_order", None, Drift.EFFECT_MISSING),
    ],
)
def test_drift_of_a_compensated_saga(step: str, standing: str | None, drift: Drift) -> None:
    effects = {name: is_ for name, is_ in {**NOTHING_KEPT, step: standing}.items() if is_}
    assert drifts(State.COMPENSATED, effects) == {step: drift}


def test_a_return_that_ended_as_it_should_is_no_drift() -> None:
    clean = Comparison(1, 0, ())
    assert looked(State.COMPLETED, GIVEN_BACK, definition="return") == clean
    assert looked(State.COMPENSATED, {"open_return": "CLOSED"}, definition="return") == clean


@pytest.mark.parametrize(
    ("state", "step", "standing", "drift"),
    [
        (State.COMPLETED, "refund_order", None, Drift.RETURN_WITHOUT_REFUND),
        (State.COMPLETED, "restock", None, Drift.RETURN_WITHOUT_RESTOCK),
        (State.COMPLETED, "restock", "DISPATCHED", Drift.RETURN_WITHOUT_RESTOCK),
        (State.COMPLETED, "open_return", "RETURN_PENDING", Drift.RETURN_PENDING_WITHOUT_SAGA),
        (State.COMPLETED, "open_return", "FINISHED with its order CONFIRMED", Drift.WRONG_END),
        (State.COMPLETED, "open_return", "CLOSED", Drift.WRONG_END),
        (State.COMPLETED, "open_return", None, Drift.EFFECT_MISSING),
        (State.COMPENSATED, "refund_order", "REFUNDED", Drift.REFUND_WITHOUT_RETURN),
        (State.COMPENSATED, "open_return", "RETURN_PENDING", Drift.RETURN_PENDING_WITHOUT_SAGA),
        (State.COMPENSATED, "open_return", "RETURNED", Drift.WRONG_END),
        (State.COMPENSATED, "open_return", None, Drift.EFFECT_MISSING),
    ],
)
def test_drift_of_a_return(state: State, step: str, standing: str | None, drift: Drift) -> None:
    ended = GIVEN_BACK if state is State.COMPLETED else {"open_return": "CLOSED"}
    effects = {name: is_ for name, is_ in {**ended, step: standing}.items() if is_}
    assert drifts(state, effects, definition="return") == {step: drift}


def test_any_effect_of_a_return_that_does_not_exist_is_drift() -> None:
    assert drifts(None, {"refund_order": "REFUNDED"}) == {
        "refund_order": Drift.REFUND_WITHOUT_RETURN
    }
    locked = {"open_return": "RETURN_PENDING"}
    assert drifts(None, locked, age=4) == {}
    assert drifts(None, locked, age=6) == {"open_return": Drift.RETURN_PENDING_WITHOUT_SAGA}
    assert drifts(None, {"open_return": "CLOSED"}) == {"open_return": Drift.EFFECT_WITHOUT_INSTANCE}


@pytest.mark.parametrize("standing", ["CONFIRMED", "RETURN_PENDING", "RETURNED"])
def test_restocked_goods_need_an_order_that_was_given_back(standing: str) -> None:
    effects = {**EVERYTHING, "create_order": standing, "reserve_stock": "RETURNED"}
    found = {"reserve_stock": Drift.RESTOCK_WITHOUT_RETURN} if standing == "CONFIRMED" else {}
    assert drifts(State.COMPLETED, effects) == found


def test_an_order_locked_by_no_return_is_drift() -> None:
    effects = {**EVERYTHING, "create_order": "RETURN_PENDING by no return"}
    assert drifts(State.COMPLETED, effects) == {"create_order": Drift.RETURN_PENDING_WITHOUT_SAGA}


def test_only_a_completed_return_has_put_goods_back() -> None:
    assert AuditedInstance("return", State.COMPLETED, SAGA).restocked == SAGA
    for other in (
        AuditedInstance("return", State.COMPENSATED, SAGA),
        AuditedInstance("order", State.COMPLETED, SAGA),
    ):
        assert other.restocked is None


def test_a_discrepancy_says_what_was_found_and_expected() -> None:
    (finding,) = looked(State.COMPENSATED, {**NOTHING_KEPT, "charge_payment": "CHARGED"}).findings
    assert finding.what == "the saga is COMPENSATED: found CHARGED, expected REFUNDED or nothing"
    assert REMEDIES.keys() == set(Drift)


def test_docs_and_help_name_every_drift() -> None:
    for page in ("docs/operations.md", "docs/runbook.md", "orchestrator/cli/audit.py"):
        text = (ROOT / page).read_text()
        assert [drift for drift in Drift if drift.replace("_", " ") not in text] == [], page


def test_a_saga_without_a_table_of_ends_is_skipped() -> None:
    found = compare(
        [SAGA], {SAGA: AuditedInstance("trip", State.COMPLETED)}, [], {}, now=NOW, grace=GRACE
    )
    assert found == Comparison(0, 1, ())


def test_the_tables_name_existing_steps() -> None:
    for table, saga in ((ORDER, ORDER_SAGA), (RETURN, RETURN_SAGA)):
        for expected in table.values():
            assert expected.keys() <= saga.by_name.keys()
