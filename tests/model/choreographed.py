"""Order and return without an orchestrator as one small state, and everything that can happen.

Owns: the state, and one step of it in each way there is. What reacts is the real `REACTIONS` of
each service, what remembers is the real `SagaProgress`, what admits is the real fence. The
network repeats, reorders, delays and loses without bound: an event once told can be heard at any
later time, by each of its listeners again and again. What is lost is lost all at once: with less
lost there is more that can happen, and nothing less.
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
from common.storage.fence import Row
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
ORDER: Reactions = {}  # hears by `hear`, which knows more than a table
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
    """What was told, by which step in which direction of what kind of saga."""

    story: str
    step: str
    direction: Direction
    type: type[Reply]


class Told(NamedTuple):
    """An event on its way to one who listens."""

    event: Event
    who: str


class World(NamedTuple):
    """All there is, by numbers of `Numbered` things; of what is under way a bit for each."""

    story: str  # "": nothing is yet
    known: int = 0
    locals: tuple[int, ...] = ()
    under_way: int = 0


class Known(NamedTuple):
    """What the order service remembers, without clocks, and with no attempts that do not count."""

    story: str
    heard: tuple[tuple[Leg, RecordedEvent], ...]
    asked: str | None
    attempt: int


TOLD: Numbered[Told] = Numbered()
KNOWN: Numbered[Known] = Numbered()
LOCALS: Numbered[Local] = Numbered()

Move = tuple[str, World]


def first() -> World:
    return World("")


def moves(world: World) -> Iterator[Move]:
    """Everything that can happen next and changes something, in words, and what comes of it.

    Raises Violation.
    """
    if not world.story:
        for story in OUTLINES:
            yield f"{story}: it is placed at the door, whose inbox row says so", _begun(story)
        return
    for told in TOLD.of(world.under_way):
        yield from _heard(world, told)
    if world.under_way:
        yield "all that is under way is lost", world._replace(under_way=0)
    progress = _progress(world.known)
    if not progress.ended:
        reason = progress.time_out(ATTEMPTS, past_sla=False)
        again = _first(world.story) if reason is None else _asked(world.story)
        yield _changed(world, "a deadline passes", progress, _published(again))
    if _may_cancel(world):
        progress = _progress(world.known)
        progress.cancel(CANCELLED)
        yield _changed(world, "the customer cancels", progress, _published(_asked(world.story)))


def ended(world: World) -> bool:
    return bool(world.story) and _progress(world.known).ended


def check(world: World) -> None:
    """Raises Violation for a state that must not be."""
    wrong = _wrong(world.known, world.locals) if world.story else None
    if wrong:
        raise Violation(wrong)


def forget() -> None:
    """What was worked out with guards that are now others."""
    for cached in (_hearing, _reaction, _handled, _published, _wrong):
        cached.cache_clear()


def _begun(story: str) -> World:
    progress = SagaProgress(SAGA, OUTLINES[story])
    progress.record(_envelope(_first(story)), 0)
    placed = Local(action=Row(Outcome.DONE, "accepted"), acted=1)
    locals_ = tuple(map(LOCALS, (placed, *(Local() for _ in NAMES[story][1:]))))
    return World(story, KNOWN(_known(progress)), locals_, _published(_first(story)))


# --- events and who hears them -------------------------------------------------------------


def _heard(world: World, told: Told) -> Iterator[Move]:
    event, who = told
    words = f"{who} hears {event.type.__name__} of {event.step}"
    if who == "order":
        known, command = _hearing(world.known, event)
    else:
        known, command = world.known, _reaction(who, event)
    heard = world._replace(known=known)
    if command is None:
        yield words, heard
        return
    if command.step not in NAMES[world.story]:
        raise Violation(f"{words}, and does {command.step}, which is no part of it")
    number = NAMES[world.story].index(command.step)
    for done, local, published in _handled(world.story, world.locals[number], command):
        locals_ = (*world.locals[:number], local, *world.locals[number + 1 :])
        under_way = world.under_way | published
        yield f"{words}: {done}", heard._replace(locals=locals_, under_way=under_way)


@cache
def _hearing(known: int, event: Event) -> tuple[int, Key | None]:
    """What the order service then remembers, and what that leads to."""
    progress = _progress(known)
    try:
        _, command = order_reactions.record_event(progress, _envelope(event), 0)
    except Poison as poison:
        raise Violation(f"order cannot take {event}: {poison}") from poison
    return KNOWN(_known(progress)), command.key if command else None


@cache
def _reaction(who: str, event: Event) -> Key | None:
    try:
        command = reactions.react(LISTENERS[who], _envelope(event))
    except Poison as poison:
        raise Violation(f"{who} cannot take {event}: {poison}") from poison
    return command.key if command else None


@cache
def _handled(story: str, number: int, key: Key) -> list[tuple[str, int, int]]:
    """In words, the participant after it, and what it publishes."""
    return [
        (words, LOCALS(after), _published(_event(story, key, outcome)) if outcome else 0)
        for words, after, outcome in handled(LOCALS[number], key, PIVOTS[story])
    ]


def _event(story: str, key: Key, outcome: Outcome) -> Event:
    """One refusal of a step stands for all: a test says that all lead to the same."""
    if outcome is Outcome.FENCED:
        return Event(story, key.step, key.direction, Fenced)
    if key.direction is COMPENSATING and key.step == PIVOTS[story]:
        return Event(story, key.step, key.direction, PivotDone)
    replies = [m for m in EXAMPLES[key.direction][key.step] if isinstance(m, Reply)]
    said = next(type(m) for m in replies if m.outcome is outcome)
    return Event(story, key.step, key.direction, said)


@cache
def _published(event: Event) -> int:
    """To everybody who listens."""
    listeners = [who for who, table in LISTENERS.items() if event.type in table]
    if event.type in CONSUMED:
        listeners.append("order")
    return TOLD.bits(Told(event, who) for who in listeners)


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
    """About as little as it may be: what a cancelling leads to knows little but the reason."""
    begun = _sent(order_reactions.first_event(BEGUN[event.story]).envelope)
    asked = _sent(order_reactions.cancel_asked_event(BEGUN[event.story], "because").envelope)
    for own in (begun, asked):
        if (own.step, own.direction) == (event.step, event.direction):
            return own
    steps = NAMES[event.story]
    past = steps.index(event.step) > steps.index(PIVOTS[event.story])
    by_cancelling = event.direction is COMPENSATING or past
    return Envelope.event(
        Key(SAGA, event.step, event.direction),
        BODIES[event.type],
        issued_at=NOON,
        about=reactions.about_of(asked if by_cancelling else begun),
    )


# --- what the order service remembers ------------------------------------------------------


def _changed(world: World, words: str, progress: SagaProgress, published: int) -> Move:
    known = KNOWN(_known(progress))
    return words, world._replace(known=known, under_way=world.under_way | published)


def _known(progress: SagaProgress) -> Known:
    heard = tuple(sorted(progress.events.items()))
    attempt = progress.attempt if progress.capped else 1
    return Known(progress.outline.name, heard, progress.cancel_asked, attempt)


def _progress(number: int) -> SagaProgress:
    known = KNOWN[number]
    return SagaProgress(SAGA, OUTLINES[known.story], dict(known.heard), known.asked, known.attempt)


def _may_cancel(world: World) -> bool:
    """Of a return nobody is asked that; an order is pending, or it is too late."""
    created, ended_well = LOCALS[world.locals[0]], LOCALS[world.locals[-1]]
    return world.story == "order" and not created.undone and not ended_well.acted


# --- what must hold ------------------------------------------------------------------------


@cache
def _wrong(known: int, numbers: tuple[int, ...]) -> str | None:
    progress = _progress(known)
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
        return "the order service believes in a pivot that never was"
    if progress.fenced and not fenced:
        return "the order service believes in a fence that is not there"
    if progress.state == "COMPLETED" and last not in acted:
        return "COMPLETED, and the customer is not told"
    if progress.state == "COMPENSATED" and first not in undone:
        return "COMPENSATED, and the customer is not told"
    return None
