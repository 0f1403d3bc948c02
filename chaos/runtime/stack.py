"""A stack's directory: its name, its files, and the lock that says it is alive.

The lock is flock on the directory itself: a native `up` hands it to the supervisor without a gap,
and it ends with its holder however that dies.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from chaos.runtime import Endpoints, Plan, StackError
from chaos.waiting import poll

CHECKOUT = Path(__file__).resolve().parents[2]
KEEP = b"keep\n"  # on the tether: the stack is to outlive the process that brought it up
_PLAN = TypeAdapter(Plan)
_ENDPOINTS = TypeAdapter(Endpoints)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_SOCKET_PATH_LIMIT = 100  # the kernel's is 108, and Postgres appends its port


def base_directory() -> Path:
    """Return where this user's stacks live: not in a home, which servers' users may not enter."""
    asked = os.environ.get("SAGAPROOF_STATE_DIR")
    return Path(asked).resolve() if asked else Path(f"/var/tmp/sagaproof-{os.getuid()}")  # noqa: S108


def default_name() -> str:
    """Return this checkout's own name for a stack."""
    digest = hashlib.sha256(str(CHECKOUT).encode()).hexdigest()[:6]
    return f"{re.sub('[^A-Za-z0-9_-]', '-', CHECKOUT.name)[:30].lstrip('-_') or 'stack'}-{digest}"


@dataclass(frozen=True)
class Stack:
    """The paths of one stack."""

    name: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise StackError(f"{self.name!r} is no name for a stack: letters, digits, - and _")
        if len(str(self.postgres / ".s.PGSQL.12345")) > _SOCKET_PATH_LIMIT:
            raise StackError(
                f"{self.directory} is too long for a unix socket: set SAGAPROOF_STATE_DIR shorter"
            )

    @property
    def directory(self) -> Path:
        return base_directory() / self.name

    @property
    def control(self) -> Path:
        return self.directory / "control"

    @property
    def started(self) -> Path:
        """The record of every process that was ever started here; see processes.py."""
        return self.directory / "started"

    @property
    def logs(self) -> Path:
        return self.directory / "logs"

    @property
    def postgres(self) -> Path:
        return self.directory / "postgres"

    @property
    def rabbitmq(self) -> Path:
        return self.directory / "rabbitmq"

    def log(self, process: str) -> Path:
        return self.logs / f"{process}.log"

    def names(self) -> list[str]:
        """Return all stacks beside this one."""
        base = self.directory.parent
        entries = sorted(base.iterdir()) if base.is_dir() else []
        return [entry.name for entry in entries if entry.is_dir() and _NAME.fullmatch(entry.name)]

    def create(self) -> None:
        """Create the directory, which the servers' own users may pass through."""
        base = self.directory.parent
        base.mkdir(mode=0o755, parents=True, exist_ok=True)
        if base.is_symlink() or base.stat().st_uid != os.getuid():
            raise StackError(f"{base} is not ours: remove it, or set SAGAPROOF_STATE_DIR")
        self.directory.mkdir(exist_ok=True)
        self.directory.chmod(0o711)

    def clear(self, *, keep_logs: bool) -> None:
        """Empty the directory; only for the holder of the lock."""
        for entry in self.directory.iterdir():
            if not entry.is_dir():
                entry.unlink()
            elif not (keep_logs and entry == self.logs):
                shutil.rmtree(entry)

    def remove(self, *, keep_logs: bool) -> None:
        """Remove the directory; only for the holder of the lock, and its last act."""
        self.clear(keep_logs=keep_logs)
        if not keep_logs:
            self.directory.rmdir()

    def write_plan(self, plan: Plan) -> None:
        (self.directory / "plan.json").write_bytes(_PLAN.dump_json(plan))

    def read_plan(self) -> Plan:
        return _PLAN.validate_json((self.directory / "plan.json").read_bytes())

    def write_endpoints(self, endpoints: Endpoints) -> None:
        text = _ENDPOINTS.dump_json(endpoints, indent=2).decode()
        write_private(self.directory / "endpoints.json", text)

    def read_endpoints(self) -> Endpoints:
        """Raise FileNotFoundError if the stack is not up."""
        return _ENDPOINTS.validate_json((self.directory / "endpoints.json").read_bytes())

    def take(self) -> int | None:
        """Take the lock as a file descriptor; None while it is held or there is no such stack."""
        try:
            lock = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.stat(self.directory), os.fstat(lock)):
                return lock
        except (BlockingIOError, FileNotFoundError):
            pass
        os.close(lock)  # held, or the lock of a directory that its holder has removed meanwhile
        return None

    def take_within(self, seconds: float) -> int | None:
        """Wait for the lock until its holder has let go or removed the directory."""
        lock: int | None = None

        def taken_or_gone() -> bool:
            nonlocal lock
            lock = self.take()
            return lock is not None or not self.directory.exists()

        poll(taken_or_gone, seconds)
        return lock


def read_plan_file(path: Path) -> Plan:
    """Read a Plan as JSON. Raises StackError, which says what is wrong with it."""
    try:
        return _PLAN.validate_json(path.read_bytes())
    except OSError as error:
        raise StackError(f"no plan to read: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise StackError(f"{path}: {where}: {first['msg']}") from error


def write_private(path: Path, text: str) -> None:
    """Write a file whole or not at all, readable by its owner only."""
    handle, temporary = tempfile.mkstemp(dir=path.parent)  # mode 0600
    with os.fdopen(handle, "w") as file:
        file.write(text)
    os.replace(temporary, path)
