"""Redriving and discarding against a real Postgres: a dead letter leaves once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from hashlib import md5
from typing import Any
from unittest.mock import MagicMock
from uuid import UUID, uuid4

import httpx
import pytest

from common.http.access import Role
from common.kit.health import Health
from common.messages.envelope import Envelope, Key
from common.messages.shop.payment import ChargePayment, OpenAccount, PaymentCharged
from common.storage.db import Database
from orchestrator.dead_letters import store
from orchestrator.dead_letters.intake import Intake
from orchestrator.dead_letters.letter import dead_letters_of
from orchestrator.dead_letters.redrive import Disposal, Redriver, Result, Settlement
from orchestrator.dead_letters.store import DeadLetterFilter
from orchestrator.operator.api import make_app
from orchestrator.operator.queries import Queries
from tests.integration.conftest import MakeSettings
from tests.integration.mail import command, saga
from tests.integration.orchestrating import (
    COMMANDS,
    COMPENSATING,
    REPLIES,
    RESERVED,
    ROLE,
    SHORT,
    commands,
    give_each,
    logged,
    reply,
    service,
    start,
    state,
)
from tests.integration.services import handle, open_account, payment, transfers
from tests.integration.waiting import Rows, rows_read
from tests.support.apis import ENTRANCES, bearer

INVENTORY, PAYMENT = "inventory.commands", "payment.commands"
pytestmark = pytest.mark.usefixtures("nothing_left_claimed")


def charge(number: int, **more: Any) -> Envelope:
    """Return a ChargePayment as the orchestrator sends it."""
    body = ChargePayment(customer="ada", total=10, currency="EUR")
    return command(body, saga(number), **{"reply_to": REPLIES, **more})


class Office:
    """An intake, a redriver and the operator API over one schema."""

    def __init__(self, db: Database, judge: Rows) -> None:
        self.db = db
        self.service = service(db)
        self.desk = Redriver(db, self.service)
        backend: Any = MagicMock(queries=Queries(db), redriver=self.desk)
        app = make_app(backend, Health(), ENTRANCES["operator"])
        self.api = httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://operator",
            headers=bearer(Role.OPERATOR),
        )
        self._judge = judge
        self._intake = Intake(PAYMENT, self.service, _nothing, Health(), asyncio.Event())

    async def bury(self, queue: str, *bodies: bytes, reason: str = "poison") -> list[UUID]:
        """Take these in as if from the broker; return their ids."""
        headers = {"x-sagaproof-reason": reason, "x-sagaproof-letter": str(uuid4())}
        letters = [one for body in bodies for one in dead_letters_of(queue, body, headers)]
        await self._intake._keep(letters)
        return [letter.letter_id for letter in letters]

    async def bury_envelopes(self, queue: str, *envelopes: Envelope) -> list[UUID]:
        return await self.bury(queue, *(f"[{e.encode()}]".encode() for e in envelopes))

    async def settle(self, disposal: Disposal, *ids: UUID, actor: str = "ann") -> list[Settlement]:
        return await self.desk.settle(disposal, ids, actor, "because", dry_run=False)

    async def post(self, deed: str, status: int = 200, **body: Any) -> Any:
        response = await self.api.post(f"/dead-letters/{deed}", json=body)
        assert response.status_code == status, response.text
        return response.json()

    async def get(self, path: str = "", **parameters: Any) -> Any:
        response = await self.api.get(f"/dead-letters{path}", params=parameters)
        assert response.status_code == 200, response.text
        return response.json()

    def outbox(self, queue: str) -> list[str]:
        query = "select envelope from orchestrator.outbox where destination = %s order by id"
        return [str(row[0]) for row in self._judge.execute(query, (queue,))]

    def states(self) -> list[tuple[Any, ...]]:
        query = "select state, count from orchestrator.dead_letter order by queue, first_seen"
        return self._judge.execute(query).fetchall()

    def actions(self) -> list[tuple[Any, ...]]:
        query = "select actor, action, reason, outcome, saga_id from orchestrator.operator_action"
        return self._judge.execute(query + " order by id").fetchall()


_nothing: Any = None


@pytest.fixture
async def office(settings: MakeSettings, judge: Rows) -> AsyncIterator[Office]:
    async with Database(settings(ROLE)) as db:
        office = Office(db, judge)
        async with office.api:
            yield office


async def asked_to_charge(office: Office, *numbers: int) -> None:
    """Start sagas and bring them to where their charge was sent."""
    for n in numbers:
        await give_each(office.service, start(n), reply(n, "reserve_stock", RESERVED))


# --- once ----------------------------------------------------------------------------------


async def test_a_command_of_a_resolved_step_is_not_redriven(office: Office, judge: Rows) -> None:
    """No undo was sent that would have left a tombstone, and none will be."""
    await asked_to_charge(office, 1)
    (letter,) = await office.bury_envelopes(PAYMENT, charge(1))
    refund = Envelope.model_validate_json(office.outbox(PAYMENT)[-1])
    (undo,) = await office.bury_envelopes(PAYMENT, refund)
    await office.service.resolve(saga(1), "charge_payment", "ann", "nothing was charged")
    before = office.outbox(PAYMENT)
    for ident in (letter, undo):
        (outcome,) = await office.settle(Disposal.REDRIVE, ident, actor="bob")
        assert outcome.result is Result.REFUSED
        assert "resolved" in str(outcome.why)
    assert office.outbox(PAYMENT) == before
    assert await office.settle(Disposal.DISCARD, letter) == [Settlement(letter, Result.DONE)]


async def test_a_redriven_message_keeps_its_id_and_its_queue(office: Office) -> None:
    await asked_to_charge(office, 1)
    before = office.outbox(PAYMENT)
    wire = {**json.loads(charge(1).encode()), "of a later version": [1.5]}
    (ident,) = await office.bury(PAYMENT, b" [" + json.dumps(wire).encode() + b"]\n")
    assert await office.settle(Disposal.REDRIVE, ident) == [Settlement(ident, Result.DONE)]
    added = [one for one in office.outbox(PAYMENT) if one not in before]
    assert json.dumps(wire) in added
    assert office.states() == [("redriven", 1)]


async def test_clicked_twice_or_by_two_people_it_leaves_once(office: Office) -> None:
    await asked_to_charge(office, 1)
    (ident,) = await office.bury_envelopes(PAYMENT, charge(1))
    before = len(office.outbox(PAYMENT))
    clicks = [office.settle(Disposal.REDRIVE, ident, actor=who) for who in ("ann", "bob", "ann")]
    results = sorted(outcome.result for (outcome,) in await asyncio.gather(*clicks))
    assert results == [Result.ALREADY, Result.ALREADY, Result.DONE]
    (late,) = await office.settle(Disposal.DISCARD, ident, actor="eve")
    assert late.result is Result.ALREADY
    assert late.why is not None
    assert late.why.startswith("redriven by ")
    assert len(office.outbox(PAYMENT)) == before + 1


async def test_a_failed_redrive_changes_nothing_and_can_be_repeated(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asked_to_charge(office, 1)
    (ident,) = await office.bury_envelopes(PAYMENT, charge(1))
    before = office.outbox(PAYMENT)

    def died(*_: object) -> None:
        raise ConnectionError

    with monkeypatch.context() as patch:
        patch.setattr(store, "settle", died)
        with pytest.raises(ConnectionError):
            await office.settle(Disposal.REDRIVE, ident)
    assert (office.outbox(PAYMENT), office.states()) == (before, [("open", 1)])
    await office.settle(Disposal.REDRIVE, ident)
    assert len(office.outbox(PAYMENT)) == len(before) + 1


async def test_redriven_again_and_again_it_charges_once(
    office: Office, settings: MakeSettings, judge: Rows
) -> None:
    """A command that was done, and dead-lettered by a crash, is not done again."""
    await asked_to_charge(office, 1)
    async with Database(settings("payment_svc")) as theirs:
        await open_account(theirs, "ada", 1000)
        for _ in range(3):
            (ident,) = await office.bury_envelopes(PAYMENT, charge(1))
            await office.settle(Disposal.REDRIVE, ident)
            redriven = Envelope.model_validate_json(office.outbox(PAYMENT)[-1])
            (said,) = await handle(payment(theirs), redriven)
    assert isinstance(said, PaymentCharged) or said is None  # the stored one, given unread
    assert transfers(judge, saga(1)) == ["CHARGE"]
    assert office.states() == [("redriven", 3)]


async def test_a_redriven_message_that_dies_again_is_open_again(office: Office) -> None:
    await asked_to_charge(office, 1)
    (ident,) = await office.bury_envelopes(PAYMENT, charge(1))
    await office.settle(Disposal.REDRIVE, ident)
    assert await office.bury_envelopes(PAYMENT, charge(1, attempt=2)) == [ident]
    assert office.states() == [("open", 2)]
    assert [o.result for o in await office.settle(Disposal.REDRIVE, ident)] == [Result.DONE]


async def test_intake_and_redrive_at_once_do_not_deadlock(
    office: Office,
) -> None:
    numbers = range(1, 21)
    await asked_to_charge(office, *numbers)
    charges = [charge(n) for n in numbers]
    ids = await office.bury_envelopes(PAYMENT, *charges)
    for _ in range(5):
        await asyncio.gather(
            office.bury_envelopes(PAYMENT, *reversed(charges)),
            office.settle(Disposal.REDRIVE, *ids),
            office.settle(Disposal.DISCARD, *reversed(ids)),
            office.bury_envelopes(PAYMENT, *charges),
        )


# --- refused -------------------------------------------------------------------------------


async def test_a_message_of_an_unknown_saga_is_not_redriven(office: Office) -> None:
    """Its saga is unknown or archived, so its inbox row may be forgotten."""
    answer = reply(8, "charge_payment", RESERVED)
    ids = [
        *await office.bury_envelopes(PAYMENT, charge(7)),
        *await office.bury_envelopes(REPLIES, answer),
    ]
    outcomes = await office.settle(Disposal.REDRIVE, *ids)
    assert [o.result for o in outcomes] == [Result.REFUSED] * 2
    assert all("its saga is unknown or archived" in str(o.why) for o in outcomes)
    assert (office.outbox(PAYMENT), office.outbox(REPLIES)) == ([], [])
    refusal = ("ann", "redrive", "because", "refused", None)
    assert office.actions() == [refusal, refusal]


async def test_a_message_from_another_sender_may_be_redriven(office: Office) -> None:
    account = command(OpenAccount(customer="ada", currency="EUR"), saga(9), reply_to="loader")
    ids = [
        *await office.bury_envelopes(PAYMENT, account),
        *await office.bury_envelopes(COMMANDS, start(5)),
    ]
    assert [o.result for o in await office.settle(Disposal.REDRIVE, *ids)] == [Result.DONE] * 2
    await give_each(office.service, Envelope.model_validate_json(office.outbox(COMMANDS)[0]))
    assert logged_of(office, 5)[-2:] == ["started", "sent"]


async def test_a_dead_letter_without_envelope_can_only_be_discarded(office: Office) -> None:
    large = json.dumps([{**json.loads(charge(1).encode()), "body": {"x": "y" * 1_100_000}}])
    ids = await office.bury(PAYMENT, b"tea, please", large.encode())
    outcomes = await office.settle(Disposal.REDRIVE, *ids, missing := uuid4())
    assert {o.letter_id: o.result for o in outcomes} == dict.fromkeys(
        [*ids, missing], Result.REFUSED
    )
    assert [o.result for o in await office.settle(Disposal.DISCARD, *ids)] == [Result.DONE] * 2
    assert office.states() == [("discarded", 1)] * 2


# --- discarded -----------------------------------------------------------------------------


def logged_of(office: Office, number: int) -> list[str]:
    return logged(office._judge, number)


async def test_a_discarded_undo_leaves_its_saga_stuck_with_the_reason(
    office: Office, judge: Rows
) -> None:
    await give_each(office.service, start(1), reply(1, "reserve_stock", SHORT))
    key = Key(saga(1), "create_order", COMPENSATING)
    undo = command(OpenAccount(customer="x", currency="EUR"), saga(1)).model_copy(
        update={
            "step": key.step, "direction": key.direction, "message_id": key.command_id,
        }
    )  # fmt: skip
    (ident,) = await office.bury_envelopes("order.commands", undo)
    await office.settle(Disposal.DISCARD, ident)
    assert logged_of(office, 1)[-4:] == ["dead_lettered", "stuck", "discarded", "stuck"]
    query = "select entry, detail from orchestrator.saga_log where saga_id = %s order by id desc"
    assert judge.execute(query, (saga(1),)).fetchone() == ("stuck", "ann: because")
    assert office.actions() == [("ann", "discard", "because", "done", saga(1))]


async def test_a_discarded_forward_command_was_unknown_before(office: Office, judge: Rows) -> None:
    await asked_to_charge(office, 1)
    (ident,) = await office.bury_envelopes(PAYMENT, charge(1))
    sent = commands(judge)
    await office.settle(Disposal.DISCARD, ident)
    assert commands(judge) == sent
    assert state(judge) == ("COMPENSATING", "charge_payment_dead_lettered")
    assert logged_of(office, 1)[-1] == "discarded"


async def test_a_redrive_is_in_the_timeline_with_actor_and_reason(
    office: Office, judge: Rows
) -> None:
    await asked_to_charge(office, 1)
    (ident,) = await office.bury_envelopes(PAYMENT, charge(1))
    await office.post("redrive", letters=[str(ident)], why="payment is back")
    query = "select entry, detail from orchestrator.saga_log where saga_id = %s order by id desc"
    entry, detail = judge.execute(query, (saga(1),)).fetchall()[0]
    assert entry == "action_done"
    assert detail == f"operator-ann: redrive dead letter {ident} (payment is back)"
    assert office.actions() == [("operator-ann", "redrive", "payment is back", "done", saga(1))]


# --- many ----------------------------------------------------------------------------------


async def test_a_thousand_are_grouped_tried_and_redriven_in_bulk(office: Office) -> None:
    """`make large` does the same with a hundred thousand."""
    numbers = range(1, 501)
    for first in range(1, 501, 100):
        batch = range(first, first + 100)
        await give_each_batch(office, batch)
        await office.bury_envelopes(PAYMENT, *(charge(n) for n in batch))
        junk = [b"junk %d" % n for n in batch]
        await office.bury(INVENTORY, *junk, reason="not_json")
    groups = await office.get("/groups")
    assert [(g["queue"], g["reason"], g["letters"]) for g in groups["groups"]] == [
        (INVENTORY, "not_json", 500), (PAYMENT, "poison", 500),
    ]  # fmt: skip

    before = len(office.outbox(PAYMENT))
    dry = await in_bulk(office, "redrive", all=True, dry_run=True)
    assert dry == {"done": 500, "already": 0, "refused": 500}
    assert len(office.outbox(PAYMENT)) == before

    ann, bob = await asyncio.gather(
        in_bulk(office, "redrive", queue=PAYMENT), in_bulk(office, "redrive", reason="poison")
    )
    assert ann["done"] + bob["done"] == 500
    assert len(office.outbox(PAYMENT)) == before + 500
    assert len({Envelope.model_validate_json(e).saga_id for e in office.outbox(PAYMENT)}) == len(
        numbers
    )
    assert await in_bulk(office, "redrive", queue=INVENTORY) == {
        "done": 0, "already": 0, "refused": 500,
    }  # fmt: skip
    gone = await in_bulk(office, "discard", reason="not_json", why="junk")
    assert gone["done"] == 500
    assert (await office.get("/groups"))["groups"] == []


async def give_each_batch(office: Office, numbers: range) -> None:
    starts = [office.service.parse(start(n)) for n in numbers]
    await office.service.handle(starts)
    await office.service.handle(
        [office.service.parse(reply(n, "reserve_stock", RESERVED)) for n in numbers]
    )


async def in_bulk(office: Office, deed: str, **body: Any) -> dict[str, int]:
    """Send one request after another, as the CLI does."""
    counted = {"done": 0, "already": 0, "refused": 0}
    after = None
    while True:
        answer = await office.post(deed, **body, limit=130, after=after)
        for result in counted:
            counted[result] += answer[result]
        if (after := answer["next"]) is None:
            return counted


async def test_no_dead_letter_query_reads_the_whole_table(office: Office, admin: Rows) -> None:
    """Every tenth of 20,000 is open; pages are read in each order, from the middle on."""
    admin.execute("""
        insert into orchestrator.dead_letter
               (letter_id, queue, reason, reply, body, size, readable, headers, set_aside, count,
                saga_id, state, settled_by, settled_at)
        select md5(n::text)::uuid, 'q' || n % 7, 'r' || n % 11, false, '', 0, false, '{}', '', 1,
               md5((n % 5000)::text)::uuid, case when n % 10 = 0 then 'open' else 'redriven' end,
               case when n % 10 <> 0 then 'ann' end, case when n % 10 <> 0 then now() end
          from generate_series(1, 20000) n""")
    admin.execute("vacuum analyze orchestrator.dead_letter")  # or autovacuum decides on the plan
    saga_id = UUID(bytes=md5(b"10").digest())
    wanted = {
        DeadLetterFilter(): "dead_letter_by_queue",
        DeadLetterFilter(queue="q3"): "dead_letter_by_",
        DeadLetterFilter(reason="r5"): "dead_letter_by_reason",
        DeadLetterFilter(queue="q3", reason="r5"): "dead_letter_by_",
        DeadLetterFilter(saga_id=saga_id): "dead_letter_of_saga",
    }
    async with office.db.transaction(None) as tx:
        place = (await store.page(tx, DeadLetterFilter(reason="r5"), None, 5))[-1]
    for want, index in wanted.items():
        for after in (None, place.letter_id):
            async with office.db.transaction(None) as tx:
                asked = store.page(tx, want, after, 20)
                found, read = await rows_read(tx, "dead_letter", asked)
            assert found or after
            assert read <= 100, (want, after)  # of 2,000 open ones
        async with office.db.transaction(None) as tx:
            await tx.plan_by_values()
            values = {**asdict(want), **dict.fromkeys(store._FROM), "limit": 20}
            page = store._BY_REASON if want.reason else store._BY_QUEUE
            plan = str(await tx.fetch("explain " + page, values))
            groups = str(await tx.fetch("explain " + store._GROUPS, values))
        assert index in plan
        assert "Seq Scan" not in plan + groups
