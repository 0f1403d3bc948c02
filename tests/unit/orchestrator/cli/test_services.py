"""`saga stock`, `accounts`, `doctor` and `audit`."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from common.messages.contracts import FIRST_ID
from common.messages.shop.inventory import StockRow
from common.messages.shop.payment import AccountRow
from orchestrator.operator.audit import Comparison, Discrepancy, Drift
from orchestrator.operator.auditor import AuditPage, Window
from orchestrator.operator.doctor import Finding
from tests.support.apis import FakeBackend
from tests.unit.orchestrator.cli.running import ONE, Saga


def test_stock_and_accounts_are_paged(saga: Saga, backend: FakeBackend) -> None:
    backend.stock_rows = [
        StockRow(sku=sku, on_hand=7, held=2, dispatched=1, received=10) for sku in ("cup", "tea")
    ]
    backend.account_rows = [AccountRow(customer="a/b", currency="EUR", card="good", balance=1234)]
    stock = saga("stock", "--limit", "1")
    assert stock.out.splitlines()[1].split() == ["7", "2", "1", "10", "cup"]
    assert "--after cup" in stock.err
    assert saga("stock", "--after", "cup", "--json").document["stock"][0]["sku"] == "tea"
    accounts = saga("accounts")
    assert accounts.out.splitlines()[1].split() == ["12.34", "EUR", "good", "a/b"]
    assert saga("accounts", "--after", "a/b/EUR", "--json").document["accounts"] == []


def test_a_doctor_with_an_error_exits_with_one(saga: Saga, backend: FakeBackend) -> None:
    stuck = Finding("warning", "sagas", "one is stuck", "look")
    backend.status = replace(backend.status, processes=None, queues=None, problems=[stuck])
    warned = saga("doctor")
    assert warned.code == 0
    assert "warning: sagas: one is stuck\n  remedy: look" in warned.out
    backend.status = replace(backend.status, processes=[], problems=[])
    ran = saga("doctor")
    assert ran.code == 1
    assert "error: service payment: no process of it answers" in ran.out
    assert "remedy: start one: python -m payment_svc" in ran.out
    assert saga("doctor", "--json").document["ok"] is False


def pages(*findings: Discrepancy) -> list[AuditPage]:
    """Return two pages, the second with these findings."""
    return [
        AuditPage(Comparison(1000, 2, ()), UUID("8" + "0" * 31)),
        AuditPage(Comparison(500, 0, findings), None),
    ]


def test_an_audit_goes_page_by_page(saga: Saga, backend: FakeBackend) -> None:
    backend.audit_pages = pages()
    ran = saga("audit", "--since", "1d", "--until", "2026-01-31T12:00+01:00", "--grace", "10s")
    assert ran.code == 0
    assert (
        ran.out.strip()
        == "1,500 sagas compared; 2 under way or of another kind were left out: 0 in drift"
    )
    first, second = (w for w in backend.filters if isinstance(w, Window))
    assert (first.after, second.after) == (FIRST_ID, UUID("8" + "0" * 31))
    assert first.since is not None
    assert abs(datetime.now(UTC) - first.since - timedelta(days=1)) < timedelta(seconds=30)
    assert first.until == datetime(2026, 1, 31, 11, tzinfo=UTC)
    assert (first.grace_seconds, second.since) == (10, first.since)


def test_drift_is_named_with_a_remedy_and_an_exit_code(saga: Saga, backend: FakeBackend) -> None:
    uncharged = Discrepancy(Drift.MISSING_REFUND, ONE, "charge_payment", "found CHARGED")
    backend.audit_pages = pages(uncharged)
    ran = saga("audit")
    assert ran.code == 1
    assert f"missing refund  {ONE}  charge payment  found CHARGED" in ran.out
    assert "missing refund: see saga show; the customer is owed the money" in ran.out
    backend.filters.clear()
    document = saga("audit", "--json").document
    assert (document["compared"], document["skipped"]) == (1500, 2)
    assert document["drift"][0]["drift"] == "missing_refund"


def test_an_audit_survives_lost_answers_until_it_gives_up(saga: Saga, backend: FakeBackend) -> None:
    backend.audit_pages = pages()
    backend.outages = 3
    assert saga("audit").code == 0
    backend.outages = 1000
    assert saga("audit").code == 3
    assert saga("audit", "--since", "yesterday").code == 2
