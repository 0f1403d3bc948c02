"""Access to the two APIs: tokens, roles, rates; and what starts without any tokens."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import ValidationError

import orchestrator.__main__
import order_svc.__main__
from common.http.access import Role
from common.http.app import OPEN, READS, Caller
from common.kit.settings import Settings
from common.process.process import prepare
from order_svc.__main__ import MIGRATIONS
from tests.support.apis import BODY_LIMIT, ENTRANCES, TOKENS, FakeBackend, InMemory, Shop, bearer

APPS = {"door": Shop().app(), "operator": FakeBackend().app()}
ROOT = Path(__file__).parents[3]
SECRET = "a-password-nobody-shall-read"


def api(app: FastAPI, **headers: str) -> httpx.Client:
    return httpx.Client(transport=InMemory(app), base_url="http://api", headers=headers)


def endpoints() -> Iterator[tuple[str, str, APIRoute]]:
    """Yield every endpoint of both APIs: the API's name, the method, the route."""
    for name, app in APPS.items():
        for route in app.routes:
            if isinstance(route, APIRoute):
                yield from ((name, method, route) for method in route.methods or ())


EVERY = pytest.mark.parametrize(
    ("name", "method", "route"),
    [pytest.param(*each, id=f"{each[1]} {each[0]}{each[2].path}") for each in endpoints()],
)


@EVERY
def test_nobody_is_let_in_without_a_token_of_this_api(
    name: str, method: str, route: APIRoute
) -> None:
    others = bearer(Role.OPERATOR if name == "door" else Role.CUSTOMER)
    for headers, error in (({}, "no_token"), (others, "unknown_token")):
        response = api(APPS[name], **headers).request(method, route.path, content=b"{")
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"] == error
        assert response.json()["remedy"]


@pytest.mark.parametrize("header", ["Bearer", "Bearer ", "Basic eDp5", "Bearer wrong", "ä"])
def test_what_is_no_token_is_told_from_one_that_is_unknown(header: str) -> None:
    headers = {b"authorization": header.encode("latin-1")}
    transport = InMemory(APPS["door"])
    response = httpx.Client(transport=transport, base_url="http://door").get("/x", headers=headers)
    assert response.status_code == 401
    assert response.json()["error"] == ("unknown_token" if "wrong" in header else "no_token")


@EVERY
def test_openapi_has_every_endpoint_s_parameters_and_errors(
    name: str, method: str, route: APIRoute
) -> None:
    page = APPS[name].openapi()
    operation = page["paths"][route.path][method.lower()]
    assert operation["security"] == [{"token": []}]
    wanted = {"401", "429"} if method in READS else {"400", "401", "413", "429"}
    assert wanted <= set(operation["responses"])
    assert page["components"]["securitySchemes"]["token"]["scheme"] == "bearer"


@EVERY
def test_a_viewer_may_look_and_change_nothing(name: str, method: str, route: APIRoute) -> None:
    if name == "door":
        return  # who may order may look
    response = api(APPS[name], **bearer(Role.VIEWER)).request(method, route.path, content=b"{")
    if method in READS:
        assert response.status_code != 403
    else:
        assert response.status_code == 403
        assert "403" in APPS[name].openapi()["paths"][route.path][method.lower()]["responses"]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "BREW"])
def test_a_viewer_is_refused_before_it_is_looked_what_there_is(method: str) -> None:
    viewer = api(APPS["operator"], **bearer(Role.VIEWER))
    refused = viewer.request(method, "/sagas", content=b"x" * BODY_LIMIT * 2)
    assert refused.status_code == 403
    assert refused.json() == {
        "error": "forbidden",
        "remedy": "the token of viewer-ann is a viewer's, who may look: ask with an operator's",
    }
    operator = api(APPS["operator"], **bearer(Role.OPERATOR))
    assert operator.request(method, "/sagas").status_code == 405


@pytest.mark.parametrize("name", APPS)
def test_health_and_the_page_are_open(name: str) -> None:
    for path in sorted(OPEN):
        assert api(APPS[name]).get(path).status_code == 200, path


@pytest.mark.parametrize("path", ["/live/", "/live/x", "//live", "/docs/x", "/redoc", "/nil"])
def test_nothing_else_is(path: str) -> None:
    assert api(APPS["operator"]).get(path).status_code == 401


def test_a_method_that_is_not_there_names_those_that_are() -> None:
    refused = api(APPS["operator"], **bearer(Role.OPERATOR)).delete("/sagas")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET")
    assert refused.json()["error"] == "method not allowed"


def test_an_endpoint_may_ask_who_asks() -> None:
    app = FakeBackend().app()

    @app.post("/who")
    async def who(actor: Caller) -> str:
        return f"{actor.name} is a {actor.role}"

    response = api(app, **bearer(Role.OPERATOR)).post("/who")
    assert response.json() == "operator-ann is a operator"
    assert api(app, **bearer(Role.VIEWER)).post("/who").status_code == 403


def test_who_asks_too_often_is_told_how_long_to_wait() -> None:
    entrance = replace(ENTRANCES["operator"], requests_per_second=0.5)
    operator = api(FakeBackend().app(entrance), **bearer(Role.OPERATOR))
    assert operator.get("/doctor").status_code == 200
    response = operator.get("/doctor")
    assert response.status_code == 429
    assert response.json()["error"] == "too_many_requests"
    assert 0 < int(response.headers["retry-after"]) <= 2
    assert operator.get("/live").status_code == 200
    assert operator.get("/doctor", headers=bearer(Role.VIEWER)).status_code == 200


# --- starting ------------------------------------------------------------------------------


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Set the settings of a process without tokens; its servers do not exist."""
    for name in [name for name in os.environ if name.startswith("SAGAPROOF_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SAGAPROOF_POSTGRES_DSN", f"postgresql://door:{SECRET}@127.0.0.1:9/x")
    monkeypatch.setenv("SAGAPROOF_AMQP_URL", f"amqp://door:{SECRET}@127.0.0.1:9/")
    return monkeypatch


def ended(check: Callable[[Settings], object]) -> str:
    """Return the error of a process that does not start."""
    with pytest.raises(SystemExit) as end:
        prepare("door", MIGRATIONS, check=check)
    assert SECRET not in str(end.value)
    return str(end.value)


@pytest.mark.parametrize(
    ("check", "variable"),
    [
        (order_svc.__main__.entrance, "SAGAPROOF_DOOR_KEYS"),
        (orchestrator.__main__.entrance, "SAGAPROOF_OPERATOR_TOKENS"),
    ],
)
def test_an_api_without_tokens_does_not_start_and_says_so(
    nowhere: pytest.MonkeyPatch, tmp_path: Path, check: Callable[[Settings], object], variable: str
) -> None:
    assert ended(check).startswith(f"{variable}: it is not set, or empty.")
    nowhere.setenv(variable, " ")
    assert ended(check).startswith(f"{variable}: it is not set, or empty.")
    nowhere.delenv(variable)
    (tmp_path / "tokens").write_text(f"ann:ruler:{TOKENS[Role.OPERATOR]}\n")
    nowhere.setenv(f"{variable}_FILE", str(tmp_path / "tokens"))
    assert ended(check).startswith(f"{variable}: entry 1: no role 'ruler'")
    assert TOKENS[Role.OPERATOR] not in ended(check)
    nowhere.setenv(f"{variable}_FILE", "/nowhere/tokens")
    assert "/nowhere/tokens" in ended(check)


def test_so_it_is_for_the_process_itself(nowhere: pytest.MonkeyPatch) -> None:
    for module, mode in (("order_svc", "door"), ("orchestrator", "operator")):
        words = [sys.executable, "-m", module, mode]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=100)
        assert (done.returncode, done.stdout) == (1, "")
        assert re.fullmatch(r"SAGAPROOF_\w+: it is not set, or empty\..*\n", done.stderr)


def test_an_invalid_setting_is_one_line_without_secrets(
    nowhere: pytest.MonkeyPatch,
) -> None:
    nowhere.delenv("SAGAPROOF_AMQP_URL")
    nowhere.setenv("SAGAPROOF_POOL_SIZE", "1")
    assert ended(lambda _: None).splitlines() == [
        "SAGAPROOF_AMQP_URL: Field required",
        "SAGAPROOF_POOL_SIZE: Input should be greater than or equal to 2",
    ]
    with pytest.raises(ValidationError) as wrong:
        Settings()
    assert "input_value" not in str(wrong.value), "nor would a traceback"


@pytest.mark.parametrize(
    ("variable", "url"),
    [
        *(("SAGAPROOF_AMQP_URL", url) for url in ("", " ", "amqp://", f"amqp://x:{SECRET}@/v",
          "localhost:5672", f"http://x:{SECRET}@host/", f"amqp://x:{SECRET}@[::1/")),
        *(("SAGAPROOF_POSTGRES_DSN", url) for url in ("", "postgresql:///x", "dbname=x host=y",
          f"mysql://x:{SECRET}@host/x")),
    ],
)  # fmt: skip
def test_a_url_that_leaves_its_server_to_the_driver_is_refused(
    nowhere: pytest.MonkeyPatch, variable: str, url: str
) -> None:
    """The driver would take localhost, where another server may listen."""
    nowhere.setenv(variable, url)
    said = ended(lambda _: None)
    assert said.startswith(f"{variable}: it is empty, or no URL that names a server; write ")
    assert said.endswith("5672/VHOST" if "AMQP" in variable else "5432/DATABASE")


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("amqp_url", "amqps://broker"),
        ("postgres_dsn", "postgres://u:p@one:5432,two:5433/x"),
        ("postgres_dsn", "postgresql:///x?host=/run/postgresql"),
    ],
)
def test_every_way_to_name_a_server_will_do(
    nowhere: pytest.MonkeyPatch, name: str, url: str
) -> None:
    nowhere.setenv(f"SAGAPROOF_{name.upper()}", url)
    assert getattr(Settings(), name).get_secret_value() == url
