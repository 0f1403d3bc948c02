"""The docker command, and what it says of a container."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from chaos.runtime import StackError, State

PROJECT_LABEL = "com.docker.compose.project"
SERVICE_LABEL = "com.docker.compose.service"

ASK_SECONDS = 90.0  # a server may take 60 to stop
SIGNALLED = 128  # an exit code above it: plus the signal's number

# Removes all of project $1, by its labels. (`docker compose down` fails where a server is gone and
# a service that depends on it is not.) Repeated, because two removals at once get in each other's
# way.
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


def engine_answers() -> bool:
    """Return whether there is an engine, with Compose."""
    try:
        docker("compose", "ls", "--quiet", seconds=20)
    except StackError:
        return False
    return True


@dataclass(frozen=True)
class Container:
    """A container as `docker inspect` shows it at that moment."""

    id: str
    process: str
    state: State
    pid: int
    restarts: int
    last_exit: str | None  # Docker forgets it when the container runs again

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Self:
        status, code = found["State"]["Status"], found["State"]["ExitCode"]
        state: State = status if status in ("running", "paused", "restarting") else "stopped"
        ended = f"signal {code - SIGNALLED}" if code > SIGNALLED else f"status {code}"
        return cls(
            id=found["Id"],
            process=found["Config"]["Labels"][SERVICE_LABEL],
            state=state,
            pid=found["State"]["Pid"],
            restarts=found["RestartCount"],
            last_exit=ended if state in ("stopped", "restarting") else None,
        )


def remove_project(project: str) -> None:
    done = run("sh", "-c", REMOVE_SCRIPT, "remove", project)
    if done.returncode != 0:
        raise StackError(f"{project} cannot be removed: {done.stderr.strip()[-400:]}")


def log_of(container: Container) -> Iterator[str]:
    with subprocess.Popen(
        ["docker", "logs", container.id],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    ) as process:  # fmt: skip
        yield from (line.rstrip("\n") for line in process.stdout or ())


def docker(*arguments: str, **how: Any) -> str:
    """Return what the command prints. Raises StackError with what it prints to stderr."""
    done = run("docker", *arguments, **how)
    if done.returncode != 0:
        raise StackError(f"docker {_in_short(arguments)}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def run(
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
