"""Under which settings acceptance tests run the system. A stack is up for one profile at a time.

Owns: the settings and replicas of each, and how a test says which it wants. Must not know: what
any test does.
"""

from __future__ import annotations

import pytest

from chaos.runtime import Plan
from chaos.stack.system import FAULT_SETTINGS

CONSUMERS = ("orchestrator", "order", "payment", "inventory")
IN_THE_FLOW = (*CONSUMERS, "door")
NOT_NEEDED = {"operator": 0}

PROFILES = {
    # What a user gets; only a lost StartSaga is missed sooner.
    "plain": Plan(replicas=NOT_NEEDED, settings={"start_resend_seconds": "1"}),
    # Three of everything that takes messages. Nobody asks twice in a test's time, so what one
    # process drops stays lost: in the other profiles a resend would heal it.
    "replicas": Plan(
        replicas={**NOT_NEEDED, **dict.fromkeys(CONSUMERS, 3)},
        settings={"step_timeout_seconds": "600", "start_resend_seconds": "600"},
    ),
    # Silence is noticed within seconds. Here operators look, too.
    "impatient": Plan(settings=FAULT_SETTINGS),
    # As before, but the orchestrator is of the previous release until a test replaces it.
    "previous-release": Plan(
        settings=FAULT_SETTINGS, entry={"orchestrator": "tests.previous_release orchestrator"}
    ),
    # Inventory is of the release before until it is replaced. Nobody asks twice in a test's time:
    # what an operator does is the only way on.
    "defective": Plan(
        settings={
            "step_timeout_seconds": "600",
            "resend_cap_seconds": "600",
            "start_resend_seconds": "1",
            "bad_deploy_pause_seconds": "0.5",
            "bad_deploy_pause_cap_seconds": "0.5",
        },
        entry={"inventory": "tests.previous_release inventory_svc"},
    ),
}


def on(*profiles: str) -> pytest.MarkDecorator:
    """The tests so marked run on a stack of each of these profiles."""
    return pytest.mark.parametrize("stage", profiles, indirect=True, scope="session")
