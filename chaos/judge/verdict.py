"""From a case to a verdict per invariant, and one over all. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from chaos.judge.case import Case, Order
from chaos.judge.invariants import AT_REST, INVARIANTS, tallied
from chaos.judge.invariants.checked import Check

EXAMPLES = 5  # offences shown per invariant; their number is exact


class Verdict(StrEnum):
    """A verdict; `unknown` (not at rest, or a checker that crashed) is never a pass."""

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
    """The counts a report begins with; None where it could not be judged."""

    lost: int | None
    duplicated: int | None
    unexpected: int | None
    recovered: int  # orders that settled only after a fault healed


def judge(case: Case) -> list[Finding]:
    """Return one finding per invariant, in the order of the table."""
    return [_find(check, case) for check in INVARIANTS]


def overall(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the worst: fail, then unknown, then pass. No verdict at all is unknown."""
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
        lost=offences(tallied.nothing_is_lost),
        duplicated=offences(tallied.nothing_is_duplicated),
        unexpected=offences(tallied.nothing_is_unexpected),
        recovered=sum(_recovered(order, case) for order in case.snapshot.orders),
    )


def name_of(check: Check) -> str:
    return getattr(check, "__name__", repr(check)).replace("_", " ")


def _find(check: Check, case: Case) -> Finding:
    name, says = name_of(check), (check.__doc__ or "").strip()
    if check in AT_REST and not case.quiescent:
        return Finding(name, says, Verdict.UNKNOWN, 0, 0, ("the system did not come to rest",))
    try:
        checked = check(case)
    except Exception as error:  # noqa: BLE001 - a checker that crashed proved nothing
        return Finding(name, says, Verdict.UNKNOWN, 0, 0, (f"the checker crashed: {error!r}",))
    verdict = Verdict.FAIL if checked.offences else Verdict.PASS
    shown = tuple(checked.offences[:EXAMPLES])
    return Finding(name, says, verdict, checked.at, len(checked.offences), shown)


def _recovered(order: Order, case: Case) -> bool:
    settled = order.settled_at
    return settled is not None and any(order.placed_at < t < settled for t in case.facts.healed)
