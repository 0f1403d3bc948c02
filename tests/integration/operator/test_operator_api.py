"""The operator's API over a real schema and a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
import pytest

from common.http.access import Role
from common.kit.settings import Settings
from common.messages.contracts import StartSaga
from common.messages.envelope import Command, Envelope, Query, Reply
from common.messages.shop.inventory import OutOfStock, ReserveStock, StockQuery, StockReserved
from common.messages.shop.order import OrderRejected, RejectOrder
from common.messages.shop.payment import AccountsQuery
from common.messages.topology import (
    ORCHESTRATOR_REPLIES,
    commands_of,
    dead_letter_queue,
    queries_of,
)
from common.process.process import Process
from common.storage.db import Database
from common.transport.broker import Publication
from common.transport.query import Asker
from inventory_svc.store import InventoryStore
from orchestrator.engine.approval import ApprovalPolicy
from orchestrator.operator.api import make_app
from orchestrator.operator.backend import Backend
from orchestrator.runtime.service import Service
from orchestrator.sagas.order import ORDER_SAGA
from payment_svc.store import PaymentStore
from tests.integration.conftest import ROOT, MakeSettings
from tests.integration.mail import QUEUES, Management, command
from tests.integration.services import open_account, receive_stock
from tests.integration.waiting import Rows, eventually, running
from tests.support.apis import ENTRANCES, bearer

ONE, TWO, THREE = (UUID(f"aaaa000{n}-0000-5000-8000-000000000000") for n in (1, 2, 3))
SHORT_DEADLINE = 0.5
LINES = [{"sku": "tea", "quantity": 5}]


def start(saga_id: UUID, customer: str = "ada") -> Envelope:
    data: dict[str, object] = {
        "order_id": str(saga_id), "customer": customer, "currency": "EUR", "total": 700,
        "lines": LINES,
    }  # fmt: skip
    return command(StartSaga(definition="order", data=data), saga_id, reply_to=None)


def answer(saga_id: UUID, asked: Command, said: Reply, process: str) -> Envelope:
    return command(asked, saga_id).reply(said, issued_at=datetime.now(UTC), process=process)


def refused(saga_id: UUID) -> tuple[Envelope, ...]:
    """From the refusal of the stock to the end."""
    shortage = OutOfStock(sku="tea", wanted=5, available=3)
    asked = ReserveStock.model_validate({"lines": LINES})
    undone = RejectOrder(reason="out_of_stock")
    return (
        answer(saga_id, asked, shortage, "inventory-7"),
        answer(saga_id, undone, OrderRejected(), "order"),
    )


class Stage:
    """The operator's process, its API, and an orchestrator to feed."""

    def __init__(self, api: httpx.AsyncClient, process: Process, service: Service) -> None:
        self.api = api
        self.process = process
        self._service = service

    async def feed(self, *envelopes: Envelope) -> None:
        for envelope in envelopes:
            await self._service.handle([self._service.parse(envelope)])

    async def get(self, path: str, status: int = 200, **parameters: Any) -> Any:
        response = await self.api.get(path, params=parameters)
        assert response.status_code == status, response.text
        return response.json()

    async def post(self, path: str, status: int = 200, **body: Any) -> Any:
        """As somebody who may act."""
        response = await self.api.post(path, json=body, headers=bearer(Role.OPERATOR))
        assert response.status_code == status, response.text
        return response.json()

    async def ids(self, **wanted: Any) -> list[str]:
        page = await self.get("/sagas", **wanted)
        return [row["saga_id"] for row in page["sagas"]]


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
        Backend.of(process, asker, [ORDER_SAGA], service),
        process.health,
        ENTRANCES["operator"],
    )
    async with (
        running(process, "queries", "processes"),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://operator",
            headers=bearer(Role.VIEWER),
        ) as api,
    ):
        await _answers(process, "queries", "processes")
        await (await process.broker.channel()).declare(QUEUES)
        yield Stage(api, process, service)


# --- what stands still ----------------------------------------------------------------------


async def test_stuck_sagas_name_the_cause_and_take_interventions(stage: Stage, admin: Rows) -> None:
    """Inventory is silent for an hour; a version is gone; and somebody acts."""
    await stage.feed(start(ONE), start(TWO), start(THREE))
    admin.execute(
        "update orchestrator.saga_instance set next_deadline = now() - interval '1 hour',"
        " started_at = now() - interval '2 hours',"
        " steps = jsonb_set(steps, '{reserve_stock, deadline}', '0') where saga_id = %s",
        (ONE,),
    )
    admin.execute(
        "update orchestrator.saga_instance set undeployed = true, stuck_since = now(), version = 9"
        " where saga_id = %s",
        (TWO,),
    )
    admin.execute(
        "update orchestrator.saga_instance set undeployed = true, stuck_since = now(),"
        " unjudgeable = 'reserve_stock: no carrier' where saga_id = %s",
        (THREE,),
    )
    page = await stage.get("/stuck")
    assert [(row["saga_id"], row["cause"]) for row in page["stuck"]] == [
        (str(ONE), "deadline_not_judged"), (str(TWO), "version_not_deployed"),
        (str(THREE), "cannot_be_judged"),
    ]  # fmt: skip
    assert page["stuck"][2]["standstill"] == (
        "this release cannot decide about it: reserve_stock: no carrier"
    )
    assert (await stage.get("/stuck", older_than=3600))["stuck"] == page["stuck"][:1]
    assert page["stuck"][1]["standstill"].endswith("is not deployed: order v9")
    assert (await stage.get(f"/sagas/{TWO}"))["steps"][0]["participant"] == "unknown"
    assert (await stage.get(f"/sagas/{TWO}/timeline"))["entries"][0]["told"].startswith("started")
    admin.execute(
        "insert into orchestrator.saga_instance"
        "       (saga_id, definition, version, state, data, steps, ended_at)"
        " select gen_random_uuid(), d, 2, 'COMPENSATED', '{}', '{}', now()"
        "   from unnest('{order, trip}'::text[]) d"
    )
    found = {finding["what"] for finding in (await stage.get("/doctor"))["findings"]}
    assert "some began under a version that is not deployed: order v9" in found
    never_archived = "some have ended under a version that is not deployed, and are never archived"
    assert f"{never_archived}: 1 of trip v2" in found
    assert "1 cannot be decided by this release" in found
    admin.execute("delete from orchestrator.saga_instance where ended_at is not null")

    why: dict[str, Any] = {"reason": "inventory is back"}
    refused = await stage.post(f"/sagas/{TWO}/retry", 409, **why)
    assert refused["remedy"] == "order v9 is not deployed here: it goes on by itself once it is"
    assert (await stage.post("/reconcile", 409, **why))["remedy"].startswith("commands wait")
    stage.process.relay.flushed = True
    channel = await stage.process.broker.channel()
    await channel.publish([Publication(ORCHESTRATOR_REPLIES, b"[]")], 5)
    assert "1 replies wait to be read" in (await stage.post("/reconcile", 409, **why))["remedy"]
    dry = await stage.post("/reconcile", dry_run=True, **why)
    assert [row["became"] for row in dry["sagas"]] == [None, None, None]
    await channel.wait(lambda w: channel._raw.queue_purge(ORCHESTRATOR_REPLIES, w.set_result))
    done = await stage.post("/reconcile", **why)
    assert [row["became"] for row in done["sagas"]] == [
        "timed out", f"refused: {refused['remedy']}", "nothing: it has moved on",
    ]  # fmt: skip
    saga = await stage.post(f"/sagas/{ONE}/compensate", reason="customer called")
    assert saga["state"] == "COMPENSATING"
    ended = await stage.post(f"/sagas/{ONE}/steps/reserve_stock/resolve", reason="nothing is held")
    assert ended["awaits"][0]["step"] == "create_order"
    acts = (await stage.get("/actions"))["actions"]
    assert [(act["action"], act["outcome"]) for act in acts] == [
        ("resolve", "done"), ("compensate", "done"), ("reconcile", "refused"),
        ("reconcile", "done"), ("retry", "refused"),
    ]  # fmt: skip
    assert {act["actor"] for act in acts} == {"operator-ann"}


# --- gates ---------------------------------------------------------------------------------


async def test_parked_sagas_are_listed_oldest_first_and_decided_once(
    stage: Stage, admin: Rows
) -> None:
    admin.execute(
        "insert into orchestrator.watched_customer (customer, actor, reason)"
        " values ('ada', 'ops', 'chargebacks')"
    )
    for saga_id in (TWO, ONE, THREE):
        reserved = ReserveStock.model_validate({"lines": LINES})
        await stage.feed(start(saga_id), answer(saga_id, reserved, StockReserved(), "inventory"))
    first = await stage.get("/waiting", limit=2)
    assert [row["saga_id"] for row in first["waiting"]] == [str(TWO), str(ONE)]
    row = first["waiting"][0]
    assert (row["why"], row["held"]) == ("customer ada is watched: chargebacks", LINES)
    rest = await stage.get("/waiting", limit=2, after=first["next"])
    assert [row["saga_id"] for row in rest["waiting"]] == [str(THREE)]
    assert (await stage.get("/waiting", customer="bob"))["waiting"] == []

    path, why = f"/sagas/{TWO}/approve", {"reason": "known to us"}
    headers = bearer(Role.OPERATOR)
    answers = await asyncio.gather(
        *(stage.api.post(path, json=why, headers=headers) for _ in range(3))
    )
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409]
    (late, _) = (answer.json() for answer in answers if answer.status_code == 409)
    assert late["error"] == "already_decided"
    assert late["remedy"].startswith("approve order: approved by operator-ann: known to us, at 20")
    assert (await stage.get("/actions", action="approve", outcome="done"))["actions"]
    assert len((await stage.get("/waiting"))["waiting"]) == 2


async def test_changes_of_the_watch_list_go_to_the_audit_log(stage: Stage) -> None:
    headers, bob = bearer(Role.OPERATOR), {"customer": "bob", "reason": "chargebacks"}
    for path, status in (
        ("/watch-list", 200), ("/watch-list", 200),
        ("/watch-list/remove", 200), ("/watch-list/remove", 404),
    ):  # fmt: skip
        heard = await stage.api.post(path, json=bob, headers=headers)
        assert heard.status_code == status
    acts = (await stage.get("/actions"))["actions"]
    assert [(act["action"], act["about"], act["outcome"]) for act in acts] == [
        ("unwatch", "bob", "refused"), ("unwatch", "bob", "done"),
        ("watch", "bob", "done"), ("watch", "bob", "done"),
    ]  # fmt: skip
    assert (await stage.get("/watch-list"))["customers"] == []


# --- sagas ---------------------------------------------------------------------------------


async def test_a_saga_with_its_steps_and_what_it_waits_for(stage: Stage) -> None:
    await stage.feed(start(ONE))
    saga = await stage.get(f"/sagas/{ONE}")
    assert (saga["state"], saga["reason"], saga["pivot"]) == ("RUNNING", None, "dispatch_stock")
    (awaited,) = saga["awaits"]
    deadline = datetime.fromisoformat(awaited.pop("deadline"))
    assert 3 < (deadline - datetime.now(UTC)).total_seconds() < 6
    assert awaited == {
        "step": "reserve_stock", "direction": "forward", "participant": "inventory", "attempt": 1,
    }  # fmt: skip
    steps = {step["step"]: step for step in saga["steps"]}
    assert [step["status"] for step in steps.values()] == [
        "done", "sent", "not_sent", "not_sent", "not_sent", "not_sent",
    ]  # fmt: skip
    assert datetime.fromisoformat(steps["reserve_stock"]["deadline"]) == deadline
    assert steps["dispatch_stock"]["kind"] == "pivot"


async def test_the_timeline_names_processes_and_their_answers(stage: Stage) -> None:
    await stage.feed(start(ONE), *refused(ONE))
    timeline = await stage.get(f"/sagas/{ONE}/timeline")
    assert timeline["ended"] is True
    entries = timeline["entries"]
    assert [entry["entry"] for entry in entries] == [
        "started", "sent", "refused", "turned", "sent", "done", "compensated",
    ]  # fmt: skip
    refusal = entries[2]
    assert refusal["detail"] == "out_of_stock (sku tea, wanted 5, available 3)"
    assert refusal["told"] == "inventory refuses: out of stock (sku tea, wanted 5, available 3)"
    assert (refusal["answered_by"], refusal["process"]) == ("inventory-7", "orchestrator-1")
    assert entries[5]["answered_by"] == "order"
    assert [entry["id"] for entry in entries] == sorted(entry["id"] for entry in entries)


async def test_a_timeline_can_be_followed(stage: Stage) -> None:
    await stage.feed(start(ONE))
    first = await stage.get(f"/sagas/{ONE}/timeline")
    assert (len(first["entries"]), first["ended"]) == (2, False)
    nothing = await stage.get(f"/sagas/{ONE}/timeline", after=first["next"])
    assert (nothing["entries"], nothing["next"]) == ([], first["next"])
    await stage.feed(*refused(ONE))
    second = await stage.get(f"/sagas/{ONE}/timeline", after=first["next"], limit=2)
    assert [entry["entry"] for entry in second["entries"]] == ["refused", "turned"]
    assert second["ended"] is False  # there is more to be read
    third = await stage.get(f"/sagas/{ONE}/timeline", after=second["next"])
    assert (third["entries"][-1]["entry"], third["ended"]) == ("compensated", True)


async def test_sagas_are_found_by_every_filter(stage: Stage, admin: Rows) -> None:
    await stage.feed(start(ONE), start(TWO, "bob"), *refused(TWO), start(THREE, "bob"))
    admin.execute(
        "update orchestrator.saga_instance set started_at = now() - interval '1 hour',"
        " stuck_since = now() where saga_id = %s",
        (ONE,),
    )
    one, two, three = map(str, (ONE, TWO, THREE))
    assert await stage.ids() == [three, two, one]
    assert await stage.ids(customer="bob") == [three, two]
    assert await stage.ids(state="COMPENSATED") == [two]
    assert await stage.ids(reason="out_of_stock", customer="bob") == [two]
    assert await stage.ids(step="reserve_stock") == [three, one]
    assert await stage.ids(step="charge_payment") == []
    assert await stage.ids(older_than=60) == [one]
    assert await stage.ids(stuck=True) == [one]
    problem = await stage.get("/sagas", 422, state="LOST")
    assert (problem["error"], problem["field"]) == ("invalid_request", "state")


async def test_pages_neither_skip_nor_repeat(stage: Stage) -> None:
    sagas = [UUID(int=n) for n in range(1, 8)]
    await stage.feed(*map(start, sagas))
    await stage.feed(*refused(sagas[2]), *refused(sagas[5]))
    seen: list[UUID] = []
    after: dict[str, Any] = {}
    for _ in range(10):
        page = await stage.get("/sagas", limit=2, **after)
        seen += [UUID(row["saga_id"]) for row in page["sagas"]]
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert seen == sagas[::-1]
    assert (await stage.get("/sagas", 404, after=str(UUID(int=99))))["error"] == "not_found"


async def test_the_first_digits_of_an_id_are_enough_if_unique(stage: Stage) -> None:
    await stage.feed(start(ONE), start(TWO))
    assert (await stage.get("/sagas/AAAA0001"))["saga_id"] == str(ONE)
    assert (await stage.get("/sagas/aaaa0002-0000/timeline"))["saga_id"] == str(TWO)
    ambiguous = await stage.get("/sagas/aaaa", 409)
    assert str(ONE) in ambiguous["remedy"]
    assert str(TWO) in ambiguous["remedy"]
    assert (await stage.get("/sagas/bbbb", 404))["error"] == "not_found"
    assert (await stage.get("/sagas/aaa", 422))["field"] == "saga_id"
    assert (await stage.get(f"/sagas/{THREE}", 404))["error"] == "not_found"


# --- asked of others -----------------------------------------------------------------------


@pytest.fixture
async def participants(
    settings: MakeSettings,
) -> AsyncIterator[Callable[[], Any]]:
    """await participants() starts inventory and payment as far as they answer questions."""
    async with AsyncExitStack() as stack:

        async def begin() -> None:
            for service, reads in (
                ("inventory", {StockQuery: InventoryStore().stock_page}),
                ("payment", {AccountsQuery: PaymentStore().accounts_page}),
            ):
                process = Process(settings(f"{service}_svc", process=service))
                process.announce(service, ROOT / f"{service}_svc" / "migrations")
                responders: dict[type[Query], Any] = {
                    query: _reading(process.db, read) for query, read in reads.items()
                }
                process.answer(queries_of(service), responders)
                await stack.enter_async_context(running(process, queries_of(service), "processes"))
                await _answers(process, queries_of(service), "processes")

        yield begin


async def _answers(process: Process, *checks: str) -> None:
    await eventually(lambda: all(process.health.checks[check] is None for check in checks))


def _reading(db: Database, read: Any) -> Any:
    async def respond(query: Query) -> Any:
        async with db.transaction(None) as tx:
            return await read(tx, query)

    return respond


async def test_stock_and_accounts_come_from_their_services(
    stage: Stage, participants: Callable[[], Any], settings: MakeSettings
) -> None:
    async with Database(settings("inventory_svc")) as db:
        await receive_stock(db, tea=10, tease=4, cup=3)
    async with Database(settings("payment_svc")) as db:
        for number, customer in enumerate(("ada", "bob/jr"), start=9000):
            await open_account(db, customer, 500, number)
    await participants()

    first = await stage.get("/stock", limit=2)
    assert [row["sku"] for row in first["stock"]] == ["cup", "tea"]
    assert first["stock"][1] == {
        "sku": "tea", "on_hand": 10, "held": 0, "dispatched": 0, "received": 10,
    }  # fmt: skip
    rest = await stage.get("/stock", limit=2, after=first["next"])
    assert ([row["sku"] for row in rest["stock"]], rest["next"]) == (["tease"], None)
    assert [row["sku"] for row in (await stage.get("/stock", sku="te"))["stock"]] == [
        "tea", "tease",
    ]  # fmt: skip

    accounts = await stage.get("/accounts", limit=1)
    assert accounts["next"] == "ada/EUR"
    second = await stage.get("/accounts", limit=1, after="ada/EUR")
    assert second["accounts"] == [
        {"customer": "bob/jr", "currency": "EUR", "card": "good", "balance": 500}
    ]
    assert second["next"] is None
    of_bob = await stage.get("/accounts", customer="bob/jr")
    assert of_bob["accounts"] == second["accounts"]
    assert (await stage.get("/accounts", 422, after="nonsense"))["field"] == "after"


async def test_a_service_that_is_down_is_a_503(stage: Stage) -> None:
    for path in ("/stock", "/accounts"):
        problem = await stage.get(path, 503)
        assert problem["error"] == "no_answer"
        assert "saga doctor" in problem["remedy"]


# --- the doctor ----------------------------------------------------------------------------


def findings(diagnosis: Any) -> dict[str, str]:
    return {finding["about"]: finding["what"] for finding in diagnosis["findings"]}


async def test_the_doctor_sees_which_processes_are_missing(
    stage: Stage, participants: Callable[[], Any], admin: Rows
) -> None:
    await participants()
    admin.execute(
        "delete from payment_svc.schema_migration where name = 'payment_svc/0001_payment'"
    )
    admin.execute("insert into inventory_svc.schema_migration values ('inventory_svc/0009_x', '')")
    diagnosis = await stage.get("/doctor")
    assert diagnosis["ok"] is False
    assert [p["process"] for p in diagnosis["processes"]] == ["inventory", "operator", "payment"]
    found = findings(diagnosis)
    assert {about for about in found if about.startswith("service")} == {
        "service orchestrator", "service order", "service door",
    }  # fmt: skip
    what = {(f["about"], f["what"]) for f in diagnosis["findings"]}
    assert ("process payment", "its schema lacks payment_svc/0001_payment") in what
    assert any(
        about == "process inventory" and "inventory_svc/0009_x" in text for about, text in what
    )
    assert "queue payment.queries" not in found
    assert found["queue payment.commands"] == "it has no consumer; 0 messages wait in it"


async def test_the_doctor_names_missing_and_differing_queues(
    stage: Stage, management: Management
) -> None:
    changed, without = commands_of("payment"), dead_letter_queue(commands_of("order"))
    management.delete_queue(changed)
    management.delete_queue(without)
    broker = stage.process.broker
    channel = await broker.channel()
    arguments = dict(next(queue.arguments for queue in QUEUES if queue.name == changed))
    arguments |= {"x-overflow": "drop-head"}
    await channel.wait(
        lambda waiter: channel._raw.queue_declare(
            changed,
            durable=True,
            arguments=arguments,
            callback=lambda frame: waiter.set_result(frame),
        )
    )
    dead = dead_letter_queue(commands_of("inventory"))
    await channel.publish([Publication(dead, b"[]"), Publication(dead, b"[]")], 5)

    async def two_are_counted() -> bool:
        return await channel.ready_count(dead) == 2

    await eventually(two_are_counted)
    diagnosis = await stage.get("/doctor")
    found = findings(diagnosis)
    assert found[f"queue {without}"].startswith("it is missing: dead letters have nowhere to go")
    assert found[f"queue {dead}"] == "it has no consumer; 2 messages wait in it"
    differences = [f for f in diagnosis["findings"] if "other arguments" in f["what"]]
    (difference,) = differences
    assert "x-overflow" in difference["what"]
    assert difference["what"].endswith("current is 'drop-head'")
    assert f"`rabbitmqctl delete_queue {changed}`" in difference["remedy"]
    queues = {queue["name"]: queue for queue in diagnosis["queues"]}
    assert queues[without]["exists"] is False  # looking has not made it
    assert queues[dead]["ready"] == 2


async def test_the_doctor_says_what_it_could_not_reach(
    settings: MakeSettings, stage: Stage
) -> None:
    broker = stage.process.broker
    await broker.close()
    broker._settings = _nowhere(broker._settings)
    diagnosis = await stage.get("/doctor")
    assert (diagnosis["processes"], diagnosis["queues"]) == (None, None)
    (finding,) = diagnosis["findings"]
    assert (finding["severity"], finding["about"]) == ("error", "broker")
    assert "RabbitMQ runs" in finding["remedy"]


def _nowhere(settings: Settings) -> Settings:
    changes = {"amqp_url": settings.amqp_url.__class__("amqp://nobody:pw@127.0.0.1:9/")}
    return settings.model_copy(update=changes)
