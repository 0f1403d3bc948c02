"""The order without an orchestrator as one small state, and everything that can happen to it.

Owns: the state, and one step of it in each way there is. What reacts is the real `REACTIONS` of
each service, what remembers is the real `Progress`, what admits is the real `common.fence`. The
network repeats, reorders, delays and loses without bound: an event once told can be heard at any
later time, by each of its listeners again and again. What is lost is lost all at once: with less
lost there is more that can happen, and nothing less.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple
from uuid import UUID

from common import reactions
from common.contracts import CancelAsked, OrderAccepted
from common.envelope import Direction, Envelope, Fenced, Key, Outcome, Reply
from common.errors import Poison
from common.fence import Row
from common.reactions import Reactions
from inventory_svc.choreography import REACTIONS as INVENTORY
from order_svc import choreography
from order_svc.choreography import HEARD
from order_svc.domain import CANCELLED
from order_svc.progress import ORDER as STORY
from order_svc.progress import Heard, Progress
from payment_svc.choreography import REACTIONS as PAYMENT
from tests.golden import examples
from tests.golden.examples import NOON
from tests.model.participants import Local, Numbered, Violation, handled, wrong_effects

SAGA = UUID(int=1)
ATTEMPTS = 2
FORWARD, COMPENSATING = Direction.FORWARD, Direction.COMPENSATING
NAMES = tuple(step.name for step in STORY.steps)
FIRST, PIVOT, LAST = STORY.first, NAMES[STORY.pivot], STORY.last
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
    """What was told, by which step in which direction."""

    step: str
    direction: Direction
    type: type[Reply]


class Told(NamedTuple):
    """An event on its way to one who listens."""

    event: Event
    who: str


class World(NamedTuple):
    """All there is, by numbers of `Numbered` things; of what is under way a bit for each."""

    known: int
    locals: tuple[int, ...]
    under_way: int


class Known(NamedTuple):
    """What the order service remembers, without clocks, and with no attempts that do not count."""

    heard: tuple[tuple[Leg, Heard], ...] = ()
    asked: str | None = None
    attempt: int = 1


TOLD: Numbered[Told] = Numbered()
KNOWN: Numbered[Known] = Numbered()
LOCALS: Numbered[Local] = Numbered()

Move = tuple[str, World]

ACCEPTED = Event(FIRST, FORWARD, OrderAccepted)
ASKED = Event("cancel_order", FORWARD, CancelAsked)


def first() -> World:
    """The order was placed at the door, whose inbox row says so."""
    progress = Progress(SAGA, STORY)
    progress.hear(_envelope(ACCEPTED), 0)
    placed = Local(action=Row(Outcome.DONE, "accepted"), acted=1)
    locals_ = tuple(map(LOCALS, (placed, *(Local() for _ in NAMES[1:]))))
    return World(KNOWN(_known(progress)), locals_, _published(ACCEPTED))


def moves(world: World) -> Iterator[Move]:
    """Everything that can happen next and changes something, in words, and what comes of it.

    Raises Violation.
    """
    for told in TOLD.of(world.under_way):
        yield from _heard(world, told)
    if world.under_way:
        yield "all that is under way is lost", world._replace(under_way=0)
    progress = _progress(world.known)
    if not progress.ended:
        reason = progress.silence(ATTEMPTS, past_sla=False)
        again = ACCEPTED if reason is None else ASKED
        yield _changed(world, "a deadline passes", progress, _published(again))
    if _is_pending(world):
        progress = _progress(world.known)
        progress.cancel(CANCELLED)
        yield _changed(world, "the customer cancels", progress, _published(ASKED))


def ended(world: World) -> bool:
    return _progress(world.known).ended


def check(world: World) -> None:
    """Raises Violation for a state that must not be."""
    wrong = _wrong(world.known, world.locals)
    if wrong:
        raise Violation(wrong)


def forget() -> None:
    """What was worked out with guards that are now others."""
    for cached in (_hearing, _reaction, _handled, _published, _wrong):
        cached.cache_clear()


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
    number = NAMES.index(command.step)
    for done, local, published in _handled(world.locals[number], command):
        locals_ = (*world.locals[:number], local, *world.locals[number + 1 :])
        under_way = world.under_way | published
        yield f"{words}: {done}", heard._replace(locals=locals_, under_way=under_way)


@cache
def _hearing(known: int, event: Event) -> tuple[int, Key | None]:
    """What the order service then remembers, and what that leads to."""
    progress = _progress(known)
    try:
        _, command = choreography.hear(progress, _envelope(event), 0)
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
def _handled(number: int, key: Key) -> list[tuple[str, int, int]]:
    """In words, the participant after it, and what it publishes."""
    return [
        (words, LOCALS(after), _published(_event(key, outcome)) if outcome else 0)
        for words, after, outcome in handled(LOCALS[number], key, PIVOT)
    ]


def _event(key: Key, outcome: Outcome) -> Event:
    """One refusal of a step stands for all: a test says that all lead to the same."""
    if outcome is Outcome.FENCED:
        return Event(key.step, key.direction, Fenced)
    return Event(key.step, key.direction, _reply(key.step, key.direction, outcome))


def _reply(step: str, direction: Direction, outcome: Outcome) -> type[Reply]:
    said = (m for m in EXAMPLES[direction][step] if isinstance(m, Reply))
    return next(type(m) for m in said if m.outcome is outcome)


@cache
def _published(event: Event) -> int:
    """To everybody who listens."""
    listeners = [who for who, table in LISTENERS.items() if event.type in table]
    if event.type in HEARD:
        listeners.append("order")
    return TOLD.bits(Told(event, who) for who in listeners)


@cache
def _envelope(event: Event) -> Envelope:
    """About as little as it may be: what a cancelling leads to knows nothing but the reason."""
    accepted = BODIES[OrderAccepted].model_dump(mode="json")
    known_reason = event.direction is COMPENSATING or event.step == LAST
    about = {"reason": "because"} if known_reason else accepted
    first_of_all = event in (ACCEPTED, ASKED)
    return Envelope.event(
        Key(SAGA, event.step, event.direction),
        BODIES[event.type],
        issued_at=NOON,
        about=None if first_of_all else about,
    )


# --- what the order service remembers ------------------------------------------------------


def _changed(world: World, words: str, progress: Progress, published: int) -> Move:
    known = KNOWN(_known(progress))
    return words, world._replace(known=known, under_way=world.under_way | published)


def _known(progress: Progress) -> Known:
    heard = tuple(sorted(progress.heard.items()))
    return Known(heard, progress.asked, progress.attempt if progress.capped else 1)


def _progress(number: int) -> Progress:
    known = KNOWN[number]
    return Progress(SAGA, STORY, dict(known.heard), known.asked, known.attempt)


def _is_pending(world: World) -> bool:
    created, confirmed = LOCALS[world.locals[0]], LOCALS[world.locals[-1]]
    return not created.undone and not confirmed.acted


# --- what must hold ------------------------------------------------------------------------


@cache
def _wrong(known: int, numbers: tuple[int, ...]) -> str | None:
    progress = _progress(known)
    locals_ = {name: LOCALS[number] for name, number in zip(NAMES, numbers, strict=True)}
    if wrong := wrong_effects(locals_, PIVOT):
        return wrong
    acted = {name for name, local in locals_.items() if local.acted}
    undone = {name for name, local in locals_.items() if local.undone}
    pivot = locals_[PIVOT]
    if undone and (pivot.undo is None or pivot.undo.outcome is not Outcome.FENCED):
        return f"{', '.join(sorted(undone))} is undone before the pivot was fenced"
    if FIRST in undone and acted != undone:
        return f"the order is rejected, and {', '.join(sorted(acted - undone))} has its effect"
    if LAST in acted and acted != set(NAMES):
        return f"the order is confirmed without {', '.join(sorted(set(NAMES) - acted))}"
    if progress.pivot_passed and not pivot.acted:
        return "the order service believes in goods that have not left"
    if progress.fenced and (pivot.undo is None or pivot.undo.outcome is not Outcome.FENCED):
        return "the order service believes in a fence that is not there"
    if progress.state == "COMPLETED" and LAST not in acted:
        return "COMPLETED, and the order is not confirmed"
    if progress.state == "COMPENSATED" and FIRST not in undone:
        return "COMPENSATED, and the order is not rejected"
    return None
