"""How the services of a native stack are run, and the proxy between them and the servers.

Owns: their command lines and environments. Must not know: when they are started, and what
happens when they die.
"""

from __future__ import annotations

import http.client
import os
import sys
from collections.abc import Mapping
from functools import partial
from urllib.parse import urlsplit

from chaos.runtime import APIS, Endpoints, Plan, proxy
from chaos.runtime.endpoints import Ports
from chaos.runtime.native.managed import Spec
from chaos.runtime.native.servers import PROBE_SECONDS, plain_environment
from chaos.runtime.ports import HOST
from chaos.runtime.proxy import line_name
from chaos.runtime.stack import CHECKOUT, Stack

CHAOS = "chaos"  # as both APIs know whoever uses the stack


def proxy_spec(stack: Stack, ports: Ports) -> Spec | None:
    """None where nothing is proxied."""
    if ports.proxy is None:
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
    its = plan.all_services[service]

    def by_its_line(url: str, server: str) -> str:
        port = lines.get(line_name(name, server))
        return url.replace(f":{urlsplit(url).port}/", f":{port}/") if port else url

    url = endpoints.http_urls[name]
    port, health = (urlsplit(u).port or 0 for u in (url, endpoints.metrics_urls[name]))
    api = f"SAGAPROOF_{service.upper()}"
    http = {"SAGAPROOF_HEALTH_PORT": str(health)}
    if service in APIS:
        http |= {f"{api}_HOST": HOST, f"{api}_PORT": str(port), **_who_may_ask(service, endpoints)}
    return Spec(
        name=name,
        command=(sys.executable, "-m", *plan.entry.get(service, its.entry).split()),
        environment={
            # What a service is set to, the plan says, and nothing of the caller's.
            **{key: value for key, value in os.environ.items() if not key.startswith("SAGAPROOF_")},
            "PYTHONUNBUFFERED": "1",
            "SAGAPROOF_PROCESS": name,
            "SAGAPROOF_POSTGRES_DSN": by_its_line(endpoints.service_dsns[its.role], "postgres"),
            "SAGAPROOF_AMQP_URL": by_its_line(endpoints.amqp_url, "rabbitmq"),
            **http,
            **plan.environment,
        },
        directory=CHECKOUT,
        ports=tuple({port, health}),
        answers=partial(_ready, url),
    )


def _who_may_ask(api: str, endpoints: Endpoints) -> dict[str, str]:
    if api == "door":
        return {"SAGAPROOF_DOOR_KEYS": f"{CHAOS}:{endpoints.door_key}"}
    return {"SAGAPROOF_OPERATOR_TOKENS": f"{CHAOS}:operator:{endpoints.operator_token}"}


def _ready(url: str) -> bool:
    address = urlsplit(url)
    connection = http.client.HTTPConnection(
        address.hostname or HOST, address.port, timeout=PROBE_SECONDS
    )
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
