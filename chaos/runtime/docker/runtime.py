"""The Docker runtime: the stack of compose.yaml, as a project of its own, on free ports."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from chaos.runtime import (
    EVERYTHING,
    SERVERS,
    Endpoints,
    Plan,
    ProcessStatus,
    Progress,
    StackError,
    proxy,
    silent,
)
from chaos.runtime.base import EXITS_AT_START, Runtime, log_tail
from chaos.runtime.docker.compose import (
    PROXY,
    TETHER_LABEL,
    Model,
    model_of,
    roles_sql,
    secrets_of,
)
from chaos.runtime.docker.engine import (
    PROJECT_LABEL,
    REMOVE_SCRIPT,
    Container,
    docker,
    engine_answers,
    log_of,
    remove_project,
    run,
)
from chaos.runtime.endpoints import Ports, endpoints_of
from chaos.runtime.probes import postgres_answers, rabbitmq_answers, service_is_ready
from chaos.runtime.processes import identity
from chaos.runtime.stack import CHECKOUT, KEEP, Stack, base_directory, default_name
from chaos.waiting import poll

PROJECT_PREFIX = "sagaproof-"

BUILD_SECONDS = 900.0
UP_SECONDS = 300.0
READY_WITHIN_SECONDS = 120.0
DIES_WITHIN_SECONDS = 10.0
BUSY_SECONDS = 60.0
POLL_SECONDS = 0.2

# Reads the pipe whose other end `up` holds. If that ends before it said "keep", so does the stack.
TETHER_SCRIPT = f"""
exec 3<&0
{{ read -r word <&3; [ "$word" = keep ] || {{ {REMOVE_SCRIPT} rm -rf "$2"; }} }} >/dev/null 2>&1 &
"""

# Kills all but process 1, which then ends too: what Docker puts there (`init: true`) ends with its
# child. `docker kill` would not do: Docker does not restart what it was asked to end.
KILL_SCRIPT = "kill -9 -1"


def all_names() -> list[str]:
    return DockerStack("any").names()


class DockerStack(Stack):
    """The directory of a stack in containers; a native stack may have the same name."""

    @property
    def directory(self) -> Path:
        base = base_directory()
        return base.with_name(f"{base.name}-docker") / self.name.lower()

    @property
    def project(self) -> str:
        return f"{PROJECT_PREFIX}{self.name.lower()}"  # Compose allows no capitals


class DockerRuntime(Runtime):
    """Commands to Docker and Compose."""

    def __init__(self, name: str | None = None) -> None:
        stack = DockerStack(name or default_name())
        super().__init__(stack)
        self._project = stack.project

    def up(
        self, plan: Plan = EVERYTHING, *, tethered: bool = False, progress: Progress = silent
    ) -> Endpoints:
        if not engine_answers():
            raise StackError("no Docker engine with Compose answers: start it, or RUNTIME=native")
        if plan.postgres:
            raise StackError("settings of Postgres are for native stacks: RUNTIME=native")
        _sweep(progress)
        lock = self._claim()
        try:
            self._hold_tether()
            endpoints = self._start(plan, tethered, progress)
            if not tethered:
                self._drop_tether(KEEP)
        except BaseException:  # an interrupt too
            self._remove(keep_logs=False)
            raise
        finally:
            os.close(lock)
        return endpoints

    def down(self, *, keep_logs: bool = False) -> None:
        self._stack.create()
        lock = self._stack.take_within(BUSY_SECONDS)
        if lock is None:
            raise self._is_busy()
        try:
            self._remove(keep_logs=keep_logs)
        finally:
            os.close(lock)
        _sweep(silent)

    def status(self) -> list[ProcessStatus]:
        endpoints, containers = self.endpoints(), self._containers()
        with ThreadPoolExecutor(len(containers) or 1) as threads:
            answers = threads.map(lambda c: _ready(c, endpoints), containers)
        return [
            ProcessStatus(c.process, c.state, ready, c.pid or None, c.restarts, c.last_exit)
            for c, ready in zip(containers, answers, strict=True)
        ]

    def logs(self, process: str) -> Iterator[str]:
        if self._stack.log(process).exists():  # kept by `down`
            return self._saved_log(process)
        return log_of(self._container(process))

    def start(self, process: str) -> None:
        container = self._container(process)
        if container.state == "stopped":
            docker("start", container.id)
        elif container.state == "restarting":
            docker("restart", container.id)  # for `start` it runs already

    def stop(self, process: str) -> None:
        docker("stop", self._container(process).id)

    def kill(self, process: str) -> None:
        container = self._container(process)
        if container.state == "paused":  # nothing can be run in it
            docker("kill", container.id)
            docker("start", container.id)
            return
        if container.state != "running":
            raise StackError(f"{process} has no process at the moment: it is {container.state}")
        run("docker", "exec", container.id, "sh", "-c", KILL_SCRIPT)  # ends with the container
        gone = poll(
            lambda: self._container(process).pid != container.pid, DIES_WITHIN_SECONDS, POLL_SECONDS
        )
        if not gone:
            raise StackError(f"{process} was killed and is still there")

    def pause(self, process: str) -> None:
        docker("pause", self._container(process).id)

    def resume(self, process: str) -> None:
        docker("unpause", self._container(process).id)

    def disconnect(self, process: str) -> None:
        """Take a container off its network, also from outside, until it is connected again."""
        docker("network", "disconnect", self._network, self._container(process).id)

    def connect(self, process: str) -> None:
        container = self._container(process)
        docker("network", "connect", "--alias", process, self._network, container.id)

    @property
    def _network(self) -> str:
        of_it = ("--filter", f"label={PROJECT_LABEL}={self._project}", "--format", "{{.Name}}")
        return docker("network", "ls", *of_it).strip()

    def rabbitmqctl(self, *arguments: str) -> str:
        done = run("docker", "exec", self._container("rabbitmq").id, "rabbitmqctl", *arguments)
        if done.returncode != 0:
            raise OSError(f"rabbitmqctl {arguments[:1]}: {done.stderr.strip()[-400:]}")
        return done.stdout

    # Starting

    def _claim(self) -> int:
        self._stack.create()
        lock = self._stack.take()
        if lock is None:
            raise self._is_busy()
        if self._containers():
            os.close(lock)
            raise self._is_up_already()
        return lock

    def _start(self, plan: Plan, tethered: bool, progress: Progress) -> Endpoints:
        self._prepare(plan)
        compose_file = ("-f", str(CHECKOUT / "compose.yaml"))
        if plan.processes:
            progress("building the image")
            self._compose(*compose_file, "build", "--quiet", seconds=BUILD_SECONDS)
        base = json.loads(self._compose(*compose_file, "config", "--format", "json"))
        roles_file = self._stack.directory / "roles.sql"
        roles_file.write_text(roles_sql(plan))
        roles_file.chmod(0o644)  # Postgres reads it as a user of its own
        ports = Ports.free(plan)
        model = model_of(base, plan, ports, _owner() if tethered else None, roles_file)
        progress(f"starting {', '.join(model['services'])}")
        self._compose(
            "-f", "-", "up", "--detach", "--no-build", "--quiet-pull",
            model=model, seconds=UP_SECONDS,
        )  # fmt: skip
        endpoints = endpoints_of(ports, secrets_of(plan), self._stack.logs)
        self._stack.write_endpoints(endpoints)
        self._wait_until_ready(progress)
        return endpoints

    def _wait_until_ready(self, progress: Progress) -> None:
        deadline = time.monotonic() + READY_WITHIN_SECONDS
        shown: list[str] = []
        while waiting := [status for status in self.status() if not status.ready]:
            for status in waiting:
                if status.restarts >= EXITS_AT_START or time.monotonic() > deadline:
                    tail = log_tail([*self.logs(status.name)])
                    raise StackError(f"{status.name} does not get ready; {tail}")
            if shown != (shown := [status.name for status in waiting]):
                progress(f"waiting for {', '.join(shown)}")
            time.sleep(POLL_SECONDS)

    def _hold_tether(self) -> None:
        far_end, self._tether = os.pipe()
        try:
            subprocess.run(
                ["sh", "-c", TETHER_SCRIPT, "tether", self._project, str(self._stack.directory)],
                cwd="/", stdin=far_end, start_new_session=True, check=True,
            )  # fmt: skip
        finally:
            os.close(far_end)

    # Ending

    def _remove(self, *, keep_logs: bool) -> None:
        """Remove everything, as the holder of the lock. Servers need not tidy their data."""
        containers = self._containers()
        if keep_logs and self._stack.logs.exists():
            for container in containers:
                with self._stack.log(container.process).open("w") as file:
                    file.writelines(f"{line}\n" for line in log_of(container))
        if services := [c.id for c in containers if c.process not in SERVERS]:
            docker("stop", *services)
        remove_project(self._project)
        self._drop_tether(KEEP)  # or the tether would remove the next stack's directory
        self._stack.remove(keep_logs=keep_logs)

    # Asking

    def _container(self, process: str) -> Container:
        containers = {container.process: container for container in self._containers()}
        if not containers:
            raise self._not_up()
        if process not in containers:
            raise StackError(f"no process {process!r}: choose from {', '.join(containers)}")
        return containers[process]

    def _containers(self) -> list[Container]:
        ids = docker("ps", "-aq", "--filter", f"label={PROJECT_LABEL}={self._project}").split()
        if not ids:
            return []
        containers = [Container.of(found) for found in json.loads(docker("inspect", *ids))]
        return sorted(containers, key=lambda c: (c.process not in SERVERS, c.process))

    def _compose(self, *arguments: str, model: Model | None = None, seconds: float = 60) -> str:
        environment = {**os.environ, "SAGAPROOF_IMAGE": f"sagaproof:{default_name().lower()}"}
        return docker(
            "compose", "--project-name", self._project, *arguments,
            given=json.dumps(model) if model else None, environment=environment, seconds=seconds,
        )  # fmt: skip


# The owner of a tethered stack is written on its network, the first part that is made and the last
# that goes, so that what a crash of both owner and tether left differs from what is in use.


def _owner() -> str:
    return f"{os.readlink('/proc/self/ns/pid')} {os.getpid()} {identity(os.getpid())}"


def _is_gone(owner: str) -> bool:
    """Return False also for a process of another machine or container, which we cannot see."""
    namespace, pid, known = owner.split()
    return namespace == os.readlink("/proc/self/ns/pid") and identity(int(pid)) != known


def _sweep(progress: Progress) -> None:
    """Remove the tethered stacks whose owners are gone."""
    labels = f'{{{{.Label "{PROJECT_LABEL}"}}}}\t{{{{.Label "{TETHER_LABEL}"}}}}'
    found = docker("network", "ls", "--filter", f"label={TETHER_LABEL}", "--format", labels)
    for line in found.splitlines():
        project, owner = line.split("\t")
        if not _is_gone(owner):
            continue
        progress(f"sweeping {project}, which a crash left")
        remove_project(project)
        stack = DockerStack(project.removeprefix(PROJECT_PREFIX))
        if stack.directory.exists():
            stack.remove(keep_logs=False)


def _ready(container: Container, endpoints: Endpoints) -> bool:
    if container.state != "running":
        return False
    match container.process:
        case "postgres":
            return postgres_answers(endpoints.judge_dsn)
        case "rabbitmq":
            return rabbitmq_answers(endpoints.amqp_url)
        case name if name == PROXY:
            return endpoints.proxy is not None and proxy.answers(endpoints.proxy)
        case name:
            return service_is_ready(endpoints.http_urls[name])
