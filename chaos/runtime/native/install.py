"""The two servers' programs: found, or installed with apt without starting any service."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from chaos.runtime import Progress, StackError

OLDEST_POSTGRES = 15
# The first releases whose packages are new enough (RabbitMQ 3.10, Postgres 15).
OLDEST_RELEASE = {"debian": (12,), "ubuntu": (24, 4)}
PACKAGES = {
    "PostgreSQL": "postgresql",
    "RabbitMQ": "rabbitmq-server",
    "Erlang's epmd": "rabbitmq-server",
}
POLICY = Path("/usr/sbin/policy-rc.d")
START_DENIED = 101
CLUSTER_DEFAULTS = Path("/etc/postgresql-common/createcluster.conf")


@dataclass(frozen=True)
class Programs:
    """Directories of the programs, not of their wrappers, which insist on one user."""

    postgres: Path
    rabbitmq: Path
    epmd: Path


def programs(progress: Progress) -> Programs:
    """Find the programs, installing them first where they are missing and that is possible."""
    if missing() and _may_install():
        _install(progress)
    if lacking := missing():
        raise StackError(
            f"missing: {', '.join(lacking)}. Install PostgreSQL {OLDEST_POSTGRES} or newer and"
            " RabbitMQ 3.10 or newer (Debian 12+, Ubuntu 24.04+: apt-get install"
            f" {' '.join(_packages())})"
        )
    return found()


def found() -> Programs:
    postgres, rabbitmq, epmd = _postgres(), _rabbitmq(), _epmd()
    if postgres is None or rabbitmq is None or epmd is None:
        raise StackError(f"missing: {', '.join(missing())}")
    return Programs(postgres, rabbitmq, epmd)


def missing() -> list[str]:
    parts = {"PostgreSQL": _postgres(), "RabbitMQ": _rabbitmq(), "Erlang's epmd": _epmd()}
    return [name for name, path in parts.items() if path is None]


def _postgres() -> Path | None:
    """Return the newest of Debian's side-by-side versions, or what is on the PATH."""
    versions = [
        (int(directory.name), directory / "bin")
        for directory in Path("/usr/lib/postgresql").glob("*")
        if directory.name.isdigit() and (directory / "bin/initdb").exists()
    ]
    usable = [entry for entry in versions if entry[0] >= OLDEST_POSTGRES]
    return max(usable)[1] if usable else _directory_of("initdb")


def _rabbitmq() -> Path | None:
    debian = Path("/usr/lib/rabbitmq/bin")
    return debian if (debian / "rabbitmq-server").exists() else _directory_of("rabbitmq-server")


def _epmd() -> Path | None:
    on_path = shutil.which("epmd")
    shipped = sorted(Path("/usr/lib/erlang").glob("erts-*/bin/epmd"))
    return Path(on_path) if on_path else shipped[-1] if shipped else None


def _directory_of(program: str) -> Path | None:
    path = shutil.which(program)
    return Path(path).resolve().parent if path else None


def _may_install() -> bool:
    release = Path("/etc/os-release")
    is_root_with_apt = os.geteuid() == 0 and shutil.which("apt-get") is not None
    return is_root_with_apt and release.exists() and is_new_enough(release.read_text())


def is_new_enough(release: str) -> bool:
    """Decide by the text of /etc/os-release."""
    lines = (line.partition("=") for line in release.splitlines())
    fields = {key: value.strip('"') for key, _, value in lines}
    oldest = OLDEST_RELEASE.get(fields.get("ID", ""))
    version = tuple(int(part) for part in fields.get("VERSION_ID", "").split(".") if part.isdigit())
    return oldest is not None and version >= oldest


def _packages() -> list[str]:
    return list(dict.fromkeys(PACKAGES[name] for name in missing()))


def _install(progress: Progress) -> None:
    packages = _packages()
    progress(
        f"installing {' and '.join(packages)} with apt-get: missing here, takes about a minute."
        " Their own services are not started; from the next boot on they may be (systemctl disable)"
    )
    # Otherwise the package would make a database cluster of its own.
    no_cluster = _file_for_now(CLUSTER_DEFAULTS, "create_main_cluster = false\n", 0o644)
    with no_service_starts(packages), no_cluster:
        for step in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            done = subprocess.run(
                ["apt-get", "-q", *step],
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
            )
            if done.returncode != 0:
                raise StackError(f"apt-get {step[0]} failed: {done.stderr.strip()[-800:]}")


@contextmanager
def no_service_starts(packages: Sequence[str]) -> Iterator[None]:
    """Keep packages from starting their services, by policy-rc.d.

    A file that is there already is its owner's: if it lets services start, we do not install.
    """
    if POLICY.exists():
        for service in packages:
            answer = subprocess.run([POLICY, service, "start"], capture_output=True)
            if answer.returncode != START_DENIED:
                raise StackError(
                    f"{POLICY} here lets packages start their services; to have them run beside"
                    f" ours is yours to decide: apt-get install {' '.join(packages)}"
                )
    script = f"#!/bin/sh\n# Placed by `chaos up` while it installs packages.\nexit {START_DENIED}\n"
    with _file_for_now(POLICY, script, 0o755):
        yield


@contextmanager
def _file_for_now(path: Path, text: str, mode: int) -> Iterator[None]:
    """Place a file for the duration of the block; one that is there already stays as it is."""
    if path.exists():
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    try:
        yield
    finally:
        path.unlink()
