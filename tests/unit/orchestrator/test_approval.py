"""The policy of the gate: thresholds, the watch list, and the definition's own gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.engine.approval import ApprovalPolicy, before_a_gate
from orchestrator.engine.definition import Definition, Kind
from orchestrator.engine.instance import Instance, Progress, Status
from orchestrator.sagas.order import ORDER_SAGA, ORDER_SAGA_V1
from tests.support.story import DATA, SAGA

GATE = "approve_order"


def instance(data: Mapping[str, Any] = DATA, **steps: Progress) -> Instance:
    return Instance(SAGA, "order", 2, data, steps=steps)


@pytest.mark.parametrize(
    ("thresholds", "watched", "why"),
    [
        ({}, None, None),
        ({"EUR": 701}, None, None),
        ({"USD": 1}, None, None),
        ({"EUR": 700}, None, "total 700 EUR reaches 700"),
        ({"EUR": 0}, None, "total 700 EUR reaches 0"),
        ({}, "chargebacks", "customer ada is watched: chargebacks"),
        ({"EUR": 700}, "chargebacks", "total 700 EUR reaches 700"),
    ],
)
def test_approvals_required_and_why(
    thresholds: dict[str, int], watched: str | None, why: str | None
) -> None:
    asked = ApprovalPolicy(thresholds).required(ORDER_SAGA, instance(), watched)
    assert asked == ({GATE: why} if why else {})


@pytest.mark.parametrize("data", [{}, {"total": "700", "currency": "EUR"}, {"total": 700}])
def test_data_without_a_total_reach_no_threshold(data: dict[str, Any]) -> None:
    assert ApprovalPolicy({"EUR": 0}).required(ORDER_SAGA, instance(data), None) == {}


def test_a_gate_already_passed_requires_no_approval() -> None:
    behind = instance(approve_order=Progress(Status.OPEN, attempt=0))
    assert ApprovalPolicy({"EUR": 0}).required(ORDER_SAGA, behind, "chargebacks") == {}


def test_a_definition_may_ask_for_itself() -> None:
    steps = tuple(
        replace(step, asks=lambda data: f"{data['customer']} asked for it")
        if step.kind is Kind.GATE
        else step
        for step in ORDER_SAGA.steps
    )
    asking = Definition("order", 9, steps)
    assert ApprovalPolicy().required(asking, instance(), None) == {GATE: "ada asked for it"}


def test_only_steps_before_a_gate_read_the_watch_list() -> None:
    assert before_a_gate(ORDER_SAGA) == {"reserve_stock"}
    assert before_a_gate(ORDER_SAGA_V1) == frozenset()
