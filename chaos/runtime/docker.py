"""The Docker runtime: the stack of compose.yaml, as a project of its own, on free ports.

Owns: making a compose model of a Plan, and what is done to its containers. A process is a
compose service of its own, also a replica, so that it has a name of its own in logs. Must not
know: what compose.yaml says beyond the names in it. Nothing here outlives a call but the
tether; a stack may be brought up by one process and down by another.

`python -m chaos.runtime.docker` prints deploy/roles.sql.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import psycopg

from chaos import proxy
from chaos.runtime import (
    APIS,
    EVERYTHING,
    SERVERS,
    Endpoints,
    Plan,
    ProcessStatus,
    Progress,
    StackError,
    State,
    bootstrap,
    silent,
)
from chaos.runtime.ports import HOST, free_ports
from chaos.runtime.processes import identity
from chaos.runtime.stack import CHECKOUT, KEEP, Stack, base_directory, default_name

PASSWORD = "throw-away"  # noqa: S105  of every account in compose.yaml, as that says
POSTGRES_PORT, AMQP_PORT, MANAGEMENT_PORT = 5432, 5672, 15672  # inside the containers
API_PORT, HEALTH_PORT = 8080, 8081
PROXY, PROXY_PORT = "proxy", 7000  # its lines listen on the ports above
ANYWHERE = "0.0.0.0"  # noqa: S104  inside a container
CODE = "/checkout"  # where a replacement entry and the proxy find this checkout
MOUNT = {"type": "bind", "source": str(CHECKOUT), "target": CODE, "read_only": True}
PROJECT_PREFIX = "sagaproof-"
PROJECT_LABEL = "com.docker.compose.project"
SERVICE_LABEL = "com.docker.compose.service"
TETHER_LABEL = "sagaproof.tether"

ASK_SECONDS = 90.0  # a server may take 60 to stop
PROBE_SECONDS = 2.0
BUILD_SECONDS = 900.0
UP_SECONDS = 300.0
READY_WITHIN_SECONDS = 120.0
DIES_WITHIN_SECONDS = 10.0
BUSY_SECONDS = 60.0
EXITS_AT_START = 3
LOG_TAIL_LINES = 15
POLL_SECONDS = 0.2
SIGNALLED = 128  # an exit code above it: plus the signal's number

Model = dict[str, Any]

# All of project $1, by its labels. (`docker compose down` fails where a server is gone and a
# service that depends on it is not.) Again, if somebody else is at it too: that is an error.
REMOVE_SCRIPT = f"""
of="label={PROJECT_LABEL}=$1"
remove() {{
  docker ps --all --quiet --filter "$of" | xargs -r docker rm --force --volumes &&
  docker network ls --quiet --filter "$of" | xargs -r docker network rm &&
  docker volume ls --quiet --filter "$of" | xargs -r docker volume rm
}}
left=30
until remove; do
  left=$((left - 1)); [ $left -gt 0 ] || exit 1
  sleep 1
done
"""

# Reads the pipe whose other end `up` holds. If that ends before it said "keep", so does the stack.
TETHER_SCRIPT = f"""
exec 3<&0
{{ read -r word <&3; [ "$word" = keep ] || {{ {REMOVE_SCRIPT} rm -rf "$2"; }} }} >/dev/null 2>&1 &
"""

# All that it may kill but process 1, which then ends too: what Docker puts there (`init: true`)
# ends with its child. `docker kill` would not do: Docker does not restart what it was told to end.
KILL_SCRIPT = "kill -9 -1"


def engine_answers() -> bool:
    """Is there an engine, with Compose?"""
    try:
        _docker("compose", "ls", "--quiet", seconds=20)
    except StackError:
        return False
    return True


def all_names() -> list[str]:
    base = DockerStack("any").directory.parent
    return sorted(entry.name for entry in base.iterdir()) if base.is_dir() else []


class DockerStack(Stack):
    """A native stack may have the same name."""

    @property
    def directory(self) -> Path:
        base = base_directory()
        return base.with_name(f"{base.name}-docker") / self.name.lower()

    @property
    def project(self) -> str:
        return f"{PROJECT_PREFIX}{self.name.lower()}"  # Compose knows no capitals


@dataclass(frozen=True)
class Container:
    """What Docker says about one, at that moment."""

    id: str
    process: str
    status: str
    pid: int
    restarts: int
    exit_code: int

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Self:
        state = found["State"]
        return cls(
            id=found["Id"],
            process=found["Config"]["Labels"][SERVICE_LABEL],
            status=state["Status"],
            pid=state["Pid"],
            restarts=found["RestartCount"],
            exit_code=state["ExitCode"],
        )

    @property
    def state(self) -> State:
        match self.status:
            case "running" | "paused" | "restarting" as same:
                return same
        return "stopped"

    @property
    def last_exit(self) -> str | None:
        """Docker forgets it when the container runs again."""
        if self.state not in ("stopped", "restarting"):
            return None
        code = self.exit_code
        return f"signal {code - SIGNALLED}" if code > SIGNALLED else f"status {code}"

    def ready(self, endpoints: Endpoints) -> bool:
        if self.status != "running":
            return False
        if self.process == "postgres":
            return _postgres_answers(endpoints.judge_dsn)
        if self.process == "rabbitmq":
            listens = f"/api/health/checks/port-listener/{AMQP_PORT}"
            return _answers(endpoints.management_url + listens)
        if self.process == PROXY:
            return endpoints.proxy is not None and proxy.answers(endpoints.proxy)
        return _answers(endpoints.http_urls[self.process] + "/ready")


class DockerRuntime:
    """The Runtime protocol, over the docker command."""

    def __init__(self, name: str | None = None) -> None:
        self._stack = DockerStack(name or default_name())
        self._project = self._stack.project
        self._tether: int | None = None

    @property
    def name(self) -> str:
        return self._stack.name

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
                self._drop_tether()
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
            raise StackError(f"another command is busy with stack {self.name}: try again")
        try:
            self._remove(keep_logs=keep_logs)
        finally:
            os.close(lock)
        _sweep(silent)

    def endpoints(self) -> Endpoints:
        try:
            return self._stack.read_endpoints()
        except FileNotFoundError:
            raise self._not_up() from None

    def status(self) -> list[ProcessStatus]:
        endpoints, containers = self.endpoints(), self._containers()
        with ThreadPoolExecutor(len(containers) or 1) as threads:
            answers = threads.map(lambda c: c.ready(endpoints), containers)
        return [
            ProcessStatus(c.process, c.state, ready, c.pid or None, c.restarts, c.last_exit)
            for c, ready in zip(containers, answers, strict=True)
        ]

    def logs(self, process: str) -> Iterator[str]:
        kept = self._stack.log(process)  # by `down`
        if not kept.exists():
            yield from _log(self._container(process))
            return
        with kept.open(errors="replace") as lines:
            yield from (line.rstrip("\n") for line in lines)

    def start(self, process: str) -> None:
        container = self._container(process)
        if container.state == "stopped":
            _docker("start", container.id)
        elif container.state == "restarting":
            _docker("restart", container.id)  # `start` says that it runs already

    def stop(self, process: str) -> None:
        _docker("stop", self._container(process).id)

    def kill(self, process: str) -> None:
        container = self._container(process)
        if container.state == "paused":  # nothing can be run in it
            _docker("kill", container.id)
            _docker("start", container.id)
            return
        if container.state != "running":
            raise StackError(f"{process} has no process at the moment: it is {container.state}")
        _run("docker", "exec", container.id, "sh", "-c", KILL_SCRIPT)  # ends with the container
        deadline = time.monotonic() + DIES_WITHIN_SECONDS
        while self._container(process).pid == container.pid:
            if time.monotonic() > deadline:
                raise StackError(f"{process} was killed and is still there")
            time.sleep(POLL_SECONDS)

    def pause(self, process: str) -> None:
        _docker("pause", self._container(process).id)

    def resume(self, process: str) -> None:
        _docker("unpause", self._container(process).id)

    def disconnect(self, process: str) -> None:
        """Off its network, also from outside, until it is connected again."""
        _docker("network", "disconnect", self._network, self._container(process).id)

    def connect(self, process: str) -> None:
        container = self._container(process)
        _docker("network", "connect", "--alias", process, self._network, container.id)

    @property
    def _network(self) -> str:
        of_it = ("--filter", f"label={PROJECT_LABEL}={self._project}", "--format", "{{.Name}}")
        return _docker("network", "ls", *of_it).strip()

    def rabbitmqctl(self, *arguments: str) -> str:
        done = _run("docker", "exec", self._container("rabbitmq").id, "rabbitmqctl", *arguments)
        if done.returncode != 0:
            raise OSError(f"rabbitmqctl {arguments[:1]}: {done.stderr.strip()[-400:]}")
        return done.stdout

    # Starting

    def _claim(self) -> int:
        self._stack.create()
        lock = self._stack.take()
        if lock is None:
            raise StackError(f"another command is busy with stack {self.name}: try again")
        if self._containers():
            os.close(lock)
            raise StackError(
                f"stack {self.name} is up already: `chaos down` first, or choose another --name"
            )
        return lock

    def _start(self, plan: Plan, tethered: bool, progress: Progress) -> Endpoints:
        stack = self._stack
        stack.clear(keep_logs=False)
        stack.logs.mkdir(mode=0o700)
        stack.write_plan(plan)
        compose_file = ("-f", str(CHECKOUT / "compose.yaml"))
        if plan.processes:
            progress("building the image")
            self._compose(*compose_file, "build", "--quiet", seconds=BUILD_SECONDS)
        base = json.loads(self._compose(*compose_file, "config", "--format", "json"))
        model = model_of(base, plan, _owner() if tethered else None)
        progress(f"starting {', '.join(model['services'])}")
        self._compose(
            "-f", "-", "up", "--detach", "--no-build", "--quiet-pull",
            model=model, seconds=UP_SECONDS,
        )  # fmt: skip
        endpoints = endpoints_of(model, plan, stack.logs)
        stack.write_endpoints(endpoints)
        self._wait_until_ready(progress)
        return endpoints

    def _wait_until_ready(self, progress: Progress) -> None:
        deadline = time.monotonic() + READY_WITHIN_SECONDS
        told: list[str] = []
        while waiting := [status for status in self.status() if not status.ready]:
            for status in waiting:
                if status.restarts >= EXITS_AT_START or time.monotonic() > deadline:
                    tail = "\n".join([*self.logs(status.name)][-LOG_TAIL_LINES:])
                    raise StackError(f"{status.name} does not get ready; its log ends:\n{tail}")
            if told != (told := [status.name for status in waiting]):
                progress(f"waiting for {', '.join(told)}")
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

    def _drop_tether(self) -> None:
        if self._tether is not None:
            os.write(self._tether, KEEP)
            os.close(self._tether)
            self._tether = None

    # Ending

    def _remove(self, *, keep_logs: bool) -> None:
        """By the holder of the lock. The data is thrown away: servers need not tidy it."""
        containers = self._containers()
        if keep_logs and self._stack.logs.exists():
            for container in containers:
                with self._stack.log(container.process).open("w") as file:
                    file.writelines(f"{line}\n" for line in _log(container))
        if services := [c.id for c in containers if c.process not in SERVERS]:
            _docker("stop", *services)
        _remove_all(self._project)
        self._drop_tether()
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
        ids = _docker("ps", "-aq", "--filter", f"label={PROJECT_LABEL}={self._project}").split()
        if not ids:
            return []
        containers = [Container.of(found) for found in json.loads(_docker("inspect", *ids))]
        return sorted(containers, key=lambda c: (c.process not in SERVERS, c.process))

    def _compose(self, *arguments: str, model: Model | None = None, seconds: float = 60) -> str:
        environment = {**os.environ, "SAGAPROOF_IMAGE": f"sagaproof:{default_name().lower()}"}
        return _docker(
            "compose", "--project-name", self._project, *arguments,
            given=json.dumps(model) if model else None, environment=environment, seconds=seconds,
        )  # fmt: skip

    def _not_up(self) -> StackError:
        return StackError(f"stack {self.name} is not up: `chaos up` brings it up")


def model_of(base: Model, plan: Plan, owner: str | None) -> Model:
    """What compose is to run: `base` is compose.yaml as `docker compose config` reads it."""
    services: Model = {name: copy.deepcopy(base["services"][name]) for name in SERVERS}
    lines = _lines(plan)
    if plan.proxied:
        services[PROXY] = _proxy_model(base["services"]["payment"], lines)
    for process, service in plan.processes.items():
        services[process] = model = copy.deepcopy(base["services"][service])
        model.pop("build", None)
        model["pull_policy"] = "never"
        settings = {f"SAGAPROOF_{key.upper()}": value for key, value in plan.settings.items()}
        model["environment"] |= {"SAGAPROOF_PROCESS": process, **settings}
        if service in plan.entry:
            model["command"] = plan.entry[service].split()
            model["working_dir"] = CODE
            model["volumes"] = [*model.get("volumes", ()), MOUNT]
        if plan.proxied:
            _lead_through_the_proxy(model["environment"], process, lines)
        if service not in APIS:  # compose.yaml publishes those already
            model["ports"] = [{"host_ip": HOST, "target": HEALTH_PORT, "protocol": "tcp"}]
    published = [port for service in services.values() for port in service.get("ports", ())]
    for port, number in zip(published, free_ports(len(published)), strict=True):
        port["published"] = str(number)
    labels = {TETHER_LABEL: owner} if owner else {}
    network = {**base["networks"]["default"], "labels": labels}
    return {**base, "services": services, "networks": {"default": network}}


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
        service_dsns={role: dsn(role) for role in bootstrap.SERVICES},
        amqp_url=f"amqp://{broker}@{address('rabbitmq', AMQP_PORT)}/",
        management_url=f"http://{broker}@{address('rabbitmq', MANAGEMENT_PORT)}",
        http_urls={
            process: f"http://{address(process, API_PORT if service in APIS else HEALTH_PORT)}"
            for process, service in plan.processes.items()
        },
        log_dir=log_dir,
        proxy=(HOST, int(address(PROXY, PROXY_PORT).rpartition(":")[2])) if plan.proxied else None,
    )


def roles_sql() -> str:
    """What the development stack's Postgres runs at its first start."""
    passwords = dict.fromkeys(bootstrap.ROLES, PASSWORD)
    statements = (*bootstrap.role_statements(passwords), *bootstrap.schema_statements())
    head = "-- Generated: python -m chaos.runtime.docker > deploy/roles.sql\n"
    return head + "".join(f"{statement};\n" for statement in statements)


# Whoever holds a tethered stack is written on its network, the first that is made and the last
# that goes: so that what he and his tether left behind can be told from what is in use.


def _owner() -> str:
    return f"{os.readlink('/proc/self/ns/pid')} {os.getpid()} {identity(os.getpid())}"


def _is_gone(owner: str) -> bool:
    """Of another machine's or container's processes we know nothing."""
    namespace, pid, known = owner.split()
    return namespace == os.readlink("/proc/self/ns/pid") and identity(int(pid)) != known


def _sweep(progress: Progress) -> None:
    """Remove the tethered stacks of those that are no more."""
    labels = f'{{{{.Label "{PROJECT_LABEL}"}}}}\t{{{{.Label "{TETHER_LABEL}"}}}}'
    found = _docker("network", "ls", "--filter", f"label={TETHER_LABEL}", "--format", labels)
    for line in found.splitlines():
        project, owner = line.split("\t")
        if not _is_gone(owner):
            continue
        progress(f"sweeping {project}, which a crash left")
        _remove_all(project)
        stack = DockerStack(project.removeprefix(PROJECT_PREFIX))
        if stack.directory.exists():
            stack.remove(keep_logs=False)


def _remove_all(project: str) -> None:
    done = _run("sh", "-c", REMOVE_SCRIPT, "remove", project)
    if done.returncode != 0:
        raise StackError(f"{project} cannot be removed: {done.stderr.strip()[-400:]}")


def _postgres_answers(dsn: str) -> bool:
    try:
        psycopg.connect(dsn, connect_timeout=int(PROBE_SECONDS)).close()
    except psycopg.OperationalError:
        return False
    return True


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=PROBE_SECONDS, trust_env=False).is_success
    except httpx.TransportError:
        return False


def _log(container: Container) -> Iterator[str]:
    with subprocess.Popen(
        ["docker", "logs", container.id],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    ) as process:  # fmt: skip
        yield from (line.rstrip("\n") for line in process.stdout or ())


def _docker(*arguments: str, **how: Any) -> str:
    """What the command prints, or StackError with what it complains of."""
    done = _run("docker", *arguments, **how)
    if done.returncode != 0:
        raise StackError(f"docker {_in_short(arguments)}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def _run(
    *command: str,
    given: str | None = None,
    environment: Mapping[str, str] | None = None,
    seconds: float = ASK_SECONDS,
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, input=given, env=environment, timeout=seconds,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise StackError("there is no docker command: install Docker, or RUNTIME=native") from None
    except subprocess.TimeoutExpired:
        raise StackError(f"{_in_short(command)}: no answer in {seconds:.0f} s") from None


def _in_short(command: Sequence[str]) -> str:
    return " ".join(word for word in command if len(word) < 40)


if __name__ == "__main__":
    print(roles_sql(), end="")
