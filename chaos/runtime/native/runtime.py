"""The native runtime: processes on this machine, kept by a supervisor process per stack."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from chaos.runtime import (
    EVERYTHING,
    Endpoints,
    Plan,
    ProcessStatus,
    Progress,
    StackError,
    silent,
)
from chaos.runtime.base import NotUpError, Runtime, log_tail
from chaos.runtime.native.install import programs
from chaos.runtime.processes import recorded, signal_one, sweep
from chaos.runtime.stack import CHECKOUT, KEEP, Stack, default_name

ASK_SECONDS = 45.0  # a server may take 30 to stop
DOWN_SECONDS = 40.0
HUNG_SECONDS = 3.0
POLL_SECONDS = 0.05


def all_names() -> list[str]:
    return Stack("any").names()


class NativeRuntime(Runtime):
    """Requests to a stack's supervisor, over its control socket."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__(Stack(name or default_name()))

    def up(
        self, plan: Plan = EVERYTHING, *, tethered: bool = False, progress: Progress = silent
    ) -> Endpoints:
        if sys.platform != "linux":
            raise StackError("the native runtime reads /proc and needs Linux")
        programs(progress)
        self._stack.create()
        lock = self._stack.take()
        if lock is None:
            raise self._is_up_already()
        try:
            self._launch(lock, plan)
            self._wait_until_up(progress)
            endpoints = self.endpoints()
            if not tethered:
                self._drop_tether(KEEP)
        except BaseException:  # an interrupt too
            self.down()
            raise
        return endpoints

    def down(self, *, keep_logs: bool = False) -> None:
        try:
            self._ask("down", keep_logs=keep_logs)
            seconds = DOWN_SECONDS
        except StackError:
            seconds = HUNG_SECONDS
        self._drop_tether()
        lock = self._stack.take_within(seconds)
        if lock is None and self._stack.directory.exists():
            lock = self._take_from_hung()
        if lock is None:
            return
        try:
            sweep(self._stack.directory, self._stack.started)
            self._stack.remove(keep_logs=keep_logs)
        finally:
            os.close(lock)

    def status(self) -> list[ProcessStatus]:
        return [ProcessStatus(**status) for status in self._ask("status")]

    def logs(self, process: str) -> Iterator[str]:
        path = self._stack.log(process)
        if path not in (known := sorted(self._stack.logs.glob("*.log"))):
            there = ", ".join(log.stem for log in known) or "none"
            raise StackError(f"no log of {process!r} in stack {self.name}; there are: {there}")
        yield from self._saved_log(process)

    def start(self, process: str) -> None:
        self._ask("start", process=process)

    def stop(self, process: str) -> None:
        self._ask("stop", process=process)

    def kill(self, process: str) -> None:
        self._ask("kill", process=process)

    def pause(self, process: str) -> None:
        self._ask("pause", process=process)

    def resume(self, process: str) -> None:
        self._ask("resume", process=process)

    def rabbitmqctl(self, *arguments: str) -> str:
        done = self._ask("rabbitmqctl", arguments=arguments)
        if done["status"] != 0:
            raise OSError(f"rabbitmqctl {arguments[:1]}: {done['errors'].strip()[-400:]}")
        return str(done["output"])

    def _launch(self, lock: int, plan: Plan) -> None:
        """Start the supervisor, which inherits the lock and the other end of the tether."""
        stack = self._stack
        far_end, self._tether = os.pipe()
        try:
            sweep(stack.directory, stack.started)
            self._prepare(plan)
            with stack.log("supervisor").open("ab") as log:
                done = subprocess.run(
                    [sys.executable, "-m", "chaos.runtime.native.supervisor", self.name, str(lock)],
                    cwd=CHECKOUT, stdin=far_end, stdout=log, stderr=log,
                    pass_fds=[lock], start_new_session=True,
                )  # fmt: skip
        finally:
            os.close(lock)
            os.close(far_end)
        if done.returncode != 0:
            raise self._supervisor_ended()

    def _wait_until_up(self, progress: Progress) -> None:
        shown = None
        while True:
            try:
                now = self._ask("stage")
            except NotUpError:
                raise self._supervisor_ended() from None
            if now["error"]:
                raise StackError(now["error"])
            if now["up"]:
                return
            if now["stage"] != shown:
                shown = now["stage"]
                progress(shown)
            time.sleep(POLL_SECONDS)

    def _take_from_hung(self) -> int | None:
        for process in recorded(self._stack.started):
            if process.name == "supervisor":
                signal_one(process.pid, signal.SIGKILL)
        lock = self._stack.take_within(HUNG_SECONDS)
        if lock is None and self._stack.directory.exists():
            raise self._is_busy()
        return lock

    def _ask(self, do: str, **arguments: Any) -> Any:
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(ASK_SECONDS)
            try:
                control.connect(str(self._stack.control))
                control.sendall(json.dumps({"do": do, **arguments}).encode() + b"\n")
                line = control.makefile().readline()
            except TimeoutError:
                raise StackError(f"stack {self.name} does not answer: `chaos down` it") from None
            except OSError:
                raise self._not_up() from None
        if not line:
            raise self._not_up()
        reply = json.loads(line)
        if reply["error"]:
            raise StackError(reply["error"])
        return reply["answer"]

    def _supervisor_ended(self) -> StackError:
        lines = self._stack.log("supervisor").read_text().splitlines()
        return StackError(f"the supervisor ended; {log_tail(lines)}")
