"""decide() among honest participants, on a network that loses, repeats, delays and reorders.

A participant is a dict for an inbox and the real view of it. What happens, and in which order, is
drawn; once the network is fair, every saga ends and its participants agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.messages.envelope import Key, Outcome
from common.messages.errors import IllegalTransition
from common.storage.admission import Duplicate, InboxView, Row, claims, fence_answer
from orchestrator.engine.decide import Decision, decide
from orchestrator.engine.definition import COMPENSATING, FORWARD, Kind
from orchestrator.engine.inputs import (
    NO_APPROVALS,
    CompensateAsked,
    DeadLettered,
    GateDecided,
    Input,
    ReplyArrived,
    Resolved,
    RetryAsked,
    Started,
    TimedOut,
)
from orchestrator.engine.instance import State
from orchestrator.sagas.order import ORDER_SAGA
from tests.support.story import DATA, POLICY, SAGA

STEPS = ORDER_SAGA.by_name
PIVOT = next(step.name for step in ORDER_SAGA.steps if step.kind is Kind.PIVOT)
GATE = next(step.name for step in ORDER_SAGA.steps if step.kind is Kind.GATE)
CAN_REFUSE = ("reserve_stock", "charge_payment", "dispatch_stock")
LOOPS = 20  # a fair network needs far fewer


class Command(NamedTuple):
    key: Key


class Reply(NamedTuple):
    key: Key
    outcome: Outcome


class Participant:
    """A participant that acts iff the view says First, and repeats its stored reply."""

    def __init__(self, refuses: frozenset[str], effects: Counter[str]) -> None:
        self._refuses = refuses
        self._effects = effects
        self._inbox: dict[Key, Row] = {}

    def acted_before(self, step: str) -> None:
        self._inbox[Key(SAGA, step, FORWARD)] = Row(Outcome.DONE, None)
        self._effects[step] += 1

    def handle(self, batch: Sequence[Command]) -> list[Reply]:
        wanted = claims(command.key for command in batch)
        known = {key: self._inbox[key] for key in wanted if key in self._inbox}
        view = InboxView(claimed=[key for key in wanted if key not in known], known=known)
        replies = []
        for (key,) in batch:
            verdict = view.admit(key, lambda _: Row(Outcome.FENCED, None))
            if isinstance(verdict, Duplicate):
                outcome = verdict.row.outcome
            else:
                outcome = self._act(key, verdict.action)
                view.record_reply(key, Row(outcome, None))
            replies.append(Reply(key, outcome))
        assert view.unused_claims() == []
        self._inbox |= view.rows_to_write()
        return replies

    def _act(self, key: Key, action: Row | None) -> Outcome:
        if key.direction is COMPENSATING:
            if key.step == PIVOT:
                return fence_answer(action).outcome
            if action is not None and action.outcome is Outcome.DONE:
                self._effects[key.step] -= 1
            return Outcome.DONE
        if key.step in self._refuses:
            return Outcome.REFUSED
        self._effects[key.step] += 1
        return Outcome.DONE


class World:
    """One saga, its participants, and everything under way between them."""

    def __init__(self, refuses: frozenset[str], policy_asks: bool) -> None:
        self._asked = {GATE: "a large total"} if policy_asks else NO_APPROVALS
        self.let_through = not policy_asks
        self.effects: Counter[str] = Counter()
        self.network: list[Command | Reply] = []
        self.ever: list[Command | Reply] = []  # all that was ever under way
        self._dead: list[Command | Reply] = []
        names = {step.participant for step in ORDER_SAGA.steps}
        self._participants = {name: Participant(refuses, self.effects) for name in names}
        self._participants["order"].acted_before("create_order")
        self._take(decide(ORDER_SAGA, POLICY, None, Started(SAGA, DATA)))

    def _take(self, decision: Decision) -> None:
        self.instance = decision.instance
        self._emit([Command(Key(SAGA, s.step, s.direction)) for s in decision.sends])

    def _input(self, input_: Input) -> None:
        self._take(decide(ORDER_SAGA, POLICY, self.instance, input_, self._asked))

    def _emit(self, messages: Sequence[Command | Reply]) -> None:
        self.network += messages
        self.ever += messages

    # --- what can happen; `n` picks the message or deadline ---

    def deliver(self, n: int) -> None:
        if self.network:
            message = self.network.pop(n % len(self.network))
            if isinstance(message, Command):
                self._emit(self._owner(message).handle([message]))
            else:
                self._input(ReplyArrived(message.key.step, message.key.direction, message.outcome))

    def deliver_together(self, n: int) -> None:
        """Deliver all commands to one participant in one batch, newest or oldest first."""
        commands = [m for m in self.network if isinstance(m, Command)]
        if commands:
            owner = self._owner(commands[n % len(commands)])
            batch = [m for m in commands if self._owner(m) is owner]
            for message in batch:
                self.network.remove(message)
            self._emit(owner.handle(batch[:: -1 if n % 2 else 1]))

    def repeat(self, n: int) -> None:
        if self.ever:
            self.network.append(self.ever[n % len(self.ever)])

    def lose(self, n: int) -> None:
        if self.network:
            self.network.pop(n % len(self.network))

    def dead_letter(self, n: int) -> None:
        if self.network:
            message = self.network.pop(n % len(self.network))
            self._dead.append(message)
            self._input(DeadLettered(message.key.step, message.key.direction, "exhausted"))

    def redrive(self, n: int) -> None:
        if self._dead:
            self.network.append(self._dead[n % len(self._dead)])

    def time_out(self, n: int) -> None:
        if legs := sorted(self.instance.timed_legs().items()):
            (step, direction), attempt = legs[n % len(legs)]
            self._input(TimedOut(step, direction, attempt, past_sla=n > 5))

    def compensate(self, n: int) -> None:
        asked = CompensateAsked("ops", "customer_called")
        if self.instance.pivot_passed or self.instance.state.ended:
            with pytest.raises(IllegalTransition):
                self._input(asked)
        else:
            self._input(asked)

    def retry(self, n: int) -> None:
        self._if_legal(RetryAsked("ops", "now"), legal=bool(self.instance.awaited()))

    def resolve(self, n: int) -> None:
        """Have the participant act, lose its reply, and resolve the step by hand."""
        legs = [
            (name, direction)
            for name, direction in sorted(self.instance.awaited())
            if name != PIVOT and not STEPS[name].is_capped(direction)
        ]
        if legs:
            command = Command(Key(SAGA, *legs[n % len(legs)]))
            self._owner(command).handle([command])
            self._input(Resolved(command.key.step, "ops", "seen to"))
        self._if_legal(Resolved(PIVOT, "ops", "looks shipped"), legal=False)

    def _if_legal(self, input_: Input, *, legal: bool) -> None:
        if legal:
            self._input(input_)
        else:
            with pytest.raises(IllegalTransition):
                self._input(input_)

    def decide_gate(self, n: int) -> None:
        decided = GateDecided(GATE, n % 3 > 0, "ops", "seen")
        if self.instance.waiting_at() == GATE:
            self.let_through = decided.approved
            self._input(decided)
        else:
            with pytest.raises(IllegalTransition):
                self._input(decided)

    def _owner(self, command: Command) -> Participant:
        return self._participants[STEPS[command.key.step].participant]

    # --- how it must end ---

    def check(self) -> None:
        """Check what must hold of the participants at every moment."""
        assert set(self.effects.values()) <= {0, 1}, "an effect twice, or undone twice"
        if self.effects[PIVOT]:
            before = [step.name for step in ORDER_SAGA.steps if step.kind is Kind.COMPENSATABLE]
            assert all(self.effects[name] for name in before), "goods left on what was undone"
        assert self.let_through or not self.effects["charge_payment"], "past a closed gate"
        if not self.effects["create_order"]:
            assert not self.effects.total(), "the customer was informed before it was true"

    def become_fair(self) -> None:
        """Deliver everything from here on, and let deadlines pass, until the saga ends."""
        for _ in range(LOOPS):
            while self.network:
                self.deliver(0)
                self.check()
            if self.instance.state.ended:
                return
            for n in range(len(self.instance.timed_legs())):
                self.time_out(n)
        pytest.fail(f"has not ended: {self.instance}")

    def come_as_far_as(self, step: str) -> None:
        """Go on undisturbed until `step` was sent, or the saga ended."""
        while step not in self.instance.steps and (self.network or self.instance.waiting_at()):
            if self.instance.waiting_at():
                self.decide_gate(1)
            self.deliver(0)

    def deliver_all_again(self) -> None:
        """Deliver again all that was ever under way, in both orders."""
        for messages in (list(self.ever), self.ever[::-1]):
            self.network += messages
            while self.network:
                self.deliver(0)
                self.check()


MOVES: dict[str, Callable[[World, int], None]] = {
    "deliver": World.deliver,
    "deliver together": World.deliver_together,
    "time out": World.time_out,
    "repeat": World.repeat,
    "lose": World.lose,
    "dead-letter": World.dead_letter,
    "redrive": World.redrive,
    "compensate": World.compensate,
    "retry": World.retry,
    "resolve": World.resolve,
    "decide at the gate": World.decide_gate,
}
# A saga that is left alone comes far: most of what is drawn is a delivery or a deadline.
LIKELY = [*MOVES, *["deliver"] * 4, *["time out"] * 3, "repeat", "deliver together"]
# At a gate only a person or the deadline moves it on.
LIKELY += ["decide at the gate"] * 2


@settings(max_examples=800, derandomize=True, deadline=None, database=None)
@given(
    far=st.sampled_from(
        ("reserve_stock", GATE, "charge_payment", PIVOT, PIVOT, PIVOT, "confirm_order")
    ),
    refuses=st.sets(st.sampled_from(CAN_REFUSE), max_size=1).map(frozenset),
    policy_asks=st.booleans(),
    happenings=st.lists(
        st.tuples(st.sampled_from(LIKELY), st.integers(0, 7)), min_size=5, max_size=40
    ),
)
def test_every_saga_ends_and_its_participants_agree(
    far: str, refuses: frozenset[str], policy_asks: bool, happenings: list[tuple[str, int]]
) -> None:
    world = World(refuses, policy_asks)
    world.come_as_far_as(far)
    for move, n in happenings:
        MOVES[move](world, n)
        world.check()
    world.become_fair()

    ended, effects = world.instance, dict(world.effects)
    if ended.state is State.COMPLETED:
        assert effects == dict.fromkeys(STEPS.keys() - {GATE}, 1)
    else:
        assert ended.state is State.COMPENSATED
        assert not any(effects.values())

    world.deliver_all_again()
    assert world.instance == ended
    assert dict(world.effects) == effects
