"""What compose is to run for a Plan, and where it is then found. Pure but for free ports.

Owns: making the model out of compose.yaml's, on ports of its own. A process is a compose service of
its own, also a replica, so that it has a name of its own in logs. Must not know: what compose.yaml
says beyond the names in it, and the docker command.

`python -m chaos.runtime.docker.compose` prints deploy/roles.sql.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chaos.runtime import APIS, EVERYTHING, SERVERS, SERVICES, Endpoints, Plan, bootstrap, proxy
from chaos.runtime.ports import HOST, free_ports
from chaos.runtime.stack import CHECKOUT

PASSWORD = "throw-away"  # noqa: S105  of every account in compose.yaml, as that says
DOOR_KEY, OPERATOR_TOKEN = f"{PASSWORD}-door-key", f"{PASSWORD}-operator-token"  # likewise
POSTGRES_PORT, AMQP_PORT, MANAGEMENT_PORT = 5432, 5672, 15672  # inside the containers
API_PORT, HEALTH_PORT = 8080, 8081
PROXY, PROXY_PORT = "proxy", 7000  # its lines listen on the ports above
ANYWHERE = "0.0.0.0"  # noqa: S104  inside a container
CODE = "/checkout"  # where the proxy, and code that the image lacks, find this checkout
MOUNT = {"type": "bind", "source": str(CHECKOUT), "target": CODE, "read_only": True}
TETHER_LABEL = "sagaproof.tether"
ROLES_TARGET = "/docker-entrypoint-initdb.d/roles.sql"

Model = dict[str, Any]


def model_of(base: Model, plan: Plan, owner: str | None, roles_file: Path | None = None) -> Model:
    """What compose is to run: `base` is compose.yaml as `docker compose config` reads it.
    `roles_file` makes the roles and schemas, in place of deploy/roles.sql."""
    services: Model = {name: copy.deepcopy(base["services"][name]) for name in SERVERS}
    if roles_file:
        for volume in services["postgres"]["volumes"]:
            if volume["target"] == ROLES_TARGET:
                volume["source"] = str(roles_file)
    lines = _lines(plan)
    if plan.proxied:
        services[PROXY] = _proxy_model(base["services"]["payment"], lines)
    for process, service in plan.processes.items():
        services[process] = model = copy.deepcopy(
            base["services"][service] if service in SERVICES else _besides(base, plan, service)
        )
        model.pop("build", None)
        model["pull_policy"] = "never"
        model["environment"] |= {"SAGAPROOF_PROCESS": process, **plan.environment}
        if service in plan.entry or service in plan.services:
            entry = plan.entry.get(service, plan.all_services[service].entry)
            model["command"] = entry.split()
        if service in {*plan.entry, *plan.services} or "definitions" in plan.settings:
            model["working_dir"] = CODE  # the image has no code but ours
            model["volumes"] = [*model.get("volumes", ()), MOUNT]
        if plan.proxied:
            _lead_through_the_proxy(model["environment"], process, lines)
        # Those of APIS compose.yaml publishes already.
        health = {"host_ip": HOST, "target": HEALTH_PORT, "protocol": "tcp"}
        model["ports"] = [*model.get("ports", ()), health]
    published = [port for service in services.values() for port in service.get("ports", ())]
    for port, number in zip(published, free_ports(len(published)), strict=True):
        port["published"] = str(number)
    labels = {TETHER_LABEL: owner} if owner else {}
    network = {**base["networks"]["default"], "labels": labels}
    return {**base, "services": services, "networks": {"default": network}}


def _besides(base: Model, plan: Plan, service: str) -> Model:
    """Like one of ours, in a role of its own."""
    model: Model = copy.deepcopy(base["services"]["payment"])
    there, role = model["environment"]["SAGAPROOF_POSTGRES_DSN"], plan.services[service].role
    ours = f"//{SERVICES['payment'].role}:"
    model["environment"]["SAGAPROOF_POSTGRES_DSN"] = there.replace(ours, f"//{role}:")
    return model


def _lines(plan: Plan) -> dict[str, proxy.LineSpec]:
    """On ports of the proxy's container."""
    names = [(process, server) for process in plan.processes for server in SERVERS]
    ports = {"postgres": POSTGRES_PORT, "rabbitmq": AMQP_PORT}
    return {
        (name := proxy.line_name(process, server)): proxy.LineSpec(
            name, ANYWHERE, PROXY_PORT + number, server, ports[server]
        )
        for number, (process, server) in enumerate(names, 1)
    }


def _proxy_model(service: Model, lines: Mapping[str, proxy.LineSpec]) -> Model:
    """Of the services' image, which lacks chaos itself."""
    model = copy.deepcopy(service)
    model.pop("build", None)
    return model | {
        "pull_policy": "never",
        "command": [*proxy.command_line((ANYWHERE, PROXY_PORT), [*lines.values()])],
        "working_dir": CODE,
        "volumes": [MOUNT],
        "environment": {},
        "healthcheck": {"disable": True},
        "ports": [{"host_ip": HOST, "target": PROXY_PORT, "protocol": "tcp"}],
    }


def _lead_through_the_proxy(
    environment: Model, process: str, lines: Mapping[str, proxy.LineSpec]
) -> None:
    for key, server in (("SAGAPROOF_POSTGRES_DSN", "postgres"), ("SAGAPROOF_AMQP_URL", "rabbitmq")):
        line = lines[proxy.line_name(process, server)]
        there = f"@{server}:{line.to_port}/"
        environment[key] = environment[key].replace(there, f"@{PROXY}:{line.port}/")


def endpoints_of(model: Model, plan: Plan, log_dir: Path) -> Endpoints:
    services = model["services"]

    def address(process: str, target: int) -> str:
        ports = {port["target"]: port["published"] for port in services[process]["ports"]}
        return f"{HOST}:{ports[target]}"

    def dsn(role: str) -> str:
        return f"postgresql://{role}:{PASSWORD}@{postgres}/{bootstrap.DATABASE}"

    postgres = address("postgres", POSTGRES_PORT)
    broker = f"{services['rabbitmq']['environment']['RABBITMQ_DEFAULT_USER']}:{PASSWORD}"
    return Endpoints(
        superuser_dsn=dsn("postgres"),
        judge_dsn=dsn(bootstrap.JUDGE),
        service_dsns={role: dsn(role) for role in plan.roles},
        amqp_url=f"amqp://{broker}@{address('rabbitmq', AMQP_PORT)}/",
        management_url=f"http://{broker}@{address('rabbitmq', MANAGEMENT_PORT)}",
        http_urls={
            process: f"http://{address(process, API_PORT if service in APIS else HEALTH_PORT)}"
            for process, service in plan.processes.items()
        },
        metrics_urls={p: f"http://{address(p, HEALTH_PORT)}/metrics" for p in plan.processes},
        log_dir=log_dir,
        door_key=DOOR_KEY,
        operator_token=OPERATOR_TOKEN,
        proxy=(HOST, int(address(PROXY, PROXY_PORT).rpartition(":")[2])) if plan.proxied else None,
    )


def roles_sql(plan: Plan = EVERYTHING) -> str:
    """What Postgres runs at its first start."""
    passwords = dict.fromkeys((*plan.roles, bootstrap.JUDGE), PASSWORD)
    statements = (*bootstrap.role_statements(passwords), *bootstrap.schema_statements(plan.roles))
    head = "-- Generated: python -m chaos.runtime.docker.compose > deploy/roles.sql\n"
    return head + "".join(f"{statement};\n" for statement in statements)


if __name__ == "__main__":
    print(roles_sql(), end="")
