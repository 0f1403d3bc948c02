"""Processes we started: their identity, the record of them, signals to trees, and the sweep."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from chaos.waiting import poll

MARK = "SAGAPROOF_STACK"  # in the environment of everything a stack starts: its directory
END_SECONDS = 5.0


@dataclass(frozen=True)
class Started:
    """A process as it was when we started it."""

    name: str
    pid: int
    identity: str

    @property
    def alive(self) -> bool:
        return identity(self.pid) == self.identity


def identity(pid: int) -> str | None:
    """Return boot and start time, since pids are reused; None if it is gone or a zombie."""
    stat = _stat(pid)
    if stat is None or stat[0] in "ZX":
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}:{stat[19]}"


def record(file: Path, name: str, pid: int) -> None:
    with file.open("a") as lines:
        lines.write(f"{name} {pid} {identity(pid)}\n")


def recorded(file: Path) -> list[Started]:
    """Read the record, of which a crash may have cut the last line; keep what is still alive."""
    if not file.exists():
        return []
    fields = (line.split() for line in file.read_text().splitlines())
    started = (Started(f[0], int(f[1]), f[2]) for f in fields if len(f) == 3)
    return [process for process in started if process.alive]


def sweep(directory: Path, record_file: Path) -> None:
    """End everything a stack still runs; only for the holder of its lock."""
    left = {process.pid: process for process in (*_marked(directory), *recorded(record_file))}
    postgres = [process for process in left.values() if process.name == "postgres"]
    for process in postgres:
        # Immediate shutdown. SIGKILL would leave its shared memory behind.
        signal_tree(process.pid, signal.SIGCONT)
        signal_one(process.pid, signal.SIGQUIT)
    for process in left.values():
        if process not in postgres:
            signal_tree(process.pid, signal.SIGKILL)
    if not gone_within(postgres, END_SECONDS):
        for process in postgres:
            signal_tree(process.pid, signal.SIGKILL)
    if not gone_within(left.values(), END_SECONDS):
        raise OSError(f"killed and still there: {[p for p in left.values() if p.alive]}")


def signal_tree(pid: int, number: signal.Signals) -> None:
    """Signal a process and all its descendants; stop them first, so that they cannot fork away."""
    family = generation = [pid]
    while generation:
        if number in (signal.SIGSTOP, signal.SIGKILL):
            for member in generation:
                signal_one(member, signal.SIGSTOP)
        generation = [child for child, parent in _parents() if parent in generation]
        family = family + generation
    if number is not signal.SIGSTOP:
        for member in family:
            signal_one(member, number)


def signal_one(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def gone_within(processes: Collection[Started], seconds: float) -> bool:
    return poll(lambda: not any(process.alive for process in processes), seconds)


def _marked(directory: Path) -> Iterator[Started]:
    """Find processes by their mark, for which there was no time to record them.

    Some environments cannot be read (by root in a container, for one); hence the record.
    """
    mark = f"{MARK}={directory}".encode()
    for pid, _ in _parents():
        with contextlib.suppress(OSError):
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if mark in environment and (known := identity(pid)):
                yield Started("unrecorded", pid, known)


def _parents() -> Iterator[tuple[int, int]]:
    """Yield every process and its parent."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := _stat(int(entry))):
            yield int(entry), int(stat[1])


def _stat(pid: int) -> list[str] | None:
    """Return /proc/PID/stat from its third field on: state, parent, ... start time."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()  # the name before it may hold anything
