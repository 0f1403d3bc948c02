"""The definitions deployed in this process, and what follows from them.

Owns which version a saga begins and goes on under, the approvals at its gates, and the policy.
An instance of another version is left to a replica that has it. Must not know: SQL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common.kit.settings import Policy
from common.messages.errors import Poison
from orchestrator.engine.approval import ApprovalPolicy, before_a_gate
from orchestrator.engine.decide import NeedsAnotherRelease
from orchestrator.engine.definition import FORWARD, Definition
from orchestrator.engine.inputs import NO_APPROVALS, Approvals, GateDecided, Input, ReplyArrived
from orchestrator.engine.instance import Instance
from orchestrator.runtime.store import InstanceRow

UNDEPLOYED_AFTER_SECONDS = 60.0  # a deadline has passed, before its version counts as undeployed


class VersionNotDeployed(NeedsAnotherRelease):
    """The version an instance began with is not deployed in this process."""

    def __init__(self, instance: Instance) -> None:
        version = f"{instance.definition} v{instance.version}"
        refusal = f"{version} is not deployed here: it goes on by itself once it is"
        super().__init__("unknown_version", f"{version} is not deployed", refusal)


class DeployedDefinitions:
    """The definitions, retry policy and approval policy that one process was started with."""

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
        """Return the deployed definitions as text: `order v2`."""
        return [f"{name} v{version}" for name, version in self._definitions]

    @property
    def undeployed_after(self) -> float:
        return min(self.policy.stuck_after_seconds, UNDEPLOYED_AFTER_SECONDS)

    def may_come_to_a_gate(self, input_: object) -> bool:
        """Return whether a gate may be next, so that approvals and the watch list matter."""
        if isinstance(input_, ReplyArrived):
            return input_.direction is FORWARD and input_.step in self._before_a_gate
        return isinstance(input_, GateDecided)

    def approvals(
        self, definition: Definition, row: InstanceRow | None, input_: Input
    ) -> Approvals:
        if row is None or not self.may_come_to_a_gate(input_):
            return NO_APPROVALS
        return self._approval.required(definition, row.instance, row.watched)

    def has(self, instance: Instance) -> bool:
        """Return whether the version this instance began with is deployed here."""
        return (instance.definition, instance.version) in self._definitions

    def definition_for(self, instance: Instance | None, begins: str | None) -> Definition:
        """Return the version of an instance, or else the newest of the saga called `begins`."""
        if instance is not None:
            return self.definition_of(instance)
        if begins not in self.newest:
            raise Poison("unknown_definition", f"no saga is called {begins}")
        return self.newest[begins]

    def definition_of(self, instance: Instance) -> Definition:
        """Return the version this instance began with. Raises VersionNotDeployed."""
        definition = self._definitions.get((instance.definition, instance.version))
        if definition is None:
            raise VersionNotDeployed(instance)
        return definition
