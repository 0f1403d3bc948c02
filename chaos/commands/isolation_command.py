"""`chaos isolation`: anomalies of sagas that meet, with what prevents each and without.

Owns: the order of events, and docs/isolation.md. Must not know: how a guard is taken out, nor how
conflicts are counted.
"""

from __future__ import annotations

import time
from typing import Any

import typer

from chaos.bench import contention
from chaos.commands.guards_command import prove
from chaos.console.options import Json, Name, Seconds, Seed
from chaos.console.results import BUILD, keep, machine, provenance
from chaos.console.stage import Stage
from chaos.guards.table import GUARDS
from chaos.judge.verdict import Verdict
from chaos.pages import measurement_pages as pages
from chaos.runtime.stack import CHECKOUT

RESULT = BUILD / "isolation.json"
PAGE = CHECKOUT / "docs/isolation.md"


def isolation(
    seconds: Seconds = 8.0,
    seed: Seed = 7,
    json_: Json = False,
    name: Name = "isolation",
) -> None:
    """Play each anomaly of sagas that meet, its countermeasure off and on; measure hot SKUs.

    Lost updates, dirty reads, returns that race each other or the order's own saga: each under a
    load that needs the countermeasure, which is taken out of the real processes and then left in
    (as `chaos guards` does). Then the same flow of orders with demand spread evenly, by Zipf's law,
    and on one SKU: how many batches meet a locked row, and what that does to p99. Writes
    build/isolation.json and docs/isolation.md. Takes about eight minutes, and needs the machine to
    itself. Exits with 0 only if each countermeasure proved necessary and sufficient.
    """
    stage, began = Stage.on(stderr=json_), time.monotonic()
    chosen = [g for anomaly in pages.ANOMALIES for g in GUARDS if g.name in anomaly.guards]
    result: dict[str, Any] = {
        **provenance("isolation", "--seconds", f"{seconds:g}", "--seed", seed),
        "seed": seed,
        **machine(),
        "contention": contention.measure(stage, seconds, seed, name),
        "guards": (proved := prove(stage, chosen, seed, name))["guards"],
        "verdict": Verdict.PASS if proved["passed"] == len(chosen) else Verdict.FAIL,
        "seconds": round(time.monotonic() - began, 1),
    }
    keep(result, RESULT, as_json=json_)
    PAGE.write_text(pages.isolation(result))
    stage.show(pages.contention(result["contention"]))
    raise typer.Exit(0 if result["verdict"] == Verdict.PASS else 1)
