"""Breadth-first search of all states, and the shortest way to a wrong one.

Owns: the search, and whether an end can still be reached from every state. Must not know: what a
state is.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from tests.model.participants import Violation

W = TypeVar("W", bound=Hashable)

MOST = 3_000_000  # states; far more than there are, so that a mistake in the model ends


@dataclass(frozen=True)
class Explored:
    """The result of an exploration. If something is `wrong`, `trace` is the shortest way there."""

    states: int
    transitions: int
    depth: int
    ends: int
    seconds: float
    wrong: str | None
    trace: tuple[str, ...]


class Model(Protocol[W]):
    """A module that defines a state and every move out of it."""

    def first(self) -> W: ...

    def moves(self, world: W, /) -> Iterator[tuple[str, W]]:
        """Yield each move: its description and the state after it. Raises Violation."""

    def check(self, world: W, /) -> None:
        """Raise Violation if this state must not be."""

    def ended(self, world: W, /) -> bool: ...

    def forget(self) -> None:
        """Clear what was cached: a guard was removed or put back."""


def explore(model: Model[W]) -> Explored:
    """Visit every state, or those up to the first violation."""
    model.forget()
    return _Search(model).run()


class _Search(Generic[W]):
    def __init__(self, model: Model[W]) -> None:
        self._began = time.monotonic()
        self._model = model
        begin = model.first()
        self._numbers: dict[W, int] = {begin: 0}
        self._worlds: list[W] = [begin]
        self._from: list[tuple[int, str]] = [(-1, "the saga has begun")]
        self._depths: list[int] = [0]
        self._before: list[list[int]] = [[]]  # the states before each state
        self._transitions = 0

    def run(self) -> Explored:
        self._model.check(self._worlds[0])
        waiting = deque([0])
        while waiting:
            last = number = waiting.popleft()
            try:
                for words, after in self._model.moves(self._worlds[number]):
                    self._transitions += 1
                    known = self._numbers.get(after)
                    if known is None:
                        last = known = self._meet(after, number, words)
                        self._model.check(after)
                        last = number
                        waiting.append(known)
                    self._before[known].append(number)
            except Violation as violation:
                return self._explored(str(violation), self._trace(last))
        stuck = self._without_an_end()
        if stuck is None:
            return self._explored(None, ())
        return self._explored("from here no end can be reached any more", self._trace(stuck))

    def _meet(self, after: W, number: int, words: str) -> int:
        known = self._numbers[after] = len(self._worlds)
        if known > MOST:
            raise RuntimeError(f"more than {MOST} states: the model does not end")
        self._worlds.append(after)
        self._from.append((number, words))
        self._depths.append(self._depths[number] + 1)
        self._before.append([])
        return known

    def _without_an_end(self) -> int | None:
        """Return the first state from which no move leads to an end."""
        ended = [n for n, world in enumerate(self._worlds) if self._model.ended(world)]
        reaching, waiting = bytearray(len(self._worlds)), deque(ended)
        for number in ended:
            reaching[number] = 1
        while waiting:
            for before in self._before[waiting.popleft()]:
                if not reaching[before]:
                    reaching[before] = 1
                    waiting.append(before)
        found = reaching.find(0)
        return None if found < 0 else found

    def _trace(self, number: int) -> tuple[str, ...]:
        words = []
        while number >= 0:
            number, word = self._from[number]
            words.append(word)
        return tuple(reversed(words))

    def _explored(self, wrong: str | None, trace: tuple[str, ...]) -> Explored:
        return Explored(
            states=len(self._worlds),
            transitions=self._transitions,
            depth=max(self._depths),
            ends=sum(self._model.ended(world) for world in self._worlds),
            seconds=round(time.monotonic() - self._began, 1),
            wrong=wrong,
            trace=trace,
        )
