"""The crash matrix as a table: nothing is left out but for a reason."""

from __future__ import annotations

import random
from itertools import product

import pytest

from chaos.matrix.approach import ASKED, OVERDUE, PASSING
from chaos.matrix.cells import (
    DEEDS,
    FORGET,
    LEGS,
    OWNER,
    PROCESSES,
    START,
    Cell,
    Leg,
    StackKind,
    combinations,
    covering,
    possible,
    reasons,
)
from chaos.matrix.matrix import PLANS, by_stack
from common.kit.failpoints import Point
from common.messages.envelope import Direction
from common.participant import retention
from orchestrator.engine.definition import Kind
from orchestrator.sagas.order import ORDER_SAGA


def test_the_matrix_has_every_step_and_its_owner() -> None:
    steps = {s.name: s.participant for s in ORDER_SAGA.steps if s.kind is not Kind.GATE}
    assert {**steps, START.step: "orchestrator"} == OWNER


def test_every_combination_is_there_once() -> None:
    cells = list(combinations())
    legs = len(OWNER) * 2 + len((FORGET, *DEEDS))
    assert len(cells) == len(set(cells)) == len(PROCESSES) * len(Point) * legs == 2592
    assert len(possible()) == 353
    assert sum(reasons().values()) == len(cells) - 353


@pytest.mark.parametrize("point", Point, ids=str)
def test_every_failpoint_has_a_cell(point: Point) -> None:
    assert [cell for cell in possible() if cell.point is point]


def test_every_step_has_cells_in_each_direction_it_has() -> None:
    legs = {cell.leg for cell in possible()}
    never = {Leg("start", Direction.COMPENSATING), Leg("confirm_order", Direction.COMPENSATING)}
    assert legs == set(LEGS) - never
    assert {Leg(step, direction) for step in OWNER for direction in Direction} <= set(LEGS)


def test_forgetting_has_cells_in_every_process_it_involves() -> None:
    found = {(c.process, c.kind) for c in possible() if c.leg == FORGET}
    taking_in = {"batch", "tries", "dead_letter"}
    assert found == {
        *product(("order", "payment", "inventory"), taking_in),
        *product(["orchestrator"], ("retention", "relay", "intake")),
    }
    assert FORGET.step == retention.FORGET


def test_cells_that_need_another_stack_come_together() -> None:
    stacks = [cell.stack for cell in by_stack(possible())]
    assert stacks == sorted(stacks, key=lambda stack: stack.value)
    assert set(stacks) == set(StackKind) == set(PLANS)
    assert [s for s, plan in PLANS.items() if "operator" in plan.processes] == [StackKind.ATTENDED]


def test_there_is_a_situation_for_every_cell() -> None:
    legs = {cell.leg for cell in possible() if cell.process != "operator"}
    overdue = {cell.leg for cell in possible() if cell.kind == "reconciler"}
    assert legs == {*PASSING, FORGET}
    assert overdue == set(OVERDUE)
    assert {cell.leg for cell in possible() if cell.kind == "deed"} == set(ASKED) == set(DEEDS)


@pytest.mark.parametrize("seed", range(5))
def test_a_covering_meets_every_failpoint_and_every_leg(seed: int) -> None:
    cells = possible()
    chosen = covering(cells, random.Random(seed))
    assert {c.point for c in chosen} == set(Point)
    assert {c.leg for c in chosen} == {c.leg for c in cells}
    assert len(chosen) < 32


@pytest.mark.parametrize(
    ("process", "point", "leg"),
    [
        ("payment", Point.RECONCILER_BEFORE_COMMIT, Leg("charge_payment", Direction.FORWARD)),
        ("payment", Point.BATCH_BEFORE_ACK, Leg("reserve_stock", Direction.FORWARD)),
        ("door", Point.BATCH_BEFORE_ACK, Leg("create_order", Direction.FORWARD)),
        ("order", Point.BATCH_BEFORE_ACK, Leg("confirm_order", Direction.COMPENSATING)),
        ("payment", Point.RETENTION_BEFORE_COMMIT, FORGET),
        ("orchestrator", Point.BATCH_BEFORE_ACK, FORGET),
        ("orchestrator", Point.INTERVENTION_BEFORE_COMMIT, Leg("retry", Direction.FORWARD)),
        ("operator", Point.INTERVENTION_BEFORE_COMMIT, Leg("charge_payment", Direction.FORWARD)),
    ],
)
def test_what_cannot_be_says_why(process: str, point: Point, leg: Leg) -> None:
    assert Cell(process, point, leg).impossible
