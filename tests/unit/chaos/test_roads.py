"""How processes come to a cell of the matrix: nobody waits for what may stand still there."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock
from uuid import uuid4

import pytest

from chaos.load.shop import PLENTY, shop
from chaos.matrix.cells import FENCE, OWNER, REFUND, Cell, Leg
from chaos.matrix.roads import travel
from common.kit.failpoints import Point

HERE = shop("here", stock={"tea": 50}, accounts={"ann": PLENTY})
STANDING = {REFUND: {"charge_payment": "undoing"}, FENCE: {"dispatch_stock": "fencing"}}


@pytest.mark.parametrize("leg", [REFUND, FENCE], ids=str)
def test_who_stands_still_as_soon_as_it_is_back_need_not_be_ready_first(leg: Leg) -> None:
    process = OWNER[leg.step]
    order = uuid4()
    system: Any = Mock()
    system.door.place.return_value = [order]
    # First the orders come to the pivot, if they must, then their step is undone.
    system.db.steps.side_effect = lambda _: [{"charge_payment": "sent"} | STANDING[leg]]
    fired = Mock()

    travel(system, Cell(process, Point.BATCH_BEFORE_COMMIT, leg), HERE, fired)

    system.runtime.start.assert_called_once_with(process)
    system.processes.start.assert_not_called()
    fired.assert_called_once_with()
