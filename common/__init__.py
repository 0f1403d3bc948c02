"""The names that the author of a saga or of a participant imports; everything else is inside.

What stands on a driver is loaded when it is first used, so that a pure module, a definition of a
saga above all, loads neither pika nor psycopg.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from common.messages.contracts import StartSaga
from common.messages.envelope import (
    Answer,
    Command,
    Direction,
    Done,
    Envelope,
    Key,
    Query,
    Refusal,
    Reply,
    Undo,
)
from common.messages.errors import BrokerGone, IllegalTransition, Poison
from common.messages.topology import ORCHESTRATOR_COMMANDS

if TYPE_CHECKING:
    from common.participant.participant import Answered, Handler, Store, Work
    from common.process.process import run_participant
    from common.process.send import send
    from common.storage.db import Tx
    from common.storage.outbox import Outgoing
else:

    def __getattr__(name: str) -> Any:
        if name not in _LOADED_WHEN_USED:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_LOADED_WHEN_USED[name]), name)


_LOADED_WHEN_USED = {
    "Answered": "common.participant.participant",
    "Handler": "common.participant.participant",
    "Outgoing": "common.storage.outbox",
    "Store": "common.participant.participant",
    "Tx": "common.storage.db",
    "Work": "common.participant.participant",
    "run_participant": "common.process.process",
    "send": "common.process.send",
}

__all__ = [
    "ORCHESTRATOR_COMMANDS",
    "Answer",
    "Answered",
    "BrokerGone",
    "Command",
    "Direction",
    "Done",
    "Envelope",
    "Handler",
    "IllegalTransition",
    "Key",
    "Outgoing",
    "Poison",
    "Query",
    "Refusal",
    "Reply",
    "StartSaga",
    "Store",
    "Tx",
    "Undo",
    "Work",
    "run_participant",
    "send",
]
