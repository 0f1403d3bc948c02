"""What must hold of messages. Pure."""

from __future__ import annotations

from chaos.judge.evidence import Case
from chaos.judge.invariants.looked import Looked


def outboxes_are_empty(case: Case) -> Looked:
    """No message is left in an outbox."""
    outboxes = case.snapshot.outboxes
    return Looked(len(outboxes), [f"{s}: {n} messages" for s, n in outboxes.items() if n])


def inboxes_hold_no_claim(case: Case) -> Looked:
    """No inbox row was committed undecided."""
    claims = case.snapshot.claims
    bad = [f"{c.schema}: {c.step} {c.direction} of saga {c.saga_id}" for c in claims]
    return Looked(len(case.snapshot.outboxes), bad)


def dead_letters_are_explained(case: Case) -> Looked:
    """Every dead letter is one the scenario meant to cause."""
    bad = [
        f"{letter.queue}: {letter.reason} ({letter.about})"
        for letter in case.snapshot.dead_letters
        if (letter.queue, letter.reason) not in case.facts.explained
    ]
    return Looked(len(case.snapshot.dead_letters), bad)
