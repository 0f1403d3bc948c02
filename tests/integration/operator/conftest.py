"""The operator's API over a real schema and a real broker."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from common.http.access import Role
from common.process.process import Process
from common.transport.query import Asker
from orchestrator.engine.approval import ApprovalPolicy
from orchestrator.operator.api import make_app
from orchestrator.operator.backend import Backend
from orchestrator.runtime.service import Service
from orchestrator.sagas.order import ORDER_SAGA
from tests.integration.conftest import ROOT, MakeSettings
from tests.integration.mail import QUEUES
from tests.integration.operator.staging import SHORT_DEADLINE, Stage, answering
from tests.integration.waiting import running
from tests.support.apis import ENTRANCES, bearer


@pytest.fixture
async def stage(settings: MakeSettings) -> AsyncIterator[Stage]:
    ours = settings("orchestrator", process="operator", query_timeout_seconds=SHORT_DEADLINE)
    process = Process(ours, "queries")
    process.announce("operator", ROOT / "orchestrator" / "migrations")
    asker = Asker(process.broker, ours, process.health, process.stop)
    process.add("queries", asker.run)
    service = Service(
        process.db,
        [ORDER_SAGA],
        ours.policy,
        process="orchestrator-1",
        approval=ApprovalPolicy({"USD": 500}),
    )
    app = make_app(
        Backend.of(process, asker, [ORDER_SAGA], service), process.health, ENTRANCES["operator"]
    )
    async with (
        running(process, "queries", "processes"),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://operator",
            headers=bearer(Role.VIEWER),
        ) as api,
    ):
        await answering(process, "queries", "processes")
        await (await process.broker.channel()).declare(QUEUES)
        yield Stage(api, process, service)
