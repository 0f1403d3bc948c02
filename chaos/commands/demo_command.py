"""`chaos demo`: the whole system on real input, two of its processes killed, and the verdict.

Owns: the order of events. Must not know: how a runtime starts or kills anything, nor what
an invariant says.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from chaos.console.options import Json, Kind, StyleOption
from chaos.console.report import Report, WrongLine, as_json, show
from chaos.console.stage import Stage
from chaos.judge.case import Case, Snapshot
from chaos.judge.history import Answered, Fault, History, Refused
from chaos.judge.quiescence import Remaining, wait_for_quiescence
from chaos.judge.snapshot import whole_snapshot
from chaos.judge.verdict import Verdict, judge, tally
from chaos.load.catalogue import CatalogueError, load_catalogue
from chaos.load.model import Foreseen, foresee
from chaos.load.outcome import outcome_of, reactions_of, what_changed
from chaos.load.placer import BULK, place_orders
from chaos.load.workload import (
    Ask,
    BadLine,
    Catalogue,
    facts_of,
    parse_catalogue,
    parse_orders,
)
from chaos.runtime import SERVERS, Endpoints, Plan, StackError, choose
from chaos.runtime.base import Runtime

EXAMPLES = Path(__file__).parents[2] / "examples"
VICTIMS = {"orchestrated": ("payment", "orchestrator"), "choreographed": ("payment", "order")}
KILL_BETWEEN = (0.15, 0.75)  # of the lines that have their answer: the middle of the flow

CATALOGUE_SECONDS = 60.0
PLACE_SECONDS = 180.0
REVIVE_SECONDS = 60.0
QUIESCENCE_SECONDS = 120.0
POLL_SECONDS = 0.1


def demo(
    seed: Annotated[int, typer.Option(help="Chooses the moments of the kills.")] = 7,
    orders: Annotated[
        int | None, typer.Option(min=1, help="Place only the first N lines of the file.")
    ] = None,
    kill: Annotated[
        list[str] | None,
        typer.Option(
            help="Whom to kill with SIGKILL in mid-flow; may be repeated. "
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
    stage = Stage(Console(stderr=json_, highlight=False))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it is cleaned up then, too
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
    except (StackError, CatalogueError) as error:
        stage.say(f"cannot go on: {error}")
        raise typer.Exit(2) from error
    show(report, stage.console)
    if json_:
        print(json.dumps(as_json(report), indent=1))
    raise typer.Exit(0 if report.verdict is Verdict.PASS else 1)


@dataclass(frozen=True)
class Script:
    """What is to be played."""

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
    victims = " and ".join(script.victims) or "nobody"
    stage.say(f"{len(script.lines)} lines of orders; SIGKILL to {victims} on the way")
    with stage.phase("stack up"):
        endpoints = runtime.up(script.plan, tethered=not keep, progress=stage.say)
    stage.say(f"the stack is up; its door: {endpoints.door_url}/docs")
    keep_logs = True
    try:
        report = _play(stage, script, runtime, endpoints)
        keep_logs = report.verdict is not Verdict.PASS
        return report
    except KeyboardInterrupt:
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


def _play(stage: Stage, script: Script, runtime: Runtime, endpoints: Endpoints) -> Report:
    rows = _load(stage, script.catalogue, endpoints)
    stage.say(f"catalogue in: {rows} products, deliveries, accounts, deposits")
    foreseen = foresee(script.catalogue, script.asks)
    snapshots: list[Snapshot] = []
    standing: list[str] = []
    with closing(History(endpoints.log_dir / "history.jsonl")) as history:
        for run in range(1, script.runs + 1):
            asyncio.run(_place(stage, script, runtime, endpoints, history, run))
            last = _rest(stage, script, runtime, endpoints, len(foreseen.ends))
            standing += last.lines()
            snapshots.append(
                whole_snapshot(
                    endpoints.judge_dsn,
                    endpoints.amqp_url,
                    runtime.rabbitmqctl,
                    script.plan.style,
                )
            )
    stage.say("judging a snapshot of all four schemas")
    case = Case(
        snapshot=snapshots[-1],
        facts=facts_of(script.catalogue, history.events),
        quiescent=not standing,
    )
    findings = judge(case)
    reactions = reactions_of(history.events)
    return Report(
        seed=script.seed,
        began=stage.began,
        lines=len(script.lines),
        unsendable=len(script.lines) - len(script.asks),
        wrong_lines=tuple(_wrong_lines(script, foreseen, history)),
        outcomes=tuple(
            outcome_of(run, script.asks, foreseen, reactions, snapshot)
            for run, snapshot in enumerate(snapshots, 1)
        ),
        changed=tuple(what_changed(snapshots[0], snapshots[-1])),
        faults=tuple(event for event in history.events if isinstance(event, Fault)),
        standing=tuple(standing),
        findings=tuple(findings),
        tally=tally(case, findings),
        seconds=stage.seconds,
    )


def _load(stage: Stage, catalogue: Catalogue, endpoints: Endpoints) -> int:
    with stage.phase("catalogue"):
        return load_catalogue(endpoints.amqp_url, catalogue, deadline_seconds=CATALOGUE_SECONDS)


async def _place(
    stage: Stage,
    script: Script,
    runtime: Runtime,
    endpoints: Endpoints,
    history: History,
    run: int,
) -> None:
    """The file goes in; in the first run the victims are killed on the way."""
    asks = script.asks
    again = " again" if run > 1 else ""
    stage.say(f"placing {len(asks)} orders{again}, {BULK} to a request")
    moments = _moments(script, len(asks)) if run == 1 else {}
    reached = {victim: asyncio.Event() for victim in moments}
    with stage.phase(f"orders{again}"), stage.bar("answered", len(asks)) as show_done:

        def heard(done: int) -> None:
            show_done(done, "")
            for victim, moment in moments.items():
                if done >= moment:
                    reached[victim].set()

        async def place() -> None:
            await place_orders(
                endpoints,
                asks,
                history,
                run=run,
                deadline_seconds=PLACE_SECONDS,
                heard=heard,
            )
            heard(len(asks))  # nobody waits for a moment that does not come

        kills = (_kill(stage, runtime, victim, reached[victim], history) for victim in moments)
        await asyncio.gather(place(), *kills)


def _moments(script: Script, lines: int) -> dict[str, int]:
    """How many lines have their answer when each victim is killed."""
    dice = random.Random(script.seed)
    return {victim: round(dice.uniform(*KILL_BETWEEN) * lines) for victim in script.victims}


async def _kill(
    stage: Stage, runtime: Runtime, victim: str, reached: asyncio.Event, history: History
) -> None:
    """SIGKILL, and wait until the runtime has it back and it says it is ready."""
    await reached.wait()
    await asyncio.to_thread(runtime.kill, victim)
    history.record(Fault(what="SIGKILL", target=victim, healed=False))
    stage.say(f"SIGKILL to {victim}")
    deadline = time.monotonic() + REVIVE_SECONDS
    while not await asyncio.to_thread(_is_ready, runtime, victim):
        if time.monotonic() > deadline:
            stage.say(f"{victim} does not come back")
            return
        await asyncio.sleep(POLL_SECONDS)
    history.record(Fault(what="SIGKILL", target=victim, healed=True))
    stage.say(f"{victim} is back and ready")


def _is_ready(runtime: Runtime, process: str) -> bool:
    return any(status.ready for status in runtime.status() if status.name == process)


def _rest(
    stage: Stage, script: Script, runtime: Runtime, endpoints: Endpoints, orders: int
) -> Remaining:
    """Wait until nothing moves any more."""
    stage.say("waiting for rest: nothing pending, all outboxes and queues empty")
    with stage.phase("coming to rest"), stage.bar("settled", orders) as show_settled:
        remaining = wait_for_quiescence(
            endpoints.judge_dsn,
            runtime.rabbitmqctl,
            deadline_seconds=QUIESCENCE_SECONDS,
            style=script.plan.style,
            seen=lambda s: show_settled(orders - s.pending_orders, "; ".join(s.lines()[:2])),
        )
    if remaining:
        stage.say(f"it has not come to rest in {QUIESCENCE_SECONDS:.0f} s")
    return remaining


def _wrong_lines(script: Script, foreseen: Foreseen, history: History) -> Iterator[WrongLine]:
    """By number; those that could not be sent and those the door refused."""
    reactions = reactions_of(history.events)
    for line in script.lines:
        if isinstance(line, BadLine):
            yield WrongLine(line.number, line.why, "cannot be sent")
        elif line.number in foreseen.wrong:
            reaction = reactions.get((1, line.number))
            yield WrongLine(line.number, foreseen.wrong[line.number], _words(reaction))


def _words(reaction: Answered | Refused | None) -> str:
    if reaction is None:
        return "no answer"
    return f"the door, {reaction.status}: {reaction.body.get('field') or reaction.body['error']}"
