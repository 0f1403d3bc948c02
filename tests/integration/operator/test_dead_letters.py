"""The intake of dead letters with real servers: each is stored once and decided (rule 8)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import uuid4

import pytest

from common.kit import failpoints
from common.kit.failpoints import Point
from common.kit.health import Health
from common.kit.settings import Settings
from common.messages.contracts import StartSaga
from common.messages.envelope import Direction, Envelope, Fence, Key, pack
from common.messages.topology import (
    ORCHESTRATOR_COMMANDS,
    ORCHESTRATOR_REPLIES,
    dead_letter_queue,
)
from common.process.process import Process
from common.storage.db import Database
from common.transport.broker import Broker, Fate, Publication
from orchestrator import __main__ as root
from orchestrator.dead_letters.intake import Intake
from orchestrator.runtime.service import Service
from tests.integration.conftest import MakeSettings
from tests.integration.mail import NOON, Mail, command, mail, saga
from tests.integration.orchestrating import (
    RESERVED,
    SHORT,
    commands,
    give_each,
    logged,
    reply,
    service,
    start,
    state,
)
from tests.integration.waiting import FAST, Rows, eventually, reports, running, wired

ROLE = "orchestrator"
INVENTORY, PAYMENT = "inventory.commands", "payment.commands"
FORWARD, COMPENSATING = Direction
pytestmark = pytest.mark.usefixtures("nothing_left_claimed")


class Receiver:
    """An orchestrator that takes dead letters in, and a broker that has some."""

    def __init__(self, process: Process, service: Service, post: Mail, judge: Rows) -> None:
        self.process = process
        self.service = service
        self.post = post
        self._judge = judge

    async def bury(self, queue: str, body: bytes, reason: str = "poison", **headers: Any) -> None:
        """Publish it as a consumer dead-letters it."""
        about = {
            "x-sagaproof-reason": reason,
            "x-sagaproof-detail": "so it is",
            "x-sagaproof-letter": str(uuid4()),
            **headers,
        }
        await self.publish(queue, body, about)

    async def publish(self, queue: str, body: bytes, headers: dict[str, Any]) -> None:
        fates = await self.post._channel.publish(
            [Publication(dead_letter_queue(queue), body, headers)], 10
        )
        assert fates == [Fate.CONFIRMED]

    def letters(self, *columns: str) -> list[tuple[Any, ...]]:
        what = ", ".join(columns or ("queue", "reason", "count", "state"))
        query = f"select {what} from orchestrator.dead_letter order by first_seen, letter_id"
        return self._judge.execute(query.encode()).fetchall()

    async def taken_in(self, *queues: str) -> None:
        async def empty() -> bool:
            return not sum([await self.post.ready(dead_letter_queue(queue)) for queue in queues])

        await eventually(empty, "all is taken in")


def of(number: int, step: str, direction: Direction = FORWARD) -> bytes:
    """Return the body of a dead letter that holds a command of the orchestrator."""
    key = Key(saga(number), step, direction)
    asked = Envelope.command(key, Fence(), issued_at=NOON, reply_to=ORCHESTRATOR_REPLIES)
    return pack([asked.encode()])


@pytest.fixture
async def receiver(
    settings: MakeSettings, judge: Rows, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Receiver]:
    made = settings(ROLE, **FAST, step_timeout_seconds=3600)  # nothing here waits for a deadline
    process = await wired(monkeypatch, root.worker, made)
    daemons = [name for name in process._daemons if name != "relay"]  # so that sends can be seen
    async with mail(made) as post, running(process, *daemons):
        yield Receiver(process, service(process.db), post, judge)


async def eventually_kept(receiver: Receiver, count: int) -> None:
    await eventually(lambda: len(receiver.letters()) == count, f"{count} letters are kept")


# --- the saga decides ----------------------------------------------------------------------


async def test_a_dead_command_turns_its_saga_at_once(receiver: Receiver, judge: Rows) -> None:
    await give_each(receiver.service, start(1), reply(1, "reserve_stock", RESERVED))
    await receiver.bury(PAYMENT, of(1, "charge_payment"), "unknown_type")
    await eventually(lambda: state(judge) == ("COMPENSATING", "charge_payment_dead_lettered"))
    assert commands(judge)[-1] == "charge_payment<1"
    ids = ("saga_id", "step", "direction", "message_id", "type", "reply", "detail", "readable")
    key = Key(saga(1), "charge_payment", FORWARD)
    assert receiver.letters(*ids) == [
        (saga(1), "charge_payment", "forward", key.command_id, "Fence", False, "so it is", True)
    ]


async def test_a_dead_pivot_is_fenced_and_a_dead_undo_is_stuck(
    receiver: Receiver, judge: Rows
) -> None:
    await give_each(
        receiver.service,
        start(1), reply(1, "reserve_stock", RESERVED), reply(1, "charge_payment", RESERVED),
        start(2), reply(2, "reserve_stock", SHORT),
    )  # fmt: skip
    await receiver.bury(INVENTORY, of(1, "dispatch_stock"))
    await receiver.bury("order.commands", of(2, "create_order", COMPENSATING))
    await eventually_kept(receiver, 2)
    assert commands(judge)[-1] == "dispatch_stock<1"
    assert state(judge, 1) == ("RUNNING", "dispatch_stock_dead_lettered")
    assert logged(judge, 2)[-2:] == ["dead_lettered", "stuck"]


async def test_a_dead_reply_makes_its_saga_stuck_and_undoes_nothing(
    receiver: Receiver, judge: Rows
) -> None:
    await give_each(receiver.service, start(1))
    body = pack([reply(1, "reserve_stock", RESERVED).encode()])
    await receiver.bury(ORCHESTRATOR_REPLIES, body, "exhausted")
    await eventually_kept(receiver, 1)
    assert state(judge) == ("RUNNING", None)
    assert logged(judge)[-2:] == ["dead_lettered", "stuck"]
    assert receiver.letters("reply", "step") == [(True, "reserve_stock")]


async def test_a_later_start_begins_what_a_dead_start_left_stuck(
    receiver: Receiver, judge: Rows
) -> None:
    await receiver.bury(ORCHESTRATOR_COMMANDS, pack([start(1).encode()]), "exhausted")
    await eventually_kept(receiver, 1)
    assert state(judge) == ("RUNNING", None)
    assert (logged(judge), commands(judge)) == (["dead_lettered", "stuck"], [])
    await give_each(receiver.service, start(1, attempt=2, reply_to="order.commands"))
    assert commands(judge) == ["reserve_stock>1", "saga_started>1"]
    stuck = "select stuck_since from orchestrator.saga_instance"
    assert judge.execute(stuck.encode()).fetchall() == [(None,)]


async def test_a_compensated_dead_start_never_begins(receiver: Receiver, judge: Rows) -> None:
    await receiver.bury(ORCHESTRATOR_COMMANDS, pack([start(1).encode()]), "exhausted")
    await eventually_kept(receiver, 1)
    await receiver.service.compensate(saga(1), "ops", "lost")
    assert commands(judge) == ["create_order<1"]
    await give_each(receiver.service, start(1, attempt=2, reply_to="order.commands"))
    assert state(judge) == ("COMPENSATING", "lost")
    assert commands(judge) == ["create_order<1", "saga_started>1"]


async def test_a_dead_letter_about_no_saga_or_step_is_only_stored(
    receiver: Receiver, judge: Rows
) -> None:
    await give_each(receiver.service, start(1))
    foreign = command(StartSaga(definition="tea", data={}), saga(7), reply_to=None)
    await receiver.bury(ORCHESTRATOR_COMMANDS, pack([foreign.encode()]), "unknown_definition")
    await receiver.bury(PAYMENT, of(2, "charge_payment"))
    await receiver.bury(PAYMENT, of(1, "charge_payment"))  # not asked yet
    await receiver.bury(PAYMENT, of(1, "make_tea"))
    await eventually_kept(receiver, 4)
    assert logged(judge) == ["started", "sent"]
    assert state(judge, 7) == ()


# --- whatever its body ---------------------------------------------------------------------

WIRE: dict[str, Any] = json.loads(of(1, "reserve_stock"))[0]


@pytest.mark.parametrize(
    ("body", "decided"),
    [
        (b"tea, please", False),
        (b"", False),
        (b"[]", False),
        (b"\xff" * 1_000_000, False),
        (b'"\\u0000"', False),
        (json.dumps([{**WIRE, "type": "a\x00b", "body": {"x": "\x00"}}]).encode(), True),
        (json.dumps([{**WIRE, "first_issued_at": "yesterday"}]).encode(), True),
        (json.dumps(WIRE).encode(), True),  # no array
        (json.dumps([{**WIRE, "message_id": str(uuid4())}]).encode(), False),  # says it is another
        (json.dumps([{**WIRE, "saga_id": "x", "step": ["y"], "direction": {}}]).encode(), False),
        (b"[" * 10_000 + b"]" * 10_000, False),
    ],
    ids=[
        "words", "empty", "nothing", "megabyte", "nul", "nul in an envelope", "bad date",
        "no array", "wrong id", "odd fields", "deep",
    ],
)  # fmt: skip
async def test_whatever_the_body_is_it_is_kept_as_it_came(
    receiver: Receiver, judge: Rows, body: bytes, decided: bool
) -> None:
    await give_each(receiver.service, start(1))
    await receiver.bury(INVENTORY, body, "odd\x00", **{"x-odd": "\x00", "x-list": [1, b"\xff"]})
    await eventually_kept(receiver, 1)
    assert receiver.letters("body", "size", "readable") == [(body, len(body), False)]
    assert (state(judge)[0] == "COMPENSATING") is decided


async def test_of_a_larger_one_the_first_mebibyte_is_kept(receiver: Receiver) -> None:
    await receiver.bury(INVENTORY, b"x" * 3_000_000)
    await eventually_kept(receiver, 1)
    assert receiver.letters("octet_length(body)", "size", "readable") == [
        (1_048_576, 3_000_000, False)
    ]


async def test_a_delivery_the_broker_moved_is_taken_in_one_by_one(
    receiver: Receiver, judge: Rows
) -> None:
    """The broker adds its own headers, and the delivery may hold several messages."""
    await give_each(receiver.service, start(1), start(2))
    both = [of(n, "reserve_stock")[1:-1].decode() for n in (1, 2)]
    death = [{"count": 1, "reason": "delivery_limit", "queue": INVENTORY, "exchange": ""}]
    headers = {"x-death": death, "x-first-death-reason": "delivery_limit"}
    await receiver.publish(INVENTORY, pack(both), headers)
    await eventually_kept(receiver, 2)
    kept = receiver.letters("reason", "convert_from(body, 'utf8')")
    assert sorted(kept) == sorted(("delivery_limit", f"[{one}]") for one in both)
    assert {state(judge, n) for n in (1, 2)} == {("COMPENSATING", "reserve_stock_dead_lettered")}


# --- once ----------------------------------------------------------------------------------


async def test_the_same_dead_letter_again_counts_up(receiver: Receiver, judge: Rows) -> None:
    await give_each(receiver.service, start(1))
    for attempt in (1, 2, 3):
        (wire,) = json.loads(of(1, "reserve_stock"))
        again = json.dumps([{**wire, "attempt": attempt}]).encode()
        await receiver.bury(INVENTORY, again, "unknown_type")
        await receiver.taken_in(INVENTORY)
    await receiver.bury(INVENTORY, of(1, "reserve_stock"), "exhausted")
    for _ in range(2):
        await receiver.bury(INVENTORY, b"tea", "not_json")
    await eventually(lambda: sum(row[2] for row in receiver.letters()) == 6)
    assert receiver.letters() == [
        (INVENTORY, "unknown_type", 3, "open"),
        (INVENTORY, "exhausted", 1, "open"),
        (INVENTORY, "not_json", 2, "open"),
    ]
    assert receiver.letters("convert_from(body, 'utf8')")[0][0].count('"attempt": 3') == 1


class Died(BaseException):
    """A crash of the process at a failpoint."""


@pytest.mark.parametrize(
    "point", [p for p in Point if p.startswith("intake.")], ids=lambda p: str(p)
)
async def test_a_crash_anywhere_loses_or_doubles_no_dead_letter(
    settings: MakeSettings, judge: Rows, monkeypatch: pytest.MonkeyPatch, point: Point
) -> None:
    made = settings(ROLE, **FAST)

    def die(reached: Point, _: Sequence[Key]) -> None:
        if reached is point:
            raise Died

    async with mail(made) as post, Database(made) as db:
        deciding = service(db)
        await give_each(deciding, start(1))
        headers = {"x-sagaproof-reason": "poison", "x-sagaproof-letter": str(uuid4())}
        letters = [
            Publication(dead_letter_queue(INVENTORY), of(n, "reserve_stock"), headers)
            for n in (1, 2, 1)  # one of them twice in a batch
        ]
        await post._channel.publish(letters, 10)
        with monkeypatch.context() as patch:
            patch.setattr(failpoints, "reach", die)
            with pytest.raises(Died):
                await take_in(made, db, deciding, 3)
        await take_in(made, db, deciding, 0 if point is Point.INTAKE_AFTER_ACK else 3)
    rows = judge.execute("select step, count from orchestrator.dead_letter").fetchall()
    assert rows == [("reserve_stock", 1)] * 2
    assert state(judge) == ("COMPENSATING", "reserve_stock_dead_lettered")
    assert logged(judge).count("dead_lettered") == 1


async def take_in(made: Settings, db: Database, deciding: Service, count: int) -> None:
    """Take them in, once as many are there, as a process of its own does."""
    broker = Broker(made)
    try:
        channel = await broker.channel()
        consumer = await channel.consume(dead_letter_queue(INVENTORY), 10)
        await eventually(lambda: len(consumer._waiting) == count)
        await Intake(INVENTORY, deciding, broker, Health(), asyncio.Event()).take_in(consumer)
    finally:
        await broker.close()


async def test_two_orchestrators_take_each_dead_letter_in_once(
    settings: MakeSettings, judge: Rows, monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    other = await wired(monkeypatch, root.worker, settings(ROLE, **FAST, process="other"))
    sagas = range(1, 41)
    await give_each(receiver.service, *(start(n) for n in sagas))
    async with running(other, *(n for n in other._daemons if n.endswith(".dead"))):
        for n in sagas:
            for queue, step in ((INVENTORY, "reserve_stock"), (PAYMENT, "charge_payment")):
                await receiver.bury(queue, of(n, step))
        await eventually_kept(receiver, 2 * len(sagas))
        await receiver.taken_in(INVENTORY, PAYMENT)
    assert {row[2] for row in receiver.letters()} == {1}
    assert {state(judge, n)[0] for n in sagas} == {"COMPENSATING"}


async def test_a_dead_letter_that_cannot_be_decided_is_kept_alone(
    receiver: Receiver, admin: Rows, judge: Rows
) -> None:
    await give_each(receiver.service, start(1), start(2))
    admin.execute(
        "update orchestrator.saga_instance set version = 99 where saga_id = %s", (saga(1),)
    )
    both = [of(n, "reserve_stock")[1:-1].decode() for n in (1, 2)]
    await receiver.publish(INVENTORY, pack(both), {"x-first-death-reason": "delivery_limit"})
    await eventually_kept(receiver, 2)
    await eventually(lambda: state(judge, 2)[0] == "COMPENSATING")
    assert state(judge, 1)[0] == "RUNNING"
    assert reports(receiver.process, dead_letter_queue(INVENTORY)) == "ok"
