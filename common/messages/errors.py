"""The few error families of Sagaproof, by whose fault an error is. Pure.

The docstring of a class is its default message.
"""

from __future__ import annotations


class SagaproofError(Exception):
    """Something went wrong in Sagaproof."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip().splitlines()[0])


class Infrastructure(SagaproofError):
    """A server, or the way to it, failed: not the message's fault. Keep it and retry."""


class BrokerGone(Infrastructure):
    """The connection or channel to the broker is closed; `code` is the broker's, if it said why."""

    def __init__(self, message: str | None = None, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


class Poison(SagaproofError):
    """The message can never be handled; it is dead-lettered with this reason."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class BadDeploy(SagaproofError):
    """A repeated unexpected error: this code is broken, not the messages.

    `some_handled`: other messages succeeded meanwhile.
    """

    def __init__(self, message: str | None = None, *, some_handled: bool = False) -> None:
        super().__init__(message)
        self.some_handled = some_handled


class ConstraintViolated(SagaproofError):
    """A named constraint of the schema refused the change."""

    def __init__(self, constraint: str, detail: str = "") -> None:
        super().__init__(f"constraint {constraint} violated: {detail}")
        self.constraint = constraint


class IllegalTransition(SagaproofError):
    """The input makes no sense in this state; nothing was changed."""


class NoAnswer(SagaproofError):
    """The query was not answered before its deadline."""
