"""What every process counts, for Prometheus.

Owns: the metrics that all processes have, in the library's own registry, and the bound on
labels. Must not know: when anything is counted, nor how it is scraped.

What is counted on the way of a message is counted once per batch; what takes SQL is looked at
by the watch every few seconds (common/watch.py). Every label has a small set of values: names
of queues, messages and steps that the code knows, never one that a message brings along.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0)
OTHER = "other"
_WORD = re.compile(r"[a-z][a-z0-9_]{0,47}")

READY = Gauge("sagaproof_ready", "1 while the check holds; /ready names the problem", ["check"])

ENVELOPES = Counter("sagaproof_envelopes", "Envelopes handled, repeats among them", ["queue"])
BATCH_SECONDS = Histogram(
    "sagaproof_batch_seconds", "From a batch taken to it acked", ["queue"], buckets=SECONDS
)
HELD = Counter("sagaproof_batches_held", "Batches that waited for a server to return", ["queue"])
DEAD_LETTERS = Counter("sagaproof_dead_letters", "Envelopes set aside", ["queue", "reason"])

COMMANDS = Counter("sagaproof_commands", "Commands acted on", ["command", "outcome"])
DUPLICATES = Counter(
    "sagaproof_duplicates", "Commands that came again and heard the stored reply", ["command"]
)
FENCED = Counter(
    "sagaproof_fenced", "Late actions that came after their undo and were refused", ["command"]
)

RELAYED = Counter("sagaproof_relayed", "Outbox rows that the broker confirmed")
NOT_DELIVERED = Counter(
    "sagaproof_not_delivered", "Destinations that did not take what was published", ["fate"]
)
OUTBOX_ROWS = Gauge("sagaproof_outbox_rows", "Rows of this service's outbox, counted to 10,000")
OUTBOX_AGE = Gauge("sagaproof_outbox_oldest_seconds", "How long the oldest of them has waited")


class Durations(Collector):
    """A histogram of the library's shape to which adding is a bisection and an increment.

    Its own takes five times as long, which shows where it is done for every reply.
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
    """Values of a label that come from outside: so many different words, and `other`."""

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
