"""Stock, accounts and the doctor, over the operator's API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from common.kit.settings import Settings
from common.messages.envelope import Query
from common.messages.shop.inventory import StockQuery
from common.messages.shop.payment import AccountsQuery
from common.messages.topology import commands_of, dead_letter_queue, queries_of
from common.process.process import Process
from common.storage.db import Database
from common.transport.broker import Publication
from inventory_svc.store import InventoryStore
from payment_svc.store import PaymentStore
from tests.integration.conftest import ROOT, MakeSettings
from tests.integration.mail import QUEUES, Management
from tests.integration.operator.staging import Stage, answering
from tests.integration.services import open_account, receive_stock
from tests.integration.waiting import Rows, eventually, running


@pytest.fixture
async def participants(settings: MakeSettings) -> AsyncIterator[Callable[[], Any]]:
    """Return a function that starts inventory and payment, which answer queries only."""
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
                await answering(process, queries_of(service), "processes")

        yield begin


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
