"""From the evidence to a verdict per invariant, and one over all. Pure.

Owns: pass, fail and unknown. Must not know: what the invariants say. What needs a
system at rest is `unknown` before; a checker that crashes says `unknown`, never `pass`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from chaos.judge.evidence import Case, Order
from chaos.judge.invariants import AT_REST, INVARIANTS
from chaos.judge.invariants.looked import Check
from chaos.judge.invariants.tallied import (
    nothing_is_duplicated,
    nothing_is_lost,
    nothing_is_unexpected,
)

EXAMPLES = 5  # offences shown per invariant; the count is always whole


class Verdict(StrEnum):
    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Finding:
    """One invariant's verdict."""

    invariant: str
    says: str
    verdict: Verdict
    looked_at: int
    offences: int
    examples: tuple[str, ...]


class Tally(NamedTuple):
    """The words of design.md, section 1, as numbers; None where it could not be judged."""

    lost: int | None
    duplicated: int | None
    unexpected: int | None
    recovered: int


def judge(case: Case) -> list[Finding]:
    """One finding per invariant, in the order of the table."""
    return [_find(check, case) for check in INVARIANTS]


def overall(verdicts: Iterable[Verdict]) -> Verdict:
    """fail if anything failed, else unknown if anything is (or nothing was judged), else pass."""
    found = set(verdicts)
    for worst in (Verdict.FAIL, Verdict.UNKNOWN):
        if worst in found:
            return worst
    return Verdict.PASS if found else Verdict.UNKNOWN


def tally(case: Case, findings: Iterable[Finding]) -> Tally:
    by_name = {f.invariant: f for f in findings}

    def offences(check: Check) -> int | None:
        finding = by_name[name_of(check)]
        return None if finding.verdict is Verdict.UNKNOWN else finding.offences

    return Tally(
        lost=offences(nothing_is_lost),
        duplicated=offences(nothing_is_duplicated),
        unexpected=offences(nothing_is_unexpected),
        recovered=sum(_recovered(order, case) for order in case.snapshot.orders),
    )


def name_of(check: Check) -> str:
    return getattr(check, "__name__", repr(check)).replace("_", " ")


def _find(check: Check, case: Case) -> Finding:
    name, says = name_of(check), (check.__doc__ or "").strip()
    if check in AT_REST and not case.quiescent:
        return Finding(name, says, Verdict.UNKNOWN, 0, 0, ("the system did not come to rest",))
    try:
        looked = check(case)
    except Exception as error:  # noqa: BLE001 - whatever broke the checker, it proved nothing
        return Finding(name, says, Verdict.UNKNOWN, 0, 0, (f"the checker crashed: {error!r}",))
    verdict = Verdict.FAIL if looked.offences else Verdict.PASS
    shown = tuple(looked.offences[:EXAMPLES])
    return Finding(name, says, verdict, looked.at, len(looked.offences), shown)


def _recovered(order: Order, case: Case) -> bool:
    """It was in flight when a fault healed, and settled only after."""
    settled = order.settled_at
    return settled is not None and any(order.placed_at < t < settled for t in case.facts.healed)
