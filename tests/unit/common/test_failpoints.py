"""Failpoints: each has its call sites, and acts when and only when it is armed to."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from uuid import UUID

import pytest

from common.kit import failpoints
from common.kit.failpoints import ARMINGS, Action, Arming, Commit, Point, Tripped
from common.messages.envelope import Direction, Key

ROOT = Path(__file__).parents[3]
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


Function = ast.AsyncFunctionDef | ast.FunctionDef

# Where a publish or an ack stands without a failpoint, and why.
WITHOUT = {
    "common/process/send.py send": "a client's own command: it retries under the same key",
    "common/transport/query.py ask": "a question: nothing follows from it; it has a deadline",
    "common/transport/query.py ask_everybody": "a question as well",
    "common/transport/query.py run": "an answer, which has no effect",
}
# Transactions that name no Commit: nothing is sent by them, or the relay's own points surround it.
UNNAMED = {
    "common/transport/relay.py poll": "has the points of the relay",
    "orchestrator/operator/watch_list.py add": "a row and its record; nothing is sent",
    "orchestrator/operator/watch_list.py remove": "a row and its record; nothing is sent",
}


@cache
def functions() -> list[tuple[str, Function]]:
    """Every function of the services' own, by file and name."""
    return [
        (f"{file.relative_to(ROOT)} {node.name}", node)
        for file in sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, Function)
    ]


def own(root: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a function, without those of functions in it."""
    for node in ast.iter_child_nodes(root):
        if not isinstance(node, Function):
            yield node
            yield from own(node)


def points(nodes: Iterable[ast.AST]) -> list[str]:
    """Return the points passed to reach() there, in order."""
    return [
        node.args[0].attr
        for node in nodes
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "failpoints.reach"
        and isinstance(node.args[0], ast.Attribute)
        and node.args[0].attr in Point.__members__
    ]


def calls(nodes: Iterable[ast.AST], *methods: str) -> list[ast.Call]:
    return [
        node
        for node in nodes
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in methods
    ]


def beside(function: Function, node: ast.AST) -> tuple[list[str], list[str], list[str]]:
    """Return the points a function reaches before, within and after this part of it."""
    first, last = node.lineno, node.end_lineno or 0  # type: ignore[attr-defined]
    within = list(ast.walk(node))
    others = [n for n in own(function) if isinstance(n, ast.Call) and n not in within]
    return (
        points(n for n in others if n.lineno < first),
        points(within),
        points(n for n in others if n.lineno > last),
    )


def bare(function: Function) -> Iterator[str]:
    """Yield each publish or ack that has no failpoint on one side of it."""
    for call in calls(own(function), "publish", "ack"):
        before, on_its_way, after = beside(function, call)
        if not (before and (on_its_way or after)):
            yield f"{ast.unparse(call.func)} in line {call.lineno}"


def commits(nodes: Iterable[ast.AST]) -> Iterator[Commit]:
    """Yield what is passed to transaction() there, or to the orchestrator's batch()."""
    for call in calls(nodes, "transaction", "batch"):
        for argument in call.args[:1]:
            if isinstance(argument, ast.Attribute) and argument.attr in Commit.__members__:
                yield Commit[argument.attr]


def sets_keys(function: Function) -> bool:
    """Return whether it says what its transaction has in hand."""
    return any(
        isinstance(target, ast.Attribute) and target.attr == "keys"
        for node in own(function)
        if isinstance(node, ast.Assign)
        for target in node.targets
    )


def test_a_transaction_names_its_commit_or_its_reason_not_to() -> None:
    unnamed = {
        name
        for name, function in functions()
        for call in calls(own(function), "transaction")
        if isinstance(call.args[0], ast.Constant)
    }
    assert unnamed == UNNAMED.keys()


def test_every_transaction_says_what_it_has_in_hand() -> None:
    """Without keys its failpoints never act, and the matrix has a cell that it cannot reach."""
    silent = [
        name
        for name, function in functions()
        if any(commits(own(function))) and not sets_keys(function)
    ]
    assert silent == []


@pytest.mark.parametrize("point", Point, ids=str)
def test_every_failpoint_has_a_call_site(point: Point) -> None:
    nodes = [node for _, function in functions() for node in own(function)]
    reached = {Point[name] for name in points(nodes)}
    reached |= {point for commit in commits(nodes) for point in (commit.before, commit.after)}
    assert point in reached, f"nothing reaches {point}: call failpoints.reach, or remove it"


def test_every_publish_and_ack_has_failpoints_around_it() -> None:
    found = {
        name: what
        for name, function in functions()
        if not name.startswith("common/transport/broker.py") and (what := list(bare(function)))
    }
    assert {name: what for name, what in found.items() if name not in WITHOUT} == {}
    assert found.keys() == WITHOUT.keys()  # no excuse that is not needed


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
