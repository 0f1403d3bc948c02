"""A native stack's directory: its name, its files, who holds it.

Owns: where stacks live, what `up` and the supervisor leave there for each other, and the lock
that says a stack is alive. The lock is flock on the directory itself: it is handed from `up` to
the supervisor without a gap, and ends with its holder however that dies. Must not know: what
runs in a stack.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from chaos.runtime import Endpoints, Plan, StackError

CHECKOUT = Path(__file__).resolve().parents[2]
KEEP = b"keep\n"  # what `up` says to the supervisor when the stack is to outlive it
POLL_SECONDS = 0.02
_PLAN = TypeAdapter(Plan)
_ENDPOINTS = TypeAdapter(Endpoints)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_SOCKET_PATH_LIMIT = 100  # the kernel's is 108, and Postgres appends its port


def base_directory() -> Path:
    """Where this user's stacks live: not in the checkout nor a home, which servers that drop
    root may be unable to enter."""
    asked = os.environ.get("SAGAPROOF_STATE_DIR")
    return Path(asked).resolve() if asked else Path(f"/var/tmp/sagaproof-{os.getuid()}")  # noqa: S108


def default_name() -> str:
    """One stack per checkout, unless told otherwise."""
    digest = hashlib.sha256(str(CHECKOUT).encode()).hexdigest()[:6]
    return f"{re.sub('[^A-Za-z0-9_-]', '-', CHECKOUT.name)[:30].lstrip('-_') or 'stack'}-{digest}"


def all_names() -> list[str]:
    base = base_directory()
    entries = sorted(base.iterdir()) if base.is_dir() else []
    return [entry.name for entry in entries if entry.is_dir() and _NAME.fullmatch(entry.name)]


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
        """One line for every process that was ever started here; see processes.py."""
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

    def create(self) -> None:
        """The directory, open for passing through: the servers may run as users of their own."""
        base = self.directory.parent
        base.mkdir(mode=0o755, parents=True, exist_ok=True)
        if base.is_symlink() or base.stat().st_uid != os.getuid():
            raise StackError(f"{base} is not ours: remove it, or set SAGAPROOF_STATE_DIR")
        self.directory.mkdir(exist_ok=True)
        self.directory.chmod(0o711)

    def clear(self, *, keep_logs: bool) -> None:
        """Only for the holder of the lock."""
        for entry in self.directory.iterdir():
            if not entry.is_dir():
                entry.unlink()
            elif not (keep_logs and entry == self.logs):
                shutil.rmtree(entry)

    def remove(self, *, keep_logs: bool) -> None:
        """Only for the holder of the lock, and its last act."""
        self.clear(keep_logs=keep_logs)
        if not keep_logs:
            self.directory.rmdir()

    def write_plan(self, plan: Plan) -> None:
        self._plan.write_bytes(_PLAN.dump_json(plan))

    def read_plan(self) -> Plan:
        return _PLAN.validate_json(self._plan.read_bytes())

    def write_endpoints(self, endpoints: Endpoints) -> None:
        write_private(self._endpoints, _ENDPOINTS.dump_json(endpoints, indent=2).decode())

    def read_endpoints(self) -> Endpoints:
        """FileNotFoundError: it is not up."""
        return _ENDPOINTS.validate_json(self._endpoints.read_bytes())

    @property
    def _plan(self) -> Path:
        return self.directory / "plan.json"

    @property
    def _endpoints(self) -> Path:
        return self.directory / "endpoints.json"

    def take(self) -> int | None:
        """The lock as a file descriptor; None while somebody holds it or there is no such stack."""
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
        """Likewise, waiting for its holder. Nothing to wait for once the directory is gone."""
        deadline = time.monotonic() + seconds
        while (lock := self.take()) is None:
            if time.monotonic() > deadline or not self.directory.exists():
                return None
            time.sleep(POLL_SECONDS)
        return lock


def read_plan_file(path: Path) -> Plan:
    """A Plan as JSON; what is wrong with it is a StackError."""
    try:
        return _PLAN.validate_json(path.read_bytes())
    except OSError as error:
        raise StackError(f"no plan to read: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise StackError(f"{path}: {where}: {first['msg']}") from error


def write_private(path: Path, text: str) -> None:
    """Whole or not at all, and for nobody else's eyes."""
    handle, temporary = tempfile.mkstemp(dir=path.parent)  # mode 0600
    with os.fdopen(handle, "w") as file:
        file.write(text)
    os.replace(temporary, path)
