"""compose.yaml and its companions keep the promises they print, and agree with the code."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from chaos.runtime import APIS, SERVERS, SERVICES, Plan, Service
from chaos.runtime.bootstrap import SERVICES as ROLES
from chaos.runtime.docker.compose import (
    DOOR_KEY,
    OPERATOR_TOKEN,
    PASSWORD,
    TETHER_LABEL,
    model_of,
    roles_sql,
    secrets_of,
)
from chaos.runtime.endpoints import RABBITMQ_USER, Ports, endpoints_of
from common.process.process import STOP_WITHIN_SECONDS

ROOT = Path(__file__).parents[3]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
PROCESSES = {name: COMPOSE["services"][name] for name in SERVICES}
USUAL = {80, 443, 3000, 5000, 5432, 5672, 8000, 8080, 8081, 9090, 15432, 15672, 15673}

# As `docker compose config` writes it, and no more of it than is looked at.
BASE: dict[str, Any] = {
    "name": "sagaproof",
    "networks": {"default": {"name": "sagaproof_default"}},
    "services": {
        "postgres": {"ports": [{"target": 5432, "published": "15085"}]},
        "rabbitmq": {
            "ports": [{"target": 5672, "published": "1"}, {"target": 15672, "published": "2"}],
        },
        **{
            name: {"environment": {"A": "1"}, "build": {}, "command": service.entry.split()}
            for name, service in SERVICES.items()
        },
    },
}
for number, name in enumerate(APIS, start=15080):
    BASE["services"][name]["ports"] = [{"target": 8080, "published": str(number)}]


def default_model(plan: Plan) -> dict[str, Any]:
    return model_of(BASE, plan, Ports.free(plan), None)


def test_every_process_is_a_service_and_nothing_else_is_started() -> None:
    started = {name for name, it in COMPOSE["services"].items() if "profiles" not in it}
    assert started == {*SERVERS, *SERVICES}
    assert {name: service["command"] for name, service in PROCESSES.items()} == {
        name: service.entry for name, service in SERVICES.items()
    }


def test_ports_are_published_on_loopback_with_unusual_numbers() -> None:
    published = {
        name: [
            re.fullmatch(r"127\.0\.0\.1:\$\{SAGAPROOF_HOST_PORT_\w+:-(\d+)\}:\d+", port)
            for port in service.get("ports", ())
        ]
        for name, service in COMPOSE["services"].items()
    }
    numbers = [int(port[1]) for ports in published.values() for port in ports if port]
    assert len(numbers) == sum(map(len, published.values())) == len(set(numbers))
    assert not USUAL.intersection(numbers)
    assert {name for name, ports in published.items() if ports} == {*SERVERS, *APIS}


@pytest.mark.parametrize("name", SERVICES)
def test_a_process_has_time_to_finish_and_comes_back(name: str) -> None:
    service = PROCESSES[name]
    assert int(service["stop_grace_period"].removesuffix("s")) > STOP_WITHIN_SECONDS + 2
    assert service["restart"] == "unless-stopped"
    assert service["init"] is True  # without it nothing in the container can kill the process
    assert service["depends_on"] == {name: {"condition": "service_healthy"} for name in SERVERS}


def test_every_process_has_its_role_and_a_throw_away_password() -> None:
    dsns = {
        name: service["environment"]["SAGAPROOF_POSTGRES_DSN"]
        for name, service in PROCESSES.items()
    }
    roles = {
        name: re.fullmatch(rf"postgresql://(\w+):{PASSWORD}@postgres:5432/sagaproof", dsn)
        for name, dsn in dsns.items()
    }
    assert {role[1] for role in roles.values() if role} == set(ROLES)
    assert PASSWORD == "throw-away"
    broker = COMPOSE["services"]["rabbitmq"]["environment"]
    assert broker["RABBITMQ_DEFAULT_USER"] == RABBITMQ_USER
    assert re.findall("PASS.*: (.*)", (ROOT / "compose.yaml").read_text()) == [PASSWORD] * 2


def test_api_keys_are_throw_away_and_the_ones_chaos_uses() -> None:
    given = {
        name: PROCESSES[api]["environment"][variable].split()
        for name, api, variable in (
            ("key", "door", "SAGAPROOF_DOOR_KEYS"),
            ("token", "operator", "SAGAPROOF_OPERATOR_TOKENS"),
        )
    }
    assert given == {
        "key": [f"dev:{DOOR_KEY}"],
        "token": [f"dev:operator:{OPERATOR_TOKEN}", f"dev-viewer:viewer:{PASSWORD}-viewer-token"],
    }


def test_what_the_servers_store_is_in_volumes_with_names() -> None:
    for name, path in (
        ("postgres", "/var/lib/postgresql/data"),
        ("rabbitmq", "/var/lib/rabbitmq"),
    ):
        assert f"{name}:{path}" in COMPOSE["services"][name]["volumes"]
        assert name in COMPOSE["volumes"]
    # A part of the node's name, and that of the path: another one would find nothing stored.
    assert COMPOSE["services"]["rabbitmq"]["hostname"] == "rabbitmq"


def test_the_roles_are_those_of_the_bootstrap() -> None:
    assert (ROOT / "deploy" / "roles.sql").read_text() == roles_sql()


def test_a_plan_becomes_processes_with_their_own_settings() -> None:
    plan = Plan(
        replicas={"payment": 2, "door": 2, "inventory": 0},
        settings={"step_timeout_seconds": "0.5"},
        entry={"payment": "tests.broken worker"},
    )
    base, ports = copy.deepcopy(BASE), Ports.free(plan)
    model = model_of(base, plan, ports, "the-owner")
    assert base == BASE
    services = model["services"]
    assert set(services) == {*SERVERS, *plan.processes}
    assert services["payment-2"]["command"] == ["tests.broken", "worker"]
    assert services["payment-2"]["working_dir"] == services["payment-2"]["volumes"][0]["target"]
    assert services["order"]["command"] == ["order_svc", "worker"]
    assert services["order"]["environment"] == {
        "A": "1",
        "SAGAPROOF_PROCESS": "order",
        "SAGAPROOF_STYLE": "orchestrated",
        "SAGAPROOF_STEP_TIMEOUT_SECONDS": "0.5",
    }
    assert model["networks"]["default"]["labels"] == {TETHER_LABEL: "the-owner"}

    endpoints = endpoints_of(ports, secrets_of(plan), Path("logs"))
    assert set(endpoints.http_urls) == set(plan.processes)
    published = [port["published"] for s in services.values() for port in s.get("ports", ())]
    assert (
        len(set(published)) == len(published) == 3 + len(plan.processes) + 3
    )  # three of them are APIs
    assert {url.rpartition("/")[2] for url in endpoints.metrics_urls.values()} == {"metrics"}
    assert len({*endpoints.metrics_urls.values()}) == len(plan.processes)
    assert endpoints.door_url.endswith(services["door"]["ports"][0]["published"])


def test_an_added_definition_is_found_by_its_readers() -> None:
    services = default_model(Plan(settings={"definitions": "trip.saga:TRIP"}))["services"]
    for name in ("orchestrator", "operator"):
        assert services[name]["working_dir"] == services[name]["volumes"][0]["target"]
    assert "working_dir" not in default_model(Plan())["services"]["orchestrator"]


def test_an_untethered_stack_has_no_owner() -> None:
    assert default_model(Plan())["networks"]["default"]["labels"] == {}


def test_a_proxied_plan_leads_every_process_by_a_line_of_its_own() -> None:
    base = copy.deepcopy(BASE)
    for name in SERVICES:
        base["services"][name]["environment"] = {
            "SAGAPROOF_POSTGRES_DSN": "postgresql://role:pw@postgres:5432/sagaproof",
            "SAGAPROOF_AMQP_URL": "amqp://user:pw@rabbitmq:5672/",
        }
    plan = Plan(proxied=True)
    ports = Ports.free(plan)
    model = model_of(base, plan, ports, None)
    given = {
        (name, url)
        for name in plan.processes
        for key, url in model["services"][name]["environment"].items()
        if key in ("SAGAPROOF_POSTGRES_DSN", "SAGAPROOF_AMQP_URL")
    }
    lines = [re.search(r"@proxy:(\d+)/", url) for _, url in given]
    assert all(lines)
    assert len({line[1] for line in lines if line}) == 2 * len(plan.processes)
    proxy = model["services"]["proxy"]
    specs = json.loads(proxy["command"][1])["lines"]
    assert {spec[0]: tuple(spec[3:]) for spec in specs}["payment>rabbitmq"] == ("rabbitmq", 5672)
    endpoints = endpoints_of(ports, secrets_of(plan), Path("logs"))
    assert endpoints.proxy == ("127.0.0.1", int(proxy["ports"][0]["published"]))


def test_an_added_service_has_a_role_of_its_own() -> None:
    base = copy.deepcopy(BASE)
    there = "postgresql://payment_svc:pw@postgres:5432/sagaproof"
    base["services"]["payment"]["environment"]["SAGAPROOF_POSTGRES_DSN"] = there
    target = "/docker-entrypoint-initdb.d/roles.sql"
    base["services"]["postgres"]["volumes"] = [{"source": "deploy/roles.sql", "target": target}]
    plan = Plan(services={"car": Service("trip.car", "car_hire")}, replicas={"car": 2})
    ports = Ports.free(plan)
    model = model_of(base, plan, ports, None, Path("/stack/roles.sql"))
    second = model["services"]["car-2"]
    assert second["command"] == ["trip.car"]
    assert second["working_dir"] == second["volumes"][0]["target"]  # it is not in the image
    environment = second["environment"]
    assert environment["SAGAPROOF_PROCESS"] == "car-2"
    assert environment["SAGAPROOF_POSTGRES_DSN"] == there.replace("payment_svc", "car_hire")
    assert model["services"]["postgres"]["volumes"][0]["source"] == "/stack/roles.sql"
    assert "create schema car_hire authorization car_hire;" in roles_sql(plan)
    assert set(endpoints_of(ports, secrets_of(plan), Path("logs")).service_dsns) == {
        *ROLES,
        "car_hire",
    }
