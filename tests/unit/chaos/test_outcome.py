"""The outcome table and the report's verdict: what is counted, and what does not go through."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO
from typing import Any
from uuid import UUID, uuid5

from rich.console import Console

from chaos.judge.case import Order, Snapshot, Stock
from chaos.judge.history import Answered, Event, Fault, Refused
from chaos.judge.verdict import Finding, Tally, Verdict
from chaos.load.model import Bounds, Foreseen
from chaos.load.outcome import Outcome, outcome_of, responses_of, what_changed
from chaos.load.workload import Ask
from chaos.pages.demo_report import Report, WrongLine, as_json, show

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
ASKS = [Ask(line, f"k-{line}", {"customer": "ann"}) for line in (1, 2, 3, 4, 5)]
FORESEEN = Foreseen(
    wrong={3: "quantity 0"},
    repeats={4: 1},
    conflicts={5: 1},
    ends={1: frozenset({"confirmed"}), 2: frozenset({"confirmed", "out_of_stock"})},
    bounds={
        "confirmed": Bounds(1, 2),
        "out_of_stock": Bounds(0, 1),
        "not_stocked": Bounds(0, 0),
        "card_declined": Bounds(0, 0),
        "insufficient_funds": Bounds(0, 0),
        "unknown_account": Bounds(0, 0),
    },
)
NOTHING = Snapshot((), (), (), (), (), (), {}, (), (), {})


def an_id(line: int) -> UUID:
    return uuid5(UUID(int=7), str(line))


def yes(line: int, order: int, run: int = 1, total: int = 300) -> Answered:
    return Answered(
        run=run, line=line, status=202, body={"order_id": str(an_id(order)), "total": total}
    )


def no(line: int, status: int, run: int = 1) -> Refused:
    return Refused(run=run, line=line, status=status, body={"error": "no"})


def order(line: int, status: str, reason: str | None = None) -> Order:
    return Order(an_id(line), "ann", f"k-{line}", "EUR", (), (), 300, status, reason, NOON, NOON)


ANSWERS: list[Event] = [yes(1, 1), yes(2, 2), no(3, 422), yes(4, 1), no(5, 409)]
AGAIN: list[Event] = [
    yes(1, 1, 2), yes(2, 2, 2), no(3, 422, 2), yes(4, 1, 2), no(5, 409, 2),
]  # fmt: skip
SNAPSHOT = replace(NOTHING, orders=(order(1, "CONFIRMED"), order(2, "REJECTED", "out_of_stock")))


def outcome(events: list[Event] = ANSWERS, run: int = 1, snapshot: Snapshot = SNAPSHOT) -> Outcome:
    return outcome_of(run, ASKS, FORESEEN, responses_of(events), snapshot)


def counted(found: Outcome) -> dict[str, int]:
    return {count.what: count.seen for count in (*found.answers, *found.ends) if count.seen}


def test_a_run_as_foreseen() -> None:
    found = outcome()
    assert counted(found) == {
        "refused at the door": 1,
        "conflicts": 1,
        "repeats": 1,
        "new orders": 2,
        "confirmed": 1,
        "out_of_stock": 1,
    }
    assert all(count.fits for count in (*found.answers, *found.ends))
    assert (found.unanswered, found.deviations) == ((), ())


def test_the_same_file_again_is_nothing_but_repeats() -> None:
    found = outcome([*ANSWERS, *AGAIN], run=2)
    assert counted(found) == {"refused at the door": 1, "conflicts": 1, "repeats": 3}
    assert all(count.fits for count in found.answers)
    assert found.deviations == ()


def replaced(*events: Event) -> list[Event]:
    """Add later answers, which count."""
    return [*ANSWERS, *events]


def test_each_deviation_is_named() -> None:
    planted: dict[str, list[Event]] = {
        "line 3: quantity 0, yet the door said 202": replaced(yes(3, 3)),
        "line 5: contradicts line 1, yet the door said 202": replaced(yes(5, 1)),
        "line 1: nothing is wrong with it": replaced(no(1, 422)),
        "line 4: repeats line 1, answered": replaced(yes(4, 9)),
        "line 4: nothing is wrong with it": replaced(no(4, 422)),
    }
    for says, events in planted.items():
        assert any(d.startswith(says) for d in outcome(events).deviations), says


def test_a_repeat_with_another_total_is_a_deviation() -> None:
    assert outcome(replaced(yes(4, 1, total=301))).deviations != ()


def test_an_end_that_the_content_rules_out_is_a_deviation() -> None:
    ended = replace(SNAPSHOT, orders=(order(1, "REJECTED", "out_of_stock"), order(2, "CONFIRMED")))
    found = outcome(snapshot=ended)
    assert found.deviations == ("line 1: ended as out_of_stock, can only be confirmed",)
    assert all(count.fits for count in found.ends), "the counts alone do not show it"


def test_giving_up_is_no_foreseen_end() -> None:
    gave_up = replace(
        SNAPSHOT, orders=(order(1, "CONFIRMED"), order(2, "REJECTED", "charge_payment_timed_out"))
    )
    (count,) = [c for c in outcome(snapshot=gave_up).ends if c.what == "charge_payment_timed_out"]
    assert not count.fits


def test_a_line_without_answer_is_named() -> None:
    assert outcome(ANSWERS[:1] + ANSWERS[2:]).unanswered == (2,)


def test_what_changed_names_tables_and_ignores_the_order_of_rows() -> None:
    turned = replace(SNAPSHOT, orders=SNAPSHOT.orders[::-1])
    assert what_changed(SNAPSHOT, turned) == []
    assert what_changed(SNAPSHOT, replace(turned, stock=(Stock("tea", 1, 0, 0, 1),))) == ["stock"]


# --- the report ----------------------------------------------------------------------------

FINE = Finding("nothing is lost", "Every order has one outcome.", Verdict.PASS, 2, 0, ())
REPORT = Report(
    seed=7,
    began=NOON,
    lines=6,
    unsendable=1,
    wrong_lines=(WrongLine(3, "quantity 0", "the door: 422"),),
    outcomes=(outcome(),),
    changed=(),
    faults=(
        Fault(what="SIGKILL", target="payment", healed=False, at=NOON),
        Fault(what="SIGKILL", target="payment", healed=True, at=NOON.replace(second=2)),
        Fault(what="SIGKILL", target="door", healed=False, at=NOON.replace(second=3)),
    ),
    standing=(),
    findings=(FINE,),
    tally=Tally(0, 0, 0, 1),
    seconds={"orders": 2.0},
)


def shown(report: Report) -> str:
    console = Console(file=StringIO(), width=120)
    show(report, console)
    file: Any = console.file
    return str(file.getvalue())


def test_a_pass_needs_invariants_and_outcomes_both() -> None:
    assert REPORT.verdict is Verdict.PASS
    broken = replace(FINE, verdict=Verdict.FAIL)
    assert replace(REPORT, findings=(broken,)).verdict is Verdict.FAIL
    assert replace(REPORT, outcomes=(outcome(replaced(yes(3, 3))),)).verdict is Verdict.FAIL
    assert replace(REPORT, outcomes=(outcome(snapshot=NOTHING),)).verdict is Verdict.FAIL
    assert replace(REPORT, changed=("stock",)).verdict is Verdict.FAIL


def test_without_rest_or_without_an_answer_it_is_unknown() -> None:
    assert replace(REPORT, standing=("1 orders PENDING",)).verdict is Verdict.UNKNOWN
    unanswered = outcome(ANSWERS[:1] + ANSWERS[2:])
    assert replace(REPORT, outcomes=(unanswered,)).verdict is Verdict.UNKNOWN


def test_the_report_shows_faults_wrong_lines_and_the_verdict() -> None:
    text = shown(REPORT)
    assert "quantity 0" in text
    assert "2.0 s" in text
    assert "never" in text, "the door did not come back"
    assert text.rstrip().endswith("verdict: pass")


def test_the_report_shows_what_is_wrong() -> None:
    broken = replace(FINE, verdict=Verdict.FAIL, offences=1, examples=("order 5: outcomes []",))
    text = shown(replace(REPORT, findings=(broken,), standing=("queue x: 3 ready",)))
    assert "order 5: outcomes []" in text
    assert "queue x: 3 ready" in text
    assert text.rstrip().endswith("verdict: fail")


def test_the_report_is_one_json_object() -> None:
    document = json.loads(json.dumps(as_json(REPORT)))
    assert document["verdict"] == "pass"
    assert document["placings"][0]["ends"]["confirmed"] == {
        "seen": 1, "at_least": 1, "at_most": 2, "fits": True,
    }  # fmt: skip
