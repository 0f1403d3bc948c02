"""Proofs that a guard is needed: its trial on mutants, and on the system as it is.

Owns: playing trials, and who noticed. Must not know: what a trial does.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, LiteralString

import psycopg

from chaos.guards.table import Guard
from chaos.guards.trials import Trial
from chaos.judge.verdict import Verdict
from chaos.load.catalogue import CatalogueError
from chaos.runtime import StackError, choose
from chaos.scenarios.scene import Scene, in_words, system_up
from chaos.stack.armory import Armory
from chaos.stack.database import End
from chaos.stack.system import Judgement, System
from chaos.waiting import ExperimentError

STUCK_SECONDS = 20.0  # without rest, with every resend a matter of two: it will not come
_CONSTRAINT = re.compile(r'(violates \w+ constraint|constraint) "(\w+)"')
Say = Callable[[str], None]


@dataclass(frozen=True)
class Witness:
    """A part that detected the violation, and its words."""

    who: str
    says: str


@dataclass(frozen=True)
class Played:
    """The outcome of a trial. `problem`: it could not be played to its end."""

    witnesses: tuple[Witness, ...]
    problem: str | None
    seconds: float


@dataclass
class Proof:
    """A guard's trial without it, and with it."""

    guard: Guard
    without: Played
    control: Played

    @property
    def noticed(self) -> bool:
        return any(self.guard.expects in witness.who for witness in self.without.witnesses)

    @property
    def verdict(self) -> Verdict:
        """Pass if its removal is noticed by the witness it must be, and nothing breaks with it."""
        unharmed = not self.control.witnesses and self.control.problem is None
        return Verdict.PASS if self.noticed and unharmed else Verdict.FAIL

    def as_json(self) -> dict[str, Any]:
        guard = self.guard
        return {
            "guard": guard.name,
            "keeps": guard.keeps,
            "taken_out": list(guard.out),
            "taken_out_too": guard.beside or None,
            "of": list(guard.of),
            "load": guard.trial.name,
            "load_says": guard.trial.says,
            "breaks": self.without.problem,
            "noticed_by": [{"who": w.who, "says": w.says} for w in self.without.witnesses],
            "with_the_guard": [f"{w.who}: {w.says}" for w in self.control.witnesses]
            + ([self.control.problem] if self.control.problem else []),
            "seconds": round(self.without.seconds + self.control.seconds, 1),
            "verdict": self.verdict,
        }


@dataclass
class Prover:
    """Plays trials, each on a stack of its own."""

    say: Say
    seed: int
    name: str = "guards"
    _controls: dict[str, Played] = field(default_factory=dict)

    def prove(self, guards: Iterable[Guard]) -> Iterator[Proof]:
        for guard in guards:
            yield Proof(guard, self.without(guard), self.control(guard.trial))

    def without(self, guard: Guard) -> Played:
        self.say(f"{guard.trial.name}, without {guard.name}")
        return self._play(guard.trial, guard.entry(), guard.unlocked)

    def control(self, trial: Trial) -> Played:
        """Play with every guard in place; once, however many guards it is the control of."""
        if trial.name not in self._controls:
            self.say(f"{trial.name}, with every guard in place")
            self._controls[trial.name] = self._play(trial, {}, ())
        return self._controls[trial.name]

    def _play(
        self, trial: Trial, entry: Mapping[str, str], unlocked: tuple[LiteralString, ...]
    ) -> Played:
        armory, began, problem = Armory(), time.monotonic(), None
        settings = {**trial.plan.settings, **armory.settings}
        plan = replace(trial.plan, entry=entry, settings=settings)
        try:
            with system_up(plan, choose("native", self.name)) as system:
                with psycopg.connect(system.endpoints.superuser_dsn, autocommit=True) as server:
                    for statement in unlocked:
                        server.execute(statement)
                scene = Scene(system, trial.name, self.seed, trial.orders)
                try:
                    trial.play(scene, armory)
                except (ExperimentError, StackError, CatalogueError, OSError) as error:
                    problem = str(error) or repr(error)
                system.rest(STUCK_SECONDS)
                witnesses = tuple(_witnesses(scene))
            return Played(witnesses, problem, time.monotonic() - began)
        finally:
            armory.close()


def _witnesses(scene: Scene) -> Iterator[Witness]:
    judgement = scene.system.judgement(scene.explained)
    yield from _offences(judgement)
    yield from _ends(scene)
    yield from _constraints(scene.system)
    if lines := judgement.remaining.lines():
        yield Witness(f"not at rest after {STUCK_SECONDS:.0f} s", "; ".join(lines[:2]))


def _offences(judgement: Judgement) -> Iterator[Witness]:
    for finding in judgement.findings:
        if finding.verdict is Verdict.FAIL:
            yield Witness(f"the judge: {finding.invariant}", finding.examples[0])


def _ends(scene: Scene) -> Iterator[Witness]:
    """Find orders that ended in a way that is not allowed."""
    rows = scene.system.db.rows(
        "select order_id, status, reason from order_svc.customer_order"
        " where status <> 'PENDING' and order_id = any(%s)",
        list(scene.allowed),
    )
    ends = {row[0]: End(*row[1:]) for row in rows}
    wrong = [o for o, end in ends.items() if end not in scene.allowed[o]]
    if wrong:
        allowed = in_words(scene.allowed[wrong[0]])
        yield Witness("the orders' ends", f"{in_words([ends[wrong[0]]])}; expected {allowed}")


def _constraints(system: System) -> Iterator[Witness]:
    """Find the constraints that fired, in Postgres's own log."""
    fired: dict[str, str] = {}
    for line in system.runtime.logs("postgres"):
        if "ERROR" in line and (found := _CONSTRAINT.search(line)):
            fired.setdefault(found[2], line.partition("ERROR:")[2].strip())
    for name, says in fired.items():
        yield Witness(f"the constraint {name}", says)
