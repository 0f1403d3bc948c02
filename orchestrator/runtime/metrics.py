"""Prometheus metrics of sagas: counted from saga log entries, and gauges read from the tables.

Owns the bound on labels that people write. Must not know: how anything is decided.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from uuid import UUID

from prometheus_client import REGISTRY, Counter, Gauge
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from common.kit.metrics import SECONDS
from common.storage.db import Tx
from orchestrator.engine.saga_log import Entry, EntryKind
from orchestrator.runtime import census

OTHER = "other"
_WORD = re.compile(r"[a-z][a-z0-9_]{0,47}")


class Durations(Collector):
    """A Prometheus histogram whose `add` is a bisection and an increment.

    The library's takes five times as long, which is noticeable when done for every reply.
    """

    def __init__(self, name: str, about: str, labels: Sequence[str]) -> None:
        self._name, self._about, self._labels = name, about, labels
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}
        REGISTRY.register(self)

    def add(self, labels: tuple[str, ...], seconds: float) -> None:
        counts = self._counts.get(labels)
        if counts is None:
            counts = self._counts[labels] = [0] * (len(SECONDS) + 1)
            self._sums[labels] = 0.0
        counts[bisect_left(SECONDS, seconds)] += 1
        self._sums[labels] += seconds

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._about, labels=self._labels)
        bounds = [*map(str, SECONDS), "+Inf"]
        for labels, counts in self._counts.items():
            buckets = [*zip(bounds, accumulate(counts), strict=True)]
            family.add_metric(labels, buckets, self._sums[labels])
        yield family


class Bounded:
    """A limit on the values of a label that come from outside; all above it are `other`."""

    def __init__(self, most: int = 40) -> None:
        self._most = most
        self._known: set[str] = set()

    def __call__(self, value: str | None) -> str:
        if value in self._known:
            return str(value)
        if value is None or len(self._known) >= self._most or not _WORD.fullmatch(value):
            return OTHER
        self._known.add(value)
        return value


ENTRIES = Counter(
    "sagaproof_saga_entries",
    "Saga log entries: started, sent, done, refused, timed_out, ignored, completed ...",
    ["entry", "step"],
)
RESENT = Counter("sagaproof_resent", "Commands sent again after a timeout", ["step", "direction"])
COMPENSATED = Counter("sagaproof_compensated", "Sagas that ended compensated", ["reason"])
STEP_SECONDS = Durations(
    "sagaproof_step_seconds", "From a step first sent to its answer", ["step", "direction"]
)

SAGAS = Gauge(
    "sagaproof_sagas", "Sagas that have not ended; those WAITING counted to 100", ["state"]
)
STUCK = Gauge("sagaproof_sagas_stuck", "Sagas past their SLA, or of another release")
IN_FLIGHT = Gauge("sagaproof_in_flight", "Sagas that await this step's answer", ["step"])
DEAD_LETTERS = Gauge(
    "sagaproof_dead_letters_open",
    "Open dead letters, counted to 10,000",
    ["queue"],
)
OVERDUE = Gauge("sagaproof_overdue_seconds", "How long ago the oldest undecided deadline passed")

_reason = Bounded()

Waited = tuple[str, str, float]  # step, direction, seconds


def count(log: Sequence[tuple[UUID, Entry]], waited: Iterable[Waited]) -> None:
    """Count what a committed transaction has written, and how long its answers took."""
    entries = Tally((entry.kind, entry.step or "") for _, entry in log)
    for _, entry in log:
        if entry.kind == EntryKind.SENT and (entry.attempt or 1) > 1:
            RESENT.labels(entry.step, entry.direction).inc()
        elif entry.kind == EntryKind.COMPENSATED:
            COMPENSATED.labels(_reason(entry.detail)).inc()
    for (name, step), number in entries.items():
        ENTRIES.labels(name, step).inc(number)
    for step, direction, seconds in waited:
        STEP_SECONDS.add((step, direction), seconds)


async def refresh(tx: Tx) -> None:
    """Refresh the gauges. Nothing awaits while they are set, so a scrape sees all or none."""
    seen = await census.census(tx)
    for gauge, counts in (
        (SAGAS, seen.states), (IN_FLIGHT, seen.steps), (DEAD_LETTERS, seen.dead_letters),
    ):  # fmt: skip
        gauge.clear()
        for label, number in counts.items():
            gauge.labels(label).set(number)
    STUCK.set(seen.stuck)
    OVERDUE.set(max(0.0, seen.overdue_seconds))
