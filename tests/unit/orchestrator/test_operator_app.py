"""The operator's API: its description, invalid requests, and who may decide."""

from __future__ import annotations

from uuid import UUID

import httpx
import pytest

from common.http.access import Role
from common.messages.envelope import Direction, Outcome
from orchestrator.engine.inputs import ReplyArrived
from tests.support.apis import FakeBackend, InMemory, bearer


@pytest.fixture
def api() -> httpx.Client:
    return httpx.Client(
        transport=InMemory(FakeBackend().app()),
        base_url="http://operator",
        headers=bearer(Role.VIEWER),
    )


def test_openapi_describes_every_endpoint(api: httpx.Client) -> None:
    paths = api.get("/openapi.json").json()["paths"]
    assert set(paths) == {
        "/sagas", "/sagas/{saga_id}", "/sagas/{saga_id}/timeline", "/waiting",
        "/sagas/{saga_id}/approve", "/sagas/{saga_id}/reject", "/watch-list", "/watch-list/remove",
        "/actions", "/stock", "/accounts", "/doctor",
        "/dead-letters", "/dead-letters/groups", "/dead-letters/{letter_id}",
        "/dead-letters/redrive", "/dead-letters/discard",
        "/stuck", "/sagas/{saga_id}/retry", "/sagas/{saga_id}/compensate",
        "/sagas/{saga_id}/steps/{step}/resolve", "/reconcile",
        "/audit",
    }  # fmt: skip
    for operations in paths.values():
        assert all(operation["description"] for operation in operations.values())
    assert api.get("/docs").status_code == 200
    assert api.get("/live").json() == {"live": True}


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/sagas?state=LOST", "state"),
        ("/sagas?customer=%00", "customer"),
        ("/sagas?older_than=-1", "older_than"),
        ("/sagas?older_than=inf", "older_than"),
        ("/sagas?after=42", "after"),
        ("/sagas?limit=1001", "limit"),
        ("/sagas/zzzz", "saga_id"),
        (f"/sagas/aaaa/timeline?after={2**63}", "after"),
        ("/waiting?after=42", "after"),
        ("/waiting?customer=%00", "customer"),
        ("/watch-list?limit=0", "limit"),
        ("/actions?outcome=maybe", "outcome"),
        ("/stuck?older_than=-1", "older_than"),
        ("/stuck?after=42", "after"),
        ("/actions?after=-1", "after"),
        ("/actions?saga=zz", "saga_id"),
        ("/dead-letters?state=lost", "state"),
        ("/dead-letters?limit=0", "limit"),
        ("/dead-letters/groups?saga_id=aaaa", "saga_id"),
        ("/dead-letters/zz", "letter_id"),
        ("/stock?sku=a%20b", "sku"),
        ("/accounts?customer=%0a", "customer"),
        ("/accounts?after=ada", "after"),
    ],
)
def test_an_invalid_request_names_the_field_and_a_remedy(
    api: httpx.Client, path: str, field: str
) -> None:
    response = api.get(path)
    assert response.status_code == 422
    problem = response.json()
    assert (problem["error"], problem["field"]) == ("invalid_request", field)
    assert problem["remedy"]


ONE = UUID(int=1)
RESERVED = ReplyArrived("reserve_stock", Direction.FORWARD, Outcome.DONE)


@pytest.fixture
def parked() -> FakeBackend:
    sagas = FakeBackend(asked={"approve_order": "total 700 EUR reaches 500"})
    sagas.begin(ONE, RESERVED)
    return sagas


def at(sagas: FakeBackend, role: Role = Role.OPERATOR) -> httpx.Client:
    return httpx.Client(
        transport=InMemory(sagas.app()), base_url="http://operator", headers=bearer(role)
    )


def test_the_waiting_list_has_what_a_decision_needs(
    parked: FakeBackend,
) -> None:
    page = at(parked, Role.VIEWER).get("/waiting").json()
    (row,) = page["waiting"]
    since, until = row.pop("waiting_since"), row.pop("expires_at")
    assert since < until
    assert row == {
        "saga_id": str(ONE), "definition": "order v2", "gate": "approve_order",
        "why": "total 700 EUR reaches 500", "customer": "ada", "total": 700, "currency": "EUR",
        "held": [{"sku": "tea", "quantity": 2}],
    }  # fmt: skip
    assert page["next"] is None
    assert at(parked).get("/waiting?customer=bob").json()["waiting"] == []


def test_deciding_about_a_saga_not_at_its_gate_names_its_state() -> None:
    sagas = FakeBackend()
    sagas.begin(ONE)
    refused = at(sagas).post(f"/sagas/{ONE}/approve", json={"reason": "so what"})
    assert (refused.status_code, refused.json()["error"]) == (409, "not_waiting")
    assert "it is RUNNING" in refused.json()["remedy"]
    assert at(sagas).post(f"/sagas/{UUID(int=9)}/approve", json={"reason": "x"}).status_code == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [({}, "reason"), ({"reason": ""}, "reason"), ({"reason": "x", "actor": "me"}, "actor")],
)
def test_a_decision_has_a_reason_and_takes_no_actor(
    parked: FakeBackend, body: dict[str, str], field: str
) -> None:
    refused = at(parked).post(f"/sagas/{ONE}/approve", json=body)
    assert (refused.status_code, refused.json()["field"]) == (422, field)


def test_a_viewer_may_not_decide(parked: FakeBackend) -> None:
    api = at(parked, Role.VIEWER)
    for path in (f"/sagas/{ONE}/approve", f"/sagas/{ONE}/reject", "/watch-list"):
        assert api.post(path, json={"reason": "x", "customer": "ada"}).status_code == 403
    assert len(api.get("/waiting").json()["waiting"]) == 1


def test_an_unknown_path_is_a_problem_of_the_same_shape(api: httpx.Client) -> None:
    response = api.get("/saga")
    assert response.status_code == 404
    assert response.json() == {"error": "not found", "remedy": "see /docs for what there is"}
