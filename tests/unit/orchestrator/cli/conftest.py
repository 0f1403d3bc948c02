"""The command `saga` against both real APIs over state in memory."""

from __future__ import annotations

from functools import cache

import httpx
import pytest
from typer.testing import CliRunner

from common.http.access import Role
from orchestrator.cli import app, client, dead_letters, orders, sagas
from tests.support.apis import TOKENS, FakeBackend, InMemory, Shop
from tests.unit.orchestrator.cli.running import NoTime, Result, Saga

DOOR, OPERATOR = "http://door", "http://operator"
ENVIRONMENT = {
    "SAGAPROOF_DOOR_URL": DOOR,
    "SAGAPROOF_DOOR_KEY": TOKENS[Role.CUSTOMER],
    "SAGAPROOF_OPERATOR_URL": OPERATOR,
    "SAGAPROOF_OPERATOR_TOKEN": TOKENS[Role.OPERATOR],
}


@cache
def _apis() -> tuple[Shop, FakeBackend, dict[str, InMemory]]:
    """Make the apps once: FastAPI takes longer for it than a test."""
    shop, backend = Shop(), FakeBackend()
    return shop, backend, {DOOR: InMemory(shop.app()), OPERATOR: InMemory(backend.app())}


@pytest.fixture
def shop() -> Shop:
    shop, _, _ = _apis()
    vars(shop).update(vars(Shop()))
    return shop


@pytest.fixture
def backend() -> FakeBackend:
    _, backend, _ = _apis()
    vars(backend).update(vars(FakeBackend()))
    return backend


@pytest.fixture
def saga(shop: Shop, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> Saga:
    """Run a command with both URLs set: saga("list", "--stuck")."""
    _, _, apps = _apis()

    def connect(url: str) -> httpx.Client:
        return httpx.Client(base_url=url, transport=apps.get(url))

    monkeypatch.setattr(client, "connect", connect)
    for module in (client, dead_letters, orders, sagas):
        monkeypatch.setattr(module, "time", NoTime())

    def run(*words: str, **others: str | None) -> Result:
        environment = {**ENVIRONMENT, **others}
        result = CliRunner(env=environment).invoke(app, words, catch_exceptions=False)
        return Result(result.exit_code, result.stdout, result.stderr)

    return run
