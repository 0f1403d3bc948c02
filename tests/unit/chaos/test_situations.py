"""Situations: what is away comes back, and nothing waits for what may freeze on its return."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock, Mock, call
from uuid import UUID, uuid4

import pytest

from chaos.load.shop import shop
from chaos.matrix.approach import travel
from chaos.matrix.cells import FENCE, OWNER, REFUND, Cell, Leg
from chaos.scenarios.scene import Scene
from chaos.scenarios.situations import FENCE_WAITS, FENCED, STOCK_RELEASED, reach
from chaos.stack.database import CONFIRMED
from chaos.waiting import ExperimentError
from common.kit.failpoints import Point

HERE = shop("here", stock={"tea": 50}, accounts={"ann": 1_000})
ASKS = [HERE.order("ann", tea=1)]
REACHED = {REFUND: {"charge_payment": "undoing"}, FENCE: {"dispatch_stock": "fencing"}}
ORDER = uuid4()


def a_scene(*steps: dict[str, str]) -> tuple[Scene, Any]:
    """Make a scene whose one order passes through these steps, the last of them for ever."""
    system: Any = MagicMock()
    system.door.place.return_value = [ORDER]
    left = list(steps)
    system.db.steps.side_effect = lambda _: [left.pop(0) if len(left) > 1 else left[0]]
    return Scene(system, "here", seed=0, count=1), system


@pytest.mark.parametrize("leg", [REFUND, FENCE], ids=str)
def test_a_process_that_may_freeze_need_not_be_ready_first(leg: Leg) -> None:
    process = OWNER[leg.step]
    scene, system = a_scene({"charge_payment": "sent"} | REACHED[leg])
    fired = Mock()
    travel(scene, Cell(process, Point.BATCH_BEFORE_COMMIT, leg), ASKS, fired)
    system.runtime.start.assert_called_once_with(process)
    system.processes.revive.assert_not_called()
    fired.assert_called_once_with()


def test_inventory_goes_away_only_once_the_goods_are_reserved() -> None:
    scene, system = a_scene(
        {}, {"charge_payment": "sent"}, {"charge_payment": "done", "dispatch_stock": "fencing"}
    )
    with reach(scene, FENCE_WAITS) as orders:
        assert orders == [ORDER]
        assert system.runtime.mock_calls == [
            call.pause("payment"), call.stop("inventory"), call.resume("payment")
        ]  # fmt: skip
    system.processes.revive.assert_called_once_with("inventory")
    assert scene.under_way == 1
    assert {CONFIRMED, FENCED} <= scene.allowed[ORDER]


def test_what_is_away_comes_back_after_a_failure() -> None:
    scene, system = a_scene({"charge_payment": "refused", "reserve_stock": "undone"})

    def fail(_: list[UUID]) -> None:
        raise ExperimentError("wrong")

    with pytest.raises(ExperimentError, match="wrong"), reach(scene, STOCK_RELEASED) as orders:
        fail(orders)
    system.processes.revive.assert_called_once_with("payment")
