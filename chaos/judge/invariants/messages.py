"""Invariants of messages. Pure."""

from __future__ import annotations

from chaos.judge.case import Case
from chaos.judge.invariants.checked import Checked


def outboxes_are_empty(case: Case) -> Checked:
    """No message is left in an outbox."""
    outboxes = case.snapshot.outboxes
    return Checked(len(outboxes), [f"{s}: {n} messages" for s, n in outboxes.items() if n])


def inboxes_hold_no_claim(case: Case) -> Checked:
    """No inbox row was committed undecided."""
    claims = case.snapshot.claims
    bad = [f"{c.schema}: {c.step} {c.direction} of saga {c.saga_id}" for c in claims]
    return Checked(len(case.snapshot.outboxes), bad)


def dead_letters_are_explained(case: Case) -> Checked:
    """Every dead letter is one the scenario meant to cause."""
    bad = [
        f"{letter.queue}: {letter.reason} ({letter.about})"
        for letter in case.snapshot.dead_letters
        if (letter.queue, letter.reason) not in case.facts.explained
    ]
    return Checked(len(case.snapshot.dead_letters), bad)
