"""`chaos evidence`: runs what the proof rests on, and writes docs/evidence.

Owns: the parts, and how each is made from the commands that do the work. Must not know: what a page
says.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import typer

from chaos.commands import guards_command, matrix_command, run_command
from chaos.console.options import Seed
from chaos.console.results import BUILD, keep, provenance
from chaos.console.stage import Stage
from chaos.guards.table import GUARDS
from chaos.judge.verdict import Verdict, overall
from chaos.matrix.cells import possible
from chaos.pages import evidence_pages as pages
from chaos.pages import evidence_sagas
from chaos.pages.render import Row, render
from chaos.runtime import StackError
from chaos.runtime.docker.engine import engine_answers
from chaos.runtime.stack import CHECKOUT
from chaos.scenarios.runner import ORDERS, Runner, new_folder
from chaos.scenarios.table import suited_to

FOLDER = CHECKOUT / "docs/evidence"
RESULTS = BUILD / "evidence"
REPEATED = 0.1  # of the matrix's cells
STACK = f"evidence-{os.getpid()}"
ON_DOCKER = "scenarios-docker"
TOLD_WHOLE = ("failing-refund", "charge-after-its-undo")
"""Scenarios of which the page quotes one order's saga log."""


@dataclass(frozen=True)
class Part:
    """A part of the evidence: how it is made, and how its page."""

    says: str
    minutes: float
    make: Callable[[Stage, int], dict[str, Any]]
    page: Callable[[Row], str] | None = None
    """By default the template of the part's name shows the result as it is."""


def _scenarios(stage: Stage, seed: int, runtime: str) -> dict[str, Any]:
    folder = new_folder(seed)
    runner = Runner(runtime, folder, seed=seed, orders=ORDERS, say=stage.say, name=STACK)
    results = run_command.play(stage, runner, suited_to(runtime))
    rows = [result.as_json() for result in results]
    for row in rows:
        if row["name"] not in TOLD_WHOLE:
            del row["timeline"]
    verdict = overall(result.verdict for result in results)
    return {"verdict": verdict, "runtime": runtime, "results": rows}


def _matrix(stage: Stage, seed: int) -> dict[str, Any]:
    chosen = matrix_command.choose_cells(possible(), REPEATED, random.Random(seed), seed)
    result = matrix_command.play(stage, chosen, STACK)
    return {**_all(result["passed"] == result["run"]), **result}


def _model(stage: Stage, _: int) -> dict[str, Any]:
    stage.say("exploring every order of events")
    explored = _python("tests.model", "--json")
    stage.say("and again without each guard")
    without = _python("tests.model", "--json", "--without", "all")
    noticed = all(found["wrong"] for found in without.values())
    return {
        **_all(noticed and not any(found["wrong"] for found in explored.values())),
        "explored": explored,
        "without": without,
    }


def _guards(stage: Stage, seed: int) -> dict[str, Any]:
    result = guards_command.prove(stage, GUARDS, seed, STACK)
    return {**_all(result["passed"] == len(GUARDS)), **result}


def _all(right: bool) -> dict[str, Verdict]:
    return {"verdict": Verdict.PASS if right else Verdict.FAIL}


PARTS: dict[str, Part] = {
    "redelivery": Part(
        "a redelivered charge is detected and skipped", 0.5,
        lambda *_: {"verdict": Verdict.PASS, **evidence_sagas.redelivered_charge(STACK)}),
    "resume": Part(
        "sagas go on whose orchestrator was killed", 0.5,
        lambda *_: {"verdict": Verdict.PASS, **evidence_sagas.killed_orchestrator(STACK)},
        pages.resume),
    "model": Part("every order of events, and each guard's counterexample", 2, _model),
    "guards": Part("what breaks without each guard, and who noticed", 10, _guards),
    "scenarios": Part("what is broken, and how every order ended", 6,
                      partial(_scenarios, runtime="native"), pages.scenarios),
    ON_DOCKER: Part("the same scenarios, in containers", 10,
                    partial(_scenarios, runtime="docker"), pages.scenarios),
    "matrix": Part("death at every failpoint with every step in hand", 22, _matrix),
}  # fmt: skip


def evidence(
    parts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PART...]", help=f"{', '.join(PARTS)}. Default: all."),
    ] = None,
    seed: Seed = 7,
    again: Annotated[
        bool,
        typer.Option("--again", help="Run nothing: write the pages from the results there are."),
    ] = False,
) -> None:
    """Run what the proof rests on, and write docs/evidence.

    Each part writes its page to docs/evidence and its result as JSON to build/evidence. Every page
    names its commit, seed and command; commit your changes first, or it says that there were some.
    Runs native processes, but for one part, which is left out where no Docker engine answers. All
    parts take about fifty minutes. Exits with 0 only if everything passed.
    """
    chosen = parts or [name for name in PARTS if name != ON_DOCKER or engine_answers()]
    if unknown := [name for name in chosen if name not in PARTS]:
        raise StackError(f"no part {unknown[0]!r}: choose from {', '.join(PARTS)}")
    stage = Stage.on()
    if not parts and ON_DOCKER not in chosen:
        stage.say(f"{ON_DOCKER} is left out: no Docker engine answers")
    FOLDER.mkdir(parents=True, exist_ok=True)
    if again:
        chosen = [name for name in chosen if (RESULTS / f"{name}.json").exists()]
    else:
        for name in chosen:
            _make(name, stage, seed)
    failed = [name for name in chosen if not _write(name)]
    (FOLDER / "README.md").write_text(pages.index(FOLDER, {n: p.says for n, p in PARTS.items()}))
    for name in failed:
        stage.say(f"FAILED: {name}; see {FOLDER / name}.md")
    stage.say(f"{len(chosen) - len(failed)} of {len(chosen)} parts passed; see {FOLDER}/README.md")
    raise typer.Exit(1 if failed else 0)


def _make(name: str, stage: Stage, seed: int) -> None:
    part, began = PARTS[name], time.monotonic()
    stage.say(f"{name}: {part.says} (about {part.minutes:g} min)")
    result = {
        **part.make(stage, seed),
        **provenance("evidence", name, "--seed", seed),
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
    }
    keep(result, RESULTS / f"{name}.json")
    stage.say(f"{name}: {result['verdict']} ({result['seconds']} s)")


def _write(name: str) -> bool:
    """Write the page from its result alone; return whether everything in it passed."""
    result = json.loads((RESULTS / f"{name}.json").read_text())
    page = PARTS[name].page
    text = page(result) if page else render(f"{name}.md", result=result)
    (FOLDER / f"{name}.md").write_text(text)
    return bool(result["verdict"] == Verdict.PASS)


def _python(module: str, *arguments: str) -> Any:
    """Read what a module that chaos may not import prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=CHECKOUT, capture_output=True, text=True
    )
    if not done.stdout:
        raise StackError(f"{module} printed nothing: {done.stderr[-400:]}")
    return json.loads(done.stdout)
