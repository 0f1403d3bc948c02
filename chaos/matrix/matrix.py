"""The crash matrix: a process dies, or freezes, in a cell, and the judge finds nothing amiss.

Owns: arming a failpoint from outside, one cell's run, and the count, N of N. Must not know: what
any point means, nor how sagas come there.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from chaos.faults.nemesis import hold
from chaos.matrix.cells import Cell, Stack
from chaos.matrix.roads import dead_letters, new_shop, travel
from chaos.runtime import Plan, StackError
from chaos.runtime.base import Runtime
from chaos.stack.armory import Armory
from chaos.stack.system import FAULT_SETTINGS, System
from chaos.waiting import ExperimentError, until
from common.kit.failpoints import Action, Arming, Point

AGAIN = 2  # times more that a repeated cell kills, with the same message in hand
FIRE_SECONDS = 40.0
_NO_OPERATOR = {"operator": 0}
# What is made to fail before its tries are counted is no bad deploy, however often in a minute.
_SETTINGS = {**FAULT_SETTINGS, "bad_deploy_messages": "100"}
PLANS = {
    Stack.PLAIN: Plan(replicas=_NO_OPERATOR, settings=_SETTINGS),
    Stack.FORGETFUL: Plan(
        replicas=_NO_OPERATOR, settings={**_SETTINGS, "retention_seconds": "0.5"}
    ),
    Stack.ATTENDED: Plan(settings=_SETTINGS),
}
FROZEN_SECONDS = 4.0  # past all attempts of a step, and Postgres's limits of a second


@dataclass(frozen=True)
class Run:
    """What came of one cell."""

    cell: Cell
    action: Action
    times: int
    seconds: float
    problem: str | None
    """None: it died, or froze, came back, came to rest, and every invariant held."""


class Matrix:
    """Runs cells one after another, those of one kind of stack on one, and on a new one after a
    failure, whose logs are kept."""

    def __init__(self, runtime: Runtime, say: Callable[[str], None], failures: Path) -> None:
        self._runtime = runtime
        self._say = say
        self._failures = failures
        self._system: System | None = None
        self._stack = Stack.PLAIN
        self._armory = Armory()
        self._shops = itertools.count(1)

    def run(self, cells: Iterable[Cell], repeated: frozenset[Cell]) -> Iterator[Run]:
        """The process dies there."""
        for cell in by_stack(cells):
            yield self._run(cell, Action.KILL, 1 + (AGAIN if cell in repeated else 0))

    def freeze(self, cells: Iterable[Cell]) -> Iterator[Run]:
        """It stands still there, past every time limit, and goes on with what it had in hand."""
        for cell in by_stack(cells):
            yield self._run(cell, Action.PAUSE, 1)

    def close(self) -> None:
        self._down()
        self._armory.close()

    def _down(self) -> None:
        if self._system is not None:
            self._system.close()
            self._system = None
        self._runtime.down()

    def _run(self, cell: Cell, action: Action, times: int) -> Run:
        began = time.monotonic()
        try:
            self._pass(cell, action, times)
            problem = None
        except (ExperimentError, StackError, OSError) as error:
            problem = str(error) or repr(error)
            self._condemn(self._failures / str(cell).replace(" ", "-"))
        return Run(cell, action, times, time.monotonic() - began, problem)

    def _pass(self, cell: Cell, action: Action, times: int) -> None:
        system = self._up(cell.stack)
        here = new_shop(system, f"cell-{next(self._shops)}")
        before = system.processes.deaths(cell.process)
        self._armory.arm(cell.process, *armings(cell, action, times))
        if action is Action.KILL:
            travel(system, cell, here, lambda: self._died(system, cell, before, times))
        else:
            travel(system, cell, here, lambda: self._froze(system, cell))
        system.verdict(explained=dead_letters(cell))

    def _died(self, system: System, cell: Cell, before: int, times: int) -> None:
        """It has died as often as it was to, and is back."""

        def died() -> bool:
            dead = system.processes.deaths(cell.process) - before
            if dead > 0:
                system.runtime.start(cell.process)
            return dead >= times

        until(died, f"{cell.process} dies {times} times at {cell.point} {cell.leg}", FIRE_SECONDS)
        system.processes.start(cell.process)

    def _froze(self, system: System, cell: Cell) -> None:
        acted = f"{cell.process} stands still at {cell}"
        until(lambda: self._armory.has_acted(cell.process), acted, FIRE_SECONDS)
        hold(FROZEN_SECONDS)
        system.runtime.resume(cell.process)
        until(lambda: system.processes.is_ready(cell.process), f"{cell.process} is ready")

    def _up(self, stack: Stack) -> System:
        if self._system is not None and self._stack is not stack:
            self._down()
        if self._system is None:
            self._say(f"bringing a stack up: {stack.name.lower()}")
            plan = PLANS[stack]
            plan = replace(plan, settings={**plan.settings, **self._armory.settings})
            self._stack = stack
            self._system = System(plan, self._runtime, self._runtime.up(plan, tethered=True))
        return self._system

    def _condemn(self, directory: Path) -> None:
        """After a failure nobody knows what the stack is in."""
        self._armory.disarm()
        if self._system is None:
            self._runtime.down()  # it may have failed while it came up
            return
        self._system.close()
        self._runtime.save_logs_and_down(directory)
        self._say(f"its logs are in {directory}")
        self._system = None


def armings(cell: Cell, action: Action, times: int) -> list[Arming]:
    """To act in the cell, as often. A try is counted only of what has failed, with others and
    alone, or has come back twice."""
    step, direction = cell.leg
    act = Arming(cell.point, step, direction, action=action)
    if cell.kind not in ("tries", "tries_done"):
        return [act] * times
    fail = Arming(Point.BATCH_BEFORE_COMMIT, step, direction, action=Action.RAISE)
    return [arming for n in range(times) for arming in ((fail, fail, act) if n < 2 else (act,))]


def by_stack(cells: Iterable[Cell]) -> list[Cell]:
    """So that few stacks are needed."""
    return sorted(cells, key=lambda cell: cell.stack.value)


def sample(cells: Sequence[Cell], fraction: float, seed: int) -> frozenset[Cell]:
    """Those that are killed again and again with the same message in hand."""
    suited = [cell for cell in cells if cell.repeatable]
    return frozenset(random.Random(seed).sample(suited, round(fraction * len(suited))))


@contextmanager
def matrix_on(runtime: Runtime, say: Callable[[str], None], failures: Path) -> Iterator[Matrix]:
    matrix = Matrix(runtime, say, failures)
    try:
        yield matrix
    finally:
        matrix.close()
