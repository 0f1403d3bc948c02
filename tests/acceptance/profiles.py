"""Under which settings acceptance tests run the system. A stack is up for one profile at a time.

Owns: the settings and replicas of each, and how a test says which it wants. Must not know: what
any test does.
"""

from __future__ import annotations

import pytest

from chaos.runtime import Plan

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
    # design.md, section 8, the column for fault runs: silence is noticed within seconds. Here
    # operators look, too.
    "impatient": Plan(
        settings={
            "step_timeout_seconds": "0.5",
            "step_attempts": "3",
            "backoff_cap_seconds": "2",
            "resend_cap_seconds": "2",
            "stuck_after_seconds": "10",
            "running_limit": "100",
            "start_resend_seconds": "1",
            "reconcile_every_seconds": "0.1",
            "lock_timeout_seconds": "1",
            "idle_in_transaction_seconds": "1",
            "tcp_user_timeout_seconds": "2",
            "heartbeat_seconds": "4",
            "retry_cap_seconds": "1",
        },
    ),
}


def on(*profiles: str) -> pytest.MarkDecorator:
    """The tests so marked run on a stack of each of these profiles."""
    return pytest.mark.parametrize("stage", profiles, indirect=True, scope="session")
