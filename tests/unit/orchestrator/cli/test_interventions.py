"""Stuck sagas, gates, interventions and the audit log."""

from __future__ import annotations

from orchestrator.engine.definition import COMPENSATING
from orchestrator.engine.inputs import TimedOut
from orchestrator.operator.queries import StuckFilter
from orchestrator.runtime.actions import ActionFilter, OperatorAction, RecordedAction
from tests.support.apis import NOON, FakeBackend
from tests.unit.orchestrator.cli.running import DECLINED, ONE, RESERVED, STORY, TWO, Saga

SILENT_UNDO = (RESERVED, DECLINED, TimedOut("reserve_stock", COMPENSATING, 1, past_sla=True))


def test_stuck_prints_cause_last_trouble_and_remedy(saga: Saga, backend: FakeBackend) -> None:
    backend.begin(TWO, RESERVED)
    assert saga("stuck").out == "nothing is stuck\n"
    backend.begin(ONE, *SILENT_UNDO)
    first, last, waits, remedy = saga("stuck").out.splitlines()
    assert first.startswith("aaaa0000  COMPENSATING, started ")
    assert first.endswith(": no answer from inventory: the undo of reserve_stock")
    assert "no answer from inventory in time (attempt 1): release stock may or may not" in last
    assert "waits   for inventory: the undo of reserve stock, attempt 2, overdue for" in waits
    assert "saga retry aaaa0000 sends again at once" in remedy
    assert "saga resolve aaaa0000 reserve_stock --reason" in remedy
    (row,) = saga("stuck", "--json").document["stuck"]
    assert (row["cause"], row["saga_id"]) == ("silent", str(ONE))
    assert f"--after {ONE}" in saga("stuck", "--limit", "1").err


def test_stuck_passes_every_filter(saga: Saga, backend: FakeBackend) -> None:
    saga("stuck", "--step", "charge_payment", "--older-than", "2h")
    assert backend.filters == [StuckFilter("charge_payment", 7200.0, 60.0)]


def test_retry_compensate_and_resolve_print_the_new_state(saga: Saga, backend: FakeBackend) -> None:
    backend.begin(ONE, RESERVED)
    ran = saga("retry", "aaaa")
    assert (ran.code, ran.out.splitlines()[0]) == (0, "saga aaaa0000 sends again")
    ran = saga("compensate", "aaaa", "--reason", "customer called")
    assert (ran.code, ran.out.splitlines()[0]) == (0, "saga aaaa0000 compensates")
    assert "COMPENSATING; see saga show aaaa0000 --follow" in ran.out
    ran = saga("resolve", "aaaa", "charge_payment", "--reason", "refunded by hand", "--json")
    steps = {step["step"]: step["status"] for step in ran.document["steps"]}
    assert steps["charge_payment"] == "resolved"


def test_a_refused_intervention_says_why_and_exits_with_1(saga: Saga, backend: FakeBackend) -> None:
    backend.begin(ONE, *STORY)
    for words, why in (
        (("retry", "aaaa"), "has ended as COMPENSATED: nothing is awaited"),
        (("compensate", "aaaa", "--reason", "why"), "has ended as COMPENSATED"),
        (("resolve", "aaaa", "create_order", "--reason", "why"), "create_order is undone: only"),
        (("resolve", "aaaa", "dispatch_stock", "--reason", "why"), "was never sent"),
    ):
        ran = saga(*words)
        assert (ran.code, ran.out) == (1, "")
        assert why in ran.err
    assert saga("retry", "bbbb").code == 1
    assert saga("compensate", "aaaa").code == 2  # a reason is asked for
    assert saga("compensate", "aaaa", "--reason", "").code == 1


def test_reconcile_retries_stuck_sagas_or_only_prints_them(
    saga: Saga, backend: FakeBackend
) -> None:
    assert saga("reconcile", "--dry-run").out == "nothing is overdue or stuck\n"
    backend.begin(ONE, *SILENT_UNDO)
    attempts = len(backend.log[ONE])
    _, row = saga("reconcile", "--dry-run").out.splitlines()
    assert row.split()[:4] == ["aaaa0000", "COMPENSATING", "(dry", "run)"]
    assert len(backend.log[ONE]) == attempts
    _, row = saga("reconcile", "--step", "reserve_stock", "--older-than", "1s").out.splitlines()
    assert row.split()[:3] == ["aaaa0000", "COMPENSATING", "retried"]
    assert backend.filters[-1] == StuckFilter("reserve_stock", 1.0, 0)
    backend.behind = "7 replies wait to be read"
    ran = saga("reconcile")
    assert ran.code == 1
    assert "7 replies wait to be read: deadlines are checked once" in ran.err


def test_actions_print_who_did_what_why_and_the_result(saga: Saga, backend: FakeBackend) -> None:
    backend.begin(ONE)
    assert saga("actions").out == "no such action\n"
    called = OperatorAction("ada", "compensate", "customer called", ONE)
    freed = OperatorAction(
        "bob", "redrive", "deployed the fix", about="letter 7", detail="12 redriven"
    )
    backend.action_rows = [
        RecordedAction(number, NOON, action, "operator")
        for number, action in enumerate((called, called.refused("too late"), freed), start=1)
    ]
    _, *rows = (row.split(maxsplit=4) for row in saga("actions").out.splitlines())
    assert [row[2:4] for row in rows] == [
        ["bob", "redrive"],
        ["ada", "compensate"],
        ["ada", "compensate"],
    ]
    assert [" ".join(row[4].split()) for row in rows] == [
        "letter 7 done deployed the fix: 12 redriven",
        "aaaa0000 refused customer called: too late",
        "aaaa0000 done customer called",
    ]
    ran = saga("actions", "--limit", "1")
    assert "--after 3" in ran.err
    found = saga("actions", "--after", "3", "--json").document
    assert [act["id"] for act in found["actions"]] == [2, 1]


def test_actions_pass_every_filter(saga: Saga, backend: FakeBackend) -> None:
    backend.begin(ONE)
    saga("actions", "aaaa", "--actor", "ada", "--action", "retry", "--outcome", "refused")
    assert backend.filters == [ActionFilter(ONE, "ada", "retry", "refused")]
    assert saga("actions", "bbbb").code == 1


def test_parked_sagas_are_listed_and_decided_once(saga: Saga, backend: FakeBackend) -> None:
    assert saga("waiting").out == "nothing waits for a decision\n"
    backend.asked = {"approve_order": "total 700 EUR reaches 500"}
    backend.begin(ONE, RESERVED)
    backend.begin(TWO, RESERVED, customer="bob")
    table = saga("waiting", "--customer", "ada").out.splitlines()
    assert table[0].split() == [
        "saga", "waits", "expires", "in", "total", "customer", "holds", "why",
    ]  # fmt: skip
    assert "7.00 EUR" in table[1]
    assert "2 x tea" in table[1]
    assert "total 700 EUR reaches 500" in table[1]
    assert len(table) == 2
    assert f"--after {ONE}" in saga("waiting", "--limit", "1").err
    assert saga("waiting", "--json").document["waiting"][1]["customer"] == "bob"
    assert "a person: approve order, expires in" in saga("list").out

    ran = saga("approve", str(ONE), "--reason", "known to us")
    assert (ran.code, ran.out.splitlines()[0]) == (0, "saga aaaa0000 approved: it goes on")
    again = saga("reject", str(ONE), "--reason", "no")
    assert again.code == 1
    assert "already_decided" in again.err
    assert "approved by operator-ann: known to us" in again.err
    assert saga("reject", str(TWO), "--reason", "stolen", "--json").document["reason"] == "rejected"
    assert saga("approve", str(ONE)).code == 2  # a reason is asked for
    assert "approve order: rejected by operator-ann: stolen" in saga("show", str(TWO)).out


def test_the_watch_list(saga: Saga) -> None:
    assert saga("watch", "list").out == "no customer is watched\n"
    assert saga("watch", "add", "bob", "--reason", "chargebacks").out == (
        "bob is watched: chargebacks\n"
    )
    assert saga("watch", "list").out.splitlines()[1].split()[0] == "bob"
    assert saga("watch", "remove", "bob", "--reason", "cleared").code == 0
    gone = saga("watch", "remove", "bob", "--reason", "cleared")
    assert (gone.code, "not_watched" in gone.err) == (1, True)
    assert saga("watch", "list", "--json").document == {"customers": [], "next": None}
