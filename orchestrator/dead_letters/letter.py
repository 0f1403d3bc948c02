"""A dead letter: one message of a delivery from a dead-letter queue.

Owns which dead letters are the same, and whose message each was, as far as its body says. Must not
know: where dead letters are stored, what they lead to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid5

from pydantic_core import from_json

from common.messages.contracts import StartSaga
from common.messages.envelope import Direction, Envelope, Key, Unreadable, pack, unpack
from common.messages.errors import Poison
from common.messages.topology import ORCHESTRATOR_COMMANDS

BODY_KEPT = 1_048_576  # bytes; a larger message cannot be redriven
REASON_KEPT, DETAIL_KEPT, WORD_KEPT = 100, 1000, 63  # characters
_LETTERS = UUID("0b6f8d5e-52c7-5d7a-8a51-3f1f0a6a9c11")  # namespace of their ids


@dataclass(frozen=True, slots=True)
class About:
    """The saga, step and kind of a message; None where its body does not say."""

    saga_id: UUID | None = None
    step: str | None = None
    direction: Direction | None = None
    message_id: UUID | None = None
    type: str | None = None
    reply: bool = False

    @property
    def key(self) -> Key | None:
        """Return the key of the message, unless its own id contradicts it (rule 11)."""
        if self.saga_id is None or self.step is None or self.direction is None:
            return None
        key = Key(self.saga_id, self.step, self.direction)
        right = key.reply_id if self.reply else key.command_id
        return key if self.message_id in (None, right) else None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was dead-lettered, and why."""

    letter_id: UUID  # the same for one message from one queue for one reason
    queue: str  # where it came from
    reason: str
    detail: str | None
    about: About
    body: bytes  # as much as is kept
    size: int
    readable: bool  # a whole envelope, which may be redriven
    headers: Mapping[str, Any]
    occasion: str  # of dead-lettering: a redelivery of the dead letter has the same
    start: StartSaga | None = None

    @property
    def key(self) -> Key | None:
        return self.about.key


def dead_letters_of(queue: str, body: bytes, headers: Mapping[str, Any]) -> list[DeadLetter]:
    """Make one dead letter of each message; a delivery that the broker moved may hold several."""
    members = unpack(body)
    if len(members) > 1:
        return [_dead_letter(queue, _alone(member), member, headers) for member in members]
    return [_dead_letter(queue, body, member, headers) for member in members or [_EMPTY]]


_EMPTY = Unreadable(b"", "empty", "a delivery without envelopes")


def _alone(member: Envelope | Unreadable) -> bytes:
    return pack([member.encode() if isinstance(member, Envelope) else member.raw.decode()])


def _dead_letter(
    queue: str, body: bytes, member: Envelope | Unreadable, headers: Mapping[str, Any]
) -> DeadLetter:
    about = about_envelope(member) if isinstance(member, Envelope) else _about_raw(member.raw)
    said = _plain(dict(headers))
    why = said.get("x-sagaproof-reason") or said.get("x-first-death-reason") or "unknown"
    reason = str(why)[:REASON_KEPT]
    detail = said.get("x-sagaproof-detail")
    readable = isinstance(member, Envelope) and len(body) <= BODY_KEPT
    same = (
        f"{member.message_id} {member.type} {member.version}"
        if isinstance(member, Envelope)
        else sha256(body).hexdigest()
    )
    return DeadLetter(
        letter_id=uuid5(_LETTERS, "\x1f".join((queue, reason, same))),
        queue=queue,
        reason=reason,
        detail=str(detail)[:DETAIL_KEPT] if detail else None,
        about=about,
        body=body[:BODY_KEPT],
        size=len(body),
        readable=readable,
        headers=said,
        occasion=str(said.get("x-sagaproof-letter") or json.dumps(said.get("x-death"))),
        start=_start(queue, member),
    )


def about_envelope(envelope: Envelope) -> About:
    return About(
        envelope.saga_id,
        envelope.step,
        envelope.direction,
        envelope.message_id,
        envelope.type,
        envelope.outcome is not None,
    )


def _about_raw(raw: bytes) -> About:
    """Read what a message that is no envelope says of itself."""
    try:
        said = from_json(raw)
    except ValueError:
        return About()
    if isinstance(said, list) and len(said) == 1:
        (said,) = said
    if not isinstance(said, dict):
        return About()
    way = said.get("direction")
    return About(
        _uuid(said.get("saga_id")),
        _word(said.get("step")),
        Direction(way) if way in list(Direction) else None,
        _uuid(said.get("message_id")),
        _word(said.get("type")),
        said.get("outcome") is not None,
    )


def _start(queue: str, member: Envelope | Unreadable) -> StartSaga | None:
    """Return the message if it was to start a saga."""
    if queue != ORCHESTRATOR_COMMANDS or not isinstance(member, Envelope):
        return None
    try:
        message = member.message()
    except Poison:
        return None
    forward = member.direction is Direction.FORWARD and member.outcome is None
    return message if isinstance(message, StartSaga) and forward else None


def _uuid(value: object) -> UUID | None:
    try:
        return UUID(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _word(value: object) -> str | None:
    return _kept(value)[:WORD_KEPT] if isinstance(value, str) else None


def _kept(text: str) -> str:
    """Replace NUL characters, which Postgres text cannot hold."""
    return text.replace("\x00", "\ufffd")


def _plain(value: Any) -> Any:
    """Turn a header's value, which may be of any AMQP type, into JSON."""
    if isinstance(value, dict):
        return {_kept(str(k)): _plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, bool | int):
        return value
    return _kept(value.decode(errors="replace") if isinstance(value, bytes) else str(value))
