"""The experiment's record: what was asked, what was answered, what was broken, and when.

Owns: the events and their file, one JSON object per line, only ever appended to, so
that what a crash leaves behind can still be read. Must not know: what any of it means
for the verdict (`workload` reads that out of it).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias

CustomerKey: TypeAlias = tuple[str, str]


def customer_key(body: Mapping[str, Any], key: str) -> CustomerKey:
    """Keys belong to customers: two customers may use the same one."""
    return str(body.get("customer")), key


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, kw_only=True)
class Event:
    at: datetime = field(default_factory=_now)


@dataclass(frozen=True, kw_only=True)
class Asked(Event):
    """An order goes out. `run` counts how often the file was placed, `line` is its line there."""

    run: int
    line: int
    key: str
    body: dict[str, Any]

    @property
    def customer_key(self) -> CustomerKey:
        return customer_key(self.body, self.key)


@dataclass(frozen=True, kw_only=True)
class Answered(Event):
    """The door said yes."""

    run: int
    line: int
    status: int
    body: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Refused(Event):
    """The door said no, with a 4xx: nothing was written."""

    run: int
    line: int
    status: int
    body: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ReturnAsked(Event):
    """An order is to be given back."""

    order_id: str
    key: str


@dataclass(frozen=True, kw_only=True)
class ReturnAnswered(Event):
    """What the door said to it; no return_id: it said no."""

    order_id: str
    key: str
    status: int
    return_id: str | None


@dataclass(frozen=True, kw_only=True)
class Unknown(Event):
    """No answer, or a 5xx: it may or may not have happened. The same key is asked again."""

    run: int
    line: int
    why: str


@dataclass(frozen=True, kw_only=True)
class Fault(Event):
    """Something was broken (`healed` false) or was seen whole again."""

    what: str
    target: str
    healed: bool


KINDS: dict[str, type[Event]] = {
    c.__name__: c for c in (Asked, Answered, ReturnAsked, ReturnAnswered, Refused, Unknown, Fault)
}


class History:
    """Appends events to a file and keeps them at hand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[Event] = []
        self._file = path.open("a", encoding="utf-8")
        self._lock = Lock()  # orders go in on one thread while another breaks things

    def record(self, event: Event) -> None:
        row = {"kind": type(event).__name__, **asdict(event), "at": event.at.isoformat()}
        line = json.dumps(row, separators=(",", ":")) + "\n"
        with self._lock:
            self.events.append(event)
            self._file.write(line)

    def close(self) -> None:
        self._file.close()


def read_history(path: Path) -> Iterator[Event]:
    """The events of a file. A last line cut off by a crash is left out; any other raises."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for text in lines:
        if text is lines[-1] and not text.endswith("\n"):
            return
        row = json.loads(text)
        kind = KINDS[row.pop("kind")]
        yield kind(**{**row, "at": datetime.fromisoformat(row["at"])})
