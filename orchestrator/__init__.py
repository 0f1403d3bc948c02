"""The names that the author of a saga's definition imports; everything else is inside."""

from common.kit.settings import Policy
from orchestrator.engine.definition import Definition, DefinitionError, Kind, Step

__all__ = ["Definition", "DefinitionError", "Kind", "Policy", "Step"]
