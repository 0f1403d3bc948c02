"""Every instance a definition can get into, and every input it could be given there.

Owns: breadth-first exploration of decide(). Undo and retriable steps are asked without end;
their attempts are told apart up to DEEPEST, past which nothing new can happen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from common.kit.patience import Policy
from common.messages.envelope import Direction, Outcome
from common.messages.errors import IllegalTransition
from orchestrator.engine.decide import Decision, decide
from orchestrator.engine.definition import Definition, Kind
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
    event: Input
    decision: Decision | None

    @property
    def after(self) -> Instance:
        return self.decision.instance if self.decision else self.before


def inputs(definition: Definition, instance: Instance) -> Iterator[Input]:
    """Whatever anybody could come up with, whether it makes sense or not."""
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


def explore(definition: Definition, policy: Policy) -> Iterator[Transition]:
    """Every reachable instance with every input, from Started on."""
    first = Transition(
        Instance(SAGA, definition.name, definition.version, DATA),
        Started(SAGA, DATA),
        decide(definition, policy, None, Started(SAGA, DATA)),
    )
    waiting, seen = deque([first.after]), {_fingerprint(first.after)}
    everywhere = {step.name: "policy asks" for step in definition.steps if step.kind is Kind.GATE}
    while waiting:
        instance = waiting.popleft()
        for event, asked in product(inputs(definition, instance), _asked(everywhere)):
            copy = replace(instance, steps=dict(instance.steps))
            decision: Decision | None
            try:
                decision = decide(definition, policy, instance, event, asked)
            except IllegalTransition:
                decision = None
            assert instance == copy, f"decide() changed the instance it was given: {event}"
            transition = Transition(instance, event, decision)
            yield transition
            if _fingerprint(transition.after) not in seen:
                seen.add(_fingerprint(transition.after))
                assert len(seen) < MOST, f"there is no end to it: {transition}"
                waiting.append(transition.after)


def _asked(everywhere: Approvals) -> tuple[Approvals, ...]:
    """Nobody is asked, or somebody at every gate."""
    return (NO_APPROVALS, everywhere) if everywhere else (NO_APPROVALS,)


def _fingerprint(instance: Instance) -> object:
    """What still matters of it: attempts only while an answer is awaited, no words of reasons."""
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
