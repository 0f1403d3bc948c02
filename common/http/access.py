"""Access to the HTTP APIs: tokens, roles and rates. Pure.

Owns: the tokens a process is given, kept as hashes, each with a name and a role, and the
allowance of each name. Must not know: HTTP, where tokens come from, the clock.

A list of tokens is text: NAME:ROLE:TOKEN, several separated by spaces or lines. Where there is
one role only, NAME:TOKEN will do. One name may hold two tokens: that is how one is replaced.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256

from common.messages.errors import SagaproofError

SHORTEST_TOKEN = 16  # characters; what is shorter was typed, not drawn
BURST_SECONDS = 2.0  # of the allowance may be used at once
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")  # what a bearer token may consist of (RFC 6750)


class Role(StrEnum):
    """The role of a caller of an API."""

    VIEWER = "viewer"  # may look
    OPERATOR = "operator"  # may look and act
    CUSTOMER = "customer"  # at the door: may order and look

    @property
    def may_change(self) -> bool:
        return self is not Role.VIEWER


OPERATORS = (Role.VIEWER, Role.OPERATOR)
CUSTOMERS = (Role.CUSTOMER,)


@dataclass(frozen=True)
class Actor:
    """The owner of a token."""

    name: str
    role: Role


class BadTokens(SagaproofError):
    """Something is wrong with a list of tokens; which one is never quoted."""


class Keyring:
    """The tokens of one API. Only their hashes are kept."""

    def __init__(self, holders: Sequence[tuple[bytes, Actor]]) -> None:
        self._holders = tuple(holders)

    @classmethod
    def parse(cls, text: str, roles: Collection[Role]) -> Keyring:
        """Parse a list of tokens. Raises BadTokens."""
        holders: list[tuple[bytes, Actor]] = []
        for number, entry in enumerate(text.split(), start=1):
            try:
                digest, actor = _entry(entry, roles)
            except BadTokens as error:
                raise BadTokens(f"entry {number}: {error}") from None
            if any(digest == known for known, _ in holders):
                raise BadTokens(f"entry {number}: its token is there already")
            holders.append((digest, actor))
        if not holders:
            raise BadTokens("it is not set, or empty")
        return cls(holders)

    def actor(self, token: str) -> Actor | None:
        """Return the holder of a token, in the same time whether there is one or not."""
        given, found = _digest(token), None
        for digest, actor in self._holders:
            if hmac.compare_digest(digest, given):
                found = actor
        return found


def _entry(entry: str, roles: Collection[Role]) -> tuple[bytes, Actor]:
    name, *between, token = entry.split(":")
    given = between or ([str(role) for role in roles] if len(roles) == 1 else [])
    if not token or len(given) != 1:
        raise BadTokens(f"write {'NAME:TOKEN' if len(roles) == 1 else 'NAME:ROLE:TOKEN'}")
    if not _NAME.fullmatch(name):
        raise BadTokens("a name is up to 64 letters, digits and . _ @ -")
    if given[0] not in roles:
        raise BadTokens(f"no role {given[0]!r}: choose from {', '.join(roles)}")
    if len(token) < SHORTEST_TOKEN or not _TOKEN.fullmatch(token):
        remedy = "draw one: python -c 'import secrets; print(secrets.token_urlsafe(24))'"
        raise BadTokens(
            f"the token of {name} is not {SHORTEST_TOKEN} or more letters, digits and"
            f" . _ ~ + / = -; {remedy}"
        )
    return _digest(token), Actor(name, Role(given[0]))


def _digest(token: str) -> bytes:
    """Fast on purpose: tokens are drawn, not thought of, and there is nothing to guess."""
    return sha256(token.encode()).digest()


class Allowance:
    """Requests that each name may make: so many a second, `BURST_SECONDS` of them at once.

    A bucket for every name of a keyring, so there is a bound to them.
    """

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._full = max(1.0, per_second * BURST_SECONDS)
        self._buckets: dict[str, tuple[float, float]] = {}  # what was left in it, and when

    def wait(self, name: str, now: float) -> float:
        """Zero, and one is taken; or the seconds until there is one."""
        left, then = self._buckets.get(name, (self._full, now))
        left = min(self._full, left + (now - then) * self._per_second)
        if left < 1:
            self._buckets[name] = (left, now)
            return (1 - left) / self._per_second
        self._buckets[name] = (left - 1, now)
        return 0.0
