"""Topology and packing: what the broker is told, decided without it."""

from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.messages.envelope import MAX_PACKED
from common.messages.topology import (
    DELIVERY_LIMIT,
    NEVER,
    Queue,
    dead_letter_queue,
    is_private_reply_queue,
)
from common.storage.db import OutboxRow
from common.transport.relay import MAX_DELIVERY_CHARACTERS, pack_rows
from orchestrator.runtime.loading import queues_of
from orchestrator.sagas.order import ORDER_SAGA

QUEUES = queues_of([ORDER_SAGA])
DEAD = [queue for queue in QUEUES if queue.name.endswith(".dead")]
QUERIES = [queue for queue in QUEUES if queue.name.endswith(".queries")]
WORK_QUEUES = [q for q in QUEUES if q not in DEAD and q not in QUERIES]


def rows(destination: str, *sizes: int) -> list[OutboxRow]:
    return [OutboxRow(destination, n, "x" * size) for n, size in enumerate(sizes)]


# --- topology ------------------------------------------------------------------------------


def test_every_participant_has_a_work_queue_of_its_own() -> None:
    names = {queue.name for queue in WORK_QUEUES}
    assert {"order.commands", "inventory.commands", "payment.commands"} < names
    assert len({queue.name for queue in QUEUES}) == len(QUEUES)


def test_only_messages_to_private_reply_queues_are_dropped() -> None:
    assert not [queue.name for queue in WORK_QUEUES if is_private_reply_queue(queue.name)]
    assert is_private_reply_queue("amq.gen-JzTY20BRgKO-HjmUJj0wLg")
    assert is_private_reply_queue("chaos.catalogue.replies")


@pytest.mark.parametrize("queue", WORK_QUEUES, ids=lambda queue: queue.name)
def test_rule_17_dead_lettering_is_at_least_once(queue: Queue) -> None:
    assert queue.arguments["x-queue-type"] == "quorum"
    assert queue.arguments["x-dead-letter-strategy"] == "at-least-once"
    assert queue.arguments["x-overflow"] == "reject-publish"
    assert queue.arguments["x-dead-letter-exchange"] == ""
    assert queue.arguments["x-dead-letter-routing-key"] == f"{queue.name}.dead"
    assert f"{queue.name}.dead" in [dead.name for dead in DEAD]


@pytest.mark.parametrize("queue", WORK_QUEUES, ids=lambda queue: queue.name)
def test_rule_14_the_delivery_limit_is_explicit_and_high(queue: Queue) -> None:
    assert queue.arguments["x-delivery-limit"] == DELIVERY_LIMIT >= 1000


def test_dead_letter_queues_lose_nothing_themselves() -> None:
    assert {queue.name for queue in DEAD} == {dead_letter_queue(q.name) for q in WORK_QUEUES}
    never = {"x-queue-type": "quorum", "x-delivery-limit": NEVER}
    assert all(queue.arguments == never for queue in DEAD)


# --- packing -------------------------------------------------------------------------------


def test_nothing_to_pack() -> None:
    assert list(pack_rows([])) == []


@pytest.mark.parametrize(
    ("waiting", "sizes"), [(1, [1]), (64, [64]), (65, [64, 1]), (200, [64, 64, 64, 8])]
)
def test_a_delivery_carries_at_most_64_envelopes(waiting: int, sizes: list[int]) -> None:
    assert [len(d) for d in pack_rows(rows("a", *[1] * waiting))] == sizes


def test_a_delivery_goes_to_one_queue() -> None:
    both = rows("a", 1, 1) + rows("b", 1)
    assert list(pack_rows(both)) == [both[:2], both[2:]]


def test_a_delivery_is_not_too_large_unless_one_envelope_is() -> None:
    half, whole = MAX_DELIVERY_CHARACTERS // 2, MAX_DELIVERY_CHARACTERS
    waiting = rows("a", half, half, half, half, whole + 1, 1)
    assert [[row.id for row in d] for d in pack_rows(waiting)] == [[0, 1], [2, 3], [4], [5]]


@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([1, 9_000, 200_000])), max_size=150)
)
def test_packing_keeps_every_row_once_and_in_order(waiting: list[tuple[str, int]]) -> None:
    given_rows = [OutboxRow(d, n, "x" * size) for n, (d, size) in enumerate(waiting)]
    deliveries = list(pack_rows(given_rows))
    assert [row for delivery in deliveries for row in delivery] == given_rows
    for delivery in deliveries:
        assert 1 <= len(delivery) <= MAX_PACKED
        assert len(list(groupby(delivery, key=lambda row: row.destination))) == 1
        assert (
            len(delivery) == 1 or sum(len(r.envelope) for r in delivery) <= MAX_DELIVERY_CHARACTERS
        )
