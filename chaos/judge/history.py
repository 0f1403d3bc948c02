"""The experiment's record: what was asked, what was answered, what was broken, and when.

A file with one JSON object per line, only ever appended to, so that it can be read after a crash.
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
    """Return the key with its customer: two customers may use the same one."""
    return str(body.get("customer")), key


@dataclass(frozen=True, kw_only=True)
class Event:
    """An entry of the history."""

    at: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True, kw_only=True)
class _OfOrder(Event):
    """About an order: `run` counts how often the file was placed, `line` is its line there."""

    run: int
    line: int


@dataclass(frozen=True, kw_only=True)
class Asked(_OfOrder):
    """A request to place an order."""

    key: str
    body: dict[str, Any]

    @property
    def customer_key(self) -> CustomerKey:
        return customer_key(self.body, self.key)


@dataclass(frozen=True, kw_only=True)
class Answered(_OfOrder):
    """The door's acceptance."""

    status: int
    body: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Refused(_OfOrder):
    """The door's 4xx: nothing was written."""

    status: int
    body: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Unknown(_OfOrder):
    """No answer, or a 5xx: it may or may not have happened. The same key is asked again."""

    why: str


@dataclass(frozen=True, kw_only=True)
class ReturnAsked(Event):
    """A request to return an order."""

    order_id: str
    key: str


@dataclass(frozen=True, kw_only=True)
class ReturnAnswered(Event):
    """The door's answer to it; without a return_id it is a refusal."""

    order_id: str
    key: str
    status: int
    return_id: str | None


@dataclass(frozen=True, kw_only=True)
class Fault(Event):
    """The moment at which something was broken, or (`healed`) was seen whole again."""

    what: str
    target: str
    healed: bool


KINDS: dict[str, type[Event]] = {
    c.__name__: c for c in (Asked, Answered, ReturnAsked, ReturnAnswered, Refused, Unknown, Fault)
}


class History:
    """Events, appended to a file and kept in memory."""

    def __init__(self, path: Path) -> None:
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
    """Read the events of a file, without a last line that a crash cut off."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for text in lines:
        if text is lines[-1] and not text.endswith("\n"):
            return
        row = json.loads(text)
        kind = KINDS[row.pop("kind")]
        yield kind(**{**row, "at": datetime.fromisoformat(row["at"])})
