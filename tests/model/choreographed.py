"""Order and return without an orchestrator, as one small state and every move out of it.

Owns: the state and its moves. The services react by their real `REACTIONS`, the order service
remembers in its real `SagaProgress`, and the real fence admits commands. The network repeats,
reorders and delays without bound: a published event can reach each of its listeners at any later
time, any number of times. A single move loses everything under way (`orchestrated.py` says why that
is enough).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import NamedTuple
from uuid import UUID

from common.messages.envelope import Direction, Envelope, Fenced, Key, Outcome, PivotDone, Reply
from common.messages.errors import Poison
from common.messages.shop.order import CancelAsked
from common.participant import reactions
from common.participant.reactions import Reactions
from common.storage.admission import Row
from inventory_svc.choreography import REACTIONS as INVENTORY
from order_svc.choreography import reactions as order_reactions
from order_svc.choreography.progress import OUTLINES, RecordedEvent, SagaProgress
from order_svc.choreography.reactions import CONSUMED
from order_svc.domain import CANCELLED, OpenedReturn, PlacedOrder, PricedLine
from payment_svc.choreography import REACTIONS as PAYMENT
from tests.golden import examples
from tests.golden.examples import NOON
from tests.model.participants import Local, Numbered, Violation, handled, wrong_effects

SAGA = UUID(int=1)
ATTEMPTS = 2
FORWARD, COMPENSATING = Direction.FORWARD, Direction.COMPENSATING
NAMES = {name: tuple(step.name for step in story.steps) for name, story in OUTLINES.items()}
PIVOTS = {name: NAMES[name][story.pivot] for name, story in OUTLINES.items()}
BEGUN: Mapping[str, PlacedOrder | OpenedReturn] = {
    "order": PlacedOrder(SAGA, "ann", "EUR", (PricedLine("tea", 2, 300),), 600, NOON),
    "return": OpenedReturn(SAGA, UUID(int=2), "ann", "EUR", 600, NOON),
}
ORDER: Reactions = {}  # reacts by `hear()`, which takes its memory into account
LISTENERS = {"order": ORDER, "inventory": INVENTORY, "payment": PAYMENT}
EXAMPLES = {FORWARD: examples.FORWARD, COMPENSATING: examples.COMPENSATING}
BODIES = {
    type(m): m
    for steps in EXAMPLES.values()
    for messages in steps.values()
    for m in messages
    if isinstance(m, Reply)
}

Leg = tuple[str, Direction]


class Event(NamedTuple):
    """A reply, published as an event: of which saga and step, in which direction."""

    story: str
    step: str
    direction: Direction
    type: type[Reply]


class Delivery(NamedTuple):
    """An event on its way to one listener."""

    event: Event
    listener: str


class World(NamedTuple):
    """The memory of the order service, the participants, and the deliveries under way.

    The first two are numbers of `Numbered` things; each possible delivery is one bit.
    """

    story: str  # "" before anything is placed
    memory: int = 0
    locals: tuple[int, ...] = ()
    under_way: int = 0


class Memory(NamedTuple):
    """The memory of the order service: no clocks, and attempts only while they are limited."""

    story: str
    events: tuple[tuple[Leg, RecordedEvent], ...]
    cancel_asked: str | None
    attempt: int


DELIVERIES: Numbered[Delivery] = Numbered()
MEMORIES: Numbered[Memory] = Numbered()
LOCALS: Numbered[Local] = Numbered()

Move = tuple[str, World]


def first() -> World:
    return World("")


def moves(world: World) -> Iterator[Move]:
    """Yield every move that changes something: its description and the world after it.

    Raises Violation if a move does what must never happen.
    """
    if not world.story:
        for story in OUTLINES:
            yield f"{story}: the door accepts it and writes its inbox row", _begun(story)
        return
    for delivery in DELIVERIES.of(world.under_way):
        yield from _deliver(world, delivery)
    if world.under_way:
        yield "everything under way is lost", world._replace(under_way=0)
    progress = _progress(world.memory)
    if not progress.ended:
        reason = progress.time_out(ATTEMPTS, past_sla=False)
        again = _first(world.story) if reason is None else _asked(world.story)
        yield _remember(world, "a deadline passes", progress, _published(again))
    if _may_cancel(world):
        progress = _progress(world.memory)
        progress.cancel(CANCELLED)
        yield _remember(world, "the customer cancels", progress, _published(_asked(world.story)))


def ended(world: World) -> bool:
    return bool(world.story) and _progress(world.memory).ended


def check(world: World) -> None:
    """Raise Violation if this world must not be."""
    wrong = _wrong(world.memory, world.locals) if world.story else None
    if wrong:
        raise Violation(wrong)


def forget() -> None:
    """Clear the caches: a guard was removed or put back since they were filled."""
    for cached in (_order_reacts, _participant_reacts, _handle, _published, _wrong):
        cached.cache_clear()


def _begun(story: str) -> World:
    progress = SagaProgress(SAGA, OUTLINES[story])
    progress.record(_envelope(_first(story)), 0)
    placed = Local(action=Row(Outcome.DONE, "accepted"), acted=1)
    locals_ = tuple(map(LOCALS, (placed, *(Local() for _ in NAMES[story][1:]))))
    return World(story, MEMORIES(_memory(progress)), locals_, _published(_first(story)))


# --- events and their listeners -------------------------------------------------------------


def _deliver(world: World, delivery: Delivery) -> Iterator[Move]:
    event, listener = delivery
    words = f"{listener} receives {event.type.__name__} of {event.step}"
    if listener == "order":
        memory, command = _order_reacts(world.memory, event)
    else:
        memory, command = world.memory, _participant_reacts(listener, event)
    received = world._replace(memory=memory)
    if command is None:
        yield words, received
        return
    if command.step not in NAMES[world.story]:
        raise Violation(f"{words}, and does {command.step}, which is not a step of it")
    number = NAMES[world.story].index(command.step)
    for done, local, published in _handle(world.story, world.locals[number], command):
        locals_ = (*world.locals[:number], local, *world.locals[number + 1 :])
        under_way = world.under_way | published
        yield f"{words}: {done}", received._replace(locals=locals_, under_way=under_way)


@cache
def _order_reacts(memory: int, event: Event) -> tuple[int, Key | None]:
    """Return what the order service remembers after the event, and the command it then runs."""
    progress = _progress(memory)
    try:
        _, command = order_reactions.record_event(progress, _envelope(event), 0)
    except Poison as poison:
        raise Violation(f"order cannot take {event}: {poison}") from poison
    return MEMORIES(_memory(progress)), command.key if command else None


@cache
def _participant_reacts(listener: str, event: Event) -> Key | None:
    try:
        command = reactions.react(LISTENERS[listener], _envelope(event))
    except Poison as poison:
        raise Violation(f"{listener} cannot take {event}: {poison}") from poison
    return command.key if command else None


@cache
def _handle(story: str, number: int, key: Key) -> list[tuple[str, int, int]]:
    """Return each result of a command: words, the participant after it, what it publishes."""
    return [
        (words, LOCALS(after), _published(_event(story, key, outcome)) if outcome else 0)
        for words, after, outcome in handled(LOCALS[number], key, PIVOTS[story])
    ]


def _event(story: str, key: Key, outcome: Outcome) -> Event:
    """Return the event of an outcome; one refusal stands for all, as all lead to the same."""
    if outcome is Outcome.FENCED:
        return Event(story, key.step, key.direction, Fenced)
    if key.direction is COMPENSATING and key.step == PIVOTS[story]:
        return Event(story, key.step, key.direction, PivotDone)
    replies = [m for m in EXAMPLES[key.direction][key.step] if isinstance(m, Reply)]
    said = next(type(m) for m in replies if m.outcome is outcome)
    return Event(story, key.step, key.direction, said)


@cache
def _published(event: Event) -> int:
    listeners = [service for service, table in LISTENERS.items() if event.type in table]
    if event.type in CONSUMED:
        listeners.append("order")
    return DELIVERIES.bits(Delivery(event, listener) for listener in listeners)


def _first(story: str) -> Event:
    sent = _sent(order_reactions.first_event(BEGUN[story]).envelope)
    return Event(story, sent.step, sent.direction, type(sent.message()))  # type: ignore[arg-type]


def _asked(story: str) -> Event:
    sent = _sent(order_reactions.cancel_asked_event(BEGUN[story], "because").envelope)
    return Event(story, sent.step, sent.direction, CancelAsked)


def _sent(envelope: Envelope | str) -> Envelope:
    assert isinstance(envelope, Envelope)
    return envelope


@cache
def _envelope(event: Event) -> Envelope:
    """Wrap the event with as little about the saga as it may carry."""
    begun = _sent(order_reactions.first_event(BEGUN[event.story]).envelope)
    asked = _sent(order_reactions.cancel_asked_event(BEGUN[event.story], "because").envelope)
    for own in (begun, asked):
        if (own.step, own.direction) == (event.step, event.direction):
            return own
    steps = NAMES[event.story]
    past = steps.index(event.step) > steps.index(PIVOTS[event.story])
    by_cancelling = event.direction is COMPENSATING or past
    return Envelope.of_reply(
        Key(SAGA, event.step, event.direction),
        BODIES[event.type],
        issued_at=NOON,
        about=reactions.about_of(asked if by_cancelling else begun),
    )


# --- what the order service remembers ------------------------------------------------------


def _remember(world: World, words: str, progress: SagaProgress, published: int) -> Move:
    memory = MEMORIES(_memory(progress))
    return words, world._replace(memory=memory, under_way=world.under_way | published)


def _memory(progress: SagaProgress) -> Memory:
    events = tuple(sorted(progress.events.items()))
    attempt = progress.attempt if progress.capped else 1
    return Memory(progress.outline.name, events, progress.cancel_asked, attempt)


def _progress(number: int) -> SagaProgress:
    memory = MEMORIES[number]
    return SagaProgress(
        SAGA, OUTLINES[memory.story], dict(memory.events), memory.cancel_asked, memory.attempt
    )


def _may_cancel(world: World) -> bool:
    """Return whether the customer can cancel: only an order, and only while it is pending."""
    created, ended_well = LOCALS[world.locals[0]], LOCALS[world.locals[-1]]
    return world.story == "order" and not created.undone and not ended_well.acted


# --- what must hold ------------------------------------------------------------------------


@cache
def _wrong(memory: int, numbers: tuple[int, ...]) -> str | None:
    progress = _progress(memory)
    names, pivot_name = NAMES[progress.outline.name], PIVOTS[progress.outline.name]
    locals_ = {name: LOCALS[number] for name, number in zip(names, numbers, strict=True)}
    if wrong := wrong_effects(locals_, pivot_name):
        return wrong
    acted = {name for name, local in locals_.items() if local.acted}
    undone = {name for name, local in locals_.items() if local.undone}
    pivot = locals_[pivot_name]
    fenced = pivot.undo is not None and pivot.undo.outcome is Outcome.FENCED
    first, last = names[0], names[-1]
    if undone and not fenced:
        return f"{', '.join(sorted(undone))} is undone before the pivot was fenced"
    if first in undone and acted != undone:
        return f"the customer is told no, and {', '.join(sorted(acted - undone))} has its effect"
    if last in acted and acted != set(names):
        return f"the customer is told yes without {', '.join(sorted(set(names) - acted))}"
    if progress.pivot_passed and not pivot.acted:
        return "the order service records a pivot that was never done"
    if progress.fenced and not fenced:
        return "the order service records a fence that is not there"
    if progress.state == "COMPLETED" and last not in acted:
        return "COMPLETED, and the customer is not told"
    if progress.state == "COMPENSATED" and first not in undone:
        return "COMPENSATED, and the customer is not told"
    return None
