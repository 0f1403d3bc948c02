"""The envelope of a message, the kinds of message, deterministic ids, the codec. Pure.

A *delivery* is what the broker carries and acks: a JSON array of 1 to 64 envelopes.
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

MAX_PACKED = 64  # envelopes in one delivery
ORDERS = UUID("6f1d0c1a-5a39-5f0e-9d59-0d6f3c2f7a01")  # namespace of saga ids made from client keys


class Direction(StrEnum):
    FORWARD = "forward"
    COMPENSATING = "compensating"


class Outcome(StrEnum):
    """The outcome of a command, whatever the business calls it."""

    DONE = "done"
    """Done. For an undo: undone, or nothing to undo. For a pivot's fence: the pivot *was* done."""
    REFUSED = "refused"
    """A business "no": final, without effect."""
    FENCED = "fenced"
    """Never done and never will be: the undo, or the pivot's fence, came first."""


class Key(NamedTuple):
    """The subject of a message: the inbox's primary key, and the root of every id."""

    saga_id: UUID
    step: str
    direction: Direction

    @property
    def action(self) -> Key:
        """Return the key of the action that an undo undoes."""
        return Key(self.saga_id, self.step, Direction.FORWARD)

    @property
    def command_id(self) -> UUID:
        """Return the id of the command: its resends and redrives are the *same* message."""
        return uuid5(self.saga_id, f"{self.step}:{self.direction}")

    @property
    def reply_id(self) -> UUID:
        return uuid5(self.saga_id, f"{self.step}:{self.direction}:reply")


def saga_id_for(customer: str, idempotency_key: str) -> UUID:
    """Return the id of the order and its saga: the same over HTTP and AMQP, for ever."""
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
    """Return the message. Raises Poison for an unknown type or version, or an invalid body."""
    known = Message.registry.get((type_, version))
    if known is None:
        raise Poison("unknown_type", f"{type_} version {version}")
    try:
        return known.model_validate(body)
    except ValidationError as error:
        raise Poison("invalid_body", brief(error)) from error


class Command(Message):
    """A request to act, with one owner."""


class Undo(Command):
    """A command that reverts an action; always compensating, and cannot be refused."""


class Reply(Message):
    """The outcome of a command, to its sender."""

    outcome: ClassVar[Outcome]


class Done(Reply):
    outcome = Outcome.DONE


class Refusal(Reply):
    """A business "no": always a reply, never an exception that escapes a handler."""

    outcome = Outcome.REFUSED
    reason: str


class Fenced(Reply):
    """The undo or the fence came first: this action was not done and never will be."""

    outcome = Outcome.FENCED
    reason: Literal["fenced"] = "fenced"


class PivotDone(Done):
    """The reply to a fence that came too late: the pivot was done."""


class Fence(Undo):
    """The command to a pivot's owner: never do the pivot, unless it is done; reply which.

    It reverts nothing. It is an Undo because it travels and is answered as one: compensating, for
    ever resent, never refused, and it leaves a tombstone if the action has not come.
    """


class Forget(Command):
    """The command to delete the inbox rows of sagas that ended long ago (rule 18).

    Their commands were first issued at `until` at the latest.
    """

    until: datetime
    saga_ids: tuple[UUID, ...]


class Query(Message):
    """A request for data over the broker, with a deadline and a private reply queue."""


class Answer(Message):
    """The answer to a query."""


# At most 255 bytes, which is what AMQP carries as a queue's name; and an index must hold a step.
Word = Annotated[str, StringConstraints(max_length=63)]


class Envelope(BaseModel):
    """A message with its metadata."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    message_id: UUID
    saga_id: UUID
    step: Word
    direction: Direction
    type: Word
    version: int = 1
    outcome: Outcome | None = None  # replies only
    attempt: int = 1
    first_issued_at: datetime  # the same in every resend (rule 18)
    reply_to: Word | None = None  # the queue for the reply
    in_reply_to: UUID | None = None
    process: str | None = None  # replies only: the one that handled the command, for the saga log
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
        return cls._of(
            key, body, message_id=key.command_id, attempt=attempt, first_issued_at=issued_at,
            reply_to=reply_to, about=about,
        )  # fmt: skip

    def reply(self, body: Reply, *, issued_at: datetime, process: str | None = None) -> Envelope:
        """Make the reply to this command; it carries the command's id."""
        return Envelope.of_reply(
            self.key, body, issued_at=issued_at, attempt=self.attempt, process=process,
            about=self.about,
        )  # fmt: skip

    @classmethod
    def of_reply(
        cls,
        key: Key,
        body: Reply,
        *,
        issued_at: datetime,
        attempt: int = 1,
        process: str | None = None,
        about: dict[str, Any] | None = None,
    ) -> Self:
        """Make the reply to the command of this key; an event is one that is published."""
        return cls._of(
            key, body, message_id=key.reply_id, outcome=body.outcome, attempt=attempt,
            first_issued_at=issued_at, in_reply_to=key.command_id, process=process, about=about,
        )  # fmt: skip

    @classmethod
    def _of(cls, key: Key, body: Message, **metadata: Any) -> Self:
        named = {"type": type(body).__name__, "version": body.version}
        return cls(**key._asdict(), **named, **metadata, body=body.model_dump(mode="json"))

    @property
    def log_fields(self) -> dict[str, str]:
        """Return the fields by which the log names a message."""
        return {
            "saga_id": str(self.saga_id),
            "step": self.step,
            "direction": self.direction.value,
            "message_id": str(self.message_id),
        }

    def encode(self) -> str:
        return self.model_dump_json(exclude_none=True)

    def message(self) -> Message:
        """Return the typed body. Raises Poison."""
        return typed(self.type, self.version, self.body)


@dataclass(frozen=True)
class Unreadable:
    """A member of a delivery (or a whole delivery) that is no valid envelope."""

    raw: bytes
    reason: str
    detail: str


_DELIVERY = TypeAdapter(list[Envelope])
# Postgres has no text with a NUL character, so nothing that holds one can be kept.
_LOOKS_LIKE_NUL = rb"\u0000"
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")  # its backslash not escaped itself


def key_of(encoded: str) -> Key:
    """Return the key of an encoded envelope."""
    return Envelope.model_validate_json(encoded).key


def pack(encoded: Iterable[str]) -> bytes:
    """Pack encoded envelopes into the body of one delivery."""
    return ("[" + ",".join(encoded) + "]").encode()


def unpack(body: bytes) -> Sequence[Envelope | Unreadable]:
    """Unpack the body of a delivery; each member that is no valid envelope is an Unreadable."""
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
        if member.get("message_id") is None:  # a missing id is recomputed (rule 11)
            key = Key(
                UUID(str(member["saga_id"])), str(member["step"]), Direction(member["direction"])
            )
            reply = member.get("outcome") is not None
            member = {**member, "message_id": key.reply_id if reply else key.command_id}
        envelope = Envelope.model_validate(member)
    except KeyError as error:
        return Unreadable(raw, "invalid_envelope", f"{error.args[0]} is missing")
    except ValidationError as error:
        return Unreadable(raw, "invalid_envelope", brief(error))
    except ValueError as error:
        return Unreadable(raw, "invalid_envelope", str(error))
    if envelope.message_id == _expected_id(envelope):
        return envelope
    owner = f"{envelope.step} {envelope.direction}"
    return Unreadable(
        raw, "wrong_message_id", f"message_id {envelope.message_id} is not the id of {owner}"
    )


def _expected_id(envelope: Envelope) -> UUID:
    key = envelope.key
    return key.command_id if envelope.outcome is None else key.reply_id


def brief(error: ValidationError) -> str:
    """Name the invalid fields and their errors, but none of the values."""
    return "; ".join(
        f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}"
        for e in error.errors(include_url=False)[:3]
    )
