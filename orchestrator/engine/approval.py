"""When policy asks for a person at a gate. Pure.

Owns: the three ways to ask: a total at or above its currency's threshold, a customer on the
watch list, and what the definition says of its own gate. Must not know: where any of them is
kept, what becomes of a saga that waits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.engine.definition import Definition, Kind, Step
from orchestrator.engine.inputs import Asked
from orchestrator.engine.instance import Instance


@dataclass(frozen=True)
class Approval:
    """The policy of one orchestrator. By default nobody is asked."""

    thresholds: Mapping[str, int] = field(default_factory=dict)
    """In minor units, by currency."""

    def asked(self, definition: Definition, instance: Instance, watched: str | None) -> Asked:
        """Whom the gates ahead of this instance ask, and why; `watched` says why its customer is
        on the watch list."""
        ahead = (
            s for s in definition.steps if s.kind is Kind.GATE and s.name not in instance.steps
        )
        whys = ((gate.name, self._why(gate, instance.data, watched)) for gate in ahead)
        return {gate: why for gate, why in whys if why is not None}

    def _why(self, gate: Step, data: Mapping[str, Any], watched: str | None) -> str | None:
        total, currency = data.get("total"), str(data.get("currency"))
        threshold = self.thresholds.get(currency)
        if isinstance(total, int) and threshold is not None and total >= threshold:
            return f"total {total} {currency} reaches {threshold}"
        if watched is not None:
            return f"customer {data.get('customer')} is watched: {watched}"
        return gate.asks(data) if gate.asks else None


def before_a_gate(definition: Definition) -> frozenset[str]:
    """The steps behind which a gate comes next: only when one of them ends is anybody asked."""
    return frozenset(
        step.name
        for step, after in zip(definition.steps, definition.steps[1:], strict=False)
        if after.kind is Kind.GATE
    )
