"""What a run came to, for a person at a terminal and as one JSON object.

Owns: the tables and the words of the report. Must not know: how anything was found out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from chaos.judge.history import Fault
from chaos.judge.verdict import Finding, Tally, Verdict, overall
from chaos.load.model import CONFIRMED
from chaos.load.outcome import Count, Outcome

EXAMPLES = 10  # deviations shown; the count is always whole
TIMES = {1: "once", 2: "twice"}
COLOURS = {Verdict.PASS: "green", Verdict.FAIL: "bold red", Verdict.UNKNOWN: "bold yellow"}


@dataclass(frozen=True)
class WrongLine:
    """A line that came to nothing, what the input says is wrong, and who refused it."""

    line: int
    problem: str
    answer: str


@dataclass(frozen=True)
class Report:
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
        """Whether each line, and every count, came out as the input alone says it must."""
        wrong = [c for o in self.outcomes for c in (*o.answers, *o.ends) if not c.fits]
        if any(o.deviations for o in self.outcomes) or self.changed:
            return Verdict.FAIL
        if self.standing or any(o.unanswered for o in self.outcomes):
            return Verdict.UNKNOWN  # what is missing may still come
        return Verdict.FAIL if wrong else Verdict.PASS


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
    """Everything a reader needs to believe the last line."""
    _print(console, _wrong_lines(report.wrong_lines))
    _print(console, _answers(report))
    for outcome in report.outcomes:
        if outcome.ends:
            _print(console, _ends(outcome.ends))
            console.print("A range: goods and money that are short go to whoever comes first.\n")
        _list(console, "These lines went as their own content rules out", outcome.deviations)
        lines = [f"line {line}" for line in outcome.unanswered]
        _list(console, "These lines were never answered", lines)
    _list(console, "Placing the same file again changed these tables", report.changed)
    if len(report.outcomes) > 1 and not report.changed:
        console.print("Placing the same file again changed no order, reservation, stock, account,")
        console.print("transfer or saga; only the count of repeats grew.\n")
    _print(console, _faults(report))
    _list(console, "This has not come to rest", report.standing)
    _print(console, _findings(report.findings))
    console.print(_last_lines(report))


def _wrong_lines(lines: Sequence[WrongLine]) -> Table:
    table = _table("Wrong lines in the file", ">line", "what is wrong", "who refused it")
    for line in lines:
        table.add_row(str(line.line), line.problem, line.answer)
    return table


def _answers(report: Report) -> Table:
    """A column more for each time the file was placed again."""
    columns = [c for o in report.outcomes for c in (f">placed {TIMES[o.run]}", ">must be", "")]
    table = _table("What the door said", "", *columns)
    for what, count in (("lines in the file", report.lines), ("cannot be sent", report.unsendable)):
        table.add_row(what, *[str(count), "", ""] * len(report.outcomes))
    for counts in zip(*(outcome.answers for outcome in report.outcomes), strict=True):
        table.add_row(counts[0].what, *(cell for count in counts for cell in _cells(count)))
    return table


def _ends(counts: Iterable[Count]) -> Table:
    table = _table("What became of the orders", "", ">orders", ">must be", "")
    for count in counts:
        end = count.what if count.what == CONFIRMED else f"rejected: {count.what}"
        table.add_row(end, *_cells(count))
    return table


def _cells(count: Count) -> tuple[str, str, Text]:
    verdict = Verdict.PASS if count.fits else Verdict.FAIL
    return str(count.seen), str(count.must_be), _coloured(verdict)


def _faults(report: Report) -> Table:
    table = _table("What was broken on the way", ">at", "what", "to whom", ">whole again after")
    broken: dict[str, Fault] = {}
    for fault in report.faults:
        if not fault.healed:
            broken[fault.target] = fault
            continue
        since = broken.pop(fault.target)
        took = (fault.at - since.at).total_seconds()
        at = (since.at - report.began).total_seconds()
        table.add_row(f"{at:.1f} s", since.what, fault.target, f"{took:.1f} s")
    for fault in broken.values():
        at = (fault.at - report.began).total_seconds()
        table.add_row(f"{at:.1f} s", fault.what, fault.target, Text("never", style="bold red"))
    return table


def _findings(findings: Iterable[Finding]) -> Table:
    table = _table("What must always hold", "", "invariant", ">looked at", ">offences")
    for finding in findings:
        says = Text(finding.says)
        for example in finding.examples:
            says.append(f"\n  {example}", style=COLOURS[finding.verdict])
        verdict = _coloured(finding.verdict)
        table.add_row(verdict, says, str(finding.looked_at), str(finding.offences))
    return table


def _last_lines(report: Report) -> Text:
    tally = report.tally
    took = sum(report.seconds.values())
    phases = ", ".join(f"{phase} {seconds:.0f} s" for phase, seconds in report.seconds.items())
    return Text.assemble(
        f"lost {_number(tally.lost)}, duplicated {_number(tally.duplicated)}, "
        f"unexpected {_number(tally.unexpected)}; "
        f"recovered {tally.recovered} (in flight while something was broken, settled after)\n"
        f"{took:.0f} s in all: {phases}\n"
        f"verdict: ",
        _coloured(report.verdict),
    )


def _number(count: int | None) -> str:
    return "unknown" if count is None else str(count)


def _coloured(verdict: Verdict) -> Text:
    return Text(verdict, style=COLOURS[verdict])


def _table(title: str, *columns: str) -> Table:
    """A column whose name begins with > holds numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in columns:
        justify: Literal["right", "left"] = "right" if column.startswith(">") else "left"
        table.add_column(column.removeprefix(">"), justify=justify)
    return table


def _print(console: Console, table: Table) -> None:
    if table.row_count:
        console.print(table)


def _list(console: Console, title: str, lines: Sequence[str]) -> None:
    if lines:
        console.print(Text(f"{title} ({len(lines)}):", style="bold red"))
        for line in lines[:EXAMPLES]:
            console.print(Text(f"  {line}"))
