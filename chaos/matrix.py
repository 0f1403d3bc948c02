"""The crash matrix: a process dies in every cell, and the judge finds nothing amiss.

Owns: arming a failpoint from outside, one cell's run, and the count, N of N. Must not know: what
any point means, nor how sagas come there.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from chaos.cells import Cell
from chaos.roads import dead_letters, new_shop, travel
from chaos.runtime import Plan, Runtime, StackError
from chaos.system import FAULT_SETTINGS, ExperimentError, System, until
from common.failpoints import ARMINGS, Action, Arming, Point

AGAIN = 2  # times more that a repeated cell kills, with the same message in hand
FIRE_SECONDS = 40.0


@dataclass(frozen=True)
class Run:
    """What came of one cell."""

    cell: Cell
    kills: int
    seconds: float
    problem: str | None  # None: it died, came back, came to rest, and every invariant held


class Matrix:
    """Runs cells one after another on one stack, and on a new one after a failure."""

    def __init__(self, runtime: Runtime, say: Callable[[str], None]) -> None:
        self._runtime = runtime
        self._say = say
        self._system: System | None = None
        self._deaths = 0  # of the cell's process, before
        self._armory = Path(tempfile.mkdtemp(prefix="sagaproof-failpoints-"))

    def run(self, cells: Sequence[Cell], repeated: frozenset[Cell]) -> Iterator[Run]:
        for number, cell in enumerate(cells, 1):
            kills = 1 + (AGAIN if cell in repeated else 0)
            began = time.monotonic()
            try:
                self._run(cell, kills, f"cell-{number}")
                problem = None
            except (ExperimentError, StackError, OSError) as error:
                problem = str(error) or repr(error)
                self._condemn()
            yield Run(cell, kills, time.monotonic() - began, problem)

    def close(self) -> None:
        self._condemn()
        shutil.rmtree(self._armory)

    def _run(self, cell: Cell, kills: int, name: str) -> None:
        system = self._up()
        here = new_shop(system, name)
        self._deaths = system.deaths(cell.process)
        self.arm(cell.process, armings(cell, kills))
        travel(system, cell, here, lambda: self._fired(system, cell, kills))
        system.verdict(explained=dead_letters(cell))

    def arm(self, process: str, planned: Sequence[Arming]) -> None:
        """From here on the process acts on them, one after another."""
        file = self._armory / process
        whole = file.with_suffix(".new")
        whole.write_bytes(ARMINGS.dump_json(list(planned)))
        whole.replace(file)

    def _fired(self, system: System, cell: Cell, kills: int) -> None:
        """It has died as often as it was to, and is back."""
        wanted = self._deaths + kills

        def died() -> bool:
            dead = system.deaths(cell.process)
            if dead > self._deaths:
                system.hurry(cell.process)
            return dead >= wanted

        until(died, f"{cell.process} dies {kills} times at {cell.point} {cell.leg}", FIRE_SECONDS)
        system.start(cell.process)

    def _up(self) -> System:
        if self._system is None:
            self._say("bringing a stack up")
            # No operator: its relay would send what a dead orchestrator left behind.
            settings = {**FAULT_SETTINGS, "failpoint_dir": str(self._armory)}
            plan = Plan(replicas={"operator": 0}, settings=settings)
            self._system = System(plan, self._runtime, self._runtime.up(plan, tethered=True))
        return self._system

    def _condemn(self) -> None:
        """After a failure nobody knows what the stack is in."""
        for file in self._armory.iterdir():
            file.unlink()
        if self._system is not None:
            self._system.close()
            self._system = None
        self._runtime.down()


def armings(cell: Cell, kills: int) -> list[Arming]:
    """Death at the cell, as often. A try is counted only of what has failed, with others and
    alone, or has come back twice."""
    step, direction = cell.leg
    die = Arming(cell.point, step, direction)
    if cell.point not in (Point.TRIES_BEFORE_COMMIT, Point.TRIES_AFTER_COMMIT):
        return [die] * kills
    fail = Arming(Point.BATCH_BEFORE_COMMIT, step, direction, action=Action.RAISE)
    return [arming for n in range(kills) for arming in ((fail, fail, die) if n < 2 else (die,))]


def sample(cells: Sequence[Cell], fraction: float, seed: int) -> frozenset[Cell]:
    """Those that are killed again and again with the same message in hand."""
    suited = [cell for cell in cells if cell.repeatable]
    return frozenset(random.Random(seed).sample(suited, round(fraction * len(suited))))


@contextmanager
def matrix_on(runtime: Runtime, say: Callable[[str], None]) -> Iterator[Matrix]:
    matrix = Matrix(runtime, say)
    try:
        yield matrix
    finally:
        matrix.close()
