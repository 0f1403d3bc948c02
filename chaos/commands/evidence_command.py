"""`chaos evidence`: regenerates docs/evidence, a page and a result for each part.

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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from chaos.commands import matrix_command
from chaos.commands.guards_command import prove
from chaos.commands.matrix_command import Chosen
from chaos.console.options import Seed
from chaos.console.provenance import provenance
from chaos.console.stage import Stage
from chaos.guards.table import GUARDS
from chaos.judge.verdict import Verdict, overall
from chaos.matrix.cells import covering, impossible, possible
from chaos.matrix.matrix import sample
from chaos.pages import evidence_pages as pages
from chaos.pages import evidence_sagas
from chaos.pages.evidence_index import index
from chaos.runtime import StackError
from chaos.runtime.docker.engine import engine_answers
from chaos.runtime.stack import CHECKOUT
from chaos.scenarios.runner import ORDERS, Result, Runner, new_folder
from chaos.scenarios.table import SCENARIOS, suited_to

FOLDER = CHECKOUT / "docs/evidence"
REPEATED = 0.1  # of the matrix's cells
STACK = f"evidence-{os.getpid()}"
A_FEW = 3
ON_DOCKER = "scenarios-docker"


@dataclass(frozen=True)
class Order:
    """What a part is asked for; `few` is enough to see that it works."""

    stage: Stage
    seed: int
    few: bool


@dataclass(frozen=True)
class Part:
    says: str
    minutes: float
    make: Callable[[Order], dict[str, Any]]
    page: Callable[[Mapping[str, Any]], str]


def _scenarios(order: Order, runtime: str) -> dict[str, Any]:
    names = [name for group in pages.GROUPS.values() for name in group]
    chosen = [SCENARIOS[n] for n in names[::A_FEW]] if order.few else suited_to(runtime)
    results: list[Result] = []
    runner = Runner(
        runtime,
        new_folder(order.seed),
        seed=order.seed,
        orders=ORDERS,
        say=order.stage.say,
        name=STACK,
    )
    try:
        with order.stage.bar("scenarios", len(chosen)) as show:
            for result in runner.run(chosen):
                results.append(result)
                show(len(results), result.name)
                for problem in result.problems:
                    order.stage.say(f"{result.name}: {problem}")
    finally:
        runner.close()
    verdict = overall(result.verdict for result in results)
    rows = [r.as_json() for r in results]
    for row in rows:
        if row["name"] not in pages.TOLD_WHOLE:
            del row["timeline"]
    return {"verdict": verdict, "runtime": runtime, "results": rows}


def _redelivery(order: Order) -> dict[str, Any]:
    order.stage.say("one order, whose charge is delivered three times")
    return {"verdict": Verdict.PASS, **evidence_sagas.redelivered_charge()}


def _resume(order: Order) -> dict[str, Any]:
    order.stage.say("two orders, whose orchestrator is killed")
    return {"verdict": Verdict.PASS, **evidence_sagas.killed_orchestrator()}


def _matrix(order: Order) -> dict[str, Any]:
    dice, cells = random.Random(order.seed), possible()
    if order.few:
        cells = covering(cells, dice)[:A_FEW]
    frozen = covering([cell for cell in cells if cell.freezable], dice)
    chosen = Chosen(cells, sample(cells, REPEATED, order.seed), frozen)
    result = matrix_command.play(order.stage, chosen, order.seed, ["chaos", "evidence"], STACK)
    return {**_all(result["passed"] == result["run"]), **result, "impossible": impossible()}


def _model(order: Order) -> dict[str, Any]:
    order.stage.say("exploring every order of events")
    explored = _python("tests.model", "--json")
    guard = ("--without", "told last" if order.few else "all")
    order.stage.say("and again without each guard")
    without = _python("tests.model", "--json", *guard)
    noticed = all(found["wrong"] for found in without.values())
    return {
        **_all(noticed and not any(found["wrong"] for found in explored.values())),
        "explored": explored,
        "without": without,
    }


def _guards(order: Order) -> dict[str, Any]:
    chosen = GUARDS[:A_FEW] if order.few else GUARDS
    result = prove(order.stage, chosen, order.seed, STACK)
    return {**_all(result["passed"] == len(chosen)), **result}


def _all(right: bool) -> dict[str, Verdict]:
    return {"verdict": Verdict.PASS if right else Verdict.FAIL}


PARTS: dict[str, Part] = {
    "redelivery": Part("a redelivered charge is detected and skipped", 0.5, _redelivery,
                       pages.redelivery),
    "resume": Part("sagas go on whose orchestrator was killed", 0.5, _resume, pages.resume),
    "model": Part("every order of events, and each guard's counterexample", 2, _model, pages.model),
    "guards": Part("what breaks without each guard, and who noticed", 10, _guards, pages.guards),
    "scenarios": Part("what is broken, and how every order ended", 6,
                      partial(_scenarios, runtime="native"), pages.scenarios),
    ON_DOCKER: Part("the same scenarios, in containers", 10,
                    partial(_scenarios, runtime="docker"), pages.scenarios),
    "matrix": Part("death at every failpoint with every step in hand", 22, _matrix, pages.matrix),
}  # fmt: skip


def evidence(
    parts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PART...]", help=f"{', '.join(PARTS)}. Default: all."),
    ] = None,
    seed: Seed = 7,
    few: Annotated[
        bool,
        typer.Option("--few", help="A little of each part, into build/evidence: does it work?"),
    ] = False,
    again: Annotated[
        bool,
        typer.Option("--again", help="Run nothing: write the pages from the results there are."),
    ] = False,
) -> None:
    """Run what the proof rests on, and write docs/evidence: a page and a result for each part.

    Every page names its commit, seed and command; commit your changes first, or it says that there
    were some. Native processes, but for one part, which is left out where no Docker engine answers.
    All of it takes about fifty minutes; a part alone rewrites its own page. Exits with 0 only if
    everything passed.
    """
    chosen = parts or [name for name in PARTS if name != ON_DOCKER or engine_answers()]
    if unknown := [name for name in chosen if name not in PARTS]:
        raise StackError(f"no part {unknown[0]!r}: choose from {', '.join(PARTS)}")
    stage = Stage(Console(highlight=False))
    if not parts and ON_DOCKER not in chosen:
        stage.say(f"{ON_DOCKER} is left out: no Docker engine answers")
    folder = CHECKOUT / "build/evidence" if few else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    order = Order(stage, seed, few)
    if again:
        chosen = [name for name in chosen if (folder / f"{name}.json").exists()]
    failed = [
        name
        for name in chosen
        if not (_write(name, folder) if again else _make(name, order, folder))
    ]
    (folder / "README.md").write_text(index(folder, {n: p.says for n, p in PARTS.items()}))
    for name in failed:
        stage.say(f"FAILED: {name}; see {folder / name}.md")
    stage.say(f"{len(chosen) - len(failed)} of {len(chosen)} parts passed; see {folder}/README.md")
    raise typer.Exit(1 if failed else 0)


def _make(name: str, order: Order, folder: Path) -> bool:
    part, began = PARTS[name], time.monotonic()
    order.stage.say(f"{name}: {part.says} (about {part.minutes:g} min)")
    command = ["chaos", "evidence", name, "--seed", str(order.seed)]
    made = part.make(order)
    result = {
        **made,
        **provenance([*command, *(["--few"] if order.few else [])]),
        "seed": order.seed,
        "seconds": round(time.monotonic() - began, 1),
    }
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1, default=str) + "\n")
    order.stage.say(f"{name}: {result['verdict']} ({result['seconds']} s)")
    return _write(name, folder)


def _write(name: str, folder: Path) -> bool:
    """The page, from its result alone; whether everything in it passed."""
    result = json.loads((folder / f"{name}.json").read_text())
    (folder / f"{name}.md").write_text(PARTS[name].page(result))
    return bool(result["verdict"] == Verdict.PASS)


def _python(module: str, *arguments: str) -> Any:
    """What a module of ours, which chaos may not import, prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=CHECKOUT, capture_output=True, text=True
    )
    if not done.stdout:
        raise StackError(f"{module} said nothing: {done.stderr[-400:]}")
    return json.loads(done.stdout)
