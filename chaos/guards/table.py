"""The guards, each with the mutant that lacks it, and the trial under which it is missed.

Owns: the table. Must not know: how a guard is taken out (tests/mutants does it, by an entry module
of its own; nothing in the services knows of it), nor what a trial does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import LiteralString

from chaos.guards.trials import TRIALS, Trial
from chaos.runtime import SERVICES

MUTANTS = "tests.mutants"


@dataclass(frozen=True)
class Guard:
    """One row. `expects` names a witness that must be among those who notice."""

    name: str
    keeps: str
    """Its purpose."""
    out: tuple[str, ...]
    """The guards that `tests.mutants` takes out."""
    of: tuple[str, ...]
    """The services whose processes lack it."""
    under: str
    expects: str
    beside: str = ""
    """The guards that are out, too, since they stand behind this one and would hide it."""
    unlocked: tuple[LiteralString, ...] = ()
    """Statements that drop the constraints which are out, too."""

    @property
    def trial(self) -> Trial:
        return TRIALS[self.under]

    def entry(self) -> dict[str, str]:
        return {s: f"{MUTANTS} {','.join(self.out)} {SERVICES[s].entry}" for s in self.of}


_EFFECT_UNLOCKED: tuple[LiteralString, ...] = (
    "alter table payment_svc.transfer drop constraint effect_once",
    "alter table payment_svc.transfer drop constraint transfer_pk cascade",
    "drop index payment_svc.one_charge_per_saga",
)
_CHARGED_TWICE = "one charge per order"

GUARDS: tuple[Guard, ...] = (
    Guard(
        "inbox", "what was handled is not handled again",
        ("inbox",), ("payment",), "tripled-charges", "transfer_pk",
    ),
    Guard(
        "unique-effect-row", "one effect for one (saga, step), in DDL",
        ("inbox", "charged-already"), ("payment",), "tripled-charges", _CHARGED_TWICE,
        "the inbox, behind which it stands, and the charge's id, which follows from the saga's",
        _EFFECT_UNLOCKED,
    ),
    Guard(
        "fence",
        "an undo leaves a tombstone, and its action, should it come later, is refused",
        ("fence",), ("payment",), "charges-past-their-undo", "rejected costs nothing",
    ),
    Guard(
        "stored-reply", "a repeat is answered as the first one was",
        ("stored-reply",), ("order", "door"), "lost-confirmations", "at rest",
    ),
    Guard(
        "outbox", "what a transaction sends leaves only once it is committed",
        ("outbox",), ("orchestrator",), "killed-while-giving-up", "confirmed is charged once",
    ),
    Guard(
        "ack-after-commit", "what was in hand when a process died comes again",
        ("ack-after-commit",), ("payment",), "killed-with-a-charge", "at rest",
        "resends, which would hide it at the price of a step's timeout",
    ),
    Guard(
        "semantic-lock", "only what is HELD is dispatched: a released reservation is not",
        ("fence", "semantic-lock"), ("inventory",), "dispatch-past-release",
        "rejected keeps no stock",
        "the fence, which refuses a late dispatch before the lock is asked",
    ),
    Guard(
        "conditional-stock-update", "pieces are reserved only if there are enough",
        ("enough-on-hand",), ("inventory",), "last-unit", "on_hand_not_negative",
    ),
    Guard(
        "stock-constraint", "there are never less than none, in DDL",
        ("enough-on-hand",), ("inventory",), "last-unit", "stock is conserved",
        "the conditional update, behind which it stands",
        ("alter table inventory_svc.stock drop constraint on_hand_not_negative",),
    ),
    Guard(
        "stock-lock", "two replicas do not take the same pieces at once",
        ("stock-lock",), ("inventory",), "contended-by-replicas", "stock matches reservations",
    ),
    Guard(
        "return-lock", "an order is locked by one return at a time",
        ("return-lock",), ("order", "door"), "returns-race", "one_return_per_order",
    ),
    Guard(
        "return-waits", "an order is locked by no return while its own saga is at work on it",
        ("return-lock",), ("order", "door"), "return-meets-order", "confirmed is charged once",
    ),
    Guard(
        "refund-reread",
        "a refund reads again, under the account's lock, whether the money was given back",
        ("return-lock", "refunded-already"), ("order", "door", "payment"), "returns-race",
        "transfer_pk",
        "the lock of the order, which lets in one return, in code and in DDL",
        ("drop index order_svc.one_return_per_order",),
    ),
    Guard(
        "refund-constraint", "one refund per charge, in DDL",
        ("return-lock", "refunded-already"), ("order", "door", "payment"), "returns-race",
        "refunds match their charge",
        "the lock of the order, the reading again, and the refund's id, which follows from the"
        " charge's",
        (
            "drop index order_svc.one_return_per_order",
            "alter table payment_svc.transfer drop constraint one_refund_per_charge",
            "alter table payment_svc.transfer drop constraint transfer_pk cascade",
        ),
    ),
    Guard(
        "awaited-replies-only", "a reply that is not awaited moves nothing",
        ("only-awaited",), ("orchestrator",), "tripled-replies",
        "completed_means_every_step_done",
    ),
    Guard(
        "compensation-completeness", "a step of unknown outcome is undone, too",
        ("unknown-is-undone",), ("orchestrator",), "charges-found-late", "rejected costs nothing",
    ),
    Guard(
        "end-when-settled", "no saga ends before its last undo is confirmed",
        ("end-when-settled",), ("orchestrator",), "unheard-rejections",
        "compensated_means_every_step_settled",
    ),
    Guard(
        "approval-gate",
        "no order passes a gate that no person let through, if one is to be asked",
        ("gate",), ("orchestrator",), "nobody-decides", "the orders' ends",
    ),
    Guard(
        "dead-letter-told", "the saga is told of its dead command when that is taken in",
        ("dead-letter-told",), ("orchestrator",), "garbled-charges", "at rest",
        "resends, which would hide it at the price of a step's timeout",
    ),
)  # fmt: skip
