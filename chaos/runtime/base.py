"""The one way chaos starts, breaks, watches and stops a stack, whatever runs its processes."""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

from chaos.runtime import (
    EVERYTHING,
    Endpoints,
    Plan,
    ProcessStatus,
    Progress,
    StackError,
    silent,
)
from chaos.runtime.stack import Stack

LOG_TAIL_LINES = 15
EXITS_AT_START = 3  # that often, and `up` gives up


class NotUpError(StackError):
    """No stack of that name is up."""


class Runtime(ABC):
    """One stack: two servers and the service processes `payment`, `payment-2`, ...

    Every method raises StackError when it cannot do what it says. A stack may be brought up by
    one process and down by another: only the tether is kept between two calls.
    """

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._tether: int | None = None  # a pipe; if it closes before KEEP, the stack ends

    @property
    def name(self) -> str:
        return self._stack.name

    @abstractmethod
    def up(
        self, plan: Plan = EVERYTHING, *, tethered: bool = False, progress: Progress = silent
    ) -> Endpoints:
        """Start everything and return when all is ready; clean up if that fails.

        A tethered stack ends with the process that brought it up, however that dies.
        """

    @abstractmethod
    def down(self, *, keep_logs: bool = False) -> None:
        """Stop everything and remove what it left. Nothing to do is not an error."""

    def endpoints(self) -> Endpoints:
        try:
            return self._stack.read_endpoints()
        except FileNotFoundError:
            raise self._not_up() from None

    @abstractmethod
    def status(self) -> Sequence[ProcessStatus]: ...

    @abstractmethod
    def logs(self, process: str) -> Iterator[str]:
        """Yield a process's log from the beginning, line by line, over all its restarts."""

    @abstractmethod
    def start(self, process: str) -> None:
        """Start a stopped process, or a restarting one at once."""

    @abstractmethod
    def stop(self, process: str) -> None:
        """SIGTERM, and gone on return. It stays down until started."""

    @abstractmethod
    def kill(self, process: str) -> None:
        """SIGKILL, and gone on return. It is restarted, with backoff."""

    @abstractmethod
    def pause(self, process: str) -> None:
        """SIGSTOP: it keeps its connections and locks, and does nothing."""

    @abstractmethod
    def resume(self, process: str) -> None:
        """SIGCONT."""

    @abstractmethod
    def rabbitmqctl(self, *arguments: str) -> str:
        """Return the output of rabbitmqctl on the broker's machine; OSError if it fails."""

    def save_logs_and_down(self, directory: Path) -> None:
        """Take the stack down and move its logs to a directory."""
        self.down(keep_logs=True)
        if self._stack.logs.exists():
            shutil.copytree(self._stack.logs, directory, dirs_exist_ok=True)
        self.down()

    def _saved_log(self, process: str) -> Iterator[str]:
        with self._stack.log(process).open(errors="replace") as lines:
            yield from (line.rstrip("\n") for line in lines)

    def _prepare(self, plan: Plan) -> None:
        self._stack.clear(keep_logs=False)
        self._stack.logs.mkdir(mode=0o700)
        self._stack.write_plan(plan)

    def _drop_tether(self, word: bytes = b"") -> None:
        if self._tether is not None:
            os.write(self._tether, word)
            os.close(self._tether)
            self._tether = None

    def _is_up_already(self) -> StackError:
        return StackError(
            f"stack {self.name} is up already: `chaos down` first, or choose another --name"
        )

    def _is_busy(self) -> StackError:
        return StackError(f"another command is busy with stack {self.name}: try again")

    def _not_up(self) -> NotUpError:
        return NotUpError(f"stack {self.name} is not up: `chaos up` brings it up")


def log_tail(lines: Sequence[str]) -> str:
    return "its log ends:\n" + "\n".join(lines[-LOG_TAIL_LINES:])
