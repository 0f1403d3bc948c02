"""Deliveries of every kind that no consumer can handle, by the reason of their dead letter."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

from chaos.stack.broker import command
from common.messages.envelope import Command
from common.messages.shop.inventory import DispatchStock
from common.messages.shop.order import ConfirmOrder

MEGABYTE = 1_000_000
NOT_JSON = "not_json"


def poisons(queue: str, saga_id: UUID) -> dict[str, bytes]:
    """Return deliveries about an existing saga, by the reason of their dead letter."""
    members = _members(queue, saga_id)
    return {
        NOT_JSON: b"tea, please",
        "not_an_array": json.dumps(members["unknown_type"]).encode(),
        **{reason: _packed(member) for reason, member in members.items()},
    }


def assorted(queue: str, saga_id: UUID) -> list[tuple[str, bytes]]:
    """Return all of those, and more for the same reasons: a future version, a megabyte of junk."""
    version = {**_members(queue, saga_id)["unknown_type"], "type": "ChargePayment", "version": 99}
    return [
        *poisons(queue, saga_id).items(),
        ("unknown_type", _packed(version)),
        (NOT_JSON, b"\xff" * MEGABYTE),
    ]


def _members(queue: str, saga_id: UUID) -> dict[str, dict[str, Any]]:
    foreign: Command = ConfirmOrder() if queue == "inventory.commands" else DispatchStock()
    wire = json.loads(command(saga_id, "charge_payment", foreign).encode())
    return {
        "not_an_event" if queue.endswith(".events") else "unknown_command": wire,
        "unknown_type": {**wire, "type": "MakeTea"},
        "wrong_message_id": {**wire, "message_id": str(uuid4())},
        "invalid_envelope": {k: v for k, v in wire.items() if k != "saga_id"},
    }


def _packed(member: dict[str, Any]) -> bytes:
    return json.dumps([member]).encode()
