"""Loading the definitions that a setting names, and the queues that they need.

An error says what to correct in the setting. Must not know: any particular saga.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable, Iterator, Sequence

import common.messages.shop  # noqa: F401 - a message of the shop's name is refused here, by `check`
from common.messages.topology import (
    ORCHESTRATOR_COMMANDS,
    ORCHESTRATOR_QUERIES,
    ORCHESTRATOR_REPLIES,
    Queue,
    commands_of,
    query_queue,
    work_queue,
)
from orchestrator.engine.definition import Definition, DefinitionError, Kind

MOVED = {  # in this release; the old places are accepted until the next
    "orchestrator.order_saga": "orchestrator.sagas.order",
    "orchestrator.return_saga": "orchestrator.sagas.returns",
}
FORM = "write module:NAME, several by comma, as in orchestrator.sagas.order:ORDER_SAGA"


def load(setting: str) -> tuple[Definition, ...]:
    """Import the definitions of a setting such as `orchestrator.sagas.order:DEFINITIONS`.

    Raises DefinitionError, also for a definition that contradicts itself.
    """
    names = [name.strip() for name in setting.split(",") if name.strip()]
    if not names:
        raise DefinitionError(f"SAGAPROOF_DEFINITIONS is empty; {FORM}")
    definitions = [definition for name in names for definition in _named(name)]
    seen: dict[tuple[str, int], Definition] = {}
    for definition in definitions:
        twice = seen.setdefault((definition.name, definition.version), definition)
        if twice is not definition:
            raise DefinitionError(
                f"SAGAPROOF_DEFINITIONS: {definition.name} version {definition.version} is defined"
                " twice; a change of its steps gets a version of its own, another saga another name"
            )
    return tuple(seen.values())


def participants_of(definitions: Iterable[Definition]) -> tuple[str, ...]:
    """Return the services that take commands, each once, in the order of the steps."""
    steps = (step for definition in definitions for step in definition.steps)
    return tuple(dict.fromkeys(s.participant for s in steps if s.kind is not Kind.GATE))


def work_queues_of(definitions: Iterable[Definition]) -> tuple[str, ...]:
    """Return the queues that have dead letters: the orchestrator's and its participants'."""
    participants = participants_of(definitions)
    return (ORCHESTRATOR_COMMANDS, ORCHESTRATOR_REPLIES, *map(commands_of, participants))


def queues_of(definitions: Iterable[Definition]) -> tuple[Queue, ...]:
    """Return all queues of an orchestrator: those for work, and the one for queries."""
    work = (queue for name in work_queues_of(definitions) for queue in work_queue(name))
    return (*work, *query_queue(ORCHESTRATOR_QUERIES))


def in_words(definition: Definition) -> Iterator[str]:
    """Describe the steps in order, for the author of the definition."""
    yield f"{definition.name} version {definition.version}:"
    for step in definition.steps:
        sent = step.command.__name__ if step.command else "nothing, it is done at the door"
        if step.kind is Kind.GATE:
            sent = "nothing, a person may be asked"
        undo = f"; undone by {step.undo.__name__}" if step.undo else ""
        yield f"  {step.name}, {step.kind}: {step.participant} is sent {sent}{undo}"


def _named(name: str) -> Sequence[Definition]:
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute.isidentifier():
        raise DefinitionError(f"SAGAPROOF_DEFINITIONS: {name!r} is no name; {FORM}")
    if new_place := MOVED.get(module_name):
        warnings.warn(
            f"SAGAPROOF_DEFINITIONS: write {new_place}:{attribute} instead of {name},"
            " which the next release refuses",
            FutureWarning,
            stacklevel=2,
        )
        module_name = new_place
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise DefinitionError(
            f"SAGAPROOF_DEFINITIONS: {module_name} cannot be imported ({error}); correct its name,"
            " or put its directory on PYTHONPATH"
        ) from error
    except (TypeError, ValueError) as error:  # two messages of one name, a field that cannot be
        raise DefinitionError(f"SAGAPROOF_DEFINITIONS: {module_name}: {error}") from error
    found = getattr(module, attribute, None)
    definitions = [found] if isinstance(found, Definition) else found
    if (
        not isinstance(definitions, Sequence)
        or not definitions
        or not all(isinstance(d, Definition) for d in definitions)
    ):
        there = [n for n, value in vars(module).items() if isinstance(value, Definition)]
        raise DefinitionError(
            f"SAGAPROOF_DEFINITIONS: {module_name} has no Definition {attribute}, nor a sequence of"
            f" them; it has: {', '.join(there) or 'none'}"
        )
    return definitions
