"""`chaos bench`: both sides in one go, on one Postgres and one broker.

Owns: the order of events, and refusing to measure servers that are set to lie. Must not
know: how either side works.
"""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Iterator
from importlib.metadata import version
from typing import Annotated, Any

import httpx
import psycopg
import typer

from chaos.bench import ours, profile, theirs
from chaos.bench.figures import Measured, Pair, document
from chaos.bench.workload import CUSTOMERS, SKUS, BenchOrder, catalogue, orders
from chaos.console.options import Json, Name, Seconds, Seed
from chaos.console.results import BUILD, keep, machine, provenance
from chaos.console.stage import Stage
from chaos.load.catalogue import load_catalogue
from chaos.pages import measurement_pages as pages
from chaos.runtime import Endpoints, Plan, StackError, choose
from chaos.runtime.base import Runtime
from chaos.runtime.stack import CHECKOUT
from common.messages.topology import ORCHESTRATOR_COMMANDS, ORCHESTRATOR_REPLIES, commands_of

RESULT = BUILD / "bench.json"
PAGE = CHECKOUT / "docs/performance.md"
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
    seconds: Seconds = 10.0,
    seed: Seed = 7,
    only_ours: Annotated[
        bool, typer.Option("--only-ours", help="Leave DBOS out: no ratios and no page.")
    ] = False,
    json_: Json = False,
    name: Name = "bench",
) -> None:
    """Measure our saga and the same order as a DBOS workflow, and write the comparison.

    Sagas per second, latency and cost of both on one Postgres and one broker; ours with 1, 20 and
    1,000 in flight, twice; DBOS in 1, 2 and 4 processes of 1, 8 and 32 threads; both with one order
    at a time, in turn. Writes build/bench.json and docs/performance.md. Takes about eight minutes,
    and needs the machine to itself. Exits with 1 if a ratio is missed.
    """
    if not only_ours and importlib.util.find_spec("dbos") is None:
        raise StackError("DBOS is not installed: `make bench` installs it, or --only-ours")
    stage = Stage.on(stderr=json_)
    about = {
        **provenance("bench", "--seconds", f"{seconds:g}", "--seed", seed),
        **machine(),
        "seconds": seconds,
        "seed": seed,
    }
    runtime = choose("native", name)
    stage.say("bringing a stack up")
    endpoints = runtime.up(PLAN, tethered=True)
    try:
        about["configuration"] = _configuration(endpoints)
        load_catalogue(endpoints.amqp_url, catalogue(), deadline_seconds=CATALOGUE_SECONDS)
        result = _measure(stage, runtime, endpoints, about, only_ours=only_ours)
    except ours.NotConfirmedError as error:
        raise StackError(str(error)) from error
    finally:
        runtime.down()
    keep(result, RESULT, as_json=json_)
    stage.show(pages.figures(result))
    if not only_ours:
        PAGE.write_text(pages.performance(result))
        stage.say(f"ratios to DBOS: {result['ratios']}; see {PAGE}")
    for line in result["missed"]:
        stage.say(f"MISSED: {line}")
    raise typer.Exit(1 if result["missed"] else 0)


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
    return document(rounds, theirs_found, alone, about)


def _ours(
    stage: Stage,
    endpoints: Endpoints,
    pids: dict[str, int],
    seconds: float,
    asked: Iterator[BenchOrder],
) -> dict[int, Measured]:
    found = {}
    for in_flight in IN_FLIGHT:
        stage.say(f"ours: {in_flight} in flight")
        found[in_flight] = ours.measure(endpoints, pids, asked, in_flight, seconds)
        stage.say(f"      {found[in_flight].per_second:.0f} a second")
    return found


def _configuration(endpoints: Endpoints) -> dict[str, Any]:
    """Say what both sides ran on. Raise StackError if a server does not store durably."""
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
        "postgres": settings["server_version"].split()[0],
        "rabbitmq": overview["rabbitmq_version"],
        "dbos": version("dbos") if importlib.util.find_spec("dbos") else None,
        "cores": machine()["cores"],
        "machine": platform.machine(),
        "queues": "quorum",
        **{name: settings[name] for name in ("fsync", "synchronous_commit")},
        "processes": "one of each service",
        "orders": f"1 to 3 lines of {SKUS} SKUs, {CUSTOMERS} customers, drawn evenly",
    }
