"""The order saga and its participants as one small state, and everything that can happen to it.

Owns: the state, and one step of it in each way there is. What decides is the real `decide()`, what
admits is the real fence; the rest is honest participants that remember what they did, and
a network that repeats, reorders, delays and loses without bound: a message once sent can be
delivered at any later time, and again and again, until it is lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from typing import NamedTuple
from uuid import UUID

from common.kit.patience import Policy
from common.messages.envelope import Direction, Key, Outcome
from common.messages.errors import IllegalTransition
from common.storage.fence import Row
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
POLICY = Policy(1, 2, 0.1, 1, 1, 10)  # two attempts, then it is given up
MANY = 2  # asked without end: decide() tells the first attempt from all others
STEPS = tuple(step.name for step in ORDER_SAGA.steps)
KINDS = {step.name: step.kind for step in ORDER_SAGA.steps}
DOOR = STEPS[0]
PIVOT = next(name for name, kind in KINDS.items() if kind is Kind.PIVOT)
GATE = next(name for name, kind in KINDS.items() if kind is Kind.GATE)
POLICY_ASKS = {GATE: "the total"}
EFFECTS = frozenset(STEPS) - {GATE}

Reply = tuple[str, Direction, Outcome]


class Standing(NamedTuple):
    """The instance, without words and clocks."""

    state: State
    progress: tuple[Progress | None, ...]
    asked: bool  # somebody wants it compensated
    passed: bool  # the pivot
    said: str  # at the gate, as those who were asked remember it: "", "asked", "yes" or "no"


class World(NamedTuple):
    """All there is: the instance, the participants, and what is in flight.

    Standing and locals are numbers of `Numbered` things, and what is in flight is a bit for each
    message there can be: there are many worlds.
    """

    standing: int
    locals: tuple[int, ...]
    commands: int
    replies: int


LEGS: Numbered[Leg] = Numbered(product(STEPS, Direction))
REPLIES: Numbered[Reply] = Numbered((*leg, o) for leg in product(STEPS, Direction) for o in Outcome)
STANDINGS: Numbered[Standing] = Numbered()
LOCALS: Numbered[Local] = Numbered()

Move = tuple[str, World]


def first() -> World:
    """The order was placed at the door, whose inbox row says so (section 6, rule 5)."""
    decision = decide(ORDER_SAGA, POLICY, None, Started(SAGA, {}))
    placed = Local(action=Row(Outcome.DONE, "accepted"), acted=1)
    locals_ = tuple(map(LOCALS, (placed, *(Local() for _ in STEPS[1:]))))
    sent = LEGS.bits((send.step, send.direction) for send in decision.sends)
    return World(STANDINGS(_standing(decision.instance, "")), locals_, sent, 0)


def moves(world: World) -> Iterator[Move]:
    """Everything that can happen next and changes something, in words, and what comes of it.

    Raises Violation.
    """
    standing, locals_, commands, replies = world
    for leg in LEGS.of(commands):
        number = STEPS.index(leg[0])
        for words, local, reply in _handled(locals_[number], leg):
            after = (*locals_[:number], local, *locals_[number + 1 :])
            yield words, World(standing, after, commands, replies | reply)
        yield f"{_words(leg)} is lost", world._replace(commands=commands - LEGS.bits([leg]))
        for decided in _dead(standing, leg):
            yield _on(world, decided)
    for reply_ in REPLIES.of(replies):
        left = replies - REPLIES.bits([reply_])
        yield f"the reply {_words(reply_)} is lost", world._replace(replies=left)
        for decided in _heard(standing, reply_):
            yield _on(world, decided)
    for decided in _unasked(standing):
        yield _on(world, decided)


def ended(world: World) -> bool:
    return STANDINGS[world.standing].state.ended


# --- the orchestrator ----------------------------------------------------------------------

Decided = tuple[str, int, int]  # in words, the standing, what is sent


def _on(world: World, decided: Decided) -> Move:
    words, standing, sent = decided
    return words, World(standing, world.locals, world.commands | sent, world.replies)


@cache
def _dead(standing: int, leg: Leg) -> list[Decided]:
    return _told(standing, f"{_words(leg)} becomes a dead letter", DeadLettered(*leg, "poison"))


@cache
def _heard(standing: int, reply: Reply) -> list[Decided]:
    dead = DeadLettered(*reply[:2], "poison", reply=True)
    return [
        *_told(standing, f"the reply {_words(reply)} arrives", ReplyArrived(*reply)),
        *_told(standing, f"the reply {_words(reply)} becomes a dead letter", dead),
    ]


@cache
def _unasked(standing: int) -> list[Decided]:
    """Silence, and people."""
    instance = _instance(STANDINGS[standing])
    legs = instance.timed_legs()
    if not legs and not instance.state.ended:
        raise Violation("it is alive and has no deadline: nobody would ever find it")
    found = _told(standing, "an operator asks for compensation", CompensateAsked("ops", "asked"))
    for leg, attempt in legs.items():
        found += _told(standing, f"{_words(leg)} is silent for too long", TimedOut(*leg, attempt))
    for approved in (True, False):
        decided = GateDecided(GATE, approved, "ops", "seen")
        found += _told(standing, f"a person {'approves' if approved else 'rejects'} it", decided)
    return found + _forged(standing)


def _forged(standing: int) -> list[Decided]:
    """About the gate, to which nothing is ever sent: what must change nothing, should it come."""
    before = STANDINGS[standing]
    if before.progress[STEPS.index(GATE)] is None:
        return []
    forged: dict[str, Input] = {
        "a reply to the gate comes": ReplyArrived(GATE, FORWARD, Outcome.DONE),
        "a dead letter of the gate comes": DeadLettered(GATE, FORWARD, "poison"),
    }
    if before.said != "asked":
        forged["a deadline of the gate that is decided passes"] = TimedOut(GATE, FORWARD, 0)
    for words, event in forged.items():
        if _told(standing, words, event):
            raise Violation(f"{words}, and counts")
    return []


def _told(standing: int, words: str, event: Input) -> list[Decided]:
    """What the real decide() makes of an input that really can come, if it changes anything;
    before the gate, whether policy asks there or not."""
    told = _told_if(standing, words, event, NO_APPROVALS)
    if isinstance(event, ReplyArrived) and STANDINGS[standing].progress[STEPS.index(GATE)] is None:
        told += _told_if(standing, f"{words} policy asks,", event, POLICY_ASKS)
    return told


def _told_if(standing: int, words: str, event: Input, asked: Approvals) -> list[Decided]:
    before = STANDINGS[standing]
    illegal = _is_illegal(before, event)
    try:
        decision = decide(ORDER_SAGA, POLICY, _instance(before), event, asked)
    except IllegalTransition as refused:
        if illegal:
            return []
        raise Violation(f"{words}, and decide() cannot take it: {refused}") from refused
    if illegal:
        raise Violation(illegal)
    after = _standing(decision.instance, _said(before, decision.instance, event, asked))
    for send in decision.sends:
        _may_be_sent(after, send)
    sent = LEGS.bits((send.step, send.direction) for send in decision.sends)
    return [] if after == before and not sent else [(words, STANDINGS(after), sent)]


def _is_illegal(before: Standing, event: Input) -> str | None:
    """Why nobody may be granted this here."""
    if isinstance(event, CompensateAsked) and (before.passed or before.state.ended):
        return "compensation is granted past the pivot or after the end"
    if isinstance(event, GateDecided) and before.said != "asked":
        return "somebody decides at a gate where nobody is asked, or no longer"
    return None


def _said(before: Standing, after: Instance, event: Input, asked: Approvals) -> str:
    """What was said at the gate, by what happened there and not by what decide() made of it."""
    gate = (GATE, FORWARD)
    if before.said == "asked":
        if isinstance(event, GateDecided):
            return "yes" if event.approved else "no"
        expired = isinstance(event, TimedOut) and (event.step, event.direction) == gate
        return "no" if expired or isinstance(event, CompensateAsked) else "asked"
    if before.said == "" and GATE in after.steps:
        return "asked" if asked else "yes"
    return before.said


def _may_be_sent(after: Standing, send: Send) -> None:
    """What may be asked of whom, as seen from the decision that asks it."""
    if send.step == GATE:
        raise Violation("something is sent to the gate")
    beyond = send.direction is FORWARD and STEPS.index(send.step) > STEPS.index(GATE)
    if beyond and after.said != "yes":
        raise Violation(f"{send.step} is sent and nobody has let it through the gate")
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


def _instance(standing: Standing) -> Instance:
    state, progress, asked, passed, _ = standing
    steps = {name: p for name, p in zip(STEPS, progress, strict=True) if p is not None}
    return Instance(SAGA, "order", 2, {}, state, steps, compensate_asked=asked, pivot_passed=passed)


def _standing(instance: Instance, said: str) -> Standing:
    return Standing(
        instance.state,
        tuple(_saturated(instance.steps.get(name)) for name in STEPS),
        instance.compensate_asked,
        instance.pivot_passed,
        said,
    )


def _saturated(progress: Progress | None) -> Progress | None:
    """Attempts without end are told apart up to MANY; those that are over, not at all."""
    if progress is None:
        return None
    if progress.status is Status.WAITING:
        return progress
    attempt = progress.attempt if progress.status is Status.SENT else 1
    live = progress.status in (Status.UNDOING, Status.FENCING)
    undo_attempt = progress.undo_attempt if live else 0
    return replace(progress, attempt=min(attempt, MANY), undo_attempt=min(undo_attempt, MANY))


# --- the participants ----------------------------------------------------------------------


@cache
def _handled(number: int, leg: Leg) -> list[tuple[str, int, int]]:
    """A command reaches its participant: in words, the participant after it, its reply."""
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
    """Raises Violation for a state that must not be."""
    wrong = _wrong(STANDINGS[world.standing].state, world.locals)
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
    """What was worked out with guards that are now others."""
    for cached in (_dead, _heard, _unasked, _handled, _wrong):
        cached.cache_clear()


def _words(about: Leg | Reply) -> str:
    step, direction, *outcome = about
    name = step if direction is FORWARD else f"the {'fence' if step == PIVOT else 'undo'} of {step}"
    return f"{name}, {outcome[0]}," if outcome else name
