"""The crash matrix as a table: nothing is left out but for a reason."""

from __future__ import annotations

import random

import pytest

from chaos.cells import OWNER, PROCESSES, START, Cell, Leg, combinations, covering, possible
from chaos.roads import _PASSING, _SILENT
from common.envelope import Direction
from common.failpoints import Point
from orchestrator.order_saga import ORDER_SAGA
from orchestrator.saga import Kind


def test_the_matrix_knows_every_step_of_the_order_saga_and_its_owner() -> None:
    steps = {s.name: s.participant for s in ORDER_SAGA.steps if s.kind is not Kind.GATE}
    assert {**steps, START.step: "orchestrator"} == OWNER


def test_every_combination_is_there_once() -> None:
    cells = list(combinations())
    assert len(cells) == len(set(cells)) == len(PROCESSES) * len(Point) * len(OWNER) * 2


@pytest.mark.parametrize("point", Point, ids=str)
def test_every_failpoint_has_a_cell(point: Point) -> None:
    assert [cell for cell in possible() if cell.point is point]


def test_every_step_has_cells_in_each_direction_it_has() -> None:
    legs = {cell.leg for cell in possible()}
    never = {Leg("start", Direction.COMPENSATING), Leg("confirm_order", Direction.COMPENSATING)}
    assert legs == {Leg(step, direction) for step in OWNER for direction in Direction} - never


def test_there_is_a_road_to_every_cell() -> None:
    legs = {cell.leg for cell in possible()}
    judged = {cell.leg for cell in possible() if cell.point.startswith("reconciler.")}
    assert legs == set(_PASSING)
    assert judged == set(_SILENT)


@pytest.mark.parametrize("seed", range(5))
def test_a_covering_meets_every_failpoint_and_every_leg(seed: int) -> None:
    cells = possible()
    chosen = covering(cells, random.Random(seed))
    assert {c.point for c in chosen} == set(Point)
    assert {c.leg for c in chosen} == {c.leg for c in cells}
    assert len(chosen) < 25


@pytest.mark.parametrize(
    ("process", "point", "leg"),
    [
        ("payment", Point.RECONCILER_BEFORE_COMMIT, Leg("charge_payment", Direction.FORWARD)),
        ("payment", Point.BATCH_BEFORE_ACK, Leg("reserve_stock", Direction.FORWARD)),
        ("door", Point.BATCH_BEFORE_ACK, Leg("create_order", Direction.FORWARD)),
        ("order", Point.BATCH_BEFORE_ACK, Leg("confirm_order", Direction.COMPENSATING)),
    ],
)
def test_what_cannot_be_says_why(process: str, point: Point, leg: Leg) -> None:
    assert Cell(process, point, leg).impossible
