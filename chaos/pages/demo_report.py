"""The report of a demo, for a person at a terminal and as one JSON object.

Owns: the verdict over both. Must not know: how anything was found out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from chaos.console.stage import COLOURS
from chaos.judge.history import Fault
from chaos.judge.verdict import Finding, Tally, Verdict, overall
from chaos.load.outcome import Count, Outcome
from chaos.pages.render import render


@dataclass(frozen=True)
class WrongLine:
    """A line that came to nothing, what the input says is wrong, and who refused it."""

    line: int
    problem: str
    answer: str


@dataclass(frozen=True)
class Report:
    """The orders of a demo, the faults that struck, and the outcome."""

    seed: int
    began: datetime
    lines: int
    unsendable: int
    wrong_lines: tuple[WrongLine, ...]
    outcomes: tuple[Outcome, ...]
    changed: tuple[str, ...]  # tables that a second placing of the file changed
    faults: tuple[Fault, ...]
    standing: tuple[str, ...]  # what did not come to rest
    findings: tuple[Finding, ...]
    tally: Tally
    seconds: dict[str, float]  # phase to how long it took

    @property
    def verdict(self) -> Verdict:
        return overall([*(f.verdict for f in self.findings), self.as_foretold])

    @property
    def as_foretold(self) -> Verdict:
        """True if each line, and every count, came out as the input alone says it must."""
        wrong = [c for o in self.outcomes for c in (*o.answers, *o.ends) if not c.fits]
        if any(o.deviations for o in self.outcomes) or self.changed:
            return Verdict.FAIL
        if self.standing or any(o.unanswered for o in self.outcomes):
            return Verdict.UNKNOWN  # what is missing may still come
        return Verdict.FAIL if wrong else Verdict.PASS

    @property
    def broken(self) -> list[tuple[float, Fault, float | None]]:
        """Each fault with the second it struck, and the seconds until it was healed, if it was."""
        found, healed = [], {f.target: f.at for f in self.faults if f.healed}
        for fault in self.faults:
            if not fault.healed:
                after = healed.get(fault.target)
                took = (after - fault.at).total_seconds() if after else None
                found.append(((fault.at - self.began).total_seconds(), fault, took))
        return found


def as_json(report: Report) -> dict[str, Any]:
    return {
        "verdict": report.verdict,
        "as_foretold": report.as_foretold,
        "seed": report.seed,
        "lines": report.lines,
        "unsendable": report.unsendable,
        "wrong_lines": [asdict(line) for line in report.wrong_lines],
        "placings": [
            {
                "run": outcome.run,
                "answers": {c.what: _count(c) for c in outcome.answers},
                "ends": {c.what: _count(c) for c in outcome.ends},
                "unanswered": outcome.unanswered,
                "deviations": outcome.deviations,
            }
            for outcome in report.outcomes
        ],
        "changed_by_repeating": report.changed,
        "faults": [
            {"at": f.at.isoformat(), "what": f.what, "target": f.target, "healed": f.healed}
            for f in report.faults
        ],
        "standing": report.standing,
        "invariants": [asdict(finding) for finding in report.findings],
        **report.tally._asdict(),
        "seconds": {phase: round(s, 1) for phase, s in report.seconds.items()},
    }


def _count(count: Count) -> dict[str, Any]:
    low, high = count.must_be
    return {"seen": count.seen, "at_least": low, "at_most": high, "fits": count.fits}


def show(report: Report, console: Console) -> None:
    """Print everything a reader needs to believe the last line."""
    console.print(Markdown(render("demo.md", report=report)))
    console.print(f"verdict: [{COLOURS[report.verdict]}]{report.verdict}[/]")
