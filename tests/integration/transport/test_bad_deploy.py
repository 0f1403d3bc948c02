"""Telling a bad deploy from a message that no release could handle (rule 13, ADR 27)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from structlog.testing import capture_logs

from common.kit.health import Health
from common.messages.envelope import Envelope, Forget, Reply
from common.messages.shop.payment import ChargePayment
from common.messages.topology import dead_letter_queue
from common.participant.participant import Participant
from common.process.process import Process
from common.storage.db import Database
from common.transport import bad_deploy
from payment_svc.store import PaymentStore
from tests.integration.conftest import MakeSettings
from tests.integration.consuming import (
    QUEUE,
    ROLE,
    Service,
    broken,
    consumer_of,
    exhausted,
    tried_alone,
)
from tests.integration.mail import NOON, Mail, charge, command, mail, saga
from tests.integration.services import handle, open_account, payment
from tests.integration.waiting import FAST, Rows, eventually, reports, running

# A look at whether a bad deploy still is one comes soon.
BAD_DEPLOY = {"bad_deploy_pause_seconds": 0.05, "bad_deploy_pause_cap_seconds": 0.05}


def said_of(health: Health) -> list[str]:
    """Collect what the consumer reports to /ready from now on, up to the colon."""
    said: list[str] = []
    tell = health.set

    def listen(check: str, problem: str | None) -> None:
        if check == QUEUE:
            said.append((problem or "ok").split(":")[0])
        tell(check, problem)

    health.set = listen  # type: ignore[method-assign]
    return said


def says_bad_deploy(process: Process) -> bool:
    return "bad deploy" in reports(process, QUEUE)


def looks(logs: Sequence[Any]) -> int:
    return len([log for log in logs if log["event"] == "daemon.bad_deploy"])


def failing(*_: object) -> Reply:
    raise RuntimeError("no handler of this release works")


async def test_rule_13_the_same_error_on_several_is_a_bad_deploy(
    settings: MakeSettings, judge: Rows
) -> None:
    """It stops consuming, is not ready, and dead-letters nothing; the next deploy handles all."""
    made = settings(ROLE, **{**FAST, "bad_deploy_pause_seconds": 3600})
    service, process = Service(), Process(made, QUEUE)
    service.faults = dict.fromkeys(range(1, 5), broken)
    consumer_of(process, service)
    async with mail(made) as post:
        async with running(process):
            await post.send(QUEUE, *(charge(saga(n)) for n in range(1, 9)))
            await eventually(lambda: "bad deploy" in reports(process, QUEUE))
            assert not process.health.ready
            assert await post.dead(QUEUE) == []
            await eventually(lambda: post.ready(QUEUE))  # given back, and not taken again
            calls = len(service.batches)
            await post.send(QUEUE, charge(saga(9)))
            assert await post.ready(QUEUE) == 2
            assert len(service.batches) == calls
        next_deploy, process = Service(), Process(made, QUEUE)
        consumer_of(process, next_deploy)
        async with running(process):
            await eventually(lambda: sorted(next_deploy.handled) == list(range(1, 10)))
            assert await post.dead(QUEUE) == []


async def test_a_bad_deploy_looks_again_after_a_pause(settings: MakeSettings) -> None:
    made = settings(ROLE, **FAST)
    service, process = Service(), Process(made, QUEUE)
    service.faults = dict.fromkeys(range(1, 5), broken)
    consumer_of(process, service)
    async with mail(made) as post, running(process):
        await post.send(QUEUE, *(charge(saga(n)) for n in range(1, 5)))
        await eventually(lambda: "bad deploy" in reports(process, QUEUE))
        service.faults.clear()  # what it depended on is well again
        await eventually(lambda: sorted(set(service.handled)) == [1, 2, 3, 4])
        await eventually(lambda: process.health.ready)
        assert await post.dead(QUEUE) == []


async def test_a_lasting_bad_deploy_dead_letters_nothing(
    settings: MakeSettings, judge: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it looks again: from the third time on each message comes as suspicious."""
    monkeypatch.setattr(bad_deploy, "WINDOW_SECONDS", 0.01)  # passes between two looks
    made = settings(ROLE, **{**FAST, **BAD_DEPLOY, "solo_tries": 3})
    service, process = Service(), Process(made, QUEUE)
    service.faults = dict.fromkeys(range(1, 6), broken)
    consumer_of(process, service)
    async with mail(made) as post:
        for number in range(1, 5):
            await post.send(QUEUE, charge(saga(number)))
        async with running(process):  # all four in hand: one that comes alone is condemned
            await eventually(lambda: "bad deploy" in reports(process, QUEUE))
            with capture_logs() as logs:
                said = said_of(process.health)
                await eventually(lambda: looks(logs) > 12)
            assert set(said) == {"bad deploy"}
            assert await post.dead(QUEUE) == []
            assert service.handled == []
            service.faults.clear()
            await eventually(lambda: sorted(set(service.handled)) == [1, 2, 3, 4])
            await eventually(lambda: process.health.ready)
            assert await post.dead(QUEUE) == []
            assert tried_alone(judge) == 0


async def test_a_restarted_bad_deploy_dead_letters_nothing(
    settings: MakeSettings, judge: Rows
) -> None:
    made = settings(ROLE, **{**FAST, **BAD_DEPLOY, "solo_tries": 3})
    async with mail(made) as post:
        for number in range(1, 5):
            await post.send(QUEUE, charge(saga(number)))
        for _ in range(6):
            service, process = Service(), Process(made, QUEUE)
            service.faults = dict.fromkeys(range(1, 5), broken)
            consumer_of(process, service)
            async with running(process):
                await eventually(partial(says_bad_deploy, process))
        assert await post.dead(QUEUE) == []
        assert tried_alone(judge) == 0


async def test_one_message_is_enough_for_a_bad_deploy_just_started(
    settings: MakeSettings, judge: Rows
) -> None:
    """A canary, or a quiet night: it gives back what it has, for others to handle."""
    made = settings(ROLE, **{**FAST, **BAD_DEPLOY, "solo_tries": 3})
    service, process = Service(), Process(made, QUEUE)
    service.faults[1] = broken
    consumer_of(process, service)
    async with mail(made) as post:
        await post.send(QUEUE, charge(saga(1)))
        async with running(process):
            with capture_logs() as logs:
                await eventually(lambda: looks(logs) > 6)
            assert not process.health.ready
            assert await post.dead(QUEUE) == []
            await post.send(QUEUE, charge(saga(2)))  # and it was the message's fault after all
            (letter,) = await post.dead(QUEUE, 1)
            assert letter == exhausted(1)
            assert service.handled == [2]
            await eventually(lambda: process.health.ready)
        assert tried_alone(judge) == 0


async def test_several_bad_messages_are_found_while_others_succeed(
    settings: MakeSettings, judge: Rows
) -> None:
    """At first they look like a bad deploy; then others go well beside them, time after time."""
    made = settings(ROLE, **{**FAST, **BAD_DEPLOY})
    service, process = Service(), Process(made, QUEUE)
    service.faults = dict.fromkeys((2, 3, 4), broken)
    consumer_of(process, service)
    numbers = itertools.count(1)
    sent: list[int] = []
    async with mail(made) as post, running(process):

        async def three_are_dead() -> bool:
            sent.append(next(numbers))
            await post.send(QUEUE, charge(saga(sent[-1])))
            return await post.ready(dead_letter_queue(QUEUE)) == 3

        await eventually(three_are_dead)
        assert service.calls_with(2) > made.solo_tries
        letters = await post.dead(QUEUE, 3)
        assert sorted(letters) == sorted(exhausted(n) for n in (2, 3, 4))
        others = sorted(set(sent) - {2, 3, 4})
        await eventually(lambda: sorted(set(service.handled)) == others)
    assert tried_alone(judge) == 0


async def test_success_without_a_handler_does_not_clear_a_bad_deploy(
    settings: MakeSettings, judge: Rows
) -> None:
    """Forget and repeats succeed all day, whatever the handlers do."""
    made = settings(ROLE, **{**FAST, **BAD_DEPLOY, "solo_tries": 3})
    process = Process(made, QUEUE)
    participant = Participant(process.db, PaymentStore(), {ChargePayment: failing})
    process.consumer(QUEUE, participant.parse, participant.handle)
    numbers = itertools.count(100)
    async with mail(made) as post:
        async with Database(made) as db:
            await open_account(db, "ada", 100)
            await handle(payment(db), charge(saga(50)))
        for number in range(1, 5):
            await post.send(QUEUE, charge(saga(number)))
        async with running(process):
            with capture_logs() as logs:

                async def many_looks() -> bool:
                    forget = Forget(until=NOON - timedelta(days=1), saga_ids=())
                    await post.send(QUEUE, command(forget, saga(next(numbers)), step="forget"))
                    await post.send(QUEUE, charge(saga(50)))
                    return looks(logs) > 12 or await post.ready(dead_letter_queue(QUEUE)) > 0

                await eventually(many_looks)
            assert {"sagas.forgotten", "command.duplicate"} <= {log["event"] for log in logs}
            assert await post.dead(QUEUE) == []
            assert says_bad_deploy(process)
            assert tried_alone(judge) == 0


async def test_bad_messages_of_one_delivery_are_found_in_any_order(
    settings: MakeSettings, admin: Rows, judge: Rows
) -> None:
    """A look that a restart of the broker cuts short has counted only some of them."""
    made = settings(ROLE, **{**FAST, **BAD_DEPLOY})
    service, process = Service(), Process(made, QUEUE)
    service.faults = dict.fromkeys((2, 3, 4), broken)
    consumer_of(process, service)
    admin.execute(
        "insert into payment_svc.solo_tries values (%s, 'charge_payment', 'forward', false, 1)",
        [saga(2)],
    )
    numbers = itertools.count(100)
    async with mail(made) as post:
        async with running(process):
            await post.send(QUEUE, *(charge(saga(n)) for n in (2, 3, 4)))

            async def settled() -> bool:
                await post.send(QUEUE, charge(saga(next(numbers))))
                tried = tried_alone(judge)
                return await post.ready(dead_letter_queue(QUEUE)) >= 3 and tried == 0

            await eventually(settled)
            sent = set(range(100, next(numbers)))
            await eventually(lambda: sent <= set(service.handled))
        letters = await post.dead(QUEUE)
        assert await post.ready(QUEUE) == 0
        assert sorted(letters) == sorted(exhausted(n) for n in (2, 3, 4))


async def test_poison_in_a_returned_delivery_is_dead_lettered_once(
    settings: MakeSettings,
) -> None:
    """A bad deploy gives back its neighbours, and it with them; discarded it would open again."""
    made = settings(ROLE, **{**FAST, **BAD_DEPLOY})
    service, process = Service(), Process(made, QUEUE)
    service.faults = dict.fromkeys((1, 2, 3), broken)
    consumer_of(process, service)
    async with mail(made) as post, running(process):
        neighbours = [json.loads(charge(saga(n)).encode()) for n in (1, 2, 3)]
        await post.send_raw(QUEUE, json.dumps([42, *neighbours]).encode())
        with capture_logs() as logs:
            await eventually(lambda: looks(logs) > 5)
        service.faults.clear()
        await eventually(lambda: sorted(set(service.handled)) == [1, 2, 3])
        assert await post.dead(QUEUE, 1) == [("invalid_envelope", b"[42]")]


async def test_successes_beside_a_bad_deploy_are_acked(settings: MakeSettings) -> None:
    made = settings(ROLE, **{**FAST, "bad_deploy_pause_seconds": 3600})
    service, process = Service(), Process(made, QUEUE)
    service.faults = dict.fromkeys((1, 3, 5), broken)
    consumer_of(process, service)
    async with mail(made) as post:
        for number in range(1, 6):
            await post.send(QUEUE, charge(saga(number)))
        async with running(process):
            await eventually(lambda: says_bad_deploy(process))
            await eventually(lambda: service.handled == [2, 4])
            await eventually(lambda: are_ready(3, post))


async def test_a_bad_deploy_first_tries_what_has_arrived_meanwhile(
    settings: MakeSettings,
) -> None:
    made = settings(ROLE, **{**FAST, "bad_deploy_pause_seconds": 3600})
    async with mail(made) as post:

        class Overtaken(Service):
            async def handle(self, batch: Sequence[Envelope]) -> bool:
                if not self.batches:
                    await post.send(QUEUE, charge(saga(9)))
                    await eventually(lambda: are_ready(0, post))
                return await super().handle(batch)

        service, process = Overtaken(), Process(made, QUEUE)
        service.faults = dict.fromkeys((1, 2, 3), broken)
        consumer_of(process, service)
        await post.send(QUEUE, *(charge(saga(n)) for n in (1, 2, 3)))
        async with running(process):
            await eventually(lambda: says_bad_deploy(process))
            await eventually(lambda: service.handled == [9])
            await eventually(lambda: are_ready(1, post))


async def are_ready(count: int, post: Mail) -> bool:
    return await post.ready(QUEUE) == count


async def test_shutdown_amid_retries_returns_messages_uncounted(
    settings: MakeSettings, judge: Rows
) -> None:
    made = settings(ROLE, **{**FAST, "retry_first_seconds": 3600, "retry_cap_seconds": 3600})
    service, process = Service(), Process(made, QUEUE)
    service.faults[1] = broken
    consumer_of(process, service)
    async with mail(made) as post:
        await post.send(QUEUE, charge(saga(1)))
        for _ in range(3):  # by then it comes as suspicious, and its tries are counted
            calls = service.calls_with(1)
            async with running(process):
                await eventually(lambda: service.calls_with(1) > calls)  # noqa: B023 - at once
            process = Process(made, QUEUE)
            consumer_of(process, service)
        assert service.calls_with(1) == 2 + 2 + 1
        assert await post.dead(QUEUE) == []
        assert await post.ready(QUEUE) == 1
        assert tried_alone(judge) == 0
