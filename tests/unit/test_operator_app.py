"""What the operator's API says about itself, and about what is wrong with a question."""

from __future__ import annotations

import httpx
import pytest

from common.access import Role
from tests.support.apis import InMemory, Sagas, bearer


@pytest.fixture
def api() -> httpx.Client:
    return httpx.Client(
        transport=InMemory(Sagas().app()), base_url="http://operator", headers=bearer(Role.VIEWER)
    )


def test_its_page_names_every_endpoint_and_what_it_answers(api: httpx.Client) -> None:
    paths = api.get("/openapi.json").json()["paths"]
    assert set(paths) == {
        "/sagas", "/sagas/{saga_id}", "/sagas/{saga_id}/timeline", "/actions",
        "/stock", "/accounts", "/doctor",
    }  # fmt: skip
    assert all(operation["get"]["description"] for operation in paths.values())
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
        ("/actions?outcome=maybe", "outcome"),
        ("/actions?after=-1", "after"),
        ("/actions?saga=zz", "saga_id"),
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


def test_what_there_is_not_is_told_in_the_same_shape(api: httpx.Client) -> None:
    response = api.get("/saga")
    assert response.status_code == 404
    assert response.json() == {"error": "not found", "remedy": "see /docs for what there is"}
