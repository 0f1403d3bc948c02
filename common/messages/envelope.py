"""One message of ours and how several travel as one delivery. Pure.

Owns: the Envelope, the kinds of message, deterministic ids, the codec. A
*delivery* is what the broker carries and acks: a JSON array of 1 to 64
envelopes. Must not know: any business message, any server, any clock.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self
from uuid import UUID, uuid5

from pydantic import BaseModel, ConfigDict, StringConstraints, TypeAdapter, ValidationError
from pydantic_core import from_json

from common.messages.errors import Poison

MAX_PACKED = 64  # envelopes in one delivery (design.md, 5.1)
ORDERS = UUID("6f1d0c1a-5a39-5f0e-9d59-0d6f3c2f7a01")  # namespace of saga ids made from client keys


class Direction(StrEnum):
    FORWARD = "forward"
    COMPENSATING = "compensating"


class Outcome(StrEnum):
    """What a reply says about its command, whatever the business calls it."""

    DONE = "done"
    """Done. For an undo: undone, or nothing to undo. For a pivot's fence: the pivot *was* done."""
    REFUSED = "refused"
    """A business "no": final, without effect."""
    FENCED = "fenced"
    """Never done and never will be: the undo, or the pivot's fence, came first."""


class Key(NamedTuple):
    """What one message is about; the inbox's primary key and the root of every id."""

    saga_id: UUID
    step: str
    direction: Direction

    @property
    def action(self) -> Key:
        """The action an undo undoes."""
        return Key(self.saga_id, self.step, Direction.FORWARD)

    @property
    def command_id(self) -> UUID:
        """A resend, a redrive and a requeue are the *same* message (design.md, 5.2)."""
        return uuid5(self.saga_id, f"{self.step}:{self.direction}")

    @property
    def reply_id(self) -> UUID:
        return uuid5(self.saga_id, f"{self.step}:{self.direction}:reply")


def saga_id_for(customer: str, idempotency_key: str) -> UUID:
    """The order's and its saga's id, the same over HTTP and AMQP, for ever."""
    return uuid5(ORDERS, f"{customer}\x1f{idempotency_key}")


class Message(BaseModel):
    """A body. Its class name and `version` are its type on the wire; subclasses register."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    version: ClassVar[int] = 1
    registry: ClassVar[dict[tuple[str, int], type[Message]]] = {}

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        name = (cls.__name__, cls.version)
        known = Message.registry.setdefault(name, cls)
        if known.__module__ != cls.__module__:
            raise TypeError(f"message {name} is defined in {known.__module__} and {cls.__module__}")


def typed(type_: str, version: int, body: Mapping[str, Any]) -> Message:
    """What the wire says. Raises Poison: unknown type or version, or a body that does not fit."""
    known = Message.registry.get((type_, version))
    if known is None:
        raise Poison("unknown_type", f"{type_} version {version}")
    try:
        return known.model_validate(body)
    except ValidationError as error:
        raise Poison("invalid_body", brief(error)) from error


class Command(Message):
    """Imperative, has one owner."""


class Undo(Command):
    """Takes an action back; travels in the compensating direction only, and cannot be refused."""


class Reply(Message):
    """The outcome of a command, to whoever asked."""

    outcome: ClassVar[Outcome]


class Done(Reply):
    outcome = Outcome.DONE


class Refusal(Reply):
    """A business "no". Always a reply, never an exception that escapes a handler."""

    outcome = Outcome.REFUSED
    reason: str


class Fenced(Reply):
    """The undo or the fence came first: this action was not done and never will be."""

    outcome = Outcome.FENCED
    reason: Literal["fenced"] = "fenced"


class PivotDone(Done):
    """To a fence: too late, the pivot was done."""


class Fence(Undo):
    """To a pivot's owner: if you have not done it, never do; tell me which."""


class Forget(Command):
    """To a participant of sagas that ended long ago: nothing of them can come any more but what is
    old; keep no evidence of them. Their commands were first issued at `until` at the latest."""

    until: datetime
    saga_ids: tuple[UUID, ...]


class Query(Message):
    """Asked over the broker with a deadline and a private reply queue; has no effect."""


class Answer(Message):
    """The answer to a query."""


# At most 255 bytes, which is what AMQP carries as a queue's name; and an index must hold a step.
Word = Annotated[str, StringConstraints(max_length=63)]


class Envelope(BaseModel):
    """One message and what every reader of it needs to know."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    message_id: UUID
    saga_id: UUID
    step: Word
    direction: Direction
    type: Word
    version: int = 1
    outcome: Outcome | None = None  # replies only
    attempt: int = 1
    first_issued_at: datetime  # the same in every resend (section 6, rule 18)
    reply_to: Word | None = None  # the queue that wants the reply
    in_reply_to: UUID | None = None
    process: str | None = None  # replies only: who handled the command, for the saga log
    about: dict[str, Any] | None = None  # events and what they lead to: what the saga is about
    body: dict[str, Any] = {}

    @property
    def key(self) -> Key:
        return Key(self.saga_id, self.step, self.direction)

    @classmethod
    def command(
        cls,
        key: Key,
        body: Message,
        *,
        issued_at: datetime,
        reply_to: str | None,
        attempt: int = 1,
        about: dict[str, Any] | None = None,
    ) -> Self:
        return cls(
            message_id=key.command_id,
            saga_id=key.saga_id,
            step=key.step,
            direction=key.direction,
            type=type(body).__name__,
            version=body.version,
            attempt=attempt,
            first_issued_at=issued_at,
            reply_to=reply_to,
            about=about,
            body=body.model_dump(mode="json"),
        )

    def reply(self, body: Reply, *, issued_at: datetime, process: str | None = None) -> Envelope:
        """The reply to this command; it carries the id of what it answers."""
        return Envelope.event(
            self.key,
            body,
            issued_at=issued_at,
            attempt=self.attempt,
            process=process,
            about=self.about,
        )

    @classmethod
    def event(
        cls,
        key: Key,
        body: Reply,
        *,
        issued_at: datetime,
        attempt: int = 1,
        process: str | None = None,
        about: dict[str, Any] | None = None,
    ) -> Self:
        """The outcome of a command, to whoever cares: the same message as its reply."""
        return cls(
            message_id=key.reply_id,
            saga_id=key.saga_id,
            step=key.step,
            direction=key.direction,
            type=type(body).__name__,
            version=body.version,
            outcome=body.outcome,
            attempt=attempt,
            first_issued_at=issued_at,
            in_reply_to=key.command_id,
            process=process,
            about=about,
            body=body.model_dump(mode="json"),
        )

    def encode(self) -> str:
        return self.model_dump_json(exclude_none=True)

    def message(self) -> Message:
        """The body. Raises Poison."""
        return typed(self.type, self.version, self.body)


@dataclass(frozen=True)
class Unreadable:
    """One member of a delivery (or a whole delivery) that is no envelope of ours."""

    raw: bytes
    reason: str
    detail: str


_DELIVERY = TypeAdapter(list[Envelope])
# Postgres has no text with a NUL character, so nothing that holds one can be kept.
_LOOKS_LIKE_NUL = rb"\u0000"
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")  # its backslash not escaped itself


def key_of(encoded: str) -> Key:
    """Whose message an encoded envelope is."""
    return Envelope.model_validate_json(encoded).key


def pack(encoded: Iterable[str]) -> bytes:
    """Encoded envelopes to one delivery's body."""
    return ("[" + ",".join(encoded) + "]").encode()


def unpack(body: bytes) -> Sequence[Envelope | Unreadable]:
    """One delivery's body to its members; what is no envelope stands in its place as Unreadable."""
    try:
        envelopes = _DELIVERY.validate_json(body)
    except ValidationError:
        return _unpack_one_by_one(body)
    if _LOOKS_LIKE_NUL in body or any(e.message_id != _expected_id(e) for e in envelopes):
        return _unpack_one_by_one(body)
    return envelopes


def _unpack_one_by_one(body: bytes) -> Sequence[Envelope | Unreadable]:
    try:
        members = from_json(body)
    except ValueError as error:
        return [Unreadable(body, "not_json", str(error))]
    if not isinstance(members, list):
        return [Unreadable(body, "not_an_array", "a delivery is a JSON array of envelopes")]
    return [_one(member) for member in members]


def _one(member: Any) -> Envelope | Unreadable:
    raw = TypeAdapter(Any).dump_json(member)
    if not isinstance(member, dict):
        return Unreadable(raw, "invalid_envelope", "an envelope is a JSON object")
    if _NUL.search(raw):
        return Unreadable(raw, "invalid_envelope", "it holds a NUL character")
    try:
        if member.get("message_id") is None:  # a missing id is recomputed (section 6, rule 11)
            key = Key(
                UUID(str(member["saga_id"])), str(member["step"]), Direction(member["direction"])
            )
            reply = member.get("outcome") is not None
            member = {**member, "message_id": key.reply_id if reply else key.command_id}
        return _checked(Envelope.model_validate(member), raw)
    except KeyError as error:
        return Unreadable(raw, "invalid_envelope", f"{error.args[0]} is missing")
    except ValidationError as error:
        return Unreadable(raw, "invalid_envelope", brief(error))
    except ValueError as error:
        return Unreadable(raw, "invalid_envelope", str(error))


def _checked(envelope: Envelope, raw: bytes) -> Envelope | Unreadable:
    if envelope.message_id == _expected_id(envelope):
        return envelope
    detail = (
        f"message_id {envelope.message_id} is not the id of {envelope.step} {envelope.direction}"
    )
    return Unreadable(raw, "wrong_message_id", detail)


def _expected_id(envelope: Envelope) -> UUID:
    key = envelope.key
    return key.command_id if envelope.outcome is None else key.reply_id


def brief(error: ValidationError) -> str:
    """Which fields, and what is wrong with each; none of the values."""
    return "; ".join(
        f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}"
        for e in error.errors(include_url=False)[:3]
    )
