"""One process that is kept running."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from chaos.runtime import ProcessStatus, StackError, State
from chaos.runtime.ports import is_free
from chaos.runtime.processes import MARK, record, signal_one, signal_tree
from chaos.runtime.stack import Stack


def say(event: str, **fields: Any) -> None:
    """Write one line of JSON to the supervisor's log."""
    print(
        json.dumps({"timestamp": datetime.now(UTC).isoformat(), "event": event, **fields}),
        flush=True,
    )


@dataclass(frozen=True)
class SystemUser:
    """The user a server runs as when we are root."""

    uid: int
    gid: int


@dataclass(frozen=True)
class Spec:
    """The way a process is run, shows that it is ready, and is stopped."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    directory: Path
    ports: tuple[int, ...]
    answers: Callable[[], bool]  # blocks for a few seconds at most
    account: SystemUser | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 12.0  # services promise ten


FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0
HEALTHY_SECONDS = 10.0


def next_pause(last: float | None, ran_seconds: float) -> float:
    """Double the pause before a restart, up to 10 s; begin anew after 10 healthy seconds."""
    if last is None or ran_seconds >= HEALTHY_SECONDS:
        return FIRST_PAUSE_SECONDS
    return min(2 * last, LONGEST_PAUSE_SECONDS)


async def spawn(
    spec: Spec, stack: Stack, command: Sequence[str], *, stdout: IO[bytes] | int, stderr: int
) -> asyncio.subprocess.Process:
    """Start a command as the spec's user and in its environment, and record it."""
    account: dict[str, Any] = {}
    if spec.account:
        account = {"user": spec.account.uid, "group": spec.account.gid, "extra_groups": []}
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**spec.environment, MARK: str(stack.directory)},
        cwd=spec.directory,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        **account,
    )
    # The sweep is gentle with what is called postgres; everything else is killed.
    record(stack.started, spec.name if command == spec.command else "helper", process.pid)
    return process


class Managed:
    """A process that `run` restarts with backoff while it is wanted."""

    def __init__(self, spec: Spec, stack: Stack) -> None:
        self.spec = spec
        self.restarts = 0
        self.last_exit: str | None = None
        self.lost_ports: list[int] = []  # found taken by another process when it died
        self._stack = stack
        self._process: asyncio.subprocess.Process | None = None
        self._paused = False
        self._wanted = asyncio.Event()
        self._idle = asyncio.Event()  # not wanted, and not there
        self._start_now = asyncio.Event()  # cuts a backoff short

    @property
    def _pid(self) -> int | None:
        alive = self._process is not None and self._process.returncode is None
        return self._process.pid if self._process and alive else None

    @property
    def _state(self) -> State:
        if self._pid is not None:
            return "paused" if self._paused else "running"
        return "restarting" if self._wanted.is_set() else "stopped"

    async def status(self) -> ProcessStatus:
        state, pid = self._state, self._pid
        ready = state == "running" and await asyncio.to_thread(self.spec.answers)
        return ProcessStatus(self.spec.name, state, ready, pid, self.restarts, self.last_exit)

    async def run(self) -> None:
        pause: float | None = None
        while True:
            while not self._wanted.is_set():
                self._idle.set()
                await self._wanted.wait()
            self._idle.clear()
            began = time.monotonic()
            pid = await self._run_once()
            if not self._wanted.is_set():
                say("process.stopped", process=self.spec.name, pid=pid, exit=self.last_exit)
                continue
            pause = next_pause(pause, time.monotonic() - began)
            self.restarts += 1
            self.lost_ports = [port for port in self.spec.ports if not is_free(port)]
            say(
                "process.died",
                process=self.spec.name,
                pid=pid,
                exit=self.last_exit,
                lost_ports=self.lost_ports,
                next_try_seconds=pause,
            )
            self._start_now.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._start_now.wait(), pause)

    async def start(self) -> None:
        self._wanted.set()
        self._start_now.set()

    async def stop(self, number: signal.Signals | None = None) -> None:
        """Return once it is gone."""
        self._wanted.clear()
        self._start_now.set()
        self._signal_to_stop(number or self.spec.stop_signal)
        try:
            await asyncio.wait_for(self._idle.wait(), self.spec.stop_seconds)
        except TimeoutError:
            say("process.would_not_stop", process=self.spec.name, pid=self._pid)
            self._signal_to_stop(signal.SIGKILL)
            await self._idle.wait()

    async def kill(self) -> None:
        """Return once it is gone."""
        process = self._existing()
        signal_tree(process.pid, signal.SIGKILL)
        await process.wait()

    async def pause(self) -> None:
        signal_tree(self._existing().pid, signal.SIGSTOP)
        self._paused = True

    async def resume(self) -> None:
        signal_tree(self._existing().pid, signal.SIGCONT)
        self._paused = False

    def _existing(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            raise StackError(f"{self.spec.name} has no process at the moment: it is {self._state}")
        return self._process

    def _signal_to_stop(self, number: signal.Signals) -> None:
        if (pid := self._pid) is None:
            return
        if number is signal.SIGKILL:
            signal_tree(pid, number)
            return
        if self._paused:
            signal_tree(pid, signal.SIGCONT)
        signal_one(pid, number)

    async def _run_once(self) -> int | None:
        """Run the process to its end. A start that fails is an end too."""
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
        say("process.started", process=spec.name, pid=process.pid)
        if not self._wanted.is_set():  # stopped while it was being started
            self._signal_to_stop(spec.stop_signal)
        code = await process.wait()
        self.last_exit = f"signal {-code}" if code < 0 else f"status {code}"
        return process.pid
