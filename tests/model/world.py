"""The order saga and its participants as one small state, and everything that can happen to it.

Owns: the state, and one step of it in each way there is. What decides is the real `decide()`, what
admits is the real `common.fence`; the rest is honest participants that remember what they did, and
a network that repeats, reorders, delays and loses without bound: a message once sent can be
delivered at any later time, and again and again, until it is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import NamedTuple
from uuid import UUID

from common import fence
from common.envelope import Direction, Fenced, Key, Outcome
from common.errors import IllegalTransition
from common.fence import Duplicate, Row
from orchestrator import saga
from orchestrator.order_saga import ORDER_SAGA
from orchestrator.saga import (
    COMPENSATING,
    FORWARD,
    CompensateAsked,
    DeadLettered,
    Input,
    Instance,
    Kind,
    Policy,
    Progress,
    ReplyArrived,
    Send,
    Started,
    State,
    Status,
    TimedOut,
)

SAGA = UUID(int=1)
POLICY = Policy(1, 2, 0.1, 1, 1, 10)  # two attempts, then it is given up
MANY = 2  # asked without end: decide() tells the first attempt from all others
STEPS = tuple(step.name for step in ORDER_SAGA.steps)
KINDS = {step.name: step.kind for step in ORDER_SAGA.steps}
DOOR = STEPS[0]
PIVOT = next(name for name, kind in KINDS.items() if kind is Kind.PIVOT)
CAN_REFUSE = frozenset({"reserve_stock", "charge_payment", "dispatch_stock"})

Leg = tuple[str, Direction]
Reply = tuple[str, Direction, Outcome]


class Violation(Exception):
    """What must never be is."""


class Local(NamedTuple):
    """One step at its participant: its two inbox rows, how often it acted and was undone."""

    action: Row | None = None
    undo: Row | None = None
    acted: int = 0
    undone: int = 0


class World(NamedTuple):
    """All there is: the instance (words and clocks left out), the participants, the network."""

    state: State
    progress: tuple[Progress | None, ...]
    asked: bool  # somebody wants it compensated
    passed: bool  # the pivot
    locals: tuple[Local, ...]
    commands: frozenset[Leg]
    replies: frozenset[Reply]

    @property
    def ended(self) -> bool:
        return self.state.ended


Move = tuple[str, World]


def first() -> World:
    """The order was placed at the door, whose inbox row says so (section 6, rule 5)."""
    decision = saga.decide(ORDER_SAGA, POLICY, None, Started(SAGA, {}))
    placed = Local(action=Row(Outcome.DONE, "accepted"), acted=1)
    world = World(
        State.RUNNING,
        (None,) * len(STEPS),
        asked=False,
        passed=False,
        locals=(placed, *(Local() for _ in STEPS[1:])),
        commands=frozenset(),
        replies=frozenset(),
    )
    return _decided(world, (_abstract(decision.instance), decision.sends))


def moves(world: World) -> Iterator[Move]:
    """Everything that can happen next, in words, and what comes of it. Raises Violation."""
    for leg in sorted(world.commands):
        yield from _delivered(world, leg)
        yield f"{_words(leg)} becomes a dead letter", _told(world, DeadLettered(*leg, "poison"))
        yield f"{_words(leg)} is lost", world._replace(commands=world.commands - {leg})
    for reply in sorted(world.replies):
        yield f"the reply {_words(reply)} arrives", _told(world, ReplyArrived(*reply))
        dead = DeadLettered(*reply[:2], "poison", reply=True)
        yield f"the reply {_words(reply)} becomes a dead letter", _told(world, dead)
        yield f"the reply {_words(reply)} is lost", world._replace(replies=world.replies - {reply})
    for leg, attempt in saga.timed_legs(_instance(world)).items():
        yield f"{_words(leg)} is silent for too long", _told(world, TimedOut(*leg, attempt))
    yield "an operator asks for compensation", _told(world, CompensateAsked("ops", "asked"))


# --- the orchestrator ----------------------------------------------------------------------


def _told(world: World, event: Input) -> World:
    """The real decide(), on an input that really can come."""
    decided = _decide(*world[:4], event)
    return world if decided is None else _decided(world, decided)


class _Abstract(NamedTuple):
    state: State
    progress: tuple[Progress | None, ...]
    asked: bool
    passed: bool


_Decided = tuple[_Abstract, tuple[Send, ...]]


def _decided(world: World, decided: _Decided) -> World:
    after, sends = decided
    for send in sends:
        _may_be_sent(after, send)
    commands = world.commands | {(send.step, send.direction) for send in sends}
    return World(*after, world.locals, commands, world.replies)


@cache
def _decide(
    state: State,
    progress: tuple[Progress | None, ...],
    asked: bool,
    passed: bool,
    event: Input,
) -> _Decided | None:
    """None: refused, and nothing has changed."""
    instance = _of(state, progress, asked, passed)
    try:
        decision = saga.decide(ORDER_SAGA, POLICY, instance, event)
    except IllegalTransition as refused:
        if isinstance(event, CompensateAsked) and (passed or state.ended):
            return None
        raise Violation(f"decide() cannot take what can come: {refused}") from refused
    if isinstance(event, CompensateAsked) and (passed or state.ended):
        raise Violation("compensation is granted past the pivot or after the end")
    return _abstract(decision.instance), decision.sends


def _may_be_sent(after: _Abstract, send: Send) -> None:
    """What may be asked of whom, as seen from the decision that asks it."""
    status = {
        name: p.status for name, p in zip(STEPS, after.progress, strict=True) if p is not None
    }
    undo = send.direction is COMPENSATING and send.step != PIVOT
    if undo and status.get(PIVOT) in (Status.SENT, Status.FENCING):
        raise Violation(f"the undo of {send.step} is sent while the pivot is unknown")
    if undo and send.step == DOOR:
        others = {s for name, s in status.items() if name != DOOR}
        if others - saga.SETTLED_WITHOUT_EFFECT:
            raise Violation("the customer is told before everything else is undone")


def _instance(world: World) -> Instance:
    return _of(*world[:4])


@cache
def _of(state: State, progress: tuple[Progress | None, ...], asked: bool, passed: bool) -> Instance:
    steps = {name: p for name, p in zip(STEPS, progress, strict=True) if p is not None}
    return Instance(SAGA, "order", 1, {}, state, steps, compensate_asked=asked, pivot_passed=passed)


def _abstract(instance: Instance) -> _Abstract:
    return _Abstract(
        instance.state,
        tuple(_saturated(name, instance.steps.get(name)) for name in STEPS),
        instance.compensate_asked,
        instance.pivot_passed,
    )


def _saturated(name: str, progress: Progress | None) -> Progress | None:
    """Attempts without end are told apart up to MANY; those that are over, not at all."""
    if progress is None:
        return None
    attempt = progress.attempt if progress.status is Status.SENT else 1
    live = progress.status in (Status.UNDOING, Status.FENCING)
    undo_attempt = progress.undo_attempt if live else 0
    return replace(progress, attempt=min(attempt, MANY), undo_attempt=min(undo_attempt, MANY))


# --- the participants ----------------------------------------------------------------------


def _delivered(world: World, leg: Leg) -> Iterator[Move]:
    """A command reaches its participant, which may have a choice."""
    number = STEPS.index(leg[0])
    for words, after, outcome in _handled(world.locals[number], leg):
        local = (*world.locals[:number], after, *world.locals[number + 1 :])
        replies = world.replies if outcome is None else world.replies | {(*leg, outcome)}
        yield f"{_words(leg)} is delivered: {words}", world._replace(locals=local, replies=replies)


@cache
def _handled(local: Local, leg: Leg) -> tuple[tuple[str, Local, Outcome | None], ...]:
    """The real fence over the two rows, and an honest participant behind it."""
    step, direction = leg
    action, undo = Key(SAGA, step, FORWARD), Key(SAGA, step, COMPENSATING)
    key = action if direction is FORWARD else undo
    known = {k: row for k, row in ((action, local.action), (undo, local.undo)) if row is not None}
    wanted = fence.claims([key])
    rows = {k: row for k, row in known.items() if k in wanted}
    gate = fence.Fence(claimed=[k for k in wanted if k not in known], known=rows)
    verdict = gate.admit(key, _tombstone)
    if isinstance(verdict, Duplicate):
        again = verdict.row.outcome if verdict.row.reply is not None else None
        return (("it is known", local, again),)
    if direction is COMPENSATING:
        did = verdict.action is not None and verdict.action.outcome is Outcome.DONE
        outcome = fence.fence_answer(verdict.action).outcome if step == PIVOT else Outcome.DONE
        gate.settle(key, Row(outcome, "said"))
        undone = local.undone + (did and step != PIVOT)
        words = ("undone" if did else "nothing to undo") if step != PIVOT else f"{outcome}"
        return ((words, _kept(local._replace(undone=undone), gate, action, undo), outcome),)
    gate.settle(key, Row(Outcome.DONE, "said"))
    done = ("done", _kept(local._replace(acted=local.acted + 1), gate, action, undo), Outcome.DONE)
    if step not in CAN_REFUSE:
        return (done,)
    gate.settle(key, Row(Outcome.REFUSED, "said"))
    return done, ("refused", _kept(local, gate, action, undo), Outcome.REFUSED)


def _kept(local: Local, gate: fence.Fence, action: Key, undo: Key) -> Local:
    settled: Mapping[Key, Row] = gate.settled()
    return local._replace(
        action=settled.get(action, local.action), undo=settled.get(undo, local.undo)
    )


def _tombstone(_: Key) -> Row:
    return Row(Outcome.FENCED, Fenced().reason)


# --- what must hold ------------------------------------------------------------------------


def check(world: World) -> None:
    """Raises Violation for a state that must not be."""
    for name, local in zip(STEPS, world.locals, strict=True):
        if local.acted > 1 or local.undone > 1:
            raise Violation(f"{name} was done {local.acted} times and undone {local.undone} times")
        if local.undone > local.acted:
            raise Violation(f"{name} was undone and never done")
    acted = {name for name, local in zip(STEPS, world.locals, strict=True) if local.acted}
    undone = {name for name, local in zip(STEPS, world.locals, strict=True) if local.undone}
    if PIVOT in acted and undone:
        raise Violation(f"goods have left, and {', '.join(sorted(undone))} is undone")
    if world.state is State.COMPLETED and (acted != set(STEPS) or undone):
        raise Violation("COMPLETED, and not every step has its effect")
    if world.state is State.COMPENSATED and acted - undone:
        raise Violation(f"COMPENSATED, and {', '.join(sorted(acted - undone))} has its effect")


def forget() -> None:
    """What was worked out with guards that are now others."""
    for cached in (_decide, _of, _handled):
        cached.cache_clear()


def _words(about: tuple[object, ...]) -> str:
    step, direction, *outcome = (str(part) for part in about)
    name = step if direction == FORWARD else f"the {'fence' if step == PIVOT else 'undo'} of {step}"
    return f"{name}: {outcome[0]}" if outcome else name


Check = Callable[[World], None]
