"""The definitions that this process knows, and what follows from knowing them.

Owns: which version a saga begins and goes on under, who is asked at its gates, the policy. Must not
know: SQL, any transaction. An instance of another version is another replica's turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common.kit.patience import Policy
from orchestrator.engine.approval import ApprovalPolicy, before_a_gate
from orchestrator.engine.decide import Undecidable
from orchestrator.engine.definition import FORWARD, Definition
from orchestrator.engine.inputs import NO_APPROVALS, Approvals, GateDecided, Input, ReplyArrived
from orchestrator.engine.instance import Instance
from orchestrator.runtime.store import Held

UNDEPLOYED_AFTER_SECONDS = 60.0  # a deadline that long ago, and nobody knew its definition


class VersionNotDeployed(Undecidable):
    """An instance's definition is not known here: another process's turn, or nobody's."""

    def __init__(self, instance: Instance) -> None:
        version = f"{instance.definition} v{instance.version}"
        refusal = f"{version} is not deployed here: it goes on by itself once it is"
        super().__init__("unknown_version", f"{version} is not deployed", refusal)


class Deployed:
    """What one process was started with."""

    def __init__(
        self,
        definitions: Sequence[Definition],
        policy: Policy,
        process: str,
        approval: ApprovalPolicy | None = None,
    ) -> None:
        self.policy = policy
        self.process = process
        self.newest = {d.name: d for d in sorted(definitions, key=lambda d: d.version)}
        self._approval = approval or ApprovalPolicy()
        self._definitions: Mapping[tuple[str, int], Definition] = {
            (d.name, d.version): d for d in definitions
        }
        self._before_a_gate = frozenset().union(*map(before_a_gate, definitions))

    @property
    def known(self) -> list[str]:
        """The definitions that are deployed here: `order v2`."""
        return [f"{name} v{version}" for name, version in self._definitions]

    @property
    def undeployed_after(self) -> float:
        return min(self.policy.stuck_after_seconds, UNDEPLOYED_AFTER_SECONDS)

    def comes_to_a_gate(self, event: object) -> bool:
        """Whether the saga may stand before a gate next; who is asked there is only then of use."""
        if isinstance(event, ReplyArrived):
            return event.direction is FORWARD and event.step in self._before_a_gate
        return isinstance(event, GateDecided)

    def asked(self, definition: Definition, held: Held | None, event: Input) -> Approvals:
        if held is None or not self.comes_to_a_gate(event):
            return NO_APPROVALS
        return self._approval.required(definition, held.instance, held.watched)

    def knows(self, instance: Instance) -> bool:
        """Whether the definition it began with is deployed here; if not, another replica's turn."""
        return (instance.definition, instance.version) in self._definitions

    def definition_of(self, instance: Instance) -> Definition:
        definition = self._definitions.get((instance.definition, instance.version))
        if definition is None:
            raise VersionNotDeployed(instance)
        return definition
