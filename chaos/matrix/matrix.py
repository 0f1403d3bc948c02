"""The crash matrix: a process dies, or freezes, in a cell, and every invariant still holds.

Owns: arming a failpoint from outside, and one cell's run. Must not know: what any point means, nor
how sagas come there.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from chaos.faults.nemesis import hold
from chaos.matrix.approach import dead_letters, orders_for, travel
from chaos.matrix.cells import Cell, StackKind
from chaos.runtime import Plan, StackError
from chaos.runtime.base import Runtime
from chaos.scenarios.scene import Scene
from chaos.stack.armory import Armory
from chaos.stack.system import FAULT_SETTINGS, System
from chaos.waiting import ExperimentError, until
from common.kit.failpoints import Action, Arming, Point

ORDERS = 3  # through every cell
AGAIN = 2  # times more that a repeated cell kills, with the same message in hand
FIRE_SECONDS = 40.0
_NO_OPERATOR = {"operator": 0}
# What fails before its tries are counted must not be taken for a bad deploy.
_SETTINGS = {**FAULT_SETTINGS, "bad_deploy_messages": "100"}
PLANS = {
    StackKind.PLAIN: Plan(replicas=_NO_OPERATOR, settings=_SETTINGS),
    StackKind.FORGETFUL: Plan(
        replicas=_NO_OPERATOR, settings={**_SETTINGS, "retention_seconds": "0.5"}
    ),
    StackKind.ATTENDED: Plan(settings=_SETTINGS),
}
FROZEN_SECONDS = 4.0  # past all attempts of a step, and Postgres's limits of a second


@dataclass(frozen=True)
class Run:
    """The outcome of one cell."""

    cell: Cell
    action: Action
    times: int
    seconds: float
    problem: str | None
    """None: it died, or froze, came back, came to rest, and every invariant held."""


class Matrix:
    """Runs cells one after another, those of one kind of stack on one.

    After a failure the next gets a new one, and the logs are kept.
    """

    def __init__(self, runtime: Runtime, say: Callable[[str], None], failures: Path) -> None:
        self._runtime = runtime
        self._say = say
        self._failures = failures
        self._system: System | None = None
        self._stack = StackKind.PLAIN
        self._armory = Armory()
        self._numbers = itertools.count(1)

    def run(self, cells: Iterable[Cell], repeated: frozenset[Cell]) -> Iterator[Run]:
        """Kill the process in each cell."""
        for cell in by_stack(cells):
            yield self._run(cell, Action.KILL, 1 + (AGAIN if cell in repeated else 0))

    def freeze(self, cells: Iterable[Cell]) -> Iterator[Run]:
        """Freeze it there, past every time limit; it goes on with what it had in hand."""
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
            self._give_up(self._failures / str(cell).replace(" ", "-"))
        return Run(cell, action, times, time.monotonic() - began, problem)

    def _pass(self, cell: Cell, action: Action, times: int) -> None:
        system = self._up(cell.stack)
        scene = Scene(system, f"cell-{next(self._numbers)}", seed=0, count=ORDERS)
        asks = orders_for(cell, scene)
        before = system.processes.deaths(cell.process)
        self._armory.arm(cell.process, *armings(cell, action, times))
        if action is Action.KILL:
            travel(scene, cell, asks, lambda: self._died(system, cell, before, times))
        else:
            travel(scene, cell, asks, lambda: self._froze(system, cell))
        system.verdict(explained=dead_letters(cell))

    def _died(self, system: System, cell: Cell, before: int, times: int) -> None:
        """Wait until the process has died as often as it must, and is back."""

        def died() -> bool:
            dead = system.processes.deaths(cell.process) - before
            if dead > 0:
                system.runtime.start(cell.process)
            return dead >= times

        until(died, f"{cell.process} dies {times} times at {cell.point} {cell.leg}", FIRE_SECONDS)
        system.processes.start(cell.process)

    def _froze(self, system: System, cell: Cell) -> None:
        acted = self._armory.has_acted
        until(lambda: acted(cell.process), f"{cell.process} freezes at {cell}", FIRE_SECONDS)
        hold(FROZEN_SECONDS)
        system.runtime.resume(cell.process)
        until(lambda: system.processes.is_ready(cell.process), f"{cell.process} is ready")

    def _up(self, stack: StackKind) -> System:
        if self._system is not None and self._stack is not stack:
            self._down()
        if self._system is None:
            self._say(f"bringing a stack up: {stack.name.lower()}")
            plan = PLANS[stack]
            plan = replace(plan, settings={**plan.settings, **self._armory.settings})
            self._stack = stack
            self._system = System(plan, self._runtime, self._runtime.up(plan, tethered=True))
        return self._system

    def _give_up(self, directory: Path) -> None:
        """Take the stack down after a failure: its state is unknown."""
        self._armory.disarm()
        if self._system is None:
            self._runtime.down()  # it may have failed while it came up
            return
        self._system.close()
        self._runtime.save_logs_and_down(directory)
        self._say(f"its logs are in {directory}")
        self._system = None


def armings(cell: Cell, action: Action, times: int) -> list[Arming]:
    """Plan to act in the cell so many times.

    A try is counted only of a message that has failed, with others and alone, or has come back
    twice.
    """
    step, direction = cell.leg
    act = Arming(cell.point, step, direction, action=action)
    if cell.kind not in ("tries", "tries_done"):
        return [act] * times
    fail = Arming(Point.BATCH_BEFORE_COMMIT, step, direction, action=Action.RAISE)
    return [arming for n in range(times) for arming in ((fail, fail, act) if n < 2 else (act,))]


def by_stack(cells: Iterable[Cell]) -> list[Cell]:
    """Sort cells so that few stacks are needed."""
    return sorted(cells, key=lambda cell: cell.stack.value)


def sample(cells: Sequence[Cell], fraction: float, seed: int) -> frozenset[Cell]:
    """Choose cells whose process is killed again and again with the same message in hand."""
    suited = [cell for cell in cells if cell.repeatable]
    return frozenset(random.Random(seed).sample(suited, round(fraction * len(suited))))
