"""A hundred thousand dead letters, handled in bulk by CLI, in minutes and in little memory."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pika
import psycopg
import pytest

from chaos.runtime import Plan
from common.messages.envelope import Direction, Envelope, Key
from common.messages.shop.payment import ChargePayment
from tests.integration.mail import NOON
from tests.large.conftest import RESIDENT_KIB, SAGA, Up, peak_kib

HALF = 50_000  # of each kind: charges of sagas that wait for them, and junk
WITHIN_SECONDS = 600  # each of the phases
ASIDE = ("door", "order", "payment", "inventory")  # stopped: redriven letters stay countable
NEVER = {"step_timeout_seconds": "7200", "resend_cap_seconds": "7200"}  # asked for again
PLAN = Plan(replicas=dict.fromkeys(ASIDE, 0), settings=NEVER)
PAYMENT, INVENTORY = "payment.commands", "inventory.commands"

# As many sagas as letters, each of which waits for its charge.
SAGAS = f"""
insert into orchestrator.saga_instance (saga_id, definition, version, state, data, steps)
select lpad(to_hex(n), 32, '0')::uuid, 'order', 1, 'RUNNING',
       '{{"customer": "ann", "currency": "EUR", "total": 700,
          "lines": [{{"sku": "tea", "quantity": 2}}]}}',
       '{{"create_order": {{"status": "done", "attempt": 1, "undo_attempt": 0}},
          "reserve_stock": {{"status": "done", "attempt": 1, "undo_attempt": 0, "issued": 1}},
          "charge_payment": {{"status": "sent", "attempt": 1, "undo_attempt": 0, "issued": 1,
                              "deadline": 4000000000}}}}'
  from generate_series(1, {HALF}) n"""


class Measured:
    """The seconds of each phase and the peak memory of each process."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peak_kib: dict[str, int] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 1)


@pytest.mark.timeout(3600)
def test_a_hundred_thousand_dead_letters(
    stack: Up, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runtime, endpoints = stack
    measured = Measured()

    def saga(*words: str) -> Any:
        """Run `saga dead-letters WORDS --json` and return what it prints."""
        with (tmp_path / "out").open("w+") as out, (tmp_path / "err").open("w+") as err:
            process = subprocess.Popen(
                [SAGA, "dead-letters", *words, "--json"],
                env={**os.environ, **endpoints.environment}, stdout=out, stderr=err,
            )  # fmt: skip
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            before = measured.peak_kib.get("saga", 0)
            measured.peak_kib["saga"] = max(before, usage.ru_maxrss)
            out.seek(0)
            err.seek(0)
            assert process.returncode in (0, 1), err.read()
            return json.load(out)

    with psycopg.connect(endpoints.superuser_dsn, autocommit=True) as db:
        db.execute(SAGAS.encode())
        db.execute("analyze")

        with measured.phase("taken in, each saga told"):
            bury(endpoints.amqp_url)
            until(lambda: count(db, "dead_letter") == 2 * HALF)
        turned = "saga_instance where state = 'COMPENSATING'"
        assert count(db, turned) == HALF

        with measured.phase("grouped"):
            groups = saga("list")
        assert {(g["queue"], g["reason"], g["letters"]) for g in groups["groups"]} == {
            (PAYMENT, "unknown_type", HALF), (INVENTORY, "not_json", HALF),
        }  # fmt: skip

        with measured.phase("dry run over all"):
            dry = saga("redrive", "--all", "--dry-run")
        assert (dry["done"], dry["refused"]) == (HALF, HALF)
        assert count(db, "dead_letter where state = 'open'") == 2 * HALF

        with measured.phase("redriven, as fast as it goes"):
            redriven = saga("redrive", "--reason", "unknown_type", "--rate", "1000000")
        assert (redriven["done"], redriven["refused"]) == (HALF, 0)
        with measured.phase("asked for once more"):
            again = saga("redrive", "--reason", "unknown_type")
        assert (again["done"], again["already"]) == (0, 0)
        until(lambda: count(db, "outbox") == 0)

        with measured.phase("discarded at 2000 a second"):
            discarded = saga("discard", "--queue", INVENTORY, "--why", "junk", "--rate", "2000")
        assert discarded["done"] == HALF
        assert measured.seconds["discarded at 2000 a second"] > HALF / 2000 - 1
        assert saga("list")["groups"] == []
        assert count(db, "operator_action where outcome = 'done'") == 2 * HALF

    assert sum(delivered(endpoints.amqp_url)) == 2 * HALF  # each charge once, and each undo
    for process in runtime.status():
        if process.pid and process.name in ("orchestrator", "operator"):
            measured.peak_kib[process.name] = peak_kib(process.pid)
    with capsys.disabled():
        print(f"\n{2 * HALF} dead letters; seconds: {measured.seconds}")
        print(f"peak RSS in KiB: {measured.peak_kib}")
    assert max(measured.seconds.values()) < WITHIN_SECONDS
    assert max(measured.peak_kib.values()) < RESIDENT_KIB


def bury(amqp_url: str) -> None:
    """As consumers set them aside: an envelope of a type that is not known, and junk."""
    with pika.BlockingConnection(pika.URLParameters(amqp_url)) as connection:
        channel = connection.channel()
        body = ChargePayment(customer="ann", total=700, currency="EUR")
        for n in range(1, HALF + 1):
            key = Key(UUID(int=n), "charge_payment", Direction.FORWARD)
            asked = Envelope.command(key, body, issued_at=NOON, reply_to="orchestrator.replies")
            set_aside(channel, PAYMENT, f"[{asked.encode()}]".encode(), "unknown_type")
            set_aside(channel, INVENTORY, b"junk %d" % n, "not_json")


def set_aside(channel: Any, queue: str, body: bytes, reason: str) -> None:
    headers = {"x-sagaproof-reason": reason, "x-sagaproof-letter": str(uuid4())}
    properties = pika.BasicProperties(delivery_mode=2, headers=headers)
    channel.basic_publish("", f"{queue}.dead", body, properties)


def delivered(amqp_url: str) -> Iterator[int]:
    """Yield the number of envelopes in each delivery that waits for the payment service."""
    with pika.BlockingConnection(pika.URLParameters(amqp_url)) as connection:
        channel = connection.channel()
        while (got := channel.basic_get(PAYMENT, auto_ack=True))[0] is not None:
            yield len(json.loads(got[2]))


def count(db: psycopg.Connection[tuple[Any, ...]], what: str) -> int:
    ((found,),) = db.execute(f"select count(*) from orchestrator.{what}".encode()).fetchall()
    return int(found)


def until(condition: Any) -> None:
    deadline = time.monotonic() + WITHIN_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)
