"""`chaos isolation`: anomalies of sagas that meet, with what stands against each and without.

Owns: which guards stand against which anomaly, the order of events, and docs/isolation.md. Must not
know: how a guard is taken out, how conflicts are counted; the words are isolation_page.py's.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from chaos.bench import contention
from chaos.commands.guards_command import prove
from chaos.console.options import Json, Name, Seed
from chaos.console.provenance import provenance
from chaos.console.stage import Stage
from chaos.guards.table import GUARDS
from chaos.pages import isolation_page
from chaos.pages.isolation_page import ANOMALIES
from chaos.runtime.stack import CHECKOUT

RESULT = Path("build/isolation.json")
PAGE = CHECKOUT / "docs/isolation.md"


def isolation(
    seconds: Annotated[
        float, typer.Option(min=1, help="How long each demand is measured, each time.")
    ] = 8.0,
    seed: Seed = 7,
    json_: Json = False,
    name: Name = "isolation",
) -> None:
    """Play each anomaly of sagas that meet, its countermeasure off and on; measure hot SKUs.

    Lost updates, dirty reads, returns that race each other or the order's own saga: each under a
    load that needs the countermeasure, which is taken out of the real processes and then left in;
    the judge tells the difference (as `chaos guards`). Then the same flow of orders with demand
    spread evenly, by Zipf's law, and on one SKU: how many batches meet a locked row, and what it
    does to p99. Writes build/isolation.json and docs/isolation.md. Takes about eight minutes, and
    wants the machine to itself. Exits with 0 only if each countermeasure was missed and sufficed.
    """
    stage, began = Stage(Console(stderr=json_, highlight=False)), time.monotonic()
    chosen = [guard for anomaly in ANOMALIES for guard in GUARDS if guard.name in anomaly.guards]
    command = ["chaos", "isolation", "--seconds", f"{seconds:g}", "--seed", str(seed)]
    result: dict[str, Any] = {
        **provenance(command),
        "seed": seed,
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[1], 1),
        "contention": contention.measure(stage, seconds, seed, name),
        "guards": prove(stage, chosen, seed, name)["guards"],
        "seconds": round(time.monotonic() - began, 1),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    PAGE.write_text(isolation_page.page(result))
    stage.console.print(isolation_page.contention(result["contention"]), highlight=False)
    failed = [row["guard"] for row in result["guards"] if row["verdict"] != "pass"]
    for guard in failed:
        stage.say(f"FAILED: {guard}; see {RESULT}")
    if json_:
        print(json.dumps(result, indent=1))
    raise typer.Exit(1 if failed else 0)
