"""A stand-in service and its consumer, for tests of the consumer itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from common.messages.envelope import Envelope
from common.process.process import Process
from common.transport.consumer import BatchConsumer
from tests.integration.mail import charge, saga
from tests.integration.waiting import Rows

ROLE = "payment_svc"
QUEUE = "payment.commands"


class Service:
    """A stand-in that records its batches and runs a fault for each number in `faults`."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.handled: list[int] = []
        self.faults: dict[int, Callable[[], None]] = {}

    def parse(self, envelope: Envelope) -> Envelope:
        envelope.message()
        return envelope

    async def handle(self, batch: Sequence[Envelope]) -> bool:
        numbers = [envelope.saga_id.int for envelope in batch]
        self.batches.append(numbers)
        for number in numbers:
            self.faults.get(number, lambda: None)()
        self.handled += numbers
        return True

    def calls_with(self, number: int) -> int:
        return len([batch for batch in self.batches if number in batch])


def broken() -> None:
    raise RuntimeError("this message alone")


def consumer_of(process: Process, service: Service) -> BatchConsumer[Any]:
    return process.consumer(QUEUE, service.parse, service.handle)


def exhausted(number: int) -> tuple[str, bytes]:
    """Return the reason and body of the dead letter of a message whose solo tries are used up."""
    return "exhausted", b"[" + charge(saga(number)).encode().encode() + b"]"


def tried_alone(judge: Rows) -> int:
    """Count the messages whose solo tries are recorded."""
    return judge.execute("select from payment_svc.solo_tries").rowcount
