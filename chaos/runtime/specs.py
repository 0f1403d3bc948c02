"""How each process of a native stack is run: the two servers, the port mapper, the services.

Owns: command lines, environments and configuration files. Must not know: when they are
started, and what happens when they die.
"""

from __future__ import annotations

import http.client
import os
import pwd
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import pika
import pika.exceptions
import psycopg

from chaos import proxy
from chaos.proxy import line_name
from chaos.runtime import APIS, SERVERS, Endpoints, Plan, bootstrap
from chaos.runtime.install import Programs
from chaos.runtime.managed import Account, Spec
from chaos.runtime.ports import HOST, free_ports
from chaos.runtime.stack import CHECKOUT, Stack, write_private

SUPERUSER = "postgres"
RABBITMQ_USER = "sagaproof"
CHAOS = "chaos"  # as both APIs know whoever uses the stack
PROBE_SECONDS = 2

POSTGRES_SETTINGS = {
    "listen_addresses": HOST,
    "max_connections": "200",
    "fsync": "on",
    "synchronous_commit": "on",
    "timezone": "UTC",
    "log_line_prefix": "%m [%p] %u ",
}

# use_colors is on by default, terminal or not. Statistics are taken every second, not every
# five: a person who looks at the management page wants to see what is.
RABBITMQ_CONF = """
listeners.tcp.1 = {host}:{amqp}
management.tcp.ip = {host}
management.tcp.port = {management}
default_user = {user}
default_pass = {password}
log.file = false
log.console = true
log.console.use_colors = off
collect_statistics_interval = 1000
"""

# What is enabled, and what it needs.
RABBITMQ_PLUGINS = {
    "rabbitmq_management",
    "rabbitmq_management_agent",
    "rabbitmq_prelaunch",
    "rabbitmq_web_dispatch",
}

# Two schedulers that do not spin: the node shares a small machine with everything else.
RABBITMQ_VM = "+S 2:2 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}"


@dataclass(frozen=True)
class Secrets:
    """Made anew for every stack."""

    superuser: str
    roles: Mapping[str, str]
    rabbitmq: str
    cookie: str
    door_key: str
    operator_token: str

    @classmethod
    def fresh(cls, plan: Plan) -> Self:
        new = partial(secrets.token_urlsafe, 18)
        roles = {role: new() for role in (*plan.roles, bootstrap.JUDGE)}
        return cls(new(), roles, new(), new(), new(), new())


@dataclass(frozen=True)
class Ports:
    """One for everything that listens."""

    postgres: int
    amqp: int
    management: int
    distribution: int
    epmd: int
    http: Mapping[str, int]
    health: Mapping[str, int]  # of the APIs, which have another port than others for it
    lines: Mapping[str, int]  # of the proxy
    proxy: int | None  # where it is told what to do

    @classmethod
    def free(cls, plan: Plan) -> Self:
        names = list(plan.processes)
        apis = [name for name, service in plan.processes.items() if service in APIS]
        lines = [line_name(name, s) for name in names for s in SERVERS] if plan.proxied else []
        first = free_ports(6 + len(names) + len(apis) + len(lines))
        postgres, amqp, management, distribution, epmd, proxy, *others = first
        http, others = others[: len(names)], others[len(names) :]
        health, way = others[: len(apis)], others[len(apis) :]
        return cls(
            postgres, amqp, management, distribution, epmd,
            dict(zip(names, http, strict=True)), dict(zip(apis, health, strict=True)),
            dict(zip(lines, way, strict=True)),
            proxy if plan.proxied else None,
        )  # fmt: skip


def endpoints_of(stack: Stack, ports: Ports, keys: Secrets) -> Endpoints:
    def dsn(role: str, password: str) -> str:
        return f"postgresql://{role}:{password}@{HOST}:{ports.postgres}/{bootstrap.DATABASE}"

    broker = f"{RABBITMQ_USER}:{keys.rabbitmq}@{HOST}"
    return Endpoints(
        superuser_dsn=dsn(SUPERUSER, keys.superuser),
        judge_dsn=dsn(bootstrap.JUDGE, keys.roles[bootstrap.JUDGE]),
        service_dsns={
            role: dsn(role, password)
            for role, password in keys.roles.items()
            if role != bootstrap.JUDGE
        },
        amqp_url=f"amqp://{broker}:{ports.amqp}/",
        management_url=f"http://{broker}:{ports.management}",
        http_urls={name: f"http://{HOST}:{port}" for name, port in ports.http.items()},
        metrics_urls={
            name: f"http://{HOST}:{port}/metrics"
            for name, port in {**ports.http, **ports.health}.items()
        },
        log_dir=stack.logs,
        door_key=keys.door_key,
        operator_token=keys.operator_token,
        proxy=(HOST, ports.proxy) if ports.proxy else None,
    )


def postgres_dsn(ports: Ports, keys: Secrets) -> str:
    """The superuser's, to the database that is always there."""
    return f"postgresql://{SUPERUSER}:{keys.superuser}@{HOST}:{ports.postgres}/postgres"


def postgres_spec(
    stack: Stack, programs: Programs, ports: Ports, keys: Secrets, settings: Mapping[str, str]
) -> Spec:
    account = _account("postgres")
    home = stack.postgres
    _make_home(home, account, {"password": keys.superuser})
    settings = {
        **POSTGRES_SETTINGS,
        **settings,
        "port": str(ports.postgres),
        "unix_socket_directories": str(home),
    }
    return Spec(
        name="postgres",
        command=(
            str(programs.postgres / "postgres"),
            *("-D", str(home / "data")),
            *(word for key, value in settings.items() for word in ("-c", f"{key}={value}")),
        ),
        environment=_plain_environment(home),
        directory=home,
        ports=(ports.postgres,),
        answers=partial(_postgres_answers, postgres_dsn(ports, keys)),
        account=account,
        stop_signal=signal.SIGINT,  # "fast": does not wait for its clients to leave
    )


def initdb_command(stack: Stack, programs: Programs) -> tuple[str, ...]:
    """To be run before Postgres is, as it is. Its own syncs are left out: a power cut while a
    stack is brought up loses nothing."""
    home = stack.postgres
    return (
        str(programs.postgres / "initdb"),
        f"--pgdata={home / 'data'}",
        f"--username={SUPERUSER}",
        f"--pwfile={home / 'password'}",
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--no-locale",
        "--no-sync",
    )


def epmd_spec(stack: Stack, programs: Programs, ports: Ports) -> Spec:
    return Spec(
        name="epmd",
        command=(str(programs.epmd), "-port", str(ports.epmd), "-address", HOST),
        environment=_plain_environment(stack.rabbitmq),
        directory=stack.rabbitmq,
        ports=(ports.epmd,),
        answers=partial(_epmd_answers, ports.epmd),
        account=_account("rabbitmq"),
    )


def rabbitmq_spec(stack: Stack, programs: Programs, ports: Ports, keys: Secrets) -> Spec:
    account = _account("rabbitmq")
    home = stack.rabbitmq
    conf = RABBITMQ_CONF.format(
        host=HOST,
        amqp=ports.amqp,
        management=ports.management,
        user=RABBITMQ_USER,
        password=keys.rabbitmq,
    )
    files = {
        "rabbitmq.conf": conf,
        "enabled_plugins": "[rabbitmq_management].\n",
        ".erlang.cookie": keys.cookie,
    }
    _make_home(home, account, files)
    _make_lean(home / "program", programs.rabbitmq)
    broker = f"{RABBITMQ_USER}:{keys.rabbitmq}@{HOST}:{ports.amqp}"
    return Spec(
        name="rabbitmq",
        command=(str(programs.rabbitmq / "rabbitmq-server"),),
        environment={
            **_plain_environment(home),
            "RABBITMQ_NODENAME": "sagaproof@localhost",
            "RABBITMQ_MNESIA_BASE": str(home / "data"),
            "RABBITMQ_LOG_BASE": str(home / "log"),
            "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "enabled_plugins"),
            "RABBITMQ_SCRIPTS_DIR": str(home / "program/sbin"),
            # Ours and no other: these would be looked for in /etc.
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(home / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(home / "rabbitmq-env.conf"),
            "RABBITMQ_DIST_PORT": str(ports.distribution),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": RABBITMQ_VM,
            # The start script becomes the node instead of watching it: one pid, and a SIGKILL
            # hits what it should. (Without NOTIFY_SOCKET, systemd is not spoken to.)
            "RUNNING_UNDER_SYSTEMD": "true",
            "ERL_EPMD_ADDRESS": HOST,
            "ERL_EPMD_PORT": str(ports.epmd),
            # The port mapper is ours to start. A VM that finds none would leave one behind.
            "ERL_FLAGS": "-start_epmd false",
        },
        directory=home,
        ports=(ports.amqp, ports.management, ports.distribution),
        answers=partial(_rabbitmq_answers, f"amqp://{broker}/"),
        account=account,
        stop_seconds=30.0,
    )


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
        environment=_plain_environment(stack.directory),
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


def _account(name: str) -> Account | None:
    """Both servers refuse, or ought to refuse, to run as root."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = known.get(name) or known["nobody"]
    return Account(entry.pw_uid, entry.pw_gid)


def _make_home(home: Path, account: Account | None, files: Mapping[str, str]) -> None:
    """A directory and files for the account alone."""
    if home.exists():  # of an attempt to start that found a port taken
        shutil.rmtree(home)
    home.mkdir(mode=0o700)
    for name, content in files.items():
        write_private(home / name, content)
    if account:
        for path in (home, *(home / name for name in files)):
            os.chown(path, account.uid, account.gid)


def _make_lean(program: Path, scripts: Path) -> None:
    """RabbitMQ's own tree, in links, without the plugins that are not enabled: a node looks for
    each of its modules in every plugin's directory. It starts in five seconds, not eight."""
    real = (scripts / "rabbitmq-server").resolve().parents[1]
    for directory in (program, program / "plugins"):
        directory.mkdir()
        directory.chmod(0o755)  # whatever the umask: the node's user reads it
    for part in ("sbin", "escript"):
        (program / part).symlink_to(real / part)
    for plugin in (real / "plugins").iterdir():
        name = plugin.name.partition("-")[0]
        if name in RABBITMQ_PLUGINS or not name.startswith("rabbitmq_"):
            (program / "plugins" / plugin.name).symlink_to(plugin)


def _plain_environment(home: Path) -> dict[str, str]:
    """Nothing of the caller's: a PGPORT or RABBITMQ_* of theirs must not reach our servers."""
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": str(home)}


def _postgres_answers(dsn: str) -> bool:
    try:
        psycopg.connect(dsn, connect_timeout=PROBE_SECONDS).close()
    except psycopg.OperationalError:
        return False
    return True


def _rabbitmq_answers(url: str) -> bool:
    parameters = pika.URLParameters(url)
    parameters.socket_timeout = parameters.stack_timeout = PROBE_SECONDS
    parameters.blocked_connection_timeout = PROBE_SECONDS
    try:
        pika.BlockingConnection(parameters).close()
    except (pika.exceptions.AMQPError, OSError):
        return False
    return True


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


def _epmd_answers(port: int) -> bool:
    """Asked for the names it knows; a bare connection is an error to it."""
    try:
        with socket.create_connection((HOST, port), PROBE_SECONDS) as epmd:
            epmd.sendall(b"\x00\x01n")
            return len(epmd.recv(4)) > 0
    except OSError:
        return False
