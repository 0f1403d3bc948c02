"""`chaos bench`: both sides in one go, on one Postgres and one broker.

Owns: the order of events, and refusing to measure servers that are set to lie. Must not
know: how either side works.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import httpx
import psycopg
import typer
from rich.console import Console

from chaos.bench import ours, profile, report, theirs
from chaos.bench.figures import Measured, Pair, document
from chaos.bench.workload import CUSTOMERS, SKUS, Order, catalogue, orders
from chaos.console.options import Json, Name
from chaos.console.provenance import provenance
from chaos.console.stage import Stage
from chaos.load.catalogue import load_catalogue
from chaos.runtime import Endpoints, Plan, StackError, choose
from chaos.runtime.base import Runtime
from common.messages.topology import ORCHESTRATOR_COMMANDS, ORCHESTRATOR_REPLIES, commands_of

RESULT = Path("build/bench.json")
PAGE = Path("docs/performance.md")
IN_FLIGHT = (1, 20, 1000)
ALONE_ROUNDS = 5
PROFILED = (1, 1000)
PROCESSES, THREADS = (1, 2, 4), (1, 8, 32)
CATALOGUE_SECONDS = 60.0
# One process of each service that the flow needs; the orders come by command, past the door.
PLAN = Plan(
    replicas={"door": 0, "operator": 0},
    postgres={"shared_preload_libraries": "pg_stat_statements", "max_connections": "400"},
)


def bench(
    seconds: Annotated[
        float, typer.Option(min=1, help="How long each configuration is measured.")
    ] = 10.0,
    seed: Annotated[int, typer.Option(help="Draws the orders.")] = 7,
    only_ours: Annotated[
        bool, typer.Option("--only-ours", help="Leave DBOS out: no ratios, and nothing is written.")
    ] = False,
    json_: Json = False,
    name: Name = "bench",
) -> None:
    """Measure our saga and the same order as a DBOS workflow, and write the comparison.

    Sagas per second, latency and cost of both on one Postgres and one broker; ours with 1, 20 and
    1,000 in flight, twice; DBOS in 1, 2 and 4 processes of 1, 8 and 32 threads; both with one order
    at a time, in turn. Writes
    build/bench.json and docs/performance.md. Takes about eight minutes, and wants the machine to
    itself. Exits with 1 if a ratio is missed.
    """
    if not only_ours and importlib.util.find_spec("dbos") is None:
        raise StackError("DBOS is not installed: `make bench` installs it, or --only-ours")
    stage = Stage(Console(stderr=json_, highlight=False))
    runtime = choose("native", name)
    stage.say("bringing a stack up")
    endpoints = runtime.up(PLAN, tethered=True)
    try:
        about = {**provenance(_command(seconds, seed)), **_configuration(endpoints, seconds, seed)}
        load_catalogue(endpoints.amqp_url, catalogue(), deadline_seconds=CATALOGUE_SECONDS)
        result = _measure(stage, runtime, endpoints, about, only_ours=only_ours)
    except ours.NotConfirmedError as error:
        raise StackError(str(error)) from error
    finally:
        runtime.down()
    if not only_ours:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
        PAGE.write_text(report.page(result))
    report.show(result, stage.console)
    if json_:
        print(json.dumps(result, indent=1))
    raise typer.Exit(1 if result.get("missed") else 0)


def _measure(
    stage: Stage,
    runtime: Runtime,
    endpoints: Endpoints,
    about: dict[str, Any],
    *,
    only_ours: bool,
) -> dict[str, Any]:
    seconds, seed = about["seconds"], about["seed"]
    pids = {status.name: status.pid for status in runtime.status() if status.pid is not None}
    rounds = [_ours(stage, endpoints, pids, seconds, orders(seed, "1"))]
    theirs_found: dict[tuple[int, int], Measured] = {}
    alone: list[Pair] = []
    if not only_ours:
        dsn = theirs.create(endpoints.superuser_dsn)

        def dbos(processes: int, threads: int, seconds: float, round_: int) -> Measured:
            return theirs.measure(
                dsn,
                endpoints.superuser_dsn,
                pids["postgres"],
                processes=processes,
                threads=threads,
                seconds=seconds,
                seed=seed,
                round_=round_,
            )

        for number in range(1, ALONE_ROUNDS + 1):
            asked = orders(seed, f"alone {number}")
            one = Pair(
                ours.measure(endpoints, pids, asked, 1, seconds / 2),
                dbos(1, 1, seconds / 2, 1 + number),
            )
            stage.say(f"one at a time, in turn: {one.ratio:.2f} times DBOS's p50")
            alone.append(one)
        for processes, threads in ((p, t) for p in PROCESSES for t in THREADS):
            stage.say(f"DBOS: {processes} processes of {threads} threads")
            theirs_found[processes, threads] = dbos(processes, threads, seconds, 1)
        rounds.append(_ours(stage, endpoints, pids, seconds, orders(seed, "2")))
    about["profiles"] = []
    for in_flight in PROFILED:
        stage.say(f"profile: where the time goes with {in_flight:,} in flight")
        asked = orders(seed, f"profile {in_flight}")
        about["profiles"].append(profile.take(endpoints, pids, asked, in_flight, seconds))
    if only_ours:
        return {**about, "ours": [m.figures() | {"in_flight": n} for n, m in rounds[0].items()]}
    return document(rounds, theirs_found, alone, about)


def _ours(
    stage: Stage,
    endpoints: Endpoints,
    pids: dict[str, int],
    seconds: float,
    asked: Iterator[Order],
) -> dict[int, Measured]:
    found = {}
    for in_flight in IN_FLIGHT:
        stage.say(f"ours: {in_flight} in flight")
        found[in_flight] = ours.measure(endpoints, pids, asked, in_flight, seconds)
        stage.say(f"      {found[in_flight].per_second:.0f} a second")
    return found


def _command(seconds: float, seed: int) -> list[str]:
    return ["chaos", "bench", "--seconds", f"{seconds:g}", "--seed", str(seed)]


def _configuration(endpoints: Endpoints, seconds: float, seed: int) -> dict[str, Any]:
    """What both sides ran on. Raises StackError if a server would only seem to keep things."""
    with psycopg.connect(endpoints.superuser_dsn) as db:
        shown = {
            name: db.execute(f"show {name}".encode()).fetchone()
            for name in ("fsync", "synchronous_commit", "full_page_writes", "server_version")
        }
    settings = {name: row[0] for name, row in shown.items() if row}
    api = httpx.Client(base_url=endpoints.management_url, trust_env=False)
    overview = api.get("/api/overview").raise_for_status().json()
    queues = {q["name"]: q["type"] for q in api.get("/api/queues").raise_for_status().json()}
    theirs = map(commands_of, ("order", "inventory", "payment"))
    work = [ORCHESTRATOR_COMMANDS, ORCHESTRATOR_REPLIES, *theirs]
    lax = [n for n in ("fsync", "synchronous_commit", "full_page_writes") if settings[n] != "on"]
    lax += [name for name in work if queues.get(name) != "quorum"]
    if lax:
        raise StackError(f"not durable, so not worth measuring: {', '.join(lax)}")
    return {
        "seconds": seconds,
        "seed": seed,
        "configuration": {
            "postgres": settings["server_version"].split()[0],
            "rabbitmq": overview["rabbitmq_version"],
            "dbos": version("dbos") if importlib.util.find_spec("dbos") else None,
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "queues": "quorum",
            **{name: settings[name] for name in ("fsync", "synchronous_commit")},
            "processes": "one of each service",
            "orders": f"1 to 3 lines of {SKUS} SKUs, {CUSTOMERS} customers, drawn evenly",
        },
    }
