"""Plays scenarios, one after another, and judges each.

Owns: which stack a scenario is played on (those of a profile share one, until one fails), the
verdict per scenario, and the run folder. Must not know: what a scenario does.
"""

from __future__ import annotations

import json
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, LiteralString
from uuid import UUID

from chaos.judge.case import Snapshot
from chaos.judge.verdict import Verdict, overall
from chaos.load.catalogue import CatalogueError
from chaos.runtime import StackError, Style, choose
from chaos.scenarios.scene import PROFILES, Scenario, Scene, in_words, plan_of
from chaos.stack.database import End
from chaos.stack.system import System
from chaos.waiting import ExperimentError

RUNS = Path("build/runs")
ORDERS = 150
TIMELINE = 60  # entries of a saga log that are kept

Say = Callable[[str], None]


@dataclass
class Result:
    """The outcome of one scenario; everything a report says of it."""

    name: str
    says: str
    runtime: str
    profile: str
    stack: str  # its directory in the run folder
    fault: str
    expected: str
    began: datetime
    verdict: Verdict = Verdict.UNKNOWN
    problems: list[str] = field(default_factory=list)
    orders: int = 0
    under_way: int | None = None
    ends: dict[str, int] = field(default_factory=dict)
    payment: dict[str, int] = field(default_factory=dict)
    inventory: dict[str, int] = field(default_factory=dict)
    attempts: int | None = None
    recovery_seconds: float | None = None
    seconds: float = 0.0
    invariants: dict[str, str] = field(default_factory=dict)
    tally: dict[str, int | None] = field(default_factory=dict)
    timeline: list[dict[str, Any]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "began": self.began.isoformat()}


class Runner:
    """Scenarios played on stacks of one runtime; `folder` takes what a reader may want to see."""

    def __init__(
        self,
        kind: str,
        folder: Path,
        *,
        seed: int,
        orders: int,
        say: Say,
        name: str = "scenarios",
        style: Style = "orchestrated",
    ) -> None:
        self._kind = kind
        self._folder = folder
        self._seed = seed
        self._orders = orders
        self._say = say
        self._name = name
        self._style: Style = style
        self._system: System | None = None
        self._profile = ""
        self._directory = folder
        self._stacks = 0
        self._played = 0

    def run(self, scenarios: Sequence[Scenario]) -> Iterator[Result]:
        """Play them in the order of their profiles, so that few stacks are needed."""
        for profile in dict.fromkeys((*PROFILES, *(scenario.profile for scenario in scenarios))):
            for scenario in scenarios:
                if scenario.profile == profile:
                    yield self.play(scenario)
            self.close()

    def play(self, scenario: Scenario) -> Result:
        system, began = self._stack(scenario.profile), time.monotonic()
        self._played += 1
        scene = Scene(
            system,
            f"{scenario.name}-{self._played}",
            zlib.crc32(f"{self._seed} {scenario.name}".encode()),
            min(scenario.orders or self._orders, self._orders),
            self._say,
        )
        result = Result(
            scenario.name,
            scenario.says,
            self._kind,
            scenario.profile,
            self._directory.name,
            scenario.fault,
            scenario.expects,
            scene.began_at,
        )
        _conclude(scene, result, scenario)
        result.fault = scene.drawn or scenario.fault
        result.seconds = round(time.monotonic() - began, 1)
        if result.verdict is not Verdict.PASS:
            self._say(f"{scenario.name} failed: what comes next gets a new stack")
            self.close()
        return result

    def close(self) -> None:
        """Take the stack down; its logs, history and tables go to the run folder."""
        if self._system is None:
            return
        system, self._system = self._system, None
        try:
            _write_snapshot(self._directory, system.snapshot())
        except Exception as error:  # noqa: BLE001 - a stack that does not answer still goes down
            (self._directory / "snapshot.error").write_text(repr(error))
        system.close()
        system.runtime.save_logs_and_down(self._directory / "logs")

    def _stack(self, profile: str) -> System:
        if self._system is None or self._profile != profile:
            self.close()
            self._stacks += 1
            self._profile = profile
            self._directory = self._folder / f"stack-{self._stacks}-{Path(profile).stem}"
            self._directory.mkdir(parents=True)
            runtime = choose(self._kind, self._name)
            self._say(f"bringing a stack up: {profile}, {runtime.name}")
            plan = replace(plan_of(profile), style=self._style)
            self._system = System(plan, runtime, runtime.up(plan, tethered=True))
        return self._system


def _conclude(scene: Scene, result: Result, scenario: Scenario) -> None:
    """Play to the end and judge; a failure becomes a problem of the result."""
    try:
        scenario.play(scene)
    except (ExperimentError, StackError, CatalogueError, OSError, ValueError) as error:
        result.problems.append(str(error) or repr(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, the others are played
        result.problems.append(f"the scenario crashed: {error!r}")
    try:
        _judge(scene, result)
    except Exception as error:  # noqa: BLE001 - nothing was proved
        result.problems.append(f"it could not be judged: {error!r}")


def _judge(scene: Scene, result: Result) -> None:
    """Check the orders' ends and every invariant over all the stack has seen; note the facts."""
    system = scene.system
    orders = list(scene.allowed)
    result.orders, result.under_way = len(orders), scene.under_way
    ends: Mapping[UUID, End] = {}
    try:
        ends = system.db.ends(orders) if orders else {}
    except ExperimentError as error:
        result.problems.append(str(error))
    result.problems += _wrong_ends(scene, ends)
    system.rest()
    if scene.healed is not None:
        result.recovery_seconds = round(time.monotonic() - scene.healed, 1)
    judgement = system.judgement(scene.explained)
    if judgement.verdict is not Verdict.PASS:
        result.problems += judgement.lines()
    result.invariants = {f.invariant: f.verdict for f in judgement.findings}
    result.tally = judgement.tally._asdict()
    result.verdict = overall([judgement.verdict, Verdict.FAIL if result.problems else Verdict.PASS])
    result.ends = {**Counter(in_words([end]) for end in ends.values()), **scene.others}
    result.payment, result.inventory = _effects(system, orders)
    result.attempts = _attempts(system, orders)
    result.timeline = _sample_timeline(system, [o for o, end in ends.items() if end.reason])


def _wrong_ends(scene: Scene, ends: Mapping[UUID, End]) -> Iterator[str]:
    wrong = Counter(
        (in_words([end]), in_words(scene.allowed[order]))
        for order, end in ends.items()
        if end not in scene.allowed[order]
    )
    for (end, allowed), count in wrong.items():
        yield f"{count} orders are {end}; expected {allowed}"
    if unseen := scene.must_be_seen - set(ends.values()):
        yield f"no order is {in_words(unseen)}"


def _effects(system: System, orders: list[UUID]) -> tuple[dict[str, int], dict[str, int]]:
    moves = system.db.rows(
        "select lower(kind), count(*) from payment_svc.transfer where saga_id = any(%s) group by 1",
        orders,
    )
    goods = system.db.rows(
        "select lower(status), count(*) from inventory_svc.reservation"
        " where saga_id = any(%s) group by 1",
        orders,
    )
    return dict(moves), dict(goods)


def _attempts(system: System, orders: list[UUID]) -> int | None:
    """Return the attempts of the step that needed most, in either direction."""
    ((most,),) = system.db.rows(
        f"""
        select max(greatest((step.value->>'attempt')::int, (step.value->>'undo_attempt')::int))
        from {system.db.sagas}, jsonb_each(steps) as step
        where saga_id = any(%s)""",  # noqa: S608 - one of two names of ours
        orders,
    )
    return int(most) if most is not None else None


_LOGGED_MOST: LiteralString = """
with longest as (
  select saga_id from orchestrator.saga_log where saga_id = any(%s)
  group by saga_id order by count(*) desc, saga_id limit 1)
select saga_id, extract(epoch from at - min(at) over ())::float8, entry, step, direction,
       attempt, detail, process
from orchestrator.saga_log join longest using (saga_id) order by id limit %s"""

_RECEIVED_MOST: LiteralString = """
with longest as (
  select saga_id, heard from order_svc.saga_progress where saga_id = any(%s)
  order by (select count(*) from jsonb_object_keys(heard)) desc, saga_id limit 1)
select saga_id, (h->>'at')::float8 - min((h->>'at')::float8) over (), h->>'outcome',
       split_part(leg, ':', 1), split_part(leg, ':', 2), null,
       concat_ws(': ', h->>'type', h->>'reason'), coalesce(h->>'process', 'door')
from longest, jsonb_each(heard) as told (leg, h) order by 2 limit %s"""


def _sample_timeline(system: System, orders: Sequence[UUID]) -> list[dict[str, Any]]:
    """Return the longest saga log of these orders; choreographed, the events received of it."""
    rows = system.db.rows(
        _RECEIVED_MOST if system.style == "choreographed" else _LOGGED_MOST, list(orders), TIMELINE
    )
    names = ("saga_id", "seconds", "entry", "step", "direction", "attempt", "detail", "process")
    return [dict(zip(names, (str(row[0]), *row[1:]), strict=True)) for row in rows]


def _write_snapshot(directory: Path, snapshot: Snapshot) -> None:
    """Write the four schemas as the judge saw them."""
    rows = asdict(snapshot)
    rows["ledger"] = [[*key, amount] for key, amount in snapshot.ledger.items()]
    (directory / "snapshot.json").write_text(json.dumps(rows, default=str))


def new_folder(seed: int, root: Path = RUNS) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder = root / f"{stamp}-{seed}"
    folder.mkdir(parents=True)
    return folder
