"""Hot SKUs: the same load with demand spread evenly, by Zipf's law, and all on one SKU.

Owns: the loads, and how conflicts are counted: by Postgres itself, which logs every wait for a lock
that lasts longer than `LOGGED_MS`. Must not know: how the inventory locks.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from statistics import median
from typing import Any

import psycopg

from chaos.bench import ours
from chaos.bench.figures import Measured, percentile
from chaos.bench.workload import catalogue, shares, skewed
from chaos.console.stage import Stage
from chaos.load.catalogue import load_catalogue
from chaos.runtime import Endpoints, Plan, choose
from chaos.runtime.base import Runtime

SKEWS: Mapping[str, float] = {"even": 0.0, "Zipf, s = 1.1": 1.1, "one SKU": math.inf}
SKUS = 10_000  # so many that an even demand seldom asks for one twice at once
ROUNDS = 3  # each plays every skew once, and begins with another one
IN_FLIGHT = 300
INVENTORIES = 2  # batches of one process follow each other: two processes can meet on a row
LOGGED_MS = 1  # the least that Postgres can be told
CATALOGUE_SECONDS = 60.0
ROLE = "inventory_svc"
PLAN = Plan(
    replicas={"door": 0, "operator": 0, "inventory": INVENTORIES},
    postgres={
        "shared_preload_libraries": "pg_stat_statements",
        "log_lock_waits": "on",
        "deadlock_timeout": f"{LOGGED_MS}ms",
        "log_line_prefix": "%m %u %x ",
    },
)

_BATCHES = """
select coalesce(sum(calls), 0)::int from pg_stat_statements
 where query ~ 'from stock\\s+where' and query ~ 'for update' and userid = %s::regrole"""
_DEADLOCKS = "select deadlocks from pg_stat_database where datname = current_database()"

_MET = re.compile(rf" {ROLE} (\d+) CONTEXT:  while locking tuple .* in relation \"stock\"")
_WAITED = re.compile(
    rf" {ROLE} (\d+) LOG: .* acquired \w+ on (?:transaction|tuple) .*"
    r" after ([\d.]+) ms"
)
_FAILED = {
    "lock_timeouts": "canceling statement due to lock timeout",
    "serialization_failures": "could not serialize access",
}


@dataclass(frozen=True)
class Conflicts:
    """Conflicts of the inventory's batches, by Postgres's log."""

    waited: int
    """Batches that met a locked row, and waited for it."""
    waited_ms: tuple[float, ...]
    lock_timeouts: int
    serialization_failures: int


@dataclass(frozen=True)
class Round:
    """One round of one skew."""

    measured: Measured
    conflicts: Conflicts
    batches: int
    deadlocks: int


def conflicts(lines: Iterable[str]) -> Conflicts:
    """Count conflicts in Postgres's log. A batch, a transaction, may wait for several rows."""
    met: set[str] = set()
    waits: list[tuple[str, float]] = []
    failed = dict.fromkeys(_FAILED, 0)
    for line in lines:
        if found := _MET.search(line):
            met.add(found[1])
        if found := _WAITED.search(line):
            waits.append((found[1], float(found[2])))
        for name, says in _FAILED.items():
            failed[name] += f" {ROLE} " in line and says in line
    return Conflicts(len(met), tuple(ms for batch, ms in waits if batch in met), **failed)


def measure(stage: Stage, seconds: float, seed: int, name: str) -> dict[str, Any]:
    rounds: dict[str, list[Round]] = {skew: [] for skew in SKEWS}
    with _stack(stage, name) as (runtime, endpoints):
        stage.say("warming up")
        _round(runtime, endpoints, "even", 0, seconds, seed)
        for number in range(1, ROUNDS + 1):
            names = deque(SKEWS)
            names.rotate(number - 1)
            for skew in names:
                stage.say(f"demand: {skew}; round {number} of {ROUNDS}")
                rounds[skew].append(_round(runtime, endpoints, skew, number, seconds, seed))
    return {
        "skus": SKUS,
        "in_flight": IN_FLIGHT,
        "inventories": INVENTORIES,
        "rounds": ROUNDS,
        "seconds": seconds,
        "logged_ms": LOGGED_MS,
        "loads": {skew: figures(SKEWS[skew], played) for skew, played in rounds.items()},
    }


@contextmanager
def _stack(stage: Stage, name: str) -> Iterator[tuple[Runtime, Endpoints]]:
    stage.say(f"bringing a stack up, with {INVENTORIES} inventories")
    runtime = choose("native", name)
    endpoints = runtime.up(PLAN, tethered=True)
    try:
        load_catalogue(endpoints.amqp_url, catalogue(SKUS), deadline_seconds=CATALOGUE_SECONDS)
        with psycopg.connect(endpoints.superuser_dsn, autocommit=True) as db:
            db.execute("create extension if not exists pg_stat_statements")
        yield runtime, endpoints
    finally:
        runtime.down()


def _round(
    runtime: Runtime, endpoints: Endpoints, skew: str, number: int, seconds: float, seed: int
) -> Round:
    orders = skewed(seed, f"{skew} {number}", SKEWS[skew], SKUS)
    logged, batches, deadlocks = _counted(runtime, endpoints)
    measured = ours.measure(endpoints, {}, orders, IN_FLIGHT, seconds)
    after = _counted(runtime, endpoints)
    lines = islice(runtime.logs("postgres"), logged, None)
    return Round(measured, conflicts(lines), after[1] - batches, after[2] - deadlocks)


def _counted(runtime: Runtime, endpoints: Endpoints) -> tuple[int, int, int]:
    """Count lines logged, batches that locked stock, and deadlocks, so far."""
    with psycopg.connect(endpoints.superuser_dsn) as db:
        ((batches,),) = db.execute(_BATCHES, (ROLE,)).fetchall()
        ((deadlocks,),) = db.execute(_DEADLOCKS).fetchall()
    return sum(1 for _ in runtime.logs("postgres")), batches, deadlocks


def figures(skew: float, rounds: Iterable[Round]) -> dict[str, Any]:
    """Sum up all rounds; give the p99 of each as well, which says how far they scatter."""
    played = list(rounds)
    batches = sum(r.batches for r in played)
    waited = sum(r.conflicts.waited for r in played)
    waits = [ms for r in played for ms in r.conflicts.waited_ms]
    latencies = [latency for r in played for latency in r.measured.latencies]
    ended = sum(r.measured.sagas for r in played)
    failures = [asdict(r.conflicts) for r in played]
    return {
        "skew": None if math.isinf(skew) else skew,
        "hottest_percent": round(100 * shares(skew, SKUS)[0], 2),
        "orders": ended,
        "orders_per_second": round(ended / sum(r.measured.seconds for r in played), 1),
        "p50_ms": round(1000 * percentile(latencies, 50), 1),
        "p99_ms": round(1000 * percentile(latencies, 99), 1),
        "p99_ms_of_rounds": [round(1000 * percentile(r.measured.latencies, 99)) for r in played],
        "batches": batches,
        "waited": waited,
        "conflict_percent": round(100 * waited / batches, 1) if batches else 0.0,
        "wait_ms_median": round(median(waits), 1) if waits else None,
        "wait_ms_longest": round(max(waits), 1) if waits else None,
        "deadlocks": sum(r.deadlocks for r in played),
        **{name: sum(f[name] for f in failures) for name in _FAILED},
    }
