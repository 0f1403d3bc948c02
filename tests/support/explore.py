"""Every instance a definition can reach under decide(), and every input it could be given there.

Undo and retriable steps are attempted without end; attempts are told apart up to DEEPEST, past
which nothing new can happen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

from common.kit.settings import Policy
from common.messages.envelope import Direction, Outcome
from common.messages.errors import IllegalTransition
from orchestrator.engine.decide import Decision, decide
from orchestrator.engine.definition import Definition, Kind
from orchestrator.engine.inputs import (
    NO_APPROVALS,
    CompensateAsked,
    DeadLettered,
    GateDecided,
    Input,
    ReplyArrived,
    Resolved,
    RetryAsked,
    Started,
    TimedOut,
)
from orchestrator.engine.instance import Instance, Status
from tests.support.story import DATA, SAGA

DEEPEST = 2  # where the policy of these tests gives up
MOST = 5_000  # instances; the order saga has a few hundred


@dataclass(frozen=True)
class Transition:
    """One input to one instance. `decision` is None where it was refused as illegal."""

    before: Instance
    input_: Input
    decision: Decision | None

    @property
    def after(self) -> Instance:
        return self.decision.instance if self.decision else self.before


def inputs(definition: Definition, instance: Instance) -> Iterator[Input]:
    """Yield every input there is for this definition, whether it makes sense here or not."""
    yield Started(SAGA, DATA)
    yield CompensateAsked("ops", "asked")
    yield RetryAsked("ops", "asked")
    for step, approved in product([s.name for s in definition.steps] + ["nonsense"], (True, False)):
        yield GateDecided(step, approved, "ops", "seen")
    for step in [s.name for s in definition.steps] + ["nonsense"]:
        yield Resolved(step, "ops", "seen to")
    for step, direction in product([s.name for s in definition.steps] + ["nonsense"], Direction):
        yield DeadLettered(step, direction, "poison")
        for outcome in Outcome:
            yield ReplyArrived(step, direction, outcome)
        progress = instance.steps.get(step)
        latest = 1
        if progress is not None:
            latest = progress.attempt if direction is Direction.FORWARD else progress.undo_attempt
        for attempt, past_sla in product((latest - 1, latest, latest + 1), (False, True)):
            yield TimedOut(step, direction, attempt, past_sla)


@cache
def explore(definition: Definition, policy: Policy) -> tuple[Transition, ...]:
    """Give every input to every reachable instance, breadth first from Started on."""
    first = decide(definition, policy, None, Started(SAGA, DATA)).instance
    waiting, seen = deque([first]), {_fingerprint(first)}
    transitions: list[Transition] = []
    gates = {step.name: "policy asks" for step in definition.steps if step.kind is Kind.GATE}
    approvals = (NO_APPROVALS, gates) if gates else (NO_APPROVALS,)
    while waiting:
        instance = waiting.popleft()
        copy = replace(instance, steps=dict(instance.steps))
        for input_, asked in product(inputs(definition, instance), approvals):
            decision: Decision | None
            try:
                decision = decide(definition, policy, instance, input_, asked)
            except IllegalTransition:
                decision = None
            assert instance == copy, f"decide() changed the instance it was given: {input_}"
            transitions.append(transition := Transition(instance, input_, decision))
            if decision is not None and (found := _fingerprint(transition.after)) not in seen:
                seen.add(found)
                assert len(seen) < MOST, f"there is no end to it: {transition}"
                waiting.append(transition.after)
    return tuple(transitions)


def _fingerprint(instance: Instance) -> object:
    """Return what can still matter: attempts only while an answer is awaited, no texts."""
    steps = {
        name: (
            p.status,
            min(p.attempt, DEEPEST) if p.status is Status.SENT else None,
            min(p.undo_attempt, DEEPEST) if p.status in (Status.UNDOING, Status.FENCING) else None,
        )
        for name, p in instance.steps.items()
    }
    return (
        tuple(sorted(steps.items())),
        instance.state,
        instance.reason is not None,
        instance.compensate_asked,
        instance.pivot_passed,
        instance.stuck,
    )
