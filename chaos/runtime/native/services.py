"""The services of a native stack, and the proxy between them and the servers."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import partial
from urllib.parse import urlsplit

from chaos.runtime import APIS, Endpoints, Plan, proxy
from chaos.runtime.endpoints import Ports
from chaos.runtime.native.managed import Spec
from chaos.runtime.native.servers import plain_environment
from chaos.runtime.ports import HOST
from chaos.runtime.probes import service_is_ready
from chaos.runtime.stack import CHECKOUT, Stack

CHAOS = "chaos"  # our name at both APIs


def proxy_spec(stack: Stack, ports: Ports) -> Spec | None:
    """Return None where nothing is proxied."""
    if not ports.lines:
        return None
    to = {"postgres": ports.postgres, "rabbitmq": ports.amqp}
    lines = [
        proxy.LineSpec(name, HOST, port, HOST, to[name.rpartition(">")[2]])
        for name, port in ports.lines.items()
    ]
    control = (HOST, ports.proxy)
    return Spec(
        name="proxy",
        command=(sys.executable, "-m", *proxy.command_line(control, lines)),
        environment=plain_environment(stack.directory),
        directory=CHECKOUT,
        ports=(ports.proxy, *ports.lines.values()),
        answers=partial(proxy.answers, control),
    )


def service_specs(
    plan: Plan, endpoints: Endpoints, lines: Mapping[str, int] | None = None
) -> list[Spec]:
    return [_service_spec(plan, endpoints, name, lines or {}) for name in plan.processes]


def _service_spec(plan: Plan, endpoints: Endpoints, name: str, lines: Mapping[str, int]) -> Spec:
    service = plan.processes[name]

    def by_its_line(url: str, server: str) -> str:
        port = lines.get(proxy.line_name(name, server))
        return url.replace(f":{urlsplit(url).port}/", f":{port}/") if port else url

    url, dsn = endpoints.http_urls[name], endpoints.service_dsns[plan.all_services[service].role]
    port, health = (urlsplit(u).port or 0 for u in (url, endpoints.metrics_urls[name]))
    http = {"SAGAPROOF_HEALTH_PORT": str(health)}
    if service in APIS:
        api = f"SAGAPROOF_{service.upper()}"
        http |= {f"{api}_HOST": HOST, f"{api}_PORT": str(port)}
    if service == "door":
        http["SAGAPROOF_DOOR_KEYS"] = f"{CHAOS}:{endpoints.door_key}"
    if service == "operator":
        http["SAGAPROOF_OPERATOR_TOKENS"] = f"{CHAOS}:operator:{endpoints.operator_token}"
    return Spec(
        name=name,
        command=(sys.executable, "-m", *plan.command(service)),
        environment={
            # The plan alone sets up a service: no settings of the caller's.
            **{key: value for key, value in os.environ.items() if not key.startswith("SAGAPROOF_")},
            "PYTHONUNBUFFERED": "1",
            "SAGAPROOF_PROCESS": name,
            "SAGAPROOF_POSTGRES_DSN": by_its_line(dsn, "postgres"),
            "SAGAPROOF_AMQP_URL": by_its_line(endpoints.amqp_url, "rabbitmq"),
            **http,
            **plan.environment,
        },
        directory=CHECKOUT,
        ports=tuple({port, health}),
        answers=partial(service_is_ready, url),
    )
