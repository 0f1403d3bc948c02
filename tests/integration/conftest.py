"""A database and a virtual host of its own for every test, cheap through a template database."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import psycopg
import pytest
import pytest_asyncio
from pydantic import SecretStr

from chaos.runtime.bootstrap import JUDGE, ROLES, SERVICES, role_statements, schema_statements
from common.kit.settings import Settings
from common.process.process import COMMON_MIGRATIONS
from common.storage.db import Database, migrate
from tests.integration.mail import Management
from tests.servers import Servers, running

ROOT = Path(__file__).parents[2]
TEMPLATE = "sagaproof_template"
PASSWORD = "pw"
_numbers = itertools.count(1)

MakeSettings = Callable[..., Settings]

# Time limits that a busy machine does not run into; a test about one of them sets its own.
UNHURRIED = {
    "connect_timeout_seconds": 30,
    "statement_timeout_seconds": 60,
    "lock_timeout_seconds": 30,
    "idle_in_transaction_seconds": 30,
    "confirm_timeout_seconds": 30,
}


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    with running() as servers:
        prepare(servers)
        yield servers


def prepare(servers: Servers) -> None:
    """Create the roles, and the template database with all schemas migrated."""
    with psycopg.connect(servers.dsn("postgres"), autocommit=True) as admin:
        # Nothing here outlives the run, and making a database waits for the disk.
        admin.execute("alter system set fsync = off")
        admin.execute("select pg_reload_conf()")
        _make_roles(admin)
        admin.execute(f"create database {TEMPLATE}".encode())
    with psycopg.connect(servers.dsn(TEMPLATE), autocommit=True) as template:
        for statement in schema_statements():
            template.execute(statement.encode())
    for schema in SERVICES:
        settings = _settings(servers, TEMPLATE, "/", schema)
        migrate(settings, COMMON_MIGRATIONS, ROOT / schema / "migrations")


def _make_roles(admin: psycopg.Connection[tuple[object, ...]]) -> None:
    """Create the roles; where a native server has them, set passwords that tests know."""
    if admin.execute("select from pg_roles where rolname = %s", (JUDGE,)).fetchone() is None:
        statements = list(role_statements(dict.fromkeys(ROLES, PASSWORD)))
    else:
        statements = [f"alter role {role} password '{PASSWORD}'" for role in ROLES]
    for statement in statements:
        admin.execute(statement.encode())


@pytest.fixture
def database(servers: Servers) -> Iterator[str]:
    """Create a database with all four schemas, migrated and empty; return its name."""
    name = f"t{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(servers.dsn("postgres"), autocommit=True) as admin:
        admin.execute(f"create database {name} template {TEMPLATE}".encode())
        yield name
        admin.execute(f"drop database {name} with (force)".encode())


@pytest.fixture
def vhost(servers: Servers) -> str:
    """Create a virtual host; return its name. It ends with the server: deleting takes a second."""
    name = f"t{os.getpid()}_{next(_numbers)}"
    auth = (servers.amqp_user, servers.amqp_password)
    with httpx.Client(base_url=f"{servers.management_url}/api", auth=auth) as api:
        api.put(f"/vhosts/{name}").raise_for_status()
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        who = quote(servers.amqp_user)
        api.put(f"/permissions/{name}/{who}", json=everything).raise_for_status()
    return name


@pytest.fixture
def settings(servers: Servers, database: str, vhost: str) -> MakeSettings:
    """Make settings for a role: settings("payment_svc", step_timeout_seconds=0.5)."""

    def make(role: str, **overrides: object) -> Settings:
        made = _settings(servers, database, vhost, role)
        return made.model_copy(update={**UNHURRIED, **overrides})

    return make


@pytest_asyncio.fixture
async def db(settings: MakeSettings) -> AsyncIterator[Database]:
    """Open the orchestrator's database; some files override this with their own."""
    async with Database(settings("orchestrator")) as db:
        yield db


@pytest.fixture
def judge(servers: Servers, database: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """Connect as the judge, who reads all four schemas and writes none."""
    with psycopg.connect(servers.dsn(database, JUDGE, PASSWORD), autocommit=True) as connection:
        yield connection


def _settings(servers: Servers, database: str, vhost: str, role: str) -> Settings:
    return Settings(
        postgres_dsn=SecretStr(servers.dsn(database, role, PASSWORD)),
        amqp_url=SecretStr(servers.amqp_url(quote(vhost, safe=""))),
        process=f"{role}-test",
    )


@pytest.fixture
def admin(servers: Servers, database: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """Connect as superuser, to see lock waits and end sessions."""
    with psycopg.connect(servers.dsn(database), autocommit=True) as connection:
        yield connection


@pytest.fixture
def nothing_left_claimed(judge: psycopg.Connection[tuple[object, ...]]) -> Iterator[None]:
    """Check after the test that no inbox row was committed as merely claimed."""
    yield
    for schema in SERVICES:
        claimed = f"select * from {schema}.inbox where outcome = 'claimed'"
        assert judge.execute(claimed.encode()).fetchall() == []


@pytest.fixture
def management(servers: Servers, vhost: str) -> Iterator[Management]:
    """Open the broker's management API for this test's virtual host."""
    auth = (servers.amqp_user, servers.amqp_password)
    with httpx.Client(base_url=f"{servers.management_url}/api", auth=auth) as api:
        yield Management(api, vhost)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("integration")
