"""The outcome of each line, compared with what was foretold. Pure.

A deviation is a single line that went in a way its own content rules out.
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

Response: TypeAlias = Answered | Refused
Responses: TypeAlias = Mapping[tuple[int, int], Response]  # (run, line) to the door's last answer


@dataclass(frozen=True)
class Count:
    """A number, and the bounds it must be in."""

    what: str
    seen: int
    must_be: Bounds

    @property
    def fits(self) -> bool:
        return self.seen in self.must_be


@dataclass(frozen=True)
class Outcome:
    """The result of placing the file once."""

    run: int
    answers: tuple[Count, ...]  # of the door
    ends: tuple[Count, ...]  # of the orders
    unanswered: tuple[int, ...]  # lines
    deviations: tuple[str, ...]


def responses_of(events: Iterable[Event]) -> dict[tuple[int, int], Response]:
    return {(e.run, e.line): e for e in events if isinstance(e, Answered | Refused)}


def outcome_of(
    run: int, asks: list[Ask], foreseen: Foreseen, responses: Responses, snapshot: Snapshot
) -> Outcome:
    """Compare one run; the first makes orders, any later one of the same file only repeats them."""
    first = run == FIRST_RUN
    by_line = {ask.number: responses.get((run, ask.number)) for ask in asks}
    again = foreseen.repeats if first else {**foreseen.repeats, **{n: n for n in foreseen.ends}}
    ended = {order.order_id: _end(order) for order in snapshot.orders}
    ends = {
        line: ended.get(UUID(answer.body["order_id"]), "not there")
        for line, answer in by_line.items()
        if first and line in foreseen.ends and isinstance(answer, Answered)
    }
    refused = sum(isinstance(by_line[line], Refused) for line in foreseen.wrong)
    conflicts = sum(a is not None and a.status == KEY_REUSED for a in by_line.values())
    repeats = sum(isinstance(by_line[line], Answered) for line in again)
    return Outcome(
        run=run,
        answers=(
            _exact("refused at the door", refused, len(foreseen.wrong)),
            _exact("conflicts", conflicts, len(foreseen.conflicts)),
            _exact("repeats", repeats, len(again)),
            _exact("new orders", len(ends), len(foreseen.ends) if first else 0),
        ),
        ends=tuple(_count_ends(ends.values(), foreseen.bounds)) if first else (),
        unanswered=tuple(line for line, answer in by_line.items() if answer is None),
        deviations=(
            *_unlike_foreseen(by_line, foreseen),
            *_other_answers(by_line, again, responses),
            *_other_ends(ends, foreseen.ends),
        ),
    )


def what_changed(before: Snapshot, after: Snapshot) -> list[str]:
    """Return the tables that differ, for a file that was placed twice."""
    names = ("orders", "stock", "reservations", "accounts", "transfers", "instances")
    return [name for name in names if _rows(before, name) != _rows(after, name)]


def _rows(snapshot: Snapshot, name: str) -> Counter[str]:
    return Counter(map(repr, getattr(snapshot, name)))


def _exact(what: str, seen: int, must_be: int) -> Count:
    return Count(what, seen, Bounds(must_be, must_be))


def _count_ends(ends: Iterable[str], bounds: Mapping[str, Bounds]) -> Iterator[Count]:
    counted = Counter(ends)
    for end in ENDS:
        yield Count(end, counted.pop(end, 0), bounds[end])
    for end, seen in sorted(counted.items()):  # no such end was foretold: a step gave up, say
        yield _exact(end, seen, 0)


def _end(order: Order) -> str:
    return CONFIRMED if order.status == "CONFIRMED" else order.reason or PENDING


def _unlike_foreseen(by_line: Mapping[int, Response | None], foreseen: Foreseen) -> Iterator[str]:
    """Yield acceptances of what had to be refused, wrong refusals, and refusals of another kind."""
    for line, answer in by_line.items():
        if answer is None:
            continue
        conflict = answer.status == KEY_REUSED
        if line in foreseen.wrong and (isinstance(answer, Answered) or conflict):
            yield f"line {line}: {foreseen.wrong[line]}, yet the door said {answer.status}"
        elif line in foreseen.conflicts and not conflict:
            first = foreseen.conflicts[line]
            yield f"line {line}: contradicts line {first}, yet the door said {answer.status}"
        elif isinstance(answer, Refused) and not conflict and line not in foreseen.wrong:
            yield f"line {line}: nothing is wrong with it, yet the door said {answer.body}"


def _other_answers(
    by_line: Mapping[int, Response | None], again: Mapping[int, int], responses: Responses
) -> Iterator[str]:
    """Yield repeats whose answer differs from the first."""
    for line, of in again.items():
        first, now = responses.get((FIRST_RUN, of)), by_line[line]
        if first and now and (first.status, first.body) != (now.status, now.body):
            yield f"line {line}: repeats line {of}, answered {now.body} after {first.body}"


def _other_ends(ends: Mapping[int, str], possible: Mapping[int, frozenset[str]]) -> Iterator[str]:
    for line, end in ends.items():
        if end not in possible[line]:
            yield f"line {line}: ended as {end}, can only be {' or '.join(sorted(possible[line]))}"
