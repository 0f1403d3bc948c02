"""What a native stack is given: its ports and secrets, and where it can be reached by them.

Owns: drawing them. Must not know: what listens there.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Self

from chaos.runtime import APIS, SERVERS, Endpoints, Plan, bootstrap
from chaos.runtime.ports import HOST, free_ports
from chaos.runtime.proxy import line_name
from chaos.runtime.stack import Stack

SUPERUSER = "postgres"
RABBITMQ_USER = "sagaproof"


@dataclass(frozen=True)
class Secrets:
    """Made anew for every stack."""

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
    """One for everything that listens."""

    postgres: int
    amqp: int
    management: int
    distribution: int
    epmd: int
    http: Mapping[str, int]
    health: Mapping[str, int]  # of the APIs, which have another port than others for it
    lines: Mapping[str, int]  # of the proxy
    proxy: int | None  # where it is told what to do

    @classmethod
    def free(cls, plan: Plan) -> Self:
        names = list(plan.processes)
        apis = [name for name, service in plan.processes.items() if service in APIS]
        lines = [line_name(name, s) for name in names for s in SERVERS] if plan.proxied else []
        first = free_ports(6 + len(names) + len(apis) + len(lines))
        postgres, amqp, management, distribution, epmd, proxy, *others = first
        http, others = others[: len(names)], others[len(names) :]
        health, way = others[: len(apis)], others[len(apis) :]
        return cls(
            postgres, amqp, management, distribution, epmd,
            dict(zip(names, http, strict=True)), dict(zip(apis, health, strict=True)),
            dict(zip(lines, way, strict=True)),
            proxy if plan.proxied else None,
        )  # fmt: skip


def endpoints_of(stack: Stack, ports: Ports, keys: Secrets) -> Endpoints:
    def dsn(role: str, password: str) -> str:
        return f"postgresql://{role}:{password}@{HOST}:{ports.postgres}/{bootstrap.DATABASE}"

    broker = f"{RABBITMQ_USER}:{keys.rabbitmq}@{HOST}"
    return Endpoints(
        superuser_dsn=dsn(SUPERUSER, keys.superuser),
        judge_dsn=dsn(bootstrap.JUDGE, keys.roles[bootstrap.JUDGE]),
        service_dsns={
            role: dsn(role, password)
            for role, password in keys.roles.items()
            if role != bootstrap.JUDGE
        },
        amqp_url=f"amqp://{broker}:{ports.amqp}/",
        management_url=f"http://{broker}:{ports.management}",
        http_urls={name: f"http://{HOST}:{port}" for name, port in ports.http.items()},
        metrics_urls={
            name: f"http://{HOST}:{port}/metrics"
            for name, port in {**ports.http, **ports.health}.items()
        },
        log_dir=stack.logs,
        door_key=keys.door_key,
        operator_token=keys.operator_token,
        proxy=(HOST, ports.proxy) if ports.proxy else None,
    )


def postgres_dsn(ports: Ports, keys: Secrets) -> str:
    """The superuser's, to the database that is always there."""
    return f"postgresql://{SUPERUSER}:{keys.superuser}@{HOST}:{ports.postgres}/postgres"
