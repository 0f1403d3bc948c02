"""The guards of decide(), of the reactions and of the fence, and how to remove each from the code.

Owns: the tables. Must not know: how a removal works, nor what the model then finds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from common.messages.envelope import Fenced
from common.messages.shop.order import CancelAsked
from common.messages.shop.payment import CardDeclined
from common.participant import reactions
from common.storage import admission
from inventory_svc.choreography import REACTIONS as INVENTORY
from orchestrator.engine.decide import Move
from orchestrator.engine.definition import Step
from orchestrator.engine.instance import Instance
from order_svc.choreography import reactions as order_reactions
from order_svc.choreography.progress import SagaProgress
from payment_svc.choreography import REACTIONS as PAYMENT
from tests.support.without import Entry, Guard

_FENCE_ANSWER = "PivotDone() if action is not None and action.outcome is Outcome.DONE else Fenced()"
FENCING = (
    Guard("what is known is not done again", admission.InboxView, "admit", {
        "if row is not None:": "if False:", "if key not in self._claimed:": "if False:"}),
    Guard("a late action is refused", admission.InboxView, "admit", {
        "if row is not None:": "if row is not None and row.outcome is not Outcome.FENCED:",
        "if key not in self._claimed:": "if False:"}),
    Guard("an undo claims its action as well", admission, "claims", {
        "if key.direction is Direction.COMPENSATING:": "if False:"}),
    Guard("an undo leaves a tombstone", admission.InboxView, "admit", {
        "self._known[key.action] = tombstone(key.action)": "return First()"}),
    Guard("a repeat is answered with the stored reply", admission.InboxView, "record_reply", {
        "self._known[key] = row": "self._known[key] = Row(row.outcome, None)"}),
    Guard("a fence says so if the pivot was done", admission, "fence_answer", {
        _FENCE_ANSWER: "Fenced()"}),
    Guard("a fence says so if the pivot was not done", admission, "fence_answer", {
        _FENCE_ANSWER: "PivotDone()"}),
)  # fmt: skip
DECIDING = (
    Guard("while the pivot is unknown nothing turns", Move, "_give_up", {
        "self._send(step, COMPENSATING)":
            "self._send(step, COMPENSATING); self._turn_back(reason)"}),
    Guard("the pivot is never guessed: given up, it is fenced", Move, "_give_up", {
        "step.kind is Kind.PIVOT": "False"}),
    Guard("a step that times out is unknown, not failed", Move, "_give_up", {
        "status=Status.UNKNOWN": "status=Status.REFUSED"}),
    Guard("a pivot that was done after all is passed", Move, "_step_done", {
        "step.kind is Kind.PIVOT": "False"}),
    Guard("past the pivot no compensation is granted", Move, "begin_compensation", {
        "if self._before.pivot_passed:": "if False:"}),
    Guard("a retriable step is never given up", Step, "is_capped", {
        "direction is FORWARD and self.kind is not Kind.RETRIABLE": "direction is FORWARD"}),
    Guard("only awaited replies count", Move, "take_reply", {
        "(input_.step, input_.direction) in self._before.awaited()": "True"}),
    Guard("a refusal turns the saga", Move, "_step_refused", {
        'self._turn_back(why or self._reason or f"{step.name}_{status.value}")':
            "self._advance()"}),
    Guard("compensated means every step settled", Move, "_compensate", {
        "if self._all_settled():": "if True:"}),
    Guard("the customer is told last", Move, "_compensate", {
        "not step.at_the_door or self._all_settled(but=step.name)": "True"}),
    Guard("a command that times out is resent", Move, "time_out", {
        "self._send(step, input_.direction)": "pass"}),
    Guard("nothing lies ahead of a gate that waits", Move, "_advance", {
        "detail=why)\n            return": "detail=why)"}),
    Guard("a gate that waits has a deadline", Instance, "timed_legs", {
        "if gate := self.waiting_at():": "if False:"}),
    Guard("a gate is decided once", Move, "open_or_close_gate", {
        "if progress.status is not Status.WAITING:": "if False:"}),
    Guard("a rejection turns the saga", Move, "open_or_close_gate", {
        'self._close_gate(input_.step, "rejected")':
            "self._state = State.RUNNING; self._advance()"}),
    Guard("a gate that expires turns the saga", Move, "time_out", {
        "if step.kind is Kind.GATE:": "if False:"}),
    Guard("a gate that was decided does not expire", Move, "time_out", {
        "self._before.timed_legs().get((input_.step, input_.direction)) != input_.attempt":
            "False"}),
    Guard("no message opens a gate", Instance, "awaited", {
        "(Status.SENT, Status.FENCING):\n            legs[name, FORWARD]":
            "(Status.SENT, Status.FENCING, Status.WAITING):\n            legs[name, FORWARD]"}),
    Guard("no dead letter closes a gate", Move, "take_dead_letter", {
        "if step.kind is Kind.GATE:": "if False:"}),
    Guard("compensation asked while a gate waits turns the saga", Move, "begin_compensation", {
        "if gate := self._before.waiting_at():": "if False:"}),
)  # fmt: skip
REACTING = (
    Guard("a request to cancel is repeated", SagaProgress, "time_out", {
        "return self.reason": "return None"}),
    Guard("two sagas that share a type of event keep to their own", reactions, "react", {
        "reaction is None or reaction.of not in (None, event.step)": "reaction is None"}),
    Guard("the customer is told last", order_reactions, "record_event", {
        "not progress.all_undone": "False"}),
    Entry("nothing is undone before the pivot is fenced", PAYMENT, CancelAsked,
          replace(PAYMENT[Fenced], of=None)),
    Entry("an undo waits for the fence, not for a refusal", INVENTORY, CardDeclined,
          replace(INVENTORY[Fenced], of=None)),
)  # fmt: skip
# By style of the model.
GUARDS: Mapping[str, tuple[Guard | Entry, ...]] = {
    "orchestrated": (*DECIDING, *FENCING),
    "choreographed": (*REACTING, *FENCING),
}
