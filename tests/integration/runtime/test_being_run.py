"""A process as its operators see it: /live, /ready, /metrics, and its shutdown."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psycopg

from chaos.runtime.ports import free_ports
from common.kit.settings import Settings
from common.messages.shop.inventory import ReserveStock
from common.messages.topology import commands_of
from common.storage.db import Database
from tests.integration.conftest import MakeSettings
from tests.integration.mail import Mail, Management, charge, mail, reserve, saga
from tests.integration.services import receive_stock
from tests.integration.waiting import FAST, Rows, end_sessions, eventually, lock_waits
from tests.servers import Servers

ROOT = Path(__file__).parents[3]
QUEUE = commands_of("inventory")
ROLE = "inventory_svc"
TOLD = ("postgres_dsn", "amqp_url")
LEAVES_WITHIN_SECONDS = 10


class Running:
    """`python -m inventory_svc` as a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, log: Path) -> None:
        self.process = process
        self.health = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False)
        self._log = log

    async def checks(self) -> dict[str, str]:
        try:
            report = (await self.health.get("/ready")).json()
        except httpx.TransportError:
            return {"http": "not yet"}
        return dict(report["checks"])

    async def ready(self) -> bool:
        try:
            return (await self.health.get("/ready")).status_code == 200
        except httpx.TransportError:
            return False

    async def metrics(self) -> dict[str, float]:
        """Return the metrics by name and labels, as they are written."""
        lines = (await self.health.get("/metrics")).text.splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()]


@asynccontextmanager
async def inventory(settings: Settings, directory: Path) -> AsyncIterator[Running]:
    (port,) = free_ports(1)
    secrets = {name: getattr(settings, name).get_secret_value() for name in TOLD}
    env = {**FAST, **secrets, "health_port": port, "watch_every_seconds": 0.1}
    log = directory / "log"
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", ROLE), cwd=ROOT, stdout=out, stderr=out,
            env={**os.environ, **{f"SAGAPROOF_{k.upper()}": str(v) for k, v in env.items()}},
        )  # fmt: skip
    running = Running(process, port, log)
    try:
        await eventually(running.ready, "inventory is ready", within=30)
        yield running
    finally:
        await running.health.aclose()
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_ready_says_which_server_is_gone_and_live_that_it_lives(
    settings: MakeSettings, admin: Rows, servers: Servers, database: str, management: Management,
    tmp_path: Path,
) -> None:  # fmt: skip
    async with inventory(settings(ROLE), tmp_path) as running:
        who = quote(servers.amqp_user)
        management.api.delete(f"/permissions/{management.vhost}/{who}").raise_for_status()
        await eventually(lambda: _closed(management), "its connection is seen and closed")

        async def without_broker() -> bool:
            checks = await running.checks()
            return "broker" in checks[QUEUE] and checks["watch"] == "ok"

        await eventually(without_broker, "readiness says that the broker is gone")
        assert (await running.health.get("/ready")).status_code == 503
        assert (await running.health.get("/live")).status_code == 200
        assert (await running.metrics())[f'sagaproof_ready{{check="{QUEUE}"}}'] == 0
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        back = management.api.put(f"/permissions/{management.vhost}/{who}", json=everything)
        back.raise_for_status()
        await eventually(running.ready, "it comes back by itself")

        with psycopg.connect(servers.dsn("postgres"), autocommit=True) as superuser:
            superuser.execute(f"alter database {database} allow_connections false".encode())
            end_sessions(admin, ROLE)

            async def without_database() -> bool:
                checks = await running.checks()
                return "postgres" in checks["watch"] and "postgres" in checks["relay"]

            await eventually(without_database, "readiness says that the database is gone")
            assert not await running.ready()
            superuser.execute(f"alter database {database} allow_connections true".encode())
        await eventually(running.ready, "it comes back by itself")


def _closed(management: Management) -> bool:
    """Close the connections; the management API lists one some seconds after it was made."""
    return management.close_connections() > 0


async def test_a_relay_that_is_behind_is_not_ready(
    settings: MakeSettings, admin: Rows, tmp_path: Path
) -> None:
    async with inventory(settings(ROLE), tmp_path) as running:
        admin.execute(
            "insert into inventory_svc.outbox (destination, envelope, created_at)"
            " values ('payment.commands', %s, now() - interval '29 seconds')",
            (charge(saga(1)).encode(),),
        )

        async def behind() -> bool:
            return "the relay is behind" in (await running.checks()).get("outbox", "")

        await eventually(behind, "a row is too old")
        assert not await running.ready()
        metrics = await running.metrics()
        assert metrics["sagaproof_outbox_rows"] == 1
        assert metrics["sagaproof_outbox_oldest_seconds"] >= 30
        assert metrics['sagaproof_not_delivered_total{fate="returned"}'] >= 1
        admin.execute("delete from inventory_svc.outbox")
        await eventually(running.ready, "nothing waits any more")


async def test_handled_commands_are_counted_and_logged_with_ids(
    settings: MakeSettings, tmp_path: Path
) -> None:
    made = settings(ROLE)
    async with Database(made) as db:
        await receive_stock(db, tea=10)
    async with inventory(made, tmp_path) as running, mail(made) as post:
        first, short = reserve(saga(1), ("tea", 4)), reserve(saga(2), ("tea", 7))
        await post.send(QUEUE, first, short, first)
        await post.send_raw(QUEUE, b"nonsense")
        wrong = first.model_copy(update={"type": "NeverHeard"})
        await post.send(QUEUE, wrong)

        async def counted() -> bool:
            return (await running.metrics()).get(
                f'sagaproof_envelopes_total{{queue="{QUEUE}"}}'
            ) == 5

        await eventually(counted, "all of it is handled")
        metrics = await running.metrics()
        name = ReserveStock.__name__
        assert metrics[f'sagaproof_commands_total{{command="{name}",outcome="done"}}'] == 1
        assert metrics[f'sagaproof_commands_total{{command="{name}",outcome="refused"}}'] == 1
        assert metrics[f'sagaproof_duplicates_total{{command="{name}"}}'] == 1
        dead = {k for k in metrics if k.startswith("sagaproof_dead_letters_total")}
        assert dead == {
            f'sagaproof_dead_letters_total{{queue="{QUEUE}",reason="not_json"}}',
            f'sagaproof_dead_letters_total{{queue="{QUEUE}",reason="unknown_type"}}',
        }
        (again,) = [line for line in running.log() if line["event"] == "command.duplicate"]
        _, unknown = (line for line in running.log() if line["event"] == "envelope.dead_lettered")
        for line in (again, unknown):
            assert next(iter(line)) == "timestamp"  # by which `sort` puts the lines of all in order
            assert line["message_id"] == str(first.message_id)
            assert (line["saga_id"], line["step"]) == (str(saga(1)), "reserve_stock")


async def test_shutdown_ends_in_time_whatever_it_waits_for(
    settings: MakeSettings, admin: Rows, servers: Servers, database: str, tmp_path: Path
) -> None:
    made = settings(ROLE)
    async with Database(made) as db:
        await receive_stock(db, tea=10)
    async with inventory(made, tmp_path) as running, mail(made) as post:
        with psycopg.connect(servers.dsn(database)) as other:
            other.execute("select from inventory_svc.stock for update")
            await post.send(QUEUE, reserve(saga(1), ("tea", 4)))
            await eventually(lambda: lock_waits(admin, ROLE) == 1, "the batch is in hand")
            running.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(LEAVES_WITHIN_SECONDS):
                assert await running.process.wait() == 0
        await eventually(lambda: _one_is_left(post), "the batch went back to its queue")


async def _left(post: Mail) -> int:
    return await post.ready(QUEUE)


async def _one_is_left(post: Mail) -> bool:
    return await _left(post) == 1
