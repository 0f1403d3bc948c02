"""Faults of processes, servers and connections: each is injected, and healed again."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar
from urllib.parse import quote

import httpx
import psycopg

from chaos.runtime import SERVERS
from chaos.runtime.docker.runtime import DockerRuntime
from chaos.runtime.proxy import Mode, ask, line_name
from chaos.stack.system import System
from chaos.waiting import ExperimentError, until

NATIVE, DOCKER = "native", "docker"
BOTH = frozenset((NATIVE, DOCKER))
PORT_MAPPER = "epmd"  # a native RabbitMQ's
AGAIN_SECONDS = 15.0  # for a process to be there again after it was killed


@dataclass
class Nemesis(ABC):
    """A fault of `target`, which it can heal."""

    target: str

    says: ClassVar[str]
    runtimes: ClassVar[frozenset[str]] = BOTH

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def where(self) -> str:
        """The name that distinguishes it from every other fault of its kind."""
        return self.target

    @property
    def sentence(self) -> str:
        return self.says.format(**vars(self))

    @property
    def explained(self) -> frozenset[tuple[str, str]]:
        """The (queue, reason) of the dead letters it causes."""
        return frozenset()

    @abstractmethod
    def inject(self, system: System) -> None: ...

    def heal(self, system: System) -> None:
        """Restore everything and wait until it is ready; here for a process."""
        system.processes.revive(self.target)


@contextmanager
def struck(system: System, *faults: Nemesis) -> Iterator[None]:
    """Break things while the block runs, and heal them also if it fails; both are recorded."""
    broken: list[Nemesis] = []
    try:
        for fault in faults:
            system.processes.record(fault.name, fault.where, healed=False)
            broken.append(fault)
            fault.inject(system)
        yield
    finally:
        for fault in broken:
            fault.heal(system)
            system.processes.record(fault.name, fault.where, healed=True)


def hold(seconds: float) -> None:
    """Sleep for a fault's duration, which is part of the experiment."""
    time.sleep(seconds)


# --- processes and servers -----------------------------------------------------------------


class Kill(Nemesis):
    """SIGKILL, also of a server: Postgres ends as by an immediate shutdown, or worse."""

    says = "SIGKILL to {target}"

    def inject(self, system: System) -> None:
        system.runtime.kill(self.target)


@dataclass
class KillRepeatedly(Kill):
    """Several kills; more than the solo tries of a message would make it poison."""

    times: int = 3
    says = "SIGKILL to {target}, {times} times, each time as soon as it is ready again"

    def heal(self, system: System) -> None:
        for _ in range(self.times - 1):
            super().heal(system)
            system.runtime.kill(self.target)
        super().heal(system)


@dataclass
class KillInRecovery(Kill):
    """A kill, and more while the process is starting, before it is ready."""

    times: int = 2
    says = "SIGKILL to {target}, and {times} times more while it is starting"

    def heal(self, system: System) -> None:
        for _ in range(self.times):
            system.runtime.start(self.target)
            until(lambda: system.processes.is_running(self.target), "it runs again", AGAIN_SECONDS)
            system.runtime.kill(self.target)
        super().heal(system)


class Freeze(Nemesis):
    """A zombie, which returns with its connections, its locks and its unfinished work."""

    says = "SIGSTOP to {target} for longer than every timeout, then SIGCONT"

    def inject(self, system: System) -> None:
        system.runtime.pause(self.target)

    def heal(self, system: System) -> None:
        system.runtime.resume(self.target)
        super().heal(system)


class Unreachable(Nemesis):
    """A shutdown that lasts until it is healed."""

    says = "{target} is away for longer than all attempts"

    def inject(self, system: System) -> None:
        system.runtime.stop(self.target)


@dataclass
class FullStop(Nemesis):
    """A power cut at the end of a shift: all is shut down, and what is stored stays.

    A process with the same pid as before was never gone, and proves nothing.
    """

    target: str = "everything"
    says = "every process and both servers are stopped, and started again with what they stored"
    _before: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    def inject(self, system: System) -> None:
        self._before = _pids(system)
        for process in (*system.processes.names, *reversed(self._servers)):
            system.runtime.stop(process)
        if left := _pids(system):
            raise ExperimentError(f"still there after a full stop: {', '.join(left)}")

    def heal(self, system: System) -> None:
        for server in self._servers:
            system.processes.revive(server)
        for process in system.processes.names:
            system.runtime.start(process)
        for process in system.processes.names:
            system.processes.revive(process)
        after = _pids(system)
        if after.keys() != self._before.keys() or after.items() & self._before.items():
            raise ExperimentError(f"not every process was gone: {self._before}, then {after}")

    @property
    def _servers(self) -> list[str]:
        """The servers, in the order in which they start."""
        return [name for name in (PORT_MAPPER, *SERVERS) if name in self._before]


def _pids(system: System) -> dict[str, int]:
    return {s.name: s.pid for s in system.runtime.status() if s.pid is not None}


# --- connections ---------------------------------------------------------------------------


class KillBackends(Nemesis):
    """The end of a role's Postgres connections; it may reconnect at once."""

    says = "every Postgres backend of {target} is terminated"

    def inject(self, system: System) -> None:
        with psycopg.connect(system.endpoints.superuser_dsn, autocommit=True) as server:
            server.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where usename = %s",
                (self.target,),
            )

    def heal(self, system: System) -> None:
        """There is nothing to restore."""


class ExhaustPool(KillBackends):
    """A role that may have no connection to Postgres."""

    says = "{target} gets no connection to Postgres"

    def inject(self, system: System) -> None:
        self._limit(system, 0)
        super().inject(system)

    def heal(self, system: System) -> None:
        self._limit(system, -1)

    def _limit(self, system: System, connections: int) -> None:
        with psycopg.connect(system.endpoints.superuser_dsn, autocommit=True) as server:
            server.execute(f"alter role {self.target} connection limit {connections}".encode())


class CloseConnections(Nemesis):
    """The end of all services' connections, by a list of the broker's up to a second old."""

    says = "the broker closes the connections of all services"

    def inject(self, system: System) -> None:
        url = system.endpoints.management_url
        services = set(system.processes.names)
        with httpx.Client(base_url=url, trust_env=False, timeout=AGAIN_SECONDS) as api:

            def ours() -> list[str]:
                return [
                    found["name"]
                    for found in api.get("/api/connections").raise_for_status().json()
                    if found.get("client_properties", {}).get("connection_name") in services
                ]

            for name in until(ours, "the broker lists the services' connections", AGAIN_SECONDS):
                api.delete(f"/api/connections/{quote(name, safe='')}")

    def heal(self, system: System) -> None:
        """There is nothing to restore."""


@dataclass
class _Line(Nemesis):
    """The way of one process to one server, in the proxy."""

    server: str
    mode: ClassVar[Mode]
    delay_seconds: ClassVar[float] = 0.0

    @property
    def where(self) -> str:
        return line_name(self.target, self.server)

    def inject(self, system: System) -> None:
        self._turn(system, self.mode)

    def heal(self, system: System) -> None:
        self._turn(system, Mode.PASS)
        super().heal(system)

    def _turn(self, system: System, mode: Mode) -> None:
        if system.endpoints.proxy is None:
            raise ExperimentError(f"{self.name} needs a stack with a proxy")
        ask(system.endpoints.proxy, turn={self.where: mode}, delay_seconds=self.delay_seconds)


class CutLine(_Line):
    says = "the network between {target} and {server} is cut"
    mode = Mode.CUT


class HalfOpen(_Line):
    says = "connections of {target} to {server} stay open and carry nothing"
    mode = Mode.HALF_OPEN


class Unconfirmed(_Line):
    says = "what {target} sends {server} arrives, no answer comes back, then the connection is cut"
    mode = Mode.DEAF


class Slow(_Line):
    says = "every chunk between {target} and {server} is 0.1 s late"
    mode = Mode.SLOW
    delay_seconds = 0.1


class Disconnect(Nemesis):
    """The pulled cable; only containers have one."""

    says = "the container of {target} is taken off its network"
    runtimes = frozenset((DOCKER,))

    def inject(self, system: System) -> None:
        self._docker(system).disconnect(self.target)

    def heal(self, system: System) -> None:
        self._docker(system).connect(self.target)
        super().heal(system)

    def _docker(self, system: System) -> DockerRuntime:
        if not isinstance(system.runtime, DockerRuntime):
            raise ExperimentError(f"{self.name} is for containers")
        return system.runtime
