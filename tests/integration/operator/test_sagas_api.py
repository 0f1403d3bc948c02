"""Sagas and their timelines, over the operator's API."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from tests.integration.operator.staging import ONE, THREE, TWO, Stage, refused, start
from tests.integration.waiting import Rows


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
