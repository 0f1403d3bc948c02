"""The Prometheus metrics that every process has.

Counters of messages are incremented once per batch; gauges that need SQL are refreshed every few
seconds (common/process/gauges.py). Every label has a small set of values: names of queues, messages
and steps in the code, never a value from a message.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0)

READY = Gauge("sagaproof_ready", "1 while the check holds; /ready names the problem", ["check"])

ENVELOPES = Counter("sagaproof_envelopes", "Envelopes handled, repeats among them", ["queue"])
BATCH_SECONDS = Histogram(
    "sagaproof_batch_seconds", "From a batch taken to it acked", ["queue"], buckets=SECONDS
)
HELD = Counter("sagaproof_batches_held", "Batches that waited for a server to return", ["queue"])
DEAD_LETTERS = Counter("sagaproof_dead_letters", "Messages dead-lettered", ["queue", "reason"])

COMMANDS = Counter("sagaproof_commands", "Commands acted on", ["command", "outcome"])
DUPLICATES = Counter(
    "sagaproof_duplicates", "Repeated commands, answered with the stored reply", ["command"]
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
