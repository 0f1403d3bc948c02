"""What the operator's API says about itself, and about what is wrong with a question."""

from __future__ import annotations

from uuid import UUID

import httpx
import pytest

from common.http.access import Role
from common.messages.envelope import Direction, Outcome
from orchestrator.engine.inputs import ReplyArrived
from tests.support.apis import InMemory, Sagas, bearer


@pytest.fixture
def api() -> httpx.Client:
    return httpx.Client(
        transport=InMemory(Sagas().app()), base_url="http://operator", headers=bearer(Role.VIEWER)
    )


def test_its_page_names_every_endpoint_and_what_it_answers(api: httpx.Client) -> None:
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
def test_a_question_that_is_none_is_told_where_and_what_to_do(
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
def parked() -> Sagas:
    sagas = Sagas(asked={"approve_order": "total 700 EUR reaches 500"})
    sagas.begin(ONE, RESERVED)
    return sagas


def at(sagas: Sagas, role: Role = Role.OPERATOR) -> httpx.Client:
    return httpx.Client(
        transport=InMemory(sagas.app()), base_url="http://operator", headers=bearer(role)
    )


def test_the_waiting_list_says_since_when_how_much_whose_and_what_is_held(parked: Sagas) -> None:
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


@pytest.mark.parametrize(("verb", "state"), [("approve", "RUNNING"), ("reject", "COMPENSATING")])
def test_whoever_decides_first_decides_and_others_hear_who_it_was(
    parked: Sagas, verb: str, state: str
) -> None:
    api = at(parked)
    decided = api.post(f"/sagas/{ONE}/{verb}", json={"reason": "I know why"})
    assert (decided.status_code, decided.json()["state"]) == (200, state)
    for late in ("approve", "reject"):
        refused = api.post(f"/sagas/{ONE}/{late}", json={"reason": "me too"})
        assert (refused.status_code, refused.json()["error"]) == (409, "already_decided")
        past = {"approve": "approved", "reject": "rejected"}[verb]
        said = f"approve order: {past} by operator-ann: I know why, at 2026-01-01 12:00:00 UTC"
        assert refused.json()["remedy"].startswith(said)


def test_where_nothing_waits_the_state_is_told() -> None:
    sagas = Sagas()
    sagas.begin(ONE)
    refused = at(sagas).post(f"/sagas/{ONE}/approve", json={"reason": "so what"})
    assert (refused.status_code, refused.json()["error"]) == (409, "not_waiting")
    assert "it is RUNNING" in refused.json()["remedy"]
    assert at(sagas).post(f"/sagas/{UUID(int=9)}/approve", json={"reason": "x"}).status_code == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [({}, "reason"), ({"reason": ""}, "reason"), ({"reason": "x", "actor": "me"}, "actor")],
)
def test_a_decision_has_a_reason_and_its_actor_is_whoever_asks(
    parked: Sagas, body: dict[str, str], field: str
) -> None:
    refused = at(parked).post(f"/sagas/{ONE}/approve", json=body)
    assert (refused.status_code, refused.json()["field"]) == (422, field)


def test_who_may_only_look_decides_nothing(parked: Sagas) -> None:
    api = at(parked, Role.VIEWER)
    for path in (f"/sagas/{ONE}/approve", f"/sagas/{ONE}/reject", "/watch-list"):
        assert api.post(path, json={"reason": "x", "customer": "ada"}).status_code == 403
    assert len(api.get("/waiting").json()["waiting"]) == 1


def test_the_watch_list_is_kept_by_operators(parked: Sagas) -> None:
    api = at(parked)
    row = api.post("/watch-list", json={"customer": "bob", "reason": "chargebacks"}).json()
    assert (row["customer"], row["actor"]) == ("bob", "operator-ann")
    assert api.get("/watch-list").json()["customers"] == [row]
    gone = api.post("/watch-list/remove", json={"customer": "bob", "reason": "cleared"})
    assert gone.json()["customers"] == []
    again = api.post("/watch-list/remove", json={"customer": "bob", "reason": "cleared"})
    assert (again.status_code, again.json()["error"]) == (404, "not_watched")


def test_what_there_is_not_is_told_in_the_same_shape(api: httpx.Client) -> None:
    response = api.get("/saga")
    assert response.status_code == 404
    assert response.json() == {"error": "not found", "remedy": "see /docs for what there is"}
