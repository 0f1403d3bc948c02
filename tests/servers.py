"""One Postgres and one RabbitMQ for the whole test run.

They are containers where a Docker engine answers, native processes otherwise; RUNTIME=docker|native
chooses. The report says which. A server that the run did not start is never touched.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from chaos.runtime import SERVERS_ONLY, choose
from chaos.runtime.native.install import missing


@dataclass(frozen=True)
class Servers:
    kind: str
    postgres_host: str
    postgres_port: int
    admin: str
    admin_password: str
    amqp_host: str
    amqp_port: int
    amqp_user: str
    amqp_password: str
    management_url: str
    rabbitmqctl: Callable[..., str] | None = None  # native only

    def dsn(self, database: str, role: str | None = None, password: str | None = None) -> str:
        who = f"{role or self.admin}:{password or self.admin_password}"
        return f"postgresql://{who}@{self.postgres_host}:{self.postgres_port}/{database}"

    def amqp_url(self, vhost: str) -> str:
        who = f"{self.amqp_user}:{self.amqp_password}"
        return f"amqp://{who}@{self.amqp_host}:{self.amqp_port}/{vhost}"


def chosen() -> str:
    """Return `docker` or `native`, as $RUNTIME asks or else as found."""
    asked = os.environ.get("RUNTIME")
    if asked in ("docker", "native"):
        return asked
    if asked:
        raise ValueError(f"RUNTIME={asked}: choose docker or native")
    return "docker" if engine_answers() else "native"


def chosen_for_stacks() -> str:
    """Return the runtime of whole stacks: native where its servers are installed, or $RUNTIME.

    A process dies and restarts several times faster than a container.
    """
    if "RUNTIME" in os.environ or missing():
        return chosen()
    return "native"


def engine_answers() -> bool:
    try:
        return subprocess.run(["docker", "info"], capture_output=True, timeout=20).returncode == 0
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False


@contextmanager
def running() -> Iterator[Servers]:
    """Start the servers; stop and remove them at the end."""
    with {"docker": _containers, "native": native}[chosen()]() as servers:
        yield servers


@contextmanager
def _containers() -> Iterator[Servers]:
    # Read when first imported. Ryuk is an image of its own that a closed network cannot pull;
    # the containers are removed here. And this machine is not itself a container.
    os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
    os.environ.setdefault("TESTCONTAINERS_CONNECTION_MODE", "docker_host")
    from testcontainers.community.postgres import PostgresContainer
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import ExecWaitStrategy

    postgres = PostgresContainer("postgres:17", username="postgres", password="pw", driver=None)
    postgres.with_command("postgres -c max_connections=300")
    # Not testcontainers' RabbitMqContainer: it waits by a function its own core deprecates.
    # `ping` answers before users exist; this does not.
    rabbit = DockerContainer("rabbitmq:4-management").with_exposed_ports(5672, 15672)
    rabbit.with_env("RABBITMQ_DEFAULT_USER", "test").with_env("RABBITMQ_DEFAULT_PASS", "pw")
    rabbit.waiting_for(ExecWaitStrategy(["rabbitmq-diagnostics", "-q", "check_port_connectivity"]))
    with postgres, rabbit:
        host = rabbit.get_container_host_ip()
        yield Servers(
            kind="containers (postgres:17, rabbitmq:4)",
            postgres_host=postgres.get_container_host_ip(),
            postgres_port=int(postgres.get_exposed_port(5432)),
            admin="postgres",
            admin_password="pw",
            amqp_host=host,
            amqp_port=int(rabbit.get_exposed_port(5672)),
            amqp_user="test",
            amqp_password="pw",
            management_url=f"http://{host}:{rabbit.get_exposed_port(15672)}",
        )


@contextmanager
def native() -> Iterator[Servers]:
    runtime = choose("native", f"tests-{os.getpid()}")
    endpoints = runtime.up(SERVERS_ONLY, tethered=True)
    try:
        postgres, amqp = urlsplit(endpoints.superuser_dsn), urlsplit(endpoints.amqp_url)
        yield Servers(
            kind="native processes",
            postgres_host=postgres.hostname or "",
            postgres_port=postgres.port or 0,
            admin=postgres.username or "",
            admin_password=postgres.password or "",
            amqp_host=amqp.hostname or "",
            amqp_port=amqp.port or 0,
            amqp_user=amqp.username or "",
            amqp_password=amqp.password or "",
            management_url=endpoints.management_url,
            rabbitmqctl=runtime.rabbitmqctl,
        )
    finally:
        runtime.down()
