"""`chaos matrix`: the crash matrix at the terminal.

Owns: which cells are run, and what is shown of them. Must not know: how a cell is run.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from contextlib import closing
from enum import StrEnum
from itertools import chain
from typing import Annotated, Any, NamedTuple

import typer

from chaos.console.options import Json, List, Name, Seed
from chaos.console.results import BUILD, keep, provenance
from chaos.console.stage import Stage
from chaos.matrix.cells import Cell, combinations, covering, possible, reasons
from chaos.matrix.matrix import Matrix, Run, sample
from chaos.runtime import choose
from common.kit.failpoints import Action

RESULT = BUILD / "matrix.json"
FAILURES = BUILD / "matrix-failures"  # logs, a directory for each cell that failed


class Extent(StrEnum):
    """The choice of cells to run."""

    ALL = "all"
    COVERING = "covering"


def matrix(
    extent: Annotated[
        Extent,
        typer.Argument(help="all cells, or a few that meet every failpoint and every step."),
    ] = Extent.ALL,
    seed: Seed = 7,
    repeat: Annotated[
        float,
        typer.Option(min=0, max=1, help="The share of cells that die twice more."),
    ] = 0.1,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Cells whose name contains this, e.g. payment; may be repeated."),
    ] = None,
    list_: List = False,
    json_: Json = False,
    name: Name = "matrix",
) -> None:
    """Kill each process at every failpoint, with every step in hand, and judge each time.

    A share of the cells dies twice more with the same messages in hand. Then some cells that meet
    every failpoint are frozen there instead, past every time limit, and go on with what they had.
    Runs on native processes: a failpoint is armed by a file. All cells take about 25 minutes.
    The result is build/matrix.json; the logs of a cell that fails go to build/matrix-failures.
    Exits with 0 only if every cell was reached and every invariant held after each.
    """
    cells = [c for c in possible() if not only or all(word in str(c) for word in only)]
    dice = random.Random(seed)
    if extent is Extent.COVERING:
        cells = covering(cells, dice)
    if not cells:
        raise typer.BadParameter(f"no cell is called {only}: see chaos matrix --list")
    if list_:
        whole = {"cells": [str(cell) for cell in cells], "unreachable": reasons()}
        print(json.dumps(whole, indent=1) if json_ else "\n".join(whole["cells"]))
        return
    stage = Stage.on(stderr=json_)
    words = [word for text in only or () for word in ("--only", text)]
    result = {
        **provenance("matrix", extent, "--seed", seed, "--repeat", repeat, *words),
        "seed": seed,
        **play(stage, choose_cells(cells, repeat, dice, seed), name),
    }
    keep(result, RESULT, as_json=json_)
    stage.say(
        f"{result['passed']} of {result['run']} cells, {result['kills']} kills, "
        f"{result['frozen']} frozen; {result['possible']} of {result['combinations']} "
        f"combinations are possible; see {RESULT}"
    )
    raise typer.Exit(0 if result["passed"] == result["run"] else 1)


class Chosen(NamedTuple):
    """Cells to die in, those of them that die again and again, and cells to freeze in."""

    cells: list[Cell]
    repeated: frozenset[Cell]
    frozen: list[Cell]


def choose_cells(cells: list[Cell], repeat: float, dice: random.Random, seed: int) -> Chosen:
    freezable = covering([cell for cell in cells if cell.freezable], dice)
    return Chosen(cells, sample(cells, repeat, seed), freezable)


def play(stage: Stage, chosen: Chosen, name: str) -> dict[str, Any]:
    began, runs = time.monotonic(), list[Run]()
    with (
        stage.bar("cells", len(chosen.cells) + len(chosen.frozen)) as show,
        closing(Matrix(choose("native", name), stage.say, FAILURES)) as matrix,
    ):
        for run in chain(matrix.run(chosen.cells, chosen.repeated), matrix.freeze(chosen.frozen)):
            runs.append(run)
            show(len(runs), str(run.cell))
            if run.problem:
                stage.say(f"FAILED {run.action} {run.cell}: {run.problem}")
    killed = [run for run in runs if run.action is Action.KILL]
    return {
        "combinations": len(list(combinations())),
        "possible": len(possible()),
        "run": len(runs),
        "passed": sum(run.problem is None for run in runs),
        "kills": sum(run.times for run in killed),
        "repeated": sum(run.times > 1 for run in killed),
        "frozen": len(runs) - len(killed),
        "seconds": round(time.monotonic() - began, 1),
        "unreachable": reasons(),
        "cells": _rows(runs),
    }


def _rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    return [
        {
            "action": run.action,
            "process": run.cell.process,
            "point": run.cell.point,
            "step": run.cell.leg.step,
            "direction": run.cell.leg.direction,
            "times": run.times,
            "seconds": round(run.seconds, 2),
            "problem": run.problem,
        }
        for run in runs
    ]
