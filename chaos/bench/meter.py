"""The cost of a stretch of work: CPU seconds by process tree, commits, messages.

Owns: reading counters of the kernel, Postgres and the broker, and their differences. Must not
know: what the work is.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import psycopg

TICKS = os.sysconf("SC_CLK_TCK")
SCHEMAS = ("orchestrator", "order_svc", "payment_svc", "inventory_svc")
STATISTICS_SECONDS = 2.5  # Postgres and the broker publish their counters every second or so


@dataclass(frozen=True)
class Reading:
    """Counters as of one moment; `cpu` in seconds, by name of the process."""

    cpu: Mapping[str, float]
    commits: int
    envelopes: int
    deliveries: int


@dataclass(frozen=True)
class Cost:
    """Per saga; CPU in milliseconds."""

    cpu_ms: Mapping[str, float]
    commits: float
    envelopes: float
    deliveries: float


def cost(before: Reading, after: Reading, sagas: int, own_commits: int = 0) -> Cost:
    """Divide what was spent between two readings; `own_commits` are the load generator's."""
    return Cost(
        cpu_ms={
            name: round((seconds - before.cpu[name]) * 1000 / sagas, 3)
            for name, seconds in after.cpu.items()
        },
        commits=round((after.commits - before.commits - own_commits) / sagas, 3),
        envelopes=round((after.envelopes - before.envelopes) / sagas, 3),
        deliveries=round((after.deliveries - before.deliveries) / sagas, 3),
    )


def cpu_seconds(roots: Mapping[str, int]) -> dict[str, float]:
    """Sum up each named process and all below it, also those that have ended."""
    below = _children()
    return {name: _tree_seconds(pid, below) for name, pid in roots.items()}


def commits(superuser_dsn: str, database: str) -> int:
    with psycopg.connect(superuser_dsn) as db:
        row = db.execute(
            "select xact_commit from pg_stat_database where datname = %s", (database,)
        ).fetchone()
    return int(row[0]) if row else 0


def envelopes(superuser_dsn: str, style: str = "orchestrated") -> int:
    """Count the rows ever written to an outbox: each is one envelope."""
    query = " + ".join(
        f"coalesce(pg_sequence_last_value('{schema}.outbox_id_seq'), 0)"
        for schema in (SCHEMAS if style == "orchestrated" else SCHEMAS[1:])
    )
    with psycopg.connect(superuser_dsn) as db:
        row = db.execute(f"select {query}".encode()).fetchone()
    return int(row[0]) if row else 0


def deliveries(management_url: str) -> int:
    """Count the messages ever published, as the broker counts them."""
    answer = httpx.get(f"{management_url}/api/overview", trust_env=False).raise_for_status()
    return int(answer.json()["message_stats"].get("publish", 0))


def settle() -> None:
    """Wait until the servers have published their counters."""
    time.sleep(STATISTICS_SECONDS)  # there is no event to wait for


def _children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            found[int(fields[1])].append(int(entry.name))
    return found


def _tree_seconds(pid: int, below: Mapping[int, list[int]]) -> float:
    fields = _stat(pid)
    own = sum(int(ticks) for ticks in fields[11:15]) / TICKS if fields else 0.0
    return own + sum(_tree_seconds(child, below) for child in below.get(pid, ()))


def _stat(pid: int) -> list[str]:
    """Return the fields of man 5 proc, from the state on.

    [1] is the parent, [11:15] user and system time of it and of its children that have ended.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()
