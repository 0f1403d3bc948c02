"""Backup and restore as docs/runbook.md types them: the database falls behind the broker."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

import httpx

from chaos.judge.queues import count_queues
from chaos.load.shop import PLENTY, shop
from chaos.runtime.docker.runtime import DockerRuntime, DockerStack
from chaos.runtime.native.install import found
from chaos.scenarios.scene import GIVEN_UP
from chaos.stack.database import CONFIRMED
from chaos.stack.system import System
from chaos.waiting import until
from common.messages.topology import commands_of
from tests.support.reader import ROOT
from tests.support.saga import saga
from tests.support.stages import on

pytestmark = on("impatient")

EACH = 20
CHAPTER = re.compile(r"^## Backing up, restoring$(.*?)^## ", re.MULTILINE | re.DOTALL)
TYPED = re.compile(r"^ *```text\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
CHARGES = "select saga_id, count(*) from payment_svc.transfer where kind = 'CHARGE' group by 1"


def what_the_runbook_types() -> tuple[str, str]:
    """Return the commands to back up, and those to restore."""
    (chapter,) = CHAPTER.findall((ROOT / "docs/runbook.md").read_text())
    backup, restore = map(textwrap.dedent, TYPED.findall(chapter))
    return backup, restore


class Shell:
    """An administrator's shell, on a machine that has the servers' programs."""

    def __init__(self, system: System, home: Path) -> None:
        self._home = home
        dsn = system.endpoints.superuser_dsn
        runtime = "docker" if isinstance(system.runtime, DockerRuntime) else "native"
        if runtime == "docker":  # the container's own, which are of its server's version
            container = f"{DockerStack(system.runtime.name).project}-postgres-1"
            programs = f"docker exec --workdir /tmp {container} "
            dsn = dsn.replace(f":{urlsplit(dsn).port}/", ":5432/")
        else:
            programs = f"{found().postgres}/"
        self._dsn = dsn
        for program in ("pg_dump", "pg_restore"):
            self._place(program, f'exec {programs}{program} "$@"')
        ask = f"-m chaos rabbitmqctl --runtime {runtime} --name {system.runtime.name}"
        self._place("rabbitmqctl", f'PYTHONPATH={ROOT} exec {sys.executable} {ask} "$@"')

    def _place(self, program: str, script: str) -> None:
        file = self._home / program
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)

    def type(self, lines: str) -> str:
        path = f"{self._home}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", lines],
            cwd=self._home,
            env={**os.environ, "PATH": path, "ADMIN_DSN": self._dsn},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def known(system: System, orders: Iterable[UUID]) -> set[UUID]:
    rows = system.db.rows(
        "select order_id from order_svc.customer_order where order_id = any(%s)", list(orders)
    )
    return {order for (order,) in rows}


def charges(system: System, orders: Iterable[UUID]) -> Mapping[UUID, int]:
    counted = dict(system.db.rows(CHARGES))
    return {order: counted[order] for order in orders if order in counted}


def test_a_restored_database_behind_its_broker_loses_no_money(
    system: System, tmp_path: Path
) -> None:
    backup, restore = what_the_runbook_types()
    shell = Shell(system, tmp_path)
    here = system.stock_up(shop("restore", stock={"tea": 1000}, accounts={"ann": PLENTY}))
    asks = [here.order("ann", tea=1) for _ in range(4 * EACH)]

    before = system.door.place(asks[:EACH])
    system.db.ends(before)
    with system.db.session("payment_svc") as payment:
        payment.execute("select from account where customer = %s for update", ("restore.ann",))
        under_way = system.door.place(asks[EACH : 2 * EACH])
        until(
            lambda: any("charge_payment" in steps for steps in system.db.steps(under_way)),
            "orders are in the middle of their way",
        )
        shell.type(backup)
    after = system.door.place(asks[2 * EACH : 3 * EACH])
    ended = system.db.ends([*under_way, *after])
    system.processes.stop("payment")
    waiting = system.door.place(asks[3 * EACH :])
    until(
        lambda: all("charge_payment" in steps for steps in system.db.steps(waiting)),
        "commands of what will be forgotten wait at the broker",
    )

    for process in system.processes.names:
        system.processes.stop(process)
    assert count_queues(system.runtime.rabbitmqctl)[commands_of("payment")].ready
    shell.type(restore)
    remembered, forgotten = known(system, [*before, *under_way]), [*after, *waiting]
    assert remembered == {*before, *under_way}
    assert set(system.db.alive()) & set(under_way)
    for process in system.processes.names:
        system.processes.start(process)

    ends = system.db.ends(remembered)
    assert {ends[order] for order in before} == {CONFIRMED}
    assert set(ends.values()) <= {CONFIRMED, *GIVEN_UP}
    assert CONFIRMED in {ended[order] for order in after}  # and paid, before the restore
    system.rest()
    saga(system, "doctor")
    saga(system, "audit")
    assert "no open dead letter" in saga(system, "dead-letters", "list")
    assert not known(system, forgotten)
    assert not charges(system, forgotten), "money was taken for an order that is not on record"
    door = httpx.Client(base_url=system.endpoints.door_url, headers=system.endpoints.door_headers)
    with door:
        assert door.get(f"/orders/{after[0]}").status_code == 404

    assert system.door.place(asks[2 * EACH :]) == forgotten
    ends |= system.db.ends(forgotten)
    assert CONFIRMED in {ends[order] for order in forgotten}
    assert set(charges(system, ends).values()) == {1}
    saga(system, "audit")
    system.verdict()
