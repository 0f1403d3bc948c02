"""The table of scenarios, what is drawn in a storm, and the page of a run: what needs no stack."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from typer.testing import CliRunner

from chaos.commands import cli
from chaos.faults.nemesis import BOTH, DOCKER, NATIVE, Nemesis
from chaos.faults.poison import assorted, poisons
from chaos.faults.tampering import (
    DelayPastUndo,
    Duplicate,
    Lose,
    Poisoned,
    Reorder,
    Tampering,
)
from chaos.judge.history import Fault, History
from chaos.pages.latency_chart import FaultSpan, Settled, lay_out
from chaos.pages.render import totals
from chaos.pages.run_page import write_report
from chaos.scenarios.rolling import LATEST
from chaos.scenarios.scene import PROFILES, in_words
from chaos.scenarios.storm import FAULTS
from chaos.scenarios.storm import draw as draw_fault
from chaos.scenarios.table import SCENARIOS, suited_to
from chaos.stack.database import CONFIRMED, rejected
from common.messages.envelope import Command, Direction, Envelope, Key, Unreadable, unpack
from common.messages.shop.payment import ChargePayment, RefundPayment
from common.storage.db import shipped_migrations
from tests.previous_release import LATEST as LACKS

DRAWN = 300


def test_every_scenario_says_what_it_does_and_how_it_must_end() -> None:
    assert len(SCENARIOS) >= 40
    for name, scenario in SCENARIOS.items():
        assert name == scenario.name
        assert scenario.profile in PROFILES
        assert scenario.runtimes <= BOTH
        assert scenario.runtimes
        for sentence in (scenario.says, scenario.fault, scenario.expects):
            assert sentence
            assert "{" not in sentence


def test_what_needs_a_proxy_is_played_where_there_is_one() -> None:
    assert PROFILES["lines"].proxied
    for name in SCENARIOS:
        if name.startswith(("cut-", "half-open-", "slow-", "unconfirmed-")):
            assert SCENARIOS[name].profile == "lines"


def test_only_a_cable_is_for_containers_alone() -> None:
    assert set(suited_to(DOCKER)) - set(suited_to(NATIVE)) == {SCENARIOS["off-the-network"]}


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ([CONFIRMED], "confirmed"),
        ([rejected("b"), rejected("a")], "rejected: a or b"),
        ([CONFIRMED, rejected("a")], "confirmed, or rejected: a"),
    ],
)
def test_ends_in_words(ends: Sequence[Any], words: str) -> None:
    assert in_words(ends) == words


def test_a_seed_decides_a_storm_and_every_fault_is_drawn() -> None:
    def drawn(seed: int, kind: str) -> list[Nemesis]:
        dice = random.Random(seed)
        return [draw_fault(dice, kind) for _ in range(DRAWN)]

    assert [f.sentence for f in drawn(1, DOCKER)] == [f.sentence for f in drawn(1, DOCKER)]
    assert len({type(fault) for fault in drawn(1, DOCKER)}) == len(
        {type(make(random.Random(1))) for make in FAULTS}
    )
    assert all(NATIVE in fault.runtimes for fault in drawn(1, NATIVE))


def test_a_storm_hits_only_processes_that_are_there() -> None:
    dice = random.Random(1)
    drawn = [draw_fault(dice, NATIVE, "choreographed") for _ in range(DRAWN)]
    assert not [fault.sentence for fault in drawn if "orchestrator" in fault.where]


# What is done to messages


def envelopes() -> list[Envelope]:
    now = datetime.now(UTC)
    sagas = [uuid4() for _ in range(5)]
    charge = ChargePayment(customer="ann", total=1, currency="EUR")
    commands: list[tuple[Direction, Command]] = [
        (Direction.FORWARD, charge),
        (Direction.COMPENSATING, RefundPayment()),
    ]
    return [
        Envelope.command(Key(saga, "charge_payment", way), body, issued_at=now, reply_to=None)
        for way, body in commands
        for saga in sagas
    ]


@pytest.mark.parametrize("kind", [Duplicate, Reorder, DelayPastUndo, Lose, Poisoned])
def test_tampering_keeps_the_ids(kind: type[Tampering]) -> None:
    before = envelopes()
    after = kind("payment", 3).changed(before)
    assert {e.message_id for e in after} <= {e.message_id for e in before}
    lost = [e for e in before if e.message_id not in {a.message_id for a in after}]
    forward = [e for e in before if e.direction is Direction.FORWARD]
    assert lost == (forward if kind is Lose else [])
    assert after != before


def test_delayed_past_its_undo_means_the_undo_comes_first() -> None:
    after = DelayPastUndo("payment", 3).changed(envelopes())
    assert [e.direction for e in after[:5]] == [Direction.COMPENSATING] * 5


def test_poison_is_of_every_kind() -> None:
    kinds = {reason for reason, _ in assorted("payment.commands", uuid4())}
    assert kinds == set(poisons("payment.commands", uuid4()))
    assert {"not_json", "unknown_type", "invalid_envelope"} <= kinds
    assert max(len(body) for _, body in assorted("payment.commands", uuid4())) >= 1_000_000
    (junk,) = unpack(b"\xff" * 10)
    assert isinstance(junk, Unreadable)


# The page


def test_the_chart_marks_orders_and_faults() -> None:
    orders = [Settled(0.0, 0.02, True), Settled(3.0, 30.0, False)]
    chart = lay_out(orders, [FaultSpan(1.0, 2.0, "Kill payment")])
    (quick, quick_at, confirmed), (_, slow_at, rejected_) = chart.dots
    assert (confirmed, rejected_) == ("confirmed", "rejected")
    assert quick_at > slow_at, "what took longer is higher"
    (band,) = chart.bands
    assert quick < band.x < band.middle < chart.dots[1][0]


def result(name: str, verdict: str, **more: Any) -> dict[str, Any]:
    tally = {"lost": 0, "duplicated": 0, "unexpected": 0, "recovered": 3}
    return {
        "name": name, "says": "It <b>dies</b>.", "runtime": "native", "profile": "patient",
        "stack": "stack-1-patient", "fault": "SIGKILL | twice", "expected": "confirmed",
        "began": "2026-01-01T00:00:00+00:00", "verdict": verdict, "problems": [], "orders": 2,
        "under_way": 1, "ends": {"confirmed": 2}, "payment": {"charge": 2},
        "inventory": {"dispatched": 2}, "attempts": 1, "recovery_seconds": 1.5, "seconds": 3.0,
        "invariants": {"nothing is lost": verdict}, "tally": tally, "timeline": [], **more,
    }  # fmt: skip


def test_a_run_becomes_a_page_that_needs_nothing_else(tmp_path: Path) -> None:
    stack = tmp_path / "stack-1-patient"
    (stack / "logs").mkdir(parents=True)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    orders = [
        {"placed_at": str(now), "settled_at": str(now + timedelta(seconds=1)), "status": "REJECTED"}
    ]
    (stack / "snapshot.json").write_text(json.dumps({"orders": orders}))
    with closing(History(stack / "logs" / "history.jsonl")) as history:
        for seconds, healed in ((0.2, False), (0.7, True)):
            at = now + timedelta(seconds=seconds)
            history.record(Fault(at=at, what="Kill", target="<payment>", healed=healed))
    step = {
        "saga_id": "s-1", "seconds": 0.1, "entry": "sent", "step": "charge_payment",
        "direction": "compensating", "attempt": 2, "detail": None, "process": "orchestrator",
    }  # fmt: skip
    whole = {
        "verdict": "fail", "at": "now", "runtime": "native", "python": "3.11", "commit": "abc",
        "uncommitted_changes": True, "seed": 7, "command": "chaos run all",
        "results": [
            result("good", "pass", timeline=[step]),
            result("bad", "fail", problems=["1 order is lost"]),
        ],
    }  # fmt: skip
    (tmp_path / "result.json").write_text(json.dumps(whole))

    page = write_report(tmp_path).read_text()
    assert page.index("<h1>fail</h1>") < page.index("1 order is lost") < page.index("Scenarios")
    assert "It &lt;b&gt;dies" in page
    assert "Kill &lt;payment&gt;, 0.5 s" in page
    assert "charge_payment (undo)" in page
    assert "://" not in page.replace("http://www.w3.org/2000/svg", ""), "it needs a network"
    markdown = (tmp_path / "report.md").read_text()
    assert markdown.startswith("# fail: 1 of 2 scenarios passed")
    assert "SIGKILL \\| twice" in markdown
    assert CliRunner().invoke(cli.app, ["report", str(tmp_path)]).exit_code == 0


def test_a_stack_is_counted_once_and_unknown_stays_unknown() -> None:
    rows = [result("a", "pass"), result("b", "pass")]
    assert totals(rows)["recovered"] == 3
    rows.append(result("c", "pass", stack="stack-2", tally={**rows[0]["tally"], "lost": None}))
    assert totals(rows) == {"lost": None, "duplicated": 0, "unexpected": 0, "recovered": 6}
    assert totals([])["lost"] is None


@pytest.mark.parametrize("width", ["40", "200"])
def test_the_list_prints_names_whole(width: str) -> None:
    listed = CliRunner().invoke(cli.app, ["list"], env={"COLUMNS": width}).stdout.splitlines()
    assert set(SCENARIOS) <= set(listed)


def test_the_list_is_for_machines_too() -> None:
    listed = json.loads(CliRunner().invoke(cli.app, ["list", "--json"]).stdout)
    assert {row["name"] for row in listed} == set(SCENARIOS)


def test_the_previous_release_lacks_only_the_newest_migrations() -> None:
    """Else a new migration would build on one that the previous release skips."""
    assert set(LACKS) == LATEST
    for name in LATEST:
        assert name == list(shipped_migrations(Path(name.partition("/")[0], "migrations")))[-1]
