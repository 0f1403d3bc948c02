"""The two servers of a native stack, and epmd, RabbitMQ's port mapper."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from chaos.runtime import Endpoints
from chaos.runtime.endpoints import RABBITMQ_USER, SUPERUSER, Ports, Secrets
from chaos.runtime.native.install import Programs
from chaos.runtime.native.managed import Spec, SystemUser
from chaos.runtime.ports import HOST
from chaos.runtime.probes import PROBE_SECONDS, postgres_answers, rabbitmq_answers
from chaos.runtime.stack import Stack, write_private

POSTGRES_SETTINGS = {
    "listen_addresses": HOST,
    "max_connections": "200",
    "fsync": "on",
    "synchronous_commit": "on",
    "timezone": "UTC",
    "log_line_prefix": "%m [%p] %u ",
}

# use_colors is on by default, terminal or not. Statistics are taken every second, not every five,
# for people who look at the management page.
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

# What is enabled, and what that needs.
RABBITMQ_PLUGINS = {
    "rabbitmq_management",
    "rabbitmq_management_agent",
    "rabbitmq_prelaunch",
    "rabbitmq_web_dispatch",
}

# Two schedulers that do not spin: the node shares a small machine with everything else.
RABBITMQ_VM = "+S 2:2 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}"


def postgres_spec(
    stack: Stack,
    programs: Programs,
    ports: Ports,
    keys: Secrets,
    dsn: str,
    settings: Mapping[str, str],
) -> Spec:
    account = account_of("postgres")
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
        environment=plain_environment(home),
        directory=home,
        ports=(ports.postgres,),
        answers=partial(postgres_answers, dsn),
        account=account,
        stop_signal=signal.SIGINT,  # "fast": does not wait for its clients to leave
    )


def initdb_command(stack: Stack, programs: Programs) -> tuple[str, ...]:
    """Return what runs before Postgres. It need not sync: a power cut meanwhile loses nothing."""
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
        environment=plain_environment(stack.rabbitmq),
        directory=stack.rabbitmq,
        ports=(ports.epmd,),
        answers=partial(_epmd_answers, ports.epmd),
        account=account_of("rabbitmq"),
    )


def rabbitmq_spec(
    stack: Stack, programs: Programs, ports: Ports, keys: Secrets, endpoints: Endpoints
) -> Spec:
    account = account_of("rabbitmq")
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
    return Spec(
        name="rabbitmq",
        command=(str(programs.rabbitmq / "rabbitmq-server"),),
        environment={
            **plain_environment(home),
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
        answers=partial(rabbitmq_answers, endpoints.amqp_url),
        account=account,
        stop_seconds=30.0,
    )


def plain_environment(home: Path) -> dict[str, str]:
    """Return nothing of the caller's: a PGPORT or RABBITMQ_* must not reach our servers."""
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": str(home)}


def account_of(name: str) -> SystemUser | None:
    """Return the user to drop root for: servers should not run as root."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = known.get(name) or known["nobody"]
    return SystemUser(entry.pw_uid, entry.pw_gid)


def _make_home(home: Path, account: SystemUser | None, files: Mapping[str, str]) -> None:
    """Create a directory and files for the account alone."""
    if home.exists():  # of an attempt to start that found a port taken
        shutil.rmtree(home)
    home.mkdir(mode=0o700)
    for name, content in files.items():
        write_private(home / name, content)
    if account:
        for path in (home, *(home / name for name in files)):
            os.chown(path, account.uid, account.gid)


def _make_lean(program: Path, scripts: Path) -> None:
    """Link RabbitMQ's own tree without the plugins that are not enabled.

    A node looks for each of its modules in every plugin's directory: it starts in five seconds,
    not eight.
    """
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


def _epmd_answers(port: int) -> bool:
    """Ask for the registered names; a bare connection is logged as an error."""
    try:
        with socket.create_connection((HOST, port), PROBE_SECONDS) as epmd:
            epmd.sendall(b"\x00\x01n")
            return len(epmd.recv(4)) > 0
    except OSError:
        return False
