"""`chaos guards`: what breaks without each guard, and who notices.

Owns: which guards are taken out, and what is shown of it. Must not know: how a guard is taken out,
nor who may notice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from chaos.console.options import Json, List, Name, Seed
from chaos.console.results import BUILD, keep, provenance
from chaos.console.stage import Stage, list_names
from chaos.guards.proof import Prover
from chaos.guards.table import GUARDS, MUTANTS, Guard
from chaos.runtime import StackError
from chaos.runtime.stack import CHECKOUT

RESULT = BUILD / "guards.json"


def guards(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME...]", help="Guards by name. Default: all."),
    ] = None,
    seed: Seed = 7,
    list_: List = False,
    json_: Json = False,
    name: Name = "guards",
) -> None:
    """Take each guard out of the running system and see who notices; then leave it in.

    A process without its guard is a mutant: the same code, changed by an entry module of its own
    (tests/mutants); the services contain no switch for it. Native processes; each guard takes about
    half a minute. The result is build/guards.json. Exits with 0 only if the judge or the constraint
    that must notice each removal did, and nothing broke in the same trial with the guard in
    place.
    """
    known = {guard.name: guard for guard in GUARDS}
    if unknown := [name for name in names or () if name not in known]:
        raise StackError(f"no guard {unknown[0]!r}: see `chaos guards --list`")
    chosen = [known[name] for name in names or known]
    if list_:
        if json_:
            rows = [{"guard": g.name, "keeps": g.keeps, "load": g.trial.name} for g in chosen]
            print(json.dumps(rows, indent=1))
        else:
            list_names((g.name, f"{g.keeps}; missed under {g.trial.name}") for g in chosen)
        return
    if not CHECKOUT.joinpath(*MUTANTS.split(".")).is_dir():
        raise StackError(f"{MUTANTS} is not here: this command needs a checkout, not an image")
    stage = Stage.on(stderr=json_)
    result = {**provenance("guards", *(names or ()), "--seed", seed), "seed": seed}
    result |= prove(stage, chosen, seed, name)
    keep(result, RESULT, as_json=json_)
    stage.say(f"{result['passed']} of {len(chosen)} guards are needed and tested; see {RESULT}")
    raise typer.Exit(0 if result["passed"] == len(chosen) else 1)


def prove(stage: Stage, chosen: Sequence[Guard], seed: int, name: str) -> dict[str, Any]:
    began, rows = time.monotonic(), list[dict[str, Any]]()
    with stage.bar("guards", len(chosen)) as show:
        for proof in Prover(stage.say, seed, name).prove(chosen):
            row = proof.as_json()
            rows.append(row)
            show(len(rows), row["guard"])
            noticed = ", ".join(noticed["who"] for noticed in row["noticed_by"]) or "NOBODY"
            stage.say(f"{row['verdict']}  {row['guard']}: {noticed}")
            for says in row["noticed_by"][:1]:
                stage.say(f"      {says['says']}")
            for harm in row["with_the_guard"]:
                stage.say(f"      with it in place: {harm}")
    return {
        "passed": sum(row["verdict"] == "pass" for row in rows),
        "guards": rows,
        "seconds": round(time.monotonic() - began, 1),
    }
