"""`chaos list`, `chaos run`, `chaos storm` and `chaos report`: scenarios at the terminal.

Owns: which scenarios are played, what is shown of them while they are, and the run folder's own
files. Must not know: how a scenario is played or judged.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from chaos.console.options import Json, Kind, Name, Seed, StyleOption
from chaos.console.results import keep, provenance
from chaos.console.stage import COLOURS, Stage, list_names
from chaos.judge.verdict import Verdict, overall
from chaos.pages.run_page import RESULT, write_report
from chaos.runtime import StackError, Style, choose
from chaos.runtime.docker.runtime import DockerRuntime
from chaos.runtime.stack import CHECKOUT
from chaos.scenarios.runner import ORDERS, Result, Runner, new_folder
from chaos.scenarios.scene import PROFILES, Scenario, plan_of
from chaos.scenarios.storm import storm_of
from chaos.scenarios.table import SCENARIOS, suited_to

ALL = "all"


def list_scenarios(
    json_: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """List every scenario by name, with what is broken and how each order must end."""
    if json_:
        print(json.dumps([_row(scenario) for scenario in SCENARIOS.values()], indent=1))
        return
    list_names((name, _says(scenario)) for name, scenario in SCENARIOS.items())


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
        int, typer.Option(min=1, help="Orders in each flow, where a scenario does not need fewer.")
    ] = ORDERS,
    style: StyleOption = "orchestrated",
    json_: Json = False,
    name: Name = "scenarios",
) -> None:
    """Play scenarios: orders flow, something is broken, all comes to rest, the judge decides.

    Each has its own verdict, over everything its stack has seen so far; scenarios with the same
    settings share a stack, and after a failure the next gets a new one. Everything is kept in
    build/runs/<time>-<seed>: report, history, logs, tables, verdict. All take about five minutes
    native, eight on Docker. Exits with 0 only if all passed.
    """
    kind = _kind(runtime)
    chosen = _chosen(names, kind, style)
    words = ("run", *names, "--runtime", kind, "--seed", seed, "--style", style, "--orders", orders)
    _play_all(chosen, words, kind, style, seed, name, orders, as_json=json_)


def storm(
    minutes: Annotated[float, typer.Option(min=0.1, help="How long faults strike.")] = 10,
    seed: Seed = 7,
    style: StyleOption = "orchestrated",
    runtime: Kind = None,
    json_: Json = False,
    name: Name = "storm",
) -> None:
    """Let random faults strike a flow of orders; heal all, wait for rest, judge.

    Processes and servers are killed, frozen and cut off, messages repeated, reordered and poisoned,
    one fault at a time, as the seed decides. Orders are returned meanwhile. The run folder is
    build/runs/<time>-<seed>. Takes a minute or two longer than the faults strike. Exits with 0 only
    if every invariant holds.
    """
    kind = _kind(runtime)
    words = ("storm", "--minutes", f"{minutes:g}", "--seed", seed, "--style", style,
             "--runtime", kind)  # fmt: skip
    _play_all([storm_of(minutes, kind)], words, kind, style, seed, name, as_json=json_)


def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="build/runs/...")],
) -> None:
    """Write a run's page again: report.html, which needs no network, and report.md."""
    if not (folder / RESULT).exists():
        raise StackError(f"{folder} is not a run: it has no {RESULT}")
    typer.echo(write_report(folder))


def play(
    stage: Stage,
    runner: Runner,
    scenarios: Sequence[Scenario],
    save: Callable[[Sequence[Result]], object] = lambda _: None,
) -> list[Result]:
    """Play scenarios one after another; save the results so far, and say what came of each."""
    results: list[Result] = []
    try:
        with stage.bar("played", len(scenarios)) as show:
            for result in runner.run(scenarios):
                results.append(result)
                save(results)
                _tell(stage, result)
                show(len(results), result.name)
    finally:
        runner.close()
    return results


def _play_all(
    scenarios: Sequence[Scenario],
    command: Sequence[object],
    kind: str,
    style: Style,
    seed: int,
    name: str,
    orders: int = ORDERS,
    *,
    as_json: bool,
) -> None:
    stage, folder = Stage.on(stderr=as_json), new_folder(seed)
    head = {**provenance(*command), "seed": seed, "runtime": kind, "style": style}
    stage.say(f"{len(scenarios)} scenarios on {kind}, {style}; everything is kept in {folder}")

    def save(results: Sequence[Result], *, as_json: bool = False) -> Verdict:
        verdict = overall(result.verdict for result in results)
        profiles = dict.fromkeys((*PROFILES, *(result.profile for result in results)))
        settings = {profile: dict(plan_of(profile).settings) for profile in profiles}
        rows = [result.as_json() for result in results]
        whole = {**head, "verdict": verdict, "settings": settings, "results": rows}
        keep(whole, folder / RESULT, as_json=as_json)
        return verdict

    runner = Runner(kind, folder, seed=seed, orders=orders, say=stage.say, name=name, style=style)
    results = play(stage, runner, scenarios, save)
    verdict = save(results, as_json=as_json)
    failed = [result for result in results if result.verdict is not Verdict.PASS]
    for result in failed:
        stage.say(f"{result.verdict}: {result.name}")
    passed = len(results) - len(failed)
    stage.say(f"{passed} of {len(results)} passed; see {write_report(folder)}")
    stage.console.print(f"verdict: [{COLOURS[verdict]}]{verdict}[/]")
    raise typer.Exit(0 if verdict is Verdict.PASS else 1)


def _tell(stage: Stage, result: Result) -> None:
    ends = ", ".join(f"{count} {end}" for end, count in result.ends.items())
    recovery = "" if result.recovery_seconds is None else f"; at rest {result.recovery_seconds} s"
    stage.say(f"{result.verdict}  {result.name}: {ends}{recovery} ({result.seconds} s)")
    for problem in result.problems:
        stage.say(f"      {problem}")


def _kind(asked: str | None) -> str:
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


def _says(scenario: Scenario) -> str:
    suits = [*scenario.runtimes] * (len(scenario.runtimes) == 1)
    suits += [*scenario.styles] * (len(scenario.styles) == 1)
    only = f" ({', '.join(suits)} only)" if suits else ""
    return f"{scenario.says}{only}\nEvery order ends: {scenario.expects}."


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
