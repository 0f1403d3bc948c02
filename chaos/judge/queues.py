"""The judge's look at the broker: how many messages each queue holds, and which dead letters.

Management API and `rabbitmqctl list_queues` report a quorum queue's figures of up to 5 s ago; a
passive declare is exact but leaves out unacked messages. So each queue's leader is asked, by a
consistent query (`rabbitmqctl eval`, half a second).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pika
from pika.adapters.blocking_connection import BlockingChannel

from chaos.judge.case import DeadLetter

COUNT_QUEUES = """
[begin
   {resource, _, _, Name} = amqqueue:get_name(Q),
   {Ready, Unacked} = case amqqueue:get_type(Q) of
     rabbit_quorum_queue ->
       {ok, Counts, _} = ra:consistent_query(amqqueue:get_pid(Q), fun(S) ->
         {rabbit_fifo:query_messages_ready(S), rabbit_fifo:query_messages_checked_out(S)}
       end),
       Counts;
     _ ->
       [{_, R}, {_, U}] = rabbit_amqqueue:info(Q, [messages_ready, messages_unacknowledged]),
       {R, U}
   end,
   {Name, Ready, Unacked}
 end || Q <- rabbit_amqqueue:list()].
"""

RabbitmqCtl = Callable[..., str]
"""Runs rabbitmqctl on the broker's machine with these arguments; its standard output."""


class Messages(NamedTuple):
    ready: int
    unacked: int


def count_queues(rabbitmqctl: RabbitmqCtl) -> dict[str, Messages]:
    """Count every queue, as its leader does at this moment. Raises ValueError or OSError."""
    answer = json.loads(rabbitmqctl("--formatter", "json", "eval", COUNT_QUEUES))
    return {name: Messages(ready, unacked) for name, ready, unacked in answer["value"]}


def is_dead_letter_queue(name: str) -> bool:
    return name.endswith(".dead")


def read_dead_letters(amqp_url: str, rabbitmqctl: RabbitmqCtl) -> tuple[DeadLetter, ...]:
    """Read all dead-letter queues without taking anything: unacked, it all goes back."""
    queues = sorted(filter(is_dead_letter_queue, count_queues(rabbitmqctl)))
    with pika.BlockingConnection(pika.URLParameters(amqp_url)) as connection:
        channel = connection.channel()
        return tuple(letter for queue in queues for letter in _read(channel, queue))


def _read(channel: BlockingChannel, queue: str) -> Iterator[DeadLetter]:
    while (got := channel.basic_get(queue))[0] is not None:
        _, properties, body = got
        reason = str((properties.headers or {}).get("x-sagaproof-reason", "?"))
        yield DeadLetter(queue, reason, _about(body))


def _about(body: bytes) -> str:
    try:
        member = json.loads(body)[0]
        return f"{member['type']} of saga {member['saga_id']}"
    except (ValueError, LookupError, TypeError):
        return repr(body[:80])
