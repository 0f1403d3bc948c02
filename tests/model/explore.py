"""Breadth-first exploration of all states, and the shortest way to a wrong one.

Owns: the search, and whether an end can still be reached from everywhere. Must not know: what a
state is.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from tests.model import world as model
from tests.model.world import Violation, World

MOST = 3_000_000  # states; far more than there are, so that a mistake in the model ends


@dataclass(frozen=True)
class Explored:
    """What a whole exploration saw. `wrong` is None if all is well, else what is; then `trace` is
    the shortest way there."""

    states: int
    transitions: int
    depth: int
    ends: int
    seconds: float
    wrong: str | None
    trace: tuple[str, ...]


def explore() -> Explored:
    """Everything there is, or up to the first violation."""
    return _Search().run()


class _Search:
    def __init__(self) -> None:
        self._began = time.monotonic()
        begin = model.first()
        self._numbers: dict[World, int] = {begin: 0}
        self._worlds: list[World] = [begin]
        self._from: list[tuple[int, str]] = [(-1, "the saga has begun")]
        self._depths: list[int] = [0]
        self._before: list[list[int]] = [[]]  # whence each state can be reached
        self._transitions = 0

    def run(self) -> Explored:
        model.check(self._worlds[0])
        waiting = deque([0])
        while waiting:
            number = waiting.popleft()
            try:
                for words, after in model.moves(self._worlds[number]):
                    self._transitions += 1
                    known = self._numbers.get(after)
                    if known is None:
                        known = self._meet(after, number, words)
                        model.check(after)
                        waiting.append(known)
                    self._before[known].append(number)
            except Violation as violation:
                last = number if self._from[-1][0] != number else len(self._worlds) - 1
                return self._explored(str(violation), self._trace(last))
        stuck = self._without_an_end()
        if stuck is None:
            return self._explored(None, ())
        return self._explored("from here no end can be reached any more", self._trace(stuck))

    def _meet(self, after: World, number: int, words: str) -> int:
        known = self._numbers[after] = len(self._worlds)
        if known > MOST:
            raise RuntimeError(f"more than {MOST} states: the model does not end")
        self._worlds.append(after)
        self._from.append((number, words))
        self._depths.append(self._depths[number] + 1)
        self._before.append([])
        return known

    def _without_an_end(self) -> int | None:
        """The first state from which nothing leads to an end."""
        ended = [n for n, world in enumerate(self._worlds) if world.ended]
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
            ends=sum(world.ended for world in self._worlds),
            seconds=round(time.monotonic() - self._began, 1),
            wrong=wrong,
            trace=trace,
        )
