"""A Plan as a project of Docker Compose, made out of compose.yaml's model. Pure.

A process is a compose service of its own, also a replica, so that it has a name of its own in
logs. `python -m chaos.runtime.docker.compose` prints deploy/roles.sql.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chaos.runtime import APIS, EVERYTHING, SERVERS, SERVICES, Plan, bootstrap, proxy
from chaos.runtime.endpoints import Ports, Secrets
from chaos.runtime.ports import HOST
from chaos.runtime.stack import CHECKOUT

PASSWORD = "throw-away"  # noqa: S105  of every account in compose.yaml, as that says
DOOR_KEY, OPERATOR_TOKEN = f"{PASSWORD}-door-key", f"{PASSWORD}-operator-token"  # and its API keys
POSTGRES_PORT, AMQP_PORT, MANAGEMENT_PORT = 5432, 5672, 15672  # inside the containers
API_PORT, HEALTH_PORT = 8080, 8081
PROXY, PROXY_PORT = "proxy", 7000  # its lines listen on the ports above
ANYWHERE = "0.0.0.0"  # noqa: S104  inside a container
CODE = "/checkout"  # where the proxy, and code that the image lacks, find this checkout
MOUNT = {"type": "bind", "source": str(CHECKOUT), "target": CODE, "read_only": True}
TETHER_LABEL = "sagaproof.tether"
ROLES_TARGET = "/docker-entrypoint-initdb.d/roles.sql"

Model = dict[str, Any]


def secrets_of(plan: Plan) -> Secrets:
    """Return compose.yaml's throw-away passwords."""
    roles = dict.fromkeys((*plan.roles, bootstrap.JUDGE), PASSWORD)
    return Secrets(PASSWORD, roles, PASSWORD, "", DOOR_KEY, OPERATOR_TOKEN)


def model_of(
    base: Model, plan: Plan, ports: Ports, owner: str | None, roles_file: Path | None = None
) -> Model:
    """Return what compose is to run, published on `ports`.

    `base` is compose.yaml as `docker compose config` prints it. `roles_file` creates the roles and
    schemas in place of deploy/roles.sql. `owner` is written on a tethered stack's network.
    """
    services: Model = {name: copy.deepcopy(base["services"][name]) for name in SERVERS}
    if roles_file:
        for volume in services["postgres"]["volumes"]:
            if volume["target"] == ROLES_TARGET:
                volume["source"] = str(roles_file)
    services["postgres"]["ports"] = [_published(POSTGRES_PORT, ports.postgres)]
    services["rabbitmq"]["ports"] = [
        _published(AMQP_PORT, ports.amqp),
        _published(MANAGEMENT_PORT, ports.management),
    ]
    lines = _lines(plan) if plan.proxied else {}
    if lines:
        services[PROXY] = _proxy_model(base["services"]["payment"], lines, ports)
    for process, service in plan.processes.items():
        services[process] = _process_model(base, plan, ports, process, service)
        if lines:
            _lead_through_the_proxy(services[process]["environment"], process, lines)
    labels = {TETHER_LABEL: owner} if owner else {}
    network = {**base["networks"]["default"], "labels": labels}
    return {**base, "services": services, "networks": {"default": network}}


def _published(target: int, port: int) -> Model:
    return {"host_ip": HOST, "target": target, "published": str(port), "protocol": "tcp"}


def _process_model(base: Model, plan: Plan, ports: Ports, process: str, service: str) -> Model:
    model: Model = copy.deepcopy(base["services"].get(service) or base["services"]["payment"])
    environment = model["environment"]
    if service in plan.services:  # like payment, in a role of its own
        payment, role = SERVICES["payment"].role, plan.services[service].role
        dsn = environment["SAGAPROOF_POSTGRES_DSN"].replace(f"//{payment}:", f"//{role}:")
        environment["SAGAPROOF_POSTGRES_DSN"] = dsn
    model.pop("build", None)
    model["pull_policy"] = "never"
    environment |= {"SAGAPROOF_PROCESS": process, **plan.environment}
    model["command"] = plan.command(service)
    if service in {*plan.entry, *plan.services} or "definitions" in plan.settings:
        model["working_dir"] = CODE  # the image has no code but ours
        model["volumes"] = [*model.get("volumes", ()), MOUNT]
    api = [_published(API_PORT, ports.http[process])] if service in APIS else []
    model["ports"] = [*api, _published(HEALTH_PORT, ports.health[process])]
    return model


def _lines(plan: Plan) -> dict[str, proxy.LineSpec]:
    """Return the proxy's lines, on ports of its container."""
    names = [(process, server) for process in plan.processes for server in SERVERS]
    ports = {"postgres": POSTGRES_PORT, "rabbitmq": AMQP_PORT}
    return {
        (name := proxy.line_name(process, server)): proxy.LineSpec(
            name, ANYWHERE, PROXY_PORT + number, server, ports[server]
        )
        for number, (process, server) in enumerate(names, 1)
    }


def _proxy_model(service: Model, lines: Mapping[str, proxy.LineSpec], ports: Ports) -> Model:
    """Run the proxy in the services' image, which lacks chaos itself."""
    model = copy.deepcopy(service)
    model.pop("build", None)
    return model | {
        "pull_policy": "never",
        "command": [*proxy.command_line((ANYWHERE, PROXY_PORT), [*lines.values()])],
        "working_dir": CODE,
        "volumes": [MOUNT],
        "environment": {},
        "healthcheck": {"disable": True},
        "ports": [_published(PROXY_PORT, ports.proxy)],
    }


def _lead_through_the_proxy(
    environment: Model, process: str, lines: Mapping[str, proxy.LineSpec]
) -> None:
    for key, server in (("SAGAPROOF_POSTGRES_DSN", "postgres"), ("SAGAPROOF_AMQP_URL", "rabbitmq")):
        line = lines[proxy.line_name(process, server)]
        there = f"@{server}:{line.to_port}/"
        environment[key] = environment[key].replace(there, f"@{PROXY}:{line.port}/")


def roles_sql(plan: Plan = EVERYTHING) -> str:
    """Return what Postgres runs at its first start."""
    statements = (
        *bootstrap.role_statements(secrets_of(plan).roles),
        *bootstrap.schema_statements(plan.roles),
    )
    head = "-- Generated: python -m chaos.runtime.docker.compose > deploy/roles.sql\n"
    return head + "".join(f"{statement};\n" for statement in statements)


if __name__ == "__main__":
    print(roles_sql(), end="")
