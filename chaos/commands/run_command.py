"""`chaos list` and `chaos run`: scenarios at the terminal.

Owns: which scenarios are played, what is shown of them while they are, and the run folder's own
files. Must not know: how a scenario is played or judged.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from chaos.console.options import Json, Kind, Name, Seed, StyleOption
from chaos.console.provenance import provenance
from chaos.console.report import COLOURS
from chaos.console.stage import Stage
from chaos.judge.verdict import Verdict, overall
from chaos.pages.run_page import write_report
from chaos.runtime import StackError, Style, choose
from chaos.runtime.docker.runtime import DockerRuntime
from chaos.runtime.stack import CHECKOUT
from chaos.scenarios.runner import ORDERS, Result, Runner, new_folder
from chaos.scenarios.scene import PROFILES, Scenario, plan_of
from chaos.scenarios.table import SCENARIOS, suited_to

ALL = "all"
RESULT = "result.json"


def list_scenarios(
    json_: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show every scenario: what is broken, and how each order must end."""
    if json_:
        print(json.dumps([_row(scenario) for scenario in SCENARIOS.values()], indent=1))
        return
    table = Table("scenario", "what happens", "every order ends", "", title="chaos run NAME...")
    for scenario in SCENARIOS.values():
        suits = [*scenario.runtimes] * (len(scenario.runtimes) == 1)
        suits += [*scenario.styles] * (len(scenario.styles) == 1)
        only = f"{', '.join(suits)} only" if suits else ""
        table.add_row(scenario.name, scenario.says, scenario.expects, only)
    Console().print(table)


def run(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...",
            help="Scenarios by name, or all; one of your own as module:NAME.",
        ),
    ],
    runtime: Kind = None,
    seed: Seed = 7,
    orders: Annotated[
        int, typer.Option(min=1, help="Orders in each flow; scenarios with a plot need fewer.")
    ] = ORDERS,
    style: StyleOption = "orchestrated",
    json_: Json = False,
    name: Name = "scenarios",
) -> None:
    """Play scenarios: orders flow, something is broken, all comes to rest, the judge looks.

    Each has its own verdict, over everything its stack has seen so far; scenarios with the same
    settings share a stack, and after a failure the next gets a new one. Everything is kept in
    build/runs/<time>-<seed>: report, history, logs, tables, verdict. All take about five minutes
    native, eight on Docker. Exits with 0 only if all passed.
    """
    kind = kind_of(runtime)
    chosen = _chosen(names, kind, style)
    stage = Stage(Console(stderr=json_, highlight=False))
    folder = new_folder(seed)
    runner = Runner(kind, folder, seed=seed, orders=orders, say=stage.say, name=name, style=style)
    stage.say(f"{len(chosen)} scenarios on {kind}, {style}; everything is kept in {folder}")
    words = ["chaos", "run", *names, "--runtime", kind, "--seed", str(seed)]
    words += ["--style", style]
    head = {**provenance([*words, "--orders", str(orders)]), "seed": seed, "runtime": kind}
    head["style"] = style
    results: list[Result] = []
    try:
        with stage.bar("played", len(chosen)) as show:
            for result in runner.run(chosen):
                results.append(result)
                save(folder, head, results)
                tell(stage, result)
                show(len(results), result.name)
    finally:
        runner.close()
    raise typer.Exit(finish(stage, folder, head, results, as_json=json_))


def tell(stage: Stage, result: Result) -> None:
    ends = ", ".join(f"{count} {end}" for end, count in result.ends.items())
    recovery = "" if result.recovery_seconds is None else f"; at rest {result.recovery_seconds} s"
    stage.say(f"{result.verdict}  {result.name}: {ends}{recovery} ({result.seconds} s)")
    for problem in result.problems:
        stage.say(f"      {problem}")


def save(folder: Path, head: dict[str, Any], results: Sequence[Result]) -> dict[str, Any]:
    whole = {
        **head,
        "verdict": overall(result.verdict for result in results),
        "settings": {
            profile: dict(plan_of(profile).settings)
            for profile in dict.fromkeys((*PROFILES, *(result.profile for result in results)))
        },
        "results": [result.as_json() for result in results],
    }
    (folder / RESULT).write_text(json.dumps(whole, indent=1, default=str) + "\n")
    return whole


def finish(
    stage: Stage,
    folder: Path,
    head: dict[str, Any],
    results: Sequence[Result],
    *,
    as_json: bool,
) -> int:
    """The page, the last lines, and the exit code."""
    whole = save(folder, head, results)
    page = write_report(folder)
    passed = [result for result in results if result.verdict is Verdict.PASS]
    for result in results:
        if result.verdict is not Verdict.PASS:
            stage.say(f"{result.verdict}: {result.name}")
    verdict = Verdict(whole["verdict"])
    stage.say(f"{len(passed)} of {len(results)} passed; see {page}")
    stage.console.print(f"verdict: [{COLOURS[verdict]}]{verdict}[/]")
    if as_json:
        print(json.dumps(whole, indent=1, default=str))
    return 0 if verdict is Verdict.PASS else 1


def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="build/runs/...")],
) -> None:
    """Write a run's page again: report.html, which needs no network, and report.md."""
    if not (folder / RESULT).exists():
        raise StackError(f"{folder} is no run: there is no {RESULT} in it")
    typer.echo(write_report(folder))


def kind_of(asked: str | None) -> str:
    return "docker" if isinstance(choose(asked), DockerRuntime) else "native"


def _chosen(names: Sequence[str], kind: str, style: Style) -> list[Scenario]:
    if ALL in names:
        return suited_to(kind, style)
    chosen = [SCENARIOS.get(name) or _imported(name) for name in dict.fromkeys(names)]
    for scenario in chosen:
        if kind not in scenario.runtimes:
            raise StackError(f"{scenario.name} is for {', '.join(scenario.runtimes)} only")
        if style not in scenario.styles:
            raise StackError(f"{scenario.name} is for the {', '.join(scenario.styles)} style only")
    return chosen


def _imported(name: str) -> Scenario:
    module, _, attribute = name.partition(":")
    sys.path.insert(0, str(CHECKOUT))  # where the processes of a stack are started, too
    try:
        found = getattr(importlib.import_module(module), attribute) if attribute else None
    except (ImportError, AttributeError) as error:
        raise StackError(f"no scenario {name}: {error}") from error
    if not isinstance(found, Scenario):
        raise StackError(
            f"no scenario {name!r}: see `chaos list`, or write module:NAME of a Scenario"
        )
    return found


def _row(scenario: Scenario) -> dict[str, Any]:
    return {
        "name": scenario.name,
        "says": scenario.says,
        "fault": scenario.fault,
        "expects": scenario.expects,
        "profile": scenario.profile,
        "runtimes": sorted(scenario.runtimes),
        "styles": sorted(scenario.styles),
    }
