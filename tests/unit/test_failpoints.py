"""Failpoints: each has its call sites, and acts when and only when it is armed to."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from common import failpoints
from common.envelope import Direction, Key
from common.failpoints import ARMINGS, Action, Arming, Point, Tripped

ROOT = Path(__file__).parents[2]
ROOMS = ("common", "orchestrator", "order_svc", "payment_svc", "inventory_svc")
FORWARD, COMPENSATING = Direction.FORWARD, Direction.COMPENSATING
CHARGE = Key(UUID(int=1), "charge_payment", FORWARD)
REFUND = Key(UUID(int=1), "charge_payment", COMPENSATING)
RESERVE = Key(UUID(int=1), "reserve_stock", FORWARD)
HERE, THERE = Point.BATCH_BEFORE_COMMIT, Point.BATCH_AFTER_COMMIT


@pytest.fixture
def armory(tmp_path: Path) -> Iterator[Path]:
    failpoints.watch(tmp_path, "payment")
    yield tmp_path / "payment"
    failpoints.watch(None, "payment")


def arm(armory: Path, *armings: Arming) -> None:
    armory.write_bytes(ARMINGS.dump_json(list(armings)))


def trip(step: str | None = None, direction: Direction | None = None, hit: int = 1) -> Arming:
    return Arming(HERE, step, direction, hit, Action.RAISE)


def reached() -> set[str]:
    """Every point that some module of ours passes to reach()."""
    found = set()
    for file in (file for room in ROOMS for file in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) == "failpoints.reach"
                and isinstance(node.args[0], ast.Attribute)
            ):
                found.add(node.args[0].attr)
    return found


@pytest.mark.parametrize("point", Point, ids=str)
def test_every_failpoint_has_a_call_site(point: Point) -> None:
    assert point.name in reached(), f"nothing reaches {point}: call failpoints.reach, or remove it"


def test_nothing_happens_where_nothing_is_armed(armory: Path) -> None:
    failpoints.reach(HERE, [CHARGE])
    assert not armory.exists()


def test_unwatched_a_point_does_not_even_look_at_what_is_in_hand() -> None:
    failpoints.watch(None, "payment")

    def keys() -> Iterator[Key]:
        raise AssertionError("looked at")
        yield CHARGE

    failpoints.reach(HERE, keys())


def test_it_is_disarmed_before_it_acts(armory: Path) -> None:
    arm(armory, trip())
    with pytest.raises(Tripped, match=HERE):
        failpoints.reach(HERE, [CHARGE])
    assert not armory.exists()
    failpoints.reach(HERE, [CHARGE])


@pytest.mark.parametrize(
    ("arming", "keys", "acts"),
    [
        (trip(), [], False),
        (trip(), [REFUND], True),
        (trip("charge_payment"), [REFUND], True),
        (trip("charge_payment"), [RESERVE], False),
        (trip("charge_payment", FORWARD), [REFUND], False),
        (trip("charge_payment", FORWARD), [RESERVE, REFUND, CHARGE], True),
        (Arming(THERE, action=Action.RAISE), [CHARGE], False),
    ],
)
def test_it_acts_if_any_member_of_the_batch_matches(
    armory: Path, arming: Arming, keys: list[Key], acts: bool
) -> None:
    arm(armory, arming)
    if acts:
        with pytest.raises(Tripped):
            failpoints.reach(HERE, keys)
    else:
        failpoints.reach(HERE, keys)
    assert armory.exists() is not acts


def test_it_waits_for_the_hit_it_is_armed_for(armory: Path) -> None:
    arm(armory, trip("charge_payment", hit=3))
    failpoints.reach(HERE, [CHARGE])
    failpoints.reach(HERE, [RESERVE])  # no hit
    failpoints.reach(HERE, [CHARGE])
    with pytest.raises(Tripped):
        failpoints.reach(HERE, [CHARGE])


def test_several_act_one_after_another(armory: Path) -> None:
    arm(armory, trip("charge_payment"), trip("reserve_stock"))
    failpoints.reach(HERE, [RESERVE])  # not its turn yet
    with pytest.raises(Tripped):
        failpoints.reach(HERE, [CHARGE])
    with pytest.raises(Tripped):
        failpoints.reach(HERE, [RESERVE])
    assert not armory.exists()
