"""A profile under load: py-spy on our processes, pg_stat_statements in Postgres.

Owns: running both over one loaded stretch, and adding up what they say. Must not know: what
the figures mean.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg

from chaos.bench import ours
from chaos.bench.workload import BenchOrder
from chaos.runtime import Endpoints

WATCHED = ("orchestrator", "order", "inventory", "payment")
SHOWN = 12
SAMPLES_PER_SECOND = 200
_WAITING = ("selectors.py", "concurrent/futures/thread.py")

_STATEMENTS = """
select calls, total_exec_time, query from pg_stat_statements
 where dbid = (select oid from pg_database where datname = current_database())
 order by total_exec_time desc limit %s"""


def take(
    endpoints: Endpoints,
    pids: Mapping[str, int],
    orders: Iterator[BenchOrder],
    in_flight: int,
    seconds: float,
) -> dict[str, Any]:
    """Measure shares of the samples by package, and the most costly statements, per saga."""
    with psycopg.connect(endpoints.superuser_dsn, autocommit=True) as db:
        db.execute("create extension if not exists pg_stat_statements")
        db.execute("select pg_stat_statements_reset()")
        with tempfile.TemporaryDirectory() as directory:
            spies = _spies(Path(directory), pids, seconds)
            measured = ours.measure(endpoints, {}, orders, in_flight, seconds)
            for _, _, spy in spies:
                spy.wait(timeout=seconds + 60)
            python = {name: _shares(file) for name, file, _ in spies if file.exists()}
        rows = db.execute(_STATEMENTS, [SHOWN]).fetchall()
    # Warm-up and ramp were counted with the rest.
    sagas = measured.sagas * (1 + ours.WARM_UP + ours.RAMP)
    return {
        "in_flight": in_flight,
        "python": python,
        "statements": [
            {
                "calls_per_saga": round(calls / sagas, 3),
                "ms_per_saga": round(milliseconds / sagas, 4),
                "statement": " ".join(query.split())[:110],
            }
            for calls, milliseconds, query in rows
        ],
    }


def _spies(
    directory: Path, pids: Mapping[str, int], seconds: float
) -> list[tuple[str, Path, subprocess.Popen[bytes]]]:
    """Start py-spy on each process; on none where it is not installed.

    It needs root or ptrace; without them it writes no file, and the page has no Python part.
    """
    program = shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if program is None:
        return []
    spies = []
    for name in WATCHED:
        file = directory / name
        words = ["record", "--pid", str(pids[name]), "--duration", str(round(seconds))]
        words += ["--rate", str(SAMPLES_PER_SECOND), "--format", "raw", "--output", str(file)]
        spy = subprocess.Popen(
            [program, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        spies.append((name, file, spy))
    return spies


def _shares(file: Path) -> dict[str, float]:
    """Return each package's share of the samples in which the process was at work."""
    seen = by_package(file.read_text().splitlines())
    whole = sum(seen.values())
    return {name: round(count / whole, 3) for name, count in seen.most_common(SHOWN)}


def by_package(lines: Iterable[str]) -> Counter[str]:
    """Count the innermost frame's package in py-spy's raw format.

    A line is `frame (file:line);frame (file:line) count`, outermost first.
    """
    seen: Counter[str] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        files = [frame.rpartition("(")[2].partition(":")[0] for frame in stack.split(";")]
        if files[-1] not in _WAITING:
            seen[_package(files[-1])] += int(count)
    return seen


def _package(file: str) -> str:
    parts = file.removesuffix(")").split("/")
    return "/".join(parts[:2]) if len(parts) > 1 else parts[0]
