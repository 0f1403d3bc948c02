"""A stack's ports and secrets, and the endpoints they make; for both runtimes."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from chaos.runtime import APIS, SERVERS, Endpoints, Plan, bootstrap
from chaos.runtime.ports import HOST, free_ports
from chaos.runtime.proxy import line_name

SUPERUSER = "postgres"
RABBITMQ_USER = "sagaproof"


@dataclass(frozen=True)
class Secrets:
    """The passwords of a stack."""

    superuser: str
    roles: Mapping[str, str]
    rabbitmq: str
    cookie: str
    door_key: str
    operator_token: str

    @classmethod
    def fresh(cls, plan: Plan) -> Self:
        new = partial(secrets.token_urlsafe, 18)
        roles = {role: new() for role in (*plan.roles, bootstrap.JUDGE)}
        return cls(new(), roles, new(), new(), new(), new())


@dataclass(frozen=True)
class Ports:
    """A free port for everything that may listen."""

    postgres: int
    amqp: int
    management: int
    distribution: int
    epmd: int
    proxy: int  # its control port
    http: Mapping[str, int]
    health: Mapping[str, int]  # the same as `http`, but for the APIs
    lines: Mapping[str, int]  # of the proxy; empty if nothing is proxied

    @classmethod
    def free(cls, plan: Plan) -> Self:
        ports = iter(free_ports(6 + 4 * len(plan.processes)))
        lines = [line_name(name, s) for name in plan.processes for s in SERVERS]
        http = {name: next(ports) for name in plan.processes}
        health = {n: next(ports) if s in APIS else http[n] for n, s in plan.processes.items()}
        by_line = {line: next(ports) for line in lines} if plan.proxied else {}
        return cls(
            postgres=next(ports),
            amqp=next(ports),
            management=next(ports),
            distribution=next(ports),
            epmd=next(ports),
            proxy=next(ports),
            http=http,
            health=health,
            lines=by_line,
        )


def endpoints_of(ports: Ports, keys: Secrets, log_dir: Path) -> Endpoints:
    broker = f"{RABBITMQ_USER}:{keys.rabbitmq}@{HOST}"
    dsns = {
        role: postgres_dsn(ports, role, password, bootstrap.DATABASE)
        for role, password in {SUPERUSER: keys.superuser, **keys.roles}.items()
    }
    return Endpoints(
        superuser_dsn=dsns.pop(SUPERUSER),
        judge_dsn=dsns.pop(bootstrap.JUDGE),
        service_dsns=dsns,
        amqp_url=f"amqp://{broker}:{ports.amqp}/",
        management_url=f"http://{broker}:{ports.management}",
        http_urls={name: f"http://{HOST}:{port}" for name, port in ports.http.items()},
        metrics_urls={n: f"http://{HOST}:{port}/metrics" for n, port in ports.health.items()},
        log_dir=log_dir,
        door_key=keys.door_key,
        operator_token=keys.operator_token,
        proxy=(HOST, ports.proxy) if ports.lines else None,
    )


def postgres_dsn(ports: Ports, role: str, password: str, database: str) -> str:
    return f"postgresql://{role}:{password}@{HOST}:{ports.postgres}/{database}"
