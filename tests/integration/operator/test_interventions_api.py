"""Stuck sagas, gates and the watch list, over the operator's API."""

from __future__ import annotations

import asyncio
from typing import Any

from common.http.access import Role
from common.messages.shop.inventory import ReserveStock, StockReserved
from common.messages.topology import ORCHESTRATOR_REPLIES
from common.transport.broker import Publication
from tests.integration.operator.staging import LINES, ONE, THREE, TWO, Stage, answer, start
from tests.integration.waiting import Rows
from tests.support.apis import bearer


async def test_stuck_sagas_name_the_cause_and_take_interventions(stage: Stage, admin: Rows) -> None:
    """One saga is overdue for an hour, one has no version, one cannot be decided."""
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
