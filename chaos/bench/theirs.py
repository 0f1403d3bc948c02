"""Their side: DBOS in so many processes of so many threads, on the same Postgres.

Owns: its database, its tables (as ours, constraint for constraint), its processes. Must not
know: the library; that is the business of each process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from urllib.parse import urlsplit

import psycopg

from chaos.bench import meter
from chaos.bench.figures import Measured
from chaos.bench.workload import catalogue
from chaos.runtime import StackError
from chaos.runtime.stack import CHECKOUT

DATABASE = "dbos_bench"
START_SECONDS = 120

_TABLES = """
create table customer_order (
  order_id text primary key, customer text not null, total bigint not null check (total >= 0),
  lines jsonb not null, status text not null check (status in ('PENDING', 'CONFIRMED', 'REJECTED')),
  placed_at timestamptz not null default now());
create table stock (
  sku text primary key, on_hand bigint not null check (on_hand >= 0),
  held bigint not null check (held >= 0), dispatched bigint not null check (dispatched >= 0),
  received bigint not null, check (on_hand + held + dispatched = received)
) with (fillfactor = 60);
create table reservation (
  order_id text primary key, status text not null
    check (status in ('HELD', 'RELEASED', 'DISPATCHED')),
  lines jsonb not null) with (fillfactor = 80);
create table account (
  customer text not null, currency text not null, card text not null,
  balance bigint not null check (balance >= 0), primary key (customer, currency)
) with (fillfactor = 60);
create table transfer (
  transfer_id bigint generated always as identity primary key, order_id text not null,
  kind text not null, debit text not null, credit text not null, amount bigint not null,
  currency text not null, at timestamptz not null default now(), unique (order_id, kind));
"""


def create(superuser_dsn: str) -> str:
    """Create a fresh database with everything in stock; return its DSN."""
    with psycopg.connect(superuser_dsn, autocommit=True) as db:
        db.execute(f"drop database if exists {DATABASE} with (force)".encode())
        db.execute(f"create database {DATABASE}".encode())
    dsn = urlsplit(superuser_dsn)._replace(path=f"/{DATABASE}").geturl()
    goods = catalogue()
    with psycopg.connect(dsn) as db:
        db.execute(_TABLES.encode())
        db.cursor().executemany(
            "insert into stock values (%s, %s, 0, 0, %s)",
            [(s.sku, s.quantity, s.quantity) for s in goods.stock],
        )
        db.cursor().executemany(
            "insert into account values (%s, %s, 'good', %s)",
            [(d.customer, d.currency, d.amount) for d in goods.deposits],
        )
    return dsn


def measure(
    dsn: str,
    superuser_dsn: str,
    postgres_pid: int,
    *,
    processes: int,
    threads: int,
    seconds: float,
    seed: int,
    round_: int,
) -> Measured:
    with _running(dsn, processes, threads, seconds, seed, round_) as running:
        for process in running:
            if _line(process) != "ready\n":
                raise StackError(f"a DBOS process ended with status {process.wait()}")

        def read() -> meter.Reading:
            cpu = meter.cpu_seconds({"postgres": postgres_pid})
            python = meter.cpu_seconds({str(p.pid): p.pid for p in running})
            cpu["python"] = sum(python.values())
            return meter.Reading(cpu, meter.commits(superuser_dsn, DATABASE), 0, 0)

        meter.settle()
        before = read()
        for process in running:
            assert process.stdin is not None  # noqa: S101 - for the type checker
            process.stdin.write("go\n")
            process.stdin.flush()
        found = [json.loads(_line(process)) for process in running]
        meter.settle()
        after = read()
    sagas = sum(one["sagas"] for one in found)
    latencies = [latency for one in found for latency in one["latencies"]]
    spent = meter.cost(before, after, sagas)
    return Measured(sagas, max(one["seconds"] for one in found), latencies, asdict(spent))


@contextmanager
def _running(
    dsn: str, processes: int, threads: int, seconds: float, seed: int, round_: int
) -> Iterator[list[subprocess.Popen[str]]]:
    running: list[subprocess.Popen[str]] = []
    try:
        for number in range(processes):
            prefix = f"{round_}-{processes}x{threads}-{number}"
            words = [dsn, str(threads), str(seconds), str(seed), prefix]
            running.append(
                subprocess.Popen(
                    [sys.executable, "-m", "chaos.bench.dbos_orders", *words],
                    cwd=CHECKOUT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        yield running
    finally:
        for process in running:
            process.terminate()
            process.wait(START_SECONDS)


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None  # noqa: S101 - for the type checker
    return process.stdout.readline()
