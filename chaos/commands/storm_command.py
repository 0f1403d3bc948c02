"""`chaos storm`: random faults over a continuous flow of orders.

Owns: what is shown of it. Must not know: what strikes.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Annotated

import typer
from rich.console import Console

from chaos.commands.run_command import finish, kind_of, tell
from chaos.console.options import Json, Kind, Name, Seed, StyleOption
from chaos.console.provenance import provenance
from chaos.console.stage import Stage
from chaos.judge.verdict import Verdict
from chaos.runtime import choose
from chaos.scenarios.runner import Result, Session, conclude, new_folder
from chaos.scenarios.scene import Scene, in_words
from chaos.scenarios.storm import ENDS, Storm

PROFILE = "lines"


def storm(
    minutes: Annotated[float, typer.Option(min=0.1, help="How long it blows.")] = 10,
    seed: Seed = 7,
    style: StyleOption = "orchestrated",
    runtime: Kind = None,
    json_: Json = False,
    name: Name = "storm",
) -> None:
    """Let random faults strike a flow of orders; heal all, wait for rest, judge.

    Processes and servers are killed, frozen and cut off, messages repeated, reordered and poisoned,
    one fault at a time, as the seed decides. Orders go back meanwhile, if there is an orchestrator.
    The run folder is build/runs/<time>-<seed>. It takes a minute or two longer than it blows. Exits
    with 0 only if every invariant holds.
    """
    kind = kind_of(runtime)
    stage = Stage(Console(stderr=json_, highlight=False))
    folder = new_folder(seed)
    words = ["chaos", "storm", "--minutes", f"{minutes:g}", "--seed", str(seed)]
    words += ["--style", style, "--runtime", kind]
    head = {**provenance(words), "seed": seed, "runtime": kind, "style": style}
    directory = folder / f"stack-1-{PROFILE}"
    directory.mkdir()
    stage.say(f"{minutes:g} minutes of storm on {kind}, {style}; everything is kept in {folder}")
    session = Session(choose(kind, name), PROFILE, directory, stage.say, style)
    try:
        result = _blow(session, kind, minutes, seed, stage)
    finally:
        session.close()
    tell(stage, result)
    raise typer.Exit(finish(stage, folder, head, [result], as_json=json_))


def _blow(session: Session, kind: str, minutes: float, seed: int, stage: Stage) -> Result:
    scene = Scene(session.system, f"storm-{seed}", seed, 0)
    result = Result(
        name="storm",
        says=f"{minutes:g} minutes of faults, one after another.",
        runtime=kind,
        profile=PROFILE,
        stack=session.directory.name,
        fault="",
        expected=in_words(ENDS),
        began=scene.began_at,
        verdict=Verdict.UNKNOWN,
    )
    blowing = Storm(scene, kind, minutes, stage.say)
    began = time.monotonic()

    def play() -> None:
        blowing.blow()
        kinds = Counter(fault.name for fault in scene.faults)
        drawn = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        result.fault = f"{len(scene.faults)} faults, drawn by the dice: {drawn}"

    conclude(scene, result, play)
    result.seconds = round(time.monotonic() - began, 1)
    return result
