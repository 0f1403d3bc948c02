"""One process that is kept running.

Owns: restarting what dies, with backoff, and what can be done to a process. Must not know:
what the process is for, and who asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from chaos.runtime import StackError, State
from chaos.runtime.ports import is_free
from chaos.runtime.processes import MARK, record, signal_one, signal_tree
from chaos.runtime.stack import Stack


class Say(Protocol):
    """Writes one line to the supervisor's log."""

    def __call__(self, event: str, **fields: Any) -> None: ...


@dataclass(frozen=True)
class Account:
    """Whom a server drops root for."""

    uid: int
    gid: int


@dataclass(frozen=True)
class Spec:
    """How a process is run, how it shows that it is ready, and how it is stopped."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    directory: Path
    ports: tuple[int, ...]
    answers: Callable[[], bool]  # blocks for a few seconds at most
    account: Account | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 12.0  # services promise ten


class Backoff:
    """0.2 s doubling to 10 s, and from the beginning for what had run for 10 s."""

    FIRST_SECONDS = 0.2
    CAP_SECONDS = 10.0
    HEALTHY_SECONDS = 10.0

    def __init__(self) -> None:
        self._next = self.FIRST_SECONDS

    def pause_after(self, ran_seconds: float) -> float:
        if ran_seconds >= self.HEALTHY_SECONDS:
            self._next = self.FIRST_SECONDS
        pause = self._next
        self._next = min(pause * 2, self.CAP_SECONDS)
        return pause


async def spawn(
    spec: Spec, stack: Stack, command: Sequence[str], *, stdout: IO[bytes] | int, stderr: int
) -> asyncio.subprocess.Process:
    """A command as the spec's user and in its environment, on the stack's record."""
    dropped: dict[str, Any] = {}
    if spec.account:
        dropped = {"user": spec.account.uid, "group": spec.account.gid, "extra_groups": []}
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**spec.environment, MARK: str(stack.directory)},
        cwd=spec.directory,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        **dropped,
    )
    # The sweep is gentle with what is called postgres; everything else is killed.
    record(stack.started, spec.name if command == spec.command else "helper", process.pid)
    return process


class Managed:
    """`run` is a daemon; the process runs while it is wanted."""

    def __init__(self, spec: Spec, stack: Stack, say: Say) -> None:
        self.spec = spec
        self.restarts = 0
        self.last_exit: str | None = None
        self.lost_ports: list[int] = []  # found taken by somebody else when it died
        self._stack = stack
        self._say = say
        self._process: asyncio.subprocess.Process | None = None
        self._paused = False
        self._wanted = asyncio.Event()
        self._idle = asyncio.Event()  # not wanted, and not there
        self._hurry = asyncio.Event()  # cuts a backoff short

    @property
    def pid(self) -> int | None:
        alive = self._process is not None and self._process.returncode is None
        return self._process.pid if self._process and alive else None

    @property
    def state(self) -> State:
        if self.pid is not None:
            return "paused" if self._paused else "running"
        return "restarting" if self._wanted.is_set() else "stopped"

    async def run(self) -> None:
        backoff = Backoff()
        while True:
            while not self._wanted.is_set():
                self._idle.set()
                await self._wanted.wait()
            self._idle.clear()
            began = time.monotonic()
            pid = await self._run_once()
            if not self._wanted.is_set():
                self._say("process.stopped", process=self.spec.name, pid=pid, exit=self.last_exit)
                continue
            pause = backoff.pause_after(time.monotonic() - began)
            self.restarts += 1
            self.lost_ports = [port for port in self.spec.ports if not is_free(port)]
            self._say(
                "process.died",
                process=self.spec.name,
                pid=pid,
                exit=self.last_exit,
                lost_ports=self.lost_ports,
                next_try_seconds=pause,
            )
            self._hurry.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), pause)

    def start(self) -> None:
        self._wanted.set()
        self._hurry.set()

    async def stop(self, number: signal.Signals | None = None) -> None:
        """Gone on return."""
        self._wanted.clear()
        self._hurry.set()
        self._tell_to_stop(number or self.spec.stop_signal)
        try:
            await asyncio.wait_for(self._idle.wait(), self.spec.stop_seconds)
        except TimeoutError:
            self._say("process.would_not_stop", process=self.spec.name, pid=self.pid)
            self._tell_to_stop(signal.SIGKILL)
            await self._idle.wait()

    async def kill(self) -> None:
        """Gone on return."""
        process = self._there()
        signal_tree(process.pid, signal.SIGKILL)
        await process.wait()

    def pause(self) -> None:
        signal_tree(self._there().pid, signal.SIGSTOP)
        self._paused = True

    def resume(self) -> None:
        signal_tree(self._there().pid, signal.SIGCONT)
        self._paused = False

    def _there(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            raise StackError(f"{self.spec.name} has no process at the moment: it is {self.state}")
        return self._process

    def _tell_to_stop(self, number: signal.Signals) -> None:
        pid = self.pid
        if pid is None:
            return
        if number is signal.SIGKILL:
            signal_tree(pid, number)
            return
        if self._paused:
            signal_tree(pid, signal.SIGCONT)
        signal_one(pid, number)

    async def _run_once(self) -> int | None:
        """From its start to its end. A start that fails is an end too."""
        spec = self.spec
        try:
            with self._stack.log(spec.name).open("ab") as log:
                process = await spawn(
                    spec, self._stack, spec.command, stdout=log, stderr=subprocess.STDOUT
                )
        except OSError as error:
            self.last_exit = f"not started: {error}"
            return None
        self._process = process
        self._paused = False
        self._say("process.started", process=spec.name, pid=process.pid)
        if not self._wanted.is_set():  # stopped while it was being started
            self._tell_to_stop(spec.stop_signal)
        code = await process.wait()
        self.last_exit = f"signal {-code}" if code < 0 else f"status {code}"
        return process.pid
