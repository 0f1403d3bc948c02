"""Bringing stacks up and down: in containers (`docker`) or as plain processes (`native`).

Here: what a stack is asked to be (`Plan`), where its parts are found (`Endpoints`), how they fare,
and the choice of a runtime.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from pydantic import ConfigDict

if TYPE_CHECKING:
    from chaos.runtime.base import Runtime

SERVERS = ("postgres", "rabbitmq")


@dataclass(frozen=True)
class Service:
    """A program for `python -m`, and its database role, which has a schema of the same name."""

    entry: str
    role: str


SERVICES: Mapping[str, Service] = {
    "orchestrator": Service("orchestrator", "orchestrator"),
    "order": Service("order_svc worker", "order_svc"),
    "door": Service("order_svc door", "order_svc"),
    "operator": Service("orchestrator operator", "orchestrator"),
    "payment": Service("payment_svc", "payment_svc"),
    "inventory": Service("inventory_svc", "inventory_svc"),
}
APIS = ("door", "operator")  # they serve /live and /ready on the port of their API
ONLY_ORCHESTRATED = ("orchestrator", "operator")

Style = Literal["orchestrated", "choreographed"]
STYLES: tuple[Style, ...] = get_args(Style)

_WORD = re.compile("[a-z][a-z0-9_]{0,39}")

Progress = Callable[[str], None]


class StackError(Exception):
    """A mistake in a stack, or in a request about it, with the remedy."""


def silent(_: str) -> None:
    """Ignore progress."""


@dataclass(frozen=True)
class Plan:
    """The plan of a stack: one process of each service, unless set otherwise.

    `replicas` counts processes of a service, 0 for none. `settings` go to every service
    process: {"step_timeout_seconds": "0.5"}, `postgres` to the server (native only). `entry`
    replaces what `python -m` runs. `proxied`: every process reaches each server through a line
    of its own in a proxy (chaos/runtime/proxy.py), which is the stack's process `proxy`.
    `services` run besides those of this repository, each in a role and schema of its own.
    """

    replicas: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    entry: Mapping[str, str] = field(default_factory=dict)
    postgres: Mapping[str, str] = field(default_factory=dict)
    proxied: bool = False
    services: Mapping[str, Service] = field(default_factory=dict)
    style: Style = "orchestrated"

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")  # of a plan in a file

    def __post_init__(self) -> None:
        for name, service in self.services.items():
            if name in (*SERVICES, *SERVERS) or not _WORD.fullmatch(name):
                raise StackError(f"service {name!r}: give it a name of its own, of a-z, 0-9 and _")
            if not _WORD.fullmatch(service.role):
                raise StackError(f"service {name}: its role {service.role!r} is no word of a-z_")
        for name in (*self.replicas, *self.entry):
            if name not in self.all_services:
                there = ", ".join(self.all_services)
                raise StackError(f"no service {name!r}: choose from {there}")
        for name, count in self.replicas.items():
            if count < 0:
                raise StackError(f"{name}={count}: a number of replicas is 0 or more")

    @property
    def all_services(self) -> dict[str, Service]:
        return {**SERVICES, **self.services}

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of all services, whether they run or not."""
        return tuple(dict.fromkeys(service.role for service in self.all_services.values()))

    @property
    def processes(self) -> dict[str, str]:
        """Every service process by name (payment, payment-2 ...), and its service."""
        return {
            service if number == 1 else f"{service}-{number}": service
            for service in self.all_services
            if not (self.style == "choreographed" and service in ONLY_ORCHESTRATED)
            for number in range(1, self.replicas.get(service, 1) + 1)
        }

    def command(self, service: str) -> list[str]:
        """Return the arguments of `python -m`."""
        return self.entry.get(service, self.all_services[service].entry).split()

    @property
    def environment(self) -> dict[str, str]:
        """The settings, as every service process reads them."""
        settings = {"style": self.style, **self.settings}
        return {f"SAGAPROOF_{name.upper()}": value for name, value in settings.items()}


EVERYTHING = Plan()
SERVERS_ONLY = Plan(replicas=dict.fromkeys(SERVICES, 0))


@dataclass(frozen=True)
class Endpoints:
    """The addresses of a stack seen from outside, with passwords."""

    superuser_dsn: str
    judge_dsn: str
    service_dsns: Mapping[str, str]  # by role
    amqp_url: str
    management_url: str
    http_urls: Mapping[str, str]  # by process: /live and /ready; those of APIS are the APIs
    metrics_urls: Mapping[str, str]  # by process
    log_dir: Path
    door_key: str
    operator_token: str
    proxy: tuple[str, int] | None = None  # the proxy's control port, if the stack is proxied

    @property
    def door_url(self) -> str:
        if "door" not in self.http_urls:
            raise StackError("this stack has no door: it was brought up without one")
        return self.http_urls["door"]

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which `saga` and scripts find the APIs and the broker."""
        secrets = {"door": ("KEY", self.door_key), "operator": ("TOKEN", self.operator_token)}
        found = {}
        for api, (kind, secret) in secrets.items():
            if api in self.http_urls:
                found[f"SAGAPROOF_{api.upper()}_URL"] = self.http_urls[api]
                found[f"SAGAPROOF_{api.upper()}_{kind}"] = secret
        return {**found, "SAGAPROOF_AMQP_URL": self.amqp_url}

    @property
    def door_headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.door_key}"}


State = Literal["running", "paused", "restarting", "stopped"]


@dataclass(frozen=True)
class ProcessStatus:
    """The state of one process; `ready` comes from the process itself."""

    name: str
    state: State
    ready: bool
    pid: int | None
    restarts: int
    last_exit: str | None  # "status 1", "signal 9"


def choose(kind: str | None = None, name: str | None = None) -> Runtime:
    """Return the runtime of that kind for the stack of that name (default: this checkout's)."""
    return _runtimes(kind)[0](name)


def names(kind: str | None = None) -> list[str]:
    """Return every stack of that kind, be it up or what one left behind."""
    return _runtimes(kind)[1]()


def _runtimes(kind: str | None) -> tuple[Callable[[str | None], Runtime], Callable[[], list[str]]]:
    """Choose by $RUNTIME, else Docker where an engine answers. Imports only what is needed."""
    from chaos.runtime.docker import engine
    from chaos.runtime.docker import runtime as docker
    from chaos.runtime.native import runtime as native

    match kind or os.environ.get("RUNTIME") or ("docker" if engine.engine_answers() else "native"):
        case "docker":
            return docker.DockerRuntime, docker.all_names
        case "native":
            return native.NativeRuntime, native.all_names
        case other:
            raise StackError(f"no runtime {other!r}: choose docker or native")
