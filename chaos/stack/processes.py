"""The services' processes: how they fare, and faults of them that are recorded in the history."""

from __future__ import annotations

import json
from typing import Any

import httpx

from chaos.judge.history import Fault, History
from chaos.runtime import Endpoints, Plan, ProcessStatus
from chaos.runtime.base import Runtime
from chaos.waiting import until


class Processes:
    """The processes of one stack, by name: payment, payment-2, ..."""

    def __init__(
        self, plan: Plan, runtime: Runtime, endpoints: Endpoints, history: History
    ) -> None:
        self._plan = plan
        self._runtime = runtime
        self._endpoints = endpoints
        self._history = history

    @property
    def names(self) -> list[str]:
        return list(self._plan.processes)

    def replicas(self, service: str) -> list[str]:
        return [name for name, of in self._plan.processes.items() if of == service]

    def record(self, what: str, target: str, *, healed: bool) -> Fault:
        """Record a fault at the moment it begins or is over."""
        fault = Fault(what=what, target=target, healed=healed)
        self._history.record(fault)
        return fault

    def kill(self, process: str) -> None:
        """SIGKILL; the runtime restarts it."""
        self._runtime.kill(process)
        self.record("SIGKILL", process, healed=False)

    def stop(self, process: str) -> ProcessStatus:
        """SIGTERM, and gone on return."""
        self._runtime.stop(process)
        self.record("SIGTERM", process, healed=False)
        return self._status(process)

    def start(self, process: str) -> None:
        """Start it now, not after the runtime's backoff, and wait until it is ready."""
        self.revive(process)
        self.record("down", process, healed=True)

    def revive(self, process: str) -> None:
        """Start it now and wait until it is ready, off the record."""
        self._runtime.start(process)
        until(lambda: self.is_ready(process), f"{process} is ready")

    def deaths(self, process: str) -> int:
        return self._status(process).restarts

    def is_running(self, process: str) -> bool:
        return self._status(process).state == "running"

    def is_ready(self, process: str) -> bool:
        """Ask the process itself; for a server ask the runtime, which is slower."""
        url = self._endpoints.http_urls.get(process)
        if url is None:
            return self._status(process).ready
        try:
            return httpx.get(f"{url}/ready", trust_env=False).is_success
        except httpx.TransportError:
            return False

    def logged(self, service: str, event: str) -> list[dict[str, Any]]:
        """Return the log lines of all replicas of a service, over all their restarts."""
        return [
            json.loads(line)
            for process in self.replicas(service)
            for line in self._runtime.logs(process)
            if f'"event": "{event}"' in line
        ]

    def _status(self, process: str) -> ProcessStatus:
        return next(status for status in self._runtime.status() if status.name == process)
