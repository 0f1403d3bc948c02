"""An audit of 100,000 orders: minutes, and the memory of a page."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest

from chaos.runtime import Endpoints, Plan
from tests.large.conftest import RESIDENT_KIB, SAGA, Up, peak_kib
from tests.support.history import write_history, write_returns

ORDERS = 100_000
SAGAS = ORDERS + ORDERS // 5  # one in five goes back, or was to
WITHIN_SECONDS = 300
PLAN = Plan(replicas={"door": 0, "orchestrator": 0})  # only the services that are queried


class Audited(NamedTuple):
    code: int
    document: Any
    seconds: float
    peak_kib: int


def audit(endpoints: Endpoints, folder: Path) -> Audited:
    began = time.monotonic()
    with (folder / "audit.json").open("w+") as out:
        environment = {**os.environ, **endpoints.environment}
        process = subprocess.Popen([SAGA, "audit", "--json"], env=environment, stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        seconds = time.monotonic() - began
        return Audited(process.returncode, json.load(out), seconds, usage.ru_maxrss)


@pytest.mark.timeout(1800)
def test_a_hundred_thousand_orders_are_audited_in_minutes(
    stack: Up, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runtime, endpoints = stack
    for first in range(1, ORDERS, 20_000):
        write_history(endpoints.superuser_dsn, first, first + 19_999)
        write_returns(endpoints.superuser_dsn, first, first + 19_999)

    clean = audit(endpoints, tmp_path)
    peaks = {p.name: peak_kib(p.pid) for p in runtime.status() if p.pid and p.name in SERVICES}
    peaks["saga audit"] = clean.peak_kib
    with capsys.disabled():
        print(f"\n{SAGAS} sagas audited in {clean.seconds:.1f} s; peak RSS in KiB: {peaks}")
    assert (clean.code, clean.document) == (0, {"compared": SAGAS, "skipped": 0, "drift": []})
    assert clean.seconds < WITHIN_SECONDS
    assert max(peaks.values()) < RESIDENT_KIB

    with psycopg.connect(endpoints.superuser_dsn) as connection:
        connection.execute("delete from payment_svc.transfer where kind = 'REFUND'")
    drifted = audit(endpoints, tmp_path)
    found = Counter(each["drift"] for each in drifted.document["drift"])
    assert (drifted.code, found) == (
        1,
        {"missing_refund": ORDERS // 10, "return_without_refund": ORDERS // 10},
    )


SERVICES = ("operator", "order", "payment", "inventory")
