"""The order saga under its orchestrator, as one small state and every move out of it.

Owns: the state and its moves. The decisions come from the real `decide()`, and the real fence
admits commands; the participants are honest stand-ins (`participants.py`). The network repeats,
reorders and delays without bound: a message once sent can be delivered at any later time, any
number of times.

A single move loses everything in flight. Losing one message alone would add states but no
behaviour: a message in flight only makes more moves possible. So what is reachable after losing
some messages is reachable without the loss, and an end that can be reached with no message left can
be reached with some left. (`tests/drills/test_model.py` explores the losses one by one as well.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from typing import NamedTuple
from uuid import UUID

from common.kit.settings import Policy
from common.messages.envelope import Direction, Key, Outcome
from common.messages.errors import IllegalTransition
from common.storage.admission import Row
from orchestrator.engine.decide import Send, decide
from orchestrator.engine.definition import COMPENSATING, FORWARD, Kind
from orchestrator.engine.inputs import (
    NO_APPROVALS,
    Approvals,
    CompensateAsked,
    DeadLettered,
    GateDecided,
    Input,
    ReplyArrived,
    Started,
    TimedOut,
)
from orchestrator.engine.instance import (
    SETTLED_WITHOUT_EFFECT,
    Instance,
    Leg,
    Progress,
    State,
    Status,
)
from orchestrator.sagas.order import ORDER_SAGA
from tests.model.participants import Local, Numbered, Violation, handled, wrong_effects

SAGA = UUID(int=1)
POLICY = Policy(1, 2, 0.1, 1, 1, 10)  # a capped step is given up after two attempts
MANY = 2  # attempts counted: decide() only distinguishes the first from later ones
STEPS = tuple(step.name for step in ORDER_SAGA.steps)
KINDS = {step.name: step.kind for step in ORDER_SAGA.steps}
DOOR = STEPS[0]
PIVOT = next(name for name, kind in KINDS.items() if kind is Kind.PIVOT)
GATE = next(name for name, kind in KINDS.items() if kind is Kind.GATE)
POLICY_ASKS = {GATE: "the total"}
EFFECTS = frozenset(STEPS) - {GATE}

Reply = tuple[str, Direction, Outcome]


class Summary(NamedTuple):
    """The part of an instance that matters to decide(): no texts, no clocks."""

    state: State
    progress: tuple[Progress | None, ...]  # by step
    compensate_asked: bool
    pivot_passed: bool
    approval: str  # at the gate, recorded independently of decide(): "", "asked", "yes" or "no"


class World(NamedTuple):
    """The instance, the participants and the messages in flight.

    The instance and the participants are numbers of `Numbered` things, and each possible message is
    one bit: there are many worlds, so each must be small.
    """

    summary: int
    locals: tuple[int, ...]
    commands: int
    replies: int


LEGS: Numbered[Leg] = Numbered(product(STEPS, Direction))
REPLIES: Numbered[Reply] = Numbered((*leg, o) for leg in product(STEPS, Direction) for o in Outcome)
SUMMARIES: Numbered[Summary] = Numbered()
LOCALS: Numbered[Local] = Numbered()

Move = tuple[str, World]


def first() -> World:
    """Return the world right after the door wrote the order and its inbox row (rule 5)."""
    decision = decide(ORDER_SAGA, POLICY, None, Started(SAGA, {}))
    placed = Local(action=Row(Outcome.DONE, "accepted"), acted=1)
    locals_ = tuple(map(LOCALS, (placed, *(Local() for _ in STEPS[1:]))))
    summary = SUMMARIES(_summarize(decision.instance, approval=""))
    return World(summary, locals_, _bits(decision.sends), replies=0)


def moves(world: World) -> Iterator[Move]:
    """Yield every move that changes something: its description and the world after it.

    Raises Violation if a move does what must never happen.
    """
    summary, locals_, commands, replies = world
    for leg in LEGS.of(commands):
        number = STEPS.index(leg[0])
        for words, local, reply in _deliver(locals_[number], leg):
            after = (*locals_[:number], local, *locals_[number + 1 :])
            yield words, World(summary, after, commands, replies | reply)
        for decided in _on_dead_command(summary, leg):
            yield _apply(world, decided)
    for reply_ in REPLIES.of(replies):
        for decided in _on_reply(summary, reply_):
            yield _apply(world, decided)
    for decided in _on_timeout_or_person(summary):
        yield _apply(world, decided)
    if commands or replies:
        yield "everything in flight is lost", World(summary, locals_, 0, 0)


def ended(world: World) -> bool:
    return SUMMARIES[world.summary].state.ended


# --- the orchestrator ----------------------------------------------------------------------

Decided = tuple[str, int, int]  # the move in words, the summary after it, the commands sent


def _apply(world: World, decided: Decided) -> Move:
    words, summary, sent = decided
    return words, World(summary, world.locals, world.commands | sent, world.replies)


@cache
def _on_dead_command(summary: int, leg: Leg) -> list[Decided]:
    return _decide(summary, f"{_words(leg)} becomes a dead letter", DeadLettered(*leg, "poison"))


@cache
def _on_reply(summary: int, reply: Reply) -> list[Decided]:
    dead = DeadLettered(*reply[:2], "poison", reply=True)
    return [
        *_decide(summary, f"the reply {_words(reply)} arrives", ReplyArrived(*reply)),
        *_decide(summary, f"the reply {_words(reply)} becomes a dead letter", dead),
    ]


@cache
def _on_timeout_or_person(summary: int) -> list[Decided]:
    instance = _instance(SUMMARIES[summary])
    legs = instance.timed_legs()
    if not legs and not instance.state.ended:
        raise Violation("it is alive without a deadline: nothing would ever find it")
    found = _decide(summary, "an operator asks for compensation", CompensateAsked("ops", "asked"))
    for leg, attempt in legs.items():
        found += _decide(summary, f"{_words(leg)} times out", TimedOut(*leg, attempt))
    for approved in (True, False):
        input_ = GateDecided(GATE, approved, "ops", "seen")
        found += _decide(summary, f"a person {'approves' if approved else 'rejects'} it", input_)
    _check_forged_messages(summary)
    return found


def _check_forged_messages(summary: int) -> None:
    """Raise Violation if a message about the gate changes anything: nothing is ever sent to it."""
    before = SUMMARIES[summary]
    if before.progress[STEPS.index(GATE)] is None:
        return
    forged: dict[str, Input] = {
        "a reply to the gate arrives": ReplyArrived(GATE, FORWARD, Outcome.DONE),
        "a dead letter of the gate arrives": DeadLettered(GATE, FORWARD, "poison"),
    }
    if before.approval != "asked":
        forged["a gate that was decided times out"] = TimedOut(GATE, FORWARD, 0)
    for words, input_ in forged.items():
        if _decide(summary, words, input_):
            raise Violation(f"{words}, and it counts")


def _decide(summary: int, words: str, input_: Input) -> list[Decided]:
    """Return what decide() makes of an input, if anything.

    Before the gate is reached, a reply may be decided in two ways: policy asks for approval or not.
    """
    found = _decide_given(NO_APPROVALS, summary, words, input_)
    if isinstance(input_, ReplyArrived) and SUMMARIES[summary].progress[STEPS.index(GATE)] is None:
        found += _decide_given(POLICY_ASKS, summary, f"{words} policy asks,", input_)
    return found


def _decide_given(approvals: Approvals, summary: int, words: str, input_: Input) -> list[Decided]:
    before = SUMMARIES[summary]
    illegal = _why_illegal(before, input_)
    try:
        decision = decide(ORDER_SAGA, POLICY, _instance(before), input_, approvals)
    except IllegalTransition as refused:
        if illegal:
            return []
        raise Violation(f"{words}, and decide() cannot take it: {refused}") from refused
    if illegal:
        raise Violation(illegal)
    approval = _approval_after(before, decision.instance, input_, approvals)
    after = _summarize(decision.instance, approval)
    for send in decision.sends:
        _check_send(after, send)
    if after == before and not decision.sends:
        return []
    return [(words, SUMMARIES(after), _bits(decision.sends))]


def _why_illegal(before: Summary, input_: Input) -> str | None:
    """Return what would be wrong if decide() granted this input, or None if it may."""
    if isinstance(input_, CompensateAsked) and (before.pivot_passed or before.state.ended):
        return "compensation is granted past the pivot or after the end"
    if isinstance(input_, GateDecided) and before.approval != "asked":
        return "a person decides at a gate that asks no one, or no longer"
    return None


def _approval_after(before: Summary, after: Instance, input_: Input, approvals: Approvals) -> str:
    """Record the approval from the events themselves, not from what decide() made of them."""
    gate = (GATE, FORWARD)
    if before.approval == "asked":
        if isinstance(input_, GateDecided):
            return "yes" if input_.approved else "no"
        expired = isinstance(input_, TimedOut) and (input_.step, input_.direction) == gate
        return "no" if expired or isinstance(input_, CompensateAsked) else "asked"
    if before.approval == "" and GATE in after.steps:
        return "asked" if approvals else "yes"
    return before.approval


def _check_send(after: Summary, send: Send) -> None:
    """Raise Violation if this command must not be sent by a decision that leads to `after`."""
    if send.step == GATE:
        raise Violation("a command is sent to the gate")
    beyond = send.direction is FORWARD and STEPS.index(send.step) > STEPS.index(GATE)
    if beyond and after.approval != "yes":
        raise Violation(f"{send.step} is sent without approval at the gate")
    status = {
        name: p.status for name, p in zip(STEPS, after.progress, strict=True) if p is not None
    }
    undo = send.direction is COMPENSATING and send.step != PIVOT
    if undo and status.get(PIVOT) in (Status.SENT, Status.FENCING):
        raise Violation(f"the undo of {send.step} is sent while the pivot is unknown")
    if undo and send.step == DOOR:
        others = {s for name, s in status.items() if name != DOOR}
        if others - SETTLED_WITHOUT_EFFECT:
            raise Violation("the customer is told before everything else is undone")


def _bits(sends: Iterable[Send]) -> int:
    return LEGS.bits((send.step, send.direction) for send in sends)


def _instance(summary: Summary) -> Instance:
    state, progress, asked, passed, _ = summary
    steps = {name: p for name, p in zip(STEPS, progress, strict=True) if p is not None}
    return Instance(SAGA, "order", 2, {}, state, steps, compensate_asked=asked, pivot_passed=passed)


def _summarize(instance: Instance, approval: str) -> Summary:
    return Summary(
        instance.state,
        tuple(_saturate(instance.steps.get(name)) for name in STEPS),
        instance.compensate_asked,
        instance.pivot_passed,
        approval,
    )


def _saturate(progress: Progress | None) -> Progress | None:
    """Count attempts up to MANY, and only while an answer is awaited: the states stay finite."""
    if progress is None or progress.status is Status.WAITING:
        return progress
    attempt = progress.attempt if progress.status is Status.SENT else 1
    live = progress.status in (Status.UNDOING, Status.FENCING)
    undo_attempt = progress.undo_attempt if live else 0
    return replace(progress, attempt=min(attempt, MANY), undo_attempt=min(undo_attempt, MANY))


# --- the participants ----------------------------------------------------------------------


@cache
def _deliver(number: int, leg: Leg) -> list[tuple[str, int, int]]:
    """Return each result of delivering a command: words, the participant after it, its reply."""
    return [
        (
            f"{_words(leg)} is delivered: {words}",
            LOCALS(after),
            REPLIES.bits([(*leg, outcome)]) if outcome else 0,
        )
        for words, after, outcome in handled(LOCALS[number], Key(SAGA, *leg), PIVOT)
    ]


# --- what must hold ------------------------------------------------------------------------


def check(world: World) -> None:
    """Raise Violation if this world must not be."""
    wrong = _wrong(SUMMARIES[world.summary].state, world.locals)
    if wrong:
        raise Violation(wrong)


@cache
def _wrong(state: State, numbers: tuple[int, ...]) -> str | None:
    locals_ = {name: LOCALS[number] for name, number in zip(STEPS, numbers, strict=True)}
    if wrong := wrong_effects(locals_, PIVOT):
        return wrong
    acted = {name for name, local in locals_.items() if local.acted}
    undone = {name for name, local in locals_.items() if local.undone}
    if state is State.COMPLETED and acted != EFFECTS:
        return f"COMPLETED without {', '.join(sorted(EFFECTS - acted))}"
    if state is State.COMPENSATED and acted != undone:
        return f"COMPENSATED, and {', '.join(sorted(acted - undone))} has its effect"
    return None


def forget() -> None:
    """Clear the caches: a guard was removed or put back since they were filled."""
    for cached in (_on_dead_command, _on_reply, _on_timeout_or_person, _deliver, _wrong):
        cached.cache_clear()


def _words(about: Leg | Reply) -> str:
    step, direction, *outcome = about
    name = step if direction is FORWARD else f"the {'fence' if step == PIVOT else 'undo'} of {step}"
    return f"{name}, {outcome[0]}," if outcome else name
