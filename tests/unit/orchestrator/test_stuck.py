"""Each cause of a stuck saga, and what to type."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.engine.definition import COMPENSATING, Definition
from orchestrator.engine.instance import Instance
from orchestrator.engine.saga_log import Entry
from orchestrator.operator.stuck import Cause, StuckBecause, explain, when_overdue
from orchestrator.sagas.order import ORDER_SAGA
from tests.support.story import DATA, SAGA, given

UNDOING = (
    given(ORDER_SAGA).awaiting("charge_payment").refused("charge_payment", "no").instance
)  # its stock is being released
FENCING = given(ORDER_SAGA).awaiting("dispatch_stock").timed_out("dispatch_stock", times=2).instance
UNBEGUN = Instance(SAGA, "order", 2, DATA)
TIMED_OUT = Entry("timed_out", "reserve_stock", COMPENSATING, 3)
DEAD = Entry("dead_lettered", "reserve_stock", COMPENSATING, detail="exhausted")


def why(
    instance: Instance,
    trouble: Entry | None = None,
    *,
    definition: Definition | None = ORDER_SAGA,
    undeployed: bool = False,
    unjudgeable: str | None = None,
    overdue: float = 0,
) -> StuckBecause:
    return explain(
        definition,
        instance,
        undeployed=undeployed,
        unjudgeable=unjudgeable,
        overdue_seconds=overdue,
        trouble=trouble,
    )


@pytest.mark.parametrize(
    ("found", "cause", "said", "remedy"),
    [
        (why(UNDOING, TIMED_OUT), Cause.SILENT, "inventory: the undo of reserve_stock", "retry ID"),
        (why(UNDOING), Cause.SILENT, "no answer from inventory", "resolve ID reserve_stock"),
        (why(UNDOING, DEAD), Cause.DEAD_LETTER, "is a dead letter: exhausted", "redrive"),
        (why(UNDOING, DEAD, overdue=61), Cause.UNJUDGED, "61 s ago", "saga doctor"),
        (why(UNDOING, overdue=59), Cause.SILENT, "no answer", "saga doctor"),
        (why(UNBEGUN), Cause.UNBEGUN, "the message that starts it", "dead-letters"),
        (why(UNDOING, definition=None), Cause.SILENT, "its participant", "retry ID"),
        (
            why(UNDOING, DEAD, undeployed=True, overdue=900, definition=None),
            Cause.UNDEPLOYED, "definition version is not deployed: order v2", "deploy",
        ),
        (
            why(UNDOING, DEAD, undeployed=True, unjudgeable="no carrier", overdue=900),
            Cause.UNJUDGEABLE, "cannot decide about it: no carrier", "deploy a release that can",
        ),
    ],
)  # fmt: skip
def test_each_cause_has_its_remedy(
    found: StuckBecause, cause: Cause, said: str, remedy: str
) -> None:
    assert found.cause is cause
    assert said in found.why
    assert remedy in found.remedy


def test_the_remedy_never_resolves_the_pivot() -> None:
    found = why(FENCING)
    assert "whether dispatch_stock happened" in found.why
    assert "resolve" not in found.remedy


def test_overdue_is_zero_before_the_deadline() -> None:
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert when_overdue(None, noon) == 0
    assert when_overdue(noon, noon + timedelta(seconds=90)) == 90
    assert when_overdue(noon, noon - timedelta(seconds=90)) == 0
