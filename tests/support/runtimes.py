"""A stack of either runtime seen from outside, and the traces it leaves.

Owns: looking. Must not know: what a test does to the stack.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from chaos.runtime import ProcessStatus
from chaos.runtime.base import Runtime
from chaos.runtime.docker.engine import PROJECT_LABEL
from chaos.runtime.docker.runtime import DockerRuntime, DockerStack
from chaos.runtime.processes import identity
from chaos.runtime.stack import CHECKOUT, Stack
from chaos.waiting import until


def name_for(purpose: str) -> str:
    return f"test-{os.getpid()}-{purpose}"


def status_of(runtime: Runtime, process: str) -> ProcessStatus:
    return next(status for status in runtime.status() if status.name == process)


def until_ready(runtime: Runtime, process: str) -> None:
    until(lambda: status_of(runtime, process).ready, f"{process} ready")


def stack_of(runtime: Runtime) -> Stack:
    return (DockerStack if isinstance(runtime, DockerRuntime) else Stack)(runtime.name)


def leftovers(runtime: Runtime) -> list[str]:
    """List the processes or Docker objects, and the directory, that exist for this stack."""
    stack = stack_of(runtime)
    directory = [str(stack.directory)] if stack.directory.exists() else []
    if isinstance(stack, DockerStack):
        return docker_objects(stack.project) + directory
    return [str(pid) for pid in marked(stack)] + directory


def marked(stack: Stack) -> list[int]:
    """List the processes that carry the stack's mark in their environment, recorded or not."""
    mark = f"SAGAPROOF_STACK={stack.directory}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and identity(int(entry.name)):
            try:
                if mark in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
    return found


def docker(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        ["docker", *arguments],
        cwd=CHECKOUT, env={**os.environ, **environment}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def docker_objects(project: str) -> list[str]:
    """List a project's containers, networks and volumes by name."""
    label = ("--filter", f"label={PROJECT_LABEL}={project}")
    return [
        *docker("ps", "-a", *label, "--format", "{{.Names}}").splitlines(),
        *docker("network", "ls", *label, "--format", "{{.Name}}").splitlines(),
        *docker("volume", "ls", *label, "--format", "{{.Name}}").splitlines(),
    ]
