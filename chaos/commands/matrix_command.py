"""`chaos matrix`: the crash matrix at the terminal.

Owns: which cells are run, what is shown of them, and the file with the result. Must not know:
how a cell is run.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from chaos.console.options import Json, Name
from chaos.console.provenance import provenance
from chaos.console.stage import Stage
from chaos.matrix.cells import Cell, combinations, covering, possible
from chaos.matrix.matrix import Run, matrix_on, sample
from chaos.runtime import choose
from common.kit.failpoints import Action, Point

RESULT = Path("build/matrix.json")
FAILURES = Path("build/matrix-failures")  # logs, a directory for each cell that failed


class Extent(StrEnum):
    ALL = "all"
    COVERING = "covering"
    """Every failpoint and every leg at least once."""


def matrix(
    extent: Annotated[
        Extent,
        typer.Argument(help="all cells, or a few that meet every failpoint and every leg."),
    ] = Extent.ALL,
    seed: Annotated[int, typer.Option(help="Chooses covering and repeated cells.")] = 7,
    repeat: Annotated[
        float,
        typer.Option(min=0, max=1, help="The share of cells that die twice more."),
    ] = 0.1,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Cells whose name contains this, e.g. payment; may be repeated."),
    ] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="Only say which cells there are, and which cannot be.")
    ] = False,
    json_: Json = False,
    name: Name = "matrix",
) -> None:
    """Kill each process at every failpoint, with every step in hand, and judge each time.

    A share of the cells dies twice more with the same messages in hand. Then some cells that meet
    every failpoint are frozen there instead, past every time limit, and go on with what they had.
    Runs on native processes: a failpoint is armed by a file. All cells take about 25 minutes.
    What the processes logged in a cell that fails is kept. Exits with 0 only if every cell was
    reached and every invariant held after each.
    """
    cells = [c for c in possible() if not only or all(word in str(c) for word in only)]
    dice = random.Random(seed)
    if extent is Extent.COVERING:
        cells = covering(cells, dice)
    if not cells:
        raise typer.BadParameter(f"no cell is called {only}: see chaos matrix --list")
    if list_:
        _show_cells(cells, as_json=json_)
        return
    stage = Stage(Console(stderr=json_, highlight=False))
    chosen = Chosen(
        cells, sample(cells, repeat, seed), covering([c for c in cells if c.freezable], dice)
    )
    command = ["chaos", "matrix", extent, "--seed", str(seed), "--repeat", str(repeat)]
    command += [word for text in only or () for word in ("--only", text)]
    result = play(stage, chosen, seed, command, name)
    for row in result["cells"]:
        if row["problem"]:
            stage.say(f"FAILED {_told(row)}: {row['problem']}")
    stage.say(
        f"{result['passed']} of {result['run']} cells, {result['kills']} kills, "
        f"{result['frozen']} frozen; {result['possible']} of {result['combinations']} "
        f"combinations are possible; see {RESULT}"
    )
    if json_:
        print(json.dumps(result, indent=1))
    else:
        Console().print(_why_not())
    raise typer.Exit(0 if result["passed"] == result["run"] else 1)


class Chosen(NamedTuple):
    """Cells to die in, those of them that die again and again, and cells to freeze in."""

    cells: list[Cell]
    repeated: frozenset[Cell]
    frozen: list[Cell]


def play(
    stage: Stage, chosen: Chosen, seed: int, command: Sequence[str], name: str
) -> dict[str, Any]:
    """The result, also left in the file."""
    began = time.monotonic()
    runs = _run(stage, chosen, name)
    killed = [run for run in runs if run.action is Action.KILL]
    result = {
        **provenance(command),
        "seed": seed,
        "combinations": len(list(combinations())),
        "possible": len(possible()),
        "run": len(runs),
        "passed": sum(run.problem is None for run in runs),
        "kills": sum(run.times for run in killed),
        "repeated": sum(run.times > 1 for run in killed),
        "frozen": len(runs) - len(killed),
        "seconds": round(time.monotonic() - began, 1),
        "unreachable": _reasons(),
        "cells": [_row(run) for run in runs],
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    return result


def _run(stage: Stage, chosen: Chosen, name: str) -> list[Run]:
    runs: list[Run] = []
    with (
        stage.bar("cells", len(chosen.cells) + len(chosen.frozen)) as show,
        matrix_on(choose("native", name), stage.say, FAILURES) as matrix,
    ):
        for run in chain(matrix.run(chosen.cells, chosen.repeated), matrix.freeze(chosen.frozen)):
            runs.append(run)
            show(len(runs), str(run.cell))
            if run.problem:
                stage.say(f"{_told(_row(run))}: {run.problem}")
    return runs


def _told(row: dict[str, Any]) -> str:
    return " ".join(row[word] for word in ("action", "process", "point", "step", "direction"))


def _row(run: Run) -> dict[str, Any]:
    return {
        "action": run.action,
        "process": run.cell.process,
        "point": run.cell.point,
        "step": run.cell.leg.step,
        "direction": run.cell.leg.direction,
        "times": run.times,
        "seconds": round(run.seconds, 2),
        "problem": run.problem,
    }


def _reasons() -> dict[str, int]:
    """Why combinations cannot be, and how many."""
    return dict(Counter(c.impossible for c in combinations() if c.impossible).most_common())


def _show_cells(cells: Sequence[Cell], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"cells": [str(c) for c in cells], "unreachable": _reasons()}, indent=1))
        return
    table = Table("failpoint", "cells", title=f"{len(cells)} cells")
    for point in Point:
        table.add_row(point, str(sum(cell.point is point for cell in cells)))
    for each in (table, _why_not()):
        Console().print(each)


def _why_not() -> Table:
    reasons = Table("cannot be, because", "combinations")
    for reason, count in _reasons().items():
        reasons.add_row(reason, str(count))
    return reasons
