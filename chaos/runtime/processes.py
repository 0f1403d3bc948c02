"""Processes we started, told from all others for certain, and ended.

Owns: identity (a pid alone is reused; with its start time and the boot it is not), the record
of what a stack started, trees of processes, and the sweep of what a dead supervisor left.
Must not know: what the processes are for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

MARK = "SAGAPROOF_STACK"  # in the environment of everything a stack starts: its directory
POLL_SECONDS = 0.02
POSTGRES_ENDS_WITHIN_SECONDS = 5.0


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
    """What no other process has or had: boot and start time. None: no such process, or a zombie."""
    stat = _stat(pid)
    if stat is None or stat[0] in "ZX":
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}:{stat[19]}"


def record(file: Path, name: str, pid: int) -> None:
    """Append-only, so that a crash in the middle of it harms nothing."""
    with file.open("a") as lines:
        lines.write(f"{name} {pid} {identity(pid)}\n")


def recorded(file: Path) -> list[Started]:
    """Those on record that are still alive."""
    if not file.exists():
        return []
    fields = (line.split() for line in file.read_text().splitlines())
    started = (Started(f[0], int(f[1]), f[2]) for f in fields if len(f) == 3)
    return [process for process in started if process.alive]


def sweep(directory: Path, record_file: Path) -> None:
    """End whatever a stack still runs. For the holder of its lock."""
    left = {process.pid: process for process in (*_marked(directory), *recorded(record_file))}
    postgres = [process for process in left.values() if process.name == "postgres"]
    for process in postgres:
        # Immediate shutdown. Killed, it would leave its shared memory behind.
        signal_tree(process.pid, signal.SIGCONT)
        signal_one(process.pid, signal.SIGQUIT)
    for process in left.values():
        if process not in postgres:
            signal_tree(process.pid, signal.SIGKILL)
    if not gone_within(postgres, POSTGRES_ENDS_WITHIN_SECONDS):
        for process in postgres:
            signal_tree(process.pid, signal.SIGKILL)
    if not gone_within(left.values(), POSTGRES_ENDS_WITHIN_SECONDS):
        raise OSError(f"killed and still there: {[p for p in left.values() if p.alive]}")


def signal_tree(pid: int, number: signal.Signals) -> None:
    """To a process and all its descendants, who cannot fork away meanwhile."""
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
    with contextlib.suppress(ProcessLookupError):  # what it was to be told no longer matters
        os.kill(pid, number)


def gone_within(processes: Iterable[Started], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    waiting = list(processes)
    while waiting := [process for process in waiting if process.alive]:
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _marked(directory: Path) -> Iterator[Started]:
    """Those that a supervisor had no time to record. (Some environments cannot be read, by root
    in a container for one; hence the record.)"""
    mark = f"{MARK}={directory}".encode()
    for pid, _ in _parents():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        known = identity(pid)
        if mark in environment and known is not None:
            yield Started("unrecorded", pid, known)


def _parents() -> Iterator[tuple[int, int]]:
    """Every process and its parent."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := _stat(int(entry))):
            yield int(entry), int(stat[1])


def _stat(pid: int) -> list[str] | None:
    """/proc/PID/stat from its third field on: state, parent, ... start time."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()  # the name before it may hold anything
