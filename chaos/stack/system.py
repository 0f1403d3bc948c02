"""A running stack as an experiment uses it: its parts, the history, and the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from chaos.judge.case import Case, Snapshot
from chaos.judge.history import History
from chaos.judge.quiescence import Remaining, what_remains
from chaos.judge.snapshot import whole_snapshot
from chaos.judge.verdict import Finding, Tally, Verdict, judge, overall, tally
from chaos.load.catalogue import load_catalogue
from chaos.load.shop import Shop
from chaos.load.workload import Catalogue, facts_of
from chaos.runtime import Endpoints, Plan
from chaos.runtime.base import Runtime
from chaos.stack.apis import Door, Operator
from chaos.stack.broker import Broker
from chaos.stack.database import Database
from chaos.stack.processes import Processes
from chaos.waiting import WITHIN_SECONDS, ExperimentError, poll

# For runs with faults: timeouts within seconds.
FAULT_SETTINGS = {
    "step_timeout_seconds": "0.5",
    "step_attempts": "3",
    "backoff_cap_seconds": "2",
    "resend_cap_seconds": "2",
    "stuck_after_seconds": "10",
    "running_limit": "100",
    "start_resend_seconds": "1",
    "reconcile_every_seconds": "0.1",
    "lock_timeout_seconds": "1",
    "idle_in_transaction_seconds": "1",
    "tcp_user_timeout_seconds": "2",
    "heartbeat_seconds": "4",
    "retry_cap_seconds": "1",
}

REST_POLL_SECONDS = 0.25
SHOWN = 12  # last lines of each log above level info


@dataclass(frozen=True)
class Judgement:
    """The verdict over everything a stack has seen."""

    remaining: Remaining
    findings: tuple[Finding, ...]
    tally: Tally

    @property
    def verdict(self) -> Verdict:
        return overall(finding.verdict for finding in self.findings)

    def lines(self) -> list[str]:
        return [f"verdict: {self.verdict}", *self.remaining.lines(), *_offences(self.findings)]


class System:
    """One stack, and the record of everything it was asked."""

    def __init__(self, plan: Plan, runtime: Runtime, endpoints: Endpoints) -> None:
        self.runtime = runtime
        self.endpoints = endpoints
        self.style = plan.style
        self.history = History(endpoints.log_dir / "history.jsonl")
        self.door = Door(endpoints, self.history)
        self.operator = Operator(endpoints)
        self.broker = Broker(endpoints.amqp_url, plan.style)
        self.db = Database(endpoints, plan.style)
        self.processes = Processes(plan, runtime, endpoints, self.history)
        self._catalogue = Catalogue()
        self._remaining = Remaining(problem="not counted yet")
        self._explained: set[tuple[str, str]] = set()  # dead letters meant so far

    def close(self) -> None:
        self.history.close()

    def stock_up(self, shop: Shop) -> Shop:
        """Load the shop's catalogue and return the shop."""
        self.load(shop.catalogue)
        return shop

    def load(self, catalogue: Catalogue) -> None:
        load_catalogue(self.endpoints.amqp_url, catalogue, deadline_seconds=WITHIN_SECONDS)
        self.expect(catalogue)

    def expect(self, catalogue: Catalogue) -> None:
        """Count these goods and accounts, loaded by the experiment itself, in the verdict."""
        self._catalogue = self._catalogue + catalogue

    def snapshot(self) -> Snapshot:
        return whole_snapshot(
            self.endpoints.judge_dsn,
            self.endpoints.amqp_url,
            self.runtime.rabbitmqctl,
            self.style,
        )

    def dead_letters(self) -> Counter[tuple[str, str]]:
        """Count dead letters by (queue, reason)."""
        counted: Counter[tuple[str, str]] = Counter()
        for letter in self.snapshot().dead_letters:
            counted[letter.queue, letter.reason] += letter.count
        return counted

    def verdict(self, explained: Iterable[tuple[str, str]] = ()) -> None:
        """Wait for quiescence and require every invariant; over everything this stack has seen."""
        self.rest()
        judgement = self.judgement(explained)
        if judgement.verdict is not Verdict.PASS:
            raise ExperimentError("\n".join(judgement.lines()))

    def rest(self, within: float = WITHIN_SECONDS) -> None:
        """Wait for quiescence; `judgement` says whether it was reached."""

        def is_at_rest() -> bool:
            self._remaining = self._what_remains()
            return not self._remaining

        poll(is_at_rest, within, every=REST_POLL_SECONDS)

    def _what_remains(self) -> Remaining:
        return what_remains(self.endpoints.judge_dsn, self.runtime.rabbitmqctl, self.style)

    def judgement(self, explained: Iterable[tuple[str, str]] = ()) -> Judgement:
        """Judge everything so far, after `rest`. `explained` are dead letters meant since."""
        self._explained |= set(explained)
        case = self._case(quiescent=not self._remaining)
        findings = judge(case)
        return Judgement(self._remaining, tuple(findings), tally(case, findings))

    def interim_verdict(self) -> None:
        """Require the invariants that hold at every moment."""
        findings = judge(self._case(quiescent=False))
        failed = [finding for finding in findings if finding.verdict is Verdict.FAIL]
        if failed:
            raise ExperimentError("\n".join(_offences(failed)))

    def _case(self, *, quiescent: bool) -> Case:
        return Case(
            snapshot=self.snapshot(),
            facts=facts_of(self._catalogue, self.history.events, self._explained),
            quiescent=quiescent,
        )

    def account(self) -> str:
        """Describe the stack for a person whose test failed."""
        lines = [
            f"{s.name}: {s.state}, {'ready' if s.ready else 'not ready'}, {s.restarts} restarts"
            for s in self.runtime.status()
        ]
        lines += self._what_remains().lines()
        for process in self.processes.names:
            matters = [line for line in self.runtime.logs(process) if '"level": "info"' not in line]
            lines += [f"--- {process}", *matters[-SHOWN:]]
        return "\n".join(lines)


def _offences(findings: Iterable[Finding]) -> list[str]:
    return [
        line
        for finding in findings
        if finding.verdict is not Verdict.PASS
        for line in (f"{finding.invariant}: {finding.verdict}", *finding.examples)
    ]
