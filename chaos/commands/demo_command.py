"""`chaos demo`: the whole system on real input, two of its processes killed, and the verdict.

Owns: the order of events. Must not know: how a runtime starts or kills anything, nor what
an invariant says.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from chaos.console.options import Json, Kind, StyleOption
from chaos.console.stage import Stage
from chaos.judge.history import Fault
from chaos.judge.verdict import Verdict
from chaos.load.catalogue import CatalogueError
from chaos.load.model import Foreseen, foresee
from chaos.load.outcome import Responses, outcome_of, responses_of, what_changed
from chaos.load.placer import BULK, place_orders
from chaos.load.workload import Ask, BadLine, Catalogue, parse_catalogue, parse_orders
from chaos.pages.demo_report import Report, WrongLine, as_json, show
from chaos.runtime import SERVERS, Plan, StackError, choose
from chaos.runtime.base import Runtime
from chaos.stack.system import System
from chaos.waiting import ExperimentError, until

EXAMPLES = Path(__file__).parents[2] / "examples"
VICTIMS = {"orchestrated": ("payment", "orchestrator"), "choreographed": ("payment", "order")}
KILL_BETWEEN = (0.15, 0.75)  # of the lines that have their answer: the middle of the flow

PLACE_SECONDS = 180.0
QUIESCENCE_SECONDS = 120.0


def demo(
    seed: Annotated[int, typer.Option(help="Chooses the moments of the kills.")] = 7,
    orders: Annotated[
        int | None, typer.Option(min=1, help="Place only the first N lines of the file.")
    ] = None,
    kill: Annotated[
        list[str] | None,
        typer.Option(
            help="A process to kill with SIGKILL in mid-flow; may be repeated. "
            "By default payment and the orchestrator; choreographed, payment and order."
        ),
    ] = None,
    twice: Annotated[
        bool, typer.Option("--twice", help="Place the file again and show that nothing changes.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the stack up; `chaos down` ends it.")
    ] = False,
    style: StyleOption = "orchestrated",
    json_: Json = False,
    runtime: Kind = None,
    name: Annotated[
        str | None, typer.Option(help="The stack's name; by default this checkout's own.")
    ] = None,
) -> None:
    """Place real orders, kill processes in mid-flow, and judge what came of it.

    Exits with 0 only if every invariant held and every order ended as its input allows.
    """
    victims = VICTIMS[style] if kill is None else tuple(dict.fromkeys(kill))
    plan = Plan(style=style)
    if unknown := set(victims) - {*plan.processes, *SERVERS}:
        known = ", ".join((*plan.processes, *SERVERS))
        raise typer.BadParameter(f"{unknown.pop()} is no process: choose from {known}")
    stage = Stage.on(stderr=json_)
    lines = (EXAMPLES / "orders.jsonl").read_text("utf-8").splitlines()[:orders]
    script = Script(
        catalogue=parse_catalogue((EXAMPLES / "catalogue.json").read_text("utf-8")),
        lines=tuple(parse_orders(lines)),
        seed=seed,
        victims=victims,
        runs=2 if twice else 1,
        plan=plan,
    )
    try:
        report = _on_a_stack(stage, script, choose(runtime, name), keep=keep)
    except (StackError, CatalogueError, ExperimentError) as error:
        stage.say(f"cannot go on: {error}")
        raise typer.Exit(2) from error
    show(report, stage.console)
    if json_:
        print(json.dumps(as_json(report), indent=1))
    raise typer.Exit(0 if report.verdict is Verdict.PASS else 1)


@dataclass(frozen=True)
class Script:
    """The orders to place, and the processes to kill meanwhile."""

    catalogue: Catalogue
    lines: tuple[Ask | BadLine, ...]
    seed: int
    victims: tuple[str, ...]
    runs: int
    plan: Plan

    @property
    def asks(self) -> list[Ask]:
        return [line for line in self.lines if isinstance(line, Ask)]


def _on_a_stack(stage: Stage, script: Script, runtime: Runtime, *, keep: bool) -> Report:
    victims = " and ".join(script.victims) or "no process"
    stage.say(f"{len(script.lines)} lines of orders; SIGKILL to {victims} on the way")
    with stage.phase("stack up"):
        endpoints = runtime.up(script.plan, tethered=not keep, progress=stage.say)
    stage.say(f"the stack is up; its door: {endpoints.door_url}/docs")
    keep_logs = True
    try:
        with closing(System(script.plan, runtime, endpoints)) as system:
            report = _play(stage, script, system)
        keep_logs = report.verdict is not Verdict.PASS
        return report
    except (KeyboardInterrupt, SystemExit):
        stage.say("interrupted")
        keep_logs = False
        raise
    finally:
        if keep_logs:
            stage.say(f"logs and history.jsonl are kept: {endpoints.log_dir}")
        if keep:
            stage.say(f"stack {runtime.name} stays up, as asked; `chaos down` ends it")
        else:
            stage.say("taking the stack down")
            with stage.phase("stack down"):
                runtime.down(keep_logs=keep_logs)


def _play(stage: Stage, script: Script, system: System) -> Report:
    with stage.phase("catalogue"):
        system.load(script.catalogue)
    stage.say("products, deliveries, accounts and deposits of the catalogue are in")
    foreseen, snapshots = foresee(script.catalogue, script.asks), []
    for run in range(1, script.runs + 1):
        _place(stage, script, system, run)
        stage.say("waiting for rest: nothing pending, all outboxes and queues empty")
        with stage.phase("coming to rest"):
            system.rest(QUIESCENCE_SECONDS)
        snapshots.append(system.snapshot())
    stage.say("judging a snapshot of all four schemas")
    judgement = system.judgement()
    responses = responses_of(system.history.events)
    return Report(
        seed=script.seed,
        began=stage.began,
        lines=len(script.lines),
        unsendable=len(script.lines) - len(script.asks),
        wrong_lines=tuple(_wrong_lines(script, foreseen, responses)),
        outcomes=tuple(
            outcome_of(run, script.asks, foreseen, responses, snapshot)
            for run, snapshot in enumerate(snapshots, 1)
        ),
        changed=tuple(what_changed(snapshots[0], snapshots[-1])),
        faults=tuple(event for event in system.history.events if isinstance(event, Fault)),
        standing=tuple(judgement.remaining.lines()),
        findings=judgement.findings,
        tally=judgement.tally,
        seconds=stage.seconds,
    )


def _place(stage: Stage, script: Script, system: System, run: int) -> None:
    """Place the file; in the first run the victims are killed on the way."""
    asks, again, done = script.asks, " again" if run > 1 else "", 0
    stage.say(f"placing {len(asks)} orders{again}, {BULK} to a request")
    dice = random.Random(script.seed)
    moments = {victim: round(dice.uniform(*KILL_BETWEEN) * len(asks)) for victim in script.victims}
    with (
        stage.phase(f"orders{again}"),
        stage.bar("answered", len(asks)) as show_done,
        ThreadPoolExecutor(len(moments) + 1) as pool,
    ):

        def progress(answered: int) -> None:
            nonlocal done
            done = answered
            show_done(done, "")

        def kill(victim: str) -> None:
            until(lambda: done >= moments[victim], f"it is time for {victim}", PLACE_SECONDS)
            system.processes.kill(victim)
            stage.say(f"SIGKILL to {victim}")
            until(lambda: system.processes.is_ready(victim), f"{victim} is ready again")
            system.processes.record("SIGKILL", victim, healed=True)
            stage.say(f"{victim} is back and ready")

        kills = [pool.submit(kill, victim) for victim in moments] if run == 1 else []
        try:
            asyncio.run(
                place_orders(
                    system.endpoints, asks, system.history,
                    run=run, deadline_seconds=PLACE_SECONDS, progress=progress,
                )
            )  # fmt: skip
        finally:
            done = len(asks)  # a moment that did not come is not waited for
        for each in kills:
            each.result()


def _wrong_lines(script: Script, foreseen: Foreseen, responses: Responses) -> Iterator[WrongLine]:
    """Find, by number, the lines that could not be sent and those the door refused."""
    for line in script.lines:
        if isinstance(line, BadLine):
            yield WrongLine(line.number, line.why, "cannot be sent")
        elif line.number in foreseen.wrong:
            answer, response = "no answer", responses.get((1, line.number))
            if response is not None:
                refused = response.body.get("field") or response.body["error"]
                answer = f"the door, {response.status}: {refused}"
            yield WrongLine(line.number, foreseen.wrong[line.number], answer)
