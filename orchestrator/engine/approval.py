"""The policy that says when a person must approve a saga at a gate.

There are three reasons: a total at or above its currency's threshold, a customer on the watch
list, and whatever the definition's own gate asks. Must not know: where any of them is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.engine.definition import Definition, Kind, Step
from orchestrator.engine.inputs import Approvals
from orchestrator.engine.instance import Instance


@dataclass(frozen=True)
class ApprovalPolicy:
    """The approvals one orchestrator requires; by default none."""

    thresholds: Mapping[str, int] = field(default_factory=dict)
    """In minor units, by currency."""

    def required(
        self, definition: Definition, instance: Instance, watched: str | None
    ) -> Approvals:
        """Return the gates ahead of this instance that need a person, each with the reason.

        `watched` is the reason its customer is on the watch list.
        """
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
    """Return the steps that a gate follows: only when one of them ends is approval decided."""
    return frozenset(
        step.name
        for step, after in zip(definition.steps, definition.steps[1:], strict=False)
        if after.kind is Kind.GATE
    )
