"""Given, when, then, for tests of decide() on one saga instance.

given(ORDER_SAGA).awaiting("charge_payment")
    .refused("charge_payment", "card_declined").expect(undo("reserve_stock"))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self
from uuid import UUID

import pytest

from common.kit.settings import Policy
from common.messages.envelope import Direction, Outcome
from common.messages.errors import IllegalTransition
from orchestrator.engine.decide import Decision, Send, decide
from orchestrator.engine.definition import COMPENSATING, FORWARD, Definition
from orchestrator.engine.inputs import (
    NO_APPROVALS,
    Approvals,
    CompensateAsked,
    DeadLettered,
    GateDecided,
    Input,
    ReplyArrived,
    Resolved,
    RetryAsked,
    StartDeadLettered,
    Started,
    TimedOut,
)
from orchestrator.engine.instance import Instance, State, Status

SAGA = UUID(int=42)
DATA: Mapping[str, Any] = {
    "customer": "ada",
    "currency": "EUR",
    "lines": [{"sku": "tea", "quantity": 2}],
    "total": 700,
}
POLICY = Policy(
    timeout_seconds=5,
    attempts=2,
    backoff_first_seconds=0.2,
    backoff_cap_seconds=30,
    resend_cap_seconds=60,
    stuck_after_seconds=300,
)


def ask(step: str, attempt: int = 1) -> Send:
    return Send(step, FORWARD, attempt)


def undo(step: str, attempt: int = 1) -> Send:
    return Send(step, COMPENSATING, attempt)


fence = undo  # what the undo of a pivot is called


class Story:
    """One instance, and the decision about its last input."""

    def __init__(self, definition: Definition, policy: Policy) -> None:
        self.definition = definition
        self.policy = policy
        self.asked: Approvals = NO_APPROVALS
        self._decision: Decision | None = None

    @property
    def decision(self) -> Decision:
        assert self._decision is not None, "the story has not begun: .started() or .awaiting()"
        return self._decision

    @property
    def instance(self) -> Instance:
        return self.decision.instance

    # --- given ---

    def policy_asks(self, **gates: str) -> Self:
        """Make the policy ask a person at these gates, for this reason, from here on."""
        self.asked = gates
        return self

    def parked(self, gate: str) -> Self:
        """Complete every step before the gate, and wait there."""
        self.policy_asks(**{gate: "a large total"}).started()
        while self.instance.state is not State.WAITING:
            ((waiting, _),) = self.instance.awaited()
            self.done(waiting)
        return self

    def started(self) -> Self:
        self._decision = decide(self.definition, self.policy, None, Started(SAGA, DATA))
        return self

    def awaiting(self, step: str) -> Self:
        """Complete every step before this one, and send it."""
        self.started()
        while step not in self.instance.steps:
            ((waiting, _),) = self.instance.awaited()
            self.done(waiting)
        return self

    def completed(self) -> Self:
        last = self.definition.steps[-1].name
        return self.awaiting(last).done(last)

    # --- what happens ---

    def when(self, input_: Input) -> Self:
        self._decision = decide(self.definition, self.policy, self.instance, input_, self.asked)
        return self

    def replied(self, step: str, outcome: Outcome, direction: Direction = FORWARD) -> Self:
        return self.when(ReplyArrived(step, direction, outcome))

    def done(self, step: str) -> Self:
        return self.replied(step, Outcome.DONE)

    def refused(self, step: str, reason: str) -> Self:
        return self.when(ReplyArrived(step, FORWARD, Outcome.REFUSED, "Refusal", reason))

    def undone(self, step: str) -> Self:
        return self.replied(step, Outcome.DONE, COMPENSATING)

    def fence_says(self, step: str, outcome: Outcome) -> Self:
        return self.replied(step, outcome, COMPENSATING)

    def timed_out(
        self, step: str, direction: Direction = FORWARD, *, times: int = 1, past_sla: bool = False
    ) -> Self:
        """Let the deadline of its latest attempt pass."""
        for _ in range(times):
            progress = self.instance.steps[step]
            attempt = progress.attempt if direction is FORWARD else progress.undo_attempt
            self.when(TimedOut(step, direction, attempt, past_sla))
        return self

    def dead(self, step: str, direction: Direction = FORWARD) -> Self:
        return self.when(DeadLettered(step, direction, "poison"))

    def start_dead(self) -> Self:
        before = self._decision.instance if self._decision else None
        input_ = StartDeadLettered(SAGA, DATA, "poison")
        self._decision = decide(self.definition, self.policy, before, input_)
        return self

    def reply_dead(self, step: str, direction: Direction = FORWARD) -> Self:
        return self.when(DeadLettered(step, direction, "poison", reply=True))

    def asked_to_compensate(self, reason: str = "customer_called") -> Self:
        return self.when(CompensateAsked("ops", reason))

    def approved(self, gate: str) -> Self:
        return self.when(GateDecided(gate, True, "ops", "seen"))

    def rejected(self, gate: str) -> Self:
        return self.when(GateDecided(gate, False, "ops", "seen"))

    def asked_to_retry(self) -> Self:
        return self.when(RetryAsked("ops", "payment_is_back"))

    def resolved(self, step: str) -> Self:
        return self.when(Resolved(step, "ops", "refunded by hand"))

    # --- what is expected ---

    def expect(self, *sends: Send) -> Self:
        """Expect exactly these sends of the last input."""
        assert self.decision.sends == sends
        return self

    def expect_nothing(self) -> Self:
        return self.expect()

    def expect_state(
        self, state: State, *, reason: str | None = None, stuck: bool | None = None
    ) -> Self:
        assert self.instance.state is state
        if reason is not None:
            assert self.instance.reason == reason
        if stuck is not None:
            assert self.instance.stuck is stuck
        return self

    def expect_status(self, **statuses: Status) -> Self:
        assert {name: self.instance.steps[name].status for name in statuses} == statuses
        return self

    def expect_logged(self, *entries: str) -> Self:
        assert tuple(entry.kind for entry in self.decision.log) == entries
        return self

    def expect_ignored(self, input_: Input) -> Self:
        """Expect the input to be logged and to change nothing (rule 3)."""
        before = self.instance
        self.when(input_).expect_nothing().expect_logged("ignored")
        assert self.instance == before
        return self

    def expect_illegal(self, input_: Input, match: str) -> Self:
        """Expect the input to raise and to change nothing."""
        before, statuses = self.instance, dict(self.instance.steps)
        with pytest.raises(IllegalTransition, match=match):
            self.when(input_)
        assert self.instance == before
        assert self.instance.steps == statuses
        return self


def given(definition: Definition, policy: Policy = POLICY) -> Story:
    return Story(definition, policy)
