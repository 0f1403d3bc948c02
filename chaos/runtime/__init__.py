"""What a runtime is: the one way chaos starts, breaks, watches and stops the system.

Owns: the names of the processes, what a stack is asked to be (`Plan`), where it is found
(`Endpoints`) and how it fares (`ProcessStatus`). Must not know: how any runtime does it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Protocol, get_args

from pydantic import ConfigDict

SERVERS = ("postgres", "rabbitmq")


@dataclass(frozen=True)
class Service:
    """What `python -m` runs for it, and the database role it has, with a schema of that name."""

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

Style = Literal["orchestrated", "choreographed"]
STYLES: tuple[Style, ...] = get_args(Style)

# Who is not there in the choreographed style.
ONLY_ORCHESTRATED = ("orchestrator", "operator")

# Those that people ask, and that serve /live and /ready on the same port.
APIS = ("door", "operator")

_WORD = re.compile("[a-z][a-z0-9_]{0,39}")

Progress = Callable[[str], None]


class StackError(Exception):
    """What is wrong with a stack, or with what was asked of it, and the remedy."""


def silent(_: str) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class Plan:
    """What a stack is to be: one process of each service, unless told otherwise.

    `replicas` counts processes of a service, 0 for none. `settings` go to every service
    process: {"step_timeout_seconds": "0.5"}, `postgres` to the server (native only). `entry`
    replaces what `python -m` runs. `proxied`: every process reaches each server by a line of its
    own through a proxy (chaos/runtime/proxy.py), which is the stack's process `proxy`. `services`
    are run besides those of this repository, each in a role and schema of its own. `style`:
    who says what is next.
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
        """Of all services, whether they run or not."""
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

    @property
    def environment(self) -> dict[str, str]:
        """What its settings are to every service process."""
        settings = {"style": self.style, **self.settings}
        return {f"SAGAPROOF_{name.upper()}": value for name, value in settings.items()}


EVERYTHING = Plan()
SERVERS_ONLY = Plan(replicas=dict.fromkeys(SERVICES, 0))


@dataclass(frozen=True)
class Endpoints:
    """Where the parts of a stack are found from outside. Holds passwords."""

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
    proxy: tuple[str, int] | None = None  # where it is told what to do; None: nothing is proxied

    @property
    def door_url(self) -> str:
        if "door" not in self.http_urls:
            raise StackError("this stack has no door: it was brought up without one")
        return self.http_urls["door"]

    @property
    def environment(self) -> dict[str, str]:
        """What `saga` and curl need to ask the APIs, and a door of your own to reach the broker."""
        secrets = {"door": ("KEY", self.door_key), "operator": ("TOKEN", self.operator_token)}
        asked = [(api, *secrets[api]) for api in APIS if api in self.http_urls]
        urls = {f"SAGAPROOF_{api.upper()}_URL": self.http_urls[api] for api, *_ in asked}
        keys = {f"SAGAPROOF_{api.upper()}_{kind}": secret for api, kind, secret in asked}
        return {**urls, **keys, "SAGAPROOF_AMQP_URL": self.amqp_url}

    @property
    def door_headers(self) -> dict[str, str]:
        """What the door must be shown."""
        return {"Authorization": f"Bearer {self.door_key}"}


State = Literal["running", "paused", "restarting", "stopped"]


@dataclass(frozen=True)
class ProcessStatus:
    """How one process fares. `ready` is asked of the process itself, at that moment."""

    name: str
    state: State
    ready: bool
    pid: int | None
    restarts: int
    last_exit: str | None  # "status 1", "signal 9"


class Runtime(Protocol):
    """One stack: two servers and the service processes. Process names: `payment`, `payment-2`,
    `postgres` ... Everything raises StackError when it cannot do what it says."""

    @property
    def name(self) -> str: ...

    def up(
        self, plan: Plan = EVERYTHING, *, tethered: bool = False, progress: Progress = silent
    ) -> Endpoints:
        """Start everything and return when all is ready; clean up if that fails.

        A tethered stack ends with the process that brought it up, however that dies.
        """

    def down(self, *, keep_logs: bool = False) -> None:
        """Stop everything and remove what it left. Nothing to do is not an error."""

    def endpoints(self) -> Endpoints: ...

    def status(self) -> Sequence[ProcessStatus]: ...

    def logs(self, process: str) -> Iterator[str]:
        """Its log from the beginning, line by line, over all its restarts."""

    def start(self, process: str) -> None:
        """Start a stopped process, or a restarting one at once."""

    def stop(self, process: str) -> None:
        """SIGTERM, and gone on return. It stays down until started."""

    def kill(self, process: str) -> None:
        """SIGKILL, and gone on return. It is restarted, with backoff."""

    def pause(self, process: str) -> None:
        """SIGSTOP: it keeps its connections and locks, and does nothing."""

    def resume(self, process: str) -> None:
        """SIGCONT."""

    def rabbitmqctl(self, *arguments: str) -> str:
        """Standard output of rabbitmqctl on the broker's machine; OSError if it fails."""


def down_but_logs(runtime: Runtime, logs: Path, directory: Path) -> None:
    """Nothing is left of the stack but its logs, and those go to the directory."""
    runtime.down(keep_logs=True)
    if logs.exists():
        shutil.copytree(logs, directory, dirs_exist_ok=True)
    runtime.down()


def choose(kind: str | None = None, name: str | None = None) -> Runtime:
    """The runtime of that kind, for the stack of that name (default: this checkout's own)."""
    return _runtimes(kind)[0](name)


def names(kind: str | None = None) -> list[str]:
    """Every stack of that kind there is, be it up or what one left behind."""
    return _runtimes(kind)[1]()


def _runtimes(kind: str | None) -> tuple[Callable[[str | None], Runtime], Callable[[], list[str]]]:
    """By default what the environment asks for, else Docker where an engine answers."""
    from chaos.runtime import stack  # they import this module
    from chaos.runtime.docker import engine
    from chaos.runtime.docker import runtime as docker
    from chaos.runtime.native import runtime as native

    match kind or os.environ.get("RUNTIME") or ("docker" if engine.engine_answers() else "native"):
        case "docker":
            return docker.DockerRuntime, docker.all_names
        case "native":
            return native.NativeRuntime, stack.all_names
        case other:
            raise StackError(f"no runtime {other!r}: choose docker or native")
