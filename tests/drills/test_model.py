"""The orchestrated model again, in which each message can also be lost alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.model import orchestrated
from tests.model.explore import explore
from tests.model.orchestrated import LEGS, REPLIES, Move, World


class LostOneByOne:
    """The orchestrated model with 250 times its states."""

    first = staticmethod(orchestrated.first)
    check = staticmethod(orchestrated.check)
    ended = staticmethod(orchestrated.ended)
    forget = staticmethod(orchestrated.forget)

    @staticmethod
    def moves(world: World) -> Iterator[Move]:
        yield from orchestrated.moves(world)
        for leg in LEGS.of(world.commands):
            yield "a command is lost", world._replace(commands=world.commands - LEGS.bits([leg]))
        for reply in REPLIES.of(world.replies):
            yield "a reply is lost", world._replace(replies=world.replies - REPLIES.bits([reply]))


@pytest.mark.timeout(300)
def test_losing_messages_one_by_one_changes_no_verdict() -> None:
    found = explore(LostOneByOne())
    assert found.wrong is None, "\n".join(found.trace)
    assert found.states > 500_000
    assert found.ends > 100_000
