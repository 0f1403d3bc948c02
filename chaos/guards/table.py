"""The guards, each with what breaks without it: a load on the system as it is, and on one whose
processes run without the guard.

Owns: the table, and who noticed. Must not know: how a guard is taken out (tests/saboteurs does it,
by an entry module of its own; nothing in the services knows), nor what a load does.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, LiteralString

import psycopg

from chaos.guards.loads import LOADS, Load, Trial
from chaos.judge.verdict import Verdict
from chaos.load.catalogue import CatalogueError
from chaos.runtime import SERVICES, StackError, choose
from chaos.scenarios.scene import Scene, in_words
from chaos.stack.armory import Armory
from chaos.stack.database import End
from chaos.stack.system import Judgement, System
from chaos.waiting import ExperimentError

STUCK_SECONDS = 20.0  # without rest, with every resend a matter of two: it will not come
SABOTEURS = "tests.mutants"
_CONSTRAINT = re.compile(r'(violates \w+ constraint|constraint) "(\w+)"')


@dataclass(frozen=True)
class Guard:
    """One row. `expects` names a witness that must be among those who notice."""

    name: str
    keeps: str
    """What it is there for."""
    out: tuple[str, ...]
    """What `tests.mutants` takes out."""
    of: tuple[str, ...]
    """Of which services' processes."""
    load: str
    expects: str
    beside: str = ""
    """What else is out, since it stands behind this guard and would hide it."""
    unlocked: tuple[LiteralString, ...] = ()
    """Constraints that are out, too: what the superuser says for it."""

    def entry(self) -> dict[str, str]:
        return {s: f"{SABOTEURS} {','.join(self.out)} {SERVICES[s].entry}" for s in self.of}

    def is_missed_by(self, played: Played) -> bool:
        return any(self.expects in witness.who for witness in played.witnesses)


_EFFECT_UNLOCKED: tuple[LiteralString, ...] = (
    "alter table payment_svc.transfer drop constraint effect_once",
    "alter table payment_svc.transfer drop constraint transfer_pk cascade",
    "drop index payment_svc.one_charge_per_saga",
)
_CHARGED_TWICE = "one charge per order"

GUARDS: tuple[Guard, ...] = (
    Guard(
        "inbox",
        "what was handled is not handled again",
        ("inbox",), ("payment",), "tripled-charges", "transfer_pk",
    ),
    Guard(
        "unique-effect-row",
        "one effect for one (saga, step), in DDL",
        ("inbox", "charged-already"), ("payment",), "tripled-charges", _CHARGED_TWICE,
        "the inbox, behind which it stands, and the charge's id, which follows from the saga's",
        _EFFECT_UNLOCKED,
    ),
    Guard(
        "fence",
        "an undo leaves a tombstone, and its action, should it come later, is refused",
        ("fence",), ("payment",), "charges-past-their-undo", "rejected costs nothing",
    ),
    Guard(
        "stored-reply",
        "a repeat hears what the first one heard",
        ("stored-reply",), ("order", "door"), "lost-confirmations", "at rest",
    ),
    Guard(
        "outbox",
        "what a transaction says leaves only once it is committed",
        ("outbox",), ("orchestrator",), "killed-while-giving-up", "confirmed is charged once",
    ),
    Guard(
        "ack-after-commit",
        "what was in hand when a process died comes again",
        ("ack-after-commit",), ("payment",), "killed-with-a-charge", "at rest",
        "resends, which would hide it at the price of a step's timeout",
    ),
    Guard(
        "semantic-lock",
        "only what is HELD is dispatched: a released reservation is not",
        ("fence", "semantic-lock"), ("inventory",), "dispatch-past-release",
        "rejected keeps no stock",
        "the fence, which refuses a late dispatch before the lock is asked",
    ),
    Guard(
        "conditional-stock-update",
        "pieces are reserved only if there are enough",
        ("enough-on-hand",), ("inventory",), "last-unit", "on_hand_not_negative",
    ),
    Guard(
        "stock-constraint",
        "there are never less than none, in DDL",
        ("enough-on-hand",), ("inventory",), "last-unit", "stock is conserved",
        "the conditional update, behind which it stands",
        ("alter table inventory_svc.stock drop constraint on_hand_not_negative",),
    ),
    Guard(
        "stock-lock",
        "two replicas do not judge the same pieces at once",
        ("stock-lock",), ("inventory",), "contended-by-replicas", "stock matches reservations",
    ),
    Guard(
        "return-lock",
        "an order is locked by one return at a time",
        ("return-lock",), ("order", "door"), "returns-race", "one_return_per_order",
    ),
    Guard(
        "return-waits",
        "an order is locked by no return while its own saga is at work on it",
        ("return-lock",), ("order", "door"), "return-meets-order", "confirmed is charged once",
    ),
    Guard(
        "refund-reread",
        "whoever gives money back reads again, with the account held, whether it was given back",
        ("return-lock", "refunded-already"), ("order", "door", "payment"), "returns-race",
        "transfer_pk",
        "the lock of the order, which lets in one return, in code and in DDL",
        ("drop index order_svc.one_return_per_order",),
    ),
    Guard(
        "refund-constraint",
        "one refund per charge, in DDL",
        ("return-lock", "refunded-already"), ("order", "door", "payment"), "returns-race",
        "refunds match their charge",
        "the lock of the order, the reading again, and the refund's id, which follows from the"
        " charge's",
        (
            "drop index order_svc.one_return_per_order",
            "alter table payment_svc.transfer drop constraint one_refund_per_charge",
            "alter table payment_svc.transfer drop constraint transfer_pk cascade",
        ),
    ),
    Guard(
        "awaited-replies-only",
        "a reply that nobody waits for moves nothing",
        ("only-awaited",), ("orchestrator",), "tripled-replies",
        "completed_means_every_step_done",
    ),
    Guard(
        "compensation-completeness",
        "a step of unknown outcome is undone, too",
        ("unknown-is-undone",), ("orchestrator",), "charges-found-late", "rejected costs nothing",
    ),
    Guard(
        "end-when-settled",
        "no saga ends before its last undo is confirmed",
        ("end-when-settled",), ("orchestrator",), "unheard-rejections",
        "compensated_means_every_step_settled",
    ),
    Guard(
        "approval-gate",
        "nobody goes through a gate whom no person let through, if one is to be asked",
        ("gate",), ("orchestrator",), "nobody-decides", "the orders' ends",
    ),
    Guard(
        "dead-letter-told",
        "the saga hears of its dead command when that is taken in",
        ("dead-letter-told",), ("orchestrator",), "garbled-charges", "at rest",
        "resends, which would hide it at the price of a step's timeout",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Witness:
    """Who noticed that something is wrong, and its words."""

    who: str
    says: str


@dataclass(frozen=True)
class Played:
    """What came of a load. `problem`: it could not be played to its end."""

    witnesses: tuple[Witness, ...]
    problem: str | None
    seconds: float


@dataclass
class Proof:
    """Of one guard: the load without it, and with it."""

    guard: Guard
    without: Played
    control: Played

    @property
    def verdict(self) -> Verdict:
        """Pass: its removal is noticed by whom we thought, and with it the load harms nobody."""
        noticed = self.guard.is_missed_by(self.without)
        held = not self.control.witnesses and self.control.problem is None
        return Verdict.PASS if noticed and held else Verdict.FAIL

    def as_json(self) -> dict[str, Any]:
        guard, load = self.guard, LOADS[self.guard.load]
        return {
            "guard": guard.name,
            "keeps": guard.keeps,
            "taken_out": list(guard.out),
            "taken_out_too": guard.beside or None,
            "of": list(guard.of),
            "load": load.name,
            "load_says": load.says,
            "breaks": self.without.problem,
            "noticed_by": [{"who": w.who, "says": w.says} for w in self.without.witnesses],
            "with_the_guard": [f"{w.who}: {w.says}" for w in self.control.witnesses]
            + ([self.control.problem] if self.control.problem else []),
            "seconds": round(self.without.seconds + self.control.seconds, 1),
            "verdict": self.verdict,
        }


Say = Callable[[str], None]


@dataclass
class Bench:
    """Plays loads, each on a stack that fits. A sabotaged one is used once."""

    say: Say
    seed: int
    name: str = "guards"
    _controls: dict[str, Played] = field(default_factory=dict)

    def prove(self, guards: Iterable[Guard]) -> Iterator[Proof]:
        for guard in guards:
            yield Proof(guard, self.without(guard), self.control(LOADS[guard.load]))

    def without(self, guard: Guard) -> Played:
        self.say(f"{guard.load}, without {guard.name}")
        return self._play(LOADS[guard.load], guard.entry(), guard.unlocked)

    def control(self, load: Load) -> Played:
        """With every guard in place; played once, whatever it is the control of."""
        if load.name not in self._controls:
            self.say(f"{load.name}, with every guard in place")
            self._controls[load.name] = self._play(load, {}, ())
        return self._controls[load.name]

    def _play(
        self, load: Load, entry: Mapping[str, str], unlocked: tuple[LiteralString, ...]
    ) -> Played:
        armory, runtime, began = Armory(), choose("native", self.name), time.monotonic()
        try:
            plan = replace(load.plan, entry=entry)
            plan = replace(plan, settings={**plan.settings, **armory.settings})
            system = System(plan, runtime, runtime.up(plan, tethered=True))
            try:
                _unlock(system, unlocked)
                return _played(system, armory, load, self.seed, began)
            finally:
                system.close()
        finally:
            runtime.down()
            armory.close()


def _unlock(system: System, unlocked: tuple[LiteralString, ...]) -> None:
    with psycopg.connect(system.endpoints.superuser_dsn, autocommit=True) as server:
        for statement in unlocked:
            server.execute(statement)


def _played(system: System, armory: Armory, load: Load, seed: int, began: float) -> Played:
    scene = Scene(system, load.name, seed, load.orders)
    problem = None
    try:
        load.play(Trial(scene, armory))
    except (ExperimentError, StackError, CatalogueError, OSError) as error:
        problem = str(error) or repr(error)
    system.rest(STUCK_SECONDS)
    judgement = system.judgement(scene.explained)
    witnesses = (
        *_offences(judgement), *_ends(scene), *_constraints(system), *_standing(judgement),
    )  # fmt: skip
    return Played(witnesses, problem, time.monotonic() - began)


def _offences(judgement: Judgement) -> Iterator[Witness]:
    for finding in judgement.findings:
        if finding.verdict is Verdict.FAIL:
            yield Witness(f"the judge: {finding.invariant}", finding.examples[0])


def _standing(judgement: Judgement) -> Iterator[Witness]:
    if lines := judgement.remaining.lines():
        yield Witness(f"not at rest after {STUCK_SECONDS:.0f} s", "; ".join(lines[:2]))


def _ends(scene: Scene) -> Iterator[Witness]:
    """Orders that ended, and as they must not."""
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
    """Those that fired, by Postgres's own log."""
    fired: dict[str, str] = {}
    for line in system.runtime.logs("postgres"):
        if "ERROR" in line and (found := _CONSTRAINT.search(line)):
            fired.setdefault(found[2], line.partition("ERROR:")[2].strip())
    for name, says in fired.items():
        yield Witness(f"the constraint {name}", says)
