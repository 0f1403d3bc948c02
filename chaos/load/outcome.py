"""What became of each line, set beside what was foretold. Pure.

Owns: the outcome table, and the deviations: single lines that went in a way their own
content rules out. Must not know: servers, terminals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias
from uuid import UUID

from chaos.judge.case import Order, Snapshot
from chaos.judge.history import Answered, Event, Refused
from chaos.load.model import CONFIRMED, ENDS, Bounds, Foreseen
from chaos.load.workload import KEY_REUSED, Ask

FIRST_RUN = 1
PENDING = "still pending"

Reaction: TypeAlias = Answered | Refused
Reactions: TypeAlias = Mapping[tuple[int, int], Reaction]  # (run, line) to the door's last word


@dataclass(frozen=True)
class Count:
    what: str
    seen: int
    must_be: Bounds

    @property
    def fits(self) -> bool:
        return self.seen in self.must_be


@dataclass(frozen=True)
class Outcome:
    """Of one placing of the file."""

    run: int
    answers: tuple[Count, ...]  # what the door said
    ends: tuple[Count, ...]  # what became of the orders
    unanswered: tuple[int, ...]  # lines
    deviations: tuple[str, ...]


def reactions_of(events: Iterable[Event]) -> dict[tuple[int, int], Reaction]:
    return {(e.run, e.line): e for e in events if isinstance(e, Answered | Refused)}


def outcome_of(
    run: int, asks: list[Ask], foreseen: Foreseen, reactions: Reactions, snapshot: Snapshot
) -> Outcome:
    """The first run makes orders; any later one of the same file only repeats them."""
    heard = {ask.number: reactions.get((run, ask.number)) for ask in asks}
    new = {line: e for line, e in heard.items() if line in foreseen.ends and run == FIRST_RUN}
    again = foreseen.repeats if run == FIRST_RUN else {**foreseen.repeats, **_itself(foreseen)}
    ended = _ends(snapshot)
    ends = {
        line: ended.get(UUID(e.body["order_id"]), "not there")
        for line, e in new.items()
        if isinstance(e, Answered)
    }
    return Outcome(
        run=run,
        answers=(
            _exact("refused at the door", _said_no(heard, foreseen.wrong), len(foreseen.wrong)),
            _exact("conflicts", _conflicts(heard), len(foreseen.conflicts)),
            _exact("repeats", _said_yes(heard, again), len(again)),
            _exact("new orders", len(ends), len(foreseen.ends) if run == FIRST_RUN else 0),
        ),
        ends=tuple(_count_ends(ends.values(), foreseen.bounds)) if run == FIRST_RUN else (),
        unanswered=tuple(line for line, reaction in heard.items() if reaction is None),
        deviations=(
            *_unlike_foreseen(heard, foreseen),
            *_other_answers(heard, again, reactions),
            *_other_ends(ends, foreseen.ends),
        ),
    )


def what_changed(before: Snapshot, after: Snapshot) -> list[str]:
    """Tables that differ, for a file that was placed twice."""
    names = ("orders", "stock", "reservations", "accounts", "transfers", "instances")
    return [name for name in names if _as_set(before, name) != _as_set(after, name)]


def _as_set(snapshot: Snapshot, name: str) -> Counter[str]:
    return Counter(map(repr, getattr(snapshot, name)))


def _itself(foreseen: Foreseen) -> dict[int, int]:
    return {line: line for line in foreseen.ends}


def _exact(what: str, seen: int, must_be: int) -> Count:
    return Count(what, seen, Bounds(must_be, must_be))


def _said_no(heard: Mapping[int, Reaction | None], lines: Iterable[int]) -> int:
    return sum(isinstance(heard[line], Refused) for line in lines)


def _said_yes(heard: Mapping[int, Reaction | None], lines: Iterable[int]) -> int:
    return sum(isinstance(heard[line], Answered) for line in lines)


def _conflicts(heard: Mapping[int, Reaction | None]) -> int:
    return sum(e is not None and e.status == KEY_REUSED for e in heard.values())


def _count_ends(ends: Iterable[str], bounds: Mapping[str, Bounds]) -> Iterator[Count]:
    counted = Counter(ends)
    for end in ENDS:
        yield Count(end, counted.pop(end, 0), bounds[end])
    for end, seen in sorted(counted.items()):  # a step that gave up, say: none of these is meant
        yield Count(end, seen, Bounds(0, 0))


def _ends(snapshot: Snapshot) -> dict[UUID, str]:
    return {order.order_id: _end(order) for order in snapshot.orders}


def _end(order: Order) -> str:
    if order.status == "CONFIRMED":
        return CONFIRMED
    return order.reason or PENDING


def _unlike_foreseen(heard: Mapping[int, Reaction | None], foreseen: Foreseen) -> Iterator[str]:
    """Yes where no was foreseen, or the other way round, or another no."""
    for line, reaction in heard.items():
        if reaction is None:
            continue
        conflict = reaction.status == KEY_REUSED
        if line in foreseen.wrong and (isinstance(reaction, Answered) or conflict):
            yield f"line {line}: {foreseen.wrong[line]}, yet the door said {reaction.status}"
        elif line in foreseen.conflicts and not conflict:
            first = foreseen.conflicts[line]
            yield f"line {line}: contradicts line {first}, yet the door said {reaction.status}"
        elif isinstance(reaction, Refused) and not conflict and line not in foreseen.wrong:
            yield f"line {line}: nothing is wrong with it, yet the door said {reaction.body}"


def _other_answers(
    heard: Mapping[int, Reaction | None], again: Mapping[int, int], reactions: Reactions
) -> Iterator[str]:
    """A repeat hears what the first one heard."""
    for line, of in again.items():
        first, now = reactions.get((FIRST_RUN, of)), heard[line]
        if first and now and (first.status, first.body) != (now.status, now.body):
            yield f"line {line}: repeats line {of}, was told {now.body} after {first.body}"


def _other_ends(ends: Mapping[int, str], possible: Mapping[int, frozenset[str]]) -> Iterator[str]:
    for line, end in ends.items():
        if end not in possible[line]:
            yield f"line {line}: ended as {end}, can only be {' or '.join(sorted(possible[line]))}"
