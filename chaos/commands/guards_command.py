"""`chaos guards`: what breaks without each guard, and who notices.

Owns: which guards are taken out, what is shown of it, and the file with the result. Must not know:
how a guard is taken out, nor who may notice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from chaos.console.options import Json, Name, Seed
from chaos.console.provenance import provenance
from chaos.console.stage import Stage
from chaos.guards.table import GUARDS, SABOTEURS, Bench, Guard, Proof
from chaos.judge.verdict import Verdict
from chaos.runtime import StackError
from chaos.runtime.stack import CHECKOUT

RESULT = Path("build/guards.json")


def guards(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME...]", help="Guards by name. Default: all."),
    ] = None,
    seed: Seed = 7,
    list_: Annotated[
        bool, typer.Option("--list", help="Only say which guards there are, and what is lost.")
    ] = False,
    json_: Json = False,
    name: Name = "guards",
) -> None:
    """Take each guard out of the running system and see who notices; then the same with it.

    A process without its guard is the same code, changed by an entry module of its own
    (tests/saboteurs); the services know nothing of it. Native processes; each guard takes about
    half a minute. Exits with 0 only if the removal of each was noticed by whom it must be, and the
    same load harmed nobody with the guard in place.
    """
    chosen = _chosen(names or [])
    if list_:
        _list(chosen, as_json=json_)
        return
    if not CHECKOUT.joinpath(*SABOTEURS.split(".")).is_dir():
        raise StackError(f"{SABOTEURS} is not here: this command wants a checkout, not an image")
    stage = Stage(Console(stderr=json_, highlight=False))
    result = prove(stage, chosen, seed, name)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    _show(result["guards"], stage.console)
    stage.say(f"{result['passed']} of {len(chosen)} guards are needed and tested; see {RESULT}")
    if json_:
        print(json.dumps(result, indent=1))
    raise typer.Exit(0 if result["passed"] == len(chosen) else 1)


def prove(stage: Stage, chosen: Sequence[Guard], seed: int, name: str) -> dict[str, Any]:
    began, proofs = time.monotonic(), list[Proof]()
    with stage.bar("guards", len(chosen)) as show:
        for proof in Bench(stage.say, seed, name).prove(chosen):
            proofs.append(proof)
            show(len(proofs), proof.guard.name)
            stage.say(f"{proof.verdict}  {proof.guard.name}: {_noticed(proof.as_json())}")
    every = [] if len(chosen) == len(GUARDS) else [guard.name for guard in chosen]
    return {
        **provenance(["chaos", "guards", *every, "--seed", str(seed)]),
        "seed": seed,
        "passed": sum(proof.verdict is Verdict.PASS for proof in proofs),
        "guards": [proof.as_json() for proof in proofs],
        "seconds": round(time.monotonic() - began, 1),
    }


def _chosen(names: Sequence[str]) -> list[Guard]:
    known = {guard.name: guard for guard in GUARDS}
    if unknown := [name for name in names if name not in known]:
        raise StackError(f"no guard {unknown[0]!r}: see `chaos guards --list`")
    return [known[name] for name in names] or list(GUARDS)


def _noticed(row: dict[str, Any]) -> str:
    return ", ".join(noticed["who"] for noticed in row["noticed_by"]) or "NOBODY"


def _list(chosen: Sequence[Guard], *, as_json: bool) -> None:
    if as_json:
        rows = [{"guard": g.name, "keeps": g.keeps, "load": g.load} for g in chosen]
        print(json.dumps(rows, indent=1))
        return
    table = Table("guard", "what it keeps", "missed under", title="chaos guards NAME...")
    for guard in chosen:
        table.add_row(guard.name, guard.keeps, guard.load)
    Console().print(table)


def _show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    table = Table("guard", "what breaks without it", "who noticed", "with it", "")
    for row in rows:
        first = row["noticed_by"][0]["says"] if row["noticed_by"] else "nothing"
        held = "; ".join(row["with_the_guard"]) or "nothing"
        table.add_row(row["guard"], first, _noticed(row), held, row["verdict"])
    console.print(table)
